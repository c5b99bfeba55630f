"""What an `AutoFlow` is fitted by, against closed forms."""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import init_to_value
from torch import Tensor

from pyroflows.infer import AutoFlow
from pyroflows.infer.flow_objective import FlowObjective
from pyroflows.infer.guides import guide_transform
from pyroflows.infer.muon import Muon
from pyroflows.transforms import FlowTransform, SinhArcsinh
from tests.infer.conjugate import EVIDENCE, conjugate

pytestmark = pytest.mark.usefixtures("fresh_pyro")


def test_a_draw_that_a_model_refuses_does_not_end_a_fit_before_it_begins() -> None:
    """In single precision the scale is zero wherever the guide draws."""

    def model() -> None:
        log_scale = pyro.sample("log_scale", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(0.0, log_scale.exp()), obs=torch.tensor(1.0))

    guide = AutoFlow(model, init="laplace")
    guide()
    guide.affine.set_(torch.tensor([-1000.0]), torch.ones(1, 1))
    with pyro.validation_enabled(True):
        assert FlowObjective(guide, (), {}).log_weights(3).tolist() == [-math.inf] * 3


def _of_the_conjugate_model(num_particles: int) -> tuple[AutoFlow, FlowObjective]:
    """A guide that is the model's normal posterior, and what it is fitted by."""
    guide = AutoFlow(conjugate, init="laplace")
    return guide, FlowObjective(guide, (), {}, num_particles)


def _wide_and_beside_it(num_particles: int) -> tuple[AutoFlow, FlowObjective]:
    """The same 1.2 times as wide as the posterior, and beside it by half of its sd."""
    guide, target = _of_the_conjugate_model(num_particles)
    with torch.no_grad():
        guide.affine.log_diagonal.add_(math.log(1.2))
        # In units of the posterior's sds.
        guide.affine.loc.add_(0.5)
    return guide, target


# What the bound of that guide lacks of the evidence: the other divergence.
LACKING = 3 * (-math.log(1.2) + (1.44 + 0.25) / 2 - 0.5)


def test_the_forward_loss_has_the_gradient_of_the_forward_divergence() -> None:
    """Of a guide that is 1.2 times as wide as the normal posterior and beside it by half of its sd.

    By quadrature: half of the draws are 1 + 1.5 / sqrt(6) times as wide as the guide, each has its weight,
    and the gradient of the path is the product of the scores' difference and what the draw has of it.
    """
    guide, target = _wide_and_beside_it(20_000)
    torch.manual_seed(0)
    loss, negative_bound = target.forward_loss(far=False)
    gradients = torch.autograd.grad(loss, [guide.affine.loc, guide.affine.log_diagonal])

    z = torch.linspace(-12.0, 12.0, 20_001, dtype=torch.float64)
    x = 0.5 + 1.2 * z
    log_weight = math.log(1.2) + 0.5 * z**2 - 0.5 * x**2
    widths = torch.tensor([1.0, 1 + 1.5 / 6**0.5])
    # Of one dimension; their masses are of all three.
    densities = (dist.Normal(0.0, widths[:, None]).log_prob(z) + log_weight).exp()
    shares = (densities.sum(1) ** 3) / (densities.sum(1) ** 3).sum()
    difference = x - z / 1.2
    means = [(densities * path * difference).sum(1) / densities.sum(1) for path in (1.0, 1.2 * z)]
    of_loc, of_log_diagonal = ((shares * mean).sum().item() for mean in means)
    # Means of products of normals, with sds of about 1, of draws that share weights.
    torch.testing.assert_close(gradients[0], torch.full((3,), of_loc), atol=0.03, rtol=0)
    torch.testing.assert_close(gradients[1], torch.full((3,), of_log_diagonal), atol=0.05, rtol=0)
    assert -negative_bound.item() == pytest.approx(EVIDENCE - LACKING, abs=0.03)


def test_the_forward_loss_of_a_guide_that_is_far_has_the_gradient_of_the_forward_divergence() -> None:
    """Of the same guide; the draws are the posterior's now, and of two normals that is a closed form."""
    guide, target = _wide_and_beside_it(20_000)
    torch.manual_seed(0)
    loss, negative_bound = target.forward_loss(far=True)
    gradients = torch.autograd.grad(loss, [guide.affine.loc, guide.affine.log_diagonal])
    torch.testing.assert_close(gradients[0], torch.full((3,), 0.5 / 1.44), atol=0.03, rtol=0)
    torch.testing.assert_close(gradients[1], torch.full((3,), 1 - 1.25 / 1.44), atol=0.05, rtol=0)
    assert -negative_bound.item() == pytest.approx(EVIDENCE - LACKING, abs=0.03)


