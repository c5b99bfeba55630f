"""Variational inference with flows."""

from pyroflows.infer.diagnostics import importance_resample, psis_khat
from pyroflows.infer.elbo import TraceSTL_ELBO
from pyroflows.infer.inference_data import to_inference_data
from pyroflows.infer.neutra import NeuTraDraws, neutra_nuts

__all__ = [
    "NeuTraDraws",
    "TraceSTL_ELBO",
    "importance_resample",
    "neutra_nuts",
    "psis_khat",
    "to_inference_data",
]
