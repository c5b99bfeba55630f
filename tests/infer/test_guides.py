"""`AutoFlow` as a guide: its start, its draws, and everything that takes an autoguide."""

import copy
import io
import pickle
import warnings
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import init_to_value
from torch import Tensor
from torch.distributions import constraints

from pyroflows import glow
from pyroflows.infer import AutoFlow, TraceSTL_ELBO, neutra_nuts, psis_khat
from pyroflows.infer.flow_objective import FlowObjective
from pyroflows.infer.guides import guide_transform
from pyroflows.infer.starts import Starts
from pyroflows.transforms import Chain, realnvp
from tests.infer.conjugate import EVIDENCE, SDS, X, conjugate

pytestmark = pytest.mark.usefixtures("fresh_pyro")


def _hierarchy(x: Tensor) -> None:
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("rows", len(x), dim=-1):
        mean = pyro.sample("mean", dist.Normal(0.0, scale))
        pyro.sample("x", dist.Normal(mean * weights[..., 0], 0.5), obs=x)


@pytest.mark.parametrize("init", ["auto", "laplace"])
def test_a_normal_posterior_is_found_by_the_start_alone(init: str) -> None:
    """Sds of 1e-3, 1 and 1e3 in one vector, before a single step."""
    guide = AutoFlow(conjugate, init=init)
    draws = guide.sample_posterior(10_000)["z"]
    torch.testing.assert_close((draws.mean(0) - X / 2) / SDS, torch.zeros(3), atol=5 * 0.5**0.5 / 100, rtol=0)
    torch.testing.assert_close(draws.std(0) / SDS, torch.full((3,), 0.5**0.5), rtol=0.04, atol=0)
    # The log weights of the posterior itself are all the log evidence.
    log_weights = FlowObjective(guide, (), {}).log_weights(1000)
    assert log_weights.mean().item() == pytest.approx(EVIDENCE, abs=0.02)


def test_the_prior_start_has_the_priors_moments() -> None:
    guide = AutoFlow(conjugate, init="prior")
    draws = guide.sample_posterior(10_000)["z"] / SDS
    # Quantiles of a hundred draws have standard errors of 0.13 and 0.11.
    torch.testing.assert_close(draws.mean(0), torch.zeros(3), atol=0.5, rtol=0)
    torch.testing.assert_close(draws.std(0), torch.ones(3), atol=0.45, rtol=0)


def test_the_mean_field_start_is_the_best_of_independent_normals() -> None:
    def correlated() -> None:
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        pyro.sample("b", dist.Normal(a, 1.0))

    guide = AutoFlow(correlated, init="mean_field")
    guide()
    # The precision is [[2, -1], [-1, 1]].
    expected = torch.tensor([0.5**0.5, 1.0])
    torch.testing.assert_close(guide.affine.fixed_tril.diagonal(), expected, rtol=0.1, atol=0)


def test_quantiles_are_those_of_the_posterior() -> None:
    def model() -> None:
        pyro.sample("z", dist.LogNormal(torch.tensor([0.0, 1.0]), torch.tensor([0.5, 0.1])).to_event(1))

    guide = AutoFlow(model)
    found = guide.quantiles([0.1, 0.5, 0.9])["z"]
    exact = dist.LogNormal(torch.tensor([0.0, 1.0]), torch.tensor([0.5, 0.1]))
    expected = exact.icdf(torch.tensor([0.1, 0.5, 0.9])[:, None])
    # A quantile at 0.1 of 10,000 draws has a standard error of 0.017 standard deviations.
    torch.testing.assert_close(found.log(), expected.log(), atol=5 * 0.017 * 0.5, rtol=0)
    torch.rand(7)
    assert torch.equal(guide.median()["z"], found[1])
    state = torch.get_rng_state()
    assert torch.equal(guide.quantiles(torch.tensor([0.1, 0.5, 0.9]))["z"], found)
    assert torch.equal(torch.get_rng_state(), state)


