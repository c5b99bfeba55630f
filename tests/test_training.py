"""`fit` finds the maximum-likelihood fit, and says what is wrong with data."""

import pyro.distributions as dist
import pytest
import torch

from pyroflows import Flow, fit, glow, realnvp
from pyroflows.training import score
from pyroflows.transforms import ActNorm, Chain, InvertibleLinear


def test_finds_the_gaussian() -> None:
    torch.manual_seed(0)
    data = torch.randn(1024, 2) @ torch.tensor([[1.0, 0.9], [0.0, 0.3]]) + torch.tensor([3.0, -1.0])
    flow = Flow(Chain([InvertibleLinear((2,)), ActNorm((2,))]))
    result = fit(flow, data, data, max_epochs=40, lr=0.02, progress_bar=False)
    best = dist.MultivariateNormal(data.mean(0), data.T.cov(correction=0))
    entropy = -best.log_prob(data).mean().item()
    assert len(result.losses) == 40
    # Nothing of the family is better than the empirical Gaussian; minibatches leave a little.
    assert -1e-4 <= result.score - entropy < 0.01
    assert result.score == pytest.approx(-flow().log_prob(data).mean().item(), abs=1e-4)
    assert not flow.training


def test_integer_data_in_bits() -> None:
    """Coins: images of two levels, of which a fit can't get below one bit per pixel, the entropy."""
    torch.manual_seed(0)
    data = torch.randint(0, 2, (512, 1, 4, 4), dtype=torch.uint8)
    flow = Flow(glow((1, 4, 4), levels=1, steps=1, hidden_channels=8))
    result = fit(flow, data, data, levels=2, max_epochs=30, lr=3e-3, progress_bar=False)
    assert 0.97 < result.score < 1.3
    assert result.losses[-1] < result.losses[0]


def test_a_seed_gives_the_same_weights() -> None:
    def weights(seed: int) -> list[torch.Tensor]:
        torch.manual_seed(1)
        data, flow = torch.randn(100, 2), Flow(realnvp(2, steps=2, hidden_features=(8,)))
        fit(flow, data, max_epochs=2, seed=seed, progress_bar=False)
        return [p.detach() for p in flow.parameters()]

    first, again, other = weights(3), weights(3), weights(4)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_the_users_random_state_is_left_alone() -> None:
    torch.manual_seed(3)
    want = torch.rand(2)
    torch.manual_seed(3)
    fit(Flow(ActNorm((2,))), torch.zeros(8, 2), max_epochs=1, progress_bar=False)
    assert torch.equal(torch.rand(2), want)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_flow_stays_on_its_device() -> None:
    flow = Flow(realnvp(2)).cuda()
    fit(flow, torch.randn(64, 2), torch.randn(64, 2), max_epochs=1, progress_bar=False)
    assert all(parameter.is_cuda for parameter in flow.parameters())


def test_initialises_only_once() -> None:
    flow = Flow(ActNorm((2,)))
    flow.initialize(torch.randn(100, 2) + 50)
    bias = flow.transform.bias.detach().clone()
    fit(flow, torch.randn(64, 2), max_epochs=1, lr=1e-6, progress_bar=False)
    torch.testing.assert_close(flow.transform.bias.detach(), bias, atol=1e-4, rtol=0)


def test_fewer_data_than_a_batch() -> None:
    result = fit(Flow(realnvp(2)), torch.randn(5, 2), max_epochs=2, batch_size=64, progress_bar=False)
    assert len(result.losses) == 2


BAD = [
    (torch.zeros(4, 3), {}, r"data of shape \(N, 2\), got \(4, 3\)"),
    (torch.zeros(2), {}, r"data of shape \(N, 2\), got \(2,\)"),
    (torch.zeros(1, 2), {}, "at least 2 data, got 1"),
    (torch.tensor([[0.0, 1.0], [1.0, float("nan")]]), {}, "not in row 1"),
    (torch.zeros(4, 2), {"levels": 3}, "levels and noise are for integer data"),
    (torch.full((4, 2), 17, dtype=torch.uint8), {"levels": 17}, "integers 0 to 16, got 17 to 17: set levels"),
    (torch.zeros(4, 2), {"max_epochs": 0}, "max_epochs and batch_size of at least 1"),
    (torch.zeros(4, 2), {"lr": -1.0}, "positive lr"),
]


@pytest.mark.parametrize(("data", "options", "message"), BAD)
def test_bad_arguments(data, options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(Flow(realnvp(2)), data, progress_bar=False, **options)


def test_score_of_reals_is_the_mean_in_nats() -> None:
    flow, data = Flow(realnvp(2)), torch.randn(300, 2)
    assert score(flow, data) == pytest.approx(-flow().log_prob(data).mean().item(), abs=1e-5)
    # One datum can be scored, though not fitted.
    assert score(flow, data[:1]) == pytest.approx(-flow().log_prob(data[0]).item(), abs=1e-5)
    with pytest.raises(ValueError, match="at least 1 data, got 0"):
        score(flow, data[:0])
