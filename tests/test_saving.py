"""Flows as files: what is written comes back the same, and nothing else is let in."""

import os
import pickle
import random
from pathlib import Path

import pyro.distributions as dist
import pytest
import torch
from safetensors.torch import load_file, save_file

from pyroflows import Flow, glow, nice, realnvp
from pyroflows.nets import MLP
from pyroflows.state import read_state, write_file, write_state
from pyroflows.transforms import AffineMap, Chain, Coupling, Logit
from tests.conformance.examples import EXAMPLES, Example, conditioned, context, latent

OURS = [example for example in EXAMPLES if example.name not in ("chain_foreign", "coupling_own_conditioner")]


@pytest.mark.parametrize("example", OURS, ids=lambda example: example.name)
def test_every_transform_comes_back(example: Example, tmp_path: Path) -> None:
    flow = Flow(example.make()).double()
    flow.save(tmp_path / "flow.safetensors")
    state = torch.random.get_rng_state()
    other = Flow.load(tmp_path / "flow.safetensors")
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not other.training
    z, given = latent(flow.transform, 3), context(flow.transform, 3)
    flow.eval()
    for a, b in zip(
        conditioned(flow.transform, given).call_and_ladj(z),
        conditioned(other.transform, given).call_and_ladj(z),
        strict=True,
    ):
        assert torch.equal(a, b)
    assert [name for name, _ in other.named_parameters()] == [name for name, _ in flow.named_parameters()]


@pytest.mark.parametrize(
    "base",
    [
        None,
        dist.Logistic(torch.zeros(3), torch.ones(3)).to_event(1),
        dist.Normal(torch.arange(3.0), 2.0).to_event(1),
        dist.StudentT(torch.full((3,), 5.0)).to_event(1),
    ],
    ids=["default", "logistic", "normal", "student"],
)
def test_the_base_comes_back(base, tmp_path: Path) -> None:
    flow = Flow(nice(3, steps=2), base)
    flow.save(tmp_path / "flow")
    x = torch.randn(5, 3)
    assert torch.equal(Flow.load(tmp_path / "flow")().log_prob(x), flow().log_prob(x))


def test_the_same_flow_is_the_same_file(tmp_path: Path) -> None:
    flow = Flow(realnvp(3))
    for i in range(20):
        flow.save(tmp_path / str(i))
    assert len({(tmp_path / str(i)).read_bytes() for i in range(20)}) == 1


def test_weights_have_their_names_for_other_readers(tmp_path: Path) -> None:
    flow = Flow(realnvp(3))
    flow.save(tmp_path / "flow.safetensors")
    weights = load_file(tmp_path / "flow.safetensors")
    for name, parameter in flow.state_dict().items():
        assert torch.equal(weights[f"weights.{name}"], parameter)


def test_a_composition_of_a_users_own(tmp_path: Path) -> None:
    conditioner = MLP(2, 6, (7,), activation=torch.nn.Tanh, dropout=0.1)
    flow = Flow(Chain([Coupling((5,), conditioner, AffineMap("exp")), Logit(5, alpha=0.1)]))
    flow.save(tmp_path / "flow")
    other = Flow.load(tmp_path / "flow")
    assert isinstance(other.transform.transforms[0].conditioner.layers[1][0], torch.nn.Tanh)
    x = torch.rand(4, 5)
    assert torch.equal(other().log_prob(x), flow.eval()().log_prob(x))


def test_what_is_not_pyroflows_own_can_not_be_saved(tmp_path: Path) -> None:
    flow = Flow(Coupling((5,), torch.nn.Linear(2, 6), AffineMap("exp")))
    with pytest.raises(ValueError, match=r"pyroflows' own classes, got .*Linear.*save its `state_dict\(\)`"):
        flow.save(tmp_path / "flow")
    assert not list(tmp_path.iterdir())


