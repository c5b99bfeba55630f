"""A fit holds out data, stops by itself, keeps the best weights, and tells what is not finite."""

from pathlib import Path

import pytest
import torch

from pyroflows import Flow, fit, glow, realnvp
from pyroflows.rows import Rows
from pyroflows.state import read_state
from pyroflows.training import score
from pyroflows.training.prepare import hold_out
from pyroflows.training.schedule import Schedule
from pyroflows.transforms import AffineMap, Chain, Coupling, Standardize


def test_a_schedule() -> None:
    schedule = Schedule(patience=6, total=10**9)
    falls = []
    for step, value in enumerate((5.0, 4.0, 4.0, 3.9995, 4.1, 4.2, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0)):
        schedule.update(value, 100 * step)
        falls.append(len(schedule.falls))
        assert not schedule.ended
    # After two and four evaluations without a gain of a thousandth, and again after the next best one.
    assert falls == [0, 0, 0, 1, 1, 2, 2, 2, 3, 3, 4, 4]
    assert schedule.falls == [300, 500, 800, 1000]
    other = Schedule(patience=6)
    other.load(schedule.state())
    other.update(3.0, 1200)
    assert other.ended
    for again in (other, other.again()):
        sizes = [again.step_size(step) for step in (0, 49, 299, 300, 500, 999, 1000, 1200)]
        assert sizes == pytest.approx([0.02, 1, 1, 0.3, 0.09, 0.027, 0.0081, 0.00243])
    endless = Schedule(total=100)
    for step in range(100):
        endless.update(1.0, step)
    assert not endless.ended
    assert [endless.step_size(step) for step in (4, 9, 50, 100)] == pytest.approx(
        [0.5 * 0.99606, 0.98015, 0.5, 0], abs=1e-3
    )


def test_the_part_that_is_held_out() -> None:
    rows = Rows(torch.arange(40.0)[:, None], torch.arange(40.0)[:, None])
    kept, out = hold_out(rows, None, 0.1, seed=0)
    assert (len(kept), len(out)) == (36, 4)
    assert sorted([*kept.data.flatten().tolist(), *out.data.flatten().tolist()]) == list(range(40))
    assert torch.equal(out.data, out.context)
    again, other = hold_out(rows, None, 0.1, seed=0)[1], hold_out(rows, None, 0.1, seed=1)[1]
    assert torch.equal(again.data, out.data)
    assert not torch.equal(other.data, out.data)
    assert hold_out(rows, None, 0.0, seed=0) == (rows, None)
    assert hold_out(rows, out, 0.1, seed=0) == (rows, out)
    assert len(hold_out(rows.part(torch.arange(2)), None, 0.9, seed=0)[0]) == 1


def test_a_fit_stops_where_held_out_data_gain_no_more() -> None:
    """Fifty normal points: a large flow could follow each of them."""
    torch.manual_seed(0)
    data, others = torch.randn(50, 2), torch.randn(2000, 2)
    result = fit(flow := Flow(glow(2, steps=4)), data, progress_bar=False)
    assert len(result.losses) < 2000
    assert result.val_score == pytest.approx(min(result.val_losses), abs=1e-4)
    entropy = 2.8379  # of two standard normals, in nats
    assert score(flow, others) < entropy + 0.4
    assert result.test_score is None


def test_without_held_out_data_all_epochs_are_run() -> None:
    data = torch.randn(100, 2)
    for options in ({"val_fraction": 0}, {"patience": None}):
        result = fit(Flow(realnvp(2)), data, max_epochs=30, progress_bar=False, **options)
        assert len(result.losses) == 30
    assert result.val_score is not None
    assert len(fit(Flow(realnvp(2)), data, val_fraction=0, progress_bar=False).losses) == 50


def test_the_last_weights_are_a_candidate() -> None:
    """Fewer epochs than lie between two evaluations."""
    result = fit(Flow(realnvp(2)), torch.randn(20, 2), max_epochs=3, progress_bar=False)
    assert len(result.val_losses) == 1


