"""Which latent variables of a model are above which others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro import poutine
from pyro.infer.inspect import get_dependencies

from pyroflows.infer.flat import FlatPriors
from pyroflows.infer.validation import unvalidated

__all__ = ["hierarchy"]

# From this depth on all variables share a level: a chain of a thousand is no hierarchy.
_DEEPEST = 3


def hierarchy(
    model: Callable[..., Any], shapes: Mapping[str, torch.Size], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> list[list[str]]:
    """The levels of a model's latent variables, the ones that others depend on first.

    The prior tells most of it: a variable is below those that its own distribution depends on. Of those at
    the top, single numbers are above vectors, which they mostly scale or shift where both meet in the
    likelihood.

    Args:
        model: The model.
        shapes: Shape of each latent variable, in the model's order.
        args: What the model is called with.
        kwargs: What the model is called with.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model():
        ...     scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        ...     pyro.sample("x", dist.Normal(0.0, scale).expand([8]).to_event(1))
        >>> hierarchy(model, {"scale": torch.Size(), "x": torch.Size([8])}, (), {})
        [['scale'], ['x']]
    """
    parents: Any = {}
    try:
        with poutine.block(), unvalidated(), FlatPriors():
            parents = get_dependencies(model, args, kwargs)["prior_dependencies"]
    except Exception:
        # Not every operation of a model can be followed: the shapes alone have to tell.
        pass
    depths: dict[str, int] = {}
    levels: dict[tuple[int, bool], list[str]] = {}
    for name, shape in shapes.items():
        above = [depths[parent] for parent in parents.get(name, ()) if parent in depths]
        depths[name] = min(1 + max(above), _DEEPEST) if above else 0
        levels.setdefault((depths[name], not above and shape.numel() > 1), []).append(name)
    return [levels[key] for key in sorted(levels)]
