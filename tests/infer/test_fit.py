"""`fit_guide` against posteriors whose moments and evidence are known, and what it leaves behind."""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceEnum_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoDiagonalNormal, AutoNormal, init_to_value
from torch import Tensor

from pyroflows.infer import AutoFlow, fit_guide
from pyroflows.infer.fit import _Fit
from pyroflows.infer.objectives import FlowObjective, Objective
from pyroflows.transforms import FlowTransform

pytestmark = pytest.mark.usefixtures("fresh_pyro")

X = torch.tensor([0.5, 700.0, -1e-3])
SDS = torch.tensor([1.0, 1e3, 1e-3])


def _conjugate() -> None:
    z = pyro.sample("z", dist.Normal(torch.zeros(3), SDS).to_event(1))
    pyro.sample("x", dist.Normal(z, SDS).to_event(1), obs=X)


EVIDENCE = dist.Normal(0.0, SDS * 2**0.5).log_prob(X).sum().item()


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


def test_a_normal_posterior_is_done_after_a_round_and_its_bound_is_the_evidence() -> None:
    guide = AutoFlow(_conjugate)
    result = fit_guide(_conjugate, guide, progress_bar=False)
    assert result.converged
    assert len(result.losses) == 500
    assert result.elbo == pytest.approx(EVIDENCE, abs=3e-3)
    draws = guide.sample_posterior(20_000)["z"]
    torch.testing.assert_close((draws.mean(0) - X / 2) / SDS, torch.zeros(3), atol=0.05, rtol=0)


def test_the_same_seed_gives_the_same_fit_and_the_callers_random_state_is_left() -> None:
    results = []
    for _ in range(2):
        pyro.set_rng_seed(5)
        guide = AutoFlow(_conjugate, init="laplace")
        guide()
        state = torch.get_rng_state()
        results.append(fit_guide(_conjugate, guide, max_steps=20, seed=3, progress_bar=False))
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
    guide = kind(_conjugate)
    result = fit_guide(_conjugate, guide, max_steps=steps, progress_bar=False)
    assert len(result.losses) == steps


def test_large_weights_widen_a_guide_that_is_narrow() -> None:
    guide = AutoFlow(_conjugate, init="laplace")
    target = FlowObjective(guide, (), {})
    with torch.no_grad():
        guide.affine.log_diagonal.sub_(0.3)
    torch.manual_seed(0)
    losses = torch.stack([target.excess() for _ in range(10)])
    (gradient,) = torch.autograd.grad(losses.mean(), guide.affine.log_diagonal)
    # Downhill is wider, in each of the dimensions.
    assert (gradient < -0.01).all()


def test_large_weights_say_nothing_of_a_guide_that_is_the_posterior() -> None:
    """The log weights are all equal, but for rounding, which is no tail."""
    guide = AutoFlow(_conjugate, init="laplace")
    assert FlowObjective(guide, (), {}).excess() < 1e-4


def test_the_forward_loss_is_the_cross_entropy_of_the_posterior() -> None:
    """Of a guide that is 1.2 times as wide as the normal posterior and beside it by half of its sd."""
    guide = AutoFlow(_conjugate, init="laplace")
    target = FlowObjective(guide, (), {}, num_particles=20_000)
    with torch.no_grad():
        guide.affine.log_diagonal.add_(math.log(1.2))
        # In units of the posterior's sds.
        guide.affine.loc.add_(0.5)
    torch.manual_seed(0)
    loss, negative_bound = target.forward_loss()
    gradients = torch.autograd.grad(loss, [guide.affine.loc, guide.affine.log_diagonal])
    entropy = 0.5 * (3 * math.log(2 * math.pi) + 3) + (SDS * 0.5**0.5).log().sum().item()
    divergence = 3 * (math.log(1.2) + (1 + 0.25) / (2 * 1.44) - 0.5)
    # Of log q, a sum of three squares, with sds of 0.5 to 1 each, and of draws that share weights.
    assert loss.item() == pytest.approx(entropy + divergence, abs=0.03)
    torch.testing.assert_close(gradients[0], torch.full((3,), 0.5 / 1.44), atol=0.03, rtol=0)
    torch.testing.assert_close(gradients[1], torch.full((3,), 1 - 1.25 / 1.44), atol=0.05, rtol=0)
    # The other divergence is what the bound lacks.
    reverse = 3 * (-math.log(1.2) + (1.44 + 0.25) / 2 - 0.5)
    assert -negative_bound.item() == pytest.approx(EVIDENCE - reverse, abs=0.03)


