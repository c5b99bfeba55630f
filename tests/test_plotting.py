"""Pictures show what they are given."""

from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.image import imread

from pyroflows import Flow, realnvp
from pyroflows.plotting import _grid, plot_density, plot_samples


def test_grid_places_each_image() -> None:
    images = torch.arange(5)[:, None, None, None].expand(5, 1, 2, 3)
    grid = _grid(images, levels=5)
    assert grid.shape == (2 * 3 + 1, 3 * 4 + 1)
    for i in range(5):
        row, column = (i // 3) * 3 + 1, (i % 3) * 4 + 1
        assert (grid[row : row + 2, column : column + 3] == i / 4).all()
    assert _grid(torch.rand(4, 3, 2, 2), None).shape == (7, 7, 3)


@pytest.mark.parametrize("shape", [(10, 1, 8, 8), (10, 3, 8, 8), (10, 2), (10, 5), (10, 1)])
def test_samples_of_images_and_points(tmp_path: Path, shape: tuple[int, ...]) -> None:
    plot_samples(torch.rand(shape), tmp_path / "x.png", real=torch.rand(shape))
    assert imread(tmp_path / "x.png").std() > 0


def test_bad_samples(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"images \(N, 1 or 3, H, W\) or points \(N, D\), got shape"):
        plot_samples(torch.rand(3, 2, 8, 8), tmp_path / "x.png")


def test_density_is_the_flows() -> None:
    flow, data = Flow(realnvp(2)), torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    axes = plot_density(flow, data, Figure().add_subplot(), resolution=11)
    values = torch.tensor(axes.collections[0].get_array()).reshape(11, 11)
    with torch.no_grad():
        middle = flow().log_prob(torch.tensor([0.5, 0.5])).exp()
    torch.testing.assert_close(values[5, 5], middle)
    with pytest.raises(ValueError, match=r"event shape \(1,\) or \(2,\), got \(3,\)"):
        plot_density(Flow(realnvp(3)), data)
