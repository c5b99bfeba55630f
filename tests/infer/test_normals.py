"""The normals that a guide starts from, on densities whose best normal is known."""

import math

import pytest
import torch
from torch import Tensor

from pyroflows.infer.normals import Normal, batch_and_match, elbo_of, find_mode, mean_field

LOC = torch.tensor([1e3, -2.0, 5e-3], dtype=torch.float64)
SDS = torch.tensor([1e2, 1.0, 1e-3], dtype=torch.float64)
CORRELATION = torch.tensor([[1.0, 0.9, -0.3], [0.9, 1.0, 0.1], [-0.3, 0.1, 1.0]], dtype=torch.float64)
COVARIANCE = CORRELATION * SDS * SDS[:, None]
TARGET = torch.distributions.MultivariateNormal(LOC, COVARIANCE)


def _off() -> Normal:
    """A start that is five standard deviations off, and twice as wide."""
    return Normal(LOC + 5 * SDS, 2 * SDS.diag())


def test_the_mode_of_a_normal_is_its_mean_and_the_curvature_its_covariance() -> None:
    found = find_mode(TARGET.log_prob, torch.zeros(3, dtype=torch.float64))[-1]
    torch.testing.assert_close((found.loc - LOC) / SDS, torch.zeros(3).double(), atol=0.05, rtol=0)
    torch.testing.assert_close(found.tril @ found.tril.T, COVARIANCE, rtol=1e-5, atol=0)


def test_the_way_to_a_mode_only_goes_up() -> None:
    def rosenbrock(u: Tensor) -> Tensor:
        return -((1 - u[..., 0]) ** 2) - 100 * (u[..., 1] - u[..., 0] ** 2) ** 2

    path = find_mode(rosenbrock, torch.tensor([-1.2, 1.0], dtype=torch.float64))
    heights = [rosenbrock(normal.loc).item() for normal in path]
    assert heights == sorted(heights)
    torch.testing.assert_close(path[-1].loc, torch.ones(2).double(), atol=0.05, rtol=0)


def test_a_way_without_a_mode_ends() -> None:
    """The centred hierarchy's density is unbounded: what is asked is normals, all of them finite."""

    def neck(u: Tensor) -> Tensor:
        return u[0] - 5 * u[0] - 0.5 * (u[1:] ** 2).sum() * torch.exp(-2 * u[0])

    path = find_mode(neck, torch.ones(6, dtype=torch.float64))
    assert len(path) > 5
    assert all(normal.tril.isfinite().all() and (normal.tril.diagonal() > 0).all() for normal in path)


def test_scores_of_a_normal_are_matched_by_that_normal() -> None:
    torch.manual_seed(0)
    found = batch_and_match(TARGET.log_prob, [_off()], max_steps=150, batch=32)[-1]
    # A normal's scores can be matched exactly, so no Monte Carlo error is left.
    torch.testing.assert_close((found.loc - LOC) / SDS, torch.zeros(3).double(), atol=1e-2, rtol=0)
    torch.testing.assert_close(
        (found.tril @ found.tril.T) / SDS / SDS[:, None], CORRELATION, atol=2e-2, rtol=0
    )


def test_ways_are_gone_together() -> None:
    """Each density call is of the draws of both; where it breaks at one way's draws, the other goes on."""
    sizes = []

    def log_density(u: torch.Tensor) -> torch.Tensor:
        sizes.append(len(u))
        if (u > 1e6).any():
            raise ValueError("too far")
        return TARGET.log_prob(u)

    torch.manual_seed(0)
    off = _off()
    found = batch_and_match(log_density, [off, Normal(off.loc + 1e7, off.tril)], max_steps=150, batch=32)
    # Together and then each alone. The way that leads nowhere has no normal, and goes on to its end.
    assert sizes[:3] == [64, 32, 32]
    assert len(found) == 2
    torch.testing.assert_close((found[-1].loc - LOC) / SDS, torch.zeros(3).double(), atol=1e-2, rtol=0)
    sizes.clear()
    batch_and_match(log_density, [off, off], max_steps=150, batch=32)
    assert sizes == [64] * 150


def test_where_the_papers_rate_diverges_smaller_steps_find_the_normal() -> None:
    """A regression of mean and log scale, from where its density is far from a normal."""
    torch.manual_seed(1)
    size = 15
    features = torch.cos(math.pi * torch.linspace(0, 1, 80).double()[:, None] * torch.arange(size))
    weights = torch.randn(2 * size).double()

    def log_scale(u: Tensor) -> Tensor:
        return u[..., size:] @ features.T

    y = features @ weights[:size] + log_scale(weights).exp() * torch.randn(80).double()

    def log_density(u: Tensor) -> Tensor:
        noise = (y - u[..., :size] @ features.T) * (-log_scale(u)).exp()
        return -(0.5 * noise.square() + log_scale(u)).sum(-1) - 0.5 * u.square().sum(-1)

    mode = find_mode(log_density, torch.zeros(2 * size).double())[-1]
    torch.manual_seed(1)
    near = batch_and_match(log_density, [mode], max_steps=1000, batch=32)[-1]
    wide = Normal(mode.loc, 10 * mode.tril)
    torch.manual_seed(1)
    far = batch_and_match(log_density, [wide], max_steps=1000, batch=32)[-1]
    assert elbo_of(log_density, wide, 2000) < -1e6
    assert elbo_of(log_density, far, 2000) == pytest.approx(elbo_of(log_density, near, 2000), abs=0.5)


def test_the_mean_field_optimum_has_the_precisions_diagonal() -> None:
    """For a normal posterior it is known (Bishop 2006, section 10.1.2)."""
    torch.manual_seed(0)
    covariance = (CORRELATION + 2 * torch.eye(3)) / 3 * SDS * SDS[:, None]
    target = torch.distributions.MultivariateNormal(LOC, covariance)
    found = mean_field(target.log_prob, _off(), steps=1000, batch=32)
    expected = torch.linalg.inv(covariance).diagonal().rsqrt()
    torch.testing.assert_close((found.loc - LOC) / SDS, torch.zeros(3).double(), atol=0.1, rtol=0)
    torch.testing.assert_close(found.tril.diagonal(), expected, rtol=0.05, atol=0)


@pytest.mark.parametrize("wide", [1.0, 2.0])
def test_the_bound_is_the_evidence_less_the_divergence(wide: float) -> None:
    torch.manual_seed(0)
    normal = Normal(LOC, wide * torch.linalg.cholesky(COVARIANCE))
    n = 20_000
    divergence = 3 * (0.5 * (wide**2 - 1) - math.log(wide))
    error = wide**2 * math.sqrt(3 / 2 / n)
    elbo = elbo_of(lambda u: TARGET.log_prob(u) + 7.0, normal, n)
    assert elbo == pytest.approx(7.0 - divergence, abs=5 * error)


def test_a_bound_that_can_not_be_computed_is_the_lowest() -> None:
    def broken(u: Tensor) -> Tensor:
        return torch.linalg.cholesky(-torch.eye(3)).sum() + u.sum(-1)

    normal = Normal(torch.zeros(3), torch.eye(3))
    assert elbo_of(broken, normal, 10) == -math.inf
    assert elbo_of(lambda u: u.sum(-1) * math.nan, normal, 10) == -math.inf


def test_a_singular_covariance_still_has_a_factor() -> None:
    rank_one = torch.outer(SDS, SDS)
    factor = Normal.of(LOC, rank_one).tril
    torch.testing.assert_close(factor @ factor.T, rank_one, rtol=1e-6, atol=0)
    assert (factor.diagonal() > 0).all()
