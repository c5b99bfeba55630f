"""What `fit` gives Lightning: the strategy, the checkpoints, and quiet."""

from __future__ import annotations

import logging
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pyroflows._extras import needs_fit_extra
from pyroflows.saving import BEST, LAST
from pyroflows.training.density import VALIDATION, DensityModule

with needs_fit_extra("pyroflows.training"):
    import lightning
    from lightning.pytorch.callbacks import Callback, ModelCheckpoint
    from lightning.pytorch.utilities import rank_zero_only
    from lightning.pytorch.utilities.exceptions import MisconfigurationException

__all__ = ["is_main_process", "module_and_strategy", "quiet", "run_trainer", "saving_to", "trainer_of"]


def is_main_process() -> bool:
    """Whether this process is the one of several that writes and prints."""
    return int(getattr(rank_zero_only, "rank", None) or 0) == 0


def trainer_of(**options: Any) -> lightning.Trainer:
    """Lightning's trainer.

    Raises:
        ValueError: Lightning refuses an option.
    """
    try:
        return lightning.Trainer(**options)
    except (MisconfigurationException, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"expected options that Lightning's Trainer takes: {reason}") from None


def run_trainer(trainer: lightning.Trainer, module: DensityModule, checkpoint: Path | None = None) -> None:
    """Fit, and let Ctrl-C be a `KeyboardInterrupt`.

    Lightning ignores further signals and exits instead, which would end a notebook's kernel.
    """
    is_main_thread = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(module, ckpt_path=checkpoint)
    except SystemExit as error:
        # Others exit too: Lightning at a SIGTERM, and callbacks.
        if not isinstance(error.__context__, KeyboardInterrupt):
            raise
        raise KeyboardInterrupt from None
    finally:
        if is_main_thread:
            signal.signal(signal.SIGINT, handler)


def saving_to(folder: Path, *, keep_last: bool, keep_best: bool) -> list[Callback]:
    """The callbacks that write checkpoints."""
    plain: dict[str, Any] = {"dirpath": folder, "enable_version_counter": False}
    saving: list[Callback] = []
    if keep_best:
        saving.append(ModelCheckpoint(filename=Path(BEST).stem, monitor=VALIDATION, **plain))
    if keep_last:
        saving.append(ModelCheckpoint(filename=Path(LAST).stem, save_on_train_epoch_end=True, **plain))
    return saving


def module_and_strategy(strategy: Any, ema: float | None) -> tuple[type[DensityModule], Any]:
    """What is trained, and Lightning's strategy."""
    name = strategy if isinstance(strategy, str) else type(strategy).__name__
    if name == "fsdp":
        if ema is not None:
            raise ValueError("strategy 'fsdp' keeps no average of the weights: leave ema out, or use 'ddp'")
        try:
            from pyroflows.training.sharded import Sharded, ShardedDensityModule
        except ImportError as error:
            raise ValueError(f"strategy 'fsdp' needs PyTorch 2.6 or newer: {error}") from None
        return ShardedDensityModule, Sharded()
    if name.lower().startswith(("fsdp", "deepspeed", "modelparallel")):
        raise ValueError(
            f"fit expected strategy 'fsdp' or one that keeps the weights whole, as 'ddp', got {name}, whose "
            "checkpoints could not be resumed"
        )
    return DensityModule, strategy


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Lightning's advice that a user of `fit` can't follow off the screen."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for message in (
                ".*does not have many workers.*",
                ".*`isinstance.treespec, LeafSpec.` is deprecated.*",
                ".*Checkpoint directory .* exists and is not empty.*",
                ".*is smaller than the logging interval.*",
                ".*Total length of `list` across ranks is zero.*",
                ".*FSDP2-wrapped module .* returned a view tensor.*",
                ".*Grad strides do not match bucket view strides.*",
                ".*AccumulateGrad node's stream does not match.*",
            ):
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        logger.setLevel(level)
