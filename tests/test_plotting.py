"""Pictures show what they are given."""

from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.image import imread

from pyroflows import Flow, plotting, realnvp
from pyroflows.plotting import _grid, plot_density, plot_posterior, plot_samples


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


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are saved."""
    saved: list[Figure] = []
    save = plotting._save

    def keep(figure: Figure, path: Path) -> None:
        saved.append(figure)
        save(figure, path)

    monkeypatch.setattr(plotting, "_save", keep)
    return saved


def _labels(figure: Figure) -> list[str]:
    return [axes.get_xlabel() for axes in figure.axes if axes.get_xlabel()]


def test_posterior_has_its_elements_and_legend(tmp_path: Path, figures: list[Figure]) -> None:
    draws = {"v": torch.randn(50), "m": torch.randn(50, 2, 2), "w": torch.randn(50, 3)}
    plot_posterior(draws, tmp_path / "x.png")
    assert _labels(figures[-1]) == ["v", "m[0, 0]", "m[0, 1]", "m[1, 0]", "m[1, 1]", "w[0]"]
    assert imread(tmp_path / "x.png").std() > 0

    reference = {name: value[:40] + 1 for name, value in draws.items()}
    plot_posterior(draws, tmp_path / "x.png", reference=reference, names=["w", "m[1, 0]"])
    assert _labels(figures[-1]) == ["w[0]", "w[1]", "w[2]", "m[1, 0]"]
    assert [text.get_text() for text in figures[-1].legends[0].get_texts()] == ["reference", "guide"]
    behind, before = (panel.get_offsets() for panel in figures[-1].axes[6].collections)
    torch.testing.assert_close(
        torch.tensor(before.data), torch.stack([draws["w"][:, 0], draws["m"][:, 1, 0]], -1).double()
    )
    torch.testing.assert_close(torch.tensor(behind.data), torch.tensor(before.data)[:40] + 1)


def test_limits_are_those_of_the_bulk(tmp_path: Path, figures: list[Figure]) -> None:
    """Of a normal 99.9 percent are shown, whatever lies far out, and of a uniform no more than there is."""
    normal, uniform = torch.randn(2000), torch.rand(2000)
    far = torch.cat([normal, torch.tensor([1e6, torch.nan, torch.inf])])
    for values, bulk, end in ((normal, 3.3, 4.0), (far, 3.3, 4.0), (2 * uniform - 1, 0.99, 1.07)):
        plot_posterior({"z": values}, tmp_path / "x.png")
        left, right = figures[-1].axes[0].get_xlim()
        assert -end < left < -bulk
        assert bulk < right < end


def test_bad_posterior(tmp_path: Path) -> None:
    draws = {"v": torch.randn(5), "w": torch.randn(5, 3)}
    with pytest.raises(ValueError, match=r"guide draws of \['u'\], got those of \['v', 'w\[0\]', "):
        plot_posterior(draws, tmp_path / "x.png", names=["u"])
    with pytest.raises(ValueError, match=r"reference draws of \['w\[2\]'\], got those of"):
        plot_posterior(draws, tmp_path / "x.png", reference={"v": draws["v"], "w": draws["w"][:, :2]})
    with pytest.raises(ValueError, match="expected guide draws of some variable"):
        plot_posterior({}, tmp_path / "x.png")
