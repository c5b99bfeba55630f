"""Fit a guide to a model, and say how good it has become."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from pyroflows.infer.flow_objective import FlowObjective
from pyroflows.infer.guides import AutoFlow
from pyroflows.infer.objectives import GuideObjective, Objective
from pyroflows.infer.rounds import FitResult, Rounds

__all__ = ["FitResult", "fit_guide"]


def fit_guide(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    max_steps: int = 2000,
    num_particles: int | None = None,
    seed: int = 0,
    objective: Any = None,
    progress_bar: bool = True,
    **kwargs: Any,
) -> FitResult:
    r"""Fit a guide to a model, in place, without anything to tune.

    .. math:: \max_\phi \; \mathbb{E}_{q_\phi(z)} [\log p(x, z) - \log q_\phi(z)] \text{ (nats)}

    by Adam (of the networks' matrices in an `AutoFlow` by Muon) with the path gradient, in rounds of some
    hundred steps. In each the step size decays by a cosine and the weights of the last quarter are averaged.
    After each the importance weights of fresh draws are looked at: they say whether the guide is good enough
    to stop, and which of the rounds' guides is best.
    Where the first round of an `AutoFlow` is bad, it is started elsewhere, too, if that promises more. Its
    last round is by the forward divergence, with draws chosen by their weights, unless k-hat is low; where
    that stays 0.5 or more there are some of these: half of the steps is kept for them. A guide that is
    far has one long round of these, with chains of draws that find what the bound leaves out.

    The random state of the caller is left as it was, and the param store is touched as `SVI` would.

    Args:
        model: The model. Its own parameters are fitted too.
        guide: The guide: an `AutoFlow`, or any other of Pyro's.
        args: What both are called with.
        max_steps: The largest number of steps; a quarter more where it starts again.
        num_particles: Number of draws of a step, by default 128, or 16 where the model does not broadcast.
        seed: Of the draws.
        objective: One of Pyro's ELBOs to use instead, `TraceMeanField_ELBO()`, say. The guide has to be one
            of all latent variables: of any that an objective sums out the diagnosis would know nothing.
        progress_bar: Whether to show one, with the evidence lower bound.
        kwargs: What both are called with.

    Raises:
        ValueError: A number is not positive, the guide has nothing to learn, or (of an `AutoFlow`) the model
            has a latent variable that it can't be a guide of.
        FloatingPointError: The evidence lower bound is not finite, step after step.

    Source: Roeder et al. 2017, "Sticking the Landing", arXiv 1703.09194; Vaitl et al. 2022, "Gradients
    should stay on path", arXiv 2207.08219 (the forward divergence); Yao et al. 2018, "Yes, but did it work?",
    arXiv 1802.02538 (the diagnosis).

    Example:
        >>> import pyro
        >>> import pyro.distributions as dist
        >>> from pyroflows.infer import AutoFlow
        >>> def model():
        ...     z = pyro.sample("z", dist.LogNormal(0.0, 1.0))
        ...     pyro.sample("x", dist.Normal(z, 0.1), obs=torch.tensor(2.0))
        >>> guide = AutoFlow(model)
        >>> result = fit_guide(model, guide, progress_bar=False)
        >>> result.khat < 0.7, round(guide.median()["z"].item(), 2)
        (True, 1.99)
    """
    for name, number in {"max_steps": max_steps, "num_particles": num_particles}.items():
        if number is not None and number < 1:
            raise ValueError(f"fit_guide expected {name} of at least 1, got {number}")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        target: Objective
        if isinstance(guide, AutoFlow) and objective is None:
            target = FlowObjective(guide, args, kwargs, num_particles)
        else:
            target = GuideObjective(model, guide, args, kwargs, num_particles, objective)
        return Rounds(target, max_steps, progress_bar).run()
