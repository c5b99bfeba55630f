"""What a guide is fitted by: losses of its parameters, and the weights of its draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.poutine import Trace
from torch import Tensor
from torch.optim import Optimizer

from pyroflows.infer.diagnostics import draw, latent_names
from pyroflows.infer.elbo import TraceSTL_ELBO
from pyroflows.infer.unconstrained import can_fail, learned

__all__ = ["DRAWS_ALONE", "DRAWS_TOGETHER", "GuideObjective", "Objective"]

# Draws of a step, at once where the model broadcasts, one by one where not.
DRAWS_TOGETHER, DRAWS_ALONE = 128, 16


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

    def optimizers(self, lr: float) -> list[Optimizer]:
        """What takes the steps of a round."""
        return [torch.optim.Adam(self.parameters, lr=lr, fused=True)]


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
            together = kind(num_particles=num_particles or DRAWS_TOGETHER, vectorize_particles=True)
            with torch.no_grad(), poutine.block():
                together.loss(self.model, self.guide, *self.args, **self.kwargs)
            return together, True
        except can_fail:
            return kind(num_particles=num_particles or DRAWS_ALONE), False

    def loss(self) -> Tensor:
        return self.elbo.differentiable_loss(self.model, self.guide, *self.args, **self.kwargs)

    def log_weights(self, n: int) -> Tensor:
        draws = draw(
            self.model, self.guide, *self.args, num_samples=n, vectorize=self.together, **self.kwargs
        )
        return draws.log_weights
