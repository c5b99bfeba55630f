"""How well a flow fits data."""

from __future__ import annotations

from typing import Any

from pyroflows._renamed import renamed
from pyroflows.distributions import Flow
from pyroflows.intake import as_rows, check_data, grey_levels_of
from pyroflows.runs import Run
from pyroflows.tables import Grid

__all__ = ["score"]


@renamed(levels="grey_levels")
def score(
    flow: Flow,
    data: Any,
    *,
    context: Any = None,
    weights: Any = None,
    grey_levels: int | None = None,
    noise: Flow | None = None,
    grid: Grid | None = None,
    draws: int = 10,
) -> float:
    """Mean negative log density of data under a flow: less is better.

    The unit is bits per dimension for integer data and nats per datum for reals.

    Args:
        flow: The flow; it is put into evaluation mode.
        data: `(N, *event_shape)`: reals, or integers 0 to `grey_levels - 1`; a tensor, an array, a frame, a
            `Dataset` or a `DataLoader`.
        context: `(N, *context_shape)`, each datum's context, if the flow is conditional.
        weights: `(N,)`, the weight of each datum in the mean; by default all are 1.
        grey_levels: Number of grey levels of integer data; by default 256, and 65,536 of `uint16` images.
        noise: The conditional flow of the dequantization noise. `None`: uniform noise.
        grid: The grid of the columns that were dequantized, as `FitResult.grid`.
        draws: Number of draws of the dequantization noise that are averaged.

    Example:
        >>> import torch
        >>> from pyroflows import Flow, realnvp
        >>> score(Flow(realnvp(2)), torch.zeros(5, 2)) > 0
        True
    """
    grey_levels = grey_levels_of(data) if grey_levels is None else grey_levels
    rows = as_rows(data, context, grey_levels, weights)
    grey_levels = check_data(flow, rows, grey_levels, noise)
    return Run(flow, grey_levels, noise, grid).score_rows(rows, draws)
