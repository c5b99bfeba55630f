"""How well a flow fits data."""

from __future__ import annotations

import torch
from torch import Tensor

from pyroflows.distributions import Flow
from pyroflows.training.data import Data, as_list, as_rows, batches, check_data, device_of
from pyroflows.training.density import DensityModule

__all__ = ["score"]


@torch.no_grad()
def score(
    flow: Flow,
    data: Data,
    *,
    context: Tensor | None = None,
    levels: int | None = None,
    noise: Flow | None = None,
    draws: int = 10,
) -> float:
    """Mean bits per dimension (integer data) or nats per datum (reals) of data under a flow.

    Args:
        flow: The flow; it is put into evaluation mode.
        data: `(N, *event_shape)`: reals, or integers 0 to `levels - 1`; or as `fit` takes them.
        context: `(N, *context_shape)`, each datum's context, if the flow is conditional.
        levels: Number of levels of integer data; by default 256.
        noise: The conditional flow of the dequantization noise. `None`: uniform noise.
        draws: Number of draws of the dequantization noise that are averaged.

    Example:
        >>> from pyroflows import Flow, realnvp
        >>> score(Flow(realnvp(2)), torch.zeros(5, 2)) > 0
        True
    """
    rows = as_rows(data, context)
    levels = check_data(flow, rows, levels, noise)
    module = DensityModule(flow, levels, noise).eval()
    repeats = draws if levels is not None else 1
    total, count = 0.0, 0
    for _ in range(repeats):
        for batch in batches(rows, 256):
            parts = [part.to(device_of(flow)) for part in as_list(batch)]
            total += module.objective(parts).item() * len(parts[0])
            count += len(parts[0])
    return total / count
