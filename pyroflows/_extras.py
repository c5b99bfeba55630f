"""What needs an extra says so."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager


@contextmanager
def needs_extra(what: str, extra: str) -> Iterator[None]:
    """Name the pip command where an import of an optional dependency fails."""
    try:
        yield
    except ImportError as error:
        raise ImportError(f"{what} needs {error.name}: pip install 'pyroflows[{extra}]'") from error


def needs_fit_extra(what: str) -> AbstractContextManager[None]:
    """Name the pip command where an import of what fits flows fails."""
    return needs_extra(what, "fit")
