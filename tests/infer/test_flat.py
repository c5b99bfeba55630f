"""Models of flat priors, against their posterior in closed form."""

import io
import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import init_to_value
from torch import Tensor

from pyroflows.infer import AutoFlow, fit_guide, neutra_nuts, to_inference_data
from pyroflows.infer.hierarchy import hierarchy

pytestmark = pytest.mark.usefixtures("fresh_pyro")

X = torch.tensor([4.1, 2.2, 7.9, 3.3, 5.0, 1.8, 6.4, 4.6, 2.9, 5.7, 3.8, 4.9])
N, S = len(X), (X - X.mean()).square().sum().item()


def _flat_mean(support: dist.constraints.Constraint) -> Tensor:
    return pyro.sample("mean", dist.ImproperUniform(support, (), ()))


def _model() -> None:
    mean = _flat_mean(dist.constraints.real)
    # In a plate and as an event, as they may be.
    with pyro.plate("one", 1):
        prior = dist.ImproperUniform(dist.constraints.positive, (1, 1), ()).to_event(1)
        scale = pyro.sample("scale", prior)
        normal = dist.Normal(mean.unsqueeze(-1) + torch.zeros(N), scale)
        pyro.sample("x", normal.to_event(1), obs=X)


def test_a_fit_is_the_posterior_of_flat_priors() -> None:
    guide = AutoFlow(_model)
    assert fit_guide(_model, guide, progress_bar=False).khat < 0.7
    draws = guide.sample_posterior(20_000)
    mean, scale = draws["mean"], draws["scale"].squeeze()
    # A t distribution of N - 2 degrees of freedom, and the square root of an inverse gamma variable.
    sd = math.sqrt(S / (N - 2) / N * (N - 2) / (N - 4))
    expected = math.sqrt(S / 2) * math.exp(math.lgamma((N - 3) / 2) - math.lgamma((N - 2) / 2))
    scale_sd = math.sqrt(S / (N - 4) - expected**2)
    assert (mean.mean() - X.mean()).abs() < 0.1 * sd
    assert (scale.mean() - expected).abs() < 0.1 * scale_sd
    assert (mean.std().log() - math.log(sd)).abs() < 0.1
    assert (scale.std().log() - math.log(scale_sd)).abs() < 0.1


@pytest.mark.filterwarnings("error:.*does not commute with initialization")
def test_what_comes_after_takes_them() -> None:
    guide = AutoFlow(_model, init="laplace")
    fit_guide(_model, guide, max_steps=20, progress_bar=False)
    assert to_inference_data(_model, guide, num_samples=10).posterior["scale"].shape == (1, 10, 1, 1)
    draws = neutra_nuts(_model, guide, num_samples=10, warmup_steps=10, progress_bar=False).samples
    assert (draws["scale"] > 0).all()
    assert to_inference_data(_model, draws).posterior["mean"].shape[-1] == 10
    torch.save(guide, io.BytesIO())


def test_a_hierarchy_below_one_is_seen() -> None:
    def model() -> None:
        mean = _flat_mean(dist.constraints.real)
        pyro.sample("x", dist.Normal(mean, 1.0))

    shapes = {"mean": torch.Size(), "x": torch.Size()}
    assert hierarchy(model, shapes, (), {}) == [["mean"], ["x"]]


def test_a_value_that_was_given_is_kept() -> None:
    found = []

    def density(mean: Tensor) -> Tensor:
        found.append(mean.detach())
        return -(mean - 3).square().sum()

    def model() -> None:
        pyro.factor("density", density(_flat_mean(dist.constraints.positive)))

    AutoFlow(model, init="laplace", init_loc_fn=init_to_value(values={"mean": torch.tensor(3.0)}))()
    assert any((mean == 3).all() for mean in found)


def test_other_priors_that_cannot_be_drawn_from_keep_their_error() -> None:
    class Undrawn(dist.Normal):
        def rsample(self, sample_shape: Any = ()) -> Tensor:
            raise NotImplementedError("no draws of this one")

    with pytest.raises(NotImplementedError, match="no draws of this one"):
        AutoFlow(lambda: pyro.sample("z", Undrawn(0.0, 1.0)))()


def test_an_init_loc_fn_without_a_value_keeps_its_error_where_the_prior_is_not_flat() -> None:
    def no_value(site: Any) -> Tensor:
        raise NotImplementedError("no value of this one")

    with pytest.raises(NotImplementedError, match="no value of this one"):
        AutoFlow(lambda: pyro.sample("z", dist.Normal(0.0, 1.0)), init_loc_fn=no_value)()


def test_a_masked_prior_is_flat_too() -> None:
    def model() -> None:
        prior = dist.ImproperUniform(dist.constraints.real, (2,), ())
        z = pyro.sample("z", prior.mask(torch.tensor([True, False])).to_event(1))
        pyro.factor("density", dist.Normal(3.0, 0.5).log_prob(z).sum(-1))

    # A normal is its own Laplace approximation.
    found = AutoFlow(model, init="laplace").median()["z"]
    # Of 10,000 draws the median's standard error is 1.25 * 0.5 / 100.
    torch.testing.assert_close(found, torch.full((2,), 3.0), atol=0.03, rtol=0)
