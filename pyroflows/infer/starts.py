"""Where a guide starts: a normal near the posterior, in the model's unconstrained space."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pyroflows.infer.normals import (
    Normal,
    batch_and_match,
    elbo_of,
    find_mode,
    mean_field,
    without_validation,
)
from pyroflows.infer.unconstrained import LogDensity

__all__ = ["INITS", "Starts"]

INITS = ("auto", "laplace", "mean_field", "prior")

# A Hessian is a backward pass for each dimension.
_LARGEST_HESSIAN = 200

# Points from which a way is tried, each half as far from zero as the one before.
_HALVINGS = 6


class Starts:
    """The ways to find a normal from which a guide starts; each has the name of an `init`."""

    def __init__(self, log_density: LogDensity, loc: Tensor, prior_draw: Callable[[], Tensor]) -> None:
        self.one = without_validation(log_density)
        self.loc, self.prior_draw = loc, prior_draw
        # Where the search starts there may be no density, by which to tell.
        near = (_around(begin, 0.1).sample(3) for begin in (loc, torch.zeros_like(loc)))
        together = any(log_density.broadcasts(draws) for draws in near)
        self.many = without_validation(log_density if together else log_density.one_by_one)
        # One by one, draws are dear; together, many cost little more than few and make steps worth more.
        self.draws, self.batch = (100, 128) if together else (10, 8)
        self.matching_steps, self.ascent_steps = (500, 450) if together else (50, 150)

    def laplace(self) -> Normal:
        path = self._path(self.loc, max_steps=200)
        if not path:
            raise ValueError(
                "AutoFlow expected a model whose log density has a finite gradient and Hessian where "
                'init_loc_fn starts or nearer to zero, got none: use init="prior", or another init_loc_fn'
            )
        return path[-1]

    def prior(self) -> Normal:
        draws = torch.stack([self.prior_draw() for _ in range(100)])
        draws = draws[draws.isfinite().all(-1)]
        if len(draws) < 2:
            return _around(self.loc, 1.0)
        # Moments of a heavy tail say nothing of where the mass is.
        low, middle, high = torch.quantile(draws, torch.tensor([0.16, 0.5, 0.84]).to(draws), 0)
        return Normal(middle, ((high - low) / 2).clamp(min=1e-6).diag())

    def mean_field(self) -> Normal:
        return mean_field(self.many, self.prior(), steps=self.ascent_steps, batch=self.batch)

    def auto(self) -> Normal:
        # A way to the mode may miss the mass, or lead nowhere: one begins where all is zero, too.
        return self._best_of_ways(self.loc, torch.zeros_like(self.loc))

    def elsewhere(self) -> Normal:
        """As `auto`, by ways that begin at random: uniformly between -2 and 2, as Stan does."""
        return self._best_of_ways(*(4 * torch.rand_like(self.loc) - 2 for _ in range(2)))

    def _best_of_ways(self, *begins: Tensor) -> Normal:
        if len(self.loc) > _LARGEST_HESSIAN:
            return self.mean_field()
        prior = self.prior()
        bests = [self._best(begin, prior) for begin in begins]
        # Only at its end can one way be told from another: halfway, they differ less than by luck.
        ways = batch_and_match(self.many, bests, self.matching_steps, self.batch)
        # By more draws, so that the luck of a few does not choose.
        return max([*bests, *ways], key=self.elbo)

    def elbo(self, normal: Normal) -> float:
        """The evidence lower bound of a normal, in nats, by enough draws to tell ways from each other."""
        return elbo_of(self.many, normal, 10 * self.draws)

    def _best(self, loc: Tensor, prior: Normal) -> Normal:
        """Of the prior and the normals along the way to the mode and around its begin, the highest ELBO's."""
        candidates = [prior, *(_around(loc, scale) for scale in (0.1, 0.3, 1.0))]
        for normal in self._path(loc, prior.loc):
            candidates += [normal, _capped(normal)]
        return max(candidates, key=lambda normal: elbo_of(self.many, normal, self.draws))

    def _path(self, loc: Tensor, *others: Tensor, max_steps: int = 60) -> list[Normal]:
        """The way to the mode; where far out there are no derivatives, from others, then nearer to zero."""
        # Half of zero is the same point.
        nearer = [loc / 2**halvings for halvings in range(1, _HALVINGS)] if loc.any() else []
        for begin in (loc, *others, *nearer):
            path = find_mode(self.one, begin, max_steps)
            if path:
                return path
        return []


def _around(loc: Tensor, scale: float) -> Normal:
    return Normal(loc, scale * torch.eye(len(loc)).to(loc))


def _capped(normal: Normal) -> Normal:
    """The normal with no standard deviation above 1: far from the mode the curvature may say little."""
    axes, scales, _ = torch.linalg.svd(normal.tril.double())
    return Normal.of(normal.loc.double(), (axes * scales.clamp(max=1.0) ** 2) @ axes.T).to(normal.loc)
