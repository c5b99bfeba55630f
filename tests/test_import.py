"""What importing pyroflows does to the process."""

import subprocess
import sys

import pyro.distributions.transforms as pyro_transforms
import pytest

import pyroflows
from pyroflows import _register, transforms


def _run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_importing_changes_nothing_global() -> None:
    """zuko's import switches validation off and renames a class; ours does not let it."""
    code = """
import pyro, torch
from torch.distributions.transforms import _InverseTransform
def state():
    return (torch.distributions.Distribution._validate_args, _InverseTransform.__name__,
            torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled(),
            torch.random.get_rng_state().tolist())
before = state()
import pyroflows, pyroflows.training, pyroflows.plotting, pyroflows.cli
assert state() == before, (state()[:2], before[:2])
"""
    _run(code)


def test_validation_is_still_on() -> None:
    code = """
import pyroflows, pyro.distributions as dist, torch
try:
    dist.Normal(torch.tensor(0.0), torch.tensor(-1.0))
except ValueError:
    print("refused")
"""
    assert _run(code).strip() == "refused"


def test_a_choice_made_before_is_kept() -> None:
    code = """
import torch
torch.distributions.Distribution.set_default_validate_args(False)
import pyroflows
print(torch.distributions.Distribution._validate_args)
"""
    # Pyro's own import switches validation on.
    assert _run(code).strip() == _run(code.replace("pyroflows", "pyro")).strip()


def test_the_core_needs_no_extra() -> None:
    code = """
import sys
for name in ("lightning", "typer", "matplotlib", "sklearn", "safetensors", "arviz"):
    sys.modules[name] = None
import pyroflows
for name in ("fit",):
    try:
        getattr(pyroflows, name)
    except ImportError as error:
        print(error)
"""
    assert "pip install 'pyroflows[fit]'" in _run(code)


def test_only_the_core_is_imported() -> None:
    code = """
import sys, pyroflows
extras = {"lightning", "typer", "matplotlib", "sklearn", "safetensors"}
print(sorted(extras & set(sys.modules)))
"""
    assert _run(code).strip() == "[]"


def test_registered_names_are_free_in_pyro() -> None:
    """Against the names of Pyro alone, as it is without us."""
    theirs = set(_run("import pyro.distributions.transforms as t; print(*dir(t), *t.__all__)").split())
    assert not theirs & set(_register.NAMES)
    assert not set(pyro_transforms.__all__) & set(_register.NAMES)


@pytest.mark.parametrize("name", _register.NAMES)
def test_transforms_are_registered(name: str) -> None:
    assert getattr(pyro_transforms, name) is getattr(transforms, name)


def test_a_name_that_pyro_takes_stays_pyros(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = object()
    monkeypatch.setattr(pyro_transforms, "Coupling", mine)
    monkeypatch.delattr(pyro_transforms, "glow")
    _register.register()
    assert pyro_transforms.Coupling is mine
    assert pyro_transforms.glow is pyroflows.glow


def test_public_names() -> None:
    from pyroflows import Flow, fit, glow, nice, realnvp

    assert all(callable(name) for name in (Flow, fit, glow, nice, realnvp))
    with pytest.raises(AttributeError, match="no attribute 'glou'"):
        pyroflows.glou  # noqa: B018
