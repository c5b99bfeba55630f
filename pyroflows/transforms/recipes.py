"""The systems NICE and RealNVP, put together from the transforms."""

from __future__ import annotations

import copy

from torch import Size

from pyroflows.nets import ResNet
from pyroflows.transforms.actnorm import ActNorm
from pyroflows.transforms.base import FlowTransform
from pyroflows.transforms.chain import Chain
from pyroflows.transforms.coupling import (
    Coupling,
    context_factor,
    context_size,
    event_size,
)
from pyroflows.transforms.coupling import coupling as default_coupling
from pyroflows.transforms.elementwise import AffineMap, ElementwiseMap
from pyroflows.transforms.maps import get_map
from pyroflows.transforms.multiscale import MultiScale
from pyroflows.transforms.partition import Partition, get_partition
from pyroflows.transforms.squeeze import Reshape, Squeeze

__all__ = ["nice", "realnvp"]


def nice(
    event_shape: int | tuple[int, ...],
    *,
    steps: int = 4,
    hidden_features: tuple[int, ...] = (64, 64),
    coupling: str | ElementwiseMap = "additive",
    scale: str | None = None,
    context_dim: int | None = None,
    context_shape: tuple[int, ...] | None = None,
) -> Chain:
    r"""NICE: additive couplings of alternating elements, and a diagonal scale of the latent.

    .. math:: h = c_K \circ \dots \circ c_1 (x), \qquad z = e^{s} (h + b)

    Images are flattened, as in the paper.

    Args:
        event_shape: `D`, `(D,)` or `(C, H, W)`.
        steps: Number of couplings.
        hidden_features: Sizes of the conditioners' hidden layers.
        coupling: The element-wise map, or its name.
        scale: The scale of affine couplings (`AffineMap`); by default `"softclip"`.
        context_dim: Size of a context vector.
        context_shape: Event shape of the context: `(K,)` or `(K, H, W)`.

    Raises:
        ValueError: A size is not positive, there is no such coupling or scale, or a scale is given for
            another coupling than an affine one.

    Source: Dinh et al. 2014, "NICE", arXiv 1410.8516, sections 3 and 5.1.

    Example:
        >>> nice((1, 8, 8), steps=2)(torch.zeros(5, 64)).shape
        torch.Size([5, 1, 8, 8])
    """
    shape = event_size(event_shape)
    check_positive(steps=steps)
    size = shape.numel()
    parts: list[FlowTransform] = [ActNorm((size,))]
    for step in reversed(range(steps)):
        parts.append(
            default_coupling(
                size,
                own_map(coupling, scale),
                "alternate",
                swap=step % 2 == 1,
                hidden_features=hidden_features,
                context_dim=context_dim,
                context_shape=context_shape,
            )
        )
    if len(shape) == 3:
        parts.append(Reshape((size,), shape))
    return Chain(parts)


