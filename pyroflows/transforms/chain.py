"""Transforms one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, cast

from torch import Size, Tensor, nn
from torch.distributions import Distribution, Transform, constraints

from pyroflows.transforms.base import FlowTransform, sum_last

__all__ = ["Chain"]


class Chain(FlowTransform):
    r"""Transforms applied in order, latent to data.

    .. math:: f = f_n \circ \dots \circ f_1, \qquad \text{ladj} = \sum_i \text{ladj}_i

    Any `torch.distributions` or Pyro transform may stand among pyroflows' own, of which there must be
    at least one (it gives the shapes). Conditional parts share one context.

    Args:
        transforms: The parts; the first takes the latent, the last gives the data.

    Shapes:
        `z`: `(*batch, *latent_shape)` of the first part, `x`: `(*batch, *event_shape)` of the last.

    Raises:
        ValueError: No part is a `FlowTransform`, the shapes do not fit, or two parts want contexts of
            different shapes.

    Source: Rezende & Mohamed 2015, "Variational Inference with Normalizing Flows", arXiv 1505.05770,
    eq. 6.

    Example:
        >>> chain = Chain([ActNorm((3,)), InvertibleLinear((3,)), torch.distributions.ExpTransform()])
        >>> x = chain(torch.zeros(7, 3))
        >>> x.shape, chain.inv(x).abs().max() < 1e-6
        (torch.Size([7, 3]), tensor(True))
    """

    def __init__(self, transforms: Sequence[Transform]) -> None:
        parts = _as_flow_transforms(list(transforms))
        for before, after in pairwise(parts):
            if before.event_shape != after.latent_shape:
                raise ValueError(
                    f"Chain expected each part to take the shape that the one before it gives, but "
                    f"{type(before).__name__} gives {tuple(before.event_shape)} and "
                    f"{type(after).__name__} takes {tuple(after.latent_shape)}"
                )
        contexts = {part.context_shape for part in parts if part.context_shape is not None}
        if len(contexts) > 1:
            shapes = ", ".join(str(tuple(shape)) for shape in sorted(contexts))
            raise ValueError(f"Chain expected its parts to share one context shape, got {shapes}")
        super().__init__(
            parts[0].latent_shape, parts[-1].event_shape, context_shape=next(iter(contexts), None)
        )
        self.transforms = nn.ModuleList(parts)
        self.level_shapes = parts[0].level_shapes

    @property
    def _parts(self) -> list[FlowTransform]:
        return cast("list[FlowTransform]", list(self.transforms))

    @property
    def domain(self) -> constraints.Constraint:  # type: ignore[override]
        return self._parts[0].domain

    @property
    def codomain(self) -> constraints.Constraint:  # type: ignore[override]
        return self._parts[-1].codomain

    @property
    def _remembers(self) -> bool:
        return self._cache_size > 0 and all(part._remembers for part in self._parts)

    def _forward_and_ladj(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        value, total = self._parts[0]._forward_and_ladj(z, context)
        for part in self._parts[1:]:
            value, ladj = part._forward_and_ladj(value, context)
            total = total + ladj
        return value, total

    def _inverse_and_ladj(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        value, total = self._parts[-1]._inverse_and_ladj(x, context)
        for part in reversed(self._parts[:-1]):
            value, ladj = part._inverse_and_ladj(value, context)
            total = total + ladj
        return value, total

    def _forward_and_score(
        self, z: Tensor, score: Tensor, context: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        value, total, score = self._parts[0]._forward_and_score(z, score, context)
        for part in self._parts[1:]:
            value, ladj, score = part._forward_and_score(value, score, context)
            total = total + ladj
        return value, total, score

    def _initialize(self, x: Tensor, context: Tensor | None) -> Tensor:
        for part in reversed(self._parts):
            x = part._initialize(x, context)
        return x


class ForeignTransform(FlowTransform):
    """A transform of torch's or Pyro's as a part of a `Chain`.

    It never remembers: what its values depend on can't be seen from outside.
    """

    def __init__(self, transform: Transform, latent_shape: Size, event_shape: Size) -> None:
        super().__init__(latent_shape, event_shape)
        self.transform = transform

    @property
    def domain(self) -> constraints.Constraint:  # type: ignore[override]
        return _widened(self.transform.domain, len(self.latent_shape))

    @property
    def codomain(self) -> constraints.Constraint:  # type: ignore[override]
        return _widened(self.transform.codomain, len(self.event_shape))

    @property
    def _remembers(self) -> bool:
        return False

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> ForeignTransform:
        map_tensors(self.transform, fn)
        return super()._apply(fn, *args, **kwargs)

    def _forward_and_ladj(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        z = z.view_as(z)  # a tensor that the transform's own cache has not seen
        x = self.transform(z)
        ladj = self._total(self.transform.log_abs_det_jacobian(z, x))
        _clear_cache(self.transform)
        return x, ladj

    def _inverse_and_ladj(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        x = x.view_as(x)
        z = self.transform.inv(x)
        ladj = -self._total(self.transform.log_abs_det_jacobian(z, x))
        _clear_cache(self.transform)
        return z, ladj

    def _total(self, ladj: Tensor) -> Tensor:
        return sum_last(ladj, len(self.latent_shape) - self.transform.domain.event_dim)


def map_tensors(owner: Transform | Distribution, fn: Callable[[Tensor], Tensor]) -> None:
    """Apply `fn` (a move to a device or dtype) to the tensors of what is no module, in place."""
    # A transform and its inverse hold each other.
    seen, owners = {id(owner)}, [owner]
    while owners:
        owner = owners.pop()
        for name, value in vars(owner).items():
            if isinstance(value, Tensor):
                setattr(owner, name, fn(value))
            for part in value if isinstance(value, list) else [value]:
                plain = isinstance(part, Transform | Distribution) and not isinstance(part, nn.Module)
                if plain and id(part) not in seen:
                    seen.add(id(part))
                    owners.append(part)


def _clear_cache(transform: Transform) -> None:
    """Drop what torch's and Pyro's transforms cache, which can be neither copied nor saved."""
    for name, value in vars(transform).items():
        if name == "_cached_x_y":
            transform._cached_x_y = None, None
        elif name.startswith("_cached"):
            setattr(transform, name, None)
        elif name in ("base_transform", "parts"):
            for part in value if name == "parts" else [value]:
                _clear_cache(part)


def _widened(constraint: constraints.Constraint, event_dim: int) -> constraints.Constraint:
    extra = event_dim - constraint.event_dim
    return constraints.independent(constraint, extra) if extra else constraint


def _as_flow_transforms(transforms: list[Transform]) -> list[FlowTransform]:
    """Wrap foreign transforms; their shapes follow from the nearest `FlowTransform`."""
    for transform in transforms:
        if not isinstance(transform, Transform):
            raise ValueError(f"Chain expected transforms, got {type(transform)}")
    first = next((i for i, t in enumerate(transforms) if isinstance(t, FlowTransform)), None)
    if first is None:
        raise ValueError("Chain expected at least one FlowTransform, which gives the event's shape, got none")
    known = cast(FlowTransform, transforms[first])
    parts: list[FlowTransform] = []
    shape = known.latent_shape
    for transform in reversed(transforms[:first]):
        latent_shape = Size(transform.inverse_shape(shape))
        parts.insert(0, ForeignTransform(transform, latent_shape, shape))
        shape = latent_shape
    shape = known.latent_shape
    for transform in transforms[first:]:
        if not isinstance(transform, FlowTransform):
            transform = ForeignTransform(transform, shape, Size(transform.forward_shape(shape)))
        parts.append(transform)
        shape = transform.event_shape
    return parts
