"""Fit flows to data, and any Pyro model by variational inference, in Lightning's loop."""

from pyroflows.training.fit import FitResult, fit
from pyroflows.training.score import score
from pyroflows.training.svi import SVIModule

__all__ = ["FitResult", "SVIModule", "fit", "score"]
