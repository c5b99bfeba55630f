"""Non-centred coordinates, against closed forms, and when a guide has them."""

import io
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyroflows.infer import AutoFlow, fit_guide
from pyroflows.infer.noncentred import noncentred
from pyroflows.transforms import Chain

pytestmark = pytest.mark.usefixtures("fresh_pyro")

DESIGN = torch.tensor([[1.0, 0.5], [1.0, -2.0], [1.0, 3.0]])


def funnel() -> None:
    v = pyro.sample("v", dist.Normal(0.0, 3.0))
    pyro.sample("x", dist.Normal(torch.zeros(3), (v / 2).exp()[..., None]).to_event(1))


def of_mean_and_scale() -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    scale = pyro.sample("scale", dist.HalfCauchy(1.0))
    with pyro.plate("three", 3):
        pyro.sample("x", dist.StudentT(4.0, mean, 2 * scale))


def of_logarithms() -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.LogNormal(1.0 + mean, 0.5))


def of_coefficients() -> None:
    """Some of what is below is masked."""
    kept = torch.tensor([True, True, False])
    slopes = pyro.sample("slopes", dist.Laplace(torch.zeros(2), 1.0).to_event(1))
    pyro.sample("x", dist.Normal(slopes @ DESIGN.T, 1.0).mask(kept).to_event(1))


def of_three_levels() -> None:
    top = pyro.sample("top", dist.Normal(0.0, 1.0))
    middle = pyro.sample("middle", dist.Normal(top, 0.1))
    pyro.sample("x", dist.Cauchy(middle - top, middle.exp()))


def in_another_order() -> None:
    """What is above is not before all that is below."""
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(a[..., None], torch.ones(2)).to_event(1))
    b = pyro.sample("b", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal((a + b)[..., None], torch.ones(2)).to_event(1))


def beside_a_simplex() -> None:
    """Which has an element less when it is unconstrained."""
    pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(mean[..., None], torch.ones(2)).to_event(1))


def with_curved_mean() -> None:
    """The mean stays as it is, the scale does not."""
    v = pyro.sample("v", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(v**2, v.exp()))


def _map_of_means(v: Tensor) -> Tensor:
    mean, log_scale, x = v.split([1, 1, 3], -1)
    return torch.cat([mean, log_scale, mean + 2 * log_scale.exp() * x], -1)


def _map_of_coefficients(v: Tensor) -> Tensor:
    slopes, x = v.split([2, 3], -1)
    return torch.cat([slopes, x + slopes @ DESIGN.T], -1)


def _map_of_three_levels(v: Tensor) -> Tensor:
    top, middle, x = v.unbind(-1)
    middle = top + 0.1 * middle
    return torch.stack([top, middle, middle - top + middle.exp() * x], -1)


def _map_in_another_order(v: Tensor) -> Tensor:
    a, x, b, y = v.split([1, 2, 1, 2], -1)
    return torch.cat([a, x + a, b, y + a + b], -1)


def _map_beside_a_simplex(v: Tensor) -> Tensor:
    weights, mean, x = v.split([2, 1, 2], -1)
    return torch.cat([weights, mean, mean + x], -1)


MAPS: dict[Any, Any] = {
    funnel: lambda v: torch.cat([v[..., :1], (v[..., :1] / 2).exp() * v[..., 1:]], -1),
    of_mean_and_scale: _map_of_means,
    of_logarithms: lambda v: torch.stack([v[..., 0], 1 + v[..., 0] + 0.5 * v[..., 1]], -1),
    of_coefficients: _map_of_coefficients,
    of_three_levels: _map_of_three_levels,
    in_another_order: _map_in_another_order,
    beside_a_simplex: _map_beside_a_simplex,
    with_curved_mean: lambda v: torch.stack([v[..., 0], v[..., 0].exp() * v[..., 1]], -1),
}


def _found(model: Any) -> Chain | None:
    guide = AutoFlow(model, init="prior")
    guide()
    return noncentred(guide.log_density(), guide._levels, torch.zeros(guide.latent_dim))


