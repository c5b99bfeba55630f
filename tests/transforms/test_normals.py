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


@pytest.mark.parametrize("lean", [-0.8, 0.5])
def test_each_tail_has_its_own_power(lean: float) -> None:
    """Far out `x` goes as a power of `z`: the slope of log |x| over log |z|, on either side."""
    tails = SinhArcsinh(1).double()
    with torch.no_grad():
        tails.log_tail.fill_(0.2)
        tails.lean.fill_(lean)
    side = torch.tensor([[1e8], [1e9], [-1e8], [-1e9]], dtype=torch.float64)
    logs = tails(side).abs().log10()[:, 0]
    powers = torch.stack([logs[1] - logs[0], logs[3] - logs[2]])
    bend = torch.tensor([1.0, -1.0], dtype=torch.float64) * torch.tensor(lean, dtype=torch.float64).tanh()
    # The square root is not yet straight there: its slope is 1 to the inverse square of 20.
    torch.testing.assert_close(powers, torch.tensor(0.2).double().exp() * (1 + bend), rtol=5e-3, atol=0)


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


def test_a_tail_that_leans_far_keeps_its_digits() -> None:
    """Where the bend is 0.99999 a difference of both roots would keep two of seven."""
    tails, z = SinhArcsinh(1), torch.linspace(0.0, 5.0, 50)[:, None]
    with torch.no_grad():
        tails.lean.fill_(6.0)
        torch.testing.assert_close(tails.inv(tails(z).clone()), z, rtol=1e-5, atol=1e-5)