def test_standardised_and_kept_by_a_second_fit(tmp_path: Path) -> None:
    torch.manual_seed(0)
    data = torch.randn(300, 2) * torch.tensor([1e-7, 1e6]) + torch.tensor([1e-6, 0.0])
    flow = Flow(realnvp(2))
    result = fit(flow, data, max_epochs=5, progress_bar=False)
    assert result.val_score < result.baseline_val_score + 0.2
    assert isinstance(flow.transform, Standardize)
    loc = flow.transform.loc.clone()
    fit(flow, 3 * data, max_epochs=1, progress_bar=False)
    assert torch.equal(flow.transform.loc, loc)
    flow.save(tmp_path / "flow")
    assert torch.equal(Flow.load(tmp_path / "flow")().log_prob(data), flow().log_prob(data))


def test_contexts_of_any_size() -> None:
    """The mean of the data is their context: the exact conditional entropy, whatever its unit."""
    torch.manual_seed(0)
    context, noise = torch.randn(2, 1200, 1).unbind(0)
    data = context + 0.1 * noise
    entropy = 0.5 * torch.tensor(2 * torch.pi * torch.e * 0.01).log().item()
    for size in (1e-3, 1e3):
        torch.manual_seed(1)
        flow = Flow(realnvp(1, steps=2, context_dim=1))
        result = fit(flow, data, context=size * context, max_epochs=15, lr=1e-2, progress_bar=False)
        # Four standard errors of 120 normals' log density are 0.26.
        assert result.val_score == pytest.approx(entropy, abs=0.26)


class _Far(torch.nn.Module):
    """Scales that only some contexts make infinite."""

    def forward(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        return torch.cat([0 * x, -1e4 * (context > 0)], -1)


def test_samples_that_are_not_finite_are_counted() -> None:
    torch.manual_seed(0)
    flow = Flow(Chain([Coupling(2, _Far(), AffineMap("exp"), context_shape=(1,)), realnvp(2)]))
    contexts = torch.linspace(-1, 1, 40)[:, None]
    with pytest.warns(UserWarning, match="500 of 1000 samples of the fitted flow are not finite"):
        result = fit(
            flow,
            torch.randn(40, 2),
            context=contexts,
            max_epochs=1,
            lr=1e-9,
            val_fraction=0,
            progress_bar=False,
        )
    assert result.n_not_finite == 500
    assert fit(Flow(realnvp(2)), torch.randn(40, 2), max_epochs=1, progress_bar=False).n_not_finite == 0


def test_a_result_is_shown_without_its_losses() -> None:
    text = repr(fit(Flow(realnvp(2)), torch.randn(40, 2), max_epochs=1, progress_bar=False))
    assert "losses" not in text
    assert "val_score=" in text


def test_a_short_table_is_fitted_to_all_of_its_rows(tmp_path: Path) -> None:
    """As many steps as were best, from the same start, without the validation rows being left out."""
    data = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
    runs = {}
    for name, options in (("few", {}), ("given", {"val_data": data[:6]}), ("last", {"patience": None})):
        torch.manual_seed(0)
        flow = Flow(realnvp(2, steps=2, hidden_features=(8,)))
        runs[name] = fit(flow, data, max_epochs=40, out=tmp_path / name, progress_bar=False, **options)
        best = tmp_path / name / "best.ckpt"
        saved = read_state(best)["state_dict"] if best.exists() else {}
        state = {f"model.{key}": value for key, value in flow.state_dict().items()}
        kept = bool(saved) and all(torch.equal(saved[key], value) for key, value in state.items())
        assert kept == (name == "given")
    assert runs["few"].val_score == pytest.approx(min(runs["few"].val_losses), abs=1e-5)
    # Going on with a run that has ended gives the same weights again.
    torch.manual_seed(0)
    again = Flow(realnvp(2, steps=2, hidden_features=(8,)))
    options = {"max_epochs": 40, "resume": True, "progress_bar": False}
    fit(again, data, out=tmp_path / "few", **options)
    torch.manual_seed(0)
    flow = Flow(realnvp(2, steps=2, hidden_features=(8,)))
    fit(flow, data, max_epochs=40, progress_bar=False)
    for a, b in zip(flow.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def test_heavy_tails_stay_finite() -> None:
    """Cauchy columns: of 500 rows the largest is about 500 quartiles out."""
    torch.manual_seed(0)
    data = torch.distributions.Cauchy(0.0, 1.0).sample((500, 2))
    result = fit(Flow(glow(2)), data, max_epochs=15, progress_bar=False)
    assert result.n_not_finite == 0
    assert result.val_score < result.baseline_val_score
