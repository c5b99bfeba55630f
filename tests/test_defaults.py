"""The flow and its fit follow from the size of the data."""

import pytest
import torch

from pyroflows.defaults import Defaults
from pyroflows.transforms import AffineMap, Coupling, SplineMap


@pytest.mark.parametrize(
    ("shape", "rows", "kind", "steps", "batch_size", "dropout"),
    [
        ((2,), 200, AffineMap, 6, 64, 0.1),
        ((13,), 143, SplineMap, 4, 64, 0.37),
        ((30,), 456, SplineMap, 4, 64, 0.4),
        ((4,), 274, SplineMap, 4, 64, 0.2),
        ((103,), 1934, SplineMap, 4, 128, 0.4),
        ((5,), 50_000, SplineMap, 6, 512, 0.0023),
        ((1,), 2, AffineMap, 6, 64, 0.1),
    ],
)
def test_tables(shape, rows: int, kind: type, steps: int, batch_size: int, dropout: float) -> None:
    defaults = Defaults(torch.Size(shape), rows)
    couplings = [part for part in defaults.flow().modules() if isinstance(part, Coupling)]
    assert [type(part.elementwise) for part in couplings] == steps * [kind]
    for part in couplings:
        assert part.conditioner.dropout == pytest.approx(dropout, rel=0.02)
    assert defaults.options()["batch_size"] == batch_size
    assert defaults.options()["max_epochs"] is None
    asked = [part for part in defaults.flow(coupling="additive").modules() if isinstance(part, Coupling)]
    assert len(asked) == (4 if rows < 2000 else 6)


def test_images() -> None:
    digits = Defaults(torch.Size([1, 8, 8]), 1500)
    # 1,100 steps of 64 of the 1,350 that are not held out.
    assert digits.options()["max_epochs"] == 53
    assert Defaults(torch.Size([3, 32, 32]), 50_000).options()["max_epochs"] == 5
    assert len([part for part in digits.flow().modules() if isinstance(part, Coupling)]) == 3 * 9
