"""A run's folder: a fitted flow, and how well it did."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from pyroflows.baseline import Gaussian
from pyroflows.distributions import Dequantized, Flow
from pyroflows.saving import load_flow, save_flow
from pyroflows.state import write_file
from pyroflows.tables import Grid

__all__ = ["Run"]

CHECKPOINT, METRICS = "flow.safetensors", "metrics.json"


@dataclass(frozen=True)
class Run:
    """A fitted flow and what belongs to it, written to and read from a folder.

    Attributes:
        flow: The flow.
        grey_levels: Number of grey levels of integer data; `None` for reals.
        grid: The grid of the columns of a table that were dequantized.
        baseline: The Gaussian that was fitted to the same table.
    """

    flow: Flow
    grey_levels: int | None
    grid: Grid | None = None
    baseline: Gaussian | None = None

    def sample(self, n: int, temperature: float = 1.0) -> Tensor:
        """Data, `(n, *event_shape)`: integers if it has grey levels, on the grid if it has one.

        Raises:
            FloatingPointError: A sample that should be of integers is not finite.
        """
        if self.grey_levels is not None:
            return Dequantized(self.flow(temperature=temperature), self.grey_levels).sample((n,))
        x = self.flow(temperature=temperature).sample((n,))
        return x if self.grid is None else self.grid.round(x)

    def draw(self, n: int, temperature: float = 1.0) -> Tensor:
        """Samples to look at: as `sample`, but always of reals, which may be not finite."""
        if self.grey_levels is None:
            return self.sample(n, temperature)
        return Dequantized(self.flow(temperature=temperature), self.grey_levels).sample_reals((n,))

    def save(self, folder: Path, metrics: dict[str, Any]) -> None:
        """Write the flow and its metrics, each under a temporary name first, so that none is ever half."""
        extra = {
            "grey_levels": self.grey_levels,
            "grid": _fields(self.grid),
            "baseline": _fields(self.baseline),
        }
        save_flow(self.flow, folder / CHECKPOINT, extra)
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
        grid, baseline = extra.get("grid"), extra.get("baseline")
        return cls(
            flow,
            extra.get("grey_levels", extra.get("levels")),
            None if grid is None else Grid(**grid),
            None if baseline is None else Gaussian(**baseline),
        )


def _fields(value: Grid | Gaussian | None) -> dict[str, Tensor] | None:
    return None if value is None else dict(vars(value))
