"""The command line: `pyroflows fit`, `pyroflows sample`, `pyroflows score`."""

from __future__ import annotations

import csv
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Annotated, Any

import torch

from pyroflows._extras import needs_fit_extra
from pyroflows.datasets import Data, has_names, load
from pyroflows.defaults import Defaults, crop_for

with needs_fit_extra("the command line"):
    import typer
    from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

    from pyroflows.output import SAMPLES, SCORES, check_output, write_rows, write_samples
    from pyroflows.runs import Run
    from pyroflows.saving import CHECKPOINT, LAST, METRICS
    from pyroflows.training import FitResult, fit
    from pyroflows.training.prepare import check_seed
    from pyroflows.training.report import DRAWN
    from pyroflows.training.trainer import is_main_process

__all__ = ["app", "main"]

app = typer.Typer(
    help="Fit normalizing flows to data, sample from them, and score data.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

_DATA_HELP = (
    "'digits', 'moons', 'checkerboard', 'eight_gaussians', a .csv, .tsv or .parquet table with a header, a "
    ".npz (x, or x_train and x_test) or .npy file, or a folder of PNG or JPEG images"
)
_RUN_HELP = "Folder that `pyroflows fit` wrote, or a checkpoint in it, such as best.ckpt."
_LOGGERS: dict[str, Callable[..., Logger]] = {"csv": CSVLogger, "tensorboard": TensorBoardLogger}
# The exit status of a command that Ctrl-C ended, as shells have it.
_INTERRUPTED = 130


def _option(panel: str) -> Callable[..., Any]:
    """Options of a part of the help."""

    def option(help: str, *names: str) -> Any:
        return typer.Option(*names, help=help, rich_help_panel=panel)

    return option


_data, _flow, _fit, _output = map(_option, ("Data", "Flow", "Fit", "Output"))

_Columns = Annotated[
    list[str] | None,
    _data("Columns of a table that are taken, by name or number: a,b (names with commas in quotes)."),
]
_Key = Annotated[str | None, _data("Name of the array of a .npz file.")]
_Crop = Annotated[bool, _data("Cut images evenly to a size that the flow's levels can halve.", "--crop")]
_DropAlpha = Annotated[bool, _data("Leave out the transparency of images.", "--drop-alpha")]
_SkipBad = Annotated[bool, _data("Leave out a folder's images that can't be read.", "--skip-bad")]
_Overwrite = Annotated[bool, _output("Replace what is there already.", "--overwrite")]


@app.command("fit")
def fit_command(
    data: Annotated[str, typer.Argument(help=_DATA_HELP)],
    columns: _Columns = None,
    key: _Key = None,
    classes: Annotated[
        bool,
        _data(
            "Fit a flow given the class: the subfolder of an image, y of a .npz file, or column 'class' or "
            "'y' of a table.",
            "--classes",
        ),
    ] = False,
    grey_levels: Annotated[
        int | None, _data("Number of values of a pixel; by default 256, and 65536 of 16 bits.")
    ] = None,
    dequantize: Annotated[
        list[str] | None,
        _data(
            "Columns of few values, such as counts, by name or number among those taken: noise as wide as "
            "the gap between values makes them continuous; may be repeated."
        ),
    ] = None,
    crop: _Crop = False,
    drop_alpha: _DropAlpha = False,
    skip_bad: _SkipBad = False,
    flow: Annotated[str, _flow("nice, realnvp or glow.")] = "glow",
    levels: Annotated[int | None, _flow("Levels of an image's flow (Glow's L).")] = None,
    steps: Annotated[
        int | None, _flow("Steps of flow in each level (Glow's K); of nice and realnvp, couplings.")
    ] = None,
    hidden_channels: Annotated[int | None, _flow("Width of the networks of an image's flow.")] = None,
    hidden_features: Annotated[
        str | None, _flow("Widths of the hidden layers of a table's networks, as 64,64.")
    ] = None,
    coupling: Annotated[
        str | None,
        _flow(
            "additive, affine, spline or logistic_mixture (Flow++'s); by default additive for nice, affine "
            "for realnvp, images and small tables, and spline for other tables."
        ),
    ] = None,
    max_epochs: Annotated[int | None, _fit("Largest number of passes over the data.")] = None,
    batch_size: Annotated[int | None, _fit("Data in a step.")] = None,
    lr: Annotated[float | None, _fit("Largest step size.")] = None,
    val_fraction: Annotated[
        float, _fit("Part of the training data that is held out to tell when to stop; 0: run all epochs.")
    ] = 0.1,
    patience: Annotated[
        int, _fit("Looks at the held-out score, every 5 steps or more, without a gain before the fit ends.")
    ] = 15,
    ema: Annotated[float | None, _fit("Decay of an average of the weights, as 0.999.")] = None,
    precision: Annotated[str, _fit("Lightning's, as bf16-mixed.")] = "32-true",
    accelerator: Annotated[str, _fit("cpu, gpu or what there is.")] = "auto",
    devices: Annotated[int, _fit("Number of processes, each with its own batches.")] = 1,
    strategy: Annotated[str, _fit("Lightning's, as ddp, or fsdp.")] = "auto",
    seed: Annotated[int, _fit("Random seed.")] = 0,
    out: Annotated[Path | None, _output("Folder of the results; by default runs/DATA.")] = None,
    sample_every: Annotated[
        int | None, _output("Write samples.png every so many epochs, not only at the end.")
    ] = None,
    log: Annotated[
        str | None, _output("Write the losses of the steps to OUT/log: csv or tensorboard.")
    ] = None,
    resume: Annotated[
        bool,
        _output(
            "Go on with a run that was stopped, with the same options; one that has ended needs more "
            "--max-epochs.",
            "--resume",
        ),
    ] = False,
    overwrite: _Overwrite = False,
) -> None:
    """Fit a flow to DATA, and write the flow, pictures and metrics.json to a folder.

    A part of the training data is held out. The fit ends when their score gets no better, and keeps the best
    weights. Data that come with a test part are scored on it.
    """
    folder = Path("runs") / _stem(data) if out is None else out
    try:
        dataset = load(
            data,
            columns=_split(columns),
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
            dequantize=_split(dequantize) or (),
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


@app.command()
def sample(
    run: Annotated[Path, typer.Argument(help=_RUN_HELP)],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help="File to write: .csv, .parquet or .npy, a picture such as .png or .pdf, or, without an "
            "ending, a folder of PNG images.",
        ),
    ] = Path("samples.png"),
    n: Annotated[int, typer.Option("-n", help="Number of samples.", min=1)] = 64,
    label: Annotated[
        str | None, typer.Option("--class", help="Class of the samples; by default each in turn.")
    ] = None,
    temperature: Annotated[float, typer.Option(help="Below 1, samples vary less.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    overwrite: _Overwrite = False,
) -> None:
    """Draw samples from a fitted flow, and write them to a file or a folder."""
    loaded = Run.load(run)
    check_output(output, SAMPLES, overwrite=overwrite)
    torch.manual_seed(check_seed(seed))
    samples = write_samples(loaded, output, n, temperature, label=label)
    bad = int((~samples.isfinite()).flatten(1).any(1).sum())
    print(f"wrote {n} samples to {output}" + (f", {bad} of which are not finite" if bad else ""))


@app.command("score")
def score_command(
    run: Annotated[Path, typer.Argument(help=_RUN_HELP)],
    data: Annotated[str, typer.Argument(help=_DATA_HELP + "; of data with a held-out part, that part")],
    columns: _Columns = None,
    key: _Key = None,
    crop: _Crop = False,
    drop_alpha: _DropAlpha = False,
    skip_bad: _SkipBad = False,
    per_row: Annotated[
        bool,
        typer.Option(
            "--per-row", help="Write the log density of each row, in nats: the lowest are the outliers."
        ),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="File of --per-row: .csv, .parquet or .npy; by default the screen."
        ),
    ] = None,
    overwrite: _Overwrite = False,
) -> None:
    """Print the mean negative log density of DATA under a fitted flow: less is better.

    The unit is bits per dimension for images and nats for tables.
    """
    loaded = Run.load(run)
    if output is not None:
        if not per_row:
            raise ValueError(f"expected --per-row with --output {output}: a mean score is only printed")
        check_output(output, SCORES, overwrite=overwrite)
    chosen: Sequence[str | int] | None = _split(columns)
    if chosen is None and loaded.names is not None and has_names(data):
        chosen = loaded.names
    options: dict[str, Any] = {"key": key, "drop_alpha": drop_alpha, "skip_bad": skip_bad}
    dataset = load(data, columns=chosen, classes=loaded.classes is not None, **options)
    event_shape = tuple(loaded.flow.transform.event_shape)
    if crop and len(event_shape) != 3:
        raise ValueError(f"--crop is for images, and {run} is a run of a table")
    if crop:
        dataset = dataset.crop(*event_shape[1:])
    if chosen is None:
        _check_columns(loaded, dataset)
    is_test = dataset.test is not None
    rows, files = (dataset.test, dataset.test_files) if is_test else (dataset.train, dataset.files)
    assert rows is not None
    labels = _labels(dataset, dataset.test_labels if is_test else dataset.train_labels, loaded)
    log_prob = loaded.log_prob(rows, labels=labels)
    if per_row:
        table = {"row": range(len(rows)), "file": files, "class": labels, "log_prob": log_prob}
        present = {name: values for name, values in table.items() if values is not None}
        write_rows({name: [*map(str, v)] if name == "file" else v for name, v in present.items()}, output)
    if per_row and output is None:
        return
    bad = int((~log_prob.isfinite()).sum())
    value = loaded.in_unit(-log_prob.double().mean()).item()
    print(f"{value:.4f} {loaded.unit}" + (f", with {bad} rows that are not finite" if bad else ""))
    if loaded.baseline is not None:
        print(f"{loaded.baseline.score(rows):.4f} nats, by a Gaussian that was fitted to the same table")
    if output is not None:
        print(f"wrote the log densities of {len(rows)} rows, in nats, to {output}")


def _check_columns(run: Run, dataset: Data) -> None:
    """Refuse an array if the run was fitted to some columns of one, as it may have these alone or all."""
    names = run.names
    if dataset.names is not None or names is None or not all(name.isdecimal() for name in names):
        return
    if names != tuple(map(str, range(dataset.train.shape[-1]))):
        raise ValueError(
            f"the run was fitted to the columns {','.join(names)} of an array: choose the columns of this "
            "one by --columns, in that order"
        )


def _labels(dataset: Data, labels: torch.Tensor | None, run: Run) -> list[str] | None:
    """The name of each datum's class, if the flow is conditional on classes."""
    if run.classes is None:
        return None
    if labels is None or dataset.classes is None:
        raise ValueError("expected a class of each datum, as the flow was fitted with --classes, got none")
    return [dataset.classes[i] for i in labels.tolist()]


def _split(values: list[str] | None) -> list[str] | None:
    """Names that are separated by commas, in quotes if they hold some, in options that may be repeated."""
    if values is None:
        return None
    return [name for row in csv.reader(values, skipinitialspace=True) for name in row]


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


def main() -> None:
    """Run the command line; bad input is one line on standard error and exit status 2."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: print(f"pyroflows: {message}", file=sys.stderr)
            app()
    except (ImportError, ValueError) as error:
        print(f"pyroflows: {error}", file=sys.stderr)
        sys.exit(2)
    except (FloatingPointError, OSError) as error:
        print(f"pyroflows: {error}", file=sys.stderr)
        sys.exit(1)
