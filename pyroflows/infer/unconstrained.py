"""A model's log density as a function of one unconstrained vector."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from pyro import poutine
from pyro.poutine import Trace
from torch import Tensor
from torch.distributions import Transform, biject_to

from pyroflows.infer.diagnostics import plate_nesting
from pyroflows.infer.validation import unvalidated

__all__ = ["LogDensity", "can_fail", "learned"]

Unpack = Callable[[Tensor], Iterator[tuple[Any, Tensor]]]

# What a model raises where its density can't be computed: a Cholesky factor of a matrix that is none, say.
can_fail = (ValueError, RuntimeError, ArithmeticError)


class LogDensity:
    r"""The log density of a model's latent variables, as one unconstrained vector `u`, and its data.

    .. math:: \log p(x, g(u)) + \log \left| \det \frac{\partial g}{\partial u} \right| \text{ (nats)}

    With `g` the bijection from reals to the supports, `biject_to`. Learnable parameters of the model are
    those in Pyro's param store; `parameters` names those that the last call used. Other `coordinates` of the
    vector may be given, a transform to `u`, whose ladj is then added.

    Args:
        model: The model.
        unpack: From a vector to each latent site and its unconstrained value.
        prototype: A trace of the model.
        args: What the model is called with.
        kwargs: What the model is called with.

    Shapes:
        `u`: `(D,)`, result `()`; or `(n, D)`, result `(n,)`, where the model broadcasts.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        unpack: Unpack,
        prototype: Trace,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> None:
        self.model, self.unpack, self.args, self.kwargs = model, unpack, args, kwargs or {}
        self.nesting = plate_nesting(prototype)
        self.parameters: list[Tensor] = []
        self.coordinates: Transform | None = None

    def __call__(self, u: Tensor) -> Tensor:
        if self.coordinates is None:
            return self._of_unconstrained(u)
        v, u = u, self.coordinates(u)
        return self._of_unconstrained(u) + self.coordinates.log_abs_det_jacobian(v, u)

    def _of_unconstrained(self, u: Tensor) -> Tensor:
        if u.dim() == 1:
            values, ladj = self._values(u, ())
            return self._trace(values).log_prob_sum() + ladj
        n = len(u)
        values, ladj = self._values(u.reshape(n, *[1] * self.nesting, u.shape[-1]), (n,))
        # Not in a plate, whose dimension would be taken where a guide is first called in one of an ELBO's.
        trace = self._trace(values)
        trace.compute_log_prob()
        total = ladj
        for site in trace.nodes.values():
            if site["type"] == "sample":
                log_prob: Any = site["log_prob"]
                # What does not depend on any draw has no dimension of them.
                of_each = log_prob.dim() > self.nesting and log_prob.shape[-1 - self.nesting] == n
                total = total + (log_prob.reshape(n, -1).sum(-1) if of_each else log_prob.sum())
        return total

    def one_by_one(self, u: Tensor) -> Tensor:
        """The same of each row, `(n,)`, for models that do not broadcast."""
        return torch.stack([self(row) for row in u])

    def broadcasts(self, u: Tensor) -> bool:
        """Whether the model gives each of the rows `(n, D)` at once what it gives it alone."""
        seed = int(torch.randint(2**31, ()))
        try:
            with torch.no_grad(), torch.random.fork_rng(), unvalidated():
                torch.manual_seed(seed)
                together = self(u)
                torch.manual_seed(seed)
                alone = self.one_by_one(u)
        except can_fail:
            return False
        finite = alone.isfinite()
        # Rows of no density, infinite or not a number, are alike whether or not the model broadcasts.
        if not finite.any() or not torch.equal(together.isfinite(), finite):
            return False
        # A subsample is drawn anew for each; that they have one value each is all that can be asked.
        tolerance = 1e-3 * (1 + alone[finite].abs().max().item())
        return torch.allclose(together[finite], alone[finite], rtol=0, atol=tolerance)

    def sites(self, u: Tensor) -> list[Any]:
        """Pyro's messages of the latent sites, at `u` of shape `(D,)`."""
        values, _ = self._values(u, ())
        trace = self._trace(values)
        return [trace.nodes[name] for name in values]

    def _values(self, u: Tensor, batch: tuple[int, ...]) -> tuple[dict[str, Tensor], Tensor]:
        values, total = {}, u.new_zeros(batch)
        for site, unconstrained in self.unpack(u):
            transform = biject_to(site["fn"].support)
            values[site["name"]] = value = transform(unconstrained)
            ladj = transform.log_abs_det_jacobian(unconstrained, value)
            total = total + ladj.reshape(*batch, -1).sum(-1)
        return values, total

    def _trace(self, values: dict[str, Tensor]) -> Trace:
        conditioned = poutine.condition(self.model, data=values)
        # No message may reach the handlers of a guide or an ELBO that this is called from.
        with poutine.block():
            trace = poutine.trace(conditioned).get_trace(*self.args, **self.kwargs)
        self.parameters = learned(trace)
        return trace


def learned(trace: Trace) -> list[Tensor]:
    """The parameters of a trace, unconstrained, each once."""
    values: list[Any] = [site["value"] for site in trace.nodes.values() if site["type"] == "param"]
    leaves = [value.unconstrained() if hasattr(value, "unconstrained") else value for value in values]
    return list({id(leaf): leaf for leaf in leaves}.values())
