"""ArviZ's data hold what the model and the guide say, against closed forms."""

import arviz
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoMultivariateNormal

from pyroflows.infer.diagnostics import psis_khat
from pyroflows.infer.inference_data import to_inference_data

pytestmark = pytest.mark.usefixtures("fresh_pyro", "double_precision")


def _x() -> torch.Tensor:
    return torch.tensor([[1.0, 2.0, 0.5], [0.0, -1.0, 1.5]])


def _model(x: torch.Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
    with pyro.plate("rows", 2, dim=-2):
        z = pyro.sample("z", dist.Normal(mean, 1.0))
        with pyro.plate("columns", 3, dim=-1):
            pyro.sample("x", dist.Normal(z, 0.7), obs=x)
    total = pyro.deterministic("total", z.sum((-2, -1), keepdim=True))
    pyro.sample("y", dist.Normal(total.unsqueeze(-1) + torch.zeros(2), 1.0).to_event(1), obs=torch.ones(2))


def _guide(x: torch.Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.5, 1.0))
    with pyro.plate("rows", 2, dim=-2):
        pyro.sample("z", dist.Normal(0.3 * mean, 0.6))


def _values(data: arviz.InferenceData, group: str, name: str) -> torch.Tensor:
    return torch.tensor(data[group][name].values)


@pytest.mark.parametrize("vectorize", [True, False])
def test_groups_hold_what_the_densities_are(vectorize: bool) -> None:
    data = to_inference_data(_model, _guide, _x(), num_samples=7, vectorize=vectorize)
    mean, z = _values(data, "posterior", "mean"), _values(data, "posterior", "z")
    assert (mean.shape, z.shape) == ((1, 7), (1, 7, 2, 1))
    total = z.sum((2, 3))
    torch.testing.assert_close(_values(data, "posterior", "total").reshape(1, 7), total)

    normal = dist.Normal
    of_x = normal(z, 0.7).log_prob(_x())
    of_y = normal(total, 1.0).log_prob(torch.tensor(1.0)) * 2
    torch.testing.assert_close(_values(data, "log_likelihood", "x"), of_x)
    torch.testing.assert_close(_values(data, "log_likelihood", "y").reshape(1, 7), of_y)
    assert data.log_likelihood["x"].dims == ("chain", "draw", "rows", "columns")

    log_p = normal(0.0, 2.0).log_prob(mean) + normal(mean[..., None, None], 1.0).log_prob(z).sum((2, 3))
    log_p = log_p + of_x.sum((2, 3)) + of_y
    log_q = normal(0.5, 1.0).log_prob(mean)
    log_q = log_q + normal(0.3 * mean[..., None, None], 0.6).log_prob(z).sum((2, 3))
    torch.testing.assert_close(_values(data, "sample_stats", "lp"), log_p)
    torch.testing.assert_close(_values(data, "sample_stats", "log_q"), log_q)
    torch.testing.assert_close(_values(data, "sample_stats", "log_weight"), log_p - log_q)

    torch.testing.assert_close(_values(data, "observed_data", "x"), _x())
    assert set(data.observed_data) == {"x", "y"}


def _line(x: torch.Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x)


