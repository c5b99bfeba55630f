"""A learned location and lower triangular scale of a vector."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyroflows.transforms.base import FlowTransform

__all__ = ["TriangularAffine", "triangular_affine"]


class TriangularAffine(FlowTransform):
    r"""A location and a lower triangular scale: of a standard normal it makes any normal.

    .. math:: x = m + S (\mu + L z), \qquad \text{ladj} = \sum_i \log S_{ii} + \log L_{ii}
        \text{ (latent to data, in nats)}

    `L` is a Cholesky factor, its diagonal the exponential of `log_diagonal`. With `\mu` it is learned, and
    starts as the identity. `m` and `S` are fixed, and the identity too until `set_` gives them: what is
    learned is then in units of `S`, so that one step size suits every scale.

    Args:
        event_shape: `D` or `(D,)`.

    Shapes:
        `z`, `x`: `(*batch, D)`.

    Raises:
        ValueError: The event is not a vector, or what is set is not a location and a Cholesky factor.

    Source: Kucukelbir et al. 2017, "Automatic Differentiation Variational Inference", arXiv 1603.00788,
    section 2.4 (full-rank).

    Example:
        >>> affine = TriangularAffine(2)
        >>> affine.set_(torch.tensor([1.0, 0.0]), torch.tensor([[2.0, 0.0], [1.0, 3.0]]))
        >>> affine(torch.ones(2)).detach().round(decimals=3)
        tensor([3., 4.])
    """

    fixed_loc: Tensor
    fixed_tril: Tensor

    def __init__(self, event_shape: int | tuple[int, ...]) -> None:
        super().__init__(event_shape)
        if len(self.event_shape) != 1:
            raise ValueError(
                f"TriangularAffine expected an event of shape (D,), got {tuple(self.event_shape)}"
            )
        size = self.event_shape[0]
        self.loc = nn.Parameter(torch.zeros(size))
        self.log_diagonal = nn.Parameter(torch.zeros(size))
        self.lower = nn.Parameter(torch.zeros(size, size))
        self.register_buffer("fixed_loc", torch.zeros(size))
        self.register_buffer("fixed_tril", torch.eye(size))

    @torch.no_grad()
    def set_(self, loc: Tensor, tril: Tensor) -> None:
        """Start again from a location `(D,)` and a Cholesky factor `(D, D)`, in place."""
        size = self.event_shape[0]
        if loc.shape != (size,) or tril.shape != (size, size) or not (tril.diagonal() > 0).all():
            raise ValueError(
                f"expected a location of shape {(size,)} and a factor of shape {(size, size)} with a "
                f"positive diagonal, got {tuple(loc.shape)} and {tuple(tril.shape)}, with the diagonal "
                f"{tril.diagonal().tolist()}"
            )
        self.fixed_loc.copy_(loc)
        self.fixed_tril.copy_(tril.tril())
        for parameter in (self.loc, self.log_diagonal, self.lower):
            parameter.zero_()

    @property
    def tril(self) -> Tensor:
        """The factor as a whole, `S L`."""
        return self.fixed_tril @ self._learned

    @property
    def _learned(self) -> Tensor:
        return self.lower.tril(-1) + torch.diag(self.log_diagonal.exp())

    @property
    def _total(self) -> Tensor:
        return self.log_diagonal.sum() + self.fixed_tril.diagonal().log().sum()

    def _forward_and_ladj(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        whitened = z @ self._learned.T + self.loc
        return whitened @ self.fixed_tril.T + self.fixed_loc, self._total

    def _forward_and_score(
        self, z: Tensor, score: Tensor, context: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        x, ladj = self._forward_and_ladj(z, context)
        return x, ladj, _times_inverse(score, self.tril.detach(), upper=False)

    def _inverse_and_ladj(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        whitened = _times_inverse(x - self.fixed_loc, self.fixed_tril.T, upper=True)
        return _times_inverse(whitened - self.loc, self._learned.T, upper=True), -self._total


def _times_inverse(x: Tensor, factor: Tensor, upper: bool) -> Tensor:
    # All vectors at once: of a batch of systems, each would get a copy of the factor.
    rows = x.reshape(-1, x.shape[-1])
    return torch.linalg.solve_triangular(factor, rows, upper=upper, left=False).reshape(x.shape)


def triangular_affine(event_shape: int | tuple[int, ...]) -> TriangularAffine:
    """A `TriangularAffine` for vectors of size `D` or `(D,)`.

    Example:
        >>> triangular_affine(3)(torch.zeros(5, 3)).shape
        torch.Size([5, 3])
    """
    return TriangularAffine(event_shape)
