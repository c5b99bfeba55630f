"""Copying, saving, `torch.compile` and `torch.func` of every transform."""

import copy
import io
import pickle

import pyro
import pytest
import torch

from tests.conformance.examples import EXAMPLES, Example, conditioned, context, latent


def _used(example: Example) -> torch.nn.Module:
    """A transform right after calls, when a memory could get in the way."""
    transform = example.make()
    view = conditioned(transform, context(transform, 2))
    view.inv(view(latent(transform, 2)).detach())
    return transform


def _pickled(transform: torch.nn.Module) -> torch.nn.Module:
    return pickle.loads(pickle.dumps(transform))


def _saved(transform: torch.nn.Module) -> torch.nn.Module:
    file = io.BytesIO()
    torch.save(transform, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, _pickled, _saved])
def test_copies_compute_the_same_and_share_nothing(example: Example, duplicate) -> None:
    transform = _used(example) if example.name != "chain_foreign" else example.make()
    given, z = context(transform, 3), latent(transform, 3)
    other = duplicate(transform)
    for got, want in zip(
        conditioned(other, given).call_and_ladj(z),
        conditioned(transform, given).call_and_ladj(z),
        strict=True,
    ):
        assert torch.equal(got, want)
    storages = {p.data_ptr() for p in transform.parameters()}
    assert not storages & {p.data_ptr() for p in other.parameters()}


def test_a_view_can_be_copied_too(example: Example) -> None:
    transform = example.make()
    view = conditioned(transform, context(transform, 3)).inv
    x = view.inv(latent(transform, 3)).detach()
    for duplicate in (copy.deepcopy, _pickled):
        assert torch.equal(duplicate(view)(x), view(x))


def test_state_dict_round_trip(example: Example) -> None:
    transform = _used(example)
    torch.manual_seed(5)
    other = example.build().double()
    other.load_state_dict(transform.state_dict())
    given, z = context(transform, 3), latent(transform, 3)
    assert torch.equal(conditioned(other, given)(z), conditioned(transform, given)(z))


def test_compiles_as_one_graph(example: Example) -> None:
    if example.name == "chain_foreign":
        pytest.skip("what is compiled there is Pyro's")
    torch.compiler.reset()
    transform = example.make()
    given, z = context(transform, 3), latent(transform, 3)
    view = conditioned(transform, given)
    for direction, value in ((view, z), (view.inv, view(z).detach())):
        compiled = torch.compile(direction.call_and_ladj, fullgraph=True, backend="aot_eager")
        for got, want in zip(compiled(value), direction.call_and_ladj(value), strict=True):
            torch.testing.assert_close(got, want, atol=1e-10, rtol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["realnvp", "glow_image", "coupling_context"])
def test_compiles_to_native_code(name: str) -> None:
    torch.compiler.reset()
    (example,) = (example for example in EXAMPLES if example.name == name)
    transform = example.make()
    z = latent(transform, 3)
    view = conditioned(transform, context(transform, 3))
    for direction, value in ((view, z), (view.inv, view(z).detach())):
        compiled = torch.compile(direction.call_and_ladj, fullgraph=True)
        for got, want in zip(compiled(value), direction.call_and_ladj(value), strict=True):
            torch.testing.assert_close(got, want, atol=1e-9, rtol=1e-9)


def test_vmap_is_a_batch(example: Example) -> None:
    if example.name == "chain_foreign":
        pytest.skip("Pyro's transforms are not written for vmap")
    transform = example.make()
    given, z = context(transform, 4), latent(transform, 4)
    view = conditioned(transform, given)
    x = view(z).detach()
    for forward, value in ((True, z), (False, x)):

        def evaluate(value, given, forward: bool = forward):
            one = conditioned(transform, given)
            return (one if forward else one.inv).call_and_ladj(value)

        got = torch.func.vmap(evaluate, in_dims=(0, None if given is None else 0))(value, given)
        want = (view if forward else view.inv).call_and_ladj(value)
        for got_part, want_part in zip(got, want, strict=True):
            torch.testing.assert_close(got_part, want_part, atol=1e-10, rtol=1e-10)


def test_functional_gradients_go_through_call_and_inverse(example: Example) -> None:
    """`torch.func.grad` of a remembered pair is that of the batch without memory."""
    if example.name == "chain_foreign":
        pytest.skip("Pyro's transforms are not written for torch.func")
    transform = example.make()
    given, z = context(transform), latent(transform)

    def density(x: torch.Tensor, transform: torch.nn.Module) -> torch.Tensor:
        view = conditioned(transform, given)
        z = view.inv(x)
        return -(z**2).sum() / 2 - view.log_abs_det_jacobian(z, x)

    x = conditioned(transform, given)(z).detach()
    got = torch.func.grad(density)(x, transform)
    leaf = x.clone().requires_grad_()
    (want,) = torch.autograd.grad(density(leaf, transform.with_cache(0)), leaf)
    torch.testing.assert_close(got, want, atol=1e-9, rtol=1e-9)


@pytest.mark.usefixtures("fresh_pyro")
def test_pyros_store_holds_the_parameters_themselves(example: Example) -> None:
    """Of a parameter that is not contiguous it would hold a copy, which is then trained in its place."""
    transform = example.make()
    pyro.module("transform", transform)
    stored = pyro.get_param_store()._params
    for name, parameter in transform.named_parameters():
        assert stored[f"transform$$${name}"] is parameter