def test_draws_and_medians_have_the_models_shapes_and_supports() -> None:
    x = torch.randn(4)
    guide = AutoFlow(_hierarchy)
    draws = guide.sample_posterior(7, x)
    assert {name: tuple(draw.shape) for name, draw in draws.items()} == {
        "scale": (7,),
        "weights": (7, 3),
        "mean": (7, 4),
    }
    assert (draws["scale"] > 0).all()
    torch.testing.assert_close(draws["weights"].sum(-1), torch.ones(7))
    median = guide.median(x)
    assert {name: tuple(value.shape) for name, value in median.items()} == {
        "scale": (),
        "weights": (3,),
        "mean": (4,),
    }
    torch.testing.assert_close(median["weights"].sum(), torch.tensor(1.0))


@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceSTL_ELBO])
@pytest.mark.parametrize("vectorize", [True, False])
def test_svi_takes_it(elbo: Any, vectorize: bool) -> None:
    x = torch.randn(4)
    guide = AutoFlow(_hierarchy)
    svi = SVI(
        _hierarchy,
        guide,
        pyro.optim.Adam({"lr": 1e-3}),
        elbo(num_particles=3, vectorize_particles=vectorize),
    )
    guide(x)
    before = [parameter.detach().clone() for parameter in guide.transform.parameters()]
    # The conditioners' first layers wait for the last, which starts at zero.
    for _ in range(3):
        svi.step(x)
    after = list(guide.transform.parameters())
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_its_first_call_may_be_in_the_plate_of_an_elbo() -> None:
    elbo = TraceSTL_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1)
    x = torch.randn(4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss = elbo.differentiable_loss(_hierarchy, AutoFlow(_hierarchy), x)
    assert loss.isfinite()


def test_its_fast_objective_has_the_gradient_of_the_path_elbo() -> None:
    x = torch.randn(4)
    guide = AutoFlow(_hierarchy)
    guide(x)
    with torch.no_grad():
        for parameter in guide.transform.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    fast = FlowObjective(guide, (x,), {}, num_particles=5)
    elbo = TraceSTL_ELBO(num_particles=5, vectorize_particles=True, max_plate_nesting=1)
    results = []
    for loss in (fast.loss, lambda: elbo.differentiable_loss(_hierarchy, guide, x)):
        torch.manual_seed(3)
        value = loss()
        results.append((value.item(), torch.autograd.grad(value, list(guide.transform.parameters()))))
    (a, of_fast), (b, of_elbo) = results
    assert a == pytest.approx(b, rel=1e-4)
    for one, other in zip(of_fast, of_elbo, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_a_model_that_takes_subsamples_of_its_data() -> None:
    data = 2 + torch.randn(200)

    def model() -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
        with pyro.plate("data", 200, subsample_size=20) as index:
            pyro.sample("x", dist.Normal(mean, 1.0), obs=data[index])

    guide = AutoFlow(model)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), TraceSTL_ELBO())
    assert svi.step() > 0
    # The start sees one subsample, whose mean has a standard error of 1 / sqrt(20).
    assert guide.median()["mean"].item() == pytest.approx(2.0, abs=5 * 20**-0.5)


