"""`fit` finds the maximum-likelihood fit, and says what is wrong with data."""

import math

import pyro.distributions as dist
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from pyroflows import Dequantized, Flow, fit, glow, realnvp
from pyroflows.datasets import load
from pyroflows.training import score
from pyroflows.transforms import ActNorm, AffineMap, Chain, InvertibleLinear, coupling


def test_finds_the_gaussian() -> None:
    torch.manual_seed(0)
    data = torch.randn(1024, 2) @ torch.tensor([[1.0, 0.9], [0.0, 0.3]]) + torch.tensor([3.0, -1.0])
    flow = Flow(Chain([InvertibleLinear((2,)), ActNorm((2,))]))
    result = fit(flow, data, test_data=data, val_fraction=0, max_epochs=40, lr=0.02, progress_bar=False)
    best = dist.MultivariateNormal(data.mean(0), data.T.cov(correction=0))
    entropy = -best.log_prob(data).mean().item()
    assert len(result.losses) == 40
    # Nothing of the family is better than the empirical Gaussian; minibatches leave a little.
    assert -1e-4 <= result.test_score - entropy < 0.01
    assert result.baseline_test_score == pytest.approx(entropy, abs=1e-4)
    assert result.test_score == pytest.approx(-flow().log_prob(data).mean().item(), abs=1e-4)
    assert not flow.training


def test_integer_data_in_bits() -> None:
    """Coins: images of two levels, of which a fit can't get below one bit per pixel, the entropy."""
    torch.manual_seed(0)
    data = torch.randint(0, 2, (512, 1, 4, 4), dtype=torch.uint8)
    flow = Flow(glow((1, 4, 4), levels=1, steps=1, hidden_channels=8))
    result = fit(flow, data, test_data=data, grey_levels=2, max_epochs=30, lr=3e-3, progress_bar=False)
    assert 0.97 < result.test_score < 1.3
    assert result.losses[-1] < result.losses[0]


def test_mixed_precision_keeps_the_density_whole() -> None:
    """bfloat16 networks, float32 densities: about the same fit, and weights in full precision."""
    scores = []
    for precision in ("32-true", "bf16-mixed"):
        torch.manual_seed(0)
        flow, data = Flow(realnvp(2)), torch.randn(512, 2) * torch.tensor([3.0, 0.1])
        result = fit(flow, data, data, precision=precision, max_epochs=20, lr=5e-3, progress_bar=False)
        assert all(parameter.dtype == torch.float32 for parameter in flow.parameters())
        scores.append(result.val_score)
    assert abs(scores[0] - scores[1]) < 0.05


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
    data = torch.arange(16.0).reshape(8, 2).square()
    fit(Flow(ActNorm((2,))), data + 0.5, max_epochs=1, progress_bar=False)
    assert torch.equal(torch.rand(2), want)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_flow_stays_on_its_device() -> None:
    flow = Flow(realnvp(2)).cuda()
    fit(flow, torch.randn(64, 2), torch.randn(64, 2), max_epochs=1, progress_bar=False)
    assert all(parameter.is_cuda for parameter in flow.parameters())


def test_initialises_only_once() -> None:
    norm = ActNorm((2,))
    flow = Flow(norm)
    flow.initialize(torch.randn(100, 2) + 50)
    bias = norm.bias.detach().clone()
    fit(flow, torch.randn(64, 2), max_epochs=1, lr=1e-6, progress_bar=False)
    torch.testing.assert_close(norm.bias.detach(), bias, atol=1e-4, rtol=0)


def test_fewer_data_than_a_batch() -> None:
    result = fit(Flow(realnvp(2)), torch.randn(5, 2), max_epochs=2, batch_size=64, progress_bar=False)
    assert len(result.losses) == 2


def test_a_conditional_flow_is_given_each_datums_context() -> None:
    """The scale of the data is their context: the fit finds each context's own entropy."""
    torch.manual_seed(0)
    context = torch.randint(0, 2, (2048, 1)).float()
    data = torch.randn(2048, 1) * (0.2 + 1.8 * context)
    flow = Flow(coupling(1, AffineMap("exp"), context_dim=1))
    given = {"context": context, "test_data": data, "test_context": context}
    result = fit(flow, data, max_epochs=20, lr=5e-3, progress_bar=False, **given)
    sds = torch.stack([data[context == value].std(correction=0) for value in (0.0, 1.0)])
    weights = torch.stack([(context == value).float().mean() for value in (0.0, 1.0)])
    entropy = (weights * (sds.log() + 0.5 * math.log(2 * math.pi * math.e))).sum().item()
    assert result.test_score == pytest.approx(entropy, abs=0.02)