@pytest.mark.parametrize("model", MAPS)
def test_the_map_is_that_of_the_closed_form(model: Any) -> None:
    torch.manual_seed(0)
    found = _found(model)
    assert found is not None
    v = torch.randn(7, *found.event_shape)
    # Of a least-squares fit in double precision, rounded; the scales are up to e^2.
    torch.testing.assert_close(found(v), MAPS[model](v), rtol=1e-4, atol=1e-4)
    jacobian = torch.autograd.functional.jacobian(MAPS[model], v[0])
    expected = torch.linalg.slogdet(jacobian).logabsdet
    torch.testing.assert_close(found.log_abs_det_jacobian(v, found(v))[0], expected, rtol=1e-4, atol=1e-4)


def test_a_density_in_coordinates_is_one_of_independent_variables() -> None:
    """Without data: of the funnel, a normal of sd 3 and standard ones."""
    guide = AutoFlow(funnel, init="prior")
    log_density = guide.log_density()
    log_density.coordinates = _found(funnel)
    v = torch.randn(5, 4)
    expected = dist.Normal(0.0, torch.tensor([3.0, 1.0, 1.0, 1.0])).log_prob(v).sum(-1)
    torch.testing.assert_close(log_density(v), expected, rtol=1e-4, atol=1e-4)


def _curved() -> None:
    v = pyro.sample("v", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(v**2, 1.0))


def _of_another_kind() -> None:
    rate = pyro.sample("rate", dist.LogNormal(0.0, 1.0))
    pyro.sample("x", dist.Gamma(2.0, rate))


def _bounded() -> None:
    """The logarithm of the scale is not linear in its logit."""
    scale = pyro.sample("scale", dist.Uniform(0.0, 1.0))
    pyro.sample("x", dist.Normal(0.0, scale))


def _independent() -> None:
    pyro.sample("v", dist.Normal(3.0, 2.0))
    pyro.sample("x", dist.Normal(torch.ones(3), 0.5).to_event(1))


def _failing() -> None:
    """Where the guide starts, but not far from there, it has a density."""
    v = pyro.sample("v", dist.Normal(0.0, 1e-3))
    if v.abs().max() > 1:
        raise ValueError("no solution")
    pyro.sample("x", dist.Normal(v, 1.0))


def _of_many() -> None:
    many = pyro.sample("many", dist.Normal(torch.zeros(201), 1.0).to_event(1))
    pyro.sample("x", dist.Normal(many.sum(-1), 1.0).expand([202]).to_event(1))


@pytest.mark.parametrize("model", [_curved, _of_another_kind, _bounded, _independent, _failing, _of_many])
def test_what_is_not_exactly_so_is_left_as_it_is(model: Any) -> None:
    assert _found(model) is None


def _hierarchy(noise: float) -> Any:
    def model() -> None:
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        x = pyro.sample("x", dist.Normal(torch.zeros(5), scale[..., None]).to_event(1))
        pyro.sample("y", dist.Normal(x, noise).to_event(1), obs=torch.linspace(-2.0, 2.0, 5))

    return model


def test_a_guide_has_them_where_its_start_is_better_in_them() -> None:
    """Data that say nothing leave the prior, a funnel; those that say all leave nothing of it."""
    vague, sharp = AutoFlow(_hierarchy(100.0)), AutoFlow(_hierarchy(0.01))
    vague(), sharp()
    assert [len(guide.transform.transforms) for guide in (vague, sharp)] == [3, 2]
    # A start that was asked for is of the model as it is written.
    asked = AutoFlow(_hierarchy(100.0), init="mean_field")
    asked()
    assert len(asked.transform.transforms) == 2


def test_a_guide_in_them_can_be_fitted_and_saved() -> None:
    guide = AutoFlow(funnel)
    result = fit_guide(funnel, guide, max_steps=50, progress_bar=False)
    # In its coordinates the funnel is normal, which is where the guide starts.
    assert result.elbo == pytest.approx(0.0, abs=0.05)
    # They hold nothing to learn.
    assert list(guide.transform.transforms[2].parameters()) == []
    file = io.BytesIO()
    torch.save(guide, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    z = torch.randn(6, 4)
    torch.testing.assert_close(loaded.transform(z), guide.transform(z))
