"""Trade space for channels, and reshape."""

from __future__ import annotations

from torch import Tensor

from pyroflows.layers import channels_to_space, space_to_channels
from pyroflows.transforms.base import FlowTransform

__all__ = ["Reshape", "Squeeze"]


class Squeeze(FlowTransform):
    r"""Each 2x2 block of pixels of the data becomes four channels of the latent.

    .. math:: (C, H, W) \to (4C, H/2, W/2) \text{ (data to latent)}, \qquad \text{ladj} = 0

    Args:
        event_shape: The data's shape `(C, H, W)`, `H` and `W` even.

    Shapes:
        `x`: `(*batch, C, H, W)`, `z`: `(*batch, 4C, H/2, W/2)`.

    Raises:
        ValueError: The shape is not `(C, H, W)` with even `H` and `W`.

    Source: Dinh et al. 2016, "Density estimation using Real NVP", arXiv 1605.08803, section 3.6.

    Example:
        >>> squeeze = Squeeze((3, 8, 8))
        >>> squeeze.inv(torch.zeros(5, 3, 8, 8)).shape
        torch.Size([5, 12, 4, 4])
    """

    def __init__(self, event_shape: tuple[int, ...]) -> None:
        if len(event_shape) != 3 or event_shape[1] % 2 or event_shape[2] % 2:
            raise ValueError(
                f"Squeeze expected an event of shape (C, H, W) with even H and W, got {tuple(event_shape)}"
            )
        channels, height, width = event_shape
        super().__init__((4 * channels, height // 2, width // 2), event_shape)

    def _forward_and_ladj(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return channels_to_space(z, 2), _no_ladj(z, 3)

    def _inverse_and_ladj(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return space_to_channels(x, 2), _no_ladj(x, 3)


class Reshape(FlowTransform):
    r"""The same numbers in another shape: `x = z.reshape(event_shape)`, ladj = 0.

    Args:
        latent_shape: The latent's shape.
        event_shape: The data's shape, of as many elements.

    Shapes:
        `z`: `(*batch, *latent_shape)`, `x`: `(*batch, *event_shape)`.

    Raises:
        ValueError: The shapes have different numbers of elements.

    Example:
        >>> Reshape((12,), (3, 2, 2))(torch.zeros(5, 12)).shape
        torch.Size([5, 3, 2, 2])
    """

    def __init__(self, latent_shape: tuple[int, ...], event_shape: tuple[int, ...]) -> None:
        super().__init__(latent_shape, event_shape)
        if self.latent_shape.numel() != self.event_shape.numel():
            raise ValueError(
                f"Reshape expected two shapes of as many elements, got {tuple(latent_shape)} "
                f"and {tuple(event_shape)}"
            )

    def _forward_and_ladj(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        event_dim = len(self.latent_shape)
        x = z.reshape(z.shape[: z.dim() - event_dim] + self.event_shape)
        return x, _no_ladj(z, event_dim)

    def _inverse_and_ladj(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        event_dim = len(self.event_shape)
        z = x.reshape(x.shape[: x.dim() - event_dim] + self.latent_shape)
        return z, _no_ladj(x, event_dim)


def _no_ladj(value: Tensor, event_dim: int) -> Tensor:
    return value.new_zeros(value.shape[: value.dim() - event_dim])
