"""Fit flows to data, and any Pyro model by variational inference, in Lightning's loop."""

from pyroflows.training.fit import fit
from pyroflows.training.report import FitResult
from pyroflows.training.score import score
from pyroflows.training.svi import SVIModule

__all__ = ["FitResult", "SVIModule", "fit", "score"]
