"""What a guide is fitted by: losses of its parameters, and the weights of its draws."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.poutine import Trace
from torch import Tensor

from pyroflows.infer.diagnostics import draw, latent_names
from pyroflows.infer.elbo import TraceSTL_ELBO
from pyroflows.infer.guides import AutoFlow
from pyroflows.infer.normals import without_validation
from pyroflows.infer.unconstrained import can_fail, learned

__all__ = ["FlowObjective", "GuideObjective", "Objective"]

# Draws of a step, at once where the model broadcasts, one by one where not; and for each of them those of
# which the forward divergence chooses, in some steps from the same ones.
_TOGETHER, _ALONE = 128, 16
_CHOICE_TOGETHER, _CHOICE_ALONE = 64, 16
_STEPS_OF_CHOICE = 16

# Of a guide that is far: the steps between two moves of the chains, the draws that each of them may move to,
# the nats below the mean weight from which on a draw is astray, and the weight of such a one.
_STEPS_OF_MOVE, _PROPOSALS, _ASTRAY, _PULL = 24, 4, 10.0, 0.08


class Objective:
    """What `fit_guide` makes small.

    Attributes:
        parameters: What is learned.
        lr: The largest step size.
        max_norm: The gradient's largest norm.
        learns_model: Whether some of what is learned is the model's.
        forward_lr: The largest step size of `forward_loss`, if there is one.
        together: Whether the model is run for many draws at once, which makes them cheap.
    """

    parameters: list[Tensor]
    lr: float
    max_norm: float
    learns_model = False
    forward_lr: float | None = None
    together = True

    def loss(self) -> Tensor:
        """The negative evidence lower bound, in nats, with its gradient."""
        raise NotImplementedError

    def forward_loss(self, far: bool) -> tuple[Tensor, Tensor]:
        """A loss with the gradient of the forward divergence, and that of `loss` without one.

        Where the guide is `far`, parts of the posterior may be all but without its draws.
        """
        raise NotImplementedError

    def log_weights(self, n: int) -> Tensor:
        """`log p(x, z) - log q(z)` of `n` draws, in nats."""
        raise NotImplementedError

    def start_elsewhere(self, only_better: bool) -> bool:
        """Begin again from another start, if there is one (and it promises more); whether it is so."""
        return False

    def state(self) -> list[Tensor]:
        """All that a guide is made of."""
        return self.parameters


class GuideObjective(Objective):
    """One of Pyro's ELBOs, of any model and guide: with the path gradient where the guide has one."""

    lr, max_norm = 1e-2, 100.0

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        num_particles: int | None = None,
        elbo: Any = None,
    ) -> None:
        self.model, self.guide, self.args, self.kwargs = model, guide, args, kwargs
        with torch.no_grad(), poutine.block():
            of_guide = poutine.trace(guide).get_trace(*args, **kwargs)
        chosen, self.together = self._choose(of_guide, num_particles)
        self.elbo = chosen if elbo is None else elbo
        with torch.no_grad(), poutine.trace(param_only=True) as seen:
            self.elbo.loss(model, guide, *args, **kwargs)
        self.parameters = learned(seen.trace)
        self.learns_model = len(self.parameters) > len(learned(of_guide))
        if not self.parameters:
            raise ValueError(f"fit_guide expected a guide or a model with parameters, got none in {guide}")
        # A guide that can't be judged is refused before it is fitted.
        self.log_weights(2)

    def _choose(self, of_guide: Trace, num_particles: int | None) -> tuple[Any, bool]:
        """The path gradient where all draws have it, and draws in a plate where the model broadcasts."""
        distributions: list[Any] = [of_guide.nodes[name]["fn"] for name in latent_names(of_guide)]
        kind = TraceSTL_ELBO if all(d.has_rsample for d in distributions) else Trace_ELBO
        try:
            together = kind(num_particles=num_particles or _TOGETHER, vectorize_particles=True)
            with torch.no_grad(), poutine.block():
                together.loss(self.model, self.guide, *self.args, **self.kwargs)
            return together, True
        except can_fail:
            return kind(num_particles=num_particles or _ALONE), False

    def loss(self) -> Tensor:
        return self.elbo.differentiable_loss(self.model, self.guide, *self.args, **self.kwargs)

    def log_weights(self, n: int) -> Tensor:
        draws = draw(
            self.model, self.guide, *self.args, num_samples=n, vectorize=self.together, **self.kwargs
        )
        return draws.log_weights


