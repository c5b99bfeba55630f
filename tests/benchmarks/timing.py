"""Pair two callables, call by call, so that a shared and noisy machine slows both alike."""

import statistics
import time
from collections.abc import Callable

import torch


def _seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    if torch.cuda.is_available():
        # A call has returned before the device has done what it asked for.
        torch.cuda.synchronize()
    return time.perf_counter() - start


def compare(ours: Callable[[], object], theirs: Callable[[], object], rounds: int, warmup: int = 2) -> str:
    """Median times of both, and the median of their ratios, call by call."""
    for _ in range(warmup):
        ours()
        theirs()
    pairs = [(_seconds(ours), _seconds(theirs)) for _ in range(rounds)]
    ratios = sorted(a / b for a, b in pairs)
    quartiles = statistics.quantiles(ratios, n=4)
    ours_median, theirs_median = (statistics.median(times) for times in zip(*pairs, strict=True))
    return (
        f"ours {1e3 * ours_median:.1f} ms, theirs {1e3 * theirs_median:.1f} ms, "
        f"ratio {quartiles[1]:.3f} (quartiles {quartiles[0]:.3f} to {quartiles[2]:.3f}, {rounds} pairs)"
    )
