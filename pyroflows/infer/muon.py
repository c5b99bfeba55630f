"""Steps for the matrices of a flow's networks."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim import Optimizer

__all__ = ["Muon"]

# Of the iteration that makes a matrix orthogonal, Jordan's: roughly so, but in few steps.
_COEFFICIENTS, _ITERATIONS = (3.4445, -4.7750, 2.0315), 5

# Root mean square of an element's change, in step sizes: about what Adam's is where gradients are noisy.
_CHANGE = 0.4

_MOMENTUM = 0.9

# The least norm that is told from zero: of smaller ones the squares are lost in single precision.
_LEAST = 1e-18


class Muon(Optimizer):
    r"""Steps along the orthogonal matrix that is nearest to the gradient's running mean.

    .. math:: W \leftarrow W - 0.4 \, \eta \sqrt{\max(m, n)} \; U V^T, \qquad
        M = U \Sigma V^T \in \mathbb{R}^{m \times n}

    so that what a matrix has to learn in many directions is not left to the few with large gradients. An
    element changes by 0.4 step sizes, like one of Adam's, so that both may have the same. Matrices of one
    shape are made orthogonal together: PyTorch's own takes them one by one, which for a flow of small
    networks is four times slower.

    Args:
        parameters: Matrices.
        lr: The step size.

    Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"; Liu et al. 2025,
    "Muon is scalable for LLM training", arXiv 2502.16982, section 2.2 (the step's length).

    Example:
        >>> matrix = torch.zeros(2, 3, requires_grad=True)
        >>> matrix[0, 0].backward()
        >>> Muon([matrix], lr=0.1).step()
        >>> matrix.square().mean().sqrt().item() < 0.1
        True
    """

    def __init__(self, parameters: Iterable[Tensor], lr: float) -> None:
        super().__init__(parameters, {"lr": lr})
        by_shape: dict[torch.Size, list[Tensor]] = {}
        for matrix in self.param_groups[0]["params"]:
            by_shape.setdefault(matrix.shape, []).append(matrix)
        self._of_shape = [(same, torch.zeros_like(torch.stack(same))) for same in by_shape.values()]

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        lr = self.param_groups[0]["lr"]
        for matrices, mean in self._of_shape:
            gradients = [torch.zeros_like(m) if m.grad is None else m.grad for m in matrices]
            gradient = torch.stack(gradients)
            mean.lerp_(gradient, 1 - _MOMENTUM)
            # As if the mean had this gradient twice (Nesterov's).
            directions = orthogonal(gradient.lerp(mean, _MOMENTUM))
            length = _CHANGE * lr * max(mean.shape[1:]) ** 0.5
            torch._foreach_sub_(matrices, directions.unbind(), alpha=length)


def orthogonal(matrices: Tensor) -> Tensor:
    """About the orthogonal matrices that are nearest, `(matrices, m, n)`, by Newton and Schulz's iteration.

    All singular values are between 0.68 and 1.14, but for those that were below 0.002 of the norm, which
    are smaller. Of a norm below 1e-18 they fade, so that of a matrix of zeros it is that.
    """
    wide = matrices if matrices.shape[1] <= matrices.shape[2] else matrices.mT
    x = wide / torch.linalg.matrix_norm(wide, keepdim=True).clamp(min=_LEAST)
    a, b, c = _COEFFICIENTS
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if wide is matrices else x.mT
