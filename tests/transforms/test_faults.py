"""Faults of today's transforms that ours must not have; those of memory are in the conformance suite."""

import pyro.distributions as dist
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pyroflows import glow
from pyroflows.transforms import AffineMap, InvertibleConv1x1, coupling


class _LargestTensor(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation returns."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel())
        return result


@pytest.mark.parametrize("parameterization", ["lu", "full"])
def test_convolution_makes_no_matrix_per_pixel(parameterization: str) -> None:
    conv = InvertibleConv1x1((24, 16, 16), parameterization)
    x = torch.randn(1, 24, 16, 16, requires_grad=True)
    for direction in (conv, conv.inv):
        with _LargestTensor() as mode:
            value, ladj = direction.call_and_ladj(x)
            (value.sum() + ladj.sum()).backward()
        assert mode.largest <= x.numel()


def test_the_counter_sees_such_a_matrix() -> None:
    """The test above would fail for Pyro's."""
    theirs = dist.transforms.GeneralizedChannelPermute(channels=24)
    x = torch.randn(1, 24, 16, 16)
    with _LargestTensor() as mode:
        theirs.log_abs_det_jacobian(x, theirs(x))
    assert mode.largest > x.numel()


@pytest.mark.parametrize("scale", ["sigmoid", "softclip", "exp"])
def test_gradient_of_an_extreme_scale_is_true(scale: str) -> None:
    """Far out where scales are kept in range, the gradient is that of the values: small, but not made up."""
    affine = AffineMap(scale)
    z = torch.tensor([0.7], dtype=torch.float64)
    for raw in (-8.0, -3.0, 0.0, 3.0, 8.0):
        parameters = torch.tensor([[0.3, raw]], dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda p: affine.forward_and_ladj(z, p), parameters)
        assert torch.autograd.gradcheck(lambda p: affine.inverse_and_ladj(z, p), parameters)


def test_softclip_is_bounded_and_smooth() -> None:
    raw = torch.linspace(-1e3, 1e3, 200_001, dtype=torch.float64)
    parameters = torch.stack([torch.zeros_like(raw), raw], -1).requires_grad_()
    _, ladj = AffineMap("softclip").inverse_and_ladj(torch.zeros_like(raw), parameters)
    assert ladj.abs().max() < 3
    (slope,) = torch.autograd.grad(ladj.sum(), parameters)
    assert (slope[:, 1] > 0).all()


def test_a_conditioned_ladj_is_of_each_datum() -> None:
    transform = coupling((2, 4, 4), hidden_channels=4, context_dim=2)
    for parameter in transform.parameters():
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    context, z = torch.randn(3, 2), torch.randn(3, 2, 4, 4)
    _, ladj = transform.condition(context).call_and_ladj(z)
    assert ladj.unique().numel() == 3
    for i in range(3):
        torch.testing.assert_close(transform.condition(context[i]).call_and_ladj(z[i])[1], ladj[i])


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-4), (torch.float64, 1e-9)], ids=str)
@pytest.mark.parametrize("trained", [False, True], ids=["fresh", "trained"])
def test_round_trip_of_a_large_glow(dtype: torch.dtype, bound: float, trained: bool) -> None:
    torch.manual_seed(0)
    transform = glow((3, 32, 32), levels=3, steps=8, hidden_channels=64).to(dtype)
    if trained:
        # Smooth images with a little noise: what a convolution sees in photographs.
        coarse = torch.rand(64, 3, 8, 8, dtype=dtype)
        images = torch.nn.functional.interpolate(coarse, size=32, mode="bilinear")
        images = images + 0.02 * torch.randn_like(images)
        transform._initialize(images, None)
        optimizer = torch.optim.Adam(transform.parameters(), lr=1e-3)
        losses = []
        for step in range(30):
            batch = images[(step % 4) * 16 : (step % 4 + 1) * 16]
            z, ladj = transform.inv.call_and_ladj(batch)
            loss = ((z**2).sum(-1) / 2 - ladj).mean() / z.shape[-1]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0] - 0.1
    bare = transform.with_cache(0)
    with torch.no_grad():
        z = torch.randn(8, 3072, dtype=dtype)
        assert (bare.inv(bare(z)) - z).abs().max() <= bound
        if trained:
            assert (bare(bare.inv(images)) - images).abs().max() <= bound
