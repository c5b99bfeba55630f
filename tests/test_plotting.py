"""Pictures show what they are given."""

from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.image import imread

from pyroflows import Dequantized, Flow, plotting, realnvp
from pyroflows.plotting import _grid, plot_density, plot_posterior, plot_samples
from pyroflows.transforms import FlowTransform


def test_grid_places_each_image() -> None:
    images = torch.arange(5)[:, None, None, None].expand(5, 1, 2, 3)
    grid = _grid(images, grey_levels=5)
    assert grid.shape == (2 * 3 + 1, 3 * 4 + 1, 3)
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
    """A normal is shown to 99.9 percent, whatever lies far out, and a uniform to its ends."""
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


def test_what_is_not_finite_is_marked_and_counted(tmp_path: Path, figures: list[Figure]) -> None:
    images = torch.rand(4, 1, 3, 3)
    images[1, 0, 2, 1] = torch.nan
    images[2, 0, 0, 0] = -torch.inf
    for shape in ((4, 1, 3, 3), (4, 3, 3, 3)):
        grid = _grid(images.expand(shape), None)
        marked = (grid == torch.tensor([1.0, 0.0, 1.0]).double()).all(-1)
        assert marked.nonzero().tolist() == [[3, 6], [5, 1]]
    plot_samples(images, tmp_path / "x.png", real=torch.rand(4, 1, 3, 3))
    assert [axes.get_title() for axes in figures[-1].axes] == ["samples (2 of 4 not finite)", "real"]
    points = torch.randn(50, 2)
    points[3, 1] = torch.inf
    plot_samples(points, tmp_path / "x.png", real=torch.randn(20, 2))
    assert [text.get_text() for text in figures[-1].legends[0].get_texts()] == [
        "samples (1 of 50 not finite)", "real"
    ]  # fmt: skip
    assert _labels(figures[-1]) == ["column 0", "column 1"]
    plotting.plot_losses([3.0, torch.nan, 1.0], tmp_path / "x.png", held_out=[2.0, 1.5], held_out_every=2)
    lines = {line.get_label(): list(line.get_xdata()) for line in figures[-1].axes[0].get_lines()}
    assert lines == {
        "training (1 of 3 not finite)": [1, 2, 3], "held out": [2, 3], "best held out": [3, 3]
    }  # fmt: skip


class _Hole(FlowTransform):
    """Not finite for data below 0."""

    def _forward_and_ladj(self, z: torch.Tensor, context: None) -> tuple[torch.Tensor, torch.Tensor]:
        return z.square(), (2 * z).abs().log().sum(-1)

    def _inverse_and_ladj(self, x: torch.Tensor, context: None) -> tuple[torch.Tensor, torch.Tensor]:
        return x.sqrt(), -(2 * x.sqrt()).log().sum(-1)


def test_a_density_that_is_not_finite_has_no_colour() -> None:
    for size in (1, 2):
        axes = plot_density(
            Flow(_Hole(size)), torch.linspace(-1, 1, 5)[:, None].expand(5, size), resolution=8
        )
        assert "not finite" in axes.get_title()


def test_integers_are_no_place_for_what_is_not_finite() -> None:
    images = Dequantized(Flow(_Hole(2))(), grey_levels=4)
    images.base_dist.transforms[0]._forward_and_ladj = lambda z, _: (z / 0, z.sum(-1))
    with pytest.raises(FloatingPointError, match="6 of 6 values that were drawn are not finite"):
        images.sample((3,))
    assert images.sample_reals((3,)).isnan().all()