class _Overflowing(FlowTransform):
    """A learned shift, but infinite where an element is above 1.5."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.shift = torch.nn.Parameter(torch.ones(size))

    def _forward_and_ladj(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        factor = torch.where(z > 1.5, torch.inf, 1.0)
        return z + factor * self.shift, z.new_zeros(z.shape[:-1])

    def _inverse_and_ladj(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return x - self.shift, x.new_zeros(x.shape[:-1])


def test_a_draw_that_overflows_is_left_out() -> None:
    """Of a shift by 1 each other draw's log q - log p is z + 1/2, with the path gradient 1."""

    def model() -> None:
        pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))

    guide = AutoFlow(model, _Overflowing, init="laplace")
    target = FlowObjective(guide, (), {}, num_particles=1000)
    guide.affine.set_(torch.zeros(1), torch.ones(1, 1))
    torch.manual_seed(0)
    loss = target.loss()
    (gradient,) = torch.autograd.grad(loss, target.of_flow[0])
    torch.manual_seed(0)
    z = target.base.sample((1000,))
    # One draw in fifteen.
    kept = z[z <= 1.5]
    assert 900 < len(kept) < 1000
    torch.testing.assert_close(loss, (kept + 0.5).mean())
    torch.testing.assert_close(gradient, torch.ones(1))


def test_another_start_is_elsewhere_with_a_fresh_flow() -> None:
    """Both of the ways of the first start end in the lower mode; of others more than half do not."""

    def two_modes() -> None:
        u = pyro.sample("u", dist.Normal(torch.zeros(2), 1.0).to_event(1).mask(False))
        of_first = dist.Normal(-1.0, 0.4).log_prob(u).sum(-1) - 4
        pyro.factor("modes", torch.logaddexp(of_first, dist.Normal(1.5, 0.4).log_prob(u).sum(-1)))

    guide = AutoFlow(two_modes, init_loc_fn=init_to_value(values={"u": torch.full((2,), -1.0)}))
    target = FlowObjective(guide, (), {})
    assert (guide.affine.fixed_loc + 1).abs().max() < 0.2
    with torch.no_grad():
        for parameter in target.of_flow:
            parameter.add_(1.0)
    torch.manual_seed(0)
    found = []
    while len(found) < 5 and not any(found):
        assert target.start_elsewhere()
        found.append((guide.affine.fixed_loc - 1.5).abs().max() < 0.2)
    assert any(found)
    assert guide.affine.loc.abs().max() == 0
    tails: Any = guide.transform.transforms[0].transforms[0]
    assert tails.skewness.abs().max() == 0
    # A start that was asked for is not left.
    assert not FlowObjective(AutoFlow(two_modes, init="laplace"), (), {}).start_elsewhere()


class _Slope(Objective):
    """A bound that is a straight line: each step of Adam's is as long as its step size."""

    lr, max_norm = 0.1, 10.0

    def __init__(self, second: bool = False) -> None:
        self.place = torch.zeros(1, requires_grad=True)
        self.parameters = [self.place]
        self.second = second

    def loss(self) -> Tensor:
        return self.place.sum()

    def log_weights(self, n: int) -> Tensor:
        """Of a guide whose weights' spread grows with the distance from zero."""
        return self.place.detach() * torch.randn(n)

    def start_elsewhere(self) -> bool:
        with torch.no_grad():
            self.place.fill_(50.0)
        return self.second


def test_a_round_ends_with_the_mean_of_its_last_quarter() -> None:
    target = _Slope()
    _Fit(target, 8, progress_bar=False).run()
    rates = [0.1 * (1 + math.cos(math.pi * step / 8)) / 2 for step in range(8)]
    places = [-sum(rates[: step + 1]) for step in range(8)]
    assert target.place.item() == pytest.approx((places[6] + places[7]) / 2, rel=1e-4)


