"""Learned invertible linear maps of the features of a vector or the channels of an image."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyroflows.transforms.base import FlowTransform, as_size

__all__ = ["InvertibleConv1x1", "InvertibleLinear", "invertible_conv1x1", "invertible_linear"]


class LUMatrix(nn.Module):
    r"""A square matrix W = P L (U + diag(sign * exp(log_s)))."""

    rows: Tensor
    sign: Tensor

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        permutation, lower, upper = torch.linalg.lu(start)
        diagonal = upper.diagonal()
        self.register_buffer("rows", permutation.argmax(1))
        self.register_buffer("sign", diagonal.sign())
        self.lower = nn.Parameter(lower.tril(-1))
        self.upper = nn.Parameter(upper.triu(1))
        self.log_diagonal = nn.Parameter(diagonal.abs().log())

    def _factors(self) -> tuple[Tensor, Tensor, Tensor]:
        """The identity, L and U, in double precision: W and its inverse are rounded only once, at the end."""
        lower, upper = self.lower.double().tril(-1), self.upper.double().triu(1)
        identity = torch.eye(len(self.sign), dtype=lower.dtype, device=lower.device)
        diagonal = self.sign * self.log_diagonal.double().exp()
        return identity, lower + identity, upper + torch.diag(diagonal)

    def matrix(self) -> Tensor:
        _, lower, upper = self._factors()
        return (lower @ upper).index_select(0, self.rows).to(self.lower.dtype)

    def inverse(self) -> Tensor:
        identity, lower, upper = self._factors()
        transposed_permutation = identity.index_select(1, self.rows)
        solved = torch.linalg.solve_triangular(lower, transposed_permutation, upper=False, unitriangular=True)
        return torch.linalg.solve_triangular(upper, solved, upper=True).to(self.lower.dtype)

    def log_abs_det(self) -> Tensor:
        return self.log_diagonal.sum()


class FullMatrix(nn.Module):
    """A square matrix of free entries."""

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        # Pyro's param store takes a copy of a parameter that is not contiguous, and trains the copy.
        self.weight = nn.Parameter(start.contiguous())

    def matrix(self) -> Tensor:
        return self.weight

    def inverse(self) -> Tensor:
        return torch.linalg.inv(self.weight.double()).to(self.weight.dtype)

    def log_abs_det(self) -> Tensor:
        return torch.linalg.slogdet(self.weight).logabsdet


class InvertibleLinear(FlowTransform):
    r"""A learned invertible matrix applied to a vector.

    .. math:: z = W x \text{ (data to latent)}, \qquad
        \text{ladj} = -\log |\det W| \text{ (latent to data, in nats)}

    With `parameterization="lu"`, `W = P L (U + \operatorname{diag}(s))`, where `P` and the signs of `s`
    are fixed, and the log-determinant is the sum of `log |s|`: O(D) instead of O(D^3). `"full"` learns
    the entries of `W`.

    Args:
        event_shape: `D` or `(D,)`.
        parameterization: `"lu"` or `"full"`.
        start: `"rotation"`, `W` starts as a random rotation, as in the paper; or `"permutation"`, as a random
            permutation, so that the first couplings see the columns of a table and not mixtures of them. At
            most half of the first half of the features stay in it, where couplings let them pass.

    Shapes:
        `z`, `x`: `(*batch, D)`.

    Raises:
        ValueError: The event is not a vector, or there is no such parameterization or start.

    Source: Kingma & Dhariwal 2018, "Glow", arXiv 1807.03039, section 3.2, eq. 10 and 11.

    Example:
        >>> linear = InvertibleLinear((4,))
        >>> z, ladj = linear.inv.call_and_ladj(torch.ones(7, 4))
        >>> z.shape, bool(ladj.abs().max() < 1e-5)
        (torch.Size([7, 4]), True)
    """

    _event_dim = 1

    def __init__(
        self, event_shape: int | tuple[int, ...], parameterization: str = "lu", start: str = "rotation"
    ) -> None:
        event_shape = as_size(event_shape)
        if len(event_shape) != self._event_dim:
            expected = "(D,)" if self._event_dim == 1 else "(C, H, W)"
            raise ValueError(
                f"{type(self).__name__} expected an event of shape {expected}, got {tuple(event_shape)}"
            )
        if parameterization not in _PARAMETERIZATIONS:
            raise ValueError(
                f"{type(self).__name__} expected a parameterization of {sorted(_PARAMETERIZATIONS)}, "
                f"got {parameterization!r}"
            )
        if start not in _STARTS:
            raise ValueError(f"{type(self).__name__} expected a start of {sorted(_STARTS)}, got {start!r}")
        super().__init__(event_shape)
        self.parameterization, self.start = parameterization, start
        self.weight = _PARAMETERIZATIONS[parameterization](_STARTS[start](event_shape[0]))

    def _forward_and_ladj(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return self._apply_matrix(self.weight.inverse, z), -self._ladj_to_latent()

    def _inverse_and_ladj(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return self._apply_matrix(self.weight.matrix, x), self._ladj_to_latent()

    def _ladj_to_latent(self) -> Tensor:
        return self.weight.log_abs_det() * self.event_shape[1:].numel()

    def _apply_matrix(self, matrix: Callable[[], Tensor], value: Tensor) -> Tensor:
        # The bijection itself stays in full precision: rounded, the inverse would not be one.
        with torch.autocast(value.device.type, enabled=False):
            return self._linear(matrix(), value)

    def _linear(self, matrix: Tensor, value: Tensor) -> Tensor:
        return F.linear(value, matrix)


class InvertibleConv1x1(InvertibleLinear):
    r"""A learned invertible matrix applied to the channels of every pixel: a 1x1 convolution.

    .. math:: z_{:,i,j} = W x_{:,i,j} \text{ (data to latent)}, \qquad
        \text{ladj} = -H W \log |\det W| \text{ (latent to data, in nats)}

    Parameterizations and starts are those of `InvertibleLinear`.

    Args:
        event_shape: `(C, H, W)`.
        parameterization: `"lu"` or `"full"`.
        start: `"rotation"` or `"permutation"`.

    Shapes:
        `z`, `x`: `(*batch, C, H, W)`.

    Raises:
        ValueError: The event is not an image, or there is no such parameterization or start.

    Source: Kingma & Dhariwal 2018, "Glow", arXiv 1807.03039, section 3.2, eq. 8 to 11.

    Example:
        >>> conv = InvertibleConv1x1((3, 8, 8), parameterization="full")
        >>> conv.inv(torch.zeros(5, 3, 8, 8)).shape
        torch.Size([5, 3, 8, 8])
    """

    _event_dim = 3

    def _linear(self, matrix: Tensor, value: Tensor) -> Tensor:
        # A matrix product over the channels is faster than a convolution with 1x1 kernels.
        return F.linear(value.movedim(-3, -1), matrix).movedim(-1, -3)


_PARAMETERIZATIONS: dict[str, type[LUMatrix] | type[FullMatrix]] = {"lu": LUMatrix, "full": FullMatrix}


def _random_rotation(size: int) -> Tensor:
    """Uniform over the rotations, by the QR decomposition of a Gaussian matrix (Mezzadri 2007)."""
    orthogonal, upper = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64))
    orthogonal = orthogonal * upper.diagonal().sign()
    if torch.linalg.det(orthogonal) < 0:
        orthogonal[:, 0] = -orthogonal[:, 0]
    return orthogonal.to(torch.get_default_dtype())


def _random_permutation(size: int) -> Tensor:
    """A random permutation matrix: at most half of the first half of the features stay in it."""
    half = size // 2
    order = torch.randperm(size)
    while (order[:half] < half).sum() > half // 2:
        order = torch.randperm(size)
    return torch.eye(size)[order]


_STARTS: dict[str, Callable[[int], Tensor]] = {
    "permutation": _random_permutation,
    "rotation": _random_rotation,
}


def invertible_linear(
    event_shape: int | tuple[int, ...], parameterization: str = "lu", start: str = "rotation"
) -> InvertibleLinear:
    """An `InvertibleLinear` for vectors of size `D` or `(D,)`.

    Example:
        >>> invertible_linear(3)(torch.zeros(3)).shape
        torch.Size([3])
    """
    return InvertibleLinear(event_shape, parameterization, start)


def invertible_conv1x1(
    event_shape: tuple[int, ...], parameterization: str = "lu", start: str = "rotation"
) -> InvertibleConv1x1:
    """An `InvertibleConv1x1` for images `(C, H, W)`.

    Example:
        >>> invertible_conv1x1((3, 4, 4))(torch.zeros(3, 4, 4)).shape
        torch.Size([3, 4, 4])
    """
    return InvertibleConv1x1(event_shape, parameterization, start)
