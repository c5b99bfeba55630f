"""What the options of several commands have in common."""

from __future__ import annotations

import csv
from collections.abc import Callable
from typing import Annotated, Any

from pyroflows._extras import needs_fit_extra

with needs_fit_extra("the command line"):
    import typer

__all__ = [
    "DATA_HELP",
    "RUN_HELP",
    "Columns",
    "Crop",
    "DropAlpha",
    "Key",
    "Overwrite",
    "SkipBad",
    "of_data",
    "of_fit",
    "of_flow",
    "of_output",
    "split",
]

DATA_HELP = (
    "'digits', 'moons', 'checkerboard', 'eight_gaussians', a .csv, .tsv or .parquet table with a header, a "
    ".npz (x, or x_train and x_test) or .npy file, or a folder of PNG or JPEG images"
)
RUN_HELP = "Folder that `pyroflows fit` wrote, or a checkpoint in it, such as best.ckpt."


def _option(panel: str) -> Callable[..., Any]:
    """Options of a part of the help."""

    def option(help: str, *names: str) -> Any:
        return typer.Option(*names, help=help, rich_help_panel=panel)

    return option


of_data, of_flow, of_fit, of_output = map(_option, ("Data", "Flow", "Fit", "Output"))

Columns = Annotated[
    list[str] | None,
    of_data("Columns of a table that are taken, by name or number: a,b (names with commas in quotes)."),
]
Key = Annotated[str | None, of_data("Name of the array of a .npz file.")]
Crop = Annotated[bool, of_data("Cut images evenly to a size that the flow's levels can halve.", "--crop")]
DropAlpha = Annotated[bool, of_data("Leave out the transparency of images.", "--drop-alpha")]
SkipBad = Annotated[bool, of_data("Leave out a folder's images that can't be read.", "--skip-bad")]
Overwrite = Annotated[bool, of_output("Replace what is there already.", "--overwrite")]


def split(values: list[str] | None) -> list[str] | None:
    """Names that are separated by commas, in quotes if they hold some, in options that may be repeated."""
    if values is None:
        return None
    return [name for row in csv.reader(values, skipinitialspace=True) for name in row]
