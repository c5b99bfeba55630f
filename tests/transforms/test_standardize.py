"""Fixed centres and scales: of the data's digits nothing is lost, and they stay what they were."""

import math

import pyro.distributions as dist
import pytest
import torch

from pyroflows import Flow, glow, realnvp
from pyroflows.transforms import ActNorm, Chain, Logit, Standardize, TriangularAffine


def test_the_density_is_that_of_the_scaled_data() -> None:
    inner = realnvp(3)
    data = torch.randn(200, 3) * torch.tensor([1e-7, 1.0, 1e6]) + torch.tensor([0.0, 5.0, -1e6])
    outer = Standardize(inner)
    outer.fit_to(data)
    loc, scale = data.double().mean(0), data.double().std(0, correction=0)
    want = Flow(inner)().log_prob(((data - loc) / scale).float()) - scale.log().sum()
    torch.testing.assert_close(Flow(outer)().log_prob(data), want.float())
    x = Flow(outer)().sample((500,))
    assert bool(((x - loc).abs() < 20 * scale).all())


def test_a_column_keeps_the_digits_of_a_float64() -> None:
    """1e9 +- 1e-3: as a float32 all values would be the same."""
    data = 1e9 + 1e-3 * torch.randn(1000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    flow = Flow(Standardize(ActNorm(1)))
    flow.initialize(data)
    sd = data.std(correction=0).item()
    entropy = math.log(sd) + 0.5 * math.log(2 * math.pi * math.e)
    assert -flow().log_prob(data).mean().item() == pytest.approx(entropy, abs=1e-4)
    # Another dtype and back, and the numbers are as they were.
    before = flow.transform.loc.clone()
    assert torch.equal(flow.float().transform.loc, before)
    assert torch.equal(flow.double().transform.loc, before)
    assert flow.to("meta").transform.loc.is_meta


def test_contexts_of_any_size_are_the_same_work() -> None:
    torch.manual_seed(0)
    context, x = torch.randn(300, 2), torch.randn(300, 3)
    densities = []
    for size in (1e-6, 1.0, 1e6):
        torch.manual_seed(1)
        flow = Flow(Standardize(realnvp(3, context_dim=2)))
        for parameter in flow.parameters():
            parameter.data.add_(0.1 * torch.randn_like(parameter))
        flow.initialize(x, size * context)
        densities.append(flow(size * context).log_prob(x))
    torch.testing.assert_close(densities[0], densities[1], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(densities[2], densities[1], atol=1e-4, rtol=1e-4)


def test_contexts_alone() -> None:
    flow = Flow(Standardize(glow((1, 4, 4), steps=1, hidden_channels=4, context_dim=3), data=False))
    x, context = 50 + torch.randn(20, 1, 4, 4), 1e-4 * torch.randn(20, 3)
    flow.initialize(x, context)
    assert not hasattr(flow.transform, "loc")
    torch.testing.assert_close(flow.transform.context_scale, context.double().std(0, correction=0))


def test_the_first_centre_stays() -> None:
    flow = Flow(Standardize(realnvp(2)))
    flow.initialize(torch.randn(50, 2) + 3)
    loc = flow.transform.loc.clone()
    flow.initialize(torch.randn(50, 2) - 100)
    assert torch.equal(flow.transform.loc, loc)


def test_a_state_brings_its_standardize() -> None:
    """A flow that was fitted has one more part than a new one of the same recipe."""
    for context_dim in (None, 2):
        fitted = Flow(realnvp(3, context_dim=context_dim))
        assert fitted.standardize() is fitted.standardize()
        context = None if context_dim is None else torch.randn(40, 2)
        x = 7 * torch.randn(40, 3)
        fitted.initialize(x, context)
        new = Flow(realnvp(3, context_dim=context_dim))
        holder = torch.nn.ModuleDict({"prior": new})
        holder.load_state_dict({f"prior.{name}": value for name, value in fitted.state_dict().items()})
        assert torch.equal(new(context).log_prob(x), fitted(context).log_prob(x))
    # A part of that name in another transform means something else.
    affine = Flow(TriangularAffine(3))
    affine.load_state_dict(Flow(TriangularAffine(3)).state_dict())
    assert isinstance(affine.transform, TriangularAffine)


def test_bounded_data_are_left_alone() -> None:
    bounded = Chain([realnvp(2), Logit(2)])
    assert Flow(bounded).standardize() is None
    with pytest.raises(ValueError, match="Standardize expected a transform to all real numbers, got Chain"):
        Standardize(bounded)
    positive = Chain([realnvp(2), dist.transforms.ExpTransform()])
    with pytest.raises(ValueError, match="put the bounded part behind the Standardize"):
        Standardize(positive)
    assert Flow(Chain([Standardize(realnvp(2)), dist.transforms.ExpTransform()])).standardize() is not None
    # Their contexts are standardised all the same, and the support stays.
    flow = Flow(Chain([realnvp(2, context_dim=1), dist.transforms.ExpTransform()]))
    context = 1e-5 * torch.randn(20, 1)
    part = flow.standardize()
    flow.initialize(torch.rand(20, 2) + 1, context)
    assert not part.data
    torch.testing.assert_close(part.context_scale, context.double().std(0, correction=0))
    assert not flow(context).support.check(-torch.ones(20, 2)).any()
