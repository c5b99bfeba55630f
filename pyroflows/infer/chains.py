"""Chains that become a posterior's draws, by a flow that is fitted to them on the way."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from pyroflows.infer.unconstrained import can_fail

__all__ = ["Chains", "truncated"]

# Draws that a chain may jump to at a move.
_PROPOSALS = 4

# Steps of a walk, the share of walks that is to be accepted, and how fast the step size follows it.
_LEAPS, _ACCEPTED, _RATE = 3, 0.7, 0.3

# Of the furthest proposal's distance from the base's mean, from where on a state is lost.
_LOST = 10.0


class Chains:
    """States that walk, and jump to draws of a flow by their weights, until they are the posterior's draws.

    A walk is a step of Hamiltonian Monte Carlo in the space of the base, where the posterior is almost
    standard: it explores what is near, such as a tail that the flow has the wrong shape of. To jump is to
    choose between the state and four draws of the flow by their importance weights: it finds what a walk does
    not come to. Both leave the posterior as it is, whatever the flow.

    Source: Samsonov et al. 2022, "Local-global MCMC kernels: the best of both worlds", arXiv 2111.02702;
    Andrieu et al. 2018, "Uniform ergodicity of the iterated conditional SMC and geometric ergodicity of
    particle Gibbs samplers", Bernoulli 24 (to jump); Neal 2011, "MCMC using Hamiltonian dynamics", arXiv
    1206.1901 (to walk, with steps of random size).

    Arguments:
        weigh: What draws of the base become, and the log weights `log p(x) - log q(x)` of that.
        invert: The draws of the base that become some values.

    Attributes:
        x: The states, `(chains, size)`, once there are any.
        step_size: Of the walks, in the base's standard deviations.
    """

    def __init__(
        self, weigh: Callable[[Tensor], tuple[Tensor, Tensor]], invert: Callable[[Tensor], Tensor]
    ) -> None:
        self.weigh, self.invert = weigh, invert
        self.x: Tensor | None = None
        self.step_size = 0.3

    def move(self, z: Tensor, x: Tensor, log_weights: Tensor) -> Tensor:
        """Let all walk, and jump to some draws of the base; the states as such draws, `(chains, size)`."""
        if self.x is None:
            first = truncated(log_weights).multinomial(len(z) // _PROPOSALS, replacement=True)
            self.x = x[first]
            return z[first]
        # Where they are now that the flow is another.
        of_states = self.invert(self.x)
        try:
            of_states, x_states, of_staying = self.walk(of_states)
        except can_fail:
            # Some models raise an error far out, where a step that is too long ends; all stay then.
            self.step_size /= 2
            x_states, of_staying = self.weigh(of_states)
        # Further out a flow is not to be trusted: a state may not even be what the flow makes of its inverse.
        lost = of_states.norm(dim=-1) > _LOST * z.norm(dim=-1).max()
        of_staying = of_staying.where(~lost, -torch.inf)
        log_weights = torch.cat([of_staying[:, None], log_weights.view(-1, _PROPOSALS)], 1)
        # One without weight is still somewhere where all five are.
        chosen = log_weights.clamp(min=torch.finfo(z.dtype).min).softmax(1).multinomial(1)[..., None]

        def jump(states: Tensor, draws: Tensor) -> Tensor:
            both = torch.cat([states[:, None], draws.unflatten(0, (-1, _PROPOSALS))], 1)
            return both.take_along_dim(chosen, 1)[:, 0]

        self.x = jump(x_states, x)
        return jump(of_states, z)

    def walk(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A step of Hamiltonian Monte Carlo from draws of the base, what they become, and its log weights."""
        x, log_weights, gradient = self._with_gradient(z)
        start = torch.randn_like(z)
        # Of another size for each, so that none is in step with what it is in.
        size = self.step_size * (0.5 + torch.rand_like(z[:, :1]))
        to, momentum = z, start + size / 2 * gradient
        for _ in range(_LEAPS):
            to = to + size * momentum
            x_to, of_to, gradient = self._with_gradient(to)
            momentum = momentum + size * gradient
        momentum = momentum - size / 2 * gradient
        before, after = ((a.square() + b.square()).sum(-1) / 2 for a, b in ((z, start), (to, momentum)))
        # None where a step ended without a density.
        accept = (of_to - after - log_weights + before).exp().nan_to_num(0.0).clamp(max=1.0)
        self.step_size *= math.exp(_RATE * (accept.mean().item() - _ACCEPTED))
        taken = torch.rand_like(accept) < accept
        return (
            torch.where(taken[:, None], to, z),
            torch.where(taken[:, None], x_to, x),
            torch.where(taken, of_to, log_weights),
        )

    def _with_gradient(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What draws of the base become, its log weights, and the gradient of the posterior's log density."""
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            x, log_weights = self.weigh(z)
            (gradient,) = torch.autograd.grad(log_weights.sum(), z)
        return x.detach(), log_weights.detach(), gradient - z.detach()


def truncated(log_weights: Tensor) -> Tensor:
    r"""Weights, cut off at `\sqrt n` times their mean, that sum to 1.

    Source: Ionides 2008, "Truncated importance sampling", Journal of Computational and Graphical Statistics
    17.
    """
    largest = log_weights.logsumexp(0) - 0.5 * math.log(len(log_weights))
    return log_weights.clamp(max=largest).softmax(0)
