"""What can be done in the latent space of a trained flow."""

from __future__ import annotations

import torch
from torch import Tensor

from pyroflows.distributions import Flow

__all__ = ["attribute_direction", "interpolate"]


@torch.no_grad()
def interpolate(flow: Flow, a: Tensor, b: Tensor, n: int, context: Tensor | None = None) -> Tensor:
    r"""Data between two data, on the straight line between their latents.

    .. math:: x_i = f\left((1 - t_i) f^{-1}(a) + t_i f^{-1}(b)\right), \qquad t_i = i / (n - 1)

    Args:
        flow: The flow.
        a: The first data, `(*batch, *event_shape)`.
        b: The last ones, of the same shape.
        n: How many, with both ends, at least 2.
        context: The context of all of them, if the flow is conditional.

    Returns:
        `(n, *batch, *event_shape)`.

    Raises:
        ValueError: `n` is less than 2, or the data are not of the flow's shape and dtype.

    Source: Kingma & Dhariwal 2018, "Glow", arXiv 1807.03039, section 6 and figure 5.

    Example:
        >>> from pyroflows import Flow, glow
        >>> flow = Flow(glow((1, 8, 8), steps=2, hidden_channels=16))
        >>> interpolate(flow, torch.rand(1, 8, 8), torch.rand(1, 8, 8), 7).shape
        torch.Size([7, 1, 8, 8])
    """
    if n < 2:
        raise ValueError(f"interpolate expected n of at least 2, both ends, got {n}")
    if a.shape != b.shape:
        raise ValueError(f"interpolate expected data of one shape, got {tuple(a.shape)} and {tuple(b.shape)}")
    transform = flow(context).transforms[0]
    first, last = transform.inv(a), transform.inv(b)
    t = torch.linspace(0, 1, n, dtype=first.dtype, device=first.device).view(-1, *first.dim() * [1])
    return transform(torch.lerp(first, last, t))


@torch.no_grad()
def attribute_direction(flow: Flow, with_it: Tensor, without_it: Tensor) -> Tensor:
    r"""The direction in the latent space from data without an attribute to data with it.

    .. math:: d = \overline{f^{-1}(x^{+})} - \overline{f^{-1}(x^{-})}

    `flow.transform(flow.transform.inv(x) + strength * d)` gives a datum more of the attribute, or, with a
    negative strength, less.

    Args:
        flow: The flow, not conditional.
        with_it: Data with the attribute, `(N, *event_shape)`.
        without_it: Data without it, `(M, *event_shape)`.

    Returns:
        The direction, `latent_shape`.

    Raises:
        ValueError: There are no data of a kind, they are not of the flow's shape, or the flow is conditional.

    Source: Kingma & Dhariwal 2018, "Glow", arXiv 1807.03039, section 6 and figure 6.

    Example:
        >>> from pyroflows import Flow, glow
        >>> flow = Flow(glow((1, 8, 8), steps=2, hidden_channels=16))
        >>> attribute_direction(flow, torch.rand(20, 1, 8, 8), torch.rand(30, 1, 8, 8)).shape
        torch.Size([64])
    """
    return _mean_latent(flow, with_it) - _mean_latent(flow, without_it)


def _mean_latent(flow: Flow, data: Tensor) -> Tensor:
    event_shape = tuple(flow.transform.event_shape)
    if tuple(data.shape[1:]) != event_shape or not len(data):
        raise ValueError(
            f"attribute_direction expected data of shape (N, {', '.join(map(str, event_shape))}), "
            f"got {tuple(data.shape)}"
        )
    transform = flow().transforms[0]
    # A part at a time, so that memory does not grow with the data.
    return torch.stack([transform.inv(part).sum(0) for part in data.split(256)]).sum(0) / len(data)
