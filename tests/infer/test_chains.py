"""Chains against the normal distributions that they are to become."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pyroflows.infer.chains import Chains, log_normal, truncated
from pyroflows.transforms import TriangularAffine

# The flow, and the whitening, are the identity of three dimensions.
SIZE = 3


def _chains(log_density: Callable[[Tensor], Tensor], leaps: int = 4) -> Chains:
    flow = TriangularAffine(SIZE)
    return Chains(log_density, flow, flow, leaps)


def _chains_of(mean: float, sd: float) -> Chains:
    """Of a normal distribution, up to a constant."""
    return _chains(lambda x: -(((x - mean) / sd) ** 2).sum(-1) / 2)


def _assert_normal(x: Tensor, mean: float, sd: float) -> None:
    """Within four standard errors of independent draws."""
    error = 4 * sd / math.sqrt(len(x))
    torch.testing.assert_close(x.mean(0), torch.full((SIZE,), mean), atol=error, rtol=0)
    torch.testing.assert_close(x.std(0), torch.full((SIZE,), sd), atol=error / 2**0.5, rtol=0)


@pytest.mark.parametrize("step_size", [0.3, 1.3])
def test_walks_leave_the_posterior_as_it_is(step_size: float) -> None:
    """Also with steps so long that without rejections the draws would be too wide."""
    torch.manual_seed(0)
    chains = _chains_of(0.5, 0.8)
    chains.step_size = step_size
    x = 0.5 + 0.8 * torch.randn(10_000, SIZE)
    walked = chains.walk(x)
    assert (walked != x).any(-1).float().mean() > 0.1
    _assert_normal(walked, 0.5, 0.8)


def test_walks_become_the_posterior_and_learn_their_step_size() -> None:
    torch.manual_seed(0)
    chains = _chains_of(0.5, 0.3)
    chains.step_size = 1.0
    x = torch.randn(10_000, SIZE)
    for _ in range(60):
        x = chains.walk(x)
    _assert_normal(x, 0.5, 0.3)
    moved = (chains.walk(x) != x).any(-1).float().mean().item()
    # Nineteen in twenty are accepted; steps of random size differ by some hundredths.
    assert moved == pytest.approx(0.95, abs=0.02)


def test_walks_are_in_the_whitened_space() -> None:
    """Of a posterior with sds of 1e-3 and 1e3, which no step of one size suits but there."""
    torch.manual_seed(0)
    sds = torch.tensor([1e-3, 1.0, 1e3])
    flow, whitened = TriangularAffine(SIZE), TriangularAffine(SIZE)
    whitened.set_(torch.zeros(SIZE), sds.diag())
    chains = Chains(lambda x: -(x / sds).square().sum(-1) / 2, flow, whitened, leaps=8)
    x = torch.zeros(10_000, SIZE)
    for _ in range(20):
        x = chains.walk(x)
    _assert_normal(x / sds, 0.0, 1.0)


def test_a_walk_does_not_end_where_there_is_no_density() -> None:
    """Of a normal distribution's half, with a density of zero, one that is not a number, and no gradient."""

    def log_density(x: Tensor) -> Tensor:
        normal = -x.square().sum(-1) / 2
        normal = normal.where(x[:, 0] > 0, -torch.inf)
        return normal.where(x[:, 0] > -1, torch.nan)

    torch.manual_seed(0)
    chains = _chains(log_density)
    x = torch.randn(10_000, SIZE)
    x[:, 0].abs_()
    for _ in range(5):
        x = chains.walk(x)
    assert (x[:, 0] > 0).all()
    assert (x.mean(0)[0] - math.sqrt(2 / math.pi)).abs() < 4 * 0.6 / 100


def _moved(chains: Chains, times: int, count: int) -> tuple[Tensor, Tensor]:
    """The states after some moves to so many draws of the base each, and which of them are near."""
    for _ in range(times):
        z = torch.randn(count, SIZE)
        of_states, near = chains.move(z, z, chains.log_density(z) - log_normal(z))
    assert chains.x is not None
    # The flow is the identity.
    torch.testing.assert_close(chains.x, of_states)
    return chains.x, near