@pytest.mark.parametrize("second", [True, False])
def test_a_bad_first_round_is_left_for_another_start(second: bool) -> None:
    """The second start, at 50, is where a round of 500 steps, 25 down, leads into the better part."""
    target = _Slope(second)
    with torch.no_grad():
        target.place.fill_(1e3)
    result = _Fit(target, 1200, progress_bar=False).run()
    # The steps from the first start are not counted.
    assert len(result.losses) == (1700 if second else 1200)
    assert (target.place.item() < 30) == second


def test_a_round_that_makes_it_worse_is_taken_back() -> None:
    """The first round ends near zero, where all weights are equal; the second leads away from there."""
    target = _Slope()
    with torch.no_grad():
        # Where the mean of the last quarter comes to half a unit.
        target.place.fill_(25.5)
    result = _Fit(target, 1200, progress_bar=False).run()
    assert len(result.losses) == 1200
    assert 0 < target.place.item() < 1


class _Narrow(Objective):
    """A normal of sd `s` for one of sd 1, with k-hat `1 - s^2`, that its bound leaves where it is."""

    lr, max_norm, forward_lr = 0.1, 10.0, 0.01

    def __init__(self, sign: float) -> None:
        self.log_scale = torch.tensor([math.log(0.45)], requires_grad=True)
        self.parameters = [self.log_scale]
        self.sign = sign

    def loss(self) -> Tensor:
        return 0.0 * self.log_scale.sum()

    def forward_loss(self) -> tuple[Tensor, Tensor]:
        divergence = self.log_scale + 0.5 * (-2 * self.log_scale).exp()
        return self.sign * divergence.sum(), torch.tensor(0.5)

    def log_weights(self, n: int) -> Tensor:
        scale = self.log_scale.detach().exp()
        x = scale * torch.randn(n)
        return scale.log() + 0.5 * (x / scale) ** 2 - 0.5 * x**2


def test_where_weights_are_bad_the_last_steps_are_by_the_forward_divergence() -> None:
    target = _Narrow(1.0)
    result = _Fit(target, 1600, progress_bar=False).run()
    assert target.log_scale.exp().item() == pytest.approx(1.0, abs=0.05)
    assert result.khat < 0.3
    # Its steps, too, are recorded by the bound: after those of the first and second round.
    assert result.losses == [0.0] * 1200 + [0.5] * 400


def test_a_forward_round_that_does_not_bring_k_hat_down_is_taken_back() -> None:
    target = _Narrow(-1.0)
    result = _Fit(target, 1600, progress_bar=False).run()
    assert target.log_scale.exp().item() == pytest.approx(0.45)
    assert result.khat > 0.6


class _Spoilt(_Slope):
    """Log weights of which one in a thousand is far below the others."""

    def log_weights(self, n: int) -> Tensor:
        values = 0.01 * torch.randn(n)
        values[::1000] = -1e6
        return values


def test_a_few_draws_do_not_spoil_a_guide_and_are_told_of() -> None:
    result = _Fit(_Spoilt(), 500, progress_bar=False).run()
    assert result.converged
    assert result.elbo == pytest.approx(-1000, rel=1e-2)
    assert "without them the evidence lower bound is 0.00" in result.advice.replace("-0.00", "0.00")


def test_a_guide_that_leaves_a_variable_out_is_refused_before_it_is_fitted() -> None:
    def model() -> None:
        which = pyro.sample("which", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z + which, 1.0), obs=torch.tensor(1.0))

    guide = AutoNormal(pyro.poutine.block(model, hide=["which"]))
    with pytest.raises(ValueError, match=r"without \['which'\]: sum them out"):
        fit_guide(model, guide, objective=TraceEnum_ELBO(max_plate_nesting=0), progress_bar=False)


def test_errors_say_what_to_do() -> None:
    guide = AutoFlow(_conjugate)
    with pytest.raises(ValueError, match="max_steps of at least 1"):
        fit_guide(_conjugate, guide, max_steps=0)
    with pytest.raises(ValueError, match="num_particles of at least 1"):
        fit_guide(_conjugate, guide, num_particles=0)

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