def test_contexts_that_are_missing_or_not_wanted() -> None:
    conditional, plain, data = Flow(realnvp(2, context_dim=3)), Flow(realnvp(2)), torch.zeros(4, 2)
    for given in (None, torch.zeros(3, 3), torch.zeros(4, 2)):
        with pytest.raises(ValueError, match=r"a context of shape \(4, 3\), one of each datum"):
            fit(conditional, data, context=given, progress_bar=False)
    with pytest.raises(ValueError, match="takes no context"):
        fit(plain, data, context=torch.zeros(4, 3), progress_bar=False)
    with pytest.raises(ValueError, match=r"a context of shape \(4, 3\)"):
        fit(conditional, data, data, context=torch.zeros(4, 3), progress_bar=False)
    with pytest.raises(ValueError, match="grey_levels and noise are for integer data"):
        score(plain, data, noise=Flow(realnvp(2, context_dim=2)))


@pytest.mark.slow
def test_learned_noise_gives_a_tighter_bound_on_digits() -> None:
    """Only the noise is trained, so the likelihood that is bounded stays."""
    digits = load("digits")
    torch.manual_seed(0)
    flow = Flow(glow((1, 8, 8), levels=2, steps=4, hidden_channels=32))
    fit(flow, digits.train, grey_levels=17, max_epochs=15, lr=5e-3, progress_bar=False)
    uniform = score(flow, digits.test, grey_levels=17)
    weights = {name: value.clone() for name, value in flow.state_dict().items()}
    flow.requires_grad_(False)
    noise = Flow(realnvp((1, 8, 8), levels=1, hidden_channels=16, context_shape=(1, 8, 8)))
    given = {"test_data": digits.test, "grey_levels": 17, "noise": noise}
    learned = fit(flow, digits.train, max_epochs=10, lr=5e-3, progress_bar=False, **given).test_score
    assert all(torch.equal(value, weights[name]) for name, value in flow.state_dict().items())
    assert learned < uniform - 0.02


@pytest.mark.slow
def test_class_conditional_samples_are_of_their_class() -> None:
    """At temperature 1, by a linear classifier that was trained on real digits."""
    digits = load("digits")
    torch.manual_seed(0)
    flow = Flow(
        glow(
            (1, 8, 8),
            levels=2,
            steps=4,
            hidden_channels=32,
            dropout=0.1,
            coupling="logistic_mixture",
            context_dim=10,
        )
    )
    classes = torch.nn.functional.one_hot(digits.train_labels, 10).float()
    fit(flow, digits.train, context=classes, grey_levels=17, max_epochs=15, lr=5e-3, progress_bar=False)
    classifier = LogisticRegression(max_iter=5000).fit(digits.train.flatten(1), digits.train_labels)
    assert classifier.score(digits.test.flatten(1), digits.test_labels) > 0.93
    asked_for = torch.arange(1000) % 10
    samples = Dequantized(flow(torch.nn.functional.one_hot(asked_for, 10).float()), 17).sample()
    assert classifier.score(samples.flatten(1), asked_for) >= 0.85


BAD = [
    (torch.zeros(4, 3), {}, r"data of shape \(N, 2\), got \(4, 3\)"),
    (torch.zeros(2), {}, r"data of shape \(N, 2\), got \(2,\)"),
    (torch.zeros(1, 2), {}, "at least 2 data, got 1"),
    (torch.tensor([[0.0, 1.0], [1.0, float("nan")]]), {}, "got nan in column 1, row 1"),
    (torch.zeros(4, 2), {"grey_levels": 3}, "grey_levels and noise are for integer data"),
    (
        torch.full((4, 2), 17, dtype=torch.uint8),
        {"grey_levels": 17},
        "integers 0 to 16, got 17 to 17: set grey_levels",
    ),
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