def test_predictive_and_neutra_take_it() -> None:
    x = torch.randn(4)
    guide = AutoFlow(_hierarchy)
    predicted = Predictive(_hierarchy, guide=guide, num_samples=5)(x)
    assert predicted["mean"].shape[-1] == 4
    draws = neutra_nuts(_hierarchy, guide, x, num_samples=10, warmup_steps=10, seed=0, progress_bar=False)
    assert draws.samples["weights"].shape == (10, 3)
    assert guide.get_posterior(x).rsample((2,)).shape == (2, guide.latent_dim)


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
def test_copies_give_the_same_draws_and_leave_the_guide_its_model(how: str) -> None:
    x = torch.randn(4)
    guide = AutoFlow(_hierarchy)
    guide(x)
    if how == "deepcopy":
        other = copy.deepcopy(guide)
    elif how == "pickle":
        other = pickle.loads(pickle.dumps(guide))
    else:
        file = io.BytesIO()
        torch.save(guide, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    torch.manual_seed(0)
    expected = guide.sample_posterior(3, x)["mean"]
    torch.manual_seed(0)
    assert torch.equal(other.sample_posterior(3, x)["mean"], expected)
    assert guide.log_density(x)(torch.zeros(guide.latent_dim)).isfinite()
    assert callable(guide.model)
    with pytest.raises(ValueError, match="without its model"):
        other.log_density(x)


def test_a_site_can_have_a_flow_of_its_own() -> None:
    image = torch.rand(1, 4, 4)

    def model() -> None:
        level = pyro.sample("level", dist.Normal(0.0, 1.0))
        z = pyro.sample("z", dist.Normal(torch.zeros(1, 4, 4), 1.0).to_event(3))
        pyro.sample("slope", dist.Normal(level, 1.0))
        pyro.sample("x", dist.Normal(z + level[..., None, None, None], 0.5).to_event(3), obs=image)

    own = glow((1, 4, 4), levels=1, steps=1, hidden_channels=8)
    guide = AutoFlow(model, {"z": own})
    assert guide()["z"].shape == (1, 4, 4)
    inside = {id(parameter) for parameter in guide.transform.parameters()}
    assert {id(parameter) for parameter in own.parameters()} <= inside
    svi = SVI(
        model, guide, pyro.optim.Adam({"lr": 1e-3}), TraceSTL_ELBO(num_particles=2, vectorize_particles=True)
    )
    assert svi.step() > 0
    # Of the default flow, for the two that are left, nothing may reach the image's own.
    (site_flows, _), _ = guide.transform.transforms[0].transforms, None
    assert site_flows.sizes == [16, 2]


def test_the_flow_is_in_the_order_of_the_sites() -> None:
    """The image's part of the base moves the image alone."""

    def model() -> None:
        pyro.sample("a", dist.Normal(0.0, 1.0))
        pyro.sample("z", dist.Normal(torch.zeros(1, 2, 2), 1.0).to_event(3))
        pyro.sample("b", dist.Normal(0.0, 1.0))

    guide = AutoFlow(model, {"z": realnvp_image()}, init="prior")
    guide()
    flow = guide.transform.transforms[0]
    with torch.no_grad():
        base = torch.zeros(6)
        moved = base.clone()
        moved[:4] = 1.0
        changed = flow(moved) != flow(base)
    assert changed.tolist() == [False, True, True, True, True, False]


def realnvp_image() -> Any:
    return realnvp((1, 2, 2), levels=1, steps=1, hidden_channels=4)


def test_one_dimension_has_a_flow_that_is_no_normal() -> None:
    flow = guide_transform(1)
    assert isinstance(flow, Chain)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    z = torch.linspace(-2, 2, 50)[:, None]
    slopes = torch.autograd.functional.jacobian(lambda z: flow(z).sum(), z)
    assert slopes.std() > 0.1


# Errors


def _discrete() -> None:
    pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("which", dist.Categorical(torch.ones(3)))


class _Odd(constraints.Constraint):
    def check(self, value: Tensor) -> Tensor:
        return value > 0


class _OfOddSupport(dist.LogNormal):
    support = _Odd()


def _odd() -> None:
    pyro.sample("odd", _OfOddSupport(0.0, 1.0))


def _changing() -> None:
    size = int(torch.randint(1, 1000, ()))
    pyro.sample("z", dist.Normal(torch.zeros(size), 1.0).to_event(1))


def _local() -> None:
    with pyro.plate("data", 100, subsample_size=10):
        pyro.sample("local", dist.Normal(0.0, 1.0))


def _sequential() -> None:
    for i in pyro.plate("steps", 2):
        pyro.sample(f"z_{i}", dist.Normal(0.0, 1.0))


def _empty() -> None:
    pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.tensor(0.0))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (_discrete, "'which', which is discrete.*sum it out"),
        (_odd, "of 'odd': register a bijection"),
        (_changing, r"\['z'\].*largest size and mask"),
        (_local, "'local' in the plate 'data'.*amortised"),
        (_sequential, "'z_0' in the sequential plate 'steps'"),
        (_empty, "latent variables, got none"),
    ],
)
def test_a_model_that_it_can_not_guide_is_named(model: Any, message: str) -> None:
    guide = AutoFlow(model)
    with pytest.raises(ValueError, match=message):
        guide()
    # And not only the first time.
    with pytest.raises(ValueError, match=message):
        guide()


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="init to be one of"):
        AutoFlow(conjugate, init="map")
    with pytest.raises(ValueError, match=r"one for 'z' of event shape \(4,\)"):
        AutoFlow(conjugate, {"z": realnvp(4)})()
    with pytest.raises(ValueError, match="one for 'y'"):
        AutoFlow(conjugate, {"y": realnvp(3)})()


