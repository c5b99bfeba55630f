"""The command line: `pyroflows fit`, `pyroflows sample`, `pyroflows score`."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import torch

from pyroflows._extras import needs_fit_extra
from pyroflows.datasets import load
from pyroflows.defaults import Defaults

with needs_fit_extra("the command line"):
    import typer
    from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

    from pyroflows.plotting import plot_samples
    from pyroflows.runs import CHECKPOINT, METRICS, Run
    from pyroflows.training import fit, score
    from pyroflows.training.report import DRAWN
    from pyroflows.training.trainer import LAST, is_main_process

__all__ = ["app", "main"]

app = typer.Typer(
    help="Fit normalizing flows to data, sample from them, and score data.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_DATA_HELP = (
    "'digits', 'moons', 'checkerboard', 'eight_gaussians', a .npz (x, or x_train and x_test) or .npy file, "
    "or a folder of PNG or JPEG images"
)


_LOGGERS: dict[str, Callable[..., Logger]] = {"csv": CSVLogger, "tensorboard": TensorBoardLogger}


@app.command("fit")
def fit_command(
    data: Annotated[str, typer.Argument(help=_DATA_HELP)],
    out: Annotated[Path | None, typer.Option(help="Folder of the results; by default runs/DATA.")] = None,
    max_epochs: Annotated[
        int | None,
        typer.Option(help="Largest number of passes over the data."),
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Data in a step.")] = None,
    lr: Annotated[float | None, typer.Option(help="Largest step size.")] = None,
    coupling: Annotated[
        str | None,
        typer.Option(
            help="additive, affine, spline or logistic_mixture (Flow++'s); by default affine for images and "
            "small tables and spline for other tables."
        ),
    ] = None,
    dequantize: Annotated[
        list[int] | None,
        typer.Option(help="Column of a table, from 0, that gets noise of its own step; may be repeated."),
    ] = None,
    val_fraction: Annotated[
        float, typer.Option(help="Part of the training data that tells when to stop; 0: fit to the end.")
    ] = 0.1,
    patience: Annotated[
        int,
        typer.Option(
            help="Epochs (of at least 5 steps) without a better held-out score after which the fit ends."
        ),
    ] = 15,
    ema: Annotated[float | None, typer.Option(help="Decay of an average of the weights, as 0.999.")] = None,
    precision: Annotated[str, typer.Option(help="Lightning's, as bf16-mixed.")] = "32-true",
    accelerator: Annotated[str, typer.Option(help="cpu, gpu or what there is.")] = "auto",
    devices: Annotated[int, typer.Option(help="Number of processes, each with its own batches.")] = 1,
    strategy: Annotated[str, typer.Option(help="Lightning's, as ddp, or fsdp.")] = "auto",
    sample_every: Annotated[
        int | None, typer.Option(help="Write samples.png every so many epochs, not only at the end.")
    ] = None,
    log: Annotated[
        str | None, typer.Option(help="Write the losses of the steps to OUT/log: csv or tensorboard.")
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out a folder's images that can't be read.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the folder.")] = False,
) -> None:
    """Fit a Glow to DATA, and write the flow, pictures and metrics.json to a folder.

    A part of the training data is held out. The fit ends when their score gets no better, and keeps the best
    weights. Data that come with a test part are scored on it.
    """
    start = time.perf_counter()
    dataset = load(data, skip_bad=skip_bad)
    defaults = Defaults(dataset.train.shape[1:], len(dataset.train))
    options = defaults.options()
    for name, value in (("max_epochs", max_epochs), ("batch_size", batch_size), ("lr", lr)):
        if value is not None:
            options[name] = value
    torch.manual_seed(seed)
    flow = defaults.flow(coupling)
    folder = Path("runs") / Path(data).stem if out is None else out
    _make_folder(folder)
    if not resume and (folder / LAST).exists() and not (folder / METRICS).exists():
        raise ValueError(
            f"{folder} holds a run that has not ended: go on with it by --resume, or choose another --out"
        )
    result = fit(
        flow,
        dataset.train,
        test_data=dataset.test,
        val_fraction=val_fraction,
        grey_levels=dataset.grey_levels,
        dequantize=dequantize or (),
        patience=patience,
        ema=ema,
        precision=precision,
        accelerator=accelerator,
        devices=devices,
        strategy=strategy,
        seed=seed,
        out=folder,
        resume=resume,
        sample_every=sample_every,
        logger=_logger(log, folder),
        **options,
    )
    if not is_main_process():
        return
    if dataset.skipped:
        names = ", ".join(file.name for file in dataset.skipped[:10])
        print(f"left out {len(dataset.skipped)} images that can't be read: {names}")
    metrics = {
        "unit": _unit(dataset.grey_levels),
        "test_score": result.test_score,
        "val_score": result.val_score,
        "train_score": result.losses[-1],
        "baseline_test_score": result.baseline_test_score,
        "baseline_val_score": result.baseline_val_score,
        "n_not_finite": result.n_not_finite,
        "refit": result.refit,
        "epochs": len(result.losses),
        "skipped": len(dataset.skipped),
        "fit_seconds": round(result.seconds, 1),
        "seconds": round(time.perf_counter() - start, 1),
    }
    Run(flow, dataset.grey_levels, result.grid, result.baseline).save(folder, metrics)
    for line in _told(metrics):
        print(line)
    print(f"wrote {CHECKPOINT}, {METRICS}, checkpoints and pictures to {folder}")


@app.command()
def sample(
    run: Annotated[Path, typer.Argument(help="Folder that `pyroflows fit` wrote.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Picture to write.")] = Path("samples.png"),
    n: Annotated[int, typer.Option("-n", help="Number of samples.", min=1)] = 64,
    temperature: Annotated[float, typer.Option(help="The base's scale is multiplied by this.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the samples.")] = 0,
) -> None:
    """Draw samples from a fitted flow."""
    loaded = Run.load(run)
    torch.manual_seed(seed)
    samples = loaded.draw(n, temperature)
    plot_samples(samples, output, grey_levels=loaded.grey_levels)
    bad = int((~samples.isfinite()).flatten(1).any(1).sum())
    print(f"wrote {n} samples to {output}" + (f", {bad} of which are not finite" if bad else ""))


@app.command("score")
def score_command(
    run: Annotated[Path, typer.Argument(help="Folder that `pyroflows fit` wrote.")],
    data: Annotated[str, typer.Argument(help=_DATA_HELP + "; of data with a held-out part, that part")],
) -> None:
    """Print the mean negative log density of DATA under a fitted flow: less is better.

    The unit is bits per dimension for images and nats for tables.
    """
    loaded = Run.load(run)
    dataset = load(data)
    torch.manual_seed(0)
    rows = dataset.train if dataset.test is None else dataset.test
    value = score(loaded.flow, rows, grey_levels=loaded.grey_levels, grid=loaded.grid)
    print(f"{value:.4f} {_unit(loaded.grey_levels).replace('_', ' ')}")
    if loaded.baseline is not None:
        print(f"{loaded.baseline.score(rows):.4f} nats, by a Gaussian that was fitted to the same table")


def _unit(grey_levels: int | None) -> str:
    return "nats" if grey_levels is None else "bits_per_dim"


def _told(metrics: dict[str, Any]) -> Iterator[str]:
    """The scores of a fit, in lines."""
    unit = metrics["unit"].replace("_", " ")
    for part in ("test", "val"):
        score, baseline = metrics[f"{part}_score"], metrics[f"baseline_{part}_score"]
        if score is not None:
            line = f"{_PARTS[part]}: {score:.3f} {unit}, less is better"
            yield line if baseline is None else f"{line} (a Gaussian: {baseline:.3f})"
    held_out = next((part for part in ("test", "val") if metrics[f"{part}_score"] is not None), None)
    baseline = None if held_out is None else metrics[f"baseline_{held_out}_score"]
    if baseline is not None and metrics[f"{held_out}_score"] > baseline:
        yield "the flow is worse than a Gaussian: try a lower --lr, --coupling affine, or more data"
    if metrics["refit"]:
        yield "then the flow was fitted once more to all rows, by as many steps"
    yield f"{metrics['n_not_finite']} of {DRAWN} samples are not finite, after {metrics['seconds']} s"


# What chose nothing comes first.
_PARTS = {"test": "test data", "val": "held-out part of the training data, which chose the weights"}


def _logger(kind: str | None, folder: Path) -> Logger | bool:
    if kind is None:
        return False
    if kind not in _LOGGERS:
        raise ValueError(f"expected --log to be one of {sorted(_LOGGERS)}, got {kind!r}")
    try:
        return _LOGGERS[kind](folder, name="", version="log")
    except ModuleNotFoundError as error:
        raise ValueError(f"--log {kind} needs a package that is not installed: {error}") from None


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"expected a folder to write to as --out, got {folder}: {error.strerror}") from None


def main() -> None:
    """Run the command line; bad input is one line on standard error and exit status 2."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: print(f"pyroflows: {message}", file=sys.stderr)
            app()
    except ValueError as error:
        print(f"pyroflows: {error}", file=sys.stderr)
        sys.exit(2)
    except FloatingPointError as error:
        print(f"pyroflows: {error}", file=sys.stderr)
        sys.exit(1)
