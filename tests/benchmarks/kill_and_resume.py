"""Runs that are killed by SIGKILL at random moments, and resumed: do they end with the same weights?

pip install '.[fit]'
python -m tests.benchmarks.kill_and_resume --runs 50
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from pyroflows import cli
from pyroflows.runs import Run


def _start(arguments: list[str]) -> int:
    """The command line in a process of its own, which begins with everything imported."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            with open(os.devnull, "w") as nothing:
                os.dup2(nothing.fileno(), 1)
                os.dup2(nothing.fileno(), 2)
            sys.argv = ["pyroflows", *arguments]
            cli.main()
        except SystemExit as error:
            status = int(error.code or 0)
        finally:
            os._exit(status)
    return child


def _weights(folder: Path) -> list[torch.Tensor]:
    return list(Run.load(folder).flow.state_dict().values())


def count_equal(runs: int, folder: Path, seed: int = 0) -> tuple[int, int, int]:
    """How many of the runs finished, how many have the reference's weights, and how often one was killed."""
    generator = random.Random(seed)
    data = folder / "data.npy"
    np.save(data, np.random.default_rng(0).integers(0, 256, (300, 4, 4), dtype=np.uint8))

    def command(out: Path) -> list[str]:
        return ["fit", str(data), "--out", str(out), "--max-epochs", "5", "--ema", "0.9", "--resume"]

    begin = time.perf_counter()
    os.waitpid(_start(command(folder / "reference")), 0)
    duration = time.perf_counter() - begin
    want = _weights(folder / "reference")
    finished = equal = killed = 0
    for run in range(runs):
        out = folder / str(run)
        while True:
            child = _start(command(out))
            # From before the first checkpoint to the writing of the last files.
            limit = generator.uniform(0.02, 1.1) * duration
            while limit > 0 and os.waitpid(child, os.WNOHANG) == (0, 0):
                time.sleep(0.01)
                limit -= 0.01
            else:
                if limit > 0:
                    break
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            killed += 1
        finished += (out / "metrics.json").exists()
        equal += all(torch.equal(a, b) for a, b in zip(_weights(out), want, strict=True))
    return finished, equal, killed


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=50)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        finished, equal, killed = count_equal(arguments.runs, Path(folder))
    print(f"{arguments.runs} runs, killed {killed} times: {finished} finished, {equal} with the same weights")


if __name__ == "__main__":
    main()
