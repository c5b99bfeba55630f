"""Pictures of samples and densities."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pyroflows._extras import needs_fit_extra
from pyroflows._renamed import renamed
from pyroflows.distributions import Flow
from pyroflows.state import write_file

with needs_fit_extra("pyroflows.plotting"):
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

__all__ = ["PICTURES", "plot_density", "plot_losses", "plot_posterior", "plot_samples"]

# Endings of pictures, but LaTeX's.
PICTURES = tuple(f".{name}" for name in FigureCanvasAgg.get_supported_filetypes() if name != "pgf")
# A corner plot of more dimensions would be unreadable.
_CORNER = 6
_SCATTERED = 1000
# Fewer points than this are drawn larger.
_MANY = 200
# Characters of a column's name that fit along a panel.
_LONGEST = 24
# Red, green and blue of a pixel that is not finite: magenta is in no picture of digits and in few others.
_NOT_FINITE = torch.tensor([1.0, 0.0, 1.0]).double()


@renamed(levels="grey_levels")
def plot_samples(
    samples: Tensor,
    path: str | Path,
    *,
    real: Tensor | None = None,
    grey_levels: int | None = None,
    names: Sequence[str] | None = None,
) -> None:
    """Write a picture of samples: a grid of images beside real ones, a corner plot of points over real ones.

    Args:
        samples: `(N, C, H, W)` images, of 1 or 3 channels, or `(N, D)` points, of which up to six dimensions
            are shown, each alone and in pairs.
        path: The file, whose ending gives its format.
        real: Real data of the same shape, as many or more.
        grey_levels: Number of grey levels of integer images; reals are taken to be in [0, 1].
        names: Names of the points' columns; by default their numbers.

    Raises:
        ValueError: The samples are neither images nor points, or the file's format is unknown.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     plot_samples(torch.rand(16, 1, 8, 8), f"{folder}/samples.png", real=torch.rand(16, 1, 8, 8))
    """
    if samples.dim() not in (2, 4) or (samples.dim() == 4 and samples.shape[1] not in (1, 3)):
        raise ValueError(
            f"expected images (N, 1 or 3, H, W) or points (N, D), got shape {tuple(samples.shape)}"
        )
    panels = {"samples": samples} if real is None else {"samples": samples, "real": real[: len(samples)]}
    if samples.dim() == 2:
        columns = min(_CORNER, samples.shape[1])
        # The fewer points are in front, where the others don't hide them.
        ordered = sorted(panels.items(), key=lambda item: (-len(item[1]), item[0]))
        points = {title: panel[:, :columns] for title, panel in ordered}
        figure = _corner(points, _column_names(names, columns))
        if columns < samples.shape[1]:
            figure.suptitle(
                f"the first {columns} of {samples.shape[1]} columns", x=0.02, ha="left", fontsize=9
            )
        _save(figure, path)
        return
    figure = _figure(4.5 * len(panels), 4.8)
    for i, (title, images) in enumerate(panels.items()):
        axes = figure.add_subplot(1, len(panels), i + 1)
        axes.set_title(_counted(title, images))
        axes.imshow(_grid(images, grey_levels).numpy(), interpolation="nearest")
        axes.set_axis_off()
    _save(figure, path)


def plot_posterior(
    draws: Mapping[str, Tensor],
    path: str | Path,
    *,
    reference: Mapping[str, Tensor] | None = None,
    names: Sequence[str] | None = None,
) -> None:
    """Write a corner plot of a guide's draws, over reference draws where given.

    Args:
        draws: Draws of each variable, `(N, *shape)`, such as those of `pyro.infer.Predictive` or
            `importance_resample`. An element of a vector `beta` has the name `beta[0]`, one of a matrix
            `beta[0, 0]`.
        path: The file, whose ending gives its format.
        reference: Draws to compare with, such as those of NUTS, of the same variables; as many or not.
        names: Which variables or elements are shown, by default the first six elements.

    Raises:
        ValueError: A variable or element is not there or has another shape in the reference, or the file's
            format is unknown.

    Example:
        >>> import tempfile
        >>> draws = {"mu": torch.randn(100), "beta": torch.randn(100, 2)}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     plot_posterior(draws, f"{folder}/posterior.png", names=["mu", "beta[1]"])
    """
    sets = {"guide": _elements(draws)}
    if reference is not None:
        sets = {"reference": _elements(reference), **sets}
    shown = list(sets["guide"])[:_CORNER]
    if names is not None:
        shown = [element for name in names for element in _named(name, sets["guide"])]
    for title, elements in sets.items():
        missing = [name for name in shown if name not in elements]
        if missing or not shown:
            raise ValueError(
                f"expected {title} draws of {missing or 'some variable'}, got those of {list(elements)}: "
                "give both the same variables of the same shapes, or names of what both have"
            )
    _save(_corner({t: torch.stack([e[n] for n in shown], -1) for t, e in sets.items()}, shown), path)


def plot_losses(
    losses: Sequence[float],
    path: str | Path,
    *,
    held_out: Sequence[float] = (),
    held_out_every: int = 1,
    unit: str = "nats",
) -> None:
    """Write a picture of the losses of a fit's epochs.

    Args:
        losses: Losses of the training data.
        path: The file, whose ending gives its format.
        held_out: Those of the held-out data.
        held_out_every: Epochs between two of these.
        unit: What they are in.

    Raises:
        ValueError: The file's format is unknown, or its folder is not there.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     plot_losses([3.0, 2.0, 1.8], f"{folder}/losses.png", held_out=[2.5, 2.1, 2.0])
    """
    figure = _figure(6, 4)
    axes = figure.add_subplot()
    if losses:
        epochs = range(1, len(losses) + 1)
        axes.plot(epochs, losses, label=_counted("training", torch.tensor(losses)), marker=".")
    if held_out:
        # The last epoch is evaluated, too.
        at = [min(held_out_every * (i + 1), max(len(losses), 1)) for i in range(len(held_out))]
        axes.plot(at, held_out, label=_counted("held out", torch.tensor(held_out)), marker=".")
        best = min((pair for pair in zip(held_out, at, strict=True) if math.isfinite(pair[0])), default=None)
        if best is not None:
            axes.axvline(best[1], color="gray", linestyle="--", label="best held out")
    # What the first epochs come from would leave no room for what matters.
    shown = sorted(value for value in [*losses, *held_out] if math.isfinite(value))
    if len(shown) > 40:
        axes.set_ylim(top=shown[int(0.95 * (len(shown) - 1))] + 0.1 * (shown[-1] - shown[0] + 1e-6))
    axes.set(xlabel="epoch", ylabel=unit)
    axes.locator_params(axis="x", integer=True)
    axes.legend()
    _save(figure, path)


def plot_density(
    flow: Flow,
    data: Tensor,
    axes: Axes | None = None,
    *,
    resolution: int = 200,
    names: Sequence[str] | None = None,
) -> Axes:
    """Draw the learned density of a flow of one or two dimensions, with the data over it.

    Args:
        flow: A flow of event shape `(1,)` or `(2,)`.
        data: `(N, 1)` or `(N, 2)`, which give the picture's limits.
        axes: Where to draw; a new figure if not given.
        resolution: Points along each side.
        names: Names of the columns; by default their numbers.

    Raises:
        ValueError: The flow is not one of one or two dimensions.

    Example:
        >>> from pyroflows import realnvp
        >>> plot_density(Flow(realnvp(2)), torch.randn(100, 2), resolution=20).get_title()
        'learned density'
    """
    event_shape = tuple(flow.transform.event_shape)
    if event_shape not in ((1,), (2,)):
        raise ValueError(f"expected a flow of event shape (1,) or (2,), got {event_shape}")
    if axes is None:
        axes = _figure(4.5, 4.5).add_subplot()
    low, high = data.min(0).values, data.max(0).values
    margin = 0.15 * (high - low)
    x, *others = (
        torch.linspace(a, b, resolution, dtype=data.dtype, device=data.device)
        for a, b in zip((low - margin).tolist(), (high + margin).tolist(), strict=True)
    )
    labels = _column_names(names, event_shape[0])
    axes.set_title("learned density")
    if not others:
        with torch.no_grad():
            density = flow().log_prob(x[:, None]).exp().cpu().numpy()
        axes.set_title(_counted("learned density", torch.from_numpy(density)))
        axes.hist(data[:, 0].cpu().numpy(), bins=50, density=True, color="lightgray", label="data")
        axes.plot(x.cpu().numpy(), density, label="flow")
        axes.set(xlabel=labels[0], ylabel="density")
        axes.legend()
        return axes
    (y,) = others
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)
    with torch.no_grad():
        density = flow().log_prob(grid).exp().cpu().numpy()
    # Where the density is not finite there is no colour.
    axes.set_facecolor("magenta")
    axes.set_title(_counted("learned density", torch.from_numpy(density).flatten()))
    masked = np.ma.masked_invalid(density)
    mesh = axes.pcolormesh(
        x.cpu().numpy(), y.cpu().numpy(), masked, cmap="magma", shading="auto", rasterized=True
    )
    points = data.cpu().numpy()
    # Few points would not be seen.
    size = 2 if len(points) >= _MANY else 6
    axes.scatter(points[:, 0], points[:, 1], s=size, c="white", alpha=0.35, linewidths=0, label="data")
    axes.set(xlabel=labels[0], ylabel=labels[1])
    axes.legend(loc="upper left", facecolor="black", labelcolor="white", markerscale=3)
    axes.figure.colorbar(mesh, ax=axes, label="density")
    return axes


def save_density(flow: Flow, data: Tensor, path: str | Path, names: Sequence[str] | None = None) -> None:
    """Write the picture of `plot_density`."""
    figure = _figure(5.2, 4.5)
    plot_density(flow, data, figure.add_subplot(), names=names)
    _save(figure, path)


def _column_names(names: Sequence[str] | None, columns: int) -> list[str]:
    shown = [f"column {i}" if names is None else names[i] for i in range(columns)]
    # A longer name would run into those beside it, and a dollar sign would begin a formula.
    shown = [
        name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}\N{HORIZONTAL ELLIPSIS}" for name in shown
    ]
    return [name.replace("$", r"\$") for name in shown]


def _grid(images: Tensor, grey_levels: int | None) -> Tensor:
    """Images in a near-square grid, `(H, W, 3)` in [0, 1], with a line between.

    A pixel that is not finite is magenta.
    """
    values = images.detach().cpu().double()
    values = values / (grey_levels - 1) if grey_levels is not None else values
    finite = values.isfinite().all(-3, keepdim=True)
    values = torch.where(finite, values.clamp(0, 1), _NOT_FINITE.view(3, 1, 1))
    columns = math.ceil(math.sqrt(len(values)))
    rows = math.ceil(len(values) / columns)
    channels, height, width = values.shape[1:]
    grid = torch.full((channels, rows * (height + 1) + 1, columns * (width + 1) + 1), 0.35).double()
    for i, image in enumerate(values):
        top, left = (i // columns) * (height + 1) + 1, (i % columns) * (width + 1) + 1
        grid[:, top : top + height, left : left + width] = image
    return grid.movedim(0, -1)


def _counted(title: str, values: Tensor) -> str:
    """A title that tells how many rows are not finite, if some are."""
    bad = int((~values.isfinite()).reshape(len(values), -1).any(1).sum())
    return title if not bad else f"{title} ({bad} of {len(values)} not finite)"


def _elements(draws: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The draws of each element of each variable, `(N,)`."""
    elements = {}
    for name, value in draws.items():
        columns = (
            value.detach().cpu().double().flatten(1).T if value.dim() > 1 else value.detach().cpu()[None]
        )
        for index, column in zip(np.ndindex(*value.shape[1:]), columns, strict=True):
            elements[f"{name}[{', '.join(map(str, index))}]" if index else name] = column
    return elements


