"""A run scores what people have, draws samples, and is read again from whatever a fit wrote."""

import math
from pathlib import Path

import lightning
import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch

from pyroflows import Dequantized, Flow, Run, fit, glow, realnvp
from pyroflows.datasets import Data
from pyroflows.state import read_state, write_state
from pyroflows.tables import Grid
from pyroflows.transforms import ActNorm, AffineMap, Coupling

TABLE = torch.randn(6, 2, generator=torch.Generator().manual_seed(0)).double()


def _flow(**options) -> Flow:
    torch.manual_seed(0)
    return Flow(realnvp(2, steps=2, hidden_features=(8,), **options)).eval()


def test_scores_of_everything_that_a_table_may_be() -> None:
    """Columns of a frame are found by their names, wherever they are."""
    run = Run(_flow(), names=("a", "b"))
    want = run.flow().log_prob(TABLE.float())
    columns = {"b": TABLE[:, 1].numpy(), "text": ["x"] * 6, "a": TABLE[:, 0].numpy()}
    frames = [pd.DataFrame(columns), pl.DataFrame(columns), TABLE, TABLE.float(), TABLE.numpy()]
    big_endian = TABLE.numpy().astype(">f8")
    reversed_twice = TABLE.numpy()[::-1].copy()[::-1]
    for data in (*frames, big_endian, reversed_twice, TABLE.numpy().astype(np.longdouble)):
        torch.testing.assert_close(run.log_prob(data).float(), want)
    assert torch.equal(run.log_prob(TABLE.half()), run.log_prob(TABLE.half().numpy()))
    whole = (10 * TABLE).round()
    for dtype in (np.int8, np.int16, np.int32, np.int64, ">i4"):
        torch.testing.assert_close(run.log_prob(whole.numpy().astype(dtype)), run.log_prob(whole))
    for dtype in (np.uint8, np.uint16, np.uint32, np.uint64):
        torch.testing.assert_close(run.log_prob(whole.abs().numpy().astype(dtype)), run.log_prob(whole.abs()))


MASKED = np.ma.masked_greater(TABLE.numpy(), 0.5)
BAD = [
    (pd.DataFrame({"a": [1.0]}), "got 'b': there are 'a'"),
    (pd.DataFrame({"a": [1.0, None], "b": [1.0, 2.0]}), "column 'a'"),
    (TABLE[:, :1], r"shape \(N, 2\), got \(6, 1\)"),
    (MASKED, "without missing values, got a masked array"),
    (TABLE.numpy().astype(object), "of numbers, got an array of dtype object"),
    (TABLE.numpy().astype(str), "of numbers, got an array of dtype <U"),
    (TABLE.numpy() > 0, "reals or integers, got torch.bool"),
    (torch.full((1, 2), torch.nan), "got nan in column 'a', row 0"),
]


@pytest.mark.parametrize(("data", "message"), BAD)
def test_what_is_no_table_of_the_run(data, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Run(_flow(), names=("a", "b")).log_prob(data)


def test_a_column_on_a_grid_has_the_mean_over_its_noise() -> None:
    """In closed form for a standard normal; no row depends on those beside it."""
    flow = Flow(ActNorm((2,)))
    run = Run(flow, grid=Grid(torch.tensor([1.0, 0.0]).double(), torch.zeros(2).double()))
    x = torch.tensor([[0.0, 0.3], [2.0, -1.0]])
    want = -0.5 * (x.square().sum(-1) + 1 / 12) - math.log(2 * math.pi)
    torch.testing.assert_close(run.log_prob(x, draws=1024), want, atol=1e-4, rtol=0)
    torch.testing.assert_close(run.log_prob(x)[1:], run.log_prob(x[1:]))
    drawn = run.sample(20)
    assert torch.equal(drawn[:, 0], drawn[:, 0].round())


def test_integers() -> None:
    """`uint16` arrays, and 16 bits; the noise has a seed of its own."""
    torch.manual_seed(0)
    flow = Flow(glow((1, 4, 4), levels=1, steps=1, hidden_channels=8)).eval()
    images = np.random.default_rng(0).integers(0, 2**16, (5, 1, 4, 4), dtype=np.uint16)
    run = Run(flow, grey_levels=2**16)
    before = torch.random.get_rng_state()
    first, again = run.log_prob(images), run.log_prob(images.astype(np.int64))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first, again)
    assert not torch.equal(first, run.log_prob(images, seed=1))
    with torch.no_grad():
        draws = [Dequantized(flow(), 2**16).log_prob(torch.tensor(images.astype(int))) for _ in range(400)]
    error = torch.stack(draws).std(0)
    assert ((first - torch.stack(draws).mean(0)).abs() < 5 * error * (1 / 10 + 1 / 400) ** 0.5).all()
    assert run.in_unit(torch.tensor(16 * math.log(2))).item() == pytest.approx(1)
    assert (run.unit, Run(flow).unit) == ("bits per dim", "nats")


