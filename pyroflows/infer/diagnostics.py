"""How good a guide is, and draws that make up for what it lacks."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro.distributions as dist
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


@dataclass(frozen=True)
class Traces:
    """The model's traces of draws: one of all of them, in a plate, or one of each.

    Attributes:
        num_samples: Number of draws, at least two.
        single: Of one draw, which tells the shapes.
        traces: Of the draws.
    """

    num_samples: int
    single: Trace
    traces: list[Trace]

    def of(self, name: str, read: Callable[[Any], Tensor] = lambda site: site["value"]) -> Tensor:
        """What is read at a site, by default its value, of each draw: `(n, *shape)`."""
        found = [read(trace.nodes[name]) for trace in self.traces]
        if len(found) > 1:
            return torch.stack(found)
        one, (every,) = read(self.single.nodes[name]), found
        # Between the draws and a variable's own plates are dimensions of size 1, of plates it is not in.
        if every.numel() == self.num_samples * one.numel():
            return every.reshape(self.num_samples, *one.shape)
        if every.shape == one.shape and every.equal(one):
            return every.expand(self.num_samples, *one.shape)
        raise ValueError(
            f"expected {name!r} to be {tuple(one.shape)} for each of {self.num_samples} draws in a plate, "
            f"got {tuple(every.shape)} for all: let the model broadcast from the left, or use vectorize=False"
        )


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
        ValueError: There are fewer than two draws, or the guide leaves out a latent variable.

    Example:
        >>> import pyro
        >>> import pyro.distributions as dist
        >>> def model():
        ...     pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        >>> draws = draw(model, model, num_samples=10)
        >>> draws.values["z"].shape, draws.elbo
        (torch.Size([10, 3]), 0.0)
    """
    traces, log_weights = trace_draws(model, guide, args, kwargs, num_samples, vectorize)
    return Draws({name: traces.of(name) for name in latent_names(traces.single)}, log_weights)


def trace_draws(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    num_samples: int,
    vectorize: bool,
) -> tuple[Traces, Tensor]:
    """The traces of `draw`, and the draws' log-weights."""
    if num_samples < 2:
        raise ValueError(f"expected num_samples of at least 2, got {num_samples}")
    single, single_guide = _one(model, guide, args, kwargs)
    # The model would draw it from the prior, whose density would stay in the weight.
    left = [name for name in latent_names(single) if name not in single_guide.nodes]
    if left:
        raise ValueError(
            f"expected a guide of all latent variables of the model, got one without {left}: sum them out in "
            "the model, or give the guide a site for each"
        )
    if not vectorize:
        others = (_one(model, guide, args, kwargs) for _ in range(num_samples - 1))
        pairs = [(single, single_guide), *others]
        log_weights = torch.stack([m.log_prob_sum() - g.log_prob_sum() for m, g in pairs])
        return Traces(num_samples, single, [model_trace for model_trace, _ in pairs]), log_weights
    nesting = max(plate_nesting(single), plate_nesting(single_guide))
    log_weights, model_trace, _ = vectorized_importance_weights(
        model, guide, *args, num_samples=num_samples, max_plate_nesting=nesting, **kwargs
    )
    return Traces(num_samples, single, [model_trace]), log_weights


def psis_khat(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    num_samples: int = 10_000,
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
        num_samples: Number of draws. With a thousand, k-hat has a standard error of about 0.15.
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
    draws = draw(model, guide, *args, num_samples=num_samples, vectorize=vectorize, **kwargs)
    return pareto_smooth(draws.log_weights)[1]


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
    log_weights, _ = pareto_smooth(draws.log_weights)
    chosen = torch.multinomial(log_weights.softmax(0), n, replacement=True)
    return {name: value[chosen] for name, value in draws.values.items()}


def pareto_smooth(log_weights: Tensor) -> tuple[Tensor, float]:
    """The smoothed log-weights, and the shape of their tail."""
    with needs_fit_extra("Pareto smoothing"), warnings.catch_warnings():
        # Of what its next version will be called.
        warnings.simplefilter("ignore", FutureWarning)
        import arviz
    raw = log_weights.double().cpu().numpy()
    if np.ptp(raw) == 0:
        return log_weights, -np.inf
    if not np.isfinite(raw.max()):
        return log_weights, np.inf
    smoothed, khat = arviz.psislw(raw)
    return torch.as_tensor(np.asarray(smoothed)).to(log_weights), float(khat)


def _one(model: Any, guide: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """The model's trace and the guide's, of one draw."""
    guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
    model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
    return model_trace, guide_trace


def plate_nesting(trace: Trace) -> int:
    """The number of dimensions, from the right, that the trace's plates take."""
    return max((-frame.dim for frame in _frames(trace) if frame.dim is not None), default=0)


def _frames(trace: Trace) -> list[Any]:
    return [frame for site in trace.nodes.values() for frame in site.get("cond_indep_stack", ())]


def innermost(distribution: Any) -> Any:
    """The distribution within those that only declare events or mask."""
    while isinstance(distribution, dist.Independent | dist.MaskedDistribution):
        distribution = distribution.base_dist
    return distribution


def check_takes_all(what: str, trace: Trace) -> None:
    """Raise where a plate subsamples: the model then is one of other data each time."""
    for frame in _frames(trace):
        if frame.full_size is not None and frame.full_size != frame.size:
            raise ValueError(
                f"{what} expected a model of all its data, got a plate {frame.name!r} that takes "
                f"{frame.size} of {frame.full_size}: call the model so that it takes all"
            )


def latent_names(trace: Trace) -> list[str]:
    """The names of a model's latent variables."""
    return [
        name
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not site["is_observed"] and not site_is_subsample(site)
    ]
