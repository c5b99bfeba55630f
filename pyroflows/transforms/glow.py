"""Glow, put together from the transforms."""

from __future__ import annotations

import torch
from torch import Size

from pyroflows.layers import ZeroConv
from pyroflows.nets import TopPrior
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
from pyroflows.transforms.linear import InvertibleConv1x1, InvertibleLinear
from pyroflows.transforms.multiscale import MultiScale
from pyroflows.transforms.partition import get_partition
from pyroflows.transforms.permutation import Permutation
from pyroflows.transforms.recipes import check_positive, check_vector, image_levels, kept, own_map
from pyroflows.transforms.squeeze import Squeeze

__all__ = ["glow", "glow_step"]

# How far the log-scales of all couplings of an image may go together, below and above 0, at most 3 each. A
# Glow of 24 couplings was fitted to 200 images for 60 epochs. Then 60 other images had 377 bits per dimension
# with bounds of -3 and 3 for each coupling, 8.2 with -1 and 1, and 4.9 with -1 and 1/4. After 12 epochs all
# had 4.3 to 4.4. The upper bound is closer because a score grows with the square of the latent. With 6
# couplings, bounds of -1 and 1/4 lose 5 of 57 nats against -3 and 3.
_BELOW, _ABOVE = 24.0, 6.0
# The largest shift of an image's latent, which is about standard normal.
_MAX_SHIFT = 3.0


def glow_step(
    event_shape: int | tuple[int, ...],
    *,
    hidden_features: tuple[int, ...] = (64, 64),
    hidden_channels: int = 128,
    dropout: float = 0.0,
    actnorm: bool = False,
    permutation: str = "linear",
    coupling: str | ElementwiseMap | None = None,
    scale: str | None = None,
    context_dim: int | None = None,
    context_shape: tuple[int, ...] | None = None,
) -> Chain:
    """A step of Glow: from data to latent ActNorm, an invertible linear map or 1x1 convolution, a coupling.

    Args:
        event_shape: `D`, `(D,)` or `(C, H, W)`.
        hidden_features: Sizes of the hidden layers of the `MLP` conditioner (vectors).
        hidden_channels: Width of the `ConvNet` conditioner (images).
        dropout: Probability of leaving out a hidden feature or channel while training.
        actnorm: Whether the `ConvNet` has actnorm inside (images), as the reference implementation.
        permutation: `"linear"`, the invertible linear map; or what the paper holds it against: `"shuffle"`, a
            fixed random order of the features or channels, or `"reverse"`.
        coupling: The element-wise map, or its name; by default `"spline"` for vectors and `"affine"` for
            images.
        scale: The scale of an affine coupling (`AffineMap`), such as the paper's `"sigmoid"`; by default
            `"softclip"`, for images between `exp(-1)` and `exp(1/4)` and with a `max_shift` of 3.
        context_dim: Size of a context vector.
        context_shape: Event shape of the context: `(K,)` or `(K, H, W)`.

    Raises:
        ValueError: An image has one channel, the context does not suit the event, or there is no such
            permutation.

    Source: Kingma & Dhariwal 2018, "Glow", arXiv 1807.03039, section 3 and table 1.

    Example:
        >>> glow_step((4, 8, 8), hidden_channels=16)(torch.zeros(5, 4, 8, 8)).shape
        torch.Size([5, 4, 8, 8])
    """
    shape = event_size(event_shape)
    change = default_coupling(
        shape,
        _own_map(coupling, scale, shape, couplings=round(_BELOW)),
        hidden_features=hidden_features,
        hidden_channels=hidden_channels,
        dropout=dropout,
        actnorm=actnorm,
        context_dim=context_dim,
        context_shape=context_shape,
    )
    return Chain([change, _mixing(shape, permutation), ActNorm(shape)])


