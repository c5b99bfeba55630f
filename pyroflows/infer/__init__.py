"""Variational inference with flows."""

from pyroflows.infer.elbo import TraceSTL_ELBO

__all__ = ["TraceSTL_ELBO"]