def test_classes() -> None:
    torch.manual_seed(0)
    flow = Flow(realnvp(2, context_dim=3))
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    run = Run(flow, classes=("cat", "dog", "7"))
    want = flow(torch.eye(3)[[1, 2, 0, 1, 1, 2]]).log_prob(TABLE.float())
    torch.testing.assert_close(run.log_prob(TABLE, labels=["dog", 7, "cat", "dog", "dog", "7"]).float(), want)
    torch.manual_seed(1)
    dogs = run.sample(3, label="dog")
    torch.manual_seed(1)
    torch.testing.assert_close(dogs, flow(torch.eye(3)[[1, 1, 1]]).sample())
    torch.manual_seed(1)
    each = run.sample(4)
    torch.manual_seed(1)
    torch.testing.assert_close(each, flow(torch.eye(3)[[0, 0, 1, 2]]).sample())
    with pytest.raises(ValueError, match=r"classes among \['cat', 'dog', '7'\], got 'fish'"):
        run.sample(2, label="fish")
    with pytest.raises(ValueError, match="fitted without classes"):
        Run(_flow()).sample(2, label="cat")
    with pytest.raises(ValueError, match="expected a context of shape"):
        run.log_prob(TABLE)


def test_contexts_that_are_no_classes() -> None:
    flow = _flow(context_dim=1)
    run, context = Run(flow), torch.linspace(0, 1, 6)[:, None]
    torch.testing.assert_close(
        run.log_prob(TABLE, context=context).float(), flow(context).log_prob(TABLE.float())
    )
    assert run.sample(6, context=context).shape == (6, 2)
    with pytest.raises(ValueError, match="this Flow is conditional"):
        run.sample(3)


def test_many_samples_are_drawn_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyroflows.runs._AT_ONCE", 8)
    run = Run(_flow(), names=("a", "b"))
    assert run.sample(11).shape == (11, 2)
    assert run.log_prob(torch.zeros(600, 2)).shape == (600,)
    conditional = Run(_flow(context_dim=2), classes=("x", "y"))
    assert conditional.sample(11).shape == (11, 2)


def test_the_old_keyword_names_the_new_one() -> None:
    message = "the keyword levels is now called grey_levels: write grey_levels=17"
    flow = Flow(glow((1, 4, 4), levels=1, steps=1, hidden_channels=8))
    images = torch.zeros(4, 1, 4, 4, dtype=torch.uint8)
    calls = [
        lambda: Run(flow, levels=17),
        lambda: Dequantized(flow(), levels=17),
        lambda: fit(flow, images, levels=17),
        lambda: pytest.importorskip("pyroflows").score(flow, images, levels=17),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=message):
            call()


class _Stop(lightning.Callback):
    def on_train_epoch_start(self, trainer, module) -> None:
        if trainer.current_epoch == 2:
            raise InterruptedError


def _interrupted(folder: Path, flow: Flow, data, **options) -> None:
    with pytest.raises(InterruptedError):
        fit(
            flow,
            data,
            max_epochs=5,
            batch_size=16,
            out=folder,
            callbacks=[_Stop()],
            progress_bar=False,
            **options,
        )


def test_a_run_that_was_interrupted_is_read_from_its_checkpoints(tmp_path: Path) -> None:
    frame = pd.DataFrame(torch.randn(100, 2).numpy(), columns=["height", "weight"])
    flow = Flow(glow(2, steps=2))
    _interrupted(tmp_path, flow, frame)
    best = Run.load(tmp_path / "best.ckpt")
    assert best.names == ("height", "weight")
    assert best.baseline is not None
    assert best.sample(3).shape == (3, 2)
    weights = read_state(tmp_path / "best.ckpt")["state_dict"]
    for name, value in best.flow.state_dict().items():
        assert torch.equal(value, weights[f"model.{name}"])
    last = Run.load(tmp_path / "last.ckpt")
    for name, value in flow.state_dict().items():
        assert torch.equal(last.flow.state_dict()[name], value)
    with pytest.warns(UserWarning, match=r"has not ended, so its best.ckpt is read: go on with it by"):
        of_folder = Run.load(tmp_path)
    assert torch.equal(of_folder.log_prob(frame), best.log_prob(frame))
    fit(Flow(glow(2, steps=2)), frame, max_epochs=5, batch_size=16, out=tmp_path, resume=True)
    assert Run.load(tmp_path).names == ("height", "weight")


def test_noise_that_is_learned_is_part_of_a_run(tmp_path: Path) -> None:
    images = torch.randint(0, 17, (60, 1, 4, 4), dtype=torch.uint8)
    noise = Flow(realnvp((1, 4, 4), levels=1, steps=1, hidden_channels=4, context_shape=(1, 4, 4)))
    flow = Flow(glow((1, 4, 4), levels=1, steps=1, hidden_channels=8))
    result = fit(
        flow,
        images,
        grey_levels=17,
        noise=noise,
        max_epochs=2,
        out=tmp_path,
        val_fraction=0,
        progress_bar=False,
    )
    want = result.run.log_prob(images)
    for path in (tmp_path, tmp_path / "flow.safetensors", tmp_path / "last.ckpt"):
        run = Run.load(path)
        assert run.noise is not None
        assert torch.equal(run.log_prob(images), want)


