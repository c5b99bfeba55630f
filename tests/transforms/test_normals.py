"""What `TriangularAffine` and `SinhArcsinh` make of a standard normal, against closed forms."""

import pyro.distributions as dist
import pytest
import torch

from pyroflows import Flow
from pyroflows.transforms import SinhArcsinh, TriangularAffine


def test_triangular_affine_makes_any_normal() -> None:
    torch.manual_seed(0)
    loc, root = torch.randn(3, dtype=torch.float64), torch.randn(3, 3, dtype=torch.float64)
    covariance = root @ root.T
    affine = TriangularAffine(3).double()
    affine.set_(loc, torch.linalg.cholesky(covariance))
    x = torch.randn(7, 3, dtype=torch.float64)
    want = dist.MultivariateNormal(loc, covariance).log_prob(x)
    torch.testing.assert_close(Flow(affine).double()().log_prob(x), want)


def test_sinh_arcsinh_is_jones_and_pewseys() -> None:
    """Their density, of z = sinh(delta arcsinh(x) - epsilon), with delta = exp(-t) and epsilon = s."""
    tails = SinhArcsinh(1).double()
    with torch.no_grad():
        tails.skewness.fill_(0.4)
        tails.log_tail.fill_(0.3)
    x = torch.linspace(-6, 6, 101, dtype=torch.float64)[:, None]
    delta, epsilon = torch.tensor(-0.3).double().exp(), 0.4
    argument = delta * torch.asinh(x) - epsilon
    density = delta * torch.cosh(argument) / (2 * torch.pi * (1 + x**2)).sqrt()
    density = density * torch.exp(-(torch.sinh(argument) ** 2) / 2)
    torch.testing.assert_close(Flow(tails).double()().log_prob(x).exp(), density[:, 0])


def test_a_heavier_tail_is_heavier() -> None:
    tails, z = SinhArcsinh(1), torch.tensor([4.0])
    with torch.no_grad():
        tails.log_tail.fill_(0.5)
        heavy = tails(z)
        tails.log_tail.fill_(-0.5)
        light = tails(z)
    assert heavy > z > light


def test_what_can_not_be_set() -> None:
    affine = TriangularAffine(2)
    for loc, tril in (
        (torch.zeros(3), torch.eye(2)),
        (torch.zeros(2), torch.eye(3)),
        (torch.zeros(2), -torch.eye(2)),
    ):
        with pytest.raises(ValueError, match=r"a location of shape \(2,\) and a factor of shape \(2, 2\)"):
            affine.set_(loc, tril)
    with pytest.raises(ValueError, match=r"an event of shape \(D,\), got \(1, 2, 2\)"):
        TriangularAffine((1, 2, 2))
