"""NUTS through a guide's transform against posteriors that are known."""

from typing import Any

import arviz
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import (
    AutoDelta,
    AutoIAFNormal,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormalizingFlow,
)

from pyroflows import realnvp
from pyroflows.infer.neutra import NeuTraDraws, neutra_nuts

pytestmark = pytest.mark.usefixtures("fresh_pyro")


def _has_mean(draws: NeuTraDraws, values: torch.Tensor, expected: float) -> None:
    """Up to five standard errors, by the draws' autocorrelation."""
    chains = values.double().reshape(draws.num_chains, -1).numpy()
    error = chains.std() / arviz.ess(chains, method="mean") ** 0.5
    assert chains.mean() == pytest.approx(expected, abs=5 * error)


LOC = torch.tensor([1.0, -2.0])
COV = torch.tensor([[1.0, 1.6], [1.6, 4.0]])


def _normal() -> None:
    pyro.sample("z", dist.MultivariateNormal(LOC, COV))


def test_of_a_normal() -> None:
    """The draws are the posterior's, also by a guide that is far off."""
    guide = AutoMultivariateNormal(_normal)
    draws = neutra_nuts(
        _normal, guide, num_samples=200, warmup_steps=100, num_chains=2, seed=0, progress_bar=False
    )
    z = draws.samples["z"]
    assert z.shape == (400, 2)
    assert draws.divergences == 0
    for i in range(2):
        _has_mean(draws, z[:, i], LOC[i].item())
        for j in range(i + 1):
            _has_mean(draws, (z[:, i] - LOC[i]) * (z[:, j] - LOC[j]), COV[i, j].item())


def _funnel() -> None:
    v = pyro.sample("v", dist.Normal(0.0, 1.5))
    with pyro.plate("rows", 2):
        pyro.sample("x", dist.Normal(0.0, (v / 2).exp()))


def test_of_a_funnel_through_a_flow() -> None:
    guide = AutoNormalizingFlow(_funnel, lambda size: realnvp(size, steps=2))
    elbo = Trace_ELBO(num_particles=16, vectorize_particles=True, max_plate_nesting=1)
    svi = SVI(_funnel, guide, pyro.optim.Adam({"lr": 0.01}), elbo)
    for _ in range(200):
        svi.step()
    draws = neutra_nuts(_funnel, guide, num_samples=300, warmup_steps=150, seed=1, progress_bar=False)
    v, x = draws.samples["v"], draws.samples["x"]
    assert (v.shape, x.shape) == ((300,), (300, 2))
    _has_mean(draws, v, 0.0)
    _has_mean(draws, v**2, 1.5**2)
    noise = x / (v / 2).exp()[:, None]
    for i in range(2):
        _has_mean(draws, noise[:, i], 0.0)
        _has_mean(draws, noise[:, i] ** 2, 1.0)


def test_variables_in_their_own_space() -> None:
    """Simplices in plates, and a support that depends on another variable."""

    def model() -> None:
        low = pyro.sample("low", dist.Uniform(0.0, 1.0))
        high = pyro.sample("high", dist.Uniform(low, 2.0))
        with pyro.plate("rows", 2, dim=-2), pyro.plate("columns", 3, dim=-1):
            pyro.sample("p", dist.Dirichlet(torch.tensor([1.0, 2.0, 3.0, 4.0])))
            pyro.deterministic("both", low + high)

    draws = neutra_nuts(
        model, AutoMultivariateNormal(model), num_samples=150, warmup_steps=100, seed=0, progress_bar=False
    )
    low, high, p = draws.samples["low"], draws.samples["high"], draws.samples["p"]
    assert set(draws.samples) == {"low", "high", "p"}
    assert p.shape == (150, 2, 3, 4)
    assert dist.constraints.simplex.check(p).all()
    assert ((low > 0) & (low < high) & (high < 2)).all()
    _has_mean(draws, low, 0.5)
    _has_mean(draws, high, 1.25)
    for i in range(4):
        _has_mean(draws, p[:, 1, 2, i], (i + 1) / 10)


def test_discrete_variables_are_summed_out() -> None:
    def model() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        k = pyro.sample("k", dist.Bernoulli(0.3))
        pyro.sample("x", dist.Normal(z + 2 * k, 1.0), obs=torch.tensor(1.0))

    guide = AutoMultivariateNormal(poutine.block(model, hide=["k"]))
    draws = neutra_nuts(model, guide, num_samples=300, warmup_steps=150, seed=0, progress_bar=False)
    assert set(draws.samples) == {"z"}
    # As far from 1 are both means of `x`, so that `x` tells nothing of `k`; `z` is half of what is left.
    _has_mean(draws, draws.samples["z"], 0.7 * 0.5 - 0.3 * 0.5)
    _has_mean(draws, draws.samples["z"] ** 2, 0.5 + 0.25)

    def depends() -> None:
        k = pyro.sample("k", dist.Bernoulli(0.3))
        pyro.sample("z", dist.Normal(2 * k, 1.0))

    with pytest.raises(ValueError, match="discrete one, got one that does"):
        neutra_nuts(depends, AutoMultivariateNormal(poutine.block(depends, hide=["k"])), seed=0)


