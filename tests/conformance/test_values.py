"""Shapes, inverses, log-determinants, dtypes and gradients of every transform."""

import pytest
import torch

from tests.conformance.examples import Example, conditioned, context, latent

BATCHES = [(), (3,), (2, 3), (0,), (2, 0)]


@pytest.mark.parametrize("batch", BATCHES, ids=str)
def test_any_batch_dimensions(example: Example, batch: tuple[int, ...]) -> None:
    transform = example.make()
    view = conditioned(transform, context(transform, *batch))
    z = latent(transform, *batch)
    x, ladj = view.call_and_ladj(z)
    assert x.shape == batch + transform.event_shape
    assert ladj.shape == batch
    back, back_ladj = view.inv.call_and_ladj(x)
    assert back.shape == batch + transform.latent_shape
    assert back_ladj.shape == batch
    assert view.forward_shape(z.shape) == x.shape
    assert view.inverse_shape(x.shape) == z.shape


def test_a_batch_is_its_elements(example: Example) -> None:
    """No element of a batch, its context included, has a part in another's value or log-determinant."""
    transform = example.make()
    z, given = latent(transform, 2, 3), context(transform, 2, 3)
    x, ladj = conditioned(transform, given).call_and_ladj(z)
    for i in range(2):
        for j in range(3):
            one = conditioned(transform, None if given is None else given[i, j])
            one_x, one_ladj = one.call_and_ladj(z[i, j])
            torch.testing.assert_close(one_x, x[i, j])
            torch.testing.assert_close(one_ladj, ladj[i, j])


def test_round_trip(example: Example) -> None:
    transform = example.make()
    view = conditioned(transform.with_cache(0), context(transform, 5))
    z = latent(transform, 5)
    x = view(z)
    torch.testing.assert_close(view.inv(x), z, atol=1e-9, rtol=0)
    torch.testing.assert_close(view(view.inv(x)), x, atol=1e-9, rtol=0)


def test_ladj_is_that_of_autograds_jacobian(example: Example) -> None:
    transform = example.make()
    view = conditioned(transform, context(transform))
    z = latent(transform)
    x = view(z).detach()
    for direction, value in ((view, z), (view.inv, x)):
        jacobian = torch.autograd.functional.jacobian(lambda v, f=direction: f.call_and_ladj(v)[0], value)
        expected = torch.linalg.slogdet(jacobian.reshape(value.numel(), value.numel())).logabsdet
        result, ladj = direction.call_and_ladj(value)
        assert abs(ladj - expected) <= 1e-8
        assert abs(direction.log_abs_det_jacobian(value, result) - expected) <= 1e-8


def test_gradients_are_true(example: Example) -> None:
    """Of value and log-determinant, by input, context and parameters, against finite differences."""
    transform = example.make()
    given = context(transform, 2)
    z = latent(transform, 2)
    with torch.no_grad():
        x = conditioned(transform, given)(z)
    names, parameters = zip(*transform.named_parameters(), strict=True) if _learned(transform) else ((), ())
    for forward, value in ((True, z), (False, x)):

        def outputs(
            value: torch.Tensor, given: torch.Tensor | None, *values: torch.Tensor, forward: bool = forward
        ) -> tuple[torch.Tensor, ...]:
            return torch.func.functional_call(
                _Called(transform, forward),
                {f"transform.{n}": v for n, v in zip(names, values, strict=True)},
                (value, given),
            )

        inputs = [value, given, *parameters]
        inputs = [t if t is None else t.detach().clone().requires_grad_() for t in inputs]
        assert torch.autograd.gradcheck(outputs, inputs, fast_mode=True)


def test_score_is_that_of_autograds_jacobian(example: Example) -> None:
    """And what comes with it has the same values and gradients as without."""
    transform = example.make()
    given, z = context(transform, 2), latent(transform, 2)
    score = torch.randn_like(z)
    x, ladj, found = transform.call_and_score(z, score, given)
    assert not found.requires_grad
    view = conditioned(transform, given)
    expected = view.call_and_ladj(z)
    torch.testing.assert_close((x, ladj), expected, atol=1e-12, rtol=1e-12)
    for i in range(2):
        one = conditioned(transform, None if given is None else given[i])
        jacobian, of_ladj = torch.autograd.functional.jacobian(one.call_and_ladj, z[i])
        jacobian = jacobian.reshape(z[i].numel(), -1)
        right = (score[i] - of_ladj).flatten()
        torch.testing.assert_close(jacobian.T @ found[i].flatten(), right, atol=1e-8, rtol=1e-8)
    learned = [parameter for parameter in transform.parameters() if parameter.requires_grad]
    if learned:
        sums = ((x * score.reshape(x.shape)).sum() + ladj.sum() for x, ladj in ((x, ladj), expected))
        torch.testing.assert_close(*(torch.autograd.grad(total, learned) for total in sums))


class _Called(torch.nn.Module):
    def __init__(self, transform: torch.nn.Module, forward: bool) -> None:
        super().__init__()
        self.transform, self.direction = transform, forward

    def forward(self, value: torch.Tensor, given: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        view = conditioned(self.transform, given)
        return (view if self.direction else view.inv).call_and_ladj(value)


def _learned(transform: torch.nn.Module) -> bool:
    return next(transform.parameters(), None) is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_dtype_follows_the_module(example: Example, dtype: torch.dtype) -> None:
    transform = example.make(dtype)
    view = conditioned(transform, context(transform, 2, dtype=dtype))
    x, ladj = view.call_and_ladj(latent(transform, 2, dtype=dtype))
    assert x.dtype == ladj.dtype == dtype
    # float32's rounding, by the number of operations on the way and the size of the values
    tolerance = 1e-9 if dtype == torch.float64 else 1e-4
    torch.testing.assert_close(view.inv(x), latent(transform, 2, dtype=dtype), atol=tolerance, rtol=tolerance)


def test_ladj_is_accumulated_in_float32_under_autocast(example: Example) -> None:
    transform = example.make(torch.float32)
    view = conditioned(transform, context(transform, 2, dtype=torch.float32))
    z = latent(transform, 2, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        x, ladj = view.call_and_ladj(z)
        assert x.dtype == ladj.dtype == torch.float32
        # The conditioners see the same numbers in both directions, so only float32's rounding is left.
        _back, back_ladj = view.inv.call_and_ladj(x)
    torch.testing.assert_close(ladj, -back_ladj, atol=0.05, rtol=0.05)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_gives_what_the_cpu_gives(example: Example) -> None:
    transform = example.make()
    given, z = context(transform, 2), latent(transform, 2)
    expected = conditioned(transform, given).call_and_ladj(z)
    transform = transform.to("cuda")
    view = conditioned(transform, None if given is None else given.cuda())
    for got, want in zip(view.call_and_ladj(z.cuda()), expected, strict=True):
        torch.testing.assert_close(got.cpu(), want, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_in_is_non_finite_out(example: Example, bad: float) -> None:
    transform = example.make()
    view = conditioned(transform, context(transform))
    for direction, size in ((view, transform.latent_shape), (view.inv, transform.event_shape)):
        for position in (0, size.numel() - 1):
            value = torch.full((size.numel(),), 0.3, dtype=torch.float64)
            value[position] = bad
            result, _ = direction.call_and_ladj(value.reshape(size))
            assert not result.isfinite().all()
