"""Fit a flow to data, in Lightning's loop."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.utils.data import DataLoader

from pyroflows._extras import needs_fit_extra
from pyroflows._renamed import renamed
from pyroflows.distributions import Flow
from pyroflows.plotting import plot_losses, save_density
from pyroflows.rows import device_of, first_batch
from pyroflows.saving import BEST, LAST
from pyroflows.state import read_state
from pyroflows.training.callbacks import Pictures, Watch, draw_samples
from pyroflows.training.checkpoint import SafeCheckpointIO
from pyroflows.training.folder import check_room, claimed, clear
from pyroflows.training.prepare import check_options, count_steps, initialize, prepare
from pyroflows.training.report import FitResult, baseline_scores, count_not_finite, save_run
from pyroflows.training.schedule import Schedule
from pyroflows.training.trainer import module_and_strategy, quiet, run_trainer, saving_to, trainer_of

with needs_fit_extra("pyroflows.training"):
    from lightning.pytorch.callbacks import Callback, WeightAveraging
    from torch.optim.swa_utils import get_ema_avg_fn

__all__ = ["fit"]

# Epochs where nothing is held out, which could end the fit.
_EPOCHS = 50
# Steps after which a fit ends whose validation score still gets better: more than ten times what the largest
# of the five tables of tests/benchmarks/table_quality.py needs.
_MAX_STEPS = 20_000
# Steps between evaluations of the validation data: with fewer, the evaluations would take longer than the
# steps.
_STEPS_BETWEEN = 5


@renamed(levels="grey_levels")
def fit(
    flow: Flow,
    data: Any,
    val_data: Any = None,
    *,
    test_data: Any = None,
    context: Any = None,
    val_context: Any = None,
    test_context: Any = None,
    weights: Any = None,
    val_weights: Any = None,
    val_fraction: float = 0.1,
    grey_levels: int | None = None,
    noise: Flow | None = None,
    dequantize: Sequence[int | str] = (),
    max_epochs: int | None = None,
    batch_size: int = 64,
    lr: float = 2e-3,
    weight_decay: float = 0.1,
    patience: int | None = 15,
    ema: float | None = None,
    precision: Any = "32-true",
    accelerator: str = "auto",
    devices: int | str = 1,
    strategy: Any = "auto",
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    sample_every: int | None = None,
    logger: Any = False,
    callbacks: list[Callback] | None = None,
    progress_bar: bool = True,
) -> FitResult:
    r"""Fit a flow to data by maximum likelihood, in place, until held-out data gain no more.

    .. math:: \min_\theta \; -\frac{1}{\sum_n w_n} \sum_n w_n \log p_\theta(x_n)

    with AdamW and a short warm-up. The step size falls when the score of the validation data stalls, and by
    a cosine towards the last epoch. The weights with the best validation score are kept. A table of up to
    1,000 rows, a part of which was held out, is then fitted once more, from the start, to all of its rows, by
    the steps that led to the best score (by one process alone).

    First each column of a table, channel of real images and element of a context is centred and scaled: the
    flow's transform becomes a `Standardize`, whose numbers a second fit keeps. Then every `ActNorm` is
    initialised from up to 1,024 of the data. Integer data are dequantized (`Dequantized`) by uniform noise,
    or by noise that is learned with the flow. A warning tells of samples that are not finite.

    A fit with `out` can be killed at any moment: `resume=True` goes on from the end of the last epoch, to the
    same weights, bit for bit on one process, as if it had not been killed. With a larger `max_epochs` it goes
    on with a run that has ended, from its last weights, with a step size that begins anew at a tenth of `lr`.
    With no more `max_epochs` than a stopped run has had, it ends that run and writes its results.
    `pyroflows.Run.load(out)` reads what was fitted, while it is fitted too.

    Args:
        flow: The flow; it is changed, and in evaluation mode afterwards.
        data: `(N, *event_shape)`: reals, or integers 0 to `grey_levels - 1`, as a tensor, an array or a
            pandas or polars frame; a `Dataset` of data, each alone or as `(datum, context)`; a `DataLoader`
            of batches of these; what `pyroflows.datasets.load` gives, whose classes are the contexts of a
            flow that takes so many; or what it takes: a name, a file or a folder of images. Without
            `grey_levels` a table of integers is one of reals.
        val_data: Validation data of the same kind, by which the weights are chosen.
        test_data: Data of the same kind that choose nothing and are only scored.
        context: `(N, *context_shape)`, each datum's context, if the flow is conditional.
        val_context: That of the validation data.
        test_context: That of the test data.
        weights: `(N,)`, the weight of each datum of `data`, not negative; by default all are 1. A weight of 2
            counts as the datum twice.
        val_weights: Those of the validation data.
        val_fraction: Part of `data` that is held out where no `val_data` are given; 0 holds nothing out.
        grey_levels: Number of grey levels of integer data; by default 256, and 65,536 of `uint16` images.
        noise: A conditional flow of the dequantization noise, which is fitted too. `None`: uniform noise.
        dequantize: Numbers or names of the columns of a table that get uniform noise of the width of their
            own step.
        max_epochs: Largest number of passes over the data. By default 20,000 steps' worth, and 50 passes
            where nothing is held out.
        batch_size: Data in a step of each process.
        lr: Largest step size.
        weight_decay: AdamW's, of the networks' weights only.
        patience: Epochs without a better validation score after which the fit ends (an epoch of less than 5
            steps counts together with those that follow, up to 5 steps). The step size falls after a third
            and two thirds of them. `None`: all epochs are run, and the last weights are kept.
        ema: Decay of an exponential moving average of the weights, such as 0.999; the average is what is
            scored and what the flow ends with.
        precision: Lightning's: `"bf16-mixed"` for bfloat16 networks, the density itself in full precision.
        accelerator: Lightning's: `"cpu"`, `"gpu"` or what there is.
        devices: Number of processes.
        strategy: Lightning's, such as `"ddp"`; `"fsdp"` spreads weights and optimizer state over the
            processes (PyTorch's `fully_shard`, from version 2.6 on). A fit goes on from the checkpoints of
            any other strategy.
        seed: Seed of the part that is held out, the order of the data and the noise.
        out: Folder of the run: the flow `flow.safetensors`, the scores `metrics.json`, the checkpoints
            `last.ckpt` and, with validation data, `best.ckpt`, and the pictures `samples.png`, `losses.png`
            and, for one or two dimensions, `density.png`.
        resume: Go on from `last.ckpt`, if there is one.
        overwrite: Whether a run that is in the folder is removed first; otherwise that is an error.
        sample_every: Write `samples.png` after so many epochs, and not only at the end.
        logger: Lightning's logger.
        callbacks: Lightning's callbacks, besides.
        progress_bar: Whether to show one.

    Returns:
        Losses and scores: bits per dimension (integer data) or nats per datum (reals).

    Raises:
        ValueError: The data are not of the flow's event shape, are not finite, or are too few; a column of a
            table is constant or is there twice; a context is missing or not wanted; noise is given for reals;
            a weight is negative; the folder holds a run, or another process writes to it; what is resumed was
            started with other options; a checkpoint can't be read or written.
        FloatingPointError: The loss was not finite; the last epoch's checkpoint is kept.

    Source: Kingma & Dhariwal 2018, "Glow", arXiv 1807.03039, eq. 1 and 2; Loshchilov & Hutter 2019,
    "Decoupled weight decay regularization", arXiv 1711.05101.

    Example:
        >>> from pyroflows import Flow, realnvp
        >>> result = fit(Flow(realnvp(2)), torch.randn(256, 2), max_epochs=2, progress_bar=False)
        >>> len(result.losses), result.n_not_finite
        (2, 0)
    """
    check_options(
        max_epochs, batch_size, lr, val_fraction, patience, ema, out, resume, overwrite,
        sample_every, devices, seed,
    )  # fmt: skip
    parts = prepare(
        flow,
        data,
        val_data,
        test_data,
        contexts=(context, val_context, test_context),
        weights=(weights, val_weights),
        grey_levels=grey_levels,
        noise=noise,
        dequantize=dequantize,
        val_fraction=val_fraction,
        seed=seed,
    )
    given, rows, val_rows, test_rows = parts.given, parts.rows, parts.val_rows, parts.test_rows
    options = {
        "max_epochs": max_epochs, "batch_size": batch_size, "lr": lr, "weight_decay": weight_decay,
        "patience": patience, "ema": ema, "seed": seed, "val_fraction": val_fraction,
        "dequantize": list(parts.gridded), "data": parts.fingerprint,
    }  # fmt: skip
    patience = None if val_rows is None else patience
    steps_per_epoch = count_steps(rows, batch_size, devices)
    if max_epochs is None:
        max_epochs = _EPOCHS if patience is None else math.ceil(_MAX_STEPS / steps_per_epoch)
    module_class, strategy = module_and_strategy(strategy, ema)
    make_module = partial(
        module_class, parts.run, batch_size=batch_size, lr=lr, weight_decay=weight_decay, seed=seed
    )
    schedule = Schedule(patience)
    module = make_module(rows=rows, val_rows=val_rows, schedule=schedule, options=options)
    device = device_of(flow)
    val_every = min(max_epochs, math.ceil(_STEPS_BETWEEN / steps_per_epoch))
    with ExitStack() as stack:
        claim = stack.enter_context(claimed(out))
        if claim is not None:
            check_room(claim, resume=resume, overwrite=overwrite)
        stack.enter_context(quiet())
        stack.enter_context(torch.random.fork_rng())
        folder = Path(stack.enter_context(TemporaryDirectory())) if claim is None else claim
        torch.manual_seed(seed)
        # Only what may be fitted again starts again from here.
        few = parts.is_short_table and patience is not None
        start_state = {name: value.clone() for name, value in module.state_dict().items()} if few else {}
        initialize(module, device)
        # What the pictures show beside the samples is read only where there are any: the few rows that are
        # held out would hardly show their density.
        shown = given if test_rows is None else test_rows
        real = None if claim is None else first_batch(shown, 1000, seed=0).data
        watch = Watch()
        pictures = [] if real is None or sample_every is None else [Pictures(folder, sample_every, real)]
        make_trainer = partial(
            trainer_of,
            accelerator=accelerator,
            devices=devices,
            strategy=strategy,
            precision=precision,
            plugins=[SafeCheckpointIO()],
            gradient_clip_val=100.0,
            check_val_every_n_epoch=val_every,
            use_distributed_sampler=isinstance(rows, DataLoader),
            num_sanity_val_steps=0,
            log_every_n_steps=10,
            enable_model_summary=False,
            enable_progress_bar=progress_bar,
        )
        saving = saving_to(folder, keep_last=claim is not None, keep_best=patience is not None)
        trainer = make_trainer(
            max_epochs=max_epochs,
            callbacks=[watch, *saving, *_averaging(ema), *pictures, *(callbacks or [])],
            logger=logger,
            enable_checkpointing=bool(saving),
        )
        if claim is not None and overwrite:
            # As late as possible: a mistake in the options costs no run.
            clear(claim)
        last = folder / LAST if resume and (folder / LAST).exists() else None
        has_ended = goes_on = False
        if last is not None:
            state = read_state(last)
            module.check_resumed(state, folder)
            goes_on = module.goes_on(state)
            has_ended = not goes_on and (state["finished"] or module.ends_here(state))
        if has_ended:
            module.on_load_checkpoint(state)
            module.load_state_dict(state["state_dict"])
        else:
            if goes_on:
                warnings.warn(
                    f"the run of {len(state['losses'])} epochs goes on from its last weights, with a step "
                    "size that begins anew and small: that is not the same as one run of as many epochs",
                    stacklevel=3,
                )
            run_trainer(trainer, module, last)
        if patience is not None:
            # Each process has its own idea of the temporary folder.
            best = read_state(trainer.strategy.broadcast(str(folder / BEST)))
            module.load_state_dict(best["state_dict"])
        trainer.strategy.barrier()
        # Lightning leaves what it trained on an accelerator on the CPU.
        module.to(device).eval()
        run = module.run
        torch.manual_seed(0)
        val_score = None if val_rows is None else run.score_rows(val_rows)
        refit = few and trainer.world_size == 1
        if refit:
            again = make_module(rows=given, schedule=schedule.again())
            again.load_state_dict(start_state)
            initialize(again, device)
            refitter = make_trainer(
                max_epochs=math.ceil(best["global_step"] / count_steps(given, batch_size, 1)),
                max_steps=best["global_step"],
                callbacks=[watch, *_averaging(ema)],
                logger=False,
                enable_checkpointing=False,
            )
            run_trainer(refitter, again)
            again.to(device).eval()
            torch.manual_seed(0)
        test_score = None if test_rows is None else run.score_rows(test_rows)
        result = FitResult(
            losses=module.losses,
            val_losses=module.val_losses,
            val_score=val_score,
            test_score=test_score,
            n_not_finite=count_not_finite(flow, rows),
            seconds=module.seconds,
            refit=refit,
            path=claim,
            run=run,
            **baseline_scores(run.baseline, rows, val_rows, test_rows),
        )
        if real is not None and trainer.is_global_zero:
            save_run(result, folder, skipped=parts.skipped)
            plot_losses(
                module.losses, folder / "losses.png", held_out=module.val_losses,
                held_out_every=val_every, unit=module.unit,
            )  # fmt: skip
            draw_samples(run, folder, real)
            if flow.transform.event_shape.numel() <= 2 and flow.transform.context_shape is None:
                save_density(flow, real, folder / "density.png", names=run.names)
    return result


def _averaging(ema: float | None) -> list[Callback]:
    return [] if ema is None else [WeightAveraging(avg_fn=get_ema_avg_fn(ema), use_buffers=False)]
