"""Data that have a name."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from pyroflows.datasets import load


def test_digits_are_the_agreed_split() -> None:
    data = load("digits")
    train, test = train_test_split(load_digits().images, test_size=297, random_state=0)
    assert data.grey_levels == 17
    assert data.train.dtype == torch.uint8
    assert np.array_equal(data.train[:, 0].numpy(), train)
    assert np.array_equal(data.test[:, 0].numpy(), test)

    _, test_labels = train_test_split(load_digits().target, test_size=297, random_state=0)
    assert np.array_equal(data.test_labels.numpy(), test_labels)
    assert data.train_labels.shape == (1500,)


@pytest.mark.parametrize("name", ["moons", "checkerboard", "eight_gaussians"])
def test_densities_in_the_plane(name: str) -> None:
    data = load(name)
    assert (data.train.shape, data.test.shape, data.grey_levels) == ((2000, 2), (1000, 2), None)
    # Both parts are of one density, so their means differ by five standard errors at most.
    assert (data.train.mean(0) - data.test.mean(0)).abs().max() < 5 * data.train.std(0).max() / 1000**0.5


def test_checkerboard_is_dark_on_one_colour() -> None:
    squares = ((load("checkerboard").train + 4) / 2).floor()
    assert ((squares >= 0) & (squares <= 3)).all()
    assert (squares.sum(-1) % 2 == 0).all()
    assert len(squares.unique(dim=0)) == 8