class _OfData(AutoMultivariateNormal):
    """A guide whose transform is one of the model's argument."""

    def get_transform(self, x: torch.Tensor, *, scale: float) -> Any:
        return dist.transforms.AffineTransform(x[None] / 2, torch.full((1,), scale), event_dim=1)


def test_guide_of_arguments() -> None:
    def model(x: torch.Tensor, *, scale: float) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    draws = neutra_nuts(
        model,
        _OfData(model),
        torch.tensor(3.0),
        scale=0.5**0.5,
        num_samples=300,
        warmup_steps=100,
        seed=0,
        progress_bar=False,
    )
    _has_mean(draws, draws.samples["z"], 1.5)
    _has_mean(draws, (draws.samples["z"] - 1.5) ** 2, 0.5)


def test_a_handler_of_the_caller_is_seen() -> None:
    """Which here leaves one latent variable of two, as the guide was made for."""

    def model() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("w", dist.Normal(z, 1.0))

    given = {"w": torch.tensor(0.5)}
    guide = AutoMultivariateNormal(poutine.condition(model, given))
    guide()
    with poutine.condition(data=given):
        draws = neutra_nuts(model, guide, num_samples=2, warmup_steps=2, progress_bar=False)
    assert list(draws.samples) == ["z"]


def test_gradients_and_divergences_are_counted() -> None:
    guide = AutoMultivariateNormal(_normal)
    counts = {"num_samples": 20, "warmup_steps": 10, "num_chains": 2, "seed": 0, "progress_bar": False}
    # A tree of depth one is a single leapfrog step.
    assert neutra_nuts(_normal, guide, max_tree_depth=1, **counts).num_gradients == 40
    assert neutra_nuts(_normal, guide, **counts).num_gradients > 40

    def wall() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.factor("wall", torch.where(z > 0.5, -1e6, 0.0))

    # Guides of a class share their parameters' names in Pyro's store.
    pyro.clear_param_store()
    draws = neutra_nuts(wall, AutoMultivariateNormal(wall), **counts)
    assert 0 < draws.divergences <= 40


def test_leaves_everything_as_it_was() -> None:
    guide = AutoIAFNormal(_funnel, hidden_dim=[8])
    guide()
    frozen = next(guide.parameters()).requires_grad_(False)
    before = {name: value.clone() for name, value in guide.state_dict().items()}
    wants = {name: value.requires_grad for name, value in guide.named_parameters()}
    store = dict(pyro.get_param_store().named_parameters())
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1]
    options = {"num_samples": 5, "warmup_steps": 5, "num_chains": 2, "progress_bar": False}

    draws = neutra_nuts(_funnel, guide, seed=5, **options)
    assert torch.get_rng_state().equal(state)
    assert (np.random.get_state()[1] == numpy_state).all()
    assert not frozen.requires_grad
    assert {name: value.requires_grad for name, value in guide.named_parameters()} == wants
    assert all(value.grad is None for value in guide.parameters())
    assert all(before[name].equal(value) for name, value in guide.state_dict().items())
    after = dict(pyro.get_param_store().named_parameters())
    assert after.keys() == store.keys()
    assert all(after[name] is store[name] for name in store)

    again = neutra_nuts(_funnel, guide, seed=5, **options)
    assert all(draws.samples[name].equal(again.samples[name]) for name in draws.samples)
    assert not draws.samples["v"][:5].equal(draws.samples["v"][5:])
    other = neutra_nuts(_funnel, guide, seed=6, **options)
    assert not draws.samples["v"].equal(other.samples["v"])


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"AutoContinuous, such as AutoFlow or .*, got AutoDelta: fit one"):
        neutra_nuts(_normal, AutoDelta(_normal))
    with pytest.raises(ValueError, match="a transform from its base, got AutoLowRankMultivariateNormal"):
        neutra_nuts(_normal, AutoLowRankMultivariateNormal(_normal))
    part = AutoMultivariateNormal(poutine.block(_funnel, hide=["x"]))
    with pytest.raises(ValueError, match=r"got one of \['v'\], which leaves \['x'\]: make the guide of"):
        neutra_nuts(_funnel, part)
    with pytest.raises(ValueError, match="expected warmup_steps of at least 1, got 0"):
        neutra_nuts(_normal, AutoMultivariateNormal(_normal), warmup_steps=0)

    def subsamples() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 10, subsample_size=4):
            pyro.sample("x", dist.Normal(z, 1.0), obs=torch.zeros(4))

    with pytest.raises(ValueError, match=r"neutra_nuts expected a model of all its data.* 4 of 10"):
        neutra_nuts(subsamples, AutoMultivariateNormal(subsamples))

    def impossible() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.factor("never", z - torch.inf)

    with pytest.raises(ValueError, match="got none at 100 draws of it: fit the guide"):
        neutra_nuts(impossible, AutoMultivariateNormal(impossible))
