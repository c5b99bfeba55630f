"""What the examples in docstrings may use without importing it."""

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
