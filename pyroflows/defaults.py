"""Which flow, step size and batches suit data of a size: for the command line and `FlowDensity`."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Size

from pyroflows.datasets import Data
from pyroflows.distributions import Flow
from pyroflows.transforms import glow, nice, realnvp
from pyroflows.transforms.base import FlowTransform
from pyroflows.transforms.elementwise import ElementwiseMap

__all__ = ["Defaults", "crop_for"]

# Rows from which a table gets a larger flow.
_MANY = 2000
# Fewer rows of fewer columns get affine couplings. Their validation score in nats, with splines and with
# affine couplings: 188 rows of 2 columns 13.83, 13.22; 160 of 5 columns 7.43, 7.11; 274 of 4 columns 15.29,
# 15.43; 143 of 13 columns 19.8, 21.3.
_FEW, _MANY_COLUMNS = 250, 10

_SYSTEMS: dict[str, Callable[..., FlowTransform]] = {"nice": nice, "realnvp": realnvp, "glow": glow}

# Levels of each system that do not halve an image.
_UNSQUEEZED = {"glow": 0, "realnvp": 1}


def crop_for(data: Data, system: str = "glow", levels: int | None = None) -> Data:
    """Cut images evenly to the nearest size that a system's levels can halve.

    Args:
        data: Images.
        system: `"nice"`, which takes any size, `"realnvp"` or `"glow"`.
        levels: Its levels; by default one.

    Raises:
        ValueError: The data are no images, or are too small.

    Example:
        >>> import torch
        >>> from pyroflows.datasets import Data
        >>> crop_for(Data(torch.zeros(4, 1, 9, 13), None, 256)).train.shape
        torch.Size([4, 1, 8, 12])
    """
    halvings = (levels or 1) - _UNSQUEEZED[system] if system in _UNSQUEEZED else 0
    unit = 2 ** max(halvings, 0)
    height, width = data.train.shape[-2:]
    return data.crop(height // unit * unit, width // unit * unit)


@dataclass(frozen=True)
class Defaults:
    """The flow and the options of `fit` for data of a shape and number.

    Attributes:
        event_shape: Shape of a datum.
        rows: Number of data.

    Example:
        >>> from pyroflows.defaults import Defaults
        >>> Defaults(torch.Size([4]), 1000).flow().transform.event_shape
        torch.Size([4])
    """

    event_shape: Size
    rows: int

    @property
    def is_table(self) -> bool:
        return len(self.event_shape) == 1

    def flow(self, system: str = "glow", **options: Any) -> Flow:
        """A flow for such data.

        Args:
            system: `"nice"`, `"realnvp"` or `"glow"`.
            options: Keywords of the system; `None` stands for what suits the data.

        Raises:
            ValueError: There is no such system, or it does not have such an option for such data.
        """
        if system not in _SYSTEMS:
            raise ValueError(f"expected the flow to be one of {sorted(_SYSTEMS)}, got {system!r}")
        options = {name: value for name, value in options.items() if value is not None}
        unsuited = "hidden_channels" if self.is_table else "hidden_features"
        known = set(inspect.signature(_SYSTEMS[system]).parameters) - {"event_shape"}
        if system != "nice":
            known -= {unsuited}
        unknown = sorted(set(options) - known)
        if unknown:
            kind = "tables" if self.is_table else "images"
            raise ValueError(
                f"{system} of {kind} has no option {unknown[0]}: choose among {sorted(known)} or another flow"
            )
        if system == "glow":
            options = {**self._glow(options.get("coupling")), **options}
        return Flow(_SYSTEMS[system](self.event_shape, **options))

    def _glow(self, coupling: str | ElementwiseMap | None) -> dict[str, Any]:
        """Keywords of `glow`."""
        if not self.is_table:
            return {"steps": 8, "hidden_channels": 64, "dropout": 0.2}
        if coupling is None and self.rows < _FEW and self.event_shape.numel() < _MANY_COLUMNS:
            coupling = "affine"
        # With two more steps 5,701 rows of 5 columns gained 0.17 nats.
        steps = 4 if self.rows < _MANY and coupling != "affine" else 6
        return {"steps": steps, "dropout": self._dropout, "coupling": coupling}

    def options(self) -> dict[str, Any]:
        """Keywords of `fit`."""
        if self.is_table:
            batch_size = 2 ** int(math.log2(max(self.rows, 1) / 15))
            batch_size = min(max(batch_size, 64), 512)
            lr = 2e-3 if batch_size == 64 else 3e-3
            # Many columns have much dropout, with which larger steps are as good and fewer.
            lr = lr if self.event_shape.numel() < _MANY_COLUMNS else 5e-3
            return {"max_epochs": None, "batch_size": batch_size, "lr": lr}
        # Images are fitted for a time that suits a command: 1,100 steps of the nine tenths that are not held
        # out, or 5 epochs of many images.
        return {"max_epochs": max(5, math.ceil(1100 * 64 / (0.9 * self.rows))), "batch_size": 64, "lr": 3e-3}

    @property
    def _dropout(self) -> float:
        """More for more columns, and less where there are many rows for each of them.

        Held-out log density with 0.1, 0.2 and 0.4, in nats: 192 rows of 13 columns -42.8, -42.4, -41.9; 1,934
        of 103 columns 137.5, 141.2, 143.6; 160 of 5 columns -7.36, -7.45, -7.55; with 0 and 0.05: 5,701 of 5
        columns -44.6, -44.3.
        """
        columns = self.event_shape.numel()
        return min(0.4, 0.1 * math.log2(max(columns, 2))) * min(1.0, 100 * columns / self.rows)
