"""The element-wise maps by name. A new kind of coupling is a new map, and a line here."""

from __future__ import annotations

from collections.abc import Callable

from pyroflows.transforms.elementwise import AdditiveMap, AffineMap, ElementwiseMap, SplineMap
from pyroflows.transforms.logistic_mixture import LogisticMixtureMap

__all__ = ["MAPS", "get_map"]

MAPS: dict[str, Callable[[], ElementwiseMap]] = {
    "additive": AdditiveMap,
    "affine": AffineMap,
    "logistic_mixture": LogisticMixtureMap,
    "spline": SplineMap,
}


def get_map(elementwise: str | ElementwiseMap) -> ElementwiseMap:
    """The map of that name, or the map itself."""
    if isinstance(elementwise, ElementwiseMap):
        return elementwise
    if elementwise not in MAPS:
        raise ValueError(f"expected an ElementwiseMap or one of {sorted(MAPS)}, got {elementwise!r}")
    return MAPS[elementwise]()
