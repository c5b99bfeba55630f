"""Weights, k-hat and resampling against models whose posterior is known."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoMultivariateNormal

from pyroflows import Flow, realnvp
from pyroflows.infer import importance_resample, psis_khat
from pyroflows.infer.diagnostics import draw

pytestmark = pytest.mark.usefixtures("fresh_pyro")

X = torch.tensor([[1.0, 2.0, 0.5], [0.0, -1.0, 1.5]])


def _model(x: torch.Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
    with pyro.plate("rows", 2, dim=-1):
        z = pyro.sample("z", dist.Normal(mean.unsqueeze(-1) + torch.zeros(2, 3), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 0.7).to_event(1), obs=x)


def _guide(x: torch.Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.5, 1.0))
    with pyro.plate("rows", 2, dim=-1):
        pyro.sample("z", dist.Normal(0.6 * x + 0.3 * mean.unsqueeze(-1), 0.6).to_event(1))


@pytest.mark.parametrize("vectorize", [True, False])
def test_weights_are_the_ratio_of_the_densities(vectorize: bool) -> None:
    draws = draw(_model, _guide, X, num_samples=7, vectorize=vectorize)
    mean, z = draws.values["mean"], draws.values["z"]
    assert (mean.shape, z.shape) == ((7,), (7, 2, 3))
    normal = dist.Normal
    log_p = normal(0.0, 2.0).log_prob(mean) + normal(mean[:, None, None], 1.0).log_prob(z).sum((1, 2))
    log_p = log_p + normal(z, 0.7).log_prob(X).sum((1, 2))
    log_q = normal(0.5, 1.0).log_prob(mean)
    log_q = log_q + normal(0.6 * X + 0.3 * mean[:, None, None], 0.6).log_prob(z).sum((1, 2))
    torch.testing.assert_close(draws.log_weights, log_p - log_q, atol=1e-4, rtol=1e-4)
    assert draws.elbo == pytest.approx((log_p - log_q).mean().item(), abs=1e-4)


def _normal(sd: float):
    def sample() -> None:
        pyro.sample("z", dist.Normal(torch.tensor(0.0, dtype=torch.float64), sd))

    return sample


@pytest.mark.parametrize("sd", [1.2, 1.6, 2.5])
def test_khat_is_the_shape_of_the_tail(sd: float) -> None:
    """Of a guide N(0, 1) for N(0, sd) the weights have the tail of a Pareto of shape 1 - 1 / sd^2."""
    khat = psis_khat(_normal(sd), _normal(1.0), num_samples=100_000)
    assert khat == pytest.approx(1 - sd**-2, abs=0.12)


def test_khat_at_the_ends() -> None:
    assert psis_khat(_normal(1.0), _normal(1.0)) == -math.inf
    assert psis_khat(_normal(1.0), _normal(1.5)) < 0.1

    def never() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.factor("impossible", z - torch.inf)

    assert psis_khat(never, _normal(1.0)) == math.inf


def test_resampling_makes_up_for_a_guide_that_is_off() -> None:
    target = _normal(1.0)

    def guide() -> None:
        pyro.sample("z", dist.Normal(torch.tensor(0.5, dtype=torch.float64), 1.3))

    z = importance_resample(target, guide, 4000, num_samples=40_000)["z"]
    assert z.mean().item() == pytest.approx(0.0, abs=5 / 4000**0.5)
    assert z.std().item() == pytest.approx(1.0, abs=5 / 8000**0.5)


def test_of_an_autoguide_and_a_flow() -> None:
    """The weights of a guide of Pyro's and of a flow, both in the model's own space."""
    guide = AutoMultivariateNormal(_model)
    assert draw(_model, guide, X, num_samples=5).values["z"].shape == (5, 2, 3)
    flow = Flow(realnvp(2)).requires_grad_(False)

    def prior() -> None:
        pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    def flow_guide() -> None:
        pyro.sample("z", flow())

    # At its start the flow is the prior.
    assert draw(prior, flow_guide, num_samples=50).log_weights.abs().max() < 1e-4
    with pytest.raises(ValueError, match="num_samples of at least 2"):
        psis_khat(prior, flow_guide, num_samples=1)
