"""Centre and scale data, and contexts, by fixed numbers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from pyro.distributions import constraints
from torch import Size, Tensor

from pyroflows.transforms.base import FlowTransform, first_parameter

__all__ = ["Standardize"]


class Standardize(FlowTransform):
    r"""A transform whose data, and contexts, are centred and scaled by fixed numbers.

    .. math:: x = \mu + \sigma f(z; (c - \mu_c) / \sigma_c), \qquad
        \text{ladj} = \text{ladj}_f + \sum_i \log \sigma_i \text{ (nats, latent to data)}

    The means and standard deviations are not learned. `fit_to` (`Flow.initialize`, `fit`) sets them once,
    for each feature of a vector or channel of an image; until then they are 0 and 1. They are part of
    the state, and stay in double precision when the transform moves to another dtype. From data to latent an
    input may have any real dtype. It is centred and scaled in double precision, and then rounded to the dtype
    of the transform, so a float64 column of 1e6 +- 1e-3 loses no digits.

    Args:
        transform: The transform `f` of standardised data.
        data: Whether the data are standardised, and not the contexts alone.

    Shapes:
        `z`, `x` and the context: those of `transform`.

    Raises:
        ValueError: The data are to be standardised but are bounded, so that their scale is not free.

    Example:
        >>> flow = Flow(Standardize(realnvp(2)))
        >>> data = torch.randn(100, 2) * torch.tensor([1e-7, 1e6])
        >>> flow.initialize(data)
        >>> bool(flow().sample((5,)).abs().max() > 1e3)
        True
    """

    loc: Tensor
    scale: Tensor
    context_loc: Tensor
    context_scale: Tensor
    initialized: Tensor

    def __init__(self, transform: FlowTransform, *, data: bool = True) -> None:
        if data and not is_unbounded(transform):
            raise ValueError(
                f"Standardize expected a transform to all real numbers, got {type(transform).__name__} to "
                f"{transform.codomain}: put the bounded part behind the Standardize, in a Chain"
            )
        super().__init__(transform.latent_shape, transform.event_shape, context_shape=transform.context_shape)
        self.transform, self.data = transform, data
        self.level_shapes = transform.level_shapes
        if data:
            self._register("", self.event_shape)
        self._register("context_", Size(()) if self.context_shape is None else self.context_shape)
        self.register_buffer("initialized", torch.tensor(False))

    @property
    def domain(self) -> constraints.Constraint:  # type: ignore[override]
        return self.transform.domain

    @property
    def codomain(self) -> constraints.Constraint:  # type: ignore[override]
        return self.transform.codomain

    def _register(self, name: str, shape: Size) -> None:
        each = shape[:1] + (1,) * (len(shape) - 1)
        self.register_buffer(f"{name}loc", torch.zeros(each, dtype=torch.float64))
        self.register_buffer(f"{name}scale", torch.ones(each, dtype=torch.float64))

    @torch.no_grad()
    def fit_to(self, x: Tensor, context: Tensor | None = None, weights: Tensor | None = None) -> None:
        """Set the means and standard deviations, unless they were set before.

        Args:
            x: Data `(N, *event_shape)`.
            context: Their contexts `(N, *context_shape)`.
            weights: Their weights `(N,)`; by default all are 1.
        """
        if self.initialized:
            return
        for name, values in (("", x if self.data else None), ("context_", context)):
            if values is not None:
                loc, scale = getattr(self, f"{name}loc"), getattr(self, f"{name}scale")
                mean, variance = _weighted_moments(values.double(), loc.dim(), weights)
                loc.copy_(mean.view_as(loc))
                # A feature that does not vary keeps its scale.
                scale.copy_(torch.where(variance > 0, variance.sqrt(), 1.0).view_as(scale))
        self.initialized.fill_(True)

    def _forward_and_ladj(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        x, ladj = self.transform._forward_and_ladj(z, self._context(context))
        return self._unstandard(x), self._plus(ladj, 1)

    def _inverse_and_ladj(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        z, ladj = self.transform._inverse_and_ladj(self._standard(x), self._context(context))
        return z, self._plus(ladj, -1)

    def _forward_and_score(
        self, z: Tensor, score: Tensor, context: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        x, ladj, score = self.transform._forward_and_score(z, score, self._context(context))
        if self.data:
            score = (score / self.scale).to(score.dtype)
        return self._unstandard(x), self._plus(ladj, 1), score

    def _initialize(self, x: Tensor, context: Tensor | None) -> Tensor:
        self.fit_to(x, context)
        return self.transform._initialize(self._standard(x), self._context(context))

    def _standard(self, x: Tensor) -> Tensor:
        return self._rounded((x - self.loc) / self.scale, x) if self.data else x

    def _unstandard(self, x: Tensor) -> Tensor:
        return (x * self.scale + self.loc).to(x.dtype) if self.data else x

    def _plus(self, ladj: Tensor, sign: int) -> Tensor:
        """The ladj with that of the scale (`sign` 1, latent to data) or of its inverse."""
        if not self.data:
            return ladj
        return ladj + sign * (self.scale.log().sum() * self.event_shape[1:].numel()).to(ladj.dtype)

    def _context(self, context: Tensor | None) -> Tensor | None:
        if context is None or self.context_shape is None:
            return context
        return self._rounded((context - self.context_loc) / self.context_scale, context)

    def _rounded(self, standard: Tensor, given: Tensor) -> Tensor:
        parameter = first_parameter(self.transform)
        return standard.to(given.dtype if parameter is None else parameter.dtype)

    @property
    def _takes_any_dtype(self) -> bool:
        return True

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Standardize:
        exact = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, buffer in exact.items():
            moved = self._buffers[name]
            assert buffer is not None
            assert moved is not None
            self._buffers[name] = buffer.to(moved.device)
        return self


def _weighted_moments(x: Tensor, event_dim: int, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean and variance over all dimensions but the first of the event."""
    dims = [dim for dim in range(x.dim()) if dim != x.dim() - event_dim]
    if weights is None:
        variance, mean = torch.var_mean(x, dims, correction=0)
        return mean, variance
    each = weights.to(x).view(-1, *[1] * (x.dim() - 1)).expand_as(x)
    total = each.sum(dims, keepdim=True)
    mean = (each * x).sum(dims, keepdim=True) / total
    variance = (each * (x - mean).square()).sum(dims, keepdim=True) / total
    return mean, variance


def is_unbounded(transform: FlowTransform) -> bool:
    """Whether the data of a transform may be any real numbers."""
    codomain = transform.codomain
    while isinstance(codomain, constraints.independent):
        codomain = codomain.base_constraint
    return codomain is constraints.real
