"""`pyroflows sample`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch

from pyroflows._extras import needs_fit_extra
from pyroflows.cli.options import RUN_HELP, Overwrite
from pyroflows.runs import Run

with needs_fit_extra("the command line"):
    import typer

    from pyroflows.output import SAMPLES, check_output, write_samples
    from pyroflows.training.prepare import check_seed

__all__ = ["sample_command"]


def sample_command(
    run: Annotated[Path, typer.Argument(help=RUN_HELP)],
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
        str | None, typer.Option("--class", help="Class of the samples; by default as many of each.")
    ] = None,
    temperature: Annotated[float, typer.Option(help="Below 1, samples vary less.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Draw samples from a fitted flow, and write them to a file or a folder."""
    loaded = Run.load(run)
    check_output(output, SAMPLES, overwrite=overwrite)
    torch.manual_seed(check_seed(seed))
    samples = write_samples(loaded, output, n, temperature, label=label)
    bad = int((~samples.isfinite()).flatten(1).any(1).sum())
    print(f"wrote {n} samples to {output}" + (f", {bad} of which are not finite" if bad else ""))
