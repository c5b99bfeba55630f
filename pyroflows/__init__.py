"""Normalizing flows for Pyro: NICE, RealNVP and Glow as transforms that are real Pyro transforms."""

from importlib import import_module
from typing import Any

from pyroflows._register import register
from pyroflows.distributions import Dequantized, Flow
from pyroflows.latent import attribute_direction, interpolate
from pyroflows.transforms import glow, nice, realnvp

__all__ = [
    "Dequantized",
    "FitResult",
    "Flow",
    "FlowDensity",
    "Run",
    "attribute_direction",
    "fit",
    "glow",
    "interpolate",
    "nice",
    "realnvp",
    "score",
]
__version__ = "0.1.0"

register()

# What stands on the extra `[fit]`, which takes longer to import than all the rest, and where it is.
_LATER = {
    "FitResult": "pyroflows.training",
    "FlowDensity": "pyroflows.estimator",
    "Run": "pyroflows.runs",
    "fit": "pyroflows.training",
    "score": "pyroflows.training",
}


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(import_module(_LATER[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
