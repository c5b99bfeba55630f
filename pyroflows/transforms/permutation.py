"""A fixed order of features or channels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyroflows.transforms.base import FlowTransform

__all__ = ["Permutation"]


class Permutation(FlowTransform):
    r"""A fixed permutation of the features (vectors) or channels (images).

    .. math:: z_i = x_{\sigma(i)} \text{ (data to latent)}, \qquad \text{ladj} = 0

    The order is part of the state, so that a random one is saved with the weights.

    Args:
        event_shape: `D`, `(D,)` or `(C, H, W)`.
        order: `\sigma`: each of the numbers 0 to `D - 1` (or `C - 1`) once.

    Shapes:
        `z`, `x`: `(*batch, *event_shape)`.

    Raises:
        ValueError: `order` is not a permutation of that many features or channels.

    Source: Kingma & Dhariwal 2018, "Glow", arXiv 1807.03039, section 3.2 and figure 3 (against which it holds
    the invertible 1x1 convolution).

    Example:
        >>> Permutation(3, [2, 0, 1]).inv(torch.tensor([1.0, 2.0, 3.0]))
        tensor([3., 1., 2.])
    """

    order: Tensor

    def __init__(self, event_shape: int | tuple[int, ...], order: Sequence[int] | Tensor) -> None:
        super().__init__(event_shape)
        order = torch.as_tensor(order)
        if sorted(order.tolist()) != list(range(self.event_shape[0])):
            raise ValueError(
                f"Permutation expected each of 0 to {self.event_shape[0] - 1} once, got {order.tolist()}"
            )
        self.register_buffer("order", order.clone())

    def _forward_and_ladj(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return self._select(z, self.order.argsort())

    def _inverse_and_ladj(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return self._select(x, self.order)

    def _forward_and_score(
        self, z: Tensor, score: Tensor, context: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        order = self.order.argsort()
        return *self._select(z, order), self._select(score, order)[0]

    def _select(self, value: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
        return value.index_select(-len(self.event_shape), order), value.new_zeros(())
