"""Held-out log density of tables by `pyroflows fit` with defaults, beside three peers, and the time it takes.

    pip install '.[fit]'
    python -m tests.benchmarks.table_quality FOLDER

FOLDER holds `tables.npz`, with `NAME/train` and `NAME/test` for each table. Peers: the Gaussian of maximum
likelihood; scikit-learn's `GaussianMixture` with full covariances and 1, 2, 3, 5, 8 or 12 components by BIC,
two starts; `zuko.flows.NSF` with 3 transforms of 64x64 on standardised columns, AdamW 2e-3, batches of 64,
clipped at 5, a tenth held out, patience 15. All are means over seeds, in nats, more is better. The bar is the
best peer minus the larger of 0.02 times the root of the number of columns and one standard error of the
differences of the held-out rows. Last, how many of 20,000 samples are not finite or more than 50 standard
deviations out, and the seconds inside `fit` and inside NSF's loop.
"""

import argparse
import copy
import json
import math
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import zuko
from sklearn.mixture import GaussianMixture

from pyroflows import cli
from pyroflows.baseline import Gaussian
from pyroflows.runs import Run

Scored = tuple[np.ndarray, float]


def gaussian(train: np.ndarray, test: np.ndarray, seed: int) -> Scored:
    return Gaussian.fit(torch.tensor(train)).log_prob(torch.tensor(test)).numpy(), 0.0


def mixture(train: np.ndarray, test: np.ndarray, seed: int) -> Scored:
    train, test = train.astype(np.float64), test.astype(np.float64)
    fits = [GaussianMixture(n, n_init=2, random_state=seed).fit(train) for n in (1, 2, 3, 5, 8, 12)]
    return min(fits, key=lambda fit: fit.bic(train)).score_samples(test), 0.0


def spline_flow(train: np.ndarray, test: np.ndarray, seed: int) -> Scored:
    start = time.perf_counter()
    torch.manual_seed(seed)
    loc, scale = train.astype(np.float64).mean(0), train.astype(np.float64).std(0)
    rows, others = (torch.tensor((part - loc) / scale, dtype=torch.float32) for part in (train, test))
    order = torch.randperm(len(rows))
    held_out = max(1, len(rows) // 10)
    val, rows = rows[order[:held_out]], rows[order[held_out:]]
    flow = zuko.flows.NSF(rows.shape[1], transforms=3, hidden_features=(64, 64))
    optimizer = torch.optim.AdamW(flow.parameters(), lr=2e-3)
    best, weights, stalled = math.inf, flow.state_dict(), 0
    while stalled < 15:
        for batch in torch.randperm(len(rows)).split(64):
            loss = -flow().log_prob(rows[batch]).mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(flow.parameters(), 5.0)
            optimizer.step()
        with torch.no_grad():
            score = -flow().log_prob(val).mean().item()
        stalled += 1
        if score < best:
            best, weights, stalled = score, copy.deepcopy(flow.state_dict()), 0
    flow.load_state_dict(weights)
    seconds = time.perf_counter() - start
    with torch.no_grad():
        return flow().log_prob(others).double().numpy() - np.log(scale).sum(), seconds


def command_line(train: np.ndarray, test: np.ndarray, seed: int) -> tuple[np.ndarray, float, int, int]:
    with tempfile.TemporaryDirectory() as folder:
        np.savez(f"{folder}/table.npz", x_train=train, x_test=test)
        arguments = ["fit", f"{folder}/table.npz", "--out", f"{folder}/run", "--seed", str(seed)]
        cli.app(arguments, standalone_mode=False)
        run = Run.load(f"{folder}/run")
        seconds = json.loads(Path(folder, "run", "metrics.json").read_text())["fit_seconds"]
    with torch.no_grad():
        rows = run.flow().log_prob(torch.tensor(test, dtype=torch.float64)).double().numpy()
        torch.manual_seed(seed)
        samples = run.flow().sample((20_000,)).double().numpy()
    bad = ~np.isfinite(samples).all(1)
    far = (np.abs(samples[~bad] - train.mean(0)) > 50 * train.std(0)).any(1)
    return rows, seconds, int(bad.sum()), int(far.sum())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--file", default="tables.npz")
    parser.add_argument("--table", action="append", help="only these")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    peers: dict[str, Callable[[np.ndarray, np.ndarray, int], Scored]] = {
        "Gaussian": gaussian, "mixture": mixture, "NSF": spline_flow
    }  # fmt: skip
    with np.load(arguments.folder / arguments.file) as file:
        tables = {key: file[key] for key in file.files}
    print("| table | Gaussian | mixture | NSF | pyroflows (each seed) | bar | bad, far | seconds, NSF's |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    ours_total, theirs_total = 0.0, 0.0
    for name in arguments.table or dict.fromkeys(key.split("/")[0] for key in tables):
        train, test = tables[f"{name}/train"], tables[f"{name}/test"]
        scores: dict[str, np.ndarray] = {}
        ours, bad_far, seconds, theirs = [], [], 0.0, 0.0
        for seed in range(arguments.seeds):
            for peer, fit in peers.items():
                rows, took = fit(train, test, seed)
                scores[peer] = scores.get(peer, 0) + rows / arguments.seeds
                theirs += took
            stdout, sys.stdout = sys.stdout, sys.stderr
            rows, took, bad, far = command_line(train, test, seed)
            sys.stdout = stdout
            ours.append(rows)
            bad_far.append((bad, far))
            seconds += took
        mean = np.mean(ours, 0)
        best = max(scores.values(), key=np.mean)
        error = np.std(mean - best, ddof=1) / math.sqrt(len(test))
        bar = np.mean(best) - max(0.02 * math.sqrt(train.shape[1]), error)
        told = " | ".join(f"{np.mean(rows):.3f}" for rows in scores.values())
        each = ", ".join(f"{np.mean(rows):.3f}" for rows in ours)
        kept = "kept" if np.mean(mean) >= bar else "MISSED"
        print(
            f"| {name} {train.shape} | {told} | **{np.mean(mean):.3f}** ({each}) | {bar:.3f} {kept} | "
            f"{bad_far} | {seconds:.1f}, {theirs:.1f} |",
            flush=True,
        )
        ours_total, theirs_total = ours_total + seconds, theirs_total + theirs
    ratio = ours_total / theirs_total
    print(f"seconds in all: {ours_total:.0f}, NSF's {theirs_total:.0f}, ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
