"""The levels of a model's variables, and the couplings that a guide has for them."""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyroflows.infer import AutoFlow, fit_guide
from pyroflows.infer.flow_objective import FlowObjective
from pyroflows.infer.guides import guide_transform
from pyroflows.infer.hierarchy import hierarchy
from pyroflows.transforms import Coupling

pytestmark = pytest.mark.usefixtures("fresh_pyro")


def _schools() -> None:
    """Its own order is not that of the levels."""
    noise = pyro.sample("noise", dist.LogNormal(torch.zeros(3), 1.0).to_event(1))
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    schools = pyro.sample("schools", dist.Normal(mean, scale).expand([3]).to_event(1))
    pupils = pyro.sample("pupils", dist.Normal(schools, noise).to_event(1))
    pyro.sample("x", dist.Normal(pupils, 1.0).to_event(1), obs=torch.zeros(3))


SHAPES = {"noise": (3,), "mean": (), "scale": (), "schools": (3,), "pupils": (3,)}
LEVELS = [["mean", "scale"], ["noise"], ["schools"], ["pupils"]]


def _levels(model: Any, shapes: dict[str, tuple[int, ...]], *args: Any) -> list[list[str]]:
    return hierarchy(model, {name: torch.Size(shape) for name, shape in shapes.items()}, args, {})


def test_what_depends_on_others_is_below_them_and_numbers_are_above_vectors() -> None:
    assert _levels(_schools, SHAPES) == LEVELS


def test_a_deep_chain_is_of_few_levels() -> None:
    def walk() -> None:
        place = pyro.sample("z0", dist.Normal(0.0, 1.0))
        for step in range(1, 6):
            place = pyro.sample(f"z{step}", dist.Normal(place, 1.0))

    levels = _levels(walk, {f"z{step}": () for step in range(6)})
    assert levels == [["z0"], ["z1"], ["z2"], ["z3", "z4", "z5"]]


def test_arguments_reach_the_model() -> None:
    def model(n: int) -> None:
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        pyro.sample("x", dist.Normal(0.0, scale).expand([n]).to_event(1))

    assert _levels(model, {"scale": (), "x": (4,)}, 4) == [["scale"], ["x"]]


def test_a_model_that_can_not_be_followed_has_levels_by_its_shapes() -> None:
    def model() -> None:
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        if type(scale) is not torch.Tensor:
            raise TypeError("an operation that takes plain tensors alone")
        pyro.sample("x", dist.Normal(0.0, scale).expand([2]).to_event(1))
        pyro.sample("y", dist.Normal(0.0, scale))

    assert _levels(model, {"scale": (), "x": (2,), "y": ()}) == [["scale", "y"], ["x"]]


def test_no_handler_of_the_caller_sees_the_model() -> None:
    with pyro.poutine.trace() as trace, pyro.plate("many", 7):
        assert _levels(_schools, SHAPES) == LEVELS
    assert [name for name in trace.trace.nodes if name in SHAPES] == []


def test_a_guide_has_two_couplings_for_each_level_but_the_last() -> None:
    guide = AutoFlow(_schools)
    guide()
    flow: Any = guide.transform.transforms[0]
    last = [part for part in flow.transforms if isinstance(part, Coupling)][-6:]
    passing = [sorted(part.partition.positions) for part in last]  # type: ignore[attr-defined]
    assert passing[::2] == passing[1::2] == [[3, 4], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5, 6, 7]]
    # A network's scales are bounded, or a few draws far out would be much too wide.
    scales = [part.elementwise.scale for part in last]
    assert scales == ["softclip", "exp"] * 3


def test_a_flow_of_ones_own_is_left_as_it_is() -> None:
    own = guide_transform(11, steps=1)
    guide = AutoFlow(_schools, lambda size: own)
    guide()
    assert guide.transform.transforms[0] is own


def _funnel() -> None:
    v = pyro.sample("v", dist.Normal(0.0, 3.0))
    pyro.sample("x", dist.Normal(torch.zeros(9), (v / 2).exp().unsqueeze(-1)).to_event(1))


def test_a_funnel_is_made_exactly() -> None:
    """By the last coupling alone: all weights are one."""
    guide = AutoFlow(_funnel, init="prior")
    guide()
    affine = guide.affine
    affine.set_(torch.zeros(10), torch.diag(torch.tensor([3.0, *[1.0] * 9])))
    flow: Any = guide.transform.transforms[0]
    with torch.no_grad():
        # The log scale of data to latent of each x is -v / 2, and v is three times what passes.
        flow.transforms[-1].conditioner.layers[-1].weight[9:] = -1.5
    log_weights = FlowObjective(guide, (), {}).log_weights(1000)
    torch.testing.assert_close(log_weights, torch.zeros(1000), atol=1e-4, rtol=0)


def test_a_centred_hierarchy_is_fitted() -> None:
    """Of ten groups with one datum each; the moments of the scale by quadrature, all else integrated out."""
    x = 2 * torch.linspace(-1.5, 1.5, 10)

    def model() -> None:
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        means = pyro.sample(
            "means", dist.Normal(0.0, scale.unsqueeze(-1)).expand([*scale.shape, 10]).to_event(1)
        )
        pyro.sample("x", dist.Normal(means, 1.0).to_event(1), obs=x)

    guide = AutoFlow(model)
    result = fit_guide(model, guide, progress_bar=False)
    assert result.khat < 0.7
    log_scale = torch.linspace(-8, 6, 20_001, dtype=torch.float64)
    marginal = dist.Normal(0.0, (1 + (2 * log_scale).exp()).sqrt()).log_prob(x[:, None].double()).sum(0)
    log_joint = marginal + dist.Normal(0.0, 1.0).log_prob(log_scale)
    weights = torch.softmax(log_joint, 0)
    mean = (weights * log_scale).sum()
    sd = (weights * (log_scale - mean) ** 2).sum().sqrt()
    evidence = (log_joint.logsumexp(0) + math.log(14 / 20_000)).item()
    draws = guide.sample_posterior(20_000)["scale"].log()
    assert abs(draws.mean() - mean) < 0.1 * sd
    assert (draws.std() / sd).log().abs() < 0.1
    assert evidence - 0.1 < result.elbo < evidence + 0.01
