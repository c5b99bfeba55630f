"""A learned shift and scale of each feature or channel."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyroflows.layers import standardize
from pyroflows.transforms.base import FlowTransform

__all__ = ["ActNorm", "actnorm"]


class ActNorm(FlowTransform):
    r"""A learned shift and scale of each feature (vectors) or channel (images).

    .. math:: z = e^{s} (x + b) \text{ (data to latent)}, \qquad
        \text{ladj} = -H W \sum_c s_c \text{ (latent to data, in nats)}

    It starts as the identity. `Flow.initialize(batch)` sets `b` and `s` once so that the latent of
    that batch has mean 0 and standard deviation 1 (a feature that does not vary keeps its scale);
    whether that was done is part of the state.

    Args:
        event_shape: `D`, `(D,)` or `(C, H, W)`.

    Shapes:
        `z`, `x`: `(*batch, *event_shape)`.

    Source: Kingma & Dhariwal 2018, "Glow", arXiv 1807.03039, section 3.1 and table 1.

    Example:
        >>> norm = ActNorm((3, 8, 8))
        >>> x = 5 + 2 * torch.randn(16, 3, 8, 8)
        >>> z = norm._initialize(x, None)
        >>> bool(z.mean().abs() < 1e-5), bool(norm.initialized)
        (True, True)
    """

    initialized: Tensor

    def __init__(self, event_shape: int | tuple[int, ...]) -> None:
        super().__init__(event_shape)
        channels = self.event_shape[:1] + (1,) * (len(self.event_shape) - 1)
        self.bias = nn.Parameter(torch.zeros(channels))
        self.log_scale = nn.Parameter(torch.zeros(channels))
        self.register_buffer("initialized", torch.tensor(False))

    def _forward_and_ladj(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return z * torch.exp(-self.log_scale) - self.bias, -self._ladj_to_latent()

    def _inverse_and_ladj(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return (x + self.bias) * torch.exp(self.log_scale), self._ladj_to_latent()

    def _ladj_to_latent(self) -> Tensor:
        return self.log_scale.sum() * self.event_shape[1:].numel()

    @torch.no_grad()
    def _initialize(self, x: Tensor, context: Tensor | None) -> Tensor:
        if not self.initialized:
            standardize(self, x, -len(self.event_shape))
        return super()._initialize(x, context)


def actnorm(event_shape: int | tuple[int, ...]) -> ActNorm:
    """An `ActNorm` for vectors of size `D`, `(D,)` or images `(C, H, W)`.

    Example:
        >>> actnorm(3)(torch.zeros(3)).shape
        torch.Size([3])
    """
    return ActNorm(event_shape)