def test_moves_become_the_posterior() -> None:
    """Of draws with a mean of 0 and an sd of 1; four to a chain, of which none has a draw of another."""
    torch.manual_seed(0)
    states, near = _moved(_chains_of(0.5, 0.8), 10, 40_000)
    assert near.all()
    assert states.shape == (10_000, SIZE)
    _assert_normal(states, 0.5, 0.8)


def test_jumps_find_what_no_walk_comes_to() -> None:
    """A second mode, twelve of its sds from the first, of which all states begin in the first."""

    def log_density(z: Tensor) -> Tensor:
        modes = [-((z - mean) / 0.1).square().sum(-1) / 2 for mean in (-0.6, 0.6)]
        return torch.logaddexp(modes[0] + math.log(0.25), modes[1] + math.log(0.75))

    torch.manual_seed(0)
    chains = _chains(log_density)
    chains.x = torch.full((1000, SIZE), -0.6)
    states, _ = _moved(chains, 300, 4000)
    share = (states[:, 0] > 0).float().mean().item()
    assert share == pytest.approx(0.75, abs=4 * math.sqrt(0.75 * 0.25 / 1000))


def test_the_first_moves_walk_and_each_eighth(monkeypatch: pytest.MonkeyPatch) -> None:
    chains = _chains_of(0.0, 1.0)
    walks: list[Tensor] = []
    monkeypatch.setattr(chains, "walk", lambda x: walks.append(x) or x)
    # What the first does is to draw the states.
    so_far = []
    for _ in range(18):
        _moved(chains, 1, 40)
        so_far.append(len(walks))
    assert so_far == [0, 1, *[2] * 7, *[3] * 8, 4]


def test_a_walk_that_a_model_refuses_is_not_taken() -> None:
    """As a Cholesky factor of what is not finite: all jump from where they are; the next step is shorter."""

    def log_density(x: Tensor) -> Tensor:
        if x.abs().max() > 100:
            raise ValueError("not positive definite")
        return -x.square().sum(-1) / 2

    torch.manual_seed(0)
    chains = _chains(log_density)
    chains.step_size = 1e3
    chains.x = torch.randn(1000, SIZE)
    for times in (1, 2):
        _moved(chains, 1, 4000)
        assert chains.step_size == 1e3 / 2**times
    # The flow is the posterior: each is one of five draws with the same weight.
    _assert_normal(chains.x, 0.0, 1.0)


def test_a_state_that_is_out_of_reach_stays_until_the_flow_comes_near() -> None:
    """Where the posterior is and the flow is not: it would teach the flow nothing but to break."""
    chains = _chains_of(0.0, 1e4)
    chains.step_size = 1e-3
    chains.x = torch.tensor([[5.0] * SIZE, [50.0] * SIZE]).repeat(500, 1)
    torch.manual_seed(0)
    before = chains.x
    # The weights of the draws are at most e^-30 of those of the states; draws are up to 4.5 from the mean.
    kept, near = _moved(chains, 1, 4000)
    torch.testing.assert_close(kept, before, atol=0.1, rtol=0)
    assert torch.equal(near, torch.tensor([True, False]).repeat(500))


def test_a_state_of_which_the_flow_overflows_jumps() -> None:
    chains = _chains_of(0.0, 1e4)
    chains.x = torch.full((1000, SIZE), 1e20)
    torch.manual_seed(0)
    states, near = _moved(chains, 1, 4000)
    assert near.all()
    assert states.abs().max() < 6


def test_weights_are_cut_off() -> None:
    """One weight of 1,000 among 100 in all is cut to ten times the mean, 10.99; by hand."""
    log_weights = torch.zeros(100)
    log_weights[7] = math.log(1000.0)
    expected = torch.ones(100)
    expected[7] = 10 * 10.99
    torch.testing.assert_close(truncated(log_weights), expected / expected.sum())