def _named(name: str, elements: Mapping[str, Tensor]) -> list[str]:
    """The elements of a variable, or the one of this name."""
    return [element for element in elements if element.startswith(f"{name}[")] or [name]


def _corner(sets: Mapping[str, Tensor], labels: Sequence[str]) -> Figure:
    """Each dimension's histogram on the diagonal, each pair's scatter below it; the first set behind."""
    size = len(labels)
    figure = _figure(max(4.5, 2 * size), max(4.5, 2 * size))
    points = {title: values.detach().cpu().double().numpy() for title, values in sets.items()}
    names = {title: _counted(title, values) for title, values in sets.items()}
    limits = [_limits([values[:, i] for values in points.values()]) for i in range(size)]
    for row in range(size):
        for column in range(row + 1):
            axes = figure.add_subplot(size, size, row * size + column + 1)
            for title, values in points.items():
                color = _COLORS[title]
                if row == column:
                    bins = np.linspace(*limits[row], 41).tolist()
                    axes.hist(values[:, row], bins, density=True, alpha=0.6, color=color, label=names[title])
                else:
                    # With more points the last set would hide the first.
                    some = values[:: math.ceil(len(values) / _SCATTERED)]
                    x, y = some[:, column], some[:, row]
                    # Few points would not be seen among many.
                    dot, alpha = (4, 0.4) if len(some) >= _MANY else (12, 0.9)
                    axes.scatter(x, y, s=dot, alpha=alpha, linewidths=0, color=color)
                    axes.set_ylim(limits[row])
            axes.set_xlim(limits[column])
            axes.locator_params(nbins=5)
            axes.ticklabel_format(scilimits=(-3, 4))
            # Rows share their scale, and columns; how high a histogram is tells nothing.
            axes.tick_params(labelsize=7, labelbottom=row == size - 1, labelleft=column == 0 < row)
            for axis in (axes.xaxis, axes.yaxis):
                axis.offsetText.set_fontsize(7)
            if row == column:
                axes.set_yticks([])
            if row == size - 1:
                axes.set_xlabel(labels[column], fontsize=9)
            if column == 0 < row:
                axes.set_ylabel(labels[row], fontsize=9)
    figure.align_labels()
    handles, titles = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, titles, loc="outside upper right", ncols=len(titles), fontsize=9)
    return figure


