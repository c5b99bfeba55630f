"""Several transforms side by side, each of its own part of a vector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from pyroflows.transforms.base import FlowTransform

__all__ = ["Parallel"]


class Parallel(FlowTransform):
    r"""Several transforms side by side: a vector is the parts that each of them maps, one after the other.

    .. math:: x = (f_1(z_1), \dots, f_n(z_n)), \qquad \text{ladj} = \sum_i \text{ladj}_i

    (in nats, latent to data). Events that are images are parts of the vector too, flattened.

    Args:
        transforms: The transforms.

    Shapes:
        `z`, `x`: `(*batch, D)`, with `D` the sum of the transforms' sizes.

    Raises:
        ValueError: There is no transform, or one is conditional.

    Source: Dillon et al. 2017, "TensorFlow Distributions", arXiv 1711.10604, section 4 (`Blockwise`).

    Example:
        >>> from pyroflows.transforms import glow, realnvp
        >>> both = Parallel([glow((1, 4, 4), levels=1, steps=1, hidden_channels=8), realnvp(3)])
        >>> both(torch.zeros(5, 19)).shape
        torch.Size([5, 19])
    """

    def __init__(self, transforms: Sequence[FlowTransform]) -> None:
        if not transforms or any(t.context_shape is not None for t in transforms):
            raise ValueError(f"Parallel expected unconditional transforms, at least one, got {transforms}")
        super().__init__(sum(transform.event_shape.numel() for transform in transforms))
        self.transforms = nn.ModuleList(transforms)
        self.sizes = [transform.event_shape.numel() for transform in transforms]

    @property
    def _parts(self) -> list[FlowTransform]:
        return cast("list[FlowTransform]", list(self.transforms))

    @property
    def _remembers(self) -> bool:
        return self._cache_size > 0 and all(part._remembers for part in self._parts)

    def _forward_and_ladj(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return self._of_each(z, forward=True)

    def _inverse_and_ladj(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return self._of_each(x, forward=False)

    def _initialize(self, x: Tensor, context: Tensor | None) -> Tensor:
        batch = x.shape[:-1]
        parts = [
            transform._initialize(part.reshape(batch + transform.event_shape), None)
            for transform, part in zip(self._parts, x.split(self.sizes, -1), strict=True)
        ]
        return torch.cat([part.reshape(*batch, -1) for part in parts], -1)

    def _of_each(self, value: Tensor, forward: bool) -> tuple[Tensor, Tensor]:
        batch = value.shape[:-1]
        results, total = [], value.new_zeros(())
        for transform, part in zip(self._parts, value.split(self.sizes, -1), strict=True):
            shape = transform.latent_shape if forward else transform.event_shape
            evaluate = transform._forward_and_ladj if forward else transform._inverse_and_ladj
            result, ladj = evaluate(part.reshape(batch + shape), None)
            results.append(result.reshape(part.shape))
            total = total + ladj
        return torch.cat(results, -1), total
