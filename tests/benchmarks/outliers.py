"""Finding a rare class by low log density: `FlowDensity` beside scikit-learn's outlier detectors.

    pip install '.[fit]' river
    python -m tests.benchmarks.outliers

The area under the ROC curve (1 finds all, 0.5 is chance), for two tables. In scikit-learn's wine the third
class is the rare one (48 of 178 rows). River's shuttle has 9 columns of whole numbers and 3,511 rare rows.
"Novelty": half of the frequent rows (2,000 of shuttle) are fitted, and as many others are to be told from
the rare rows. "Contaminated": all these frequent rows are fitted, together with rare rows that make 5% of
the whole, without a label, and are to be told apart. A seed is one of the split and of the fits.

`FlowDensity` has its defaults, and dequantizes shuttle. `GaussianMixture` has 1, 2, 3, 5 or 8 components by
BIC, and like `LocalOutlierFactor` it sees standardised columns.
"""

import argparse
import time
import warnings
from collections.abc import Callable

import numpy as np
from river.datasets import Shuttle
from sklearn.datasets import load_wine
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import LocalOutlierFactor
from sklearn.preprocessing import StandardScaler

from pyroflows.estimator import FlowDensity

# From fitted rows, others and a seed to a score of the others: the lower, the rarer.
Detector = Callable[[np.ndarray, np.ndarray, int], np.ndarray]


def flow(fitted: np.ndarray, others: np.ndarray, seed: int) -> np.ndarray:
    whole = (fitted == fitted.round()).all(0).nonzero()[0].tolist()
    # Only shuttle has whole numbers in all columns; those of wine are few among reals.
    dequantize = whole if len(whole) == fitted.shape[1] else ()
    return FlowDensity(dequantize=dequantize, random_state=seed).fit(fitted).score_samples(others)


def forest(fitted: np.ndarray, others: np.ndarray, seed: int) -> np.ndarray:
    return IsolationForest(random_state=seed).fit(fitted).score_samples(others)


def mixture(fitted: np.ndarray, others: np.ndarray, seed: int) -> np.ndarray:
    scaler = StandardScaler().fit(fitted)
    fitted, others = scaler.transform(fitted), scaler.transform(others)
    fits = [GaussianMixture(n, n_init=2, random_state=seed).fit(fitted) for n in (1, 2, 3, 5, 8)]
    return min(fits, key=lambda fit: fit.bic(fitted)).score_samples(others)


def neighbours(fitted: np.ndarray, others: np.ndarray, seed: int) -> np.ndarray:
    scaler = StandardScaler().fit(fitted)
    fitted, others = scaler.transform(fitted), scaler.transform(others)
    if np.array_equal(fitted, others):
        # With novelty=True each row would be its own neighbour.
        return LocalOutlierFactor().fit(fitted).negative_outlier_factor_
    return LocalOutlierFactor(novelty=True).fit(fitted).score_samples(others)


DETECTORS: dict[str, Detector] = {
    "FlowDensity": flow,
    "GaussianMixture": mixture,
    "IsolationForest": forest,
    "LocalOutlierFactor": neighbours,
}


def wine() -> tuple[np.ndarray, np.ndarray]:
    """Frequent rows and rare rows."""
    table, classes = load_wine(return_X_y=True)
    return table[classes < 2], table[classes == 2]


def shuttle() -> tuple[np.ndarray, np.ndarray]:
    rows = [([*row.values()], anomaly) for row, anomaly in Shuttle()]
    table, is_rare = np.array([row for row, _ in rows], float), np.array([anomaly for _, anomaly in rows])
    return table[is_rare == 0], table[is_rare == 1]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=2000, help="largest number of frequent rows to fit")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    print("| table | task | " + " | ".join(DETECTORS) + " | seconds of each |")
    print("| --- " * (len(DETECTORS) + 3) + "|")
    for name, (frequent, rare) in {"wine": wine(), "shuttle": shuttle()}.items():
        half = min(len(frequent) // 2, arguments.rows)
        for task in ("novelty", "contaminated"):
            areas: dict[str, list[float]] = {detector: [] for detector in DETECTORS}
            seconds = dict.fromkeys(DETECTORS, 0.0)
            for seed in range(arguments.seeds):
                order = np.random.default_rng(seed).permutation(len(frequent))
                seen, held_out = frequent[order[:half]], frequent[order[half : 2 * half]]
                if task == "novelty":
                    normal, odd = held_out, rare
                else:
                    normal = np.concatenate([seen, held_out])
                    odd = np.random.default_rng(seed).permutation(rare)[: round(len(normal) / 19)]
                scored = np.concatenate([normal, odd])
                fitted = seen if task == "novelty" else scored
                labels = np.repeat([0, 1], [len(normal), len(odd)])
                for detector, score in DETECTORS.items():
                    start = time.perf_counter()
                    areas[detector].append(roc_auc_score(labels, -score(fitted, scored, seed)))
                    seconds[detector] += (time.perf_counter() - start) / arguments.seeds
            told = " | ".join(
                f"{np.mean(each):.3f} ({', '.join(f'{area:.3f}' for area in each)})"
                for each in areas.values()
            )
            took = ", ".join(f"{value:.1f}" for value in seconds.values())
            print(f"| {name} ({len(fitted)} fitted) | {task} | {told} | {took} |", flush=True)


if __name__ == "__main__":
    main()
