"""Cutting images to a size."""

import pytest
import torch

from pyroflows.datasets import Data, load


def test_crop_cuts_evenly() -> None:
    images = torch.arange(9 * 13).reshape(1, 1, 9, 13)
    data = Data(images, images[:0], 256)
    assert torch.equal(data.crop(8, 12).train, images[..., :8, :12])
    assert torch.equal(data.crop(5, 3).train, images[..., 2:7, 5:8])
    assert torch.equal(data.crop(9, 13).train, images)
    cropped = data.crop(1, 2)
    assert (cropped.test.shape, cropped.grey_levels) == ((0, 1, 1, 2), 256)
    assert Data(images, None, 256).crop(1, 1).test is None


@pytest.mark.parametrize("size", [(10, 13), (9, 14), (0, 1), (1, -1)])
def test_crop_to_a_size_that_is_not_there(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=rf"1x1 to 9x13 .* to crop to, got {size[0]}x{size[1]}"):
        Data(torch.zeros(1, 1, 9, 13), None, 256).crop(*size)


def test_tables_are_not_cropped() -> None:
    with pytest.raises(ValueError, match="expected images"):
        load("moons").crop(1, 1)
