"""Chains against the normal distributions that they are to become."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pyroflows.infer.chains import Chains, truncated

# The flow is the identity of three dimensions.
SIZE = 3


def _log_weights_of(log_density: Callable[[Tensor], Tensor]) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    return lambda z: (z, log_density(z) + z.square().sum(-1) / 2)


def _chains_of(mean: float, sd: float) -> Chains:
    """Of a normal distribution, up to a constant."""
    return Chains(_log_weights_of(lambda z: -(((z - mean) / sd) ** 2).sum(-1) / 2), lambda x: x)


def _assert_normal(x: Tensor, mean: float, sd: float) -> None:
    """Within four standard errors of independent draws."""
    error = 4 * sd / math.sqrt(len(x))
    torch.testing.assert_close(x.mean(0), torch.full((SIZE,), mean), atol=error, rtol=0)
    torch.testing.assert_close(x.std(0), torch.full((SIZE,), sd), atol=error / 2**0.5, rtol=0)


@pytest.mark.parametrize("step_size", [0.3, 1.6])
def test_walks_leave_the_posterior_as_it_is(step_size: float) -> None:
    """Also with steps so long that without rejections the draws would be too wide."""
    torch.manual_seed(0)
    chains = _chains_of(0.5, 0.8)
    chains.step_size = step_size
    z = 0.5 + 0.8 * torch.randn(10_000, SIZE)
    walked, x, log_weights = chains.walk(z)
    assert (walked != z).any(-1).float().mean() > 0.1
    _assert_normal(walked, 0.5, 0.8)
    assert torch.equal(x, walked)
    torch.testing.assert_close(log_weights, chains.weigh(walked)[1])


def test_walks_become_the_posterior_and_learn_their_step_size() -> None:
    torch.manual_seed(0)
    chains = _chains_of(0.5, 0.3)
    z = torch.randn(10_000, SIZE)
    for _ in range(40):
        z, _, _ = chains.walk(z)
    _assert_normal(z, 0.5, 0.3)
    moved = (chains.walk(z)[0] != z).any(-1).float().mean().item()
    # Seven in ten are accepted; steps of random size differ by some hundredths.
    assert moved == pytest.approx(0.7, abs=0.05)


def test_a_walk_does_not_end_where_there_is_no_density() -> None:
    """Of a normal distribution's half, with a density of zero, one that is not a number, and no gradient."""

    def log_density(z: Tensor) -> Tensor:
        normal = -z.square().sum(-1) / 2
        normal = normal.where(z[:, 0] > 0, -torch.inf)
        return normal.where(z[:, 0] > -1, torch.nan)

    torch.manual_seed(0)
    chains = Chains(_log_weights_of(log_density), lambda x: x)
    z = torch.randn(10_000, SIZE).abs()
    for _ in range(5):
        z, _, log_weights = chains.walk(z)
    assert log_weights.isfinite().all()
    assert (z[:, 0] > 0).all()
    half = torch.tensor([math.sqrt(2 / math.pi), 0.0, 0.0])
    assert (z.mean(0)[0] - half[0]).abs() < 4 * 0.6 / 100


def _moved(chains: Chains, times: int, count: int) -> Tensor:
    """The states after some moves to so many draws of the base each."""
    for _ in range(times):
        z = torch.randn(count, SIZE)
        of_states = chains.move(z, *chains.weigh(z))
    assert chains.x is not None
    assert torch.equal(chains.x, of_states)
    return chains.x


def test_moves_become_the_posterior() -> None:
    """Of draws with a mean of 0 and an sd of 1; four to a chain, of which none has a draw of another."""
    torch.manual_seed(0)
    states = _moved(_chains_of(0.5, 0.8), 10, 40_000)
    assert states.shape == (10_000, SIZE)
    _assert_normal(states, 0.5, 0.8)


def test_jumps_find_what_no_walk_comes_to() -> None:
    """A second mode, twelve of its sds from the first, of which all states begin in the first."""

    def log_density(z: Tensor) -> Tensor:
        modes = [-((z - mean) / 0.1).square().sum(-1) / 2 for mean in (-0.6, 0.6)]
        return torch.logaddexp(modes[0] + math.log(0.25), modes[1] + math.log(0.75))

    torch.manual_seed(0)
    chains = Chains(_log_weights_of(log_density), lambda x: x)
    chains.x = torch.full((1000, SIZE), -0.6)
    states = _moved(chains, 300, 4000)
    share = (states[:, 0] > 0).float().mean().item()
    assert share == pytest.approx(0.75, abs=4 * math.sqrt(0.75 * 0.25 / 1000))


def test_a_walk_that_a_model_refuses_is_not_taken() -> None:
    """As a Cholesky factor of what is not finite: all jump from where they are; the next step is shorter."""

    def log_density(z: Tensor) -> Tensor:
        if z.abs().max() > 100:
            raise ValueError("not positive definite")
        return -z.square().sum(-1) / 2

    torch.manual_seed(0)
    chains = Chains(_log_weights_of(log_density), lambda x: x)
    chains.step_size = 1e3
    chains.x = torch.randn(1000, SIZE)
    for times in range(1, 5):
        _moved(chains, 1, 4000)
        assert chains.step_size == 1e3 / 2**times
    # The flow is the posterior: each is one of five draws with the same weight.
    _assert_normal(chains.x, 0.0, 1.0)


def test_a_state_that_is_lost_jumps() -> None:
    """Too far out for a flow's precision, with a weight that would keep it there for ever."""
    chains = _chains_of(0.0, 1e4)
    chains.step_size = 1e-3
    chains.x = torch.full((1000, SIZE), 10.0)
    torch.manual_seed(0)
    kept = _moved(chains, 1, 4000)
    # The weights of the draws are at most e^-140 of those of the states.
    assert (kept - 10.0).abs().max() < 0.1
    chains.x = torch.full((1000, SIZE), 1e3)
    assert _moved(chains, 1, 4000).abs().max() < 6


def test_weights_are_cut_off() -> None:
    """One weight of 1,000 among 100 in all is cut to ten times the mean, 10.99; by hand."""
    log_weights = torch.zeros(100)
    log_weights[7] = math.log(1000.0)
    expected = torch.ones(100)
    expected[7] = 10 * 10.99
    torch.testing.assert_close(truncated(log_weights), expected / expected.sum())
