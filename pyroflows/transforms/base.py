"""The contract of every transform: `FlowTransform`, and the views of one that `.inv` and `condition` give."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions import TransformModule, constraints
from pyro.distributions.conditional import ConditionalTransform
from torch import Size, Tensor, nn
from torch.distributions import Transform

from pyroflows.transforms.memory import Evaluation, can_remember

__all__ = ["FlowTransform"]


class FlowTransform(TransformModule, ConditionalTransform):
    r"""A learnable bijection from latent `z` to data `x`, with its log-determinant.

    .. math:: x = f(z; c), \qquad \text{ladj} = \log \left| \det \frac{\partial x}{\partial z} \right|

    A subclass writes `_forward_and_ladj(z, context)` and `_inverse_and_ladj(x, context)`, which take
    any leading batch dimensions and return the value and its ladj (in nats, of a shape that broadcasts
    to the batch shape); everything that torch, Pyro and zuko expect of a transform is here. With a
    `context_shape` the transform is conditional: `transform.condition(context)` is a plain
    `torch.distributions.Transform`. Without one it is itself a plain transform.

    The last evaluation is remembered, so that `rsample` followed by `log_prob` of that sample costs one
    forward pass, and is used only where recomputing would give the same value and the same gradients.

    Args:
        latent_shape: Event shape of `z`: `D`, `(D,)` or `(C, H, W)`.
        event_shape: Event shape of `x`; that of `z` if not given.
        context_shape: Event shape of the context: `(K,)` or `(K, H, W)`. `None`: unconditional.

    Shapes:
        `z`: `(*batch, *latent_shape)`, `x`: `(*batch, *event_shape)`, ladj: `(*batch,)`. A context of
        shape `(*context_batch, *context_shape)` is broadcast against the batch.

    Raises:
        ValueError: A shape, dtype or context is not the one expected.

    Source: Papamakarios et al. 2021, "Normalizing Flows for Probabilistic Modeling and Inference",
    arXiv 1912.02762, eq. 4.

    Example:
        >>> class Scale(FlowTransform):
        ...     def _forward_and_ladj(self, z, context):
        ...         return 2 * z, torch.tensor(2.0).log() * z.shape[-1]
        ...     def _inverse_and_ladj(self, x, context):
        ...         return x / 2, -torch.tensor(2.0).log() * x.shape[-1]
        >>> scale = Scale((3,))
        >>> scale(torch.ones(5, 3)).shape, scale.inv(torch.ones(3))
        (torch.Size([5, 3]), tensor([0.5000, 0.5000, 0.5000]))
        >>> x, ladj = scale.call_and_ladj(torch.ones(5, 3))
        >>> ladj.shape
        torch.Size([5])
    """

    bijective = True

    def __init__(
        self,
        latent_shape: int | tuple[int, ...],
        event_shape: int | tuple[int, ...] | None = None,
        *,
        context_shape: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__(cache_size=1)
        self.latent_shape = as_size(latent_shape)
        self.event_shape = self.latent_shape if event_shape is None else as_size(event_shape)
        self.context_shape = None if context_shape is None else Size(context_shape)
        # A multi-scale transform's latent has several levels, finest first.
        self.level_shapes = [self.latent_shape]
        self._memory: Evaluation | None = None

    def _forward_and_ladj(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """`x` and log|det dx/dz|."""
        raise NotImplementedError

    def _inverse_and_ladj(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """`z` and log|det dz/dx|."""
        raise NotImplementedError

    def _forward_and_score(
        self, z: Tensor, score: Tensor, context: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`x`, log|det dx/dz| and the score of `x`, for that of a `z` that requires a gradient.

        By the inverse; a subclass may know a shorter way.
        """
        x, ladj = self._forward_and_ladj(z, context)
        fixed = x.detach().requires_grad_()
        back, of_inverse = self._inverse_and_ladj(fixed, context)
        (score,) = torch.autograd.grad((back * score).sum() + of_inverse.sum(), fixed)
        return x, ladj, score

    def _initialize(self, x: Tensor, context: Tensor | None) -> Tensor:
        """Set what is initialised from data, and return the latent of `x`."""
        return self._inverse_and_ladj(x, context)[0]

    def split_latent(self, z: Tensor) -> list[Tensor]:
        """The levels of a latent `(*batch, *latent_shape)`, finest first; an image's are images."""
        batch = self._batch_shape(z.shape, self.latent_shape)
        sizes = [shape.numel() for shape in self.level_shapes]
        parts = z.reshape(*batch, sum(sizes)).split(sizes, -1)
        return [part.reshape(batch + shape) for part, shape in zip(parts, self.level_shapes, strict=True)]

    def join_latent(self, parts: Sequence[Tensor]) -> Tensor:
        """The latent of its levels, finest first: the inverse of `split_latent`."""
        dims = [part.dim() - len(shape) for part, shape in zip(parts, self.level_shapes, strict=False)]
        shapes = [tuple(part.shape[max(dim, 0) :]) for part, dim in zip(parts, dims, strict=False)]
        expected = [tuple(shape) for shape in self.level_shapes]
        if len(parts) != len(expected) or shapes != expected:
            raise ValueError(
                f"join_latent expected levels of shape {expected}, got {[tuple(p.shape) for p in parts]}"
            )
        batch = parts[0].shape[: dims[0]]
        joined = torch.cat([part.flatten(dim) for part, dim in zip(parts, dims, strict=True)], -1)
        return joined.reshape(batch + self.latent_shape)

    @property
    def _remembers(self) -> bool:
        return self._cache_size > 0

    # What torch and Pyro expect of a transform

    @property
    def domain(self) -> constraints.Constraint:  # type: ignore[override]
        return constraints.independent(constraints.real, len(self.latent_shape))

    @property
    def codomain(self) -> constraints.Constraint:  # type: ignore[override]
        return constraints.independent(constraints.real, len(self.event_shape))

    def __call__(self, z: Tensor) -> Tensor:
        return self._value(z, None, forward=True)

    def call_and_ladj(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """`x = f(z)` and log|det dx/dz| in one evaluation (zuko's name)."""
        return self._value_and_ladj(z, None, forward=True)

    def call_and_score(
        self, z: Tensor, score: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        r"""`x = f(z)`, log|det dx/dz|, and the score of `x`, for the one of `z`, without an inverse.

        .. math:: \nabla_x \log q(x) = \left(\frac{\partial x}{\partial z}\right)^{-T}
            \left(\nabla_z \log q(z) - \nabla_z \text{ladj}\right)

        The scores (nats per unit of `z`, of `x`) have their shapes. The one of `x` is a constant; `x` and the
        ladj have the gradients of the transform's parameters, and none of `z`.

        Raises:
            ValueError: The score has another shape than `z`, or a shape, dtype or context is not the one
                expected.

        Source: Vaitl et al. 2024, "Fast and unified path gradient estimators for normalizing flows", arXiv
        2403.15881 (the recursion).

        Example:
            >>> from pyroflows.transforms import triangular_affine
            >>> wide = triangular_affine(1)
            >>> wide.set_(torch.zeros(1), torch.tensor([[2.0]]))
            >>> x, _, score = wide.call_and_score(torch.ones(1), -torch.ones(1))
            >>> x.tolist(), score.tolist()  # of a normal with a standard deviation of 2
            ([2.0], [-0.5])
        """
        if score.shape != z.shape:
            raise ValueError(
                f"{type(self).__name__} expected a score of the shape of z, {tuple(z.shape)}, got "
                f"{tuple(score.shape)}"
            )
        if context is not None:
            self._check_context(context)
        z, context = self._prepare(z.detach(), context, True)
        z.requires_grad_()
        with torch.enable_grad():
            x, ladj, score = self._forward_and_score(z, score.detach().expand_as(z), context)
        return x, ladj.expand(z.shape[: z.dim() - len(self.latent_shape)]), score

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """log|det dy/dx| for `x` in the latent space and `y = f(x)`; free if it came with that pair."""
        return self._ladj(x, y, None)

    @property
    def inv(self) -> Transform:
        """The inverse, from data to latent; `transform.inv.inv is transform`."""
        return TransformView(self, None, forward=False)

    def condition(self, context: Tensor) -> Transform:
        """The transform given a context; an unconditional transform is the same for every context."""
        if self.context_shape is None:
            return self
        return TransformView(self, context, forward=True)

    def with_cache(self, cache_size: int = 1) -> FlowTransform:
        """The same transform, sharing its parameters, that remembers its last value (1) or not (0)."""
        if cache_size not in (0, 1):
            raise ValueError(f"cache_size must be 0 or 1, got {cache_size}")
        if cache_size == self._cache_size:
            return self
        other = copy.copy(self)
        other._cache_size = cache_size
        return other

    def forward_shape(self, shape: tuple[int, ...]) -> Size:
        return self._shape(shape, None, forward=True)

    def inverse_shape(self, shape: tuple[int, ...]) -> Size:
        return self._shape(shape, None, forward=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_inv": None, "_memory": None}

    __repr__ = nn.Module.__repr__

    def extra_repr(self) -> str:
        shapes = f"{tuple(self.latent_shape)}"
        if self.event_shape != self.latent_shape:
            shapes += f" -> {tuple(self.event_shape)}"
        return shapes if self.context_shape is None else f"{shapes}, context={tuple(self.context_shape)}"

    # The same in both directions, with and without a context; `TransformView` calls these

    def _shape(self, shape: tuple[int, ...], context: Tensor | None, forward: bool) -> Size:
        source, result = self.latent_shape, self.event_shape
        if not forward:
            source, result = result, source
        batch = self._batch_shape(Size(shape), source)
        if context is not None:
            assert self.context_shape is not None
            batch = _broadcast(batch, context.shape[: context.dim() - len(self.context_shape)])
        return batch + result

    def _batch_shape(self, shape: Size, event_shape: Size) -> Size:
        cut = len(shape) - len(event_shape)
        if cut < 0 or tuple(shape[cut:]) != tuple(event_shape):
            raise ValueError(
                f"{type(self).__name__} expected a tensor of shape {_batched(event_shape)}, "
                f"got {tuple(shape)}"
            )
        return shape[:cut]

    @property
    def _takes_any_dtype(self) -> bool:
        """Whether data and contexts may be reals of another dtype than the parameters."""
        return False

    def _check_dtype(self, tensor: Tensor, what: str, wide: bool) -> Tensor:
        if wide and self._takes_any_dtype and tensor.is_floating_point():
            return tensor
        parameter = first_parameter(self)
        if parameter is None:
            if tensor.is_floating_point():
                return tensor
            raise ValueError(
                f"{type(self).__name__} expected {what} of a floating-point dtype, got {tensor.dtype}"
            )
        if tensor.dtype == parameter.dtype:
            return tensor
        if tensor.is_floating_point() and torch.is_autocast_enabled(tensor.device.type):
            return tensor.to(parameter.dtype)
        raise ValueError(
            f"{type(self).__name__} expected {what} of dtype {parameter.dtype}, as its parameters have, "
            f"got {tensor.dtype}: convert one of the two"
        )

    def _check_context(self, context: Tensor) -> None:
        assert self.context_shape is not None
        if not isinstance(context, Tensor):
            raise ValueError(f"{type(self).__name__} expected a tensor as context, got {type(context)}")
        cut = context.dim() - len(self.context_shape)
        if cut < 0 or context.shape[cut:] != self.context_shape:
            raise ValueError(
                f"{type(self).__name__} expected a context of shape {_batched(self.context_shape)}, "
                f"got {tuple(context.shape)}"
            )

    def _prepare(self, value: Tensor, context: Tensor | None, forward: bool) -> tuple[Tensor, Tensor | None]:
        """Check the input, and broadcast it and the context to one batch shape."""
        event_shape = self.latent_shape if forward else self.event_shape
        batch = self._batch_shape(value.shape, event_shape)
        value = self._check_dtype(value, "an input", wide=not forward)
        if self.context_shape is None:
            return value, None
        if context is None:
            raise ValueError(
                f"{type(self).__name__} is conditional: use `.condition(context)` with a context of shape "
                f"{_batched(self.context_shape)}"
            )
        context = self._check_dtype(context, "a context", wide=True)
        context_batch = context.shape[: context.dim() - len(self.context_shape)]
        if context_batch != batch:
            batch = _broadcast(batch, context_batch)
            value, context = value.expand(batch + event_shape), context.expand(batch + self.context_shape)
        return value, context

    def _compute(self, value: Tensor, context: Tensor | None, forward: bool) -> tuple[Tensor, Tensor]:
        """Evaluate a checked input; the ladj gets the whole batch shape."""
        evaluate = self._forward_and_ladj if forward else self._inverse_and_ladj
        result, ladj = evaluate(value, context)
        event_dim = len(self.latent_shape if forward else self.event_shape)
        return result, ladj.expand(value.shape[: value.dim() - event_dim])

    def _recall(self, value: Tensor, context: Tensor | None, forward: bool) -> tuple[Tensor, Tensor] | None:
        if not can_remember(value) or self._memory is None or not self._remembers:
            return None
        return self._memory.recall(self, value, context, forward)

    def _value_and_ladj(self, value: Tensor, context: Tensor | None, forward: bool) -> tuple[Tensor, Tensor]:
        recalled = self._recall(value, context, forward)
        if recalled is not None:
            return recalled
        return self._compute(*self._prepare(value, context, forward), forward)

    def _value(self, value: Tensor, context: Tensor | None, forward: bool) -> Tensor:
        recalled = self._recall(value, context, forward)
        if recalled is not None:
            return recalled[0]
        source, broadcast_context = self._prepare(value, context, forward)
        result, ladj = self._compute(source, broadcast_context, forward)
        if can_remember(source, result, ladj) and self._remembers:
            self._memory = Evaluation.of(self, forward, source, result, ladj, context)
        return result

    def _ladj(self, z: Tensor, x: Tensor, context: Tensor | None) -> Tensor:
        if can_remember(z, x) and self._memory is not None and self._remembers:
            ladj = self._memory.recall_ladj(self, z, x, context)
            if ladj is not None:
                return ladj
        return self._compute(*self._prepare(z, context, True), True)[1]


class TransformView(TransformModule, ConditionalTransform):
    """A `FlowTransform` in one direction, perhaps given a context; what `.inv` and `condition` return."""

    bijective = True

    def __init__(self, transform: FlowTransform, context: Tensor | None, forward: bool) -> None:
        super().__init__(cache_size=transform._cache_size)
        if context is not None:
            transform._check_context(context)
        self.transform = transform
        self.context = context
        self._forward = forward

    @property
    def domain(self) -> constraints.Constraint:  # type: ignore[override]
        return self.transform.domain if self._forward else self.transform.codomain

    @property
    def codomain(self) -> constraints.Constraint:  # type: ignore[override]
        return self.transform.codomain if self._forward else self.transform.domain

    def __call__(self, value: Tensor) -> Tensor:
        return self.transform._value(value, self.context, self._forward)

    def call_and_ladj(self, value: Tensor) -> tuple[Tensor, Tensor]:
        return self.transform._value_and_ladj(value, self.context, self._forward)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        if self._forward:
            return self.transform._ladj(x, y, self.context)
        return -self.transform._ladj(y, x, self.context)

    @property
    def inv(self) -> Transform:
        if self.context is None:
            return self.transform
        # The inverse knows this view, and not the other way round: a cycle would keep the context, and the
        # graph that it came from, until the next garbage collection.
        if self._inv is None:
            inverse = TransformView(self.transform, self.context, not self._forward)
            inverse.__dict__["_inv"] = self
            return inverse
        return self._inv

    def condition(self, context: Tensor) -> Transform:
        if self.transform.context_shape is None:
            return self
        return TransformView(self.transform, context, self._forward)

    def with_cache(self, cache_size: int = 1) -> TransformView:
        transform = self.transform.with_cache(cache_size)
        return self if transform is self.transform else TransformView(transform, self.context, self._forward)

    def forward_shape(self, shape: tuple[int, ...]) -> Size:
        return self.transform._shape(shape, self.context, self._forward)

    def inverse_shape(self, shape: tuple[int, ...]) -> Size:
        return self.transform._shape(shape, self.context, not self._forward)

    __repr__ = nn.Module.__repr__


def as_size(shape: int | tuple[int, ...]) -> Size:
    """A shape that may be given as the size of a vector."""
    return Size((shape,) if isinstance(shape, int) else shape)


def gradient(at: Tensor, *weighted: tuple[Tensor, Tensor]) -> Tensor:
    """The gradient at a tensor of the sum of values times weights, whose graph is still wanted."""
    learned = [(value, weight) for value, weight in weighted if value.requires_grad]
    if not learned:
        return torch.zeros_like(at)
    values, weights = zip(*learned, strict=True)
    (found,) = torch.autograd.grad(values, at, weights, retain_graph=True, allow_unused=True)
    return torch.zeros_like(at) if found is None else found


def sum_last(value: Tensor, n: int) -> Tensor:
    """The sum over the last `n` dimensions, of empty batches too."""
    return value.sum(tuple(range(-n, 0))) if n else value


def first_parameter(module: nn.Module) -> nn.Parameter | None:
    """As `next(module.parameters())`, which torch.compile can't trace: Pyro's modules have their own hash."""
    for parameter in module._parameters.values():
        if parameter is not None:
            return parameter
    for child in module._modules.values():
        if child is not None and (parameter := first_parameter(child)) is not None:
            return parameter
    return None


def _batched(event_shape: Size) -> str:
    return f"(*batch, {', '.join(map(str, event_shape))})"


def _broadcast(batch: Size, context_batch: Size) -> Size:
    try:
        return torch.broadcast_shapes(batch, context_batch)
    except RuntimeError:
        raise ValueError(
            f"the batch shape {tuple(batch)} and the context's batch shape {tuple(context_batch)} "
            "do not broadcast"
        ) from None
