import pickle
import random
import warnings
from io import BytesIO
from typing import Any

import joblib
import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from pyroflows.estimator import FlowDensity

RNG = np.random.default_rng(0)
ROWS = RNG.normal(size=(300, 2)) @ np.array([[2.0, 0.0], [1.0, 0.5]]) + 3.0
SMALL: dict[str, Any] = {"steps": 1, "hidden_features": (4,), "max_epochs": 2, "random_state": 0}


# No check is expected to fail. The one that compares weights with repeated rows compares predictions alone,
# which a density does not make: `test_integer_weights_are_like_repeated_rows` compares densities.
@pytest.mark.filterwarnings("ignore:whole numbers", "ignore:each of columns")
@parametrize_with_checks(
    [
        FlowDensity(steps=1, hidden_features=(4,), max_epochs=2),
        FlowDensity(flow="nice", steps=2, hidden_features=(4,), max_epochs=2),
    ],
    expected_failed_checks=lambda estimator: {},
)
def test_scikit_learn_checks(estimator: FlowDensity, check: Any) -> None:
    check(estimator)


def test_it_finds_the_log_density_of_a_gaussian() -> None:
    density = FlowDensity(coupling="additive", steps=2, max_epochs=60, random_state=0).fit(ROWS)
    covariance = np.cov(ROWS.T)
    centred = ROWS - ROWS.mean(0)
    squares = (centred @ np.linalg.inv(covariance) * centred).sum(1)
    exact = -0.5 * (squares + np.linalg.slogdet(2 * np.pi * covariance)[1])
    scores = density.score_samples(ROWS)
    assert scores.dtype == np.float64
    assert abs(scores - exact).mean() < 0.15
    assert density.score(ROWS) == pytest.approx(scores.mean())
    assert density.sample(5).shape == (5, 2)


@pytest.mark.parametrize("flow", ["nice", "realnvp", "glow"])
def test_each_system_is_fitted(flow: str) -> None:
    density = FlowDensity(flow=flow, **SMALL).fit(ROWS)
    assert np.isfinite(density.score_samples(ROWS)).all()


def test_parameters_out_of_range_are_errors() -> None:
    # A recipe, but not one of the three systems.
    with pytest.raises(ValueError, match="maf"):
        FlowDensity(flow="maf").fit(ROWS)
    with pytest.raises(ValueError, match="n_samples"):
        FlowDensity(**SMALL).fit(ROWS).sample(0)
    with pytest.raises(ValueError, match="column"):
        FlowDensity(dequantize=(2,)).fit(ROWS)
    with pytest.raises(NotFittedError):
        FlowDensity().sample()


def test_a_column_without_density_is_an_error() -> None:
    with pytest.raises(ValueError, match="one value in all rows"):
        FlowDensity().fit(np.column_stack([ROWS, np.ones(len(ROWS))]))
    with pytest.raises(ValueError, match="same up to a shift"):
        FlowDensity().fit(np.column_stack([ROWS, ROWS[:, 0]]))


def test_a_random_state_gives_the_same_fit_and_leaves_the_global_generators() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index]
    first, second, other = (
        FlowDensity(**SMALL | {"random_state": state}).fit(ROWS) for state in (7, np.random.RandomState(7), 8)
    )
    samples = first.sample(4, random_state=3)
    after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index]
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]
    assert (first.score_samples(ROWS) == second.score_samples(ROWS)).all()
    assert (first.score_samples(ROWS) != other.score_samples(ROWS)).any()
    assert (samples == second.sample(4, random_state=np.random.RandomState(3))).all()


def test_a_log_density_does_not_depend_on_the_rows_beside_it() -> None:
    rows = np.column_stack([ROWS, ROWS.sum(1).round()])
    density = FlowDensity(dequantize=(2,), **SMALL).fit(rows)
    together = density.score_samples(rows)
    parts = [density.score_samples(part) for part in np.array_split(rows, 5)]
    np.testing.assert_allclose(np.concatenate(parts), together, rtol=1e-12)
    np.testing.assert_allclose(density.score_samples(rows[::-1]), together[::-1], rtol=1e-12)


def test_samples_of_dequantized_columns_stand_on_their_grid() -> None:
    rows = np.column_stack([ROWS[:, 0], (2 * ROWS[:, 1]).round() / 2])
    density = FlowDensity(dequantize=(1,), **SMALL).fit(rows)
    samples = density.sample(50, random_state=0)
    assert (2 * samples[:, 1] == (2 * samples[:, 1]).round()).all()
    # As `score` gives it, by other draws of the noise.
    draws = np.random.default_rng(0).uniform(-0.25, 0.25, 200)
    plain = density.flow_()
    with torch.no_grad():
        each = [plain.log_prob(torch.tensor(rows + np.array([0.0, draw]))).mean().item() for draw in draws]
    assert density.score(rows) == pytest.approx(np.mean(each), abs=0.02)


