"""Couplings: a partition, an element-wise map and a conditioner, put together."""

from __future__ import annotations

import torch
from torch import Size, Tensor, nn

from pyroflows.layers import initialize
from pyroflows.nets import MLP, ConvNet
from pyroflows.transforms.base import FlowTransform, as_size, gradient, sum_last
from pyroflows.transforms.elementwise import ElementwiseMap
from pyroflows.transforms.maps import get_map
from pyroflows.transforms.partition import Partition, get_partition

__all__ = ["Coupling", "coupling"]


class Coupling(FlowTransform):
    r"""Some elements pass and determine, through a network, how the others are mapped.

    .. math:: x_a = z_a, \qquad x_b = g(z_b; \text{conditioner}(z_a, c)), \qquad
        \text{ladj} = \sum_b \log |g'|

    with an element-wise map `g`. One evaluation of the conditioner per direction.

    Args:
        event_shape: `D`, `(D,)` or `(C, H, W)`.
        conditioner: A module from what passes (and the context, if there is one) to the map's
            parameters: `(*batch, n * D_b)` or `(*batch, n * C_b, H, W)` for `n` parameters of each
            changing element, all elements' first parameter first.
        elementwise: The map: an `ElementwiseMap`, or `"additive"`, `"affine"`, `"spline"` or
            `"logistic_mixture"`.
        partition: `"halves"` (the first half of the features or channels passes), `"alternate"` (the
            elements of a vector at odd positions pass), `"checkerboard"` (the pixels on the odd squares
            pass), `"channels"` (halves of an image's channels), `"nothing"` (nothing passes), or a
            `Partition`.
        swap: Exchange what passes and what changes.
        context_shape: Event shape of the context. `None`: unconditional.

    Shapes:
        `z`, `x`: `(*batch, *event_shape)`.

    Raises:
        ValueError: There is no such map or partition, the event can't be split so, or the conditioner's
            output has another shape.

    Source: Dinh et al. 2014, "NICE", arXiv 1410.8516, eq. 3 and 4; Dinh et al. 2016, arXiv 1605.08803,
    eq. 4 to 8.

    Example:
        >>> conditioner = torch.nn.Linear(2, 2 * 3)
        >>> affine = Coupling((5,), conditioner, AffineMap(scale="softclip"))
        >>> affine(torch.zeros(7, 5)).shape
        torch.Size([7, 5])
    """

    def __init__(
        self,
        event_shape: int | tuple[int, ...],
        conditioner: nn.Module,
        elementwise: str | ElementwiseMap = "affine",
        partition: str | Partition = "halves",
        *,
        swap: bool = False,
        context_shape: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__(event_shape, context_shape=context_shape)
        self.elementwise = get_map(elementwise)
        self.partition = get_partition(partition, self.event_shape, swap)
        self.swap = self.partition.swap
        self.conditioner = conditioner

    def _forward_and_ladj(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        passes, changes = self.partition.split(z)
        changed, ladj = self.elementwise.forward_and_ladj(changes, self._parameters_of(passes, context))
        return self.partition.merge(passes, changed), self._total(ladj)

    def _inverse_and_ladj(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        passes, changes = self.partition.split(x)
        changed, ladj = self.elementwise.inverse_and_ladj(changes, self._parameters_of(passes, context))
        return self.partition.merge(passes, changed), self._total(ladj)

    def _forward_and_score(
        self, z: Tensor, score: Tensor, context: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        passes, changes = self.partition.split(z)
        # Apart from what passes, or a gradient at the one would be sought, for nothing, through the other.
        changes = changes.view_as(changes)
        changed, ladj = self.elementwise.forward_and_ladj(changes, self._parameters_of(passes, context))
        of_passes, of_changes = self.partition.split(score)
        counted = self.partition.changing(torch.ones_like(ladj))
        # As if what passes were fixed, and then what the others owe to it.
        if not self.elementwise.linear:
            of_changes = of_changes - gradient(changes, (ladj, counted))
        of_changes = of_changes / ladj.detach().exp()
        owed = gradient(passes, (changed, counted * of_changes), (ladj, counted))
        return (
            self.partition.merge(passes, changed),
            self._total(ladj),
            self.partition.merge(of_passes - owed, of_changes),
        )

    def _initialize(self, x: Tensor, context: Tensor | None) -> Tensor:
        initialize(self.conditioner, *self._inputs(self.partition.split(x)[0], context))
        return super()._initialize(x, context)

    def _inputs(self, passes: Tensor, context: Tensor | None) -> tuple[Tensor, ...]:
        return (passes,) if self.context_shape is None or context is None else (passes, context)

    def _parameters_of(self, passes: Tensor, context: Tensor | None) -> Tensor:
        """The map's parameters, `(*batch, *changes_shape, n)`."""
        output = self.conditioner(*self._inputs(passes, context))
        changes_shape, n = self.partition.changes_shape, self.elementwise.n_parameters
        event_dim = len(changes_shape)
        expected = (*passes.shape[:-event_dim], n * changes_shape[0], *changes_shape[1:])
        if output.shape != expected:
            raise ValueError(
                f"Coupling expected its conditioner to give {n} parameters for each changing element, "
                f"a tensor of shape {expected}, got {tuple(output.shape)}"
            )
        # Under autocast the network is in low precision; the map and its ladj are not.
        output = output.to(passes.dtype)
        return output.unflatten(-event_dim, (n, changes_shape[0])).movedim(-event_dim - 1, -1)

    def _total(self, ladj: Tensor) -> Tensor:
        return sum_last(self.partition.changing(ladj), len(self.event_shape))


def coupling(
    event_shape: int | tuple[int, ...],
    elementwise: str | ElementwiseMap = "affine",
    partition: str | Partition = "halves",
    *,
    swap: bool = False,
    hidden_features: tuple[int, ...] = (64, 64),
    hidden_channels: int = 128,
    dropout: float = 0.0,
    actnorm: bool = False,
    context_dim: int | None = None,
    context_shape: tuple[int, ...] | None = None,
) -> Coupling:
    """A `Coupling` with a default conditioner: an `MLP` for vectors, a `ConvNet` for images.

    Args:
        event_shape: `D`, `(D,)` or `(C, H, W)`.
        elementwise: An `ElementwiseMap`, or its name.
        partition: A `Partition`, or its name.
        swap: Exchange what passes and what changes.
        hidden_features: Sizes of the hidden layers of an `MLP` (vectors).
        hidden_channels: Width of a `ConvNet` (images).
        dropout: Probability of leaving out a hidden feature or channel while training.
        actnorm: Whether the `ConvNet` has actnorm inside (images).
        context_dim: Size of a context vector.
        context_shape: Event shape of the context: `(K,)` or `(K, H, W)`.

    Raises:
        ValueError: As `Coupling`; the context does not suit the event; or actnorm is asked for with a vector.

    Example:
        >>> conditional = coupling((6,), partition="alternate", context_dim=2)
        >>> conditional.condition(torch.zeros(4, 2))(torch.zeros(6)).shape
        torch.Size([4, 6])
    """
    shape = event_size(event_shape)
    context_shape = context_size(context_dim, context_shape)
    elementwise = get_map(elementwise)
    split = get_partition(partition, shape, swap)
    inputs, outputs = split.passes_shape[0], elementwise.n_parameters * split.changes_shape[0]
    conditioner: nn.Module
    if len(shape) == 1:
        if actnorm:
            raise ValueError(f"actnorm inside the conditioner is for images, got shape {tuple(shape)}")
        conditioner = MLP(inputs, outputs, hidden_features, dropout=dropout, context_shape=context_shape)
    else:
        conditioner = ConvNet(
            inputs,
            outputs,
            hidden_channels,
            dropout=dropout,
            actnorm=actnorm,
            context_shape=context_shape,
            factor=context_factor(shape, context_shape),
        )
    return Coupling(shape, conditioner, elementwise, split, context_shape=context_shape)


def event_size(event_shape: int | tuple[int, ...]) -> Size:
    """An event shape given as `D`, `(D,)` or `(C, H, W)`, as a size."""
    shape = as_size(event_shape)
    if len(shape) not in (1, 3) or min(shape) < 1:
        raise ValueError(f"expected an event shape D, (D,) or (C, H, W) of positive sizes, got {event_shape}")
    return shape


def context_size(context_dim: int | None, context_shape: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """The context's event shape, given one of `context_dim` and `context_shape`, or `None`."""
    if context_dim is None:
        return context_shape
    if context_shape is not None:
        raise ValueError(f"expected context_dim or context_shape, got both: {context_dim}, {context_shape}")
    return (context_dim,)


def context_factor(event_shape: tuple[int, ...], context_shape: tuple[int, ...] | None) -> int:
    """How many times larger a context image is than an image; 1 for a context vector or none."""
    if context_shape is None or len(context_shape) == 1:
        return 1
    factor = context_shape[-1] // event_shape[-1]
    fits = tuple(context_shape[1:]) == (factor * event_shape[1], factor * event_shape[2])
    if len(context_shape) != 3 or not fits:
        raise ValueError(
            f"expected a context (K,) or (K, H, W) with H and W a multiple of the image's, "
            f"got {tuple(context_shape)} for an image of shape {tuple(event_shape)}"
        )
    return factor