def _posterior(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean and variance of `_line`'s."""
    variance = 1 / (torch.tensor(0.25) + len(x))
    return variance * x.sum(), variance


def _exact(x: torch.Tensor) -> None:
    mean, variance = _posterior(x)
    pyro.sample("mean", dist.Normal(mean, variance.sqrt()))


def test_arviz_reads_them() -> None:
    """Leaving one out has a closed form here: `x_i` is normal about the posterior mean of the others."""
    x, n = 1 + torch.randn(30), 4000
    data = to_inference_data(_line, _exact, x, num_samples=n)
    mean, variance = _posterior(x)
    expected = 0.0
    for i in range(len(x)):
        others, spread = _posterior(torch.cat([x[:i], x[i + 1 :]]))
        expected += dist.Normal(others, (1 + spread).sqrt()).log_prob(x[i]).item()
    # The log of an importance ratio of x_i has about this standard deviation; all errors add up at worst.
    error = ((x - mean).abs() * variance.sqrt()).sum().item() / n**0.5
    assert arviz.loo(data).elpd_loo == pytest.approx(expected, abs=3 * error)

    summary = arviz.summary(data, round_to="none").loc["mean"]
    assert summary["mean"] == pytest.approx(mean.item(), abs=5 * (variance.item() / n) ** 0.5)
    assert summary["sd"] == pytest.approx(variance.item() ** 0.5, rel=5 / (2 * n) ** 0.5)
    # Of the posterior itself each draw's weight is the evidence.
    weights = data.sample_stats["log_weight"].values
    assert np.ptp(weights) < 1e-9


def test_pareto_k_is_that_of_the_weights() -> None:
    guide = AutoMultivariateNormal(_model, init_scale=0.5)
    guide(_x())
    pyro.set_rng_seed(3)
    data = to_inference_data(_model, guide, _x(), num_samples=500)
    pyro.set_rng_seed(3)
    assert data.sample_stats.attrs["pareto_k"] == psis_khat(_model, guide, _x(), num_samples=500)


@pytest.mark.parametrize("vectorize", [True, False])
def test_likelihood_is_without_scale_and_with_mask(vectorize: bool) -> None:
    x = torch.tensor([1.0, 2.0, 3.0])

    def model() -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        pyro.factor("penalty", -mean)
        mask = torch.tensor([True, False, True])
        with pyro.plate("data", 3), poutine.scale(scale=5.0), poutine.mask(mask=mask):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    def guide() -> None:
        pyro.sample("mean", dist.Normal(0.0, 1.0))

    data = to_inference_data(model, guide, num_samples=5, vectorize=vectorize)
    mean = _values(data, "posterior", "mean")
    of_x = dist.Normal(mean[..., None], 1.0).log_prob(x) * torch.tensor([1.0, 0.0, 1.0])
    torch.testing.assert_close(_values(data, "log_likelihood", "x"), of_x)
    assert set(data.log_likelihood) == set(data.observed_data) == {"x"}
    weight = _values(data, "sample_stats", "log_weight")
    torch.testing.assert_close(weight, 5 * of_x.sum(-1) - mean)


@pytest.mark.parametrize("vectorize", [True, False])
def test_of_given_draws(vectorize: bool) -> None:
    of_guide = to_inference_data(_model, _guide, _x(), num_samples=6)
    draws = {name: _values(of_guide, "posterior", name)[0] for name in ("mean", "z", "total")}
    data = to_inference_data(_model, draws, _x(), num_chains=2, vectorize=vectorize)
    assert dict(data.posterior["z"].sizes) == {"chain": 2, "draw": 3, "rows": 2, "z_dim_1": 1}
    assert set(data.sample_stats) == {"lp"}
    assert "pareto_k" not in data.sample_stats.attrs
    for group in ("posterior", "log_likelihood"):
        for name in of_guide[group]:
            given, expected = _values(data, group, name), _values(of_guide, group, name)
            torch.testing.assert_close(given.reshape(expected.shape), expected)
    lp = _values(data, "sample_stats", "lp").flatten()
    torch.testing.assert_close(lp, _values(of_guide, "sample_stats", "lp")[0])


def test_a_handler_of_the_caller_is_seen() -> None:
    """Which here leaves one latent variable of two."""

    def model() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("w", dist.Normal(z, 1.0))

    with poutine.condition(data={"w": torch.tensor(0.5)}):
        data = to_inference_data(model, {"z": torch.randn(5)})
    assert list(data.posterior) == ["z"]
    assert list(data.observed_data) == ["w"]


def test_dimensions_have_the_names_of_plates() -> None:
    def model() -> None:
        with pyro.plate("rows", 2):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.deterministic("twice", 2 * z)
        # An axis can't have the name of a variable, nor of what ArviZ has for all of them.
        with pyro.plate("x_rows", 3, dim=-1), pyro.plate("draw", 2, dim=-2):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.zeros(3))
        with pyro.plate("y", 4):
            pyro.sample("y_data", dist.Normal(0.0, 1.0), obs=torch.zeros(4))

    def guide() -> None:
        with pyro.plate("rows", 2):
            pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))

    data = to_inference_data(model, guide, num_samples=5)
    assert data.posterior["z"].dims == ("chain", "draw", "rows", "z_dim_1")
    assert data.posterior["twice"].dims == ("chain", "draw", "rows", "twice_dim_1")
    assert data.log_likelihood["x"].dims == ("chain", "draw", "x_dim_0", "x_rows")
    assert data.observed_data["x"].dims == ("x_dim_0", "x_rows")
    assert data.observed_data["y_data"].dims == ("y",)


def test_model_without_data() -> None:
    def prior() -> None:
        pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))

    data = to_inference_data(prior, prior, num_samples=5)
    assert data.groups() == ["posterior", "sample_stats"]


def test_errors() -> None:
    def mixes() -> None:
        with pyro.plate("rows", 2):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.deterministic("total", z.sum())

    def guide() -> None:
        with pyro.plate("rows", 2):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match=r"'total' to be \(\) for each of 4 draws.*use vectorize=False"):
        to_inference_data(mixes, guide, num_samples=4)
    data = to_inference_data(mixes, guide, num_samples=4, vectorize=False)
    torch.testing.assert_close(_values(data, "posterior", "total"), _values(data, "posterior", "z").sum(-1))

    def subsamples() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 10, subsample_size=4):
            pyro.sample("x", dist.Normal(z, 1.0), obs=torch.zeros(4))

    def simple() -> None:
        pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="'data' that takes 4 of 10: call the model so that it takes all"):
        to_inference_data(subsamples, simple)
    with pytest.raises(ValueError, match="each of 3 chains, got 10 in all"):
        to_inference_data(simple, simple, num_samples=10, num_chains=3)
    with pytest.raises(ValueError, match="at least 2, got 1"):
        to_inference_data(simple, simple, num_samples=1)
    with pytest.raises(ValueError, match=r"\['mean', 'z'\], got \[3\] and none of \['mean'\]"):
        to_inference_data(_model, {"z": torch.zeros(3, 2, 1)}, _x())
