"""How good a guide is, and draws that make up for what it lacks."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pyro import poutine
from pyro.infer.importance import vectorized_importance_weights
from pyro.poutine import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyroflows._extras import needs_fit_extra

__all__ = ["Draws", "draw", "importance_resample", "psis_khat"]


@dataclass(frozen=True)
class Draws:
    """Draws of a guide, and how the model weighs them.

    Attributes:
        values: Each latent variable of the model, `(n, *shape)`.
        log_weights: `log p(x, z) - log q(z)` of each draw, `(n,)`, in nats.
    """

    values: dict[str, Tensor]
    log_weights: Tensor

    @property
    def elbo(self) -> float:
        """The evidence lower bound, in nats."""
        return self.log_weights.mean().item()


@torch.no_grad()
def draw(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    num_samples: int = 1000,
    vectorize: bool = True,
    **kwargs: Any,
) -> Draws:
    """Draw from a guide, and weigh the draws by the model.

    Args:
        model: The model.
        guide: The guide.
        args: What both are called with.
        num_samples: Number of draws.
        vectorize: Whether model and guide are run once for all draws, in a plate, or once for each.
        kwargs: What both are called with.

    Raises:
        ValueError: There are fewer than two draws.

    Example:
        >>> import pyro
        >>> import pyro.distributions as dist
        >>> def model():
        ...     pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        >>> draws = draw(model, model, num_samples=10)
        >>> draws.values["z"].shape, draws.elbo
        (torch.Size([10, 3]), 0.0)
    """
    if num_samples < 2:
        raise ValueError(f"expected num_samples of at least 2, got {num_samples}")
    if not vectorize:
        traces = [_one(model, guide, args, kwargs) for _ in range(num_samples)]
        values = {
            name: torch.stack([m.nodes[name]["value"] for m, _ in traces]) for name in _latent(traces[0][0])
        }
        return Draws(values, torch.stack([m.log_prob_sum() - g.log_prob_sum() for m, g in traces]))
    single, single_guide = _one(model, guide, args, kwargs)
    nesting = max(_plate_nesting(single), _plate_nesting(single_guide))
    log_weights, model_trace, _ = vectorized_importance_weights(
        model, guide, *args, num_samples=num_samples, max_plate_nesting=nesting, **kwargs
    )
    # Between the draws and a variable's own plates are dimensions of size 1, of plates that it is not in.
    values = {
        name: model_trace.nodes[name]["value"].reshape(num_samples, *single.nodes[name]["value"].shape)
        for name in _latent(single)
    }
    return Draws(values, log_weights)


def psis_khat(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    num_samples: int = 1000,
    vectorize: bool = True,
    **kwargs: Any,
) -> float:
    r"""The shape of the tail of the importance weights, by ArviZ's Pareto smoothing.

    Below 0.5 the guide's draws, weighted, give the posterior's moments with few draws, below 0.7 with more;
    from 0.7 on the guide is too far from the posterior. It is `-inf` where all weights are equal.

    Args:
        model: The model.
        guide: The guide.
        args: What both are called with.
        num_samples: Number of draws.
        vectorize: Whether they are made in a plate.
        kwargs: What both are called with.

    Source: Yao et al. 2018, "Yes, but Did It Work?", arXiv 1802.02538, section 2.2; Vehtari et al. 2024,
    "Pareto Smoothed Importance Sampling", arXiv 1507.02646.

    Example:
        >>> import pyro
        >>> import pyro.distributions as dist
        >>> def model():
        ...     pyro.sample("z", dist.Normal(0.0, 1.0))
        >>> def guide():
        ...     pyro.sample("z", dist.Normal(0.0, 0.9))
        >>> psis_khat(model, guide) < 0.7
        True
    """
    return _smooth(draw(model, guide, *args, num_samples=num_samples, vectorize=vectorize, **kwargs))[1]


def importance_resample(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    n: int,
    *args: Any,
    num_samples: int | None = None,
    vectorize: bool = True,
    **kwargs: Any,
) -> dict[str, Tensor]:
    """Draws of the posterior: the guide's, taken anew by their Pareto-smoothed weights.

    Args:
        model: The model.
        guide: The guide.
        n: Number of draws that are returned.
        args: What both are called with.
        num_samples: Number of draws of the guide, by default ten times as many.
        vectorize: Whether they are made in a plate.
        kwargs: What both are called with.

    Returns:
        Each latent variable of the model, `(n, *shape)`.

    Source: Vehtari et al. 2024, "Pareto Smoothed Importance Sampling", arXiv 1507.02646, section 3.

    Example:
        >>> import pyro
        >>> import pyro.distributions as dist
        >>> def model():
        ...     pyro.sample("z", dist.Normal(0.0, 1.0))
        >>> def guide():
        ...     pyro.sample("z", dist.Normal(0.1, 1.1))
        >>> importance_resample(model, guide, 50)["z"].shape
        torch.Size([50])
    """
    num_samples = 10 * n if num_samples is None else num_samples
    draws = draw(model, guide, *args, num_samples=num_samples, vectorize=vectorize, **kwargs)
    log_weights, _ = _smooth(draws)
    chosen = torch.multinomial(log_weights.softmax(0), n, replacement=True)
    return {name: value[chosen] for name, value in draws.values.items()}


def _smooth(draws: Draws) -> tuple[Tensor, float]:
    """The smoothed log-weights, and the shape of their tail."""
    with needs_fit_extra("Pareto smoothing"), warnings.catch_warnings():
        # Of what its next version will be called.
        warnings.simplefilter("ignore", FutureWarning)
        import arviz
    log_weights = draws.log_weights.double().cpu().numpy()
    if np.ptp(log_weights) == 0:
        return draws.log_weights, -np.inf
    if not np.isfinite(log_weights.max()):
        return draws.log_weights, np.inf
    smoothed, khat = arviz.psislw(log_weights)
    return torch.as_tensor(np.asarray(smoothed)).to(draws.log_weights), float(khat)


def _one(model: Any, guide: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """The model's trace and the guide's, of one draw."""
    guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
    model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
    return model_trace, guide_trace


def _plate_nesting(trace: Trace) -> int:
    """The number of dimensions, from the right, that the trace's plates take."""
    frames = [frame for site in trace.nodes.values() for frame in site.get("cond_indep_stack", ())]
    return max((-frame.dim for frame in frames if frame.dim is not None), default=0)


def _latent(model_trace: Trace) -> list[str]:
    return [
        name
        for name, site in model_trace.nodes.items()
        if site["type"] == "sample" and not site["is_observed"] and not site_is_subsample(site)
    ]
