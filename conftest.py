"""How many threads the tests use, what docstrings' examples need not import, and what models' tests need."""

import os

# The tests' tensors are small, and run in several processes (notebooks and the command line in processes of
# their own): more threads would only wait for each other. Torch reads this when it is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Iterator
from typing import Any

import pyro
import pytest
import torch

import pyroflows
from pyroflows import nets, transforms


@pytest.fixture(autouse=True)
def _doctest_names(doctest_namespace: dict[str, Any]) -> None:
    torch.manual_seed(0)
    # Of an example's parameters the next one, of the same names, knows nothing.
    pyro.clear_param_store()
    doctest_namespace["torch"] = torch
    for module in (pyroflows, transforms, nets):
        doctest_namespace.update({name: getattr(module, name) for name in module.__all__})


@pytest.fixture
def fresh_pyro() -> Iterator[None]:
    """No parameters of another test's, and a seed."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    yield
    pyro.clear_param_store()


@pytest.fixture
def double_precision() -> Iterator[None]:
    """So that what is left of a difference is an error and not rounding."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
