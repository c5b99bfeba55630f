"""The command line: `pyroflows fit`, `pyroflows sample`, `pyroflows score`."""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path
from typing import Annotated

import torch

from pyroflows._extras import needs_fit_extra
from pyroflows.datasets import Data, load
from pyroflows.distributions import Dequantized

with needs_fit_extra("the command line"):
    import typer

    from pyroflows.plotting import plot_samples
    from pyroflows.runs import CHECKPOINT, METRICS, SAMPLES, Recipe, Run
    from pyroflows.training import fit, score

__all__ = ["app", "main"]

app = typer.Typer(
    help="Fit normalizing flows to data, sample from them, and score data.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_DATA_HELP = (
    "'digits', 'moons', 'checkerboard', 'eight_gaussians', or a .npz (x, or x_train and x_test) or .npy file"
)


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
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
) -> None:
    """Fit a Glow to DATA, and write the checkpoint, samples.png and metrics.json."""
    start = time.perf_counter()
    dataset = _hold_out(load(data))
    torch.manual_seed(seed)
    recipe = _recipe(dataset, coupling)
    flow = recipe.build()
    folder = Path("runs") / Path(data).stem if out is None else out
    _make_folder(folder)
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
        seed=seed,
    )
    run = Run(flow, recipe)
    unit = _unit(dataset.levels)
    metrics = {
        unit: result.score,
        f"train_{unit}": result.losses[-1],
        "epochs": max_epochs,
        "seconds": round(time.perf_counter() - start, 1),
    }
    run.save(folder, metrics)
    plot_samples(_draw(run, 64, 1.0), folder / SAMPLES, real=dataset.test, levels=dataset.levels)
    print(f"held out: {result.score:.3f} {unit.replace('_', ' ')}, after {metrics['seconds']} s")
    print(f"wrote {CHECKPOINT}, {METRICS} and {SAMPLES} to {folder}")


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
    plot_samples(_draw(loaded, n, temperature), output, levels=loaded.recipe.levels)
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
    levels = loaded.recipe.levels
    value = score(loaded.flow, dataset.train if dataset.test is None else dataset.test, levels=levels)
    print(f"{value:.4f} {_unit(levels).replace('_', ' ')}")


def _unit(levels: int | None) -> str:
    return "nats" if levels is None else "bits_per_dim"


def _draw(run: Run, n: int, temperature: float) -> torch.Tensor:
    distribution = run.flow(temperature=temperature)
    levels = run.recipe.levels
    return (distribution if levels is None else Dequantized(distribution, levels)).sample((n,))


def _hold_out(data: Data) -> Data:
    """Data with a held-out part: a tenth at random of those that come without one."""
    if data.test is not None:
        return data
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0))
    held_out = max(1, len(data.train) // 10)
    kept, out = order[held_out:], order[:held_out]
    return Data(data.train[kept], data.train[out], data.levels)


def _recipe(data: Data, coupling: str) -> Recipe:
    event_shape = tuple(data.train.shape[1:])
    options: dict[str, object] = {"steps": 8, "dropout": 0.0, "coupling": coupling}
    if len(event_shape) == 3:
        options |= {"hidden_channels": 64, "dropout": 0.2}
    return Recipe("glow", event_shape, options, data.levels)


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
