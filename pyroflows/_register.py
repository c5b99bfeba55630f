"""Make the transforms and their helpers known beside Pyro's own, under names that Pyro does not have."""

import pyro.distributions.transforms as pyro_transforms

from pyroflows import transforms

# What is a transform, or makes one; maps and partitions are parts of a coupling.
NAMES = [name for name in transforms.__all__ if not name.endswith(("Map", "Partition"))]


def register() -> None:
    """Add each of `NAMES` to `pyro.distributions.transforms`, unless Pyro has that name."""
    for name in NAMES:
        if not hasattr(pyro_transforms, name):
            setattr(pyro_transforms, name, getattr(transforms, name))
