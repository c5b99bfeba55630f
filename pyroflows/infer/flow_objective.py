"""What an `AutoFlow` is fitted by: its bound, and the forward divergence by draws of it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from pyroflows.infer.chains import Chains, log_normal, truncated
from pyroflows.infer.guides import AutoFlow
from pyroflows.infer.muon import Muon
from pyroflows.infer.normals import without_validation
from pyroflows.infer.objectives import DRAWS_ALONE, DRAWS_TOGETHER, Objective

__all__ = ["FlowObjective"]

# For each draw of a step those of which the forward divergence chooses, and the steps with the same ones.
_CHOICE_TOGETHER, _CHOICE_ALONE, _STEPS_OF_CHOICE = 64, 16, 16

# Steps of a walk of the chains: about as far as NUTS goes, where draws are cheap.
_LEAPS_TOGETHER, _LEAPS_ALONE = 128, 8

# Of a guide that is far: the nats below the mean weight from which on a draw is astray, and its weight.
_ASTRAY, _PULL = 10.0, 0.08

# The smaller side of the largest matrix for Muon, whose time grows with its square.
_WIDEST = 128


class FlowObjective(Objective):
    r"""The evidence lower bound of an `AutoFlow`, in the unconstrained space.

    .. math:: -\mathbb{E}_z [\log p(x, f(z)) - \log q(f(z))]

    with the path gradient: the flow's parameters act through the draw alone. It is what `TraceSTL_ELBO`
    estimates of the same guide, in about half of the time, since neither the guide nor its parameters go
    through Pyro's messages.
    """

    lr, max_norm = 1e-2, 1.0

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
        self.particles = num_particles or (DRAWS_TOGETHER if self.together else DRAWS_ALONE)
        self.candidates = self.particles * (_CHOICE_TOGETHER if self.together else _CHOICE_ALONE)
        of_flow = [p for p in self.transform.parameters() if p.requires_grad]
        self.parameters = [*of_flow, *log_density.parameters]
        self.learns_model = bool(log_density.parameters)
        # A few large weights are most of what it sees, so its steps are shorter; and what a model's own
        # parameters make large is the bound alone.
        self.forward_lr = None if self.learns_model else 3e-3
        self._forward_steps = 0
        leaps = _LEAPS_TOGETHER if self.together else _LEAPS_ALONE
        self.chains = Chains(self.log_density, self.transform, guide.whitened, leaps)

    def start_elsewhere(self, only_better: bool) -> bool:
        return self.guide.start_elsewhere(self.args, self.kwargs, only_better)

    def state(self) -> list[Tensor]:
        # Where it starts is in buffers.
        return [*self.parameters, *self.transform.buffers()]

    def optimizers(self, lr: float) -> list[Optimizer]:
        # Of networks alone: the elements of a whitening's matrix, say, have each a scale of their own.
        of_networks = [p for name, p in self.transform.named_parameters() if "conditioner" in name]
        matrices = [p for p in of_networks if p.requires_grad and p.dim() == 2 and min(p.shape) <= _WIDEST]
        chosen = {id(matrix) for matrix in matrices}
        others = [p for p in self.parameters if id(p) not in chosen]
        adam = torch.optim.Adam(others, lr=lr, fused=True)
        return [adam, Muon(matrices, lr=lr)] if matrices else [adam]

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
        x, ladj, score = self.transform.call_and_score(z, -z)
        log_p, log_q = self.log_density(x), (log_normal(z) - ladj).detach()
        # Of value zero.
        path = (score * (x - x.detach())).sum(-1)
        return log_q + path - log_p, path.isfinite() & log_q.isfinite()

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
        if self._forward_steps % _STEPS_OF_CHOICE == 0:
            self._choice = self._move_chains() if far else self._draw_choice()
        self._forward_steps += 1
        z, weights, bound = self._choice
        # Twice the draws of other steps: some are chosen many times.
        chosen = weights.multinomial(2 * self.particles, replacement=True)
        return self._mean_difference(z[chosen]), -bound

    @torch.no_grad()
    def _draw_choice(self) -> tuple[Tensor, Tensor, Tensor]:
        r"""Draws of the base, half of them widened, their weights, and the bound by the others.

        The weights are cut off at `\sqrt n` times their mean. The wider half is there so that the tails,
        which k-hat is the shape of, are not left to chance. None is further out than the guide's own: what no
        draw of the guide reaches moves little of it.
        """
        z = self.base.sample((self.candidates,))
        z[1::2] *= _wider(z.shape[-1])
        _, log_weights = self._weigh(z)
        # Where the guide has no draws its weights have no bound, and a few would be all that is seen.
        radius = z.norm(dim=-1)
        log_weights = log_weights.where(radius <= radius[::2].max(), -torch.inf)
        own = log_weights[::2]
        return z, truncated(log_weights), own[own.isfinite()].mean()

    @torch.no_grad()
    def _move_chains(self) -> tuple[Tensor, Tensor, Tensor]:
        r"""Chains of draws that become the posterior's, a few that are astray, their weights, and the bound.

        Where few draws come to a part of the posterior, the weights of those that do are too large to be
        taken at once, and cut off they leave out what was to be found. Chains (`Chains`), all that the flow
        can learn from of the same weight, remember what was drawn seldom.

        No chain is where the posterior is not, so that nothing but what the guide lacks elsewhere tells it to
        leave. Draws there, `e^{-10}` of the mean weight and less, have a small weight for that. It is still a
        divergence that becomes small: weights `w^2 f''(w)` instead of the importance weights `w` are that
        of `f`.

        Source: Gabrié et al. 2022, "Adaptive Monte Carlo augmented with normalizing flows", arXiv 2105.12603
        (to fit by chains that move by the flow); Wang et al. 2018, "Variational inference with tail-adaptive
        f-divergence", arXiv 1810.11943 (other weights).
        """
        z = self.base.sample((self.candidates,))
        x, log_weights = self._weigh(z)
        of_chains, near = self.chains.move(z, x, log_weights)
        finite = log_weights.isfinite()
        mean = log_weights.logsumexp(0) - math.log(len(z))
        astray = finite & (log_weights < mean - _ASTRAY)
        weights = torch.cat([near / len(near), _PULL * astray / len(z)])
        return torch.cat([of_chains, z]), weights, log_weights[finite].mean()

    @torch.no_grad()
    def log_weights(self, n: int) -> Tensor:
        return self._weigh(self.base.sample((n,)))[1]

    def _weigh(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """What draws of the base become, and the log weights of it."""
        x, ladj = self.transform.call_and_ladj(z)
        log_weights = self.log_density(x) - log_normal(z) + ladj
        # Where the model has no density, or the flow overflows, a draw has no weight.
        return x, log_weights.where(log_weights.isfinite(), -torch.inf)


def _wider(size: int) -> float:
    """The factor that puts draws of the base further out by 1.5 standard deviations of their radius."""
    return 1 + 1.5 / (2 * size) ** 0.5