def realnvp(
    event_shape: int | tuple[int, ...],
    *,
    levels: int | None = None,
    steps: int | None = None,
    hidden_features: tuple[int, ...] = (64, 64),
    hidden_channels: int = 64,
    coupling: str | ElementwiseMap = "affine",
    scale: str | None = None,
    context_dim: int | None = None,
    context_shape: tuple[int, ...] | None = None,
) -> Chain | MultiScale:
    """RealNVP: affine couplings of alternating halves; for images, of checkerboards and of channels.

    For images, each level has `steps` checkerboard couplings, a squeeze and `steps` channel couplings, after
    which half of the channels leave; the last level is one checkerboard coupling more than `steps`.

    Args:
        event_shape: `D`, `(D,)` or `(C, H, W)`.
        levels: Number of levels (images); by default as many as the size allows, up to 3.
        steps: Number of couplings: of all (vectors, by default 6), of each group (images, 3).
        hidden_features: Sizes of the hidden layers of the `MLP` conditioners (vectors).
        hidden_channels: Width of the `ResNet` conditioners (images).
        coupling: The element-wise map, or its name.
        scale: The scale of affine couplings (`AffineMap`); by default `"softclip"`.
        context_dim: Size of a context vector.
        context_shape: Event shape of the context: `(K,)` or `(K, H, W)`.

    Raises:
        ValueError: A size is not positive, there is no such coupling or scale, a scale is given for another
            coupling than an affine one, the image can't be squeezed that often, or the context does not
            suit the event.

    Source: Dinh et al. 2016, "Density estimation using Real NVP", arXiv 1605.08803, sections 3.4 to 3.6.

    Example:
        >>> realnvp(5)(torch.zeros(7, 5)).shape
        torch.Size([7, 5])
        >>> realnvp((3, 8, 8), levels=2, hidden_channels=8)(torch.zeros(7, 192)).shape
        torch.Size([7, 3, 8, 8])
    """
    shape = event_size(event_shape)
    context_shape = context_size(context_dim, context_shape)
    if len(shape) == 1:
        steps = 6 if steps is None else steps
        check_vector(levels, steps)
        return Chain(
            [
                default_coupling(
                    shape,
                    own_map(coupling, scale),
                    swap=step % 2 == 1,
                    hidden_features=hidden_features,
                    context_shape=context_shape,
                )
                for step in reversed(range(steps))
            ]
        )
    steps = 3 if steps is None else steps
    levels = image_levels(shape, levels, unsqueezed=1)
    check_positive(levels=levels, steps=steps, hidden_channels=hidden_channels)

    def group(shape: Size, partition: str, count: int) -> list[FlowTransform]:
        return [
            _resnet_coupling(
                shape,
                own_map(coupling, scale),
                get_partition(partition, shape, swap=step % 2 == 1),
                hidden_channels,
                context_shape,
            )
            for step in reversed(range(count))
        ]

    parts: list[FlowTransform] = []
    for _ in range(levels - 1):
        squeeze = Squeeze(shape)
        channels = group(squeeze.latent_shape, "channels", steps)
        parts.append(Chain([*channels, squeeze, *group(shape, "checkerboard", steps)]))
        shape = kept(squeeze.latent_shape)
    parts.append(Chain(group(shape, "checkerboard", steps + 1)))
    return MultiScale(parts)


def _resnet_coupling(
    shape: Size,
    elementwise: ElementwiseMap,
    split: Partition,
    hidden_channels: int,
    context_shape: tuple[int, ...] | None,
) -> Coupling:
    conditioner = ResNet(
        split.passes_shape[0],
        elementwise.n_parameters * split.changes_shape[0],
        hidden_channels,
        context_shape=context_shape,
        factor=context_factor(shape, context_shape),
    )
    return Coupling(shape, conditioner, elementwise, split, context_shape=context_shape)


def own_map(coupling: str | ElementwiseMap, scale: str | None) -> ElementwiseMap:
    """A map for one coupling; a map object is copied, so that no two couplings share parameters."""
    if coupling == "affine":
        return AffineMap() if scale is None else AffineMap(scale)
    if scale is not None:
        raise ValueError(
            f"scale={scale!r} is for affine couplings: give it with coupling='affine', got {coupling!r}"
        )
    return copy.deepcopy(get_map(coupling))


def kept(shape: Size) -> Size:
    return Size((shape[0] // 2, *shape[1:]))


def check_positive(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"expected {name} of at least 1, got {size}")


def check_vector(levels: int | None, steps: int) -> None:
    if levels not in (None, 1):
        raise ValueError(f"levels are for images (C, H, W), got levels={levels} for a vector")
    check_positive(steps=steps)


def image_levels(shape: tuple[int, ...], levels: int | None, unsqueezed: int) -> int:
    """The number of levels, all but `unsqueezed` of which halve the image: as given, or by its size."""
    height, width = shape[1:]
    if levels is None:
        smallest = min(height, width)
        fitting = [n for n in (1, 2, 3) if _fits(height, width, n - unsqueezed) and smallest >= 2**n]
        levels = max(fitting, default=1)
    halvings = levels - unsqueezed
    if halvings > 0 and not _fits(height, width, halvings):
        unit = 2**halvings
        larger, smaller = (
            "x".join(str(side // unit * unit + more * (side % unit > 0)) for side in (height, width))
            for more in (unit, 0)
        )
        can_cut = min(height, width) >= unit
        cut = f", cut it to {smaller} (--crop on the command line)" if can_cut else ""
        raise ValueError(
            f"an image of {height}x{width} can't be squeezed {halvings} times: expected height and width "
            f"to be multiples of {unit}, such as {larger}: pad it{cut}, or use fewer levels"
        )
    return levels


def _fits(height: int, width: int, halvings: int) -> bool:
    return height % 2**halvings == 0 and width % 2**halvings == 0
