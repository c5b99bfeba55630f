"""Which columns of a table are meant, by their names or numbers."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral

__all__ = ["choose", "listed"]

# A longer list of names is cut.
_LISTED = 20


def choose(chosen: Sequence[str | int] | None, names: Sequence[str], where: str) -> list[int]:
    """The numbers of the chosen columns, in the order in which they were chosen; all without a choice.

    Args:
        chosen: Names, exactly as they are or without spaces around them, or numbers from 0.
        names: The names of all columns.
        where: What the columns are of, for messages.

    Raises:
        ValueError: There is no such column, several are of that name, or one is chosen twice.

    Example:
        >>> choose(["b", 0], ["a", "b"], "the table")
        [1, 0]
    """
    if chosen is None:
        return list(range(len(names)))
    if isinstance(chosen, str) or not len(chosen):
        raise ValueError(f"expected a list of the names of columns of {where} as columns, got {chosen!r}")
    numbers = [_number(column, names, where) for column in chosen]
    for i, number in enumerate(numbers):
        if number in numbers[:i]:
            raise ValueError(
                f"expected each column of {where} at most once in columns, got {chosen[i]!r} twice"
            )
    return numbers


def listed(names: Sequence[str]) -> str:
    """Names for a message; a long list is cut."""
    return ", ".join(map(repr, names[:_LISTED])) + (", ..." if len(names) > _LISTED else "")


def _number(column: str | int, names: Sequence[str], where: str) -> int:
    if isinstance(column, Integral) and not isinstance(column, bool):
        if not 0 <= column < len(names):
            raise ValueError(
                f"expected a column of 0 to {len(names) - 1} of {where} as columns, got {int(column)}"
            )
        return int(column)
    exact = [i for i, name in enumerate(names) if name == column]
    # A number in text, as on the command line.
    if not exact and str(column).isdecimal() and int(column) < len(names):
        return int(column)
    found = exact or [i for i, name in enumerate(names) if name.strip() == str(column).strip()]
    if not found or not str(column).strip():
        raise ValueError(
            f"expected the name of a column of {where} (capitals matter), got {column!r}: "
            f"there are {listed([name for name in names if name])}"
        )
    if len(found) > 1:
        raise ValueError(
            f"expected the name of one column of {where}, got {column!r}, the name of columns "
            f"{' and '.join(map(str, found))}: choose it by its number, or rename one of them"
        )
    return found[0]
