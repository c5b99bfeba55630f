"""`pyroflows fit`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Annotated

import torch

from pyroflows._extras import needs_fit_extra
from pyroflows.cli.options import (
    DATA_HELP,
    Columns,
    Crop,
    DropAlpha,
    Key,
    Overwrite,
    SkipBad,
    of_data,
    of_fit,
    of_flow,
    of_output,
    split,
)
from pyroflows.datasets import load
from pyroflows.defaults import Defaults, crop_for
from pyroflows.saving import CHECKPOINT, LAST, METRICS

with needs_fit_extra("the command line"):
    import typer
    from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

    from pyroflows.training import FitResult, fit
    from pyroflows.training.prepare import check_seed
    from pyroflows.training.report import DRAWN
    from pyroflows.training.trainer import is_main_process

__all__ = ["fit_command"]

_LOGGERS: dict[str, Callable[..., Logger]] = {"csv": CSVLogger, "tensorboard": TensorBoardLogger}
# The exit status of a command that Ctrl-C ended, as shells have it.
_INTERRUPTED = 130


def fit_command(
    data: Annotated[str, typer.Argument(help=DATA_HELP)],
    columns: Columns = None,
    key: Key = None,
    classes: Annotated[
        bool,
        of_data(
            "Fit a flow given the class: the subfolder of an image, y of a .npz file, or column 'class' or "
            "'y' of a table.",
            "--classes",
        ),
    ] = False,
    grey_levels: Annotated[
        int | None, of_data("Number of values of a pixel; by default 256, and 65536 of 16 bits.")
    ] = None,
    dequantize: Annotated[
        list[str] | None,
        of_data(
            "Columns of few values, such as counts, by name or number among those taken: noise as wide as "
            "the gap between values makes them continuous; may be repeated."
        ),
    ] = None,
    crop: Crop = False,
    drop_alpha: DropAlpha = False,
    skip_bad: SkipBad = False,
    flow: Annotated[str, of_flow("nice, realnvp or glow.")] = "glow",
    levels: Annotated[int | None, of_flow("Levels of an image's flow (Glow's L).")] = None,
    steps: Annotated[
        int | None, of_flow("Steps of flow in each level (Glow's K); of nice and realnvp, couplings.")
    ] = None,
    hidden_channels: Annotated[int | None, of_flow("Width of the networks of an image's flow.")] = None,
    hidden_features: Annotated[
        str | None, of_flow("Widths of the hidden layers of a table's networks, as 64,64.")
    ] = None,
    coupling: Annotated[
        str | None,
        of_flow(
            "additive, affine, spline or logistic_mixture (Flow++'s); by default additive for nice, affine "
            "for realnvp, images and small tables, and spline for other tables."
        ),
    ] = None,
    max_epochs: Annotated[int | None, of_fit("Largest number of passes over the data.")] = None,
    batch_size: Annotated[int | None, of_fit("Data in a step.")] = None,
    lr: Annotated[float | None, of_fit("Largest step size.")] = None,
    val_fraction: Annotated[
        float, of_fit("Part of the training data that is held out to tell when to stop; 0: run all epochs.")
    ] = 0.1,
    patience: Annotated[
        int, of_fit("Looks at the held-out score, every 5 steps or more, without a gain before the fit ends.")
    ] = 15,
    ema: Annotated[float | None, of_fit("Decay of an average of the weights, as 0.999.")] = None,
    precision: Annotated[str, of_fit("Lightning's, as bf16-mixed.")] = "32-true",
    accelerator: Annotated[str, of_fit("cpu, gpu or what there is.")] = "auto",
    devices: Annotated[int, of_fit("Number of processes, each with its own batches.")] = 1,
    strategy: Annotated[str, of_fit("Lightning's, as ddp, or fsdp.")] = "auto",
    seed: Annotated[int, of_fit("Random seed.")] = 0,
    out: Annotated[Path | None, of_output("Folder of the results; by default runs/DATA.")] = None,
    sample_every: Annotated[
        int | None, of_output("Write samples.png every so many epochs, not only at the end.")
    ] = None,
    log: Annotated[
        str | None, of_output("Write the losses of the steps to OUT/log: csv or tensorboard.")
    ] = None,
    resume: Annotated[
        bool,
        of_output(
            "Go on with a run that was stopped, with the same options; one that has ended needs more "
            "--max-epochs.",
            "--resume",
        ),
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Fit a flow to DATA, and write the flow, pictures and metrics.json to a folder.

    A part of the training data is held out. The fit ends when their score gets no better, and keeps the best
    weights. Data that come with a test part are scored on it.
    """
    folder = Path("runs") / _stem(data) if out is None else out
    try:
        dataset = load(
            data,
            columns=split(columns),
            key=key,
            drop_alpha=drop_alpha,
            skip_bad=skip_bad,
            classes=classes,
        )
        if crop:
            dataset = crop_for(dataset, flow, levels)
        if classes and len(dataset.classes or ()) < 2:
            raise ValueError(
                f"expected at least two classes in {data}, got {list(dataset.classes or ())}: fit it without "
                "--classes"
            )
        defaults = Defaults(dataset.train.shape[1:], len(dataset.train))
        options = defaults.options()
        for name, value in (("max_epochs", max_epochs), ("batch_size", batch_size), ("lr", lr)):
            if value is not None:
                options[name] = value
        torch.manual_seed(check_seed(seed))
        made = defaults.flow(
            flow,
            levels=levels,
            steps=steps,
            hidden_channels=hidden_channels,
            hidden_features=_sizes(hidden_features),
            coupling=coupling,
            context_dim=len(dataset.classes) if classes and dataset.classes else None,
        )
        result = fit(
            made,
            dataset,
            val_fraction=val_fraction,
            grey_levels=grey_levels,
            dequantize=split(dequantize) or (),
            patience=patience,
            ema=ema,
            precision=precision,
            accelerator=accelerator,
            devices=devices,
            strategy=strategy,
            seed=seed,
            out=folder,
            resume=resume,
            overwrite=overwrite,
            sample_every=sample_every,
            logger=_logger(log, folder),
            **options,
        )
    except KeyboardInterrupt:
        if is_main_process():
            _tell_of_interrupt(folder)
        raise typer.Exit(_INTERRUPTED) from None
    if not is_main_process():
        return
    if dataset.skipped:
        names = ", ".join(file.name for file in dataset.skipped[:10])
        print(f"left out {len(dataset.skipped)} images that can't be read: {names}")
    for line in _told(result):
        print(line)
    print(f"wrote {CHECKPOINT}, {METRICS}, checkpoints and pictures to {folder}")


