"""Pictures of samples and densities."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from pyroflows._extras import needs_fit_extra
from pyroflows.distributions import Flow

with needs_fit_extra("pyroflows.plotting"):
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

__all__ = ["plot_density", "plot_samples"]


def plot_samples(
    samples: Tensor, path: str | Path, *, real: Tensor | None = None, levels: int | None = None
) -> None:
    """Write a picture of samples, beside real data where given: a grid of images, or a scatter of points.

    Args:
        samples: `(N, C, H, W)` images, of 1 or 3 channels, or `(N, D)` points, of which two dimensions are
            shown.
        path: The file, whose ending gives its format.
        real: Real data of the same shape, as many or more.
        levels: Number of levels of integer images; reals are taken to be in [0, 1].

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
    figure = _figure(4.5 * len(panels), 4.8)
    for i, (title, data) in enumerate(panels.items()):
        axes = figure.add_subplot(1, len(panels), i + 1)
        axes.set_title(title)
        if data.dim() == 4:
            axes.imshow(_grid(data, levels).numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axes.set_axis_off()
        else:
            _scatter(axes, data)
    _save(figure, path)


def plot_density(flow: Flow, data: Tensor, axes: Axes | None = None, *, resolution: int = 200) -> Axes:
    """Draw the learned density of a flow of two dimensions, with the data over it.

    Args:
        flow: A flow of event shape `(2,)`.
        data: `(N, 2)`, which give the picture's limits.
        axes: Where to draw; a new figure if not given.
        resolution: Points along each side.

    Raises:
        ValueError: The flow is not one of two dimensions.

    Example:
        >>> from pyroflows import realnvp
        >>> plot_density(Flow(realnvp(2)), torch.randn(100, 2), resolution=20).get_title()
        'learned density'
    """
    if tuple(flow.transform.event_shape) != (2,):
        raise ValueError(f"expected a flow of event shape (2,), got {tuple(flow.transform.event_shape)}")
    if axes is None:
        axes = _figure(4.5, 4.5).add_subplot()
    low, high = data.min(0).values, data.max(0).values
    margin = 0.15 * (high - low)
    x, y = (
        torch.linspace(a, b, resolution, dtype=data.dtype, device=data.device)
        for a, b in zip((low - margin).tolist(), (high + margin).tolist(), strict=True)
    )
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)
    with torch.no_grad():
        density = flow().log_prob(grid).exp().cpu().numpy()
    axes.pcolormesh(x.cpu().numpy(), y.cpu().numpy(), density, cmap="magma", shading="auto", rasterized=True)
    points = data.cpu().numpy()
    axes.scatter(points[:, 0], points[:, 1], s=2, c="white", alpha=0.35, linewidths=0)
    axes.set_title("learned density")
    axes.set_aspect("equal")
    return axes


def _grid(images: Tensor, levels: int | None) -> Tensor:
    """Images in a near-square grid, `(H, W, C)` in [0, 1], with a line between."""
    values = images.detach().cpu().double()
    values = values / (levels - 1) if levels is not None else values
    columns = math.ceil(math.sqrt(len(values)))
    rows = math.ceil(len(values) / columns)
    channels, height, width = values.shape[1:]
    grid = torch.full((channels, rows * (height + 1) + 1, columns * (width + 1) + 1), 0.35).double()
    for i, image in enumerate(values.clamp(0, 1)):
        top, left = (i // columns) * (height + 1) + 1, (i % columns) * (width + 1) + 1
        grid[:, top : top + height, left : left + width] = image
    return grid[0] if channels == 1 else grid.movedim(0, -1)


def _scatter(axes: Axes, points: Tensor) -> None:
    columns = points.detach().cpu().numpy()
    second = columns[:, 1] if columns.shape[1] > 1 else 0 * columns[:, 0]
    axes.scatter(columns[:, 0], second, s=4, alpha=0.5, linewidths=0)


def _figure(width: float, height: float) -> Figure:
    # Not by pyplot, whose backend and open figures are the user's.
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: str | Path) -> None:
    path = Path(path)
    formats = figure.canvas.get_supported_filetypes()
    if path.suffix.lstrip(".").lower() not in formats:
        raise ValueError(f"expected a picture to end in one of {sorted(formats)}, got {path}")
    if not path.parent.is_dir():
        raise ValueError(f"expected a folder to write {path.name} to, got {path.parent}, which is not there")
    figure.savefig(path, dpi=120)
