"""What is remembered saves an evaluation and is never stale: all is as it is without memory."""

import gc
import weakref
from collections.abc import Callable

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyroflows.transforms import Coupling, FlowTransform
from tests.conformance.examples import Example, conditioned, context, latent


def _distribution(transform: FlowTransform, given: Tensor | None) -> dist.TransformedDistribution:
    zeros = torch.zeros(transform.latent_shape, dtype=torch.float64)
    base = dist.Normal(zeros, 1.0).to_event(len(transform.latent_shape))
    return dist.TransformedDistribution(base, [conditioned(transform, given)])


def _count_conditioner_calls(transform: FlowTransform) -> list[str]:
    calls: list[str] = []
    for name, module in transform.named_modules():
        if isinstance(module, Coupling):
            module.conditioner.register_forward_hook(lambda *_, name=name: calls.append(name))
    return calls


def _couplings(transform: FlowTransform) -> int:
    return sum(isinstance(module, Coupling) for module in transform.modules())


def _remembers(example: Example) -> bool:
    """A chain with a part of torch's or Pyro's can't know what that depends on, so it never remembers."""
    return example.name != "chain_foreign"


def _gradients(loss: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    gradients = torch.autograd.grad(loss, inputs, allow_unused=True)
    return [torch.zeros_like(i) if g is None else g for i, g in zip(inputs, gradients, strict=True)]


def _assert_same(got: list[Tensor], want: list[Tensor]) -> None:
    # Rounding is that of the largest number on the way, which is not smaller than the largest result.
    size = max([1.0, *(part.abs().max().item() for part in want if part.numel())])
    for got_part, want_part in zip(got, want, strict=True):
        torch.testing.assert_close(got_part, want_part, atol=1e-9 * size, rtol=0)


def test_a_sample_and_its_density_are_one_evaluation(example: Example) -> None:
    if not _remembers(example):
        pytest.skip("never remembers")
    transform = example.make()
    calls, couplings = _count_conditioner_calls(transform), _couplings(transform)
    density = _distribution(transform, context(transform, 3))
    x = density.rsample((2,) if transform.context_shape is None else ())
    assert len(calls) == couplings
    density.log_prob(x)
    assert len(calls) == couplings
    with torch.no_grad():
        density.log_prob(x)
    assert len(calls) == couplings
    with torch.no_grad():
        x = density.sample()
        density.log_prob(x)
    assert len(calls) == 2 * couplings


def test_the_density_of_data_is_one_evaluation(example: Example) -> None:
    if not _remembers(example):
        pytest.skip("never remembers")
    transform = example.make()
    x = conditioned(transform, context(transform, 3))(latent(transform, 3)).detach()
    calls, couplings = _count_conditioner_calls(transform), _couplings(transform)
    density = _distribution(transform, context(transform, 3))
    density.log_prob(x)
    with torch.no_grad():
        density.log_prob(x)
    assert len(calls) == 2 * couplings


def test_the_inverse_in_a_distribution_is_remembered_too(example: Example) -> None:
    if not _remembers(example):
        pytest.skip("never remembers")
    transform = example.make()
    given = context(transform, 3)
    x = conditioned(transform, given)(latent(transform, 3)).detach()
    calls, couplings = _count_conditioner_calls(transform), _couplings(transform)
    inverse = conditioned(transform, given).inv
    z = inverse(x)
    inverse.log_abs_det_jacobian(x, z)
    assert torch.equal(inverse.inv(z), x)
    assert len(calls) == couplings


def _loss_of_sample(transform: FlowTransform, given: Tensor | None, z: Tensor) -> Tensor:
    density = _distribution(transform, given)
    x = density.transforms[0](z)
    return density.log_prob(x).sum() + (x**3).sum()


def _loss_of_frozen_sample(transform: FlowTransform, given: Tensor | None, z: Tensor) -> Tensor:
    """Issue 59822 of PyTorch: the sample has no graph, and its density must have one."""
    density = _distribution(transform, given)
    with torch.no_grad():
        x = density.transforms[0](z)
    return density.log_prob(x).sum()


def _loss_of_data(transform: FlowTransform, given: Tensor | None, z: Tensor) -> Tensor:
    return _distribution(transform, given).log_prob(z.reshape(z.shape[:1] + transform.event_shape)).sum()


def _loss_of_ladj(transform: FlowTransform, given: Tensor | None, z: Tensor) -> Tensor:
    view = conditioned(transform, given)
    x = view(z)
    return (x**3).sum() + view.log_abs_det_jacobian(z, x).sum()


def _loss_after_half_of_the_graph_is_gone(
    transform: FlowTransform, given: Tensor | None, z: Tensor
) -> Tensor:
    view = conditioned(transform, given)
    x = view(z)
    if x.requires_grad:
        x.sum().backward()
    return view.log_abs_det_jacobian(z, x).sum() + 0 * z.sum()


LOSSES = [
    _loss_of_sample,
    _loss_of_frozen_sample,
    _loss_of_data,
    _loss_of_ladj,
    _loss_after_half_of_the_graph_is_gone,
]


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
@pytest.mark.parametrize("with_grad", [True, False], ids=["grad", "backward"])
def test_gradients_are_those_without_memory(
    example: Example, loss: Callable[..., Tensor], with_grad: bool
) -> None:
    transform = example.make()
    bare = transform.with_cache(0)

    def gradients(transform: FlowTransform) -> list[Tensor]:
        # In the unit interval, so that it is data of every transform, `Logit` included.
        z = torch.rand(
            3, *transform.latent_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
        )
        z.requires_grad_()
        given = context(transform, 3)
        inputs = [z, *transform.parameters()]
        if given is not None:
            inputs.append(given.requires_grad_())
        value = loss(transform, given, z)
        if with_grad:
            return _gradients(value, inputs) if value.requires_grad else []
        for leaf in inputs:
            leaf.grad = None
        if value.requires_grad:
            value.backward()
        return [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad.clone() for leaf in inputs]

    _assert_same(gradients(transform), gradients(bare))


def test_the_gradient_by_the_sample_itself(example: Example) -> None:
    """A value that goes back from `x` to `z` is a function of `x`, however its gradient is asked for."""
    transform = example.make()
    for parameter in transform.parameters():
        parameter.requires_grad_()

    def by_sample(transform: FlowTransform, ask: str) -> list[Tensor]:
        z = latent(transform, 2, 3).requires_grad_()
        density = _distribution(transform, context(transform, 3))
        x = density.transforms[0](z)
        loss = density.log_prob(x).sum()
        parameters = list(transform.parameters())
        if ask == "grad":
            return _gradients(loss, [x])
        if ask == "grad_with_leaves":
            return _gradients(loss, [x, z, *parameters])
        seen: list[Tensor] = []
        for parameter in parameters:
            parameter.grad = None
        if ask == "retain_grad":
            x.retain_grad()
        else:
            x.register_hook(seen.append)
        loss.backward()
        by_x = [x.grad] if ask == "retain_grad" else seen
        return [*by_x, *(p.grad for p in [z, *parameters] if p.grad is not None)]

    for ask in ("grad", "grad_with_leaves", "retain_grad", "hook"):
        _assert_same(by_sample(transform, ask), by_sample(transform.with_cache(0), ask))


def test_second_derivatives_are_those_without_memory(example: Example) -> None:
    transform = example.make()

    def second(transform: FlowTransform, ask_for_sample: bool) -> list[Tensor]:
        z = latent(transform, 2).requires_grad_()
        density = _distribution(transform, context(transform, 2))
        x = density.transforms[0](z)
        loss = (density.log_prob(x) ** 2).sum()
        (first,) = torch.autograd.grad(loss, x if ask_for_sample else z, create_graph=True)
        return _gradients((first**2).sum(), [z, *transform.parameters()])

    for ask_for_sample in (True, False):
        _assert_same(second(transform, ask_for_sample), second(transform.with_cache(0), ask_for_sample))


def test_a_second_density_of_the_same_data_after_backward(example: Example) -> None:
    """As the closure of L-BFGS evaluates it."""
    transform = example.make()
    density = _distribution(transform, context(transform, 3))
    x = conditioned(transform, context(transform, 3))(latent(transform, 3)).detach()
    parameters = list(transform.parameters())
    if not parameters:
        pytest.skip("nothing to learn")
    first, second = (_gradients(density.log_prob(x).sum(), parameters) for _ in range(2))
    _assert_same(first, second)


def _step(transform: FlowTransform, given: Tensor | None) -> None:
    optimizer = torch.optim.SGD(transform.parameters(), lr=0.1)
    for parameter in transform.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()


def _new_data(transform: FlowTransform, given: Tensor | None) -> None:
    for parameter in transform.parameters():
        parameter.data = parameter.data + 0.1


def _new_data_twice(transform: FlowTransform, given: Tensor | None) -> None:
    """The allocator may give the second storage the address that the first one had."""
    for parameter in transform.parameters():
        parameter.data = parameter.data + 0.2
        parameter.data = parameter.data - 0.1


def _load(transform: FlowTransform, given: Tensor | None) -> None:
    state = transform.state_dict()
    transform.load_state_dict({k: v + 0.1 if v.is_floating_point() else v for k, v in state.items()})


def _change_context(transform: FlowTransform, given: Tensor | None) -> None:
    if given is not None:
        given.add_(1.0)


@pytest.mark.parametrize("change", [_step, _new_data, _new_data_twice, _load, _change_context])
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
def test_nothing_is_stale_after_a_change(example: Example, change: Callable[..., None], grad: bool) -> None:
    transform = example.make()
    if next(transform.parameters(), None) is None:
        pytest.skip("nothing to change")
    if change is _change_context and transform.context_shape is None:
        pytest.skip("unconditional")
    given = context(transform, 3)
    view, z = conditioned(transform, given), latent(transform, 3)
    with torch.set_grad_enabled(grad):
        x = view(z)
        with torch.no_grad():
            change(transform, given)
        bare = conditioned(transform.with_cache(0), given)
        assert torch.equal(view.inv(x), bare.inv(x))
        assert torch.equal(view.log_abs_det_jacobian(z, x), bare.log_abs_det_jacobian(z, x))
        assert torch.equal(view(z), bare(z))


def test_a_changed_sample_is_not_recognised(example: Example) -> None:
    transform = example.make()
    view = conditioned(transform, context(transform, 3))
    with torch.no_grad():
        x = view(latent(transform, 3))
        x.mul_(0.5)
        assert torch.equal(view.inv(x), conditioned(transform.with_cache(0), context(transform, 3)).inv(x))


def test_a_sample_may_be_changed_in_place_where_a_gradient_is_wanted(example: Example) -> None:
    transform = example.make()
    if example.name == "reshape":
        pytest.skip("a view of a leaf may not be changed in place, with or without memory")
    x = conditioned(transform, context(transform, 3))(latent(transform, 3))
    x.mul_(0.5)
    x.sum()


def test_another_context_is_another_value(example: Example) -> None:
    transform = example.make()
    given = context(transform, 3)
    if given is None:
        pytest.skip("unconditional")
    x = transform.condition(given)(latent(transform, 3))
    other = given + 1
    got = transform.condition(other).inv(x)
    assert torch.equal(got, transform.with_cache(0).condition(other).inv(x))


def test_the_same_numbers_in_another_context_have_their_own_gradient(example: Example) -> None:
    transform = example.make()
    given = context(transform, 3)
    if given is None:
        pytest.skip("unconditional")

    def by_alias(transform: FlowTransform) -> Tensor:
        x = transform.condition(given.requires_grad_())(latent(transform, 3))
        alias = given.view_as(given)
        alias.retain_grad()
        transform.condition(alias).inv(x).sum().backward()
        return alias.grad

    _assert_same([by_alias(transform)], [by_alias(transform.with_cache(0))])


def test_a_gradient_asked_for_later_is_there(example: Example) -> None:
    """`requires_grad_` changes neither the tensor nor its version."""
    transform = example.make().requires_grad_(False)
    given = context(transform, 3)
    view, z = conditioned(transform, given), latent(transform, 3)
    x = view(z)
    z.requires_grad_()
    assert view.log_abs_det_jacobian(z, x).requires_grad == bool(
        conditioned(transform.with_cache(0), given).log_abs_det_jacobian(z, x).requires_grad
    )
    x = x.detach() if x.requires_grad else x
    x.requires_grad_()
    back = view.inv(x)
    assert back.requires_grad


def test_nothing_is_kept_alive(example: Example) -> None:
    transform = example.make()
    given = context(transform, 3)
    view = conditioned(transform, given)
    z = latent(transform, 3)
    x = view(z)
    view.inv(x)
    references = [weakref.ref(tensor) for tensor in (z, x, given) if tensor is not None]
    gc.disable()
    try:
        del x, z, view, given
        assert [reference() for reference in references] == len(references) * [None]
        reference = weakref.ref(transform)
        del transform
        assert reference() is None
    finally:
        gc.enable()


def test_autocast_is_part_of_what_is_remembered(example: Example) -> None:
    transform = example.make(torch.float32)
    given = context(transform, 3, dtype=torch.float32)
    view = conditioned(transform, given)
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            x = view(latent(transform, 3, dtype=torch.float32))
        assert torch.equal(view.inv(x), conditioned(transform.with_cache(0), given).inv(x))


def test_inference_mode_and_no_grad_agree(example: Example) -> None:
    transform = example.make()
    density = _distribution(transform, context(transform, 3))
    x = conditioned(transform, context(transform, 3))(latent(transform, 3)).detach()
    with torch.inference_mode():
        got = density.log_prob(x)
        sample = density.sample()
        again = density.log_prob(sample)
        sample.mul_(0.5)
        assert not torch.equal(density.log_prob(sample), again) or transform.event_shape.numel() == 0
    with torch.no_grad():
        torch.testing.assert_close(got, density.log_prob(x), atol=1e-10, rtol=1e-10)


def test_with_cache(example: Example) -> None:
    transform = example.make()
    bare = transform.with_cache(0)
    assert bare is not transform
    assert bare.with_cache(0) is bare
    assert transform.with_cache(1) is transform
    for got, want in zip(bare.parameters(), transform.parameters(), strict=True):
        assert got is want
    calls, couplings = _count_conditioner_calls(bare), _couplings(bare)
    view = conditioned(bare, context(bare, 3))
    view.inv(view(latent(bare, 3)))
    assert len(calls) == 2 * couplings
    with pytest.raises(ValueError, match="cache_size"):
        transform.with_cache(2)
