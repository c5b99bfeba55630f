"""A learned skewness and weight of each tail of each element."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pyroflows.transforms.base import FlowTransform, gradient, sum_last

__all__ = ["SinhArcsinh", "sinh_arcsinh"]


class SinhArcsinh(FlowTransform):
    r"""A skewness and a weight of each tail for each element: of a normal it makes a sinh-arcsinh normal.

    .. math:: x = \sinh\left(e^{t} \left(w + r (\sqrt{1 + w^2} - 1)\right)\right), \qquad
        w = \operatorname{arcsinh} z + s, \qquad r = \tanh l

    .. math:: \text{ladj} = \sum_i t_i + \log\left(1 + \frac{r_i w_i}{\sqrt{1 + w_i^2}}\right)
        + \frac{1}{2} \log \frac{1 + x_i^2}{1 + z_i^2} \text{ (nats, latent to data)}

    With `t > 0` the tails are heavier than the base's, with `t < 0` lighter; `s` moves mass to one side. `l`
    makes the right tail heavier and the left one lighter: far out `x` goes as `z` to the power of
    `e^t (1 + r)` and of `e^t (1 - r)`. The logarithm of a scale has such tails, with an exponential one on
    the left (a power of 2) and a normal one on the right. It starts as the identity.

    Args:
        event_shape: `D`, `(D,)` or `(C, H, W)`.

    Shapes:
        `z`, `x`: `(*batch, *event_shape)`.

    Source: Jones & Pewsey 2009, "Sinh-arcsinh distributions", Biometrika 96, eq. 1 (`l = 0`).

    Example:
        >>> tails = SinhArcsinh(3)
        >>> bool((tails(torch.ones(3)) - 1).abs().max() < 1e-6)
        True
    """

    def __init__(self, event_shape: int | tuple[int, ...]) -> None:
        super().__init__(event_shape)
        self.skewness = nn.Parameter(torch.zeros(self.event_shape))
        self.log_tail = nn.Parameter(torch.zeros(self.event_shape))
        self.lean = nn.Parameter(torch.zeros(self.event_shape))

    def _forward_and_ladj(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        x, ladj = self._forward_of_each(z)
        return x, self._total(ladj)

    def _forward_and_score(
        self, z: Tensor, score: Tensor, context: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        x, ladj = self._forward_of_each(z)
        of_ladj = gradient(z, (ladj, torch.ones_like(ladj)))
        return x, self._total(ladj), (score - of_ladj) / ladj.detach().exp()

    def _forward_of_each(self, z: Tensor) -> tuple[Tensor, Tensor]:
        before = torch.asinh(z)
        moved, lean = before + self.skewness, self.lean.tanh()
        root = (1 + moved.square()).sqrt()
        after = self.log_tail.exp() * (moved + lean * (root - 1))
        return torch.sinh(after), self._ladj_of_each(before, after, lean * moved / root)

    def _inverse_and_ladj(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        after = torch.asinh(x)
        lean = self.lean.tanh()
        scaled, rest = (-self.log_tail).exp() * after, self.lean.cosh() ** -2
        bent = scaled + lean
        root = lean * (bent.square() + rest).sqrt()
        # Of the two roots of the quadratic equation the one that grows with x, without a difference.
        alike = bent * lean > 0
        moved = torch.where(alike, scaled * (scaled + 2 * lean), bent - root) / torch.where(
            alike, bent + root, rest
        )
        before = moved - self.skewness
        slope = lean * moved / (1 + moved.square()).sqrt()
        return torch.sinh(before), -self._total(self._ladj_of_each(before, after, slope))

    def _ladj_of_each(self, before: Tensor, after: Tensor, slope: Tensor) -> Tensor:
        """By the arguments of sinh: by its values these would be kept with the ladj's graph."""
        return self.log_tail + torch.log1p(slope) + _log_cosh(after) - _log_cosh(before)

    def _total(self, ladj: Tensor) -> Tensor:
        return sum_last(ladj, len(self.event_shape))


def _log_cosh(x: Tensor) -> Tensor:
    return torch.logaddexp(x, -x) - math.log(2)


def sinh_arcsinh(event_shape: int | tuple[int, ...]) -> SinhArcsinh:
    """A `SinhArcsinh` for vectors of size `D`, `(D,)` or images `(C, H, W)`.

    Example:
        >>> sinh_arcsinh(3)(torch.zeros(5, 3)).shape
        torch.Size([5, 3])
    """
    return SinhArcsinh(event_shape)
