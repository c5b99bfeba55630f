"""The posterior of a digit that is seen in part and through noise, with a trained Glow as its prior."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS, Trace_ELBO
from pyro.ops.stats import effective_sample_size
from torch import Tensor

from pyroflows import Flow, fit, glow
from pyroflows.datasets import load
from pyroflows.infer import AutoFlow, fit_guide
from pyroflows.transforms import AffineMap

SHAPE, NOISE = (1, 8, 8), 0.1

VISIBLE = torch.zeros(SHAPE, dtype=torch.bool)
VISIBLE[:, :4] = True


def _reals(digits: Tensor) -> Tensor:
    """Counts of 0 to 16, with uniform noise, in [0, 1)."""
    return (digits + torch.rand(digits.shape)) / 17


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    data = load("digits")
    assert data.test is not None
    torch.manual_seed(0)
    return _reals(data.train), _reals(data.test)


@pytest.fixture(scope="module")
def prior(digits: tuple[Tensor, Tensor]) -> Flow:
    """A small Glow, trained for a few seconds, and fixed."""
    torch.manual_seed(0)
    flow = Flow(glow(SHAPE, levels=2, steps=2, hidden_channels=32, coupling=AffineMap("softclip")))
    fit(flow, digits[0], max_epochs=30, batch_size=100, lr=3e-3, accelerator="cpu", progress_bar=False)
    return flow.eval().requires_grad_(False)


def _observe(x: Tensor, seen: Tensor) -> None:
    pyro.sample("seen", dist.Normal(x, NOISE).mask(VISIBLE).to_event(3), obs=seen)


class _Latent:
    """The model in the prior's latent space, where NUTS has a standard normal prior."""

    def __init__(self, prior: Flow) -> None:
        self.transform = prior.transform

    def __call__(self, seen: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(64), 1.0).to_event(1))
        x = pyro.deterministic("x", self.transform(z), event_dim=3)
        _observe(x, seen)

    @torch.no_grad()
    def images(self, z: Tensor) -> Tensor:
        return self.transform(z)


def _seen(truth: Tensor) -> Tensor:
    return torch.where(VISIBLE, truth + NOISE * torch.randn(SHAPE), 0.0)


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_pyro")
def test_a_guide_and_nuts_agree(prior: Flow, digits: tuple[Tensor, Tensor]) -> None:
    """On the mean and standard deviation of the hidden pixels. NUTS knows nothing of the guide."""
    model, seen = _Latent(prior), _seen(digits[1][0])
    guide = AutoFlow(model)
    fit_guide(model, guide, seen, max_steps=600, progress_bar=False)
    by_guide = model.images(guide.sample_posterior(5000, seen)["z"])[:, ~VISIBLE]
    mcmc = MCMC(
        NUTS(model, max_tree_depth=5),
        num_samples=300,
        warmup_steps=100,
        initial_params={"z": torch.zeros(64)},
        disable_progbar=True,
    )
    mcmc.run(seen)
    by_nuts = model.images(mcmc.get_samples()["z"])[:, ~VISIBLE]

    # The standard error of a mean, in posterior standard deviations; a log sd has 1 / sqrt(2) of it. Pixels
    # depend on each other, so the average over them is allowed two, as if they were one pixel. 0.1 is for the
    # guide: it has no more than 600 steps, and is a nat or so below the evidence.
    error = (1 / effective_sample_size(by_nuts[None], 0, 1) + 1 / len(by_guide)).mean().sqrt()
    allowed_shift, allowed_scale = 0.1 + 2 * error, 0.1 + 2 * error / 2**0.5

    def differences(images: Tensor) -> tuple[Tensor, Tensor]:
        """From NUTS, averaged over pixels: of the means in standard deviations, and of the log sds."""
        sd = by_nuts.std(0)
        shift = (images.mean(0) - by_nuts.mean(0)) / sd
        return shift.abs().mean(), (images.std(0) / sd).log().abs().mean()

    shift, scale = differences(by_guide)
    assert shift < allowed_shift
    assert scale < allowed_scale
    # Which says something: the prior's mean is further away than that.
    shift, _ = differences(model.images(torch.randn(5000, 64))[:, ~VISIBLE])
    assert shift > allowed_shift


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_pyro")
def test_the_posterior_mean_is_better_than_the_best_constant(
    prior: Flow, digits: tuple[Tensor, Tensor]
) -> None:
    """On the hidden pixels of digits that the prior was not trained on."""
    train, test = digits
    model = _Latent(prior)
    # What has the least squared error of all images that do not depend on what is seen.
    constant = train.mean(0)
    errors, constant_errors = [], []
    for truth in test[:5]:
        seen = _seen(truth)
        guide = AutoFlow(model, init="prior")
        fit_guide(model, guide, seen, max_steps=200, progress_bar=False)
        mean = model.images(guide.sample_posterior(1000, seen)["z"]).mean(0)
        errors.append((mean - truth)[~VISIBLE].square().mean())
        constant_errors.append((constant - truth)[~VISIBLE].square().mean())
    assert sum(errors) < sum(constant_errors)


@pytest.mark.usefixtures("fresh_pyro")
def test_a_glow_is_the_guide_of_an_image(prior: Flow, digits: tuple[Tensor, Tensor]) -> None:
    """The latent variable is the image itself, and the guide's flow is of its shape."""

    def model(seen: Tensor) -> None:
        _observe(pyro.sample("x", prior()), seen)

    truth = digits[1][0]
    seen = _seen(truth)
    # The paper's scale starts at sigmoid(2): this guide is worse at its start than the normal it stands on.
    guide = AutoFlow(model, {"x": glow(SHAPE, levels=2, steps=2, hidden_channels=16, scale="sigmoid")})
    assert guide(seen)["x"].shape == SHAPE
    elbo = Trace_ELBO(num_particles=1000, vectorize_particles=True, max_plate_nesting=0)
    start = -elbo.loss(model, guide, seen)
    result = fit_guide(model, guide, seen, max_steps=100, progress_bar=False)
    # Both are known to a nat, as a nat is about the standard error of the start's.
    assert result.elbo > start + 3
    draws = guide.sample_posterior(1000, seen)["x"]
    assert draws.shape == (1000, *SHAPE)
    # The prior knows more of the seen pixels than their noisy values say.
    assert (draws.mean(0) - truth)[VISIBLE].square().mean() < (seen - truth)[VISIBLE].square().mean()
