"""A run's folder: a fitted flow as weights and the call that builds it, and how well it did."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pyroflows._extras import needs_fit_extra
from pyroflows.distributions import Flow
from pyroflows.transforms import glow, nice, realnvp
from pyroflows.transforms.base import FlowTransform

with needs_fit_extra("pyroflows.runs"):
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import save

__all__ = ["Recipe", "Run"]

CHECKPOINT, METRICS, SAMPLES = "flow.safetensors", "metrics.json", "samples.png"
_RECIPES: dict[str, Callable[..., FlowTransform]] = {"glow": glow, "nice": nice, "realnvp": realnvp}


@dataclass(frozen=True)
class Recipe:
    """The call that builds a flow: `name(event_shape, **options)`, and the levels of its integer data."""

    name: str
    event_shape: tuple[int, ...]
    options: dict[str, Any]
    levels: int | None

    def build(self) -> Flow:
        return Flow(_RECIPES[self.name](tuple(self.event_shape), **self.options))


@dataclass(frozen=True)
class Run:
    """A fitted flow and its recipe, written to and read from a folder.

    The weights are stored as safetensors, the recipe as JSON in its header: reading runs no code.
    """

    flow: Flow
    recipe: Recipe

    def save(self, folder: Path, metrics: dict[str, Any]) -> None:
        """Write checkpoint and metrics, each under a temporary name first, so that none is ever half."""
        tensors = {name: tensor.contiguous() for name, tensor in self.flow.state_dict().items()}
        metadata = {"pyroflows": json.dumps(asdict(self.recipe))}
        _write(folder / CHECKPOINT, save(tensors, metadata))
        _write(folder / METRICS, (json.dumps(metrics, indent=2) + "\n").encode())

    @classmethod
    def load(cls, folder: str | Path) -> Run:
        """Read a run from its folder.

        Raises:
            ValueError: There is no checkpoint, or it is not one of pyroflows'.
        """
        path = Path(folder) / CHECKPOINT
        if not path.is_file():
            raise ValueError(f"expected the folder of a run, with a {CHECKPOINT} in it, got {str(folder)!r}")
        try:
            with safe_open(path, framework="pt") as file:
                config = json.loads((file.metadata() or {})["pyroflows"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            recipe = Recipe(**config)
            flow = recipe.build()
            flow.load_state_dict(tensors)
        except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(f"{path} is not a checkpoint of pyroflows, or is damaged: {reason}") from None
        return cls(flow.eval(), recipe)


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)
