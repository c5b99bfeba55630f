"""Errors for models that a guide of reals can't be fitted to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine
from pyro.poutine import Trace
from torch.distributions import biject_to

from pyroflows.infer.diagnostics import latent_names
from pyroflows.infer.flat import FlatPriors
from pyroflows.infer.validation import unvalidated

__all__ = ["check_latents", "trace_once"]


def check_latents(model: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """Raise where a latent variable of a model is not one of a fixed number of reals."""
    sizes: dict[str, torch.Size] = {}
    for attempt in range(2):
        trace = trace_once(model, *args, **kwargs)
        now = {}
        for name in latent_names(trace):
            site: Any = trace.nodes[name]
            _check_site(name, site)
            now[name] = site["value"].shape
        if attempt and now != sizes:
            changed = sorted(name for name in {*now, *sizes} if now.get(name) != sizes.get(name))
            raise ValueError(
                f"AutoFlow expected latent variables of fixed size, got {changed}, which are there or not, "
                "or of another shape, from one run of the model to the next: give them the largest size and "
                "mask what is not used, or condition on what sets the size"
            )
        sizes = now
    if not sizes:
        raise ValueError(
            "AutoFlow expected a model with latent variables, got none: nothing is to be inferred"
        )


def _check_site(name: str, site: Any) -> None:
    support = site["fn"].support
    if site["fn"].has_enumerate_support or support.is_discrete:
        raise ValueError(
            f"AutoFlow expected continuous latent variables, got {name!r}, which is discrete "
            f"({site['fn']}): sum it out in the model, by dist.MixtureSameFamily or dist.DiscreteHMM, say, "
            f"or leave it to another guide by poutine.block(model, hide=[{name!r}])"
        )
    try:
        biject_to(support)
    except NotImplementedError as error:
        raise ValueError(
            f"AutoFlow expected supports that biject_to maps the reals to, got {support} of {name!r}: "
            "register a bijection by torch.distributions.biject_to.register, or write the model with a "
            "variable on the reals and pyro.deterministic"
        ) from error
    for frame in site["cond_indep_stack"]:
        if not frame.vectorized:
            raise ValueError(
                f"AutoFlow expected vectorized plates, got {name!r} in the sequential plate {frame.name!r}: "
                "write `with pyro.plate(...)`"
            )
        if frame.full_size is not None and frame.full_size != frame.size:
            raise ValueError(
                f"AutoFlow expected latent variables that are there at each step, got {name!r} in the plate "
                f"{frame.name!r}, of which {frame.size} of {frame.full_size} are drawn: use an amortised "
                "guide for it, or take all of the plate"
            )


def trace_once(model: Callable[..., Any], *args: Any, **kwargs: Any) -> Trace:
    """A trace of a model, which no handler of the caller sees.

    A draw of a wide prior may be where a later scale underflows to zero, which says nothing of the model.
    """
    with torch.no_grad(), poutine.block(), unvalidated(), FlatPriors():
        return poutine.trace(model).get_trace(*args, **kwargs)
