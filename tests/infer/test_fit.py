"""`fit_guide` against posteriors whose moments and evidence are known, and what it leaves behind."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceEnum_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoDiagonalNormal, AutoNormal
from torch import Tensor

from pyroflows.infer import AutoFlow, fit_guide
from tests.infer.conjugate import EVIDENCE, SDS, X, conjugate

pytestmark = pytest.mark.usefixtures("fresh_pyro")


def _gamma() -> None:
    """Ten Poisson counts of mean 3.1 and a conjugate prior: the posterior is Gamma(33, 11)."""
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    counts = torch.tensor([3.0, 2, 5, 1, 4, 3, 2, 6, 3, 2])
    pyro.sample("x", dist.Poisson(rate.unsqueeze(-1).expand(*rate.shape, 10)).to_event(1), obs=counts)


def test_a_posterior_that_is_known_is_found() -> None:
    guide = AutoFlow(_gamma)
    result = fit_guide(_gamma, guide, progress_bar=False)
    assert result.converged
    assert result.khat < 0.7
    assert "below 0.7" in result.advice
    assert len(result.losses) <= 1500
    exact = dist.Gamma(33.0, 11.0)
    draws = guide.sample_posterior(20_000)["rate"]
    # The standard errors of 20,000 draws are 0.007 sds and 0.005; the fit may be off by 0.02.
    assert (draws.mean() - exact.mean).abs() < 0.05 * exact.stddev
    assert (draws.std() / exact.stddev).log().abs() < 0.05
    # Log evidence: prior times likelihood over posterior, at any rate.
    with pyro.poutine.trace() as trace:
        pyro.poutine.condition(_gamma, {"rate": torch.tensor(3.0)})()
    evidence = trace.trace.log_prob_sum() - exact.log_prob(torch.tensor(3.0))
    assert result.elbo == pytest.approx(evidence.item(), abs=5e-3)
    assert result.elbo <= evidence.item() + 1e-3


def test_a_normal_posterior_is_done_after_a_round_of_each_kind_and_its_bound_is_the_evidence() -> None:
    guide = AutoFlow(conjugate)
    # Of weights that are all but equal k-hat is luck, and at other seeds so low that one round is enough.
    result = fit_guide(conjugate, guide, seed=1, progress_bar=False)
    assert result.converged
    assert len(result.losses) == 800
    assert result.elbo == pytest.approx(EVIDENCE, abs=3e-3)
    draws = guide.sample_posterior(20_000)["z"]
    torch.testing.assert_close((draws.mean(0) - X / 2) / SDS, torch.zeros(3), atol=0.05, rtol=0)


def test_the_same_seed_gives_the_same_fit_and_the_callers_random_state_is_left() -> None:
    results = []
    for _ in range(2):
        pyro.set_rng_seed(5)
        guide = AutoFlow(conjugate, init="laplace")
        guide()
        state = torch.get_rng_state()
        results.append(fit_guide(conjugate, guide, max_steps=20, seed=3, progress_bar=False))
        assert torch.equal(torch.get_rng_state(), state)
    assert results[0].losses == results[1].losses
    assert results[0].khat == results[1].khat


def test_the_param_store_has_what_svi_would_put_there() -> None:
    def model() -> None:
        loc = pyro.param("loc", torch.tensor(1.0))
        z = pyro.sample("z", dist.Normal(loc, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(3.0))

    guide = AutoFlow(model)
    fit_guide(model, guide, max_steps=10, progress_bar=False)
    assert set(pyro.get_param_store()) == {"loc"}
    other = AutoNormal(model)
    fit_guide(model, other, max_steps=10, progress_bar=False)
    assert set(pyro.get_param_store()) == {"loc", "AutoNormal.locs.z", "AutoNormal.scales.z"}


@pytest.mark.parametrize("kind", [AutoFlow, AutoDiagonalNormal])
def test_the_models_own_parameters_are_fitted_too(kind: Any) -> None:
    """Of data N(z_i, 1), z_i ~ N(loc, s), the evidence is largest at their mean and variance less one."""
    data = torch.tensor([3.0, 5.0, -1.0, 6.0, 2.0])

    def model() -> None:
        loc = pyro.param("loc", torch.tensor(2.0))
        scale = pyro.param("scale", torch.tensor(2.0), constraint=dist.constraints.positive)
        z = pyro.sample("z", dist.Normal(loc, scale).expand([5]).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=data)

    fit_guide(model, kind(model), max_steps=1500, progress_bar=False)
    assert pyro.param("loc").item() == pytest.approx(data.mean().item(), abs=0.1)
    variance = data.var(unbiased=False).item() - 1
    assert pyro.param("scale").item() == pytest.approx(variance**0.5, abs=0.1)


@pytest.mark.parametrize("objective", [None, TraceMeanField_ELBO()])
def test_other_guides_and_objectives(objective: Any) -> None:
    def model() -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=torch.tensor([1.0, 2.0, 3.0]))

    guide = AutoNormal(model)
    result = fit_guide(model, guide, objective=objective, max_steps=600, progress_bar=False)
    assert result.khat < 0.7
    median = guide.median()["z"]
    torch.testing.assert_close(median, torch.tensor([0.5, 1.0, 1.5]), atol=0.1, rtol=0)


def test_a_guide_that_can_not_be_good_is_called_bad() -> None:
    def model() -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1), 0.01), obs=torch.tensor(0.0))

    result = fit_guide(model, AutoDiagonalNormal(model), progress_bar=False)
    assert result.khat >= 0.7
    # It stops where nothing more is gained.
    assert result.converged
    assert "neutra_nuts" in result.advice


def test_a_model_that_does_not_broadcast_is_run_draw_by_draw() -> None:
    def model() -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.reshape(2).sum(), 0.5), obs=torch.tensor(1.0))

    guide = AutoFlow(model)
    fit_guide(model, guide, max_steps=30, num_particles=4, progress_bar=False)
    # The posterior mean is 1 / (2 + 0.25) for both; it is a normal, which the start finds.
    mean = guide.sample_posterior(2000)["z"].mean(0)
    torch.testing.assert_close(mean, torch.full((2,), 1 / 2.25), atol=0.1, rtol=0)


def test_arguments_reach_model_and_guide() -> None:
    def model(x: Tensor, *, scale: float) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z, scale), obs=x)

    x = 4 + torch.randn(50)
    guide = AutoFlow(model)
    fit_guide(model, guide, x, scale=1.0, max_steps=100, progress_bar=False)
    assert guide.median(x, scale=1.0)["z"].item() == pytest.approx(x.mean().item(), abs=0.05)


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("kind", [AutoFlow, AutoNormal])
def test_few_steps_are_steps_too(kind: Any, steps: int) -> None:
    guide = kind(conjugate)
    result = fit_guide(conjugate, guide, max_steps=steps, progress_bar=False)
    assert len(result.losses) == steps


def test_a_guide_that_leaves_a_variable_out_is_refused_before_it_is_fitted() -> None:
    def model() -> None:
        which = pyro.sample("which", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z + which, 1.0), obs=torch.tensor(1.0))

    guide = AutoNormal(pyro.poutine.block(model, hide=["which"]))
    with pytest.raises(ValueError, match=r"without \['which'\]: sum them out"):
        fit_guide(model, guide, objective=TraceEnum_ELBO(max_plate_nesting=0), progress_bar=False)


def test_errors_say_what_to_do() -> None:
    guide = AutoFlow(conjugate)
    with pytest.raises(ValueError, match="max_steps of at least 1"):
        fit_guide(conjugate, guide, max_steps=0)
    with pytest.raises(ValueError, match="num_particles of at least 1"):
        fit_guide(conjugate, guide, num_particles=0)

    def nothing() -> None:
        pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="got none"):
        fit_guide(nothing, nothing, progress_bar=False)


def test_a_density_that_is_nowhere_finite_ends_the_fit() -> None:
    def model() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(0.0, 1.0 + 0 * (z - z).log()), obs=torch.tensor(0.0))

    with pyro.validation_enabled(False), pytest.raises(FloatingPointError, match="not finite in 50 steps"):
        fit_guide(model, AutoFlow(model), progress_bar=False)
