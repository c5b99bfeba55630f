"""The Gaussian that a flow has to be better than."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyroflows._extras import needs_fit_extra

__all__ = ["Gaussian"]

# The least shrinkage towards the identity of a correlation that is not positive definite, which two or three
# rows may make with none.
_SHRINKAGE = 1e-3


@dataclass(frozen=True)
class Gaussian:
    r"""A normal distribution with a full covariance, fitted to a table.

    .. math:: \log p(x) = -\tfrac{1}{2} |L^{-1} (x - \mu)|^2 - \log \det L - \tfrac{D}{2} \log 2 \pi
        \text{ (nats)}

    Attributes:
        loc: The mean, `(D,)`.
        tril: The Cholesky factor of the covariance, `(D, D)`.
    """

    loc: Tensor
    tril: Tensor

    @classmethod
    def fit(cls, table: Tensor, weights: Tensor | None = None) -> Gaussian:
        """By maximum likelihood; with no more rows than columns shrunk as Ledoit and Wolf do.

        Args:
            table: `(N, D)`.
            weights: The weight of each row, `(N,)`; by default all are 1.

        Raises:
            ValueError: A column has one value alone.

        Source: Ledoit & Wolf 2004, "A well-conditioned estimator for large-dimensional covariance matrices",
        Journal of Multivariate Analysis 88 (scikit-learn's).

        Example:
            >>> from pyroflows.baseline import Gaussian
            >>> Gaussian.fit(torch.tensor([[0.0], [2.0]])).tril.tolist()
            [[1.0]]
        """
        table = table.detach().cpu().double()
        parts = torch.full((len(table),), 1 / len(table)) if weights is None else weights / weights.sum()
        parts = parts.detach().cpu().double()[:, None]
        loc = (parts * table).sum(0)
        scale = (parts * (table - loc).square()).sum(0).sqrt()
        if not (scale > 0).all():
            raise ValueError(f"expected columns that vary in {len(table)} rows, got some that do not")
        standard = (table - loc) / scale
        correlation = standard.T @ (parts * standard)
        tril, info = torch.linalg.cholesky_ex(correlation)
        if len(table) <= table.shape[1] or info != 0:
            with needs_fit_extra("the Gaussian of a table with few rows"):
                from sklearn.covariance import ledoit_wolf_shrinkage
            shrinkage = ledoit_wolf_shrinkage(standard.numpy(), assume_centered=True)
            shrinkage = max(float(shrinkage), _SHRINKAGE)
            identity = torch.eye(len(loc), dtype=torch.float64)
            tril = torch.linalg.cholesky((1 - shrinkage) * correlation + shrinkage * identity)
        return cls(loc, scale[:, None] * tril)

    def log_prob(self, table: Tensor) -> Tensor:
        """Log density of each row, in nats, `(N,)`."""
        centred = table.detach().cpu().double() - self.loc
        standard = torch.linalg.solve_triangular(self.tril, centred.T, upper=False)
        constant = self.tril.diagonal().log().sum() + len(self.loc) / 2 * math.log(2 * math.pi)
        return -0.5 * standard.square().sum(0) - constant

    def score(self, table: Tensor, weights: Tensor | None = None) -> float:
        """Mean negative log density by the weights of the rows, in nats: less is better."""
        log_prob = self.log_prob(table)
        weights = torch.ones_like(log_prob) if weights is None else weights.to(log_prob)
        return -((weights * log_prob).sum() / weights.sum()).item()
