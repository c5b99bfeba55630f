"""Models run without validation, where what is outside of a support is no error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pyro
from torch.distributions import Distribution

__all__ = ["unvalidated"]


@contextmanager
def unvalidated() -> Iterator[None]:
    """As `pyro.validation_enabled(False)`, but what was off before stays off.

    Pyro's puts its own switch back, and with it torch's, which `torch.compile`, say, has turned since.
    """
    before = Distribution._validate_args
    try:
        with pyro.validation_enabled(False):
            yield
    finally:
        Distribution.set_default_validate_args(before)
