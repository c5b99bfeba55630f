"""Transforms between bounded data and the real line."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from pyro.distributions import constraints
from torch import Tensor

from pyroflows.transforms.base import FlowTransform, sum_last

__all__ = ["Logit"]


class Logit(FlowTransform):
    r"""Data in [0, 1] to the real line, element by element, kept off the boundaries by `alpha`.

    .. math:: z = \operatorname{logit}(\alpha + (1 - 2 \alpha) x), \qquad
        \text{ladj} = \sum_i \log \sigma(z_i) + \log \sigma(-z_i) - \log(1 - 2 \alpha)

    (the ladj, in nats, is that from latent to data).

    Args:
        event_shape: `D`, `(D,)` or `(C, H, W)`.
        alpha: How far from 0 and 1 the logit's argument stays, in [0, 0.5).

    Shapes:
        `z`, `x`: `(*batch, *event_shape)`.

    Raises:
        ValueError: `alpha` is outside [0, 0.5).

    Source: Dinh et al. 2016, "Density estimation using Real NVP", arXiv 1605.08803, section 4.1 (which
    has alpha = 0.05).

    Example:
        >>> logit = Logit((2,), alpha=0.05)
        >>> logit.inv(torch.tensor([0.0, 0.5]))
        tensor([-2.9444,  0.0000])
    """

    def __init__(self, event_shape: int | tuple[int, ...], alpha: float = 0.05) -> None:
        if not 0 <= alpha < 0.5:
            raise ValueError(f"Logit expected alpha in [0, 0.5), got {alpha}")
        super().__init__(event_shape)
        self.alpha = alpha

    @property
    def codomain(self) -> constraints.Constraint:  # type: ignore[override]
        margin = self.alpha / (1 - 2 * self.alpha)
        return constraints.independent(constraints.interval(-margin, 1 + margin), len(self.event_shape))

    def _forward_and_ladj(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        x = (torch.sigmoid(z) - self.alpha) / (1 - 2 * self.alpha)
        # The sigmoid of infinity is finite; 0 * infinity is not.
        return x + 0 * z, self._ladj_of(z)

    def _inverse_and_ladj(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        z = torch.logit(self.alpha + (1 - 2 * self.alpha) * x)
        return z, -self._ladj_of(z)

    def _ladj_of(self, z: Tensor) -> Tensor:
        per_element = F.logsigmoid(z) + F.logsigmoid(-z) - math.log(1 - 2 * self.alpha)
        return sum_last(per_element, len(self.event_shape))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, alpha={self.alpha}"