class _Own(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale * torch.cat([x, x], -1)


def test_a_flow_of_other_classes_is_fitted_but_not_written(tmp_path: Path) -> None:
    flow = Flow(Coupling(2, _Own(), AffineMap()))
    options = {"max_epochs": 2, "progress_bar": False, "out": tmp_path}
    with pytest.warns(UserWarning, match=r"no flow was written to .*: a flow is saved if"):
        fit(flow, torch.randn(100, 2), **options)
    assert (tmp_path / "metrics.json").exists()
    for path in (tmp_path, tmp_path / "last.ckpt"):
        with pytest.raises(ValueError, match="does not tell what its flow is made of"):
            Run.load(path)


def test_a_data_set_with_classes(tmp_path: Path) -> None:
    """The classes are the contexts of a flow that takes so many, and are written with it."""
    labels = torch.arange(90) % 3
    points = torch.randn(99, 2)
    data = Data(points[:90], points[90:], None, labels, labels[:9], names=("u", "v"), classes=("a", "b", "c"))
    result = fit(Flow(realnvp(2, context_dim=3)), data, max_epochs=2, out=tmp_path, progress_bar=False)
    assert result.test_score is not None
    assert (tmp_path / "samples.png").exists()
    for path in (tmp_path, tmp_path / "best.ckpt"):
        run = Run.load(path)
        assert (run.classes, run.names) == (("a", "b", "c"), ("u", "v"))
        assert run.sample(4, label="b").shape == (4, 2)
    assert fit(Flow(realnvp(2)), data, max_epochs=1, progress_bar=False).run.classes is None


def test_a_file_from_before_the_grey_levels_had_their_name(tmp_path: Path) -> None:
    flow = Flow(glow((1, 4, 4), levels=1, steps=1, hidden_channels=8))
    Run(flow, grey_levels=17).save(tmp_path)
    state = read_state(tmp_path / "flow.safetensors")
    state["extra"] = {"levels": state["extra"]["grey_levels"]}
    write_state(state, tmp_path / "flow.safetensors")
    assert Run.load(tmp_path).grey_levels == 17


def test_each_draw_of_a_loader_is_of_the_same_rows() -> None:
    """A loader that shuffles gives other batches each time."""
    torch.manual_seed(0)
    flow = Flow(glow((1, 4, 4), levels=1, steps=1, hidden_channels=8)).eval()
    images = torch.randint(0, 256, (40, 1, 4, 4), dtype=torch.uint8)
    # One row is far from all others.
    images[0] = 255
    images[1:] //= 8
    run = Run(flow, grey_levels=256)
    loader = torch.utils.data.DataLoader(images, batch_size=4, shuffle=True)
    got, want = run.log_prob(loader).sort().values, run.log_prob(images).sort().values
    torch.testing.assert_close(got, want, atol=0.5, rtol=0)


def test_contexts_of_any_kind() -> None:
    context = torch.linspace(0, 1, 6)[:, None]
    run = Run(_flow(context_dim=1))
    want = run.log_prob(TABLE, context=context)
    frame = pd.DataFrame(context.numpy(), columns=["dose"])
    for given in (frame, pl.DataFrame(frame), context.tolist(), context.numpy().astype(">f8")):
        torch.testing.assert_close(run.log_prob(TABLE, context=given), want)
        assert run.sample(6, context=given).shape == (6, 2)
    with pytest.raises(ValueError, match="expected 7 contexts, one of each sample, got 6"):
        run.sample(7, context=context)
    with pytest.raises(ValueError, match="a class or a context, got both"):
        Run(_flow(context_dim=2), classes=("a", "b")).log_prob(TABLE, labels=["a"] * 6, context=context)


def test_more_levels_than_a_byte_has() -> None:
    flow = Flow(glow((1, 4, 4), levels=1, steps=1, hidden_channels=8)).eval()
    images = torch.full((3, 1, 4, 4), 255, dtype=torch.uint8)
    run = Run(flow, grey_levels=300)
    torch.testing.assert_close(run.log_prob(images), run.log_prob(images.long()))
    big_endian = images.numpy().astype(">u2")
    options = {"max_epochs": 1, "val_fraction": 0, "progress_bar": False}
    for data in (big_endian, big_endian.astype("<u2"), torch.tensor(images.numpy().astype(np.uint16))):
        assert fit(flow, data, **options).run.grey_levels == 2**16
    assert fit(flow, images.numpy().astype(np.uint64), **options).run.grey_levels == 256


def test_integers_that_are_too_large_are_not_wrapped() -> None:
    large = np.full((3, 2), 2**63 + 1, dtype=np.uint64)
    for data in (large, torch.from_numpy(large)):
        with pytest.raises(ValueError, match=r"expected data below 2\*\*63, got 9223372036854775809"):
            Run(_flow()).log_prob(data)
    with pytest.raises(ValueError, match="integers that float64 holds exactly"):
        Run(_flow()).log_prob(torch.full((3, 2), 2**53 + 1))
