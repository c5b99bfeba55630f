"""Keywords that were renamed: the old one is an error that names the new one."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def renamed(**keywords: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Make an old keyword of a function a `ValueError` that names the new one.

    Args:
        keywords: The new name of each old one.
    """

    def wrap(function: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(function)
        def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
            for old, new in keywords.items():
                if old in kwargs:
                    raise ValueError(f"the keyword {old} is now called {new}: write {new}={kwargs[old]!r}")
            return function(*args, **kwargs)

        return wrapped

    return wrap
