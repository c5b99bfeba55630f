"""What needs the extra `[fit]` says so."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def needs_fit_extra(what: str) -> Iterator[None]:
    """Name the pip command where an import of an optional dependency fails."""
    try:
        yield
    except ImportError as error:
        raise ImportError(f"{what} needs {error.name}: pip install 'pyroflows[fit]'") from error
