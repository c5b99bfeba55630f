"""The folder of a run: who writes to it, and what is in it already."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pyroflows._extras import needs_fit_extra
from pyroflows.runs import BEST, CHECKPOINT, LAST, METRICS
from pyroflows.training.trainer import is_main_process

with needs_fit_extra("pyroflows.training"):
    from filelock import FileLock, Timeout

__all__ = ["claimed", "clear"]

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


def clear(folder: Path, *, resume: bool, overwrite: bool) -> None:
    """Make room for a new run, if that was asked for.

    Raises:
        ValueError: There is a run, which would be overwritten.
    """
    there = [name for name in (LAST, BEST, CHECKPOINT, METRICS) if (folder / name).exists()]
    if resume or not there or not is_main_process():
        return
    if overwrite:
        for name in (*there, *_PICTURES):
            (folder / name).unlink(missing_ok=True)
        return
    instead = "start anew by --overwrite (overwrite=True), or choose another folder by --out (out=)"
    if METRICS in there:
        raise ValueError(
            f"{folder} holds a finished run: go on with it by --resume (resume=True) and more --max-epochs "
            f"(max_epochs=), {instead}"
        )
    raise ValueError(
        f"{folder} holds a run that has not ended: go on with it by --resume (resume=True), {instead}"
    )