def glow(
    event_shape: int | tuple[int, ...],
    *,
    levels: int | None = None,
    steps: int = 8,
    hidden_features: tuple[int, ...] = (64, 64),
    hidden_channels: int = 128,
    dropout: float = 0.0,
    actnorm: bool = False,
    permutation: str = "linear",
    coupling: str | ElementwiseMap | None = None,
    scale: str | None = None,
    conditioned: str = "all",
    context_dim: int | None = None,
    context_shape: tuple[int, ...] | None = None,
) -> Chain | MultiScale:
    """Glow: `steps` steps of flow in each of `levels` levels; for vectors, `steps` steps.

    Each level of an image is a squeeze and the steps; then half of the channels leave, with a learned prior
    given the other half: mean and log-scale by a convolution that starts at zero. The top's prior has a mean
    and log-scale for each channel, linear in the context.

    Args:
        event_shape: `D`, `(D,)` or `(C, H, W)`.
        levels: Glow's L (images); by default as many as the size allows, up to 3.
        steps: Glow's K.
        hidden_features: Sizes of the hidden layers of the `MLP` conditioners (vectors).
        hidden_channels: Width of the `ConvNet` conditioners (images).
        dropout: Probability of leaving out a hidden feature or channel while training.
        actnorm: Whether the `ConvNet` has actnorm inside (images), as the reference implementation.
        permutation: `"linear"`, the invertible linear map; or what the paper holds it against: `"shuffle"`, a
            fixed random order of the features or channels, or `"reverse"`.
        coupling: The element-wise map, or its name; by default `"spline"` for vectors and `"affine"` for
            images.
        scale: The scale of affine couplings and learned priors (`AffineMap`), such as the paper's `"sigmoid"`
            (with `"exp"` for the priors); by default `"softclip"`, for images with a `max_shift` of 3 and
            bounds of the couplings that are the closer the more of them there are.
        conditioned: What sees the context: `"all"` (every coupling and the top's prior) or `"prior"` (the
            top's prior alone, as in the paper's class-conditional models of images).
        context_dim: Size of a context vector.
        context_shape: Event shape of the context: `(K,)` or `(K, H, W)`.

    Shapes:
        Images: a latent vector `(*batch, C * H * W)` and data `(*batch, C, H, W)`, by `MultiScale`.

    Raises:
        ValueError: A size is not positive, the image can't be squeezed that often, the context does not
            suit the event, or there is no such permutation or way of conditioning.

    Source: Kingma & Dhariwal 2018, "Glow", arXiv 1807.03039, and its reference implementation.

    Example:
        >>> transform = glow((3, 16, 16), levels=2, steps=2, hidden_channels=16)
        >>> transform(torch.zeros(5, 768)).shape
        torch.Size([5, 3, 16, 16])
    """
    shape = event_size(event_shape)
    context_shape = context_size(context_dim, context_shape)
    if conditioned not in ("all", "prior") or (conditioned == "prior" and len(shape) == 1):
        raise ValueError(
            f"glow expected conditioned to be 'all' or, for images, 'prior', "
            f"got {conditioned!r} for an event of shape {tuple(shape)}"
        )

    def flow_steps(shape: Size, couplings: int) -> list[FlowTransform]:
        return [
            glow_step(
                shape,
                hidden_features=hidden_features,
                hidden_channels=hidden_channels,
                dropout=dropout,
                actnorm=actnorm,
                permutation=permutation,
                coupling=_own_map(coupling, scale, shape, couplings),
                context_shape=context_shape if conditioned == "all" else None,
            )
            for _ in range(steps)
        ]

    if len(shape) == 1:
        check_vector(levels, steps)
        return Chain(flow_steps(shape, steps))
    levels = image_levels(shape, levels, unsqueezed=0)
    check_positive(levels=levels, steps=steps, hidden_channels=hidden_channels)
    parts: list[FlowTransform] = []
    for level in range(levels):
        squeeze = Squeeze(shape)
        latent_shape = squeeze.latent_shape
        is_top = level == levels - 1
        if scale in ("exp", "sigmoid"):
            gaussian = AffineMap("exp")
        else:
            gaussian = AffineMap(scale or "softclip", max_shift=_MAX_SHIFT)
        if is_top:
            prior = _top_prior(latent_shape, gaussian, context_shape)
        else:
            prior = _split_prior(latent_shape, gaussian)
        parts.append(Chain([prior, *flow_steps(latent_shape, levels * steps), squeeze]))
        shape = kept(latent_shape)
    return MultiScale(parts)


def _own_map(
    coupling: str | ElementwiseMap | None, scale: str | None, shape: Size, couplings: int
) -> ElementwiseMap:
    """The map of one coupling of several."""
    is_image = len(shape) == 3
    if coupling is None:
        coupling = "affine" if is_image else "spline"
    if coupling == "affine" and scale is None and is_image:
        below, above = (min(3.0, bound / couplings) for bound in (_BELOW, _ABOVE))
        return AffineMap(below=below, above=above, max_shift=_MAX_SHIFT)
    # Images have learned priors besides, to which a scale applies.
    return own_map(coupling, None if is_image and coupling != "affine" else scale)


def _mixing(shape: Size, permutation: str) -> FlowTransform:
    """What brings every feature or channel into the changing half in its turn."""
    if permutation == "linear":
        return InvertibleLinear(shape, start="permutation") if len(shape) == 1 else InvertibleConv1x1(shape)
    if permutation == "shuffle":
        return Permutation(shape, torch.randperm(shape[0]))
    if permutation == "reverse":
        return Permutation(shape, torch.arange(shape[0]).flip(0))
    raise ValueError(f"expected a permutation 'linear', 'shuffle' or 'reverse', got {permutation!r}")


def _split_prior(shape: Size, gaussian: AffineMap) -> Coupling:
    """The learned Gaussian of the channels that leave given those that stay, as an affine coupling."""
    split = get_partition("channels", shape)
    conditioner = ZeroConv(split.passes_shape[0], 2 * split.changes_shape[0])
    return Coupling(shape, conditioner, gaussian, split)


def _top_prior(shape: Size, gaussian: AffineMap, context_shape: tuple[int, ...] | None) -> Coupling:
    """The learned Gaussian of the last level, given the context, as an affine coupling."""
    conditioner = TopPrior(
        2 * shape[0], context_shape=context_shape, factor=context_factor(shape, context_shape)
    )
    return Coupling(shape, conditioner, gaussian, "nothing", context_shape=context_shape)