def _limits(sets: Sequence[np.ndarray]) -> tuple[float, float]:
    """What shows the bulk of each set: single points far out would leave no room for it."""
    ends = []
    for values in sets:
        finite = values[np.isfinite(values)]
        if not finite.size:
            continue
        low, high = np.quantile(finite, [0.025, 0.975])
        # A normal is shown up to 3.5 standard deviations.
        beyond = 0.4 * (high - low)
        ends.append((max(finite.min(), low - beyond), min(finite.max(), high + beyond)))
    low, high = min((low for low, _ in ends), default=-1.0), max((high for _, high in ends), default=1.0)
    margin = 0.03 * (high - low) or 1.0
    return low - margin, high + margin


_COLORS = {"real": "dimgray", "samples": "tab:blue", "reference": "tab:orange", "guide": "tab:blue"}


def _figure(width: float, height: float) -> Figure:
    # Not by pyplot, whose backend and open figures are the user's.
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: str | Path) -> None:
    path = Path(path)
    if path.suffix.lower() not in PICTURES:
        raise ValueError(f"expected a picture to end in one of {sorted(PICTURES)}, got {path}")
    if not path.parent.is_dir():
        raise ValueError(f"expected a folder to write {path.name} to, got {path.parent}, which is not there")
    content = BytesIO()
    figure.savefig(content, dpi=120, format=path.suffix.lstrip(".").lower())
    write_file(path, content.getvalue())