class FlowObjective(Objective):
    r"""The evidence lower bound of an `AutoFlow`, in the unconstrained space.

    .. math:: -\mathbb{E}_z [\log p(x, f(z)) - \log q(f(z))]

    with the path gradient: the flow's parameters act through the draw alone. It is what `TraceSTL_ELBO`
    estimates of the same guide, in about half of the time, since neither the guide nor its parameters go
    through Pyro's messages.
    """

    lr, max_norm = 5e-3, 1.0

    def __init__(
        self, guide: AutoFlow, args: tuple[Any, ...], kwargs: dict[str, Any], num_particles: int | None = None
    ) -> None:
        self.guide, self.args, self.kwargs = guide, args, kwargs
        log_density = guide.log_density(*args, **kwargs)
        self.transform, self.base = guide.get_transform(), guide.get_base_dist()
        z = self.base.sample((3,))
        with torch.no_grad():
            self.together = log_density.broadcasts(self.transform(z))
            without_validation(log_density)(self.transform(z[0]))
        self.log_density = without_validation(log_density if self.together else log_density.one_by_one)
        self.particles = num_particles or (_TOGETHER if self.together else _ALONE)
        self.candidates = self.particles * (_CHOICE_TOGETHER if self.together else _CHOICE_ALONE)
        self.of_flow = [p for p in self.transform.parameters() if p.requires_grad]
        self.parameters = [*self.of_flow, *log_density.parameters]
        self.learns_model = bool(log_density.parameters)
        # A few large weights are most of what it sees, so its steps are shorter; and what a model's own
        # parameters make large is the bound alone.
        self.forward_lr = None if self.learns_model else 3e-3
        self._forward_steps = 0
        self._chains: Tensor | None = None

    def start_elsewhere(self, only_better: bool) -> bool:
        return self.guide.start_elsewhere(self.args, self.kwargs, only_better)

    def state(self) -> list[Tensor]:
        # Where it starts is in buffers.
        return [*self.parameters, *self.transform.buffers()]

    def loss(self) -> Tensor:
        return self._mean_difference(self.base.sample((self.particles,)))

    def _mean_difference(self, z: Tensor) -> Tensor:
        """The mean of `log q - log p` of draws, with the path gradient."""
        difference, kept = self._difference(z)
        if not kept.all() and kept.sum() > 0.9 * len(kept):
            # A flow may overflow far out; even a weight of zero would leave the gradient infinite there.
            difference, _ = self._difference(z[kept])
        return difference.mean()

    def _difference(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """`log q - log p` of draws, with the path gradient, and of which of them the flow is finite."""
        # Not by the call, which remembers what nobody will ask for.
        x, _ = self.transform.call_and_ladj(z)
        log_p = self.log_density(x)
        with _held(self.of_flow):
            log_q = self._log_q(x)
        return log_q - log_p, x.isfinite().all(-1) & log_q.isfinite()

    def forward_loss(self, far: bool) -> tuple[Tensor, Tensor]:
        r"""A loss with the gradient of the forward divergence, and the negative evidence lower bound.

        .. math:: \nabla_\phi \mathrm{KL}(p \| q) = \mathbb{E}_z \left[ \frac{p}{q} \,
            \frac{\partial (\log q - \log p)}{\partial x} \frac{\partial f(z)}{\partial \phi} \right],
            \qquad x = f(z)

        by draws of the guide, of which some are chosen by their importance weights; after some steps there
        are new ones to choose from. The bound is content with a guide that leaves a part of the posterior
        out, and learns nothing where it does not draw; this weighs most what it draws too seldom. As of the
        bound, a guide that is the posterior has no gradient at any draw, wherever that is from, so that the
        weights may be those of some steps ago.

        Source: Vaitl et al. 2022, "Gradients should stay on path", arXiv 2207.08219 (the gradient); Müller
        et al. 2019, "Neural importance sampling", arXiv 1808.03856 (by importance weights).
        """
        if self._forward_steps % (_STEPS_OF_MOVE if far else _STEPS_OF_CHOICE) == 0:
            self._choice = self._move_chains() if far else self._draw_choice()
        self._forward_steps += 1
        z, weights, bound = self._choice
        # Twice the draws of other steps: some are chosen many times.
        chosen = weights.multinomial(2 * self.particles, replacement=True)
        return self._mean_difference(z[chosen]), -bound

    def _draw_choice(self) -> tuple[Tensor, Tensor, Tensor]:
        r"""Draws of the base, half of them widened, their weights, and the bound by the others.

        The weights are cut off at `\sqrt n` times their mean. The wider half is there so that the tails,
        which k-hat is the shape of, are not left to chance. None is further out than the guide's own: what no
        draw of the guide reaches moves little of it.

        Source: Ionides 2008, "Truncated importance sampling", Journal of Computational and Graphical
        Statistics 17.
        """
        z = self.base.sample((self.candidates,))
        z[1::2] *= _wider(z.shape[-1])
        log_weights = self._weigh(z)
        # Where the guide has no draws its weights have no bound, and a few would be all that is seen.
        radius = z.norm(dim=-1)
        log_weights = log_weights.where(radius <= radius[::2].max(), -torch.inf)
        own = log_weights[::2]
        return z, _truncated(log_weights), own[own.isfinite()].mean()

    @torch.no_grad()
    def _move_chains(self) -> tuple[Tensor, Tensor, Tensor]:
        r"""Chains of draws that become the posterior's, a few that are astray, their weights, and the bound.

        Where few draws come to a part of the posterior, the weights of those that do are too large to be
        taken at once, and cut off they leave out what was to be found. A chain moves to one of four new draws
        of its own or stays, by their weights: where weights are large it stays for long. So the chains, all
        of the same weight, remember what was drawn seldom, and need no cutting off.

        No chain is where the posterior is not, so that nothing but what the guide lacks elsewhere tells it to
        leave. Draws there, `e^{-10}` of the mean weight and less, have a small weight for that. It is still a
        divergence that becomes small: weights `w^2 f''(w)` instead of the importance weights `w` are that
        of `f`.

        Source: Andrieu et al. 2018, "Uniform ergodicity of the iterated conditional SMC and geometric
        ergodicity of particle Gibbs samplers", Bernoulli 24 (the chains' moves); Naesseth et al. 2020,
        "Markovian score climbing", arXiv 2003.10374 (to fit by them); Wang et al. 2018, "Variational
        inference with tail-adaptive f-divergence", arXiv 1810.11943 (other weights).
        """
        z = self.base.sample((self.candidates,))
        log_weights = self._weigh(z)
        chains = self._moved(z, log_weights)
        self._chains, _ = self.transform.call_and_ladj(chains)
        finite = log_weights.isfinite()
        mean = log_weights.logsumexp(0) - math.log(len(z))
        astray = finite & (log_weights < mean - _ASTRAY)
        weights = torch.cat([torch.full_like(chains[:, 0], 1 / len(chains)), _PULL * astray / len(z)])
        return torch.cat([chains, z]), weights, log_weights[finite].mean()

    def _moved(self, z: Tensor, log_weights: Tensor) -> Tensor:
        """The chains' next states among some draws of the base, as draws of the base."""
        if self._chains is None:
            return z[_truncated(log_weights).multinomial(len(z) // _PROPOSALS, replacement=True)]
        # Where they are now that the flow is another.
        states, _ = self.transform.inv.call_and_ladj(self._chains)  # type: ignore[attr-defined]
        states = torch.cat([states[:, None], z.unflatten(0, (-1, _PROPOSALS))], 1)
        log_weights = torch.cat([self._weigh(states[:, 0])[:, None], log_weights.view(-1, _PROPOSALS)], 1)
        # One without weight is still somewhere where all five are.
        chosen = log_weights.clamp(min=torch.finfo(z.dtype).min).softmax(1).multinomial(1)
        return states.take_along_dim(chosen[..., None], 1)[:, 0]

    def log_weights(self, n: int) -> Tensor:
        return self._weigh(self.base.sample((n,)))

    @torch.no_grad()
    def _weigh(self, z: Tensor) -> Tensor:
        """The log weights of what draws of the base become."""
        x, ladj = self.transform.call_and_ladj(z)
        log_weights = self.log_density(x) - _log_normal(z) + ladj
        # Where the model has no density, or the flow overflows, a draw has no weight.
        return log_weights.where(log_weights.isfinite(), -torch.inf)

    def _log_q(self, x: Tensor) -> Tensor:
        z, ladj = self.transform.inv.call_and_ladj(x)  # type: ignore[attr-defined]
        return _log_normal(z) + ladj


def _truncated(log_weights: Tensor) -> Tensor:
    r"""Weights, cut off at `\sqrt n` times their mean, that sum to 1."""
    largest = log_weights.logsumexp(0) - 0.5 * math.log(len(log_weights))
    return log_weights.clamp(max=largest).softmax(0)


def _wider(size: int) -> float:
    """The factor that puts draws of the base further out by 1.5 standard deviations of their radius."""
    return 1 + 1.5 / (2 * size) ** 0.5


def _log_normal(z: Tensor) -> Tensor:
    """The log density of the base, without Pyro's checks of its values."""
    return -0.5 * (z.square().sum(-1) + z.shape[-1] * math.log(2 * math.pi))


@contextmanager
def _held(parameters: Sequence[Tensor]) -> Iterator[None]:
    """Parameters that are constants for a while."""
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