def test_writing_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "flow"
    Flow(realnvp(2)).save(path)
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ValueError, match=r"could not write .* bytes to .*flow: No space left on device"):
        Flow(realnvp(3)).save(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["flow"]
    with pytest.raises(ValueError, match="could not write"):
        write_file(tmp_path / "none" / "file", b"")


def test_what_a_killed_process_left_is_cleared_away(tmp_path: Path) -> None:
    (tmp_path / "file.123.tmp").write_bytes(b"half")
    (tmp_path / "other.123.tmp").write_bytes(b"another's")
    write_file(tmp_path / "file", b"whole")
    assert {file.name for file in tmp_path.iterdir()} == {"file", "other.123.tmp"}


def test_state_of_every_kind(tmp_path: Path) -> None:
    last = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    tensor = torch.randn(3)
    state = {
        "plain": [1, 2.5, None, True, "x", float("inf")],
        3: {"a.b": (tensor, tensor), "a": {"b": torch.zeros(0)}},
        "bfloat16": torch.ones(2, dtype=torch.bfloat16),
        "scalar": torch.tensor(7),
        "last": last,
    }
    write_state(state, tmp_path / "state")
    got = read_state(tmp_path / "state")
    assert str(got) == str(state)
    # The order in memory is kept: fused optimizers go by it.
    assert got["last"].stride() == last.stride()
    with pytest.raises(ValueError, match=r"tensors and plain values, got <class 'object'> as 'a.0'"):
        write_state({"a": [object()]}, tmp_path / "state")


class _Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_two_hundred_damaged_files(tmp_path: Path) -> None:
    """Bit flips, truncations, foreign files, pickles with a payload: an error or the same weights."""
    path, payload = tmp_path / "flow", tmp_path / "payload"
    flow = Flow(glow((1, 4, 4), steps=1, hidden_channels=4))
    flow.save(path)
    good = path.read_bytes()
    generator = random.Random(0)

    def flipped() -> bytes:
        damaged = bytearray(good)
        damaged[generator.randrange(len(good))] ^= 1 << generator.randrange(8)
        return bytes(damaged)

    def flipped_header() -> bytes:
        damaged = bytearray(good)
        damaged[generator.randrange(2000)] ^= 1 << generator.randrange(8)
        return bytes(damaged)

    def truncated() -> bytes:
        return good[: generator.randrange(len(good))]

    def inserted() -> bytes:
        position = generator.randrange(len(good))
        return good[:position] + generator.randbytes(1 + generator.randrange(9)) + good[position:]

    def noise() -> bytes:
        return generator.randbytes(generator.randrange(3000))

    def pickled() -> bytes:
        return pickle.dumps(_Payload(payload))

    def saved_by_torch() -> bytes:
        torch.save({"flow": _Payload(payload)}, path)
        return path.read_bytes()

    def foreign() -> bytes:
        save_file({"weight": torch.randn(3)}, path, metadata={"pyroflows": "{}"})
        return path.read_bytes()

    makers = [flipped, flipped_header, truncated, inserted, noise, pickled, saved_by_torch, foreign]
    messages = []
    for i in range(200):
        path.write_bytes(makers[i % len(makers)]())
        try:
            other = Flow.load(path)
        except ValueError as error:
            messages.append(str(error))
        else:
            for name, weight in flow.state_dict().items():
                assert torch.equal(other.state_dict()[name], weight)
    assert len(messages) > 190
    assert all("is not a checkpoint of pyroflows, or is damaged" in message for message in messages)
    assert not payload.exists()


@pytest.mark.parametrize(
    "config",
    [
        {"class": "system", "arguments": {"command": "true"}},
        {"class": "ActNorm", "arguments": {"nonsense": 3}},
        {"class": "ActNorm", "arguments": {"event_shape": (3,)}},
        {"activation": "Module"},
        7,
        None,
    ],
)
def test_a_configuration_of_something_else(config, tmp_path: Path) -> None:
    write_state({"flow": {"transform": config, "base": None}, "weights": {}, "extra": {}}, tmp_path / "flow")
    with pytest.raises(ValueError, match="is not a checkpoint of pyroflows, or is damaged"):
        Flow.load(tmp_path / "flow")
    with pytest.raises(ValueError, match="no such file"):
        Flow.load(tmp_path / "missing")
