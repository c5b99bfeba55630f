"""How many threads the tests use, and what the examples in docstrings may use without importing it."""

import os

# The tests' tensors are small, and run in several processes (notebooks and the command line in processes of
# their own): more threads would only wait for each other. Torch reads this when it is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from typing import Any

import pytest
import torch

import pyroflows
from pyroflows import nets, transforms


@pytest.fixture(autouse=True)
def _doctest_names(doctest_namespace: dict[str, Any]) -> None:
    torch.manual_seed(0)
    doctest_namespace["torch"] = torch
    for module in (pyroflows, transforms, nets):
        doctest_namespace.update({name: getattr(module, name) for name in module.__all__})
