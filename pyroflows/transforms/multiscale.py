"""The multi-scale architecture: half of the channels leave after each level."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Size, Tensor, nn

from pyroflows.transforms.base import FlowTransform

__all__ = ["MultiScale"]


class MultiScale(FlowTransform):
    r"""Levels, between which half of the channels leave for the latent.

    From data to latent, level `i` maps `h_i` to `(h_{i+1}, z_i)`: the first half of its channels goes on to
    the next level, the second half is part of the latent; of the last level all is. The whole is one
    bijection between an image and a latent vector,

    .. math:: x \leftrightarrow z = (z_1, \dots, z_L), \qquad \text{ladj} = \sum_i \text{ladj}_i .

    Args:
        levels: The transforms of the levels, finest first, each from its latent image to its data image.

    Shapes:
        `z`: `(*batch, C * H * W)`, `x`: `(*batch, C, H, W)`, the event shape of the first level.

    Raises:
        ValueError: There is no level, or a level does not take what the one before it leaves.

    Source: Dinh et al. 2016, "Density estimation using Real NVP", arXiv 1605.08803, section 3.6; Kingma &
    Dhariwal 2018, "Glow", arXiv 1807.03039, figure 2.

    Example:
        >>> flow = MultiScale([Squeeze((1, 8, 8)), Squeeze((2, 4, 4))])
        >>> z = flow.inv(torch.zeros(5, 1, 8, 8))
        >>> z.shape, [level.shape[1:] for level in flow.split_latent(z)]
        (torch.Size([5, 64]), [torch.Size([2, 4, 4]), torch.Size([8, 2, 2])])
    """

    def __init__(self, levels: Sequence[FlowTransform]) -> None:
        if not levels:
            raise ValueError("MultiScale expected at least one level, got none")
        shapes = [_leaving_shape(level.latent_shape) for level in levels[:-1]] + [levels[-1].latent_shape]
        for level, following in pairwise(levels):
            kept = Size((level.latent_shape[0] // 2, *level.latent_shape[1:]))
            if following.event_shape != kept:
                raise ValueError(
                    f"MultiScale expected a level of event shape {tuple(kept)}, as the level before it "
                    f"leaves, got {tuple(following.event_shape)}"
                )
        contexts = {level.context_shape for level in levels if level.context_shape is not None}
        if len(contexts) > 1:
            raise ValueError(f"MultiScale expected its levels to share one context shape, got {contexts}")
        event_shape = levels[0].event_shape
        super().__init__((event_shape.numel(),), event_shape, context_shape=next(iter(contexts), None))
        self.levels = nn.ModuleList(levels)
        self.level_shapes = shapes

    @property
    def _levels(self) -> list[FlowTransform]:
        return cast("list[FlowTransform]", list(self.levels))

    def _forward_and_ladj(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        *parts, value = self.split_latent(z)
        value, total = self._levels[-1]._forward_and_ladj(value, context)
        for level, part in zip(reversed(self._levels[:-1]), reversed(parts), strict=True):
            value, ladj = level._forward_and_ladj(torch.cat([value, part], -3), context)
            total = total + ladj
        return value, total

    def _inverse_and_ladj(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        parts: list[Tensor] = []
        value, total = self._levels[0]._inverse_and_ladj(x, context)
        for level in self._levels[1:]:
            value, leaving = _split(value)
            parts.append(leaving)
            value, ladj = level._inverse_and_ladj(value, context)
            total = total + ladj
        return self.join_latent([*parts, value]), total

    def _initialize(self, x: Tensor, context: Tensor | None) -> Tensor:
        parts: list[Tensor] = []
        value = self._levels[0]._initialize(x, context)
        for level in self._levels[1:]:
            value, leaving = _split(value)
            parts.append(leaving)
            value = level._initialize(value, context)
        return self.join_latent([*parts, value])


def _split(value: Tensor) -> tuple[Tensor, Tensor]:
    kept = value.shape[-3] // 2
    first, second = value.split([kept, value.shape[-3] - kept], -3)
    return first, second


def _leaving_shape(shape: Size) -> Size:
    return Size((shape[0] - shape[0] // 2, *shape[1:]))