def _sizes(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(size) for size in text.split(","))
    except ValueError:
        raise ValueError(f"expected --hidden-features as whole numbers such as 64,64, got {text!r}") from None


def _stem(data: str) -> str:
    return Path(data).resolve().stem.removesuffix(".csv").removesuffix(".tsv")


def _tell_of_interrupt(folder: Path) -> None:
    if (folder / LAST).exists():
        print("pyroflows: stopped: the same command with --resume goes on from here", file=sys.stderr)
    else:
        print("pyroflows: stopped before the end of the first epoch: nothing was kept", file=sys.stderr)


def _told(result: FitResult) -> Iterator[str]:
    """The scores of a fit, in lines."""
    scores = [
        ("test data", result.test_score, result.baseline_test_score),
        (
            "held-out part of the training data, which chose the weights",
            result.val_score,
            result.baseline_val_score,
        ),
    ]
    # What chose nothing comes first, and decides.
    held_out = [(part, score, baseline) for part, score, baseline in scores if score is not None]
    for part, score, baseline in held_out:
        line = f"{part}: {score:.3f} {result.run.unit}, less is better"
        yield line if baseline is None else f"{line} (a Gaussian: {baseline:.3f})"
    if held_out and held_out[0][2] is not None and held_out[0][1] > held_out[0][2]:
        yield (
            "the flow is worse than a Gaussian: try more --max-epochs or data, a lower --lr, or --coupling "
            "affine"
        )
    if result.refit:
        yield "then the flow was fitted once more to all rows; the held-out score is that of the first fit"
    yield f"the fit took {result.seconds:.1f} s; {result.n_not_finite} of {DRAWN} samples are not finite"


def _logger(kind: str | None, folder: Path) -> Logger | bool:
    if kind is None:
        return False
    if kind not in _LOGGERS:
        raise ValueError(f"expected --log to be one of {sorted(_LOGGERS)}, got {kind!r}")
    try:
        # An earlier part of a run keeps its log.
        names = ("log" if part == 1 else f"log_{part}" for part in count(1))
        return _LOGGERS[kind](folder, name="", version=next(n for n in names if not (folder / n).exists()))
    except ModuleNotFoundError as error:
        raise ValueError(f"--log {kind} needs a package that is not installed: {error}") from None
