"""Coordinates in which what a hierarchy's variables depend on no longer moves or scales them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import biject_to

from pyroflows.infer.diagnostics import innermost
from pyroflows.infer.unconstrained import LogDensity, can_fail
from pyroflows.transforms import AffineMap, Chain, Coupling, Positions

__all__ = ["noncentred"]

# Distributions of a location and a scale: of the variable, or (the last) of its logarithm.
_LOCATED = (dist.Normal, dist.StudentT, dist.Cauchy, dist.Laplace, dist.LogNormal)

# Below more elements than these a level stays as it is: each of them is a run of the model.
_MOST_ABOVE = 200

# The error of what counts as linear, and the spread of what counts as constant, relative to the largest.
_ROUNDING = 1e-4


class _Linear(nn.Module):
    """A linear conditioner that is found, not learned."""

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, passes: Tensor) -> Tensor:
        return F.linear(passes, self.weight, self.bias)


@torch.no_grad()
def noncentred(log_density: LogDensity, levels: Sequence[Sequence[int]], like: Tensor) -> Chain | None:
    r"""The map from coordinates in which variables of a location and a scale are standard ones of their kind.

    .. math:: u_b = e^{A u_a + r} v_b + B u_a + t

    for each level `b` of a hierarchy and all above it, `a`: of `Normal(mean, scale)` with `mean` and `scale`
    above, the logarithm of the scale is linear in their unconstrained values, and so is the mean. `A` to `t`
    are fitted to the model at some points; where they are not exact, nothing is changed.

    Args:
        log_density: The model's.
        levels: Positions of the elements of each level, as of `hierarchy`.
        like: An unconstrained vector, for its dtype and device.

    Returns:
        The map, or `None` where there is nothing to change.

    Source: Papaspiliopoulos et al. 2007, "A general framework for the parametrization of hierarchical
    models", Statistical Science 22; Gorinova et al. 2020, "Automatic reparameterisation of probabilistic
    programs", arXiv 1906.03028.

    Example:
        >>> import pyro
        >>> from pyroflows.infer import AutoFlow
        >>> def funnel():
        ...     scale = pyro.sample("scale", dist.LogNormal(0.0, 3.0))
        ...     pyro.sample("x", dist.Normal(0.0, scale))
        >>> to_centred = noncentred(AutoFlow(funnel).log_density(), [[0], [1]], torch.zeros(2))
        >>> to_centred(torch.tensor([2.0, 1.0])).round(decimals=3)  # log of the scale, and x
        tensor([2.0000, 7.3890])
    """
    above: list[int] = []
    couplings = []
    size, n = len(like), min(sum(map(len, levels[:-1])), _MOST_ABOVE) + 10
    points = torch.randn(n, size, generator=torch.Generator().manual_seed(0)).to(like)
    try:
        of_prior = torch.stack([_locations_and_log_scales(log_density, point) for point in points])
    except can_fail:
        return None
    for level, below in pairwise(levels):
        above = [*above, *level]
        if len(above) > _MOST_ABOVE:
            break
        weight, bias = _linear(points[:, above], of_prior[..., below])
        if not weight.any():
            continue
        others = [position for position in range(size) if position not in above]
        rows = torch.tensor([others.index(position) for position in below])
        weights, biases = like.new_zeros(2, len(others), len(above)), like.new_zeros(2, len(others))
        # The map's parameters are those of its inverse.
        weights[:, rows], biases[:, rows] = -weight, -bias
        conditioner = _Linear(weights.flatten(0, 1), biases.flatten())
        couplings.append(Coupling(size, conditioner, AffineMap("exp"), Positions((size,), above)))
    return Chain(couplings) if couplings else None


def _locations_and_log_scales(log_density: LogDensity, point: Tensor) -> Tensor:
    """Of each element's prior, given the others, `(2, D)`; not a number where it is of another kind."""
    parts = []
    for site in log_density.sites(point):
        shape, prior = site["fn"].shape(), innermost(site["fn"])
        if isinstance(prior, _LOCATED):
            both = torch.stack([prior.loc.expand(shape), prior.scale.log().expand(shape)])
        else:
            # A simplex, say, has fewer unconstrained elements.
            shape = biject_to(prior.support).inverse_shape(shape)
            both = point.new_full((2, *shape), torch.nan)
        parts.append(both.reshape(2, -1))
    return torch.cat(parts, 1)


def _linear(inputs: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor]:
    """Weights `(k, b, a)` and biases `(k, b)` from `(n, a)` to `(n, k, b)`.

    They are zero where an output is not linear, and where none of an element's `k` outputs depends on any
    input.
    """
    design = torch.cat([inputs, torch.ones_like(inputs[:, :1])], 1).double()
    targets = outputs.double()
    found = torch.linalg.lstsq(design, targets.flatten(1).nan_to_num()).solution.unflatten(
        1, targets.shape[1:]
    )
    error = (torch.einsum("na,akb->nkb", design, found) - targets).abs().amax(0)
    spread, size = targets.std(0), targets.abs().amax(0)
    # Not a number is not below anything.
    linear = error <= _ROUNDING * size.clamp(min=1.0)
    depends = (linear & (spread > _ROUNDING * size.clamp(min=1.0))).any(0)
    found = found.where(linear & depends, 0.0).to(inputs)
    return found[:-1].permute(1, 2, 0), found[-1]
