"""Lightning's checkpoints, in files that run no code when they are read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pyroflows._extras import needs_fit_extra
from pyroflows.state import read_state, write_state

with needs_fit_extra("pyroflows.training"):
    from lightning.pytorch.plugins.io import CheckpointIO

__all__ = ["SafeCheckpointIO"]


class SafeCheckpointIO(CheckpointIO):
    """Lightning's checkpoints by `write_state` and `read_state`.

    Example:
        >>> import lightning
        >>> trainer = lightning.Trainer(plugins=[SafeCheckpointIO()], logger=False, accelerator="cpu")
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_state(checkpoint, path)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        # Lightning moves what it restores to the device; until then it stays on the CPU.
        checkpoint = read_state(path)
        callbacks = checkpoint.get("callbacks", {})
        checkpoint["callbacks"] = {
            name: _moved(state, Path(path).parent) for name, state in callbacks.items()
        }
        return checkpoint

    def remove_checkpoint(self, path: str | Path) -> None:
        Path(path).unlink(missing_ok=True)


def _moved(state: Any, folder: Path) -> Any:
    """The state of a callback that saves, with the folder where its files are now.

    `ModelCheckpoint` forgets the best score so far if its folder is another, such as one that was renamed.
    """
    if not isinstance(state, dict) or "dirpath" not in state:
        return state
    before, now = str(state["dirpath"]), os.path.realpath(folder)

    def moved(value: Any) -> Any:
        if isinstance(value, dict):
            return {moved(key): moved(part) for key, part in value.items()}
        return (
            now + value.removeprefix(before) if isinstance(value, str) and value.startswith(before) else value
        )

    return moved(state)
