"""Chains that become a posterior's draws, by a flow that is fitted to them on the way."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from pyroflows.infer.unconstrained import can_fail
from pyroflows.transforms import FlowTransform

__all__ = ["Chains", "log_normal", "truncated"]

# Draws that a chain may jump to at a move, and moves of which one begins with a walk, once some have.
_PROPOSALS, _EACH, _FIRST = 4, 8, 2

# The share of walks that is to be accepted, how fast the step size follows it, and how small steps get.
_ACCEPTED, _RATE, _SMALLEST = 0.95, 0.5, 0.2

# Of the furthest proposal's distance from the base's mean, from where on a state is out of reach.
_REACH = 10.0


class Chains:
    """States that walk, and jump to draws of a flow by their weights, until they are the posterior's draws.

    A walk is a trajectory of Hamiltonian Monte Carlo in the whitened space: it explores what is near. In the
    space of the base it would not: where the flow has no draws it only extrapolates, and what it leaves out
    may be thousands of standard deviations away there. Steps are of many sizes, since a tail may be far
    narrower than the rest. To jump is to choose between the state and four draws of the flow by their
    importance weights: it finds what a walk does not come to. Both leave the posterior as it is, whatever the
    flow.

    Source: Samsonov et al. 2022, "Local-global MCMC kernels: the best of both worlds", arXiv 2111.02702;
    Andrieu et al. 2018, "Uniform ergodicity of the iterated conditional SMC and geometric ergodicity of
    particle Gibbs samplers", Bernoulli 24 (to jump); Neal 2011, "MCMC using Hamiltonian dynamics", arXiv
    1206.1901 (to walk, with steps of random size).

    Arguments:
        log_density: The posterior's, of values.
        transform: From draws of the base to values.
        whitened: The same from the whitened space.
        leaps: Steps of a walk.

    Attributes:
        x: The states, `(chains, size)`, once there are any.
        step_size: Of the walks, in the whitened space.
    """

    def __init__(
        self,
        log_density: Callable[[Tensor], Tensor],
        transform: FlowTransform,
        whitened: FlowTransform,
        leaps: int,
    ) -> None:
        self.log_density, self.transform, self.whitened, self.leaps = log_density, transform, whitened, leaps
        self.x: Tensor | None = None
        self.step_size = 0.1
        self._moves = 0

    @torch.no_grad()
    def move(self, z: Tensor, x: Tensor, log_weights: Tensor) -> tuple[Tensor, Tensor]:
        """Let all walk, if it is time, and jump to some draws of the base.

        The states as draws of the base, `(chains, size)`, and which are near enough for the flow to learn
        from, `(chains,)`.
        """
        if self.x is None:
            first = truncated(log_weights).multinomial(len(z) // _PROPOSALS, replacement=True)
            self.x = x[first]
            return z[first], torch.ones_like(log_weights[first], dtype=torch.bool)
        if self._moves < _FIRST or self._moves % _EACH == 0:
            self.x = self.walk(self.x)
        self._moves += 1
        # Where they are now that the flow is another.
        of_states, ladj = self.transform.inv.call_and_ladj(self.x)  # type: ignore[attr-defined]
        of_staying = self.log_density(self.x) - log_normal(of_states) - ladj
        # Where the flow overflows there is no telling what it would be.
        of_staying = of_staying.where(of_staying.isfinite(), -torch.inf)
        log_weights = torch.cat([of_staying[:, None], log_weights.view(-1, _PROPOSALS)], 1)
        # One without weight is still somewhere where all five are.
        chosen = log_weights.clamp(min=torch.finfo(z.dtype).min).softmax(1).multinomial(1)[..., None]

        def jump(states: Tensor, draws: Tensor) -> Tensor:
            both = torch.cat([states[:, None], draws.unflatten(0, (-1, _PROPOSALS))], 1)
            return both.take_along_dim(chosen, 1)[:, 0]

        self.x, of_states = jump(self.x, x), jump(of_states, z)
        # Further out a step of the fit moves the flow by more than it can learn there.
        return of_states, of_states.norm(dim=-1) <= _REACH * z.norm(dim=-1).max()

    @torch.no_grad()
    def walk(self, x: Tensor) -> Tensor:
        """A trajectory of Hamiltonian Monte Carlo from each of some values; where it ends."""
        start = self.whitened.inv(x)
        # Of another size for each, so that none is in step with what it is in.
        size = self.step_size * (_SMALLEST + 2 * (1 - _SMALLEST) * torch.rand_like(start[:, :1]))
        before, gradient = self._with_gradient(start)
        momentum = torch.randn_like(start)
        to, moving = start, momentum + size / 2 * gradient
        try:
            for _ in range(self.leaps):
                to = to + size * moving
                after, gradient = self._with_gradient(to)
                moving = moving + size * gradient
        except can_fail:
            # Some models raise an error far out, where steps that are too long end; all stay then.
            self.step_size /= 2
            return x
        moving = moving - size / 2 * gradient
        gained = after - before + (momentum.square() - moving.square()).sum(-1) / 2
        # None where a trajectory ended without a density.
        accept = gained.exp().nan_to_num(0.0).clamp(max=1.0)
        self.step_size *= math.exp(_RATE * (accept.mean().item() - _ACCEPTED))
        taken = torch.rand_like(accept) < accept
        return torch.where(taken[:, None], self.whitened(to), x)

    def _with_gradient(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """The log density in the whitened space, and its gradient."""
        with torch.enable_grad():
            u = u.detach().requires_grad_()
            x, ladj = self.whitened.call_and_ladj(u)
            log_p = self.log_density(x) + ladj
            (gradient,) = torch.autograd.grad(log_p.sum(), u)
        return log_p.detach(), gradient


def log_normal(z: Tensor) -> Tensor:
    """The log density of the base, without Pyro's checks of its values."""
    return -0.5 * (z.square().sum(-1) + z.shape[-1] * math.log(2 * math.pi))


def truncated(log_weights: Tensor) -> Tensor:
    r"""Weights, cut off at `\sqrt n` times their mean, that sum to 1.

    Source: Ionides 2008, "Truncated importance sampling", Journal of Computational and Graphical Statistics
    17.
    """
    largest = log_weights.logsumexp(0) - 0.5 * math.log(len(log_weights))
    return log_weights.clamp(max=largest).softmax(0)
