"""A run's folder: a fitted flow, and how well it did."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.distributions import Distribution

from pyroflows.distributions import Dequantized, Flow
from pyroflows.saving import load_flow, save_flow
from pyroflows.state import write_file

__all__ = ["Run"]

CHECKPOINT, METRICS = "flow.safetensors", "metrics.json"


@dataclass(frozen=True)
class Run:
    """A fitted flow, and the number of levels of its integer data, written to and read from a folder."""

    flow: Flow
    levels: int | None

    def sample(self, n: int, temperature: float = 1.0) -> Tensor:
        """Data, `(n, *event_shape)`: integers if it has levels."""
        distribution: Distribution = self.flow(temperature=temperature)
        if self.levels is not None:
            distribution = Dequantized(distribution, self.levels)
        return distribution.sample((n,))

    def save(self, folder: Path, metrics: dict[str, Any]) -> None:
        """Write the flow and its metrics, each under a temporary name first, so that none is ever half."""
        save_flow(self.flow, folder / CHECKPOINT, {"levels": self.levels})
        write_file(folder / METRICS, (json.dumps(metrics, indent=2) + "\n").encode())

    @classmethod
    def load(cls, folder: str | Path) -> Run:
        """Read a run from its folder.

        Raises:
            ValueError: There is no checkpoint, or it is not one of pyroflows'.
        """
        path = Path(folder) / CHECKPOINT
        if not path.is_file():
            raise ValueError(f"expected the folder of a run, with a {CHECKPOINT} in it, got {str(folder)!r}")
        flow, extra = load_flow(path)
        return cls(flow, extra.get("levels"))
