"""A heteroscedastic Gaussian process in 66 dimensions whose posterior's moments are published.

The head's acceleration in a simulated motorcycle crash (Silverman 1985): its mean and log noise are Gaussian
processes by sines (Riutort-Mayol et al. 2020). `accel_gp.json` holds the data and the means and standard
deviations of posteriordb's 10,000 reference draws of `mcycle_gp-accel_gp` (Magnusson et al. 2025, BSD-3).
"""

import json
import math
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

__all__ = ["MOMENTS", "accel_gp"]

_PUBLISHED: dict[str, Any] = json.loads(Path(__file__).with_suffix(".json").read_text())
MOMENTS: dict[str, tuple[Any, Any]] = {
    name: (mean, _PUBLISHED["sd"][name]) for name, mean in _PUBLISHED["mean"].items()
}

# The times fill an interval of length 1; the sines are those of one of length 3.
_BOUNDARY, _SINES, _NOISE_SINES = 1.5, 40, 20


def _sines(count: int) -> tuple[Tensor, Tensor]:
    """`count` sines at the times, and their frequencies."""
    times = torch.tensor(_PUBLISHED["times"], dtype=torch.float64)
    x = times / (times.max() - times.min())
    frequencies = torch.arange(1, count + 1) * math.pi / (2 * _BOUNDARY)
    sines = ((x - x.mean() + _BOUNDARY)[:, None] * frequencies).sin() / math.sqrt(_BOUNDARY)
    return sines.float(), frequencies


def _process(prefix: str, sines: Tensor, frequencies: Tensor) -> Tensor:
    """A Gaussian process with a squared exponential covariance, at the times."""
    sd = pyro.sample(f"{prefix}sd", dist.FoldedDistribution(dist.StudentT(3.0, 0.0, 36.0)))[..., None]
    length = pyro.sample(f"{prefix}length", dist.InverseGamma(1.124909, 0.0177))[..., None]
    z = pyro.sample(f"{prefix}z", dist.Normal(torch.zeros(len(frequencies)), 1.0).to_event(1))
    amplitudes = sd * (math.sqrt(2 * math.pi) * length).sqrt() * (-((length * frequencies) ** 2) / 4).exp()
    return (amplitudes * z) @ sines.T


_OF_MEAN, _OF_NOISE = _sines(_SINES), _sines(_NOISE_SINES)
_ACCELERATIONS = torch.tensor(_PUBLISHED["accel"])


def accel_gp() -> None:
    intercept = pyro.sample("intercept", dist.StudentT(3.0, -13.0, 36.0))
    mean = intercept[..., None] + _process("", *_OF_MEAN)
    noise_intercept = pyro.sample("noise_intercept", dist.StudentT(3.0, 0.0, 10.0))
    log_noise = noise_intercept[..., None] + _process("noise_", *_OF_NOISE)
    pyro.sample("accel", dist.Normal(mean, log_noise.exp()).to_event(1), obs=_ACCELERATIONS)