def test_columns_far_from_zero_keep_their_digits() -> None:
    far = 1e7 + 1e-3 * RNG.normal(size=(300, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        density = FlowDensity(coupling="additive", steps=2, max_epochs=20, random_state=0).fit(far)
    samples = density.sample(2000, random_state=0)
    np.testing.assert_allclose((samples.mean(0) - far.mean(0)) / 1e-3, 0.0, atol=0.2)
    np.testing.assert_allclose(samples.std(0) / 1e-3, 1.0, atol=0.2)


def test_pickle_joblib_and_clone() -> None:
    density = FlowDensity(**SMALL).fit(ROWS)
    file = BytesIO()
    joblib.dump(density, file)
    file.seek(0)
    for restored in (pickle.loads(pickle.dumps(density)), joblib.load(file)):
        assert (restored.score_samples(ROWS) == density.score_samples(ROWS)).all()
        assert (restored.sample(3, random_state=0) == density.sample(3, random_state=0)).all()
    assert clone(density).get_params() == density.get_params()
    assert not hasattr(clone(density), "flow_")


def test_a_data_frame_gives_the_names_of_columns() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(ROWS, columns=["length", "depth"])
    density = FlowDensity(**SMALL).fit(frame)
    assert density.feature_names_in_.tolist() == ["length", "depth"]
    named = FlowDensity(dequantize=("depth",), **SMALL).fit(frame.round(1))
    assert (named.result_.grid.step > 0).tolist() == [False, True]
    assert (density.score_samples(frame) == FlowDensity(**SMALL).fit(ROWS).score_samples(ROWS)).all()
    with pytest.raises(ValueError, match="feature names"):
        density.score_samples(frame[["depth", "length"]])


def test_a_pipeline_gives_the_density_of_scaled_rows() -> None:
    pipeline = make_pipeline(StandardScaler(), FlowDensity(**SMALL)).fit(ROWS)
    scales = pipeline[0].scale_
    alone = FlowDensity(**SMALL).fit(ROWS)
    expected = alone.score_samples(ROWS) + np.log(scales).sum()
    # Both standardise, so the fits see the same rows up to rounding.
    np.testing.assert_allclose(pipeline.score_samples(ROWS), expected, atol=1e-3)


# Two processes import PyTorch anew.
@pytest.mark.parametrize("n_jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_grid_search_chooses_the_best_held_out_density(n_jobs: int) -> None:
    density = FlowDensity(coupling="affine", hidden_features=(4,), max_epochs=3, random_state=0)
    search = GridSearchCV(density, {"steps": [1, 2]}, cv=2, n_jobs=n_jobs).fit(ROWS)
    scores = search.cv_results_["mean_test_score"]
    assert np.isfinite(scores).all()
    assert search.best_score_ == scores.max()
    assert search.score(ROWS) == search.best_estimator_.score(ROWS)
    best = clone(density).set_params(**search.best_params_)
    assert cross_val_score(best, ROWS, cv=2).mean() == search.best_score_


def test_weights_tilt_the_density() -> None:
    # Rows of N(0, I) with weights exp(a x) are rows of N(a, I).
    rows = RNG.normal(size=(1000, 2))
    weights = np.exp(rows @ [0.6, -0.3])
    density = FlowDensity(coupling="additive", steps=2, max_epochs=40, random_state=0)
    samples = density.fit(rows, sample_weight=weights).sample(5000, random_state=0)
    np.testing.assert_allclose(samples.mean(0), np.average(rows, 0, weights), atol=0.1)
    np.testing.assert_allclose(np.cov(samples.T), np.cov(rows.T, aweights=weights), atol=0.15)


def test_integer_weights_are_like_repeated_rows() -> None:
    weights = RNG.integers(1, 4, len(ROWS))
    density = FlowDensity(coupling="additive", steps=2, max_epochs=40, random_state=0)
    weighted = clone(density).fit(ROWS, sample_weight=weights).score_samples(ROWS)
    repeated = clone(density).fit(ROWS.repeat(weights, 0)).score_samples(ROWS)
    assert np.average(weighted, weights=weights) == pytest.approx(
        np.average(repeated, weights=weights), abs=0.1
    )


def test_a_row_of_weight_zero_is_left_out() -> None:
    weights = np.where(np.arange(len(ROWS)) % 3 == 0, 0.0, 1.5)
    far = np.where(weights[:, None] > 0, ROWS, 1e9)
    with_zeros = FlowDensity(**SMALL).fit(far, sample_weight=weights)
    without = FlowDensity(**SMALL).fit(ROWS[weights > 0], sample_weight=weights[weights > 0])
    assert (with_zeros.score_samples(ROWS) == without.score_samples(ROWS)).all()


@pytest.mark.parametrize("weights", [np.ones(3), -np.ones(300), np.ones((300, 1)), np.eye(300)[0]])
def test_wrong_weights_are_errors(weights: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"weight|at least 2"):
        FlowDensity(**SMALL).fit(ROWS, sample_weight=weights)