def test_a_hidden_discrete_variable_is_left_to_another_guide() -> None:
    guide = AutoFlow(poutine.block(_discrete, hide=["which"]))
    assert set(guide()) == {"z"}
    assert psis_khat(poutine.block(_discrete, hide=["which"]), guide, num_samples=100) < 0.7


def test_a_prior_whose_draws_underflow_is_no_error() -> None:
    """Most draws of the log scale are where its exponential is zero in single precision."""

    def model() -> None:
        log_scale = pyro.sample("log_scale", dist.Normal(-1000.0, 1000.0))
        pyro.sample("x", dist.Normal(0.0, log_scale.exp()), obs=torch.tensor(1.0))

    pyro.set_rng_seed(0)
    guide = AutoFlow(model, init_loc_fn=init_to_value(values={"log_scale": torch.tensor(0.0)}))
    assert guide.sample_posterior(2)["log_scale"].isfinite().all()


def test_a_start_that_leads_nowhere_is_not_the_only_one() -> None:
    """Neither where it begins nor where the prior draws is there any density; it is a normal around 2."""

    def model() -> None:
        u = pyro.sample("u", dist.Normal(-200.0, 1.0).mask(False))
        pyro.factor("x", torch.where(u < -100, -torch.inf, dist.Normal(2.0, 0.5).log_prob(u)))

    guide = AutoFlow(model, init_loc_fn=init_to_value(values={"u": torch.tensor(-200.0)}))
    assert (guide.median()["u"] - 2).abs() < 0.1


def test_that_a_model_broadcasts_is_seen_where_the_search_begins_without_density() -> None:
    def model() -> None:
        u = pyro.sample("u", dist.Normal(0.0, 1.0))
        pyro.factor("x", torch.where(u < -100, -torch.inf, 0.0))

    guide = AutoFlow(model, init="prior")
    guide()
    far = torch.tensor([-200.0])
    starts = Starts(guide.log_density(), far, lambda: far)
    # Of models that do not broadcast the draws are fewer.
    assert starts.batch == 128


def test_a_start_where_the_density_overflows_begins_nearer_to_zero() -> None:
    """In single precision it is infinite there; the posterior is a normal around 60."""

    def model() -> None:
        u = pyro.sample("u", dist.Normal(0.0, 1.0).expand([2]).to_event(1).mask(False))
        pyro.factor("x", dist.Normal(60.0, 0.5).log_prob(u).sum(-1) - torch.exp(u - 65).sum(-1))

    guide = AutoFlow(model, init="laplace", init_loc_fn=init_to_value(values={"u": torch.full((2,), 200.0)}))
    assert (guide.median()["u"] - 60).abs().max() < 0.1


def test_a_way_begins_at_the_prior_where_there_are_no_derivatives_and_is_kept_where_there_are() -> None:
    """Of a normal around 2 and a far mode that is e^-1000 times as high: where to begin is the caller's."""

    def model() -> None:
        u = pyro.sample("u", dist.Normal(5.0, 1.0).mask(False))
        low = dist.Normal(150.0, 1.0).log_prob(u) - 1000.0
        # In single precision the last is infinite at 400.
        pyro.factor("x", torch.where(u > 50, low, -2 * (u - 2) ** 2) - torch.exp(u - 250))

    guide = AutoFlow(model, init="prior")
    guide()
    starts = Starts(guide.log_density(), torch.zeros(1), lambda: torch.tensor([5.0]))
    of_prior = torch.tensor([5.0])
    for begin, others, first, last in [
        (400.0, [of_prior], 5.0, 2.0),
        (400.0, [], 200.0, 150.0),
        (160.0, [of_prior], 160.0, 150.0),
    ]:
        path = starts._path(torch.tensor([begin]), *others)
        assert path[0].loc.item() == first
        assert path[-1].loc.item() == pytest.approx(last, abs=1e-3)
