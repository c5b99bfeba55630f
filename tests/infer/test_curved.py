"""Posteriors that bend: Neal's funnel in ten dimensions, and a banana, of which everything is known."""

from collections.abc import Callable

import arviz
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS
from pyro.infer.mcmc.util import initialize_model
from torch import Tensor

from pyroflows.infer import AutoFlow, fit_guide, neutra_nuts

pytestmark = [pytest.mark.usefixtures("fresh_pyro"), pytest.mark.slow]

SAMPLES, WARMUP = 200, 150


def _funnel() -> None:
    v = pyro.sample("v", dist.Normal(0.0, 3.0))
    pyro.sample("x", dist.Normal(torch.zeros(9), (v / 2).exp().unsqueeze(-1)).to_event(1))


def _banana() -> None:
    v = pyro.sample("v", dist.Normal(0.0, 10.0))
    pyro.sample("b", dist.Normal(0.03 * (v**2 - 100), 1.0))


def _fitted(model: Callable[[], None], sd: float) -> AutoFlow:
    guide = AutoFlow(model)
    result = fit_guide(model, guide, progress_bar=False)
    assert result.khat < 0.7
    draws = guide.sample_posterior(20_000)["v"]
    assert draws.mean().abs() < 0.1 * sd
    assert (draws.std() / sd).log().abs() < 0.1
    # The density is normalised: the bound lies just below zero.
    assert -0.1 < result.elbo < 0.01
    return guide


def test_the_banana_is_fitted() -> None:
    _fitted(_banana, 10.0)


def test_the_funnel_is_fitted_and_makes_nuts_efficient() -> None:
    """At least five times the effective samples of each gradient of NUTS on the funnel as it is written."""
    guide = _fitted(_funnel, 3.0)
    draws = neutra_nuts(_funnel, guide, num_samples=SAMPLES, warmup_steps=WARMUP, seed=1, progress_bar=False)
    assert draws.divergences == 0
    # An effective sample's standard error is a sd.
    assert draws.samples["v"].mean().abs() < 5 * 3 / _ess(draws.samples["v"]) ** 0.5
    assert _ess(draws.samples["v"]) / draws.num_gradients > 5 * _nuts()


def _nuts() -> float:
    """Effective samples of a gradient of plain NUTS."""
    _, potential, transforms, _ = initialize_model(_funnel)
    gradients = 0

    def counted(values: dict[str, Tensor]) -> Tensor:
        nonlocal gradients
        gradients += 1
        return potential(values)

    def note(kernel: NUTS, values: dict[str, Tensor], stage: str, step: int) -> None:
        nonlocal gradients
        if stage.startswith("Warmup"):
            gradients = 0

    start = {"v": torch.zeros(()), "x": torch.zeros(9)}
    mcmc = MCMC(
        NUTS(potential_fn=counted),
        SAMPLES,
        WARMUP,
        initial_params=start,
        transforms=transforms,
        hook_fn=note,
        disable_progbar=True,
    )
    mcmc.run()
    return _ess(mcmc.get_samples()["v"]) / gradients


def _ess(draws: Tensor) -> float:
    return float(arviz.ess(np.asarray(draws)[None]))
