"""A flow as the learned prior of a variational autoencoder, against a standard normal one."""

from collections.abc import Callable
from functools import partial

import lightning
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import RenyiELBO, Trace_ELBO
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn.functional import pixel_shuffle, pixel_unshuffle
from torch.utils.data import DataLoader

from pyroflows import Flow, glow
from pyroflows.datasets import load
from pyroflows.nets import ResNet
from pyroflows.training import SVIModule
from tests.quiet import QUIET

pytestmark = pytest.mark.usefixtures("fresh_pyro")

LATENT, LARGEST = (4, 4, 4), 16


class _VAE(nn.Module):
    """Digits of 8x8 pixels, each a count of 0 to 16, decoded from a latent image."""

    def __init__(self, name: str, prior: Callable[[], Distribution]) -> None:
        super().__init__()
        self.name, self.prior = name, prior
        self.encoder = ResNet(4, 2 * LATENT[0], hidden_channels=32, blocks=1)
        self.decoder = ResNet(LATENT[0], 4, hidden_channels=32, blocks=1)

    def model(self, images: Tensor) -> None:
        pyro.module(self.name, self)
        with pyro.plate("images", len(images)):
            z = pyro.sample("z", self.prior())
            logits = pixel_shuffle(self.decoder(z), 2)
            pyro.sample("x", dist.Binomial(LARGEST, logits=logits).to_event(3), obs=images)

    def guide(self, images: Tensor) -> None:
        pyro.module(self.name, self)
        loc, log_scale = self.encoder(pixel_unshuffle(2 * images / LARGEST - 1, 2)).chunk(2, dim=-3)
        with pyro.plate("images", len(images)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(3))


def _standard_normal() -> Distribution:
    return dist.Normal(torch.zeros(LATENT), 1.0).to_event(3)


def _flow() -> Flow:
    """A Glow that starts near the standard normal."""
    flow = Flow(glow(LATENT, levels=1, steps=4, hidden_channels=32))
    flow.initialize(_standard_normal().sample((1000,)))
    return flow


def _train(vae: _VAE, images: Tensor, *, epochs: int, batch_size: int = 100, lr: float = 1e-2) -> None:
    steps = epochs * len(images) // batch_size
    module = SVIModule(
        vae.model,
        vae.guide,
        optimizer=partial(torch.optim.Adam, lr=lr),
        scheduler=partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=lr, total_steps=steps),
    )
    trainer = lightning.Trainer(max_epochs=epochs, **QUIET)
    trainer.fit(module, DataLoader(images, batch_size=batch_size, shuffle=True))


def _bounds(model: Callable, guide: Callable, data: Tensor, draws: int) -> Tensor:
    """The importance-weighted bound of each datum's log-evidence, in nats."""
    bound = RenyiELBO(alpha=0, num_particles=draws, vectorize_particles=True, max_plate_nesting=1)
    return torch.tensor([-bound.loss(model, guide, datum[None]) for datum in data])


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize("widening", [1.0, 1.5], ids=["posterior", "wider"])
def test_the_bound_is_the_evidence(widening: float) -> None:
    """Of a linear Gaussian model, with the posterior as guide, and one that is wider than it."""
    weight, noise, draws = torch.randn(3, 2), 0.5, 4000
    precision = torch.eye(2) + weight.T @ weight / noise**2
    covariance = torch.linalg.inv(precision)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ weight.T, noise).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            loc = x @ weight @ covariance / noise**2
            pyro.sample("z", dist.MultivariateNormal(loc, widening**2 * covariance))

    x = torch.randn(10, 3)
    evidence = dist.MultivariateNormal(torch.zeros(3), weight @ weight.T + noise**2 * torch.eye(3))
    # The weights' variance over their squared mean: 0 for the posterior itself. The bias is far less.
    variance = (widening**2 / (2 * widening**2 - 1) ** 0.5) ** 2 - 1
    error = 1e-9 + 5 * (variance / draws) ** 0.5
    torch.testing.assert_close(_bounds(model, guide, x, draws), evidence.log_prob(x), atol=error, rtol=0)
    # The ELBO is further away than that, by the divergence of the guide from the posterior.
    assert widening == 1 or widening**2 - 1 - 2 * torch.tensor(widening).log() > 5 * error


def test_every_parameter_is_trained() -> None:
    """Of what is not contiguous Pyro's store takes a copy, and trains that."""
    vae = _VAE("vae", _flow())
    Trace_ELBO().loss(vae.model, vae.guide, torch.full((2, 1, 8, 8), 3.0))
    # As they are, not as `pyro.param` would give them.
    stored = pyro.get_param_store()._params
    copied = [name for name, parameter in vae.named_parameters() if stored[f"vae$$${name}"] is not parameter]
    assert not copied


@pytest.mark.slow
def test_a_flow_prior_is_better_than_a_standard_normal() -> None:
    """By held-out importance-weighted bounds: the same encoder, decoder, batches, noise and steps."""
    digits = load("digits")
    assert digits.test is not None
    flow = _flow()
    bounds: dict[str, Tensor] = {}
    for name, prior in (("normal", _standard_normal), ("flow", flow)):
        pyro.set_rng_seed(0)
        vae = _VAE(name, prior)
        _train(vae, digits.train.float(), epochs=20)
        bounds[name] = _bounds(vae.model, vae.guide, digits.test.float(), draws=200)
    # Grey levels that are the same for each image: a model that uses its latent finds the digits likelier.
    mean = (digits.train.float().mean(0) / LARGEST).clamp(0.01, 0.99)
    assert bounds["normal"].mean() > dist.Binomial(LARGEST, mean).log_prob(digits.test).sum((1, 2, 3)).mean()
    # Image by image, as the two are alike in which images they find hard.
    difference = bounds["flow"] - bounds["normal"]
    assert difference.mean() > 5 * difference.std() / len(difference) ** 0.5