@pytest.mark.parametrize("far", [False, True])
def test_the_forward_loss_has_no_gradient_where_the_guide_is_the_posterior(far: bool) -> None:
    """Not even by four draws, of which the gradient of log q alone would be of the order of 1/2."""
    guide, target = _of_the_conjugate_model(4)
    loss, negative_bound = target.forward_loss(far)
    gradients = torch.autograd.grad(loss, [guide.affine.loc, guide.affine.log_diagonal])
    # What single precision makes of differences of the scores.
    assert max(gradient.abs().max() for gradient in gradients) < 1e-3
    assert -negative_bound.item() == pytest.approx(EVIDENCE, abs=1e-3)


@pytest.mark.parametrize("far", [False, True])
def test_the_forward_loss_weighs_many_draws_in_few_steps(far: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights would be most of its time, and the guide moves little in so few steps."""
    guide, target = _of_the_conjugate_model(16)
    with torch.no_grad():
        guide.affine.loc.add_(0.5)
    log_density, weighed = target.log_density, []

    def seen(x: Tensor) -> Tensor:
        # More than those of a step.
        if len(x) > 2 * 16:
            weighed.append(len(x))
        return log_density(x)

    monkeypatch.setattr(target, "log_density", seen)
    monkeypatch.setattr(target.chains, "log_density", seen)
    losses = [target.forward_loss(far)[0].item() for _ in range(2 * 16)]
    # The second time there are chains, which walk 128 steps, and have a weight then.
    assert weighed == [64 * 16] * 2 + [16 * 16] * (128 + 2) * far
    # Each step has its own choice all the same.
    assert len(set(losses)) == 2 * 16


def test_no_draw_is_chosen_further_out_than_the_guides_own() -> None:
    """Of a guide that is too narrow by a factor of five, by importance alone the furthest would be all.

    Draws of three dimensions that are wider by a factor of 1.6 would be up to that further out.
    """
    guide, target = _of_the_conjugate_model(64)
    with torch.no_grad():
        guide.affine.log_diagonal.sub_(math.log(5.0))
    torch.manual_seed(0)
    z, weights, _ = target._draw_choice()
    radius = z.norm(dim=-1)
    own = radius[::2].max()
    assert radius[1::2].max() > 1.2 * own
    assert radius[weights > 0].max() <= own
    # Not that only the guide's own are left.
    assert (weights[1::2] > 0).sum() > 1000


def _in_posterior_sds(guide: AutoFlow, x: Tensor) -> Tensor:
    """Unconstrained vectors of the conjugate model in the coordinates in which its posterior is standard."""
    centred = (x - guide.affine.fixed_loc).T
    return torch.linalg.solve_triangular(guide.affine.fixed_tril, centred, upper=False).T


def test_the_chains_become_the_posteriors() -> None:
    """Of draws with a mean of 1/2 and an sd of 1.2, in units of the posterior's."""
    guide, target = _wide_and_beside_it(256)
    torch.manual_seed(0)
    for _ in range(10):
        _, weights, _ = target._move_chains()
    assert target.chains.x is not None
    chains = _in_posterior_sds(guide, target.chains.x)
    # Of 4096 chains that share no draws, but for those that began as the same; four standard errors.
    assert chains.shape == (4096, 3)
    torch.testing.assert_close(chains.mean(0), torch.zeros(3), atol=4 / 64, rtol=0)
    torch.testing.assert_close(chains.std(0), torch.ones(3), atol=4 / 64 / 2**0.5, rtol=0)
    torch.testing.assert_close(weights[:4096], torch.full((4096,), 1 / 4096))


def test_a_chain_is_where_it_was_when_the_flow_is_another() -> None:
    """Two sds out, of a guide that is too narrow by a factor of five: other weights are e^-40 of its."""
    guide, target = _of_the_conjugate_model(16)
    with torch.no_grad():
        guide.affine.log_diagonal.sub_(math.log(5.0))
    place = guide.affine.fixed_loc + guide.affine.fixed_tril @ torch.full((3,), 2.0)
    target.chains.x = place.expand(256, 3)
    # So that no walk leads away.
    target.chains.step_size = 1e-6
    for _ in range(3):
        with torch.no_grad():
            guide.affine.loc.add_(0.1)
        _, weights, _ = target._move_chains()
        torch.testing.assert_close(target.chains.x, place.expand(256, 3), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(weights[:256], torch.full((256,), 1 / 256))


def test_a_chain_that_is_out_of_reach_has_no_weight() -> None:
    """Twenty sds of the guide's out, and 20,000."""
    guide, target = _of_the_conjugate_model(16)
    z = torch.tensor([20.0, 20_000.0]).repeat(128)[:, None].expand(256, 3)
    target.chains.x = guide.affine.fixed_loc + z @ guide.affine.fixed_tril.T
    target.chains.log_density = lambda x: 0.0 * x.sum(-1)
    # So that no walk leads away.
    target.chains.step_size = 1e-6
    _, weights, _ = target._move_chains()
    torch.testing.assert_close(weights[:256], torch.tensor([1 / 256, 0.0]).repeat(128))


def test_draws_that_are_astray_have_a_small_weight() -> None:
    """Of a guide that is four times as wide as the posterior, by the log weights in closed form."""
    guide, target = _of_the_conjugate_model(64)
    with torch.no_grad():
        guide.affine.log_diagonal.add_(math.log(4.0))
    torch.manual_seed(0)
    z, weights, _ = target._move_chains()
    draws, of_draws = z[1024:], weights[1024:]
    # The weights' mean is the evidence; of 4096 draws it is within 0.2 nats.
    below = 3 * math.log(4.0) - 7.5 * draws.square().sum(-1) + 10
    assert (of_draws[below < -0.2] == of_draws.max()).all()
    assert (of_draws[below > 0.2] == 0).all()
    assert of_draws.max().item() == pytest.approx(0.08 / 4096)
    assert (below < -0.2).sum() > 1000


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
    (gradient,) = torch.autograd.grad(loss, target.parameters[0])
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
        for parameter in target.parameters:
            parameter.add_(1.0)
    torch.manual_seed(0)
    found = []
    while len(found) < 5 and not any(found):
        assert target.start_elsewhere(only_better=False)
        found.append((guide.affine.fixed_loc - 1.5).abs().max() < 0.2)
    assert any(found)
    assert guide.affine.loc.abs().max() == 0
    tails: Any = guide.transform.transforms[0].transforms[0]
    assert tails.skewness.abs().max() == 0
    # A start that was asked for is not left.
    asked = FlowObjective(AutoFlow(two_modes, init="laplace"), (), {})
    assert not asked.start_elsewhere(only_better=False)


def test_another_start_that_is_not_better_leaves_the_guide_as_it_is() -> None:
    """Of the conjugate model the first start is the posterior: there is nothing better."""
    target = FlowObjective(AutoFlow(conjugate), (), {})
    before = [tensor.clone() for tensor in target.state()]
    assert not target.start_elsewhere(only_better=True)
    for tensor, value in zip(target.state(), before, strict=True):
        assert torch.equal(tensor, value)
    assert target.start_elsewhere(only_better=False)


def test_matrices_of_networks_take_steps_of_muon_and_all_else_those_of_adam() -> None:
    """One that is too wide is left to Adam; and so is a model's own matrix."""

    def model() -> None:
        own = pyro.param("own", torch.eye(3))
        x = pyro.sample("x", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(x @ own, 1.0).to_event(1), obs=torch.ones(3))

    def flow(size: int) -> FlowTransform:
        return guide_transform(size, steps=1, hidden_features=(16, 200, 200))

    guide = AutoFlow(model, flow, init="laplace")
    target = FlowObjective(guide, (), {})
    adam, muon = target.optimizers(0.1)
    (of_adam,), (of_muon,) = adam.param_groups, muon.param_groups
    assert (type(adam), type(muon)) == (torch.optim.Adam, Muon)
    assert of_adam["lr"] == of_muon["lr"] == 0.1
    assert [p.shape for p in of_muon["params"]] == [(16, 1), (200, 16), (4, 200)]
    both = [id(p) for p in [*of_adam["params"], *of_muon["params"]]]
    assert sorted(both) == sorted(map(id, target.parameters))


def test_a_flow_without_networks_is_left_to_adam() -> None:
    guide = AutoFlow(conjugate, SinhArcsinh, init="laplace")
    target = FlowObjective(guide, (), {})
    (adam,) = target.optimizers(0.1)
    assert [id(p) for p in adam.param_groups[0]["params"]] == list(map(id, target.parameters))
