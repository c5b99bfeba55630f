"""Variational inference with flows."""

from pyroflows.infer.diagnostics import importance_resample, psis_khat
from pyroflows.infer.elbo import TraceSTL_ELBO

__all__ = ["TraceSTL_ELBO", "importance_resample", "psis_khat"]
