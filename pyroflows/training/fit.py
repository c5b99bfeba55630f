"""Fit a flow to data, in Lightning's loop."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from pyroflows._extras import needs_fit_extra
from pyroflows.datasets import load
from pyroflows.distributions import Flow
from pyroflows.plotting import plot_losses, save_density
from pyroflows.state import read_state
from pyroflows.training.callbacks import Pictures, Watch, draw_samples
from pyroflows.training.checkpoint import SafeCheckpointIO
from pyroflows.training.data import Data, as_rows, check_data, device_of, first_batch
from pyroflows.training.density import DensityModule
from pyroflows.training.score import score

with needs_fit_extra("pyroflows.training"):
    import lightning
    from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint, WeightAveraging
    from lightning.pytorch.utilities import rank_zero_only
    from torch.optim.swa_utils import get_ema_avg_fn

__all__ = ["FitResult", "fit"]

LAST, BEST = "last.ckpt", "best.ckpt"


@dataclass(frozen=True)
class FitResult:
    """What a fit gave.

    Attributes:
        losses: Mean training loss of each epoch: bits per dimension of integer data, else nats per datum.
        score: Mean of the same on the validation data at the end, or `None` without.
        val_losses: The same after each epoch, by one draw of the noise.
        path: The folder of the checkpoints, or `None`.
    """

    losses: list[float]
    score: float | None
    val_losses: list[float]
    path: Path | None


def fit(
    flow: Flow,
    data: Data | str | Path,
    val_data: Data | None = None,
    *,
    context: Tensor | None = None,
    val_context: Tensor | None = None,
    levels: int | None = None,
    noise: Flow | None = None,
    max_epochs: int = 50,
    batch_size: int = 64,
    lr: float = 2e-3,
    weight_decay: float = 0.1,
    patience: int | None = None,
    ema: float | None = None,
    precision: Any = "32-true",
    accelerator: str = "auto",
    devices: int | str = 1,
    strategy: Any = "auto",
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = False,
    sample_every: int | None = None,
    logger: Any = False,
    callbacks: list[Callback] | None = None,
    progress_bar: bool = True,
) -> FitResult:
    r"""Fit a flow to data by maximum likelihood, in place.

    .. math:: \min_\theta \; -\frac{1}{N} \sum_n \log p_\theta(x_n)

    with AdamW, a short warm-up and a cosine decay of the step size. First every `ActNorm` is initialised
    from up to 1,024 of the data. Integer data are dequantized (`Dequantized`) by uniform noise, or by noise
    that is learned with the flow.

    A fit with `out` can be killed at any moment: `resume=True` goes on from the end of the last epoch, to the
    same weights, bit for bit on one process, as if it had not been killed.

    Args:
        flow: The flow; it is changed, and in evaluation mode afterwards.
        data: `(N, *event_shape)`: reals, or integers 0 to `levels - 1`, as a tensor or array; a `Dataset` of
            data, each alone or as `(datum, context)`; a `DataLoader` of batches of these; or what
            `pyroflows.datasets.load` takes: a name, a file or a folder of images.
        val_data: Held-out data of the same kind; no choice is made by them, unless with `patience`.
        context: `(N, *context_shape)`, each datum's context, if the flow is conditional.
        val_context: The held-out data's.
        levels: Number of levels of integer data; by default 256.
        noise: A conditional flow of the dequantization noise, which is fitted too. `None`: uniform noise.
        max_epochs: Number of passes over the data.
        batch_size: Data in a step of each process.
        lr: Largest step size.
        weight_decay: AdamW's, of the networks' weights only.
        patience: Stop after so many epochs without a better held-out score, and go back to the best weights.
        ema: Decay of an exponential moving average of the weights, such as 0.999; the average is what is
            scored and what the flow ends with.
        precision: Lightning's: `"bf16-mixed"` for bfloat16 networks, the density itself in full precision.
        accelerator: Lightning's: `"cpu"`, `"gpu"` or what there is.
        devices: Number of processes.
        strategy: Lightning's, such as `"ddp"`; `"fsdp"` spreads weights and optimizer state over the
            processes (PyTorch's `fully_shard`, from version 2.6 on). Checkpoints are the same of all.
        seed: Of the order of the data and the noise.
        out: Folder of the checkpoints `last.ckpt` and, with `val_data`, `best.ckpt`, and of the pictures
            `samples.png`, `losses.png` and, of one or two dimensions, `density.png`.
        resume: Go on from `last.ckpt`, if there is one.
        sample_every: Write `samples.png` after so many epochs, and not only at the end.
        logger: Lightning's logger.
        callbacks: Lightning's callbacks, besides.
        progress_bar: Whether to show one.

    Returns:
        Losses and score: bits per dimension (integer data) or nats per datum (reals).

    Raises:
        ValueError: The data are not of the flow's event shape, are not finite, or are too few; a context is
            missing or not wanted; noise is given for reals; what is resumed was started with other options; a
            checkpoint can't be read or written.
        FloatingPointError: The loss was not finite; the last epoch's checkpoint is kept.

    Source: Kingma & Dhariwal 2018, "Glow", arXiv 1807.03039, eq. 1 and 2; Loshchilov & Hutter 2019,
    "Decoupled weight decay regularization", arXiv 1711.05101.

    Example:
        >>> from pyroflows import Flow, realnvp
        >>> result = fit(Flow(realnvp(2)), torch.randn(256, 2), max_epochs=2, progress_bar=False)
        >>> len(result.losses)
        2
    """
    if isinstance(data, str | Path):
        loaded = load(data)
        data, levels = loaded.train, loaded.levels if levels is None else levels
        val_data = loaded.test if val_data is None else val_data
    _check_options(max_epochs, batch_size, lr, patience, ema, val_data, out, resume)
    rows = as_rows(data, context)
    levels = check_data(flow, rows, levels, noise, at_least=2)
    val_rows = None if val_data is None else as_rows(val_data, val_context)
    if val_rows is not None:
        check_data(flow, val_rows, levels, noise)
    options = {
        "max_epochs": max_epochs, "batch_size": batch_size, "lr": lr, "weight_decay": weight_decay,
        "patience": patience, "ema": ema, "seed": seed,
    }  # fmt: skip
    module_class, strategy = _of_strategy(strategy, ema)
    module = module_class(
        flow,
        levels,
        noise,
        rows=rows,
        val_rows=val_rows,
        batch_size=batch_size,
        lr=lr,
        weight_decay=weight_decay,
        seed=seed,
        options=options,
    )
    device = device_of(flow)
    module.train()
    with _quiet(), torch.random.fork_rng(), TemporaryDirectory() as temporary:
        torch.manual_seed(seed)
        first, *given = (part.to(device) for part in first_batch(rows, 1024, seed))
        flow.initialize(module.reals(first, *given), *given)
        folder = Path(temporary if out is None else out)
        # What the pictures show beside the samples is read only where there are any.
        real = None if out is None else first_batch(rows if val_rows is None else val_rows, 1000, seed=0)[0]
        trainer = lightning.Trainer(
            max_epochs=max_epochs,
            accelerator=accelerator,
            devices=devices,
            strategy=strategy,
            precision=precision,
            plugins=[SafeCheckpointIO()],
            callbacks=[
                Watch(),
                *_saving(folder, out is not None, val_rows is not None, patience),
                *([] if ema is None else [WeightAveraging(avg_fn=get_ema_avg_fn(ema), use_buffers=False)]),
                *([] if real is None or sample_every is None else [Pictures(folder, sample_every, real)]),
                *(callbacks or []),
            ],
            gradient_clip_val=100.0,
            logger=logger,
            use_distributed_sampler=isinstance(rows, DataLoader),
            num_sanity_val_steps=0,
            log_every_n_steps=10,
            enable_checkpointing=out is not None or patience is not None,
            enable_model_summary=False,
            enable_progress_bar=progress_bar,
        )
        last = folder / LAST if resume and (folder / LAST).exists() else None
        state: dict[str, Any] = {"finished": False} if last is None else read_state(last)
        if state["finished"]:
            module.on_load_checkpoint(state)
            module.load_state_dict(state["state_dict"])
        else:
            trainer.fit(module, ckpt_path=last)
        if patience is not None:
            # Each process has its own idea of the temporary folder.
            best = trainer.strategy.broadcast(str(folder / BEST))
            module.load_state_dict(read_state(best)["state_dict"])
        trainer.strategy.barrier()
        # Lightning leaves what it trained on an accelerator on the CPU.
        module.to(device).eval()
        held_out = None
        if val_data is not None:
            held_out = score(flow, val_data, context=val_context, levels=levels, noise=noise)
        if real is not None and trainer.is_global_zero:
            plot_losses(module.losses, folder / "losses.png", held_out=module.val_losses, unit=module.unit)
            draw_samples(flow, levels, folder, real)
            if flow.transform.event_shape.numel() <= 2 and flow.transform.context_shape is None:
                save_density(flow, real, folder / "density.png")
    return FitResult(module.losses, held_out, module.val_losses, None if out is None else Path(out))


def is_main_process() -> bool:
    """Whether this process is the one of several that writes and prints."""
    return int(getattr(rank_zero_only, "rank", None) or 0) == 0


def _check_options(
    max_epochs: int,
    batch_size: int,
    lr: float,
    patience: int | None,
    ema: float | None,
    val_data: Data | None,
    out: str | Path | None,
    resume: bool,
) -> None:
    if max_epochs < 1 or batch_size < 1 or not lr > 0:
        raise ValueError(
            f"fit expected max_epochs and batch_size of at least 1 and a positive lr, "
            f"got {max_epochs}, {batch_size}, {lr}"
        )
    if patience is not None and (patience < 1 or val_data is None):
        raise ValueError(f"patience, got {patience}, is a number of epochs, at least 1, and needs val_data")
    if ema is not None and not 0 < ema < 1:
        raise ValueError(f"fit expected ema between 0 and 1, got {ema}")
    if resume and out is None:
        raise ValueError("resume=True needs out=, the folder of the run that is to go on")


def _saving(folder: Path, keep: bool, held_out: bool, patience: int | None) -> list[Callback]:
    """The callbacks that write checkpoints, and that stop when the held-out score does not get better."""
    plain: dict[str, Any] = {"dirpath": folder, "enable_version_counter": False}
    saving: list[Callback] = []
    if patience is not None:
        saving.append(EarlyStopping("held out", patience=patience))
    if patience is not None or (keep and held_out):
        saving.append(ModelCheckpoint(filename=Path(BEST).stem, monitor="held out", **plain))
    if keep:
        saving.append(ModelCheckpoint(filename=Path(LAST).stem, save_on_train_epoch_end=True, **plain))
    return saving


def _of_strategy(strategy: Any, ema: float | None) -> tuple[type[DensityModule], Any]:
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
def _quiet() -> Iterator[None]:
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
