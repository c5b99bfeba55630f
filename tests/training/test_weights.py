"""Weighted likelihood, against what is known in closed form."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from pyroflows import Flow, fit, realnvp, score
from pyroflows.baseline import Gaussian
from pyroflows.intake import as_rows
from pyroflows.runs import Run
from pyroflows.training.density import DensityModule
from pyroflows.transforms import ActNorm, Chain, InvertibleLinear


def _data(n: int = 1024) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(n, 2, generator=generator) @ torch.tensor([[1.0, 0.9], [0.0, 0.3]])
    # Rows with a large first column count most.
    return data, torch.sigmoid(3 * data[:, 0])


def test_finds_the_weighted_gaussian() -> None:
    torch.manual_seed(0)
    data, weights = _data()
    flow = Flow(Chain([InvertibleLinear((2,)), ActNorm((2,))]))
    options = {"val_fraction": 0, "max_epochs": 60, "lr": 0.02, "progress_bar": False}
    result = fit(flow, data, weights=weights, **options)
    parts = (weights / weights.sum())[:, None]
    mean = (parts * data).sum(0)
    cov = (parts * (data - mean)).T @ (data - mean)
    best = torch.distributions.MultivariateNormal(mean, cov)
    want = -(parts[:, 0] * best.log_prob(data)).sum().item()
    # Nothing of the family has a better weighted likelihood; minibatches leave a little.
    assert -1e-4 <= score(flow, data, weights=weights) - want < 0.01
    assert result.baseline.score(data, weights) == pytest.approx(want, abs=1e-4)
    # The unweighted Gaussian is another one by far.
    assert score(flow, data, weights=weights) < Gaussian.fit(data).score(data, weights) - 0.1


def test_a_weight_of_two_counts_twice() -> None:
    """The objective, the scores and the centre and scale are those of the repeated rows."""
    data, _ = _data(200)
    counts = torch.arange(200) % 3
    repeated = data.repeat_interleave(counts, 0)
    flows = []
    for rows in (as_rows(data, weights=counts), as_rows(repeated)):
        torch.manual_seed(0)
        flow = Flow(realnvp(2, steps=2))
        flow.standardize().fit_to(rows.data, weights=rows.weights)
        flows.append((flow, rows))
    (one, weighted), (two, _) = flows
    for name, value in two.state_dict().items():
        torch.testing.assert_close(one.state_dict()[name], value)
    assert len(weighted) == int((counts > 0).sum())
    losses = [
        DensityModule(Run(flow), rows=rows).objective(rows[torch.arange(len(rows))]) for flow, rows in flows
    ]
    torch.testing.assert_close(*losses)
    assert score(one, data, weights=counts) == pytest.approx(score(two, repeated), abs=1e-5)
    gaussian, other = Gaussian.fit(data, counts), Gaussian.fit(repeated)
    torch.testing.assert_close(gaussian.loc, other.loc)
    torch.testing.assert_close(gaussian.tril, other.tril)


def test_rows_of_weight_zero_are_left_out() -> None:
    """Bit for bit, be they ever so far away."""
    data, _ = _data(100)
    far = torch.cat([data, 1e6 * torch.ones(5, 2)])
    weights = np.r_[np.ones(100), np.zeros(5)]
    results = []
    for rows, given in ((data, None), (far, weights)):
        torch.manual_seed(0)
        flow = Flow(realnvp(2, steps=2, hidden_features=(8,)))
        results.append((flow, fit(flow, rows, weights=given, max_epochs=3, progress_bar=False)))
    (one, first), (two, second) = results
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert first.val_losses == second.val_losses


def test_weights_of_validation_data_and_of_a_dataset() -> None:
    data, weights = _data(100)
    flow = Flow(realnvp(2, steps=2))
    result = fit(
        flow,
        TensorDataset(data),
        data,
        weights=weights,
        val_weights=weights,
        max_epochs=2,
        patience=None,
        progress_bar=False,
    )
    assert result.val_score == pytest.approx(score(flow, data, weights=weights), abs=1e-5)
    assert result.val_losses[-1] == pytest.approx(result.val_score, abs=1e-5)


BAD = [
    (torch.ones(7), {}, r"weights of shape \(8,\), one for each datum, got \(7,\)"),
    (torch.tensor([1.0, -1] + [1] * 6), {}, "not negative, got -1.0 in row 1"),
    (torch.tensor([1.0, torch.nan] + [1] * 6), {}, "finite and not negative, got nan in row 1"),
    (torch.zeros(8), {}, "of which some are positive"),
    (torch.tensor([1.0] + [0] * 7), {}, "at least 2 data, got 1"),
    (None, {"val_weights": torch.ones(8)}, "val_weights= goes with val_data="),
]


@pytest.mark.parametrize(("weights", "options", "message"), BAD)
def test_bad_weights(weights, options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(Flow(realnvp(2)), torch.randn(8, 2), weights=weights, progress_bar=False, **options)


def test_a_loader_has_no_rows_to_weigh() -> None:
    with pytest.raises(ValueError, match="got a DataLoader"):
        fit(Flow(realnvp(2)), DataLoader(torch.randn(8, 2)), weights=torch.ones(8), progress_bar=False)


def test_weights_of_any_kind() -> None:
    weights = torch.rand(8, generator=torch.Generator().manual_seed(0)).double()
    want = as_rows(torch.zeros(8, 2), weights=weights).weights
    array = weights.numpy()
    for given in (
        array, array.tolist(), pd.Series(array), array.astype(">f8"), array[::-1].copy()[::-1],
        array.astype(np.longdouble), weights.requires_grad_(), 1e308 * array / array.max(),
    ):  # fmt: skip
        torch.testing.assert_close(as_rows(torch.zeros(8, 2), weights=given).weights, want)
    masked = np.ma.masked_less(array, 0.5)
    for given, message in (
        (masked, "without missing values"),
        (array.astype(object), "of numbers"),
        (array.astype(str), "of numbers"),
        (array + 1j, "weights of reals"),
        (array[:, None], r"shape \(8,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            as_rows(torch.zeros(8, 2), weights=given)


def test_a_third_part_of_a_dataset_is_no_weight() -> None:
    data = TensorDataset(torch.randn(8, 2), torch.randn(8, 1), torch.ones(8))
    with pytest.raises(ValueError, match=r"data alone, or with their contexts, .* got 3 parts"):
        fit(Flow(realnvp(2, context_dim=1)), data, progress_bar=False)
