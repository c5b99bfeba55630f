"""Steps along orthogonal matrices, against the singular value decomposition."""

import pytest
import torch
from torch import Tensor

from pyroflows.infer.muon import Muon, orthogonal


@pytest.mark.parametrize("shape", [(3, 5, 5), (2, 8, 3), (4, 3, 8)])
def test_the_direction_has_the_singular_vectors_of_the_gradient_and_about_equal_values(
    shape: tuple[int, int, int],
) -> None:
    generator = torch.Generator().manual_seed(0)
    gradients = torch.randn(shape, generator=generator)
    u, _, vt = torch.linalg.svd(gradients, full_matrices=False)
    in_these = u.mT @ orthogonal(gradients) @ vt.mT
    values = in_these.diagonal(dim1=-2, dim2=-1)
    assert values.min() > 0.68
    assert values.max() < 1.14
    assert (in_these - torch.diag_embed(values)).abs().max() < 1e-4


def test_the_direction_of_a_gradient_of_zeros_is_zero() -> None:
    assert torch.equal(orthogonal(torch.zeros(1, 4, 3)), torch.zeros(1, 4, 3))


def test_the_direction_of_what_is_left_of_a_gradient_fades() -> None:
    """Of a network that has died, say; squares of 1e-30 are zero in single precision."""
    left = orthogonal(torch.full((1, 4, 3), 1e-30))
    assert left.isfinite().all()
    # Each iteration makes it 3.4445 times as large, from its share of the least norm.
    assert left.abs().max() <= 1.01 * 3.4445**5 * 1e-30 / 1e-18


def _with_gradient(matrix: Tensor, gradient: Tensor) -> Tensor:
    matrix.requires_grad_().grad = gradient
    return matrix


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_an_element_changes_by_four_tenths_of_a_step_size(scale: float) -> None:
    """Whatever the gradient's size; by as much as singular values differ from 1."""
    gradient = scale * torch.randn(16, 24, generator=torch.Generator().manual_seed(0))
    matrix = _with_gradient(torch.zeros(16, 24), gradient)
    Muon([matrix], lr=0.01).step()
    change = matrix.detach().square().mean().sqrt().item()
    assert 0.68 * 0.004 < change < 1.14 * 0.004


def test_matrices_of_many_shapes_take_each_their_own_step() -> None:
    """The same step as alone; one without a gradient, and one of no size that others have, among them."""
    generator = torch.Generator().manual_seed(0)
    gradients = [torch.randn(shape, generator=generator) for shape in [(3, 4), (2, 5), (3, 4)]]
    together = [_with_gradient(torch.zeros_like(g), g) for g in gradients]
    without = torch.zeros(3, 4, requires_grad=True)
    Muon([*together, without], lr=0.1).step()
    for matrix, gradient in zip(together, gradients, strict=True):
        alone = _with_gradient(torch.zeros_like(gradient), gradient)
        Muon([alone], lr=0.1).step()
        torch.testing.assert_close(matrix.detach(), alone.detach())
    assert torch.equal(without.detach(), torch.zeros(3, 4))


def test_a_step_is_along_the_running_mean_of_the_gradients_with_the_last_one_twice() -> None:
    """0.9 of the mean's 0.9 * 0.1 and 0.1 of the two gradients, and 0.1 of the last."""
    first, last = torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(0))
    matrix = _with_gradient(torch.zeros(3, 3), first)
    optimizer = Muon([matrix], lr=0.1)
    optimizer.step()
    before = matrix.detach().clone()
    matrix.grad = last
    optimizer.step()
    direction = orthogonal((0.081 * first + 0.19 * last)[None])[0]
    torch.testing.assert_close(matrix.detach(), before - 0.4 * 0.1 * 3**0.5 * direction)


def test_a_flat_direction_is_learned_as_fast_as_a_steep_one() -> None:
    """Of a quadratic bowl that is 100 times as steep along one diagonal as along the other."""
    diagonals = torch.tensor([[1.0, 1.0], [1.0, -1.0]]) / 2**0.5
    steepness, target = torch.tensor([[1.0], [1e-2]]), torch.eye(2)
    matrix = torch.zeros(2, 2, requires_grad=True)
    optimizer = Muon([matrix], lr=0.05)
    # A step goes 0.4 * 0.05 * sqrt(2) = 0.028 along both, 36 of them from zero to one; momentum adds 10.
    for _ in range(60):
        optimizer.zero_grad()
        (steepness * (diagonals @ (matrix - target)).square()).sum().backward()
        optimizer.step()
    assert (matrix.detach() - target).abs().max() < 0.28
