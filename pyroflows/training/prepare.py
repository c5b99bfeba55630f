"""What is done with the data before a fit: a part is held out, and their centre and scale are found."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from pyroflows.distributions import Flow
from pyroflows.training.data import Rows, first_batch
from pyroflows.training.density import DensityModule

__all__ = ["count_steps", "hold_out", "initialize", "standardize", "table_of"]

# A mean of so many standard deviations leaves a float32 a hundred steps for each of these.
_LARGEST = 1e5

AnyRows = Rows | DataLoader[Any]


def hold_out(
    rows: AnyRows, val_rows: AnyRows | None, fraction: float, seed: int
) -> tuple[AnyRows, AnyRows | None]:
    """Rows to fit to and validation rows: those given, or a part of the rows at random."""
    if val_rows is not None or fraction == 0:
        return rows, val_rows
    if isinstance(rows, DataLoader):
        warnings.warn(
            "nothing is held out of a DataLoader, so the fit can't tell when to stop: give val_data",
            stacklevel=3,
        )
        return rows, None
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    n_held_out = min(max(1, round(fraction * len(rows))), len(rows) - 1)
    return rows.part(order[n_held_out:]), rows.part(order[:n_held_out])


def standardize(flow: Flow, rows: AnyRows, grey_levels: int | None) -> None:
    """Centre and scale data and contexts of a flow, once; integers of known grey levels stay as they are."""
    if grey_levels is not None and flow.transform.context_shape is None:
        return
    part = flow.standardize(data=grey_levels is None)
    if part is None:
        return
    data, *contexts = _all(rows)
    part.fit_to(data, *contexts)
    if part.data and next(flow.parameters()).dtype == torch.float32:
        lost = (part.loc.abs() > _LARGEST * part.scale).flatten().nonzero().flatten().tolist()
        if lost:
            warnings.warn(
                f"samples of columns {lost} lose digits, as their values are far from zero for their spread: "
                "subtract their means, or fit with precision='64-true'",
                stacklevel=3,
            )


def initialize(module: DensityModule, device: torch.device) -> None:
    """Initialise every `ActNorm` of a module's flow from the rows that it is fitted to."""
    assert module.rows is not None
    module.train()
    first, *contexts = (part.to(device) for part in first_batch(module.rows, 1024, module.seed))
    module.flow.initialize(module.reals(first, *contexts), *contexts)


def table_of(rows: AnyRows | None, grey_levels: int | None) -> Tensor | None:
    """The rows as a table of reals, `(N, D)`, if they are one tensor of these."""
    if not isinstance(rows, Rows) or not isinstance(rows.data, Tensor) or grey_levels is not None:
        return None
    return rows.data if rows.data.dim() == 2 else None


def count_steps(rows: AnyRows, batch_size: int, devices: int | str) -> int:
    """Steps of an epoch, about; 20 for a loader that does not tell its length."""
    if isinstance(rows, DataLoader):
        try:
            return max(1, len(rows))
        except TypeError:
            return 20
    processes = devices if isinstance(devices, int) and devices > 0 else 1
    return max(1, len(rows) // (batch_size * processes))


def _all(rows: AnyRows) -> list[Tensor]:
    """All data and contexts that are in memory, or as many as an `ActNorm` is initialised from."""
    if isinstance(rows, DataLoader):
        return first_batch(rows, 1024, seed=0)
    if isinstance(rows.data, Tensor):
        return [rows.data] if rows.context is None else [rows.data, rows.context]
    some = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:1024]
    # In their own order, in which a sum is the same as that of a tensor.
    return rows[some.sort().values]
