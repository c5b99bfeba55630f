"""The folder of a run: who writes to it, and what is in it already."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pyroflows._extras import needs_fit_extra
from pyroflows.saving import BEST, CHECKPOINT, LAST, METRICS
from pyroflows.training.trainer import is_main_process

with needs_fit_extra("pyroflows.training"):
    from filelock import FileLock, Timeout

__all__ = ["check_room", "claimed", "clear"]

# The operating system frees the lock when its process ends, however that happens. A killed process leaves the
# empty file, which locks nothing.
_LOCK = ".lock"
_PICTURES = ("samples.png", "losses.png", "density.png")


@contextmanager
def claimed(folder: str | Path | None) -> Iterator[Path | None]:
    """Make the folder, and keep others from writing to it; the processes of one run share it.

    Raises:
        ValueError: Another run writes to it, or it can't be made.
    """
    if folder is None or not is_main_process():
        yield None if folder is None else Path(folder)
        return
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / _LOCK, timeout=0)
        lock.acquire()
        if not (folder / _LOCK).exists():
            # It was another's until a moment ago, who removed it.
            lock.release()
            lock.acquire()
    except Timeout:
        raise ValueError(
            f"another process writes to {folder}: wait for its end, or choose another folder by --out (out=)"
        ) from None
    except OSError as error:
        raise ValueError(
            f"expected a folder to write to as --out (out=), got {folder}: {error.strerror or error}"
        ) from None
    try:
        yield folder
    finally:
        # While it is locked; Windows removes no file that is open.
        with suppress(OSError):
            (folder / _LOCK).unlink()
        lock.release()


def check_room(folder: Path, *, resume: bool, overwrite: bool) -> None:
    """Refuse a folder whose contents would be replaced unasked.

    Raises:
        ValueError: There is a run, or a picture of one.
    """
    there = _contents(folder)
    if overwrite or not there or not is_main_process():
        return
    instead = "start anew by --overwrite (overwrite=True), or choose another folder by --out (out=)"
    if resume:
        # A run that was killed in its first epoch has at most a best checkpoint, and starts anew.
        if LAST not in there and (METRICS in there or CHECKPOINT in there):
            raise ValueError(f"{folder} holds a run without {LAST}, from which it could go on: {instead}")
        return
    if METRICS in there:
        raise ValueError(
            f"{folder} holds a finished run: go on with it by --resume (resume=True) and more --max-epochs "
            f"(max_epochs=), {instead}"
        )
    if LAST in there or BEST in there:
        raise ValueError(
            f"{folder} holds a run that has not ended: go on with it by --resume (resume=True), {instead}"
        )
    raise ValueError(f"{folder} holds {there[0]}, which a run would replace: {instead}")


def clear(folder: Path) -> None:
    """Remove a run and its pictures."""
    if is_main_process():
        for name in _contents(folder):
            (folder / name).unlink(missing_ok=True)


def _contents(folder: Path) -> list[str]:
    """What a run writes that is there already."""
    return [name for name in (LAST, BEST, CHECKPOINT, METRICS, *_PICTURES) if (folder / name).exists()]
