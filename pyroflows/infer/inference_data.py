"""A guide's draws as ArviZ's `InferenceData`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine import Trace
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from pyroflows._extras import needs_fit_extra
from pyroflows.infer.diagnostics import (
    Traces,
    check_takes_all,
    latent_names,
    pareto_smooth,
    plate_nesting,
    trace_draws,
)
from pyroflows.infer.flat import FlatPriors

if TYPE_CHECKING:
    from arviz import InferenceData

__all__ = ["to_inference_data"]


@torch.no_grad()
def to_inference_data(
    model: Callable[..., Any],
    guide: Callable[..., Any] | Mapping[str, Tensor],
    *args: Any,
    num_samples: int = 1000,
    num_chains: int = 1,
    vectorize: bool = True,
    **kwargs: Any,
) -> InferenceData:
    r"""Draws of a guide, or of the posterior, with what the model says of them, for ArviZ.

    ======================  ==========================================================================
    group                   what
    ======================  ==========================================================================
    `posterior`             each latent and deterministic site, `(chain, draw, *shape)`
    `log_likelihood`        `log p(x_i | z)` of each datum of each observed site, in nats,
                            `(chain, draw, *batch_shape)`: as it is, where the model scales it, and
                            zero where it is masked
    `sample_stats`          of each draw `lp`, `log p(x, z)`; `log_q`, `log q(z)`; `log_weight`, their
                            difference; and `pareto_k` of the weights as an attribute (`psis_khat`)
    `observed_data`         each observed site
    ======================  ==========================================================================

    Dimensions have the names of the model's plates. Of draws that are given, rather than a guide, there is
    `lp` alone in `sample_stats`.

    Args:
        model: The model.
        guide: The guide; or draws of each latent variable, `(n, *shape)`, such as those of
            `importance_resample` or the `samples` of `neutra_nuts`.
        args: What both are called with.
        num_samples: Number of draws of the guide.
        num_chains: Number of chains that the draws are, one after the other.
        vectorize: Whether model and guide are run once for all draws, in a plate, or once for each.
        kwargs: What both are called with.

    Raises:
        ValueError: There are fewer than two draws, they are no whole number for each chain, a variable has
            none, a plate subsamples, or a site of all draws is not one of each draw.

    Source: the ArviZ project's "InferenceData schema specification", arviz-devs/InferenceData 1.

    Example:
        >>> import pyro
        >>> import pyro.distributions as dist
        >>> def model(x):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
        ...     with pyro.plate("rows", len(x)):
        ...         pyro.sample("x", dist.Normal(mean, 1.0), obs=x)
        >>> def guide(x):
        ...     pyro.sample("mean", dist.Normal(x.mean(), len(x) ** -0.5))
        >>> data = to_inference_data(model, guide, torch.randn(20), num_samples=100)
        >>> dict(data.log_likelihood["x"].sizes)
        {'chain': 1, 'draw': 100, 'rows': 20}
    """
    with needs_fit_extra("to_inference_data"), warnings.catch_warnings():
        # Of what its next version will be called.
        warnings.simplefilter("ignore", FutureWarning)
        import arviz
    log_weights = None
    if isinstance(guide, Mapping):
        traces = _trace_given(model, guide, args, kwargs, vectorize)
    else:
        traces, log_weights = trace_draws(model, guide, args, kwargs, num_samples, vectorize)
    single, draws = traces.single, traces.num_samples
    check_takes_all("to_inference_data", single)
    if draws % num_chains:
        raise ValueError(f"expected as many draws of each of {num_chains} chains, got {draws} in all")
    for trace in (single, *traces.traces):
        trace.compute_log_prob()

    nodes: dict[str, Any] = dict(prune_subsample_sites(single).nodes)
    sites = {name: site for name, site in nodes.items() if site["type"] == "sample"}
    shown = [name for name, site in sites.items() if site["infer"].get("_deterministic")]
    data = [
        name
        for name, site in sites.items()
        # A `pyro.factor` is no datum.
        if site["is_observed"] and name not in shown and not site["infer"].get("is_auxiliary")
    ]
    posterior = {name: traces.of(name) for name in (*latent_names(single), *shown)}
    likelihood = {name: traces.of(name, _of_each_datum) for name in data}
    log_p = torch.zeros(())
    for name in sites:
        log_p = log_p + traces.of(name, lambda site: site["log_prob"]).reshape(draws, -1).sum(1)
    stats = {"lp": log_p}
    attributes = {}
    if log_weights is not None:
        stats |= {"log_q": log_p - log_weights, "log_weight": log_weights}
        attributes["pareto_k"] = pareto_smooth(log_weights)[1]

    # A dimension must not have the name of a variable.
    taken = {"chain", "draw", *sites}

    def by_chain(values: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        return {k: _array(v).reshape(num_chains, -1, *v.shape[1:]) for k, v in values.items()}

    return arviz.from_dict(
        posterior=by_chain(posterior),
        log_likelihood=by_chain(likelihood) or None,
        sample_stats=by_chain(stats),
        observed_data={name: _array(_whole(sites[name])) for name in data} or None,
        dims={name: _dims(name, sites[name], taken) for name in (*posterior, *data)},
        sample_stats_attrs=attributes,
    )


def _trace_given(
    model: Callable[..., Any],
    draws: Mapping[str, Tensor],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    vectorize: bool,
) -> Traces:
    """The traces of a model at given draws."""
    names = latent_names(poutine.trace(FlatPriors()(model)).get_trace(*args, **kwargs))
    missing = [name for name in names if name not in draws]
    lengths = sorted({len(draws[name]) for name in names if name not in missing})
    if missing or len(lengths) != 1 or lengths[0] < 2:
        raise ValueError(
            f"expected as many draws, at least 2, of each of the model's latent variables, {names}, got "
            f"{lengths} and none of {missing}: give draws of the model's own variables"
        )
    (n,) = lengths

    def run(values: dict[str, Tensor]) -> Trace:
        given = Trace()
        for name, value in values.items():
            given.add_node(name, name=name, type="sample", value=value, is_observed=False, infer={})
        return poutine.trace(poutine.replay(model, trace=given)).get_trace(*args, **kwargs)

    if not vectorize:
        traces = [run({name: draws[name][i] for name in names}) for i in range(n)]
        return Traces(n, traces[0], traces)
    single = run({name: draws[name][0] for name in names})
    nesting = plate_nesting(single)
    values = {}
    for name in names:
        site: Any = single.nodes[name]
        others = nesting - len(site["fn"].batch_shape)
        values[name] = draws[name].reshape(n, *[1] * others, *draws[name].shape[1:])
    with pyro.plate("num_particles_vectorized", n, dim=-nesting - 1):
        return Traces(n, single, [run(values)])


def _of_each_datum(site: Any) -> Tensor:
    # Not by the scale, which is no property of a datum.
    return scale_and_mask(site["unscaled_log_prob"], mask=site["mask"])


def _dims(name: str, site: Any, taken: set[str]) -> list[str]:
    """The plates of the dimensions of a site's batch, or ArviZ's own names."""
    size, shape = len(site["fn"].batch_shape), _whole(site).shape
    names = [f"{name}_dim_{i}" for i in range(min(size, len(shape)))]
    for frame in site["cond_indep_stack"]:
        if frame.dim is None or frame.name in taken or len(shape) < size:
            continue
        # What is deterministic may be one value for all of a plate.
        if shape[size + frame.dim] == frame.size:
            names[size + frame.dim] = frame.name
    return names


def _whole(site: Any) -> Tensor:
    """A site's value; data also in the dimensions in which the model repeats them."""
    if site["is_observed"] and not site["infer"].get("_deterministic"):
        return site["value"].expand(site["fn"].shape())
    return site["value"]


def _array(value: Tensor) -> np.ndarray:
    return value.detach().cpu().numpy()
