"""Variables of a flat prior, `ImproperUniform`, which can't be drawn from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import biject_to

from pyroflows.infer.diagnostics import innermost

__all__ = ["FlatPriors", "init_flat"]


class FlatPriors(Messenger):
    """Gives a value to variables of a flat prior, uniform in -2..2 on the reals, so that a model can be run.

    Example:
        >>> import pyro
        >>> def model():
        ...     return pyro.sample("x", dist.ImproperUniform(dist.constraints.positive, (), (3,)))
        >>> with FlatPriors():
        ...     model().shape
        torch.Size([3])
    """

    def _pyro_sample(self, msg: Any) -> None:
        if msg["value"] is None and _is_flat(msg["fn"]):
            zeros = _zeros(msg["fn"])
            msg["value"] = biject_to(msg["fn"].support)(4 * torch.rand_like(zeros) - 2)


def init_flat(site: Any, init_loc_fn: Callable[[Any], Tensor]) -> Tensor:
    """The first value of a site by `init_loc_fn`; zero on the reals where that draws from a flat prior."""
    try:
        return init_loc_fn(site)
    except NotImplementedError:
        if not _is_flat(site["fn"]):
            raise
        value: Any = biject_to(site["fn"].support)(_zeros(site["fn"]))
        # As Pyro marks those that nobody asked for, which a reparametrisation may drop without a warning.
        value._pyro_custom_init = False
        return value


def _is_flat(prior: Any) -> bool:
    return isinstance(innermost(prior), dist.ImproperUniform)


def _zeros(prior: Any) -> Tensor:
    return torch.zeros(biject_to(prior.support).inverse_shape(prior.shape()))
