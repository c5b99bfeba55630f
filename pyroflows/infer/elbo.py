"""The evidence lower bound with the path gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.poutine import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor

__all__ = ["TraceSTL_ELBO"]


class TraceSTL_ELBO(Trace_ELBO):
    r"""The evidence lower bound, with the gradient that sticks the landing.

    .. math:: \nabla_\phi \mathcal{L} = \mathbb{E}_\epsilon \left[ \nabla_z \left( \log p(x, z) -
        \log q_\phi(z) \right) \frac{\partial z_\phi(\epsilon)}{\partial \phi} \right]

    It is that of `Trace_ELBO` without the guide's score, `\nabla_\phi \log q_\phi(z)` at a fixed `z`, whose
    mean is zero. Where the guide is the posterior each draw's gradient is zero, and not their mean alone.

    The score is that of the guide run once more on the same values without their gradients, so any guide will
    do whose draws are reparameterized: modules, flows, autoguides, plates and subsampling.

    Args:
        num_particles: Number of draws.
        max_plate_nesting: As `Trace_ELBO`'s.
        vectorize_particles: Whether the draws are made at once, in a plate.

    Raises:
        ValueError: The guide has a latent variable that is not reparameterized.

    Source: Roeder et al. 2017, "Sticking the Landing", arXiv 1703.09194, eq. 7 and algorithm 1.

    Example:
        >>> import pyro
        >>> import torch
        >>> import pyro.distributions as dist
        >>> def model():
        ...     pyro.sample("z", dist.Normal(0.0, 1.0))
        >>> def guide():
        ...     pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))
        >>> loss = TraceSTL_ELBO().differentiable_loss(model, guide)
        >>> torch.autograd.grad(loss, pyro.get_param_store()._params["loc"])[0].item()
        0.0
    """

    def _get_trace(
        self, model: Callable[..., Any], guide: Callable[..., Any], args: Any, kwargs: Any
    ) -> tuple[Trace, Trace]:
        model_trace, guide_trace = super()._get_trace(model, guide, args, kwargs)
        fixed = guide_trace.copy()
        for name, site in guide_trace.nodes.items():
            if site["type"] != "sample" or site["is_observed"] or site_is_subsample(site):
                continue
            if not site["fn"].has_rsample:
                raise ValueError(
                    f"TraceSTL_ELBO expected a guide of reparameterized draws, got {site['fn']} for "
                    f"{name!r}: use Trace_ELBO, or sum the variable out"
                )
            fixed.nodes[name] = {**site, "value": site["value"].detach()}
        score_trace = poutine.trace(poutine.replay(guide, trace=fixed)).get_trace(*args, **kwargs)
        scored: Any = guide_trace
        scored.score = score_trace.log_prob_sum()
        return model_trace, guide_trace

    def _differentiable_loss_particle(
        self, model_trace: Trace, guide_trace: Any
    ) -> tuple[float | Tensor, float | Tensor]:
        loss, surrogate = super()._differentiable_loss_particle(model_trace, guide_trace)
        score = guide_trace.score
        return loss, surrogate - (score - score.detach()) if isinstance(score, Tensor) else surrogate
