"""A learned skewness and weight of the tails of each element."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pyroflows.transforms.base import FlowTransform, sum_last

__all__ = ["SinhArcsinh", "sinh_arcsinh"]


class SinhArcsinh(FlowTransform):
    r"""A skewness and a weight of the tails for each element: of a normal it makes a sinh-arcsinh normal.

    .. math:: x = \sinh\left(e^{t} (\operatorname{arcsinh} z + s)\right), \qquad
        \text{ladj} = \sum_i t_i + \frac{1}{2} \log \frac{1 + x_i^2}{1 + z_i^2}

    (the ladj, in nats, is that from latent to data). With `t > 0` the tails are heavier than the base's, with
    `t < 0` lighter; `s` moves mass to one side. It starts as the identity.

    Args:
        event_shape: `D`, `(D,)` or `(C, H, W)`.

    Shapes:
        `z`, `x`: `(*batch, *event_shape)`.

    Source: Jones & Pewsey 2009, "Sinh-arcsinh distributions", Biometrika 96, eq. 1.

    Example:
        >>> tails = SinhArcsinh(3)
        >>> bool((tails(torch.ones(3)) - 1).abs().max() < 1e-6)
        True
    """

    def __init__(self, event_shape: int | tuple[int, ...]) -> None:
        super().__init__(event_shape)
        self.skewness = nn.Parameter(torch.zeros(self.event_shape))
        self.log_tail = nn.Parameter(torch.zeros(self.event_shape))

    def _forward_and_ladj(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        before = torch.asinh(z)
        after = self.log_tail.exp() * (before + self.skewness)
        return torch.sinh(after), self._total(before, after)

    def _inverse_and_ladj(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        after = torch.asinh(x)
        before = (-self.log_tail).exp() * after - self.skewness
        return torch.sinh(before), -self._total(before, after)

    def _total(self, before: Tensor, after: Tensor) -> Tensor:
        """The ladj, by the arguments of sinh: by its values these would be kept with the ladj's graph."""
        return sum_last(self.log_tail + _log_cosh(after) - _log_cosh(before), len(self.event_shape))


def _log_cosh(x: Tensor) -> Tensor:
    return torch.logaddexp(x, -x) - math.log(2)


def sinh_arcsinh(event_shape: int | tuple[int, ...]) -> SinhArcsinh:
    """A `SinhArcsinh` for vectors of size `D`, `(D,)` or images `(C, H, W)`.

    Example:
        >>> sinh_arcsinh(3)(torch.zeros(5, 3)).shape
        torch.Size([5, 3])
    """
    return SinhArcsinh(event_shape)
