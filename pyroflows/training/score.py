"""How well a flow fits data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from pyroflows._renamed import renamed
from pyroflows.distributions import Flow
from pyroflows.tables import Grid
from pyroflows.training.data import Data, Rows, as_list, as_rows, batches, check_data, device_of
from pyroflows.training.density import DensityModule

__all__ = ["score", "score_rows"]


@renamed(levels="grey_levels")
def score(
    flow: Flow,
    data: Data,
    *,
    context: Tensor | None = None,
    grey_levels: int | None = None,
    noise: Flow | None = None,
    grid: Grid | None = None,
    draws: int = 10,
) -> float:
    """Mean negative log density of data under a flow: less is better.

    The unit is bits per dimension for integer data and nats per datum for reals.

    Args:
        flow: The flow; it is put into evaluation mode.
        data: `(N, *event_shape)`: reals, or integers 0 to `grey_levels - 1`; or as `fit` takes them.
        context: `(N, *context_shape)`, each datum's context, if the flow is conditional.
        grey_levels: Number of grey levels of integer data; by default 256.
        noise: The conditional flow of the dequantization noise. `None`: uniform noise.
        grid: The grid of the columns that were dequantized, as `FitResult.grid`.
        draws: Number of draws of the dequantization noise that are averaged.

    Example:
        >>> from pyroflows import Flow, realnvp
        >>> score(Flow(realnvp(2)), torch.zeros(5, 2)) > 0
        True
    """
    rows = as_rows(data, context, grey_levels)
    return score_rows(flow, rows, check_data(flow, rows, grey_levels, noise), noise, grid=grid, draws=draws)


@torch.no_grad()
def score_rows(
    flow: Flow,
    rows: Rows | DataLoader[Any],
    grey_levels: int | None,
    noise: Flow | None,
    *,
    grid: Grid | None = None,
    draws: int = 10,
) -> float:
    """The score of data that were checked; noise on a grid is averaged as that of integers is."""
    module = DensityModule(flow, grey_levels, noise, grid=grid).eval()
    repeats = 1 if grey_levels is None and grid is None else draws
    total, count = 0.0, 0
    for _ in range(repeats):
        for batch in batches(rows, 256):
            parts = [part.to(device_of(flow)) for part in as_list(batch)]
            total += module.objective(parts).item() * len(parts[0])
            count += len(parts[0])
    return total / count
