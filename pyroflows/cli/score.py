"""`pyroflows score`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from torch import Tensor

from pyroflows._extras import needs_fit_extra
from pyroflows.cli.options import (
    DATA_HELP,
    RUN_HELP,
    Columns,
    Crop,
    DropAlpha,
    Key,
    Overwrite,
    SkipBad,
    split,
)
from pyroflows.datasets import Data, has_names, load
from pyroflows.runs import Run

with needs_fit_extra("the command line"):
    import typer

    from pyroflows.output import SCORES, check_output, write_rows

__all__ = ["score_command"]


def score_command(
    run: Annotated[Path, typer.Argument(help=RUN_HELP)],
    data: Annotated[str, typer.Argument(help=DATA_HELP + "; of data with a held-out part, that part")],
    columns: Columns = None,
    key: Key = None,
    crop: Crop = False,
    drop_alpha: DropAlpha = False,
    skip_bad: SkipBad = False,
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
    overwrite: Overwrite = False,
) -> None:
    """Print the mean negative log density of DATA under a fitted flow: less is better.

    The unit is bits per dimension for images and nats for tables.
    """
    loaded = Run.load(run)
    if output is not None:
        if not per_row:
            raise ValueError(f"expected --per-row with --output {output}: a mean score is only printed")
        check_output(output, SCORES, overwrite=overwrite)
    chosen: Sequence[str | int] | None = split(columns)
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


def _labels(dataset: Data, labels: Tensor | None, run: Run) -> list[str] | None:
    """The name of each datum's class, if the flow is conditional on classes."""
    if run.classes is None:
        return None
    if labels is None or dataset.classes is None:
        raise ValueError("expected a class of each datum, as the flow was fitted with --classes, got none")
    return [dataset.classes[i] for i in labels.tolist()]
