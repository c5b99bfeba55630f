"""Variational inference with flows."""

from pyroflows.infer.diagnostics import importance_resample, psis_khat
from pyroflows.infer.elbo import TraceSTL_ELBO
from pyroflows.infer.fit import FitResult, fit_guide
from pyroflows.infer.guides import AutoFlow
from pyroflows.infer.inference_data import to_inference_data
from pyroflows.infer.neutra import NeuTraDraws, neutra_nuts

__all__ = [
    "AutoFlow",
    "FitResult",
    "NeuTraDraws",
    "TraceSTL_ELBO",
    "fit_guide",
    "importance_resample",
    "neutra_nuts",
    "psis_khat",
    "to_inference_data",
]
