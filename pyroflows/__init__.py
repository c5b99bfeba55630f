"""Normalizing flows for Pyro: NICE, RealNVP and Glow as transforms that are real Pyro transforms."""

from typing import Any

from pyroflows._register import register
from pyroflows.distributions import Dequantized, Flow
from pyroflows.latent import attribute_direction, interpolate
from pyroflows.transforms import glow, nice, realnvp

__all__ = ["Dequantized", "Flow", "attribute_direction", "glow", "interpolate", "nice", "realnvp"]
__version__ = "0.1.0"

register()


def __getattr__(name: str) -> Any:
    # `fit` stands on Lightning, which takes longer to import than all the rest.
    if name == "fit":
        from pyroflows.training import fit

        return fit
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
