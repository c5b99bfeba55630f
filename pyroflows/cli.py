"""The command line: `pyroflows fit`, `pyroflows sample`, `pyroflows score`."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch

from pyroflows._extras import needs_fit_extra
from pyroflows.datasets import Data, load
from pyroflows.distributions import Flow
from pyroflows.transforms import glow

with needs_fit_extra("the command line"):
    import typer
    from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

    from pyroflows.plotting import plot_samples
    from pyroflows.runs import CHECKPOINT, METRICS, Run
    from pyroflows.training import fit, score
    from pyroflows.training.fit import LAST, is_main_process

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
        int | None, typer.Option(help="Passes over the data; by default 1,100 steps' worth.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Data in a step.")] = 64,
    lr: Annotated[float, typer.Option(help="Largest step size.")] = 3e-3,
    coupling: Annotated[
        str, typer.Option(help="additive, affine (Glow's), spline or logistic_mixture (Flow++'s).")
    ] = "affine",
    patience: Annotated[
        int | None, typer.Option(help="Stop after so many epochs without a better held-out score.")
    ] = None,
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
    """Fit a Glow to DATA, and write the flow, pictures and metrics.json to a folder."""
    start = time.perf_counter()
    dataset = _hold_out(load(data, skip_bad=skip_bad))
    torch.manual_seed(seed)
    flow = _flow(dataset, coupling)
    folder = Path("runs") / Path(data).stem if out is None else out
    _make_folder(folder)
    if not resume and (folder / LAST).exists() and not (folder / METRICS).exists():
        raise ValueError(
            f"{folder} holds a run that has not ended: go on with it by --resume, or choose another --out"
        )
    if max_epochs is None:
        max_epochs = math.ceil(1100 * batch_size / len(dataset.train))
    assert dataset.test is not None
    result = fit(
        flow,
        dataset.train,
        dataset.test,
        levels=dataset.levels,
        max_epochs=max_epochs,
        batch_size=batch_size,
        lr=lr,
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
    )
    if not is_main_process():
        return
    if dataset.skipped:
        names = ", ".join(file.name for file in dataset.skipped[:10])
        print(f"left out {len(dataset.skipped)} images that can't be read: {names}")
    unit = _unit(dataset.levels)
    metrics = {
        unit: result.score,
        f"train_{unit}": result.losses[-1],
        "epochs": len(result.losses),
        "skipped": len(dataset.skipped),
        "seconds": round(time.perf_counter() - start, 1),
    }
    Run(flow, dataset.levels).save(folder, metrics)
    print(f"held out: {result.score:.3f} {unit.replace('_', ' ')}, after {metrics['seconds']} s")
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
    plot_samples(loaded.sample(n, temperature), output, levels=loaded.levels)
    print(f"wrote {n} samples to {output}")


@app.command("score")
def score_command(
    run: Annotated[Path, typer.Argument(help="Folder that `pyroflows fit` wrote.")],
    data: Annotated[str, typer.Argument(help=_DATA_HELP + "; of data with a held-out part, that part")],
) -> None:
    """Print the bits per dimension (images) or nats (tables) of DATA under a fitted flow."""
    loaded = Run.load(run)
    dataset = load(data)
    torch.manual_seed(0)
    levels = loaded.levels
    value = score(loaded.flow, dataset.train if dataset.test is None else dataset.test, levels=levels)
    print(f"{value:.4f} {_unit(levels).replace('_', ' ')}")


def _unit(levels: int | None) -> str:
    return "nats" if levels is None else "bits_per_dim"


def _hold_out(data: Data) -> Data:
    """Data with a held-out part: a tenth at random of those that come without one."""
    if data.test is not None:
        return data
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0))
    held_out = max(1, len(data.train) // 10)
    kept, out = order[held_out:], order[:held_out]
    return Data(data.train[kept], data.train[out], data.levels, skipped=data.skipped)


def _flow(data: Data, coupling: str) -> Flow:
    event_shape = tuple(data.train.shape[1:])
    if len(event_shape) == 1:
        return Flow(glow(event_shape, steps=8, coupling=coupling))
    return Flow(glow(event_shape, steps=8, hidden_channels=64, dropout=0.2, coupling=coupling))


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
        app()
    except ValueError as error:
        print(f"pyroflows: {error}", file=sys.stderr)
        sys.exit(2)
    except FloatingPointError as error:
        print(f"pyroflows: {error}", file=sys.stderr)
        sys.exit(1)
