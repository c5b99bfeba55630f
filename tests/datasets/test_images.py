"""Folders of images, and what is said of images that would lose something."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pyroflows.datasets import load


def _pictures(folder: Path, *shapes: tuple[int, ...]) -> list[np.ndarray]:
    folder.mkdir(parents=True)
    arrays = [
        np.random.default_rng(i).integers(0, 256, shape, dtype=np.uint8) for i, shape in enumerate(shapes)
    ]
    for i, array in enumerate(arrays):
        Image.fromarray(array).save(folder / f"{i}.png")
    return arrays


def test_a_folder_of_images(tmp_path: Path) -> None:
    grey = _pictures(tmp_path / "grey", (6, 4), (6, 4))
    data = load(tmp_path / "grey")
    assert (data.test, data.grey_levels, data.train.dtype) == (None, 256, torch.uint8)
    assert np.array_equal(data.train[:, 0].numpy(), np.stack(grey))
    colour = _pictures(tmp_path / "mixed" / "sub", (6, 4, 3), (6, 4))
    mixed = load(str(tmp_path / "mixed")).train
    assert mixed.shape == (2, 3, 6, 4)
    assert np.array_equal(mixed[0].movedim(0, -1).numpy(), colour[0])
    assert all(np.array_equal(channel.numpy(), colour[1]) for channel in mixed[1])
    Image.fromarray(grey[0]).save(tmp_path / "grey" / "z.jpg")
    assert len(load(tmp_path / "grey").train) == 3


def test_a_folder_with_a_test_part(tmp_path: Path) -> None:
    _pictures(tmp_path / "train", (4, 4), (4, 4))
    _pictures(tmp_path / "test", (4, 4))
    data = load(tmp_path)
    assert (len(data.train), len(data.test)) == (2, 1)


def test_bad_images_are_named_or_left_out(tmp_path: Path) -> None:
    _pictures(tmp_path / "x", (4, 4), (4, 4), (4, 6))
    with pytest.raises(ValueError, match=r"2.png, or skip_bad: it is of 6x4 pixels, those before it of 4x4"):
        load(tmp_path / "x")
    (tmp_path / "x" / "2.png").write_bytes((tmp_path / "x" / "1.png").read_bytes()[:50])
    (tmp_path / "x" / "3.jpeg").write_text("no image")
    with pytest.raises(ValueError, match=r"expected a readable image as .*2.png"):
        load(tmp_path / "x")
    data = load(tmp_path / "x", skip_bad=True)
    assert len(data.train) == 2
    assert [file.name for file in data.skipped] == ["2.png", "3.jpeg"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"PNG or JPEG images in .*empty, got none"):
        load(tmp_path / "empty")


def _png(file: Path, bits: int, colour: int, channels: int, value: int) -> None:
    """A PNG of 2x2 pixels, as Pillow can't write one."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        )

    row = b"\0" + value.to_bytes(bits // 8, "big") * 2 * channels
    header = struct.pack(">IIBBBBB", 2, 2, bits, colour, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(2 * row)), chunk(b"IEND", b""))
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def test_files_are_in_the_order_of_the_images(tmp_path: Path) -> None:
    for part, names in (("train", "ba"), ("test", "c")):
        (tmp_path / part).mkdir()
        for i, name in enumerate(names):
            Image.new("L", (2, 2), i).save(tmp_path / part / f"{name}.png")
    (tmp_path / "train" / ".hidden").mkdir()
    Image.new("L", (3, 3)).save(tmp_path / "train" / ".hidden" / "a.png")
    data = load(tmp_path)
    assert data.files == (tmp_path / "train" / "a.png", tmp_path / "train" / "b.png")
    assert data.test_files == (tmp_path / "test" / "c.png",)
    assert data.train[:, 0, 0, 0].tolist() == [1, 0]


def test_grey_images_of_16_bits(tmp_path: Path) -> None:
    pixels = np.array([[0, 300], [65_535, 40_000]], np.uint16)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    data = load(tmp_path)
    assert (data.grey_levels, data.train.dtype) == (65_536, torch.int32)
    assert data.train.tolist() == [[pixels.tolist()]]
    Image.new("L", (2, 2)).save(tmp_path / "b.png")
    with pytest.raises(ValueError, match=r"images of 16 bits, as .*a.png is, got .*b.png of 8 bits"):
        load(tmp_path, skip_bad=True)


@pytest.mark.parametrize(("colour", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_colour_of_16_bits_is_refused(tmp_path: Path, colour: int, channels: int) -> None:
    _png(tmp_path / "a.png", 16, colour, channels, 65_535)
    with pytest.raises(
        ValueError, match=r"a.png of 16 bits with colour or transparency: convert it to 8 bits"
    ):
        load(tmp_path, skip_bad=True, drop_alpha=True)


_CLEAR = {
    "RGBA": (Image.new("RGBA", (2, 2), (10, 20, 30, 254)), {}, [10, 20, 30]),
    "LA": (Image.new("LA", (2, 2), (10, 0)), {}, [10]),
    "L": (Image.new("L", (2, 2), 10), {"transparency": 10}, [10]),
    "RGB": (Image.new("RGB", (2, 2), (10, 20, 30)), {"transparency": (10, 20, 30)}, [10, 20, 30]),
    "P": (Image.new("RGB", (2, 2), (10, 20, 30)).quantize(2), {"transparency": 0}, [10, 20, 30]),
    "1": (Image.new("1", (2, 2), 1), {"transparency": 1}, [255]),
    "I;16": (Image.fromarray(np.full((2, 2), 10, np.uint16)), {"transparency": 10}, [10]),
}


@pytest.mark.parametrize("mode", _CLEAR)
def test_transparency_is_refused_unless_it_may_go(tmp_path: Path, mode: str) -> None:
    image, options, kept = _CLEAR[mode]
    image.save(tmp_path / "a.png", **options)
    with pytest.raises(
        ValueError, match=r"got .*a.png with transparent pixels: .* drop_alpha \(--drop-alpha"
    ):
        load(tmp_path, skip_bad=True)
    assert load(tmp_path, drop_alpha=True).train[0, :, 0, 0].tolist() == kept


@pytest.mark.parametrize(
    ("image", "options", "kept"),
    [
        (Image.new("RGBA", (2, 2), (10, 20, 30, 255)), {}, [10, 20, 30]),
        (Image.new("LA", (2, 2), (10, 255)), {}, [10]),
        (Image.new("L", (2, 2), 10), {"transparency": 9}, [10]),
        (Image.fromarray(np.full((2, 2), 10, np.uint16)), {"transparency": 9}, [10]),
        (Image.new("RGB", (2, 2), (10, 20, 30)).quantize(2), {}, [10, 20, 30]),
        (Image.new("1", (2, 2), 1), {}, [255]),
    ],
)
def test_nothing_is_lost_of_opaque_images(tmp_path: Path, image: Image.Image, options, kept) -> None:
    image.save(tmp_path / "a.png", **options)
    data = load(tmp_path)
    assert data.train[0, :, 0, 0].tolist() == kept


def test_an_animation_is_its_first_picture(tmp_path: Path) -> None:
    first, second = Image.new("L", (2, 2), 7), Image.new("L", (2, 2), 9)
    first.save(tmp_path / "a.png", save_all=True, append_images=[second])
    assert load(tmp_path).train.unique().tolist() == [7]


def test_pillows_other_modes(tmp_path: Path) -> None:
    Image.new("CMYK", (2, 2), (0, 0, 0, 0)).save(tmp_path / "a.jpg")
    assert load(tmp_path).train.unique().tolist() == [255]
    for mode in ("F", "I"):
        Image.new(mode, (2, 2)).save(tmp_path / "a.jpg", "TIFF")
        with pytest.raises(
            ValueError, match=rf"a.jpg with Pillow's mode '{mode}': convert it to RGB or grey"
        ):
            load(tmp_path, skip_bad=True)


def test_a_broken_link_is_a_bad_image(tmp_path: Path) -> None:
    Image.new("L", (2, 2)).save(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to(tmp_path / "none.png")
    (tmp_path / "c.png").mkdir()
    with pytest.raises(ValueError, match=r"expected a readable image as .*b.png"):
        load(tmp_path)
    assert load(tmp_path, skip_bad=True).skipped == (tmp_path / "b.png",)


def test_photographs_are_turned_as_they_were_taken(tmp_path: Path) -> None:
    pixels = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10
    for orientation, stored in ((1, pixels), (3, pixels[::-1, ::-1]), (6, np.rot90(pixels))):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / f"{orientation}.png", exif=exif)
    images = load(tmp_path).train
    assert torch.equal(images[0], torch.tensor(pixels)[None])
    assert (images == images[0]).all()


def test_folders_behind_links_are_read(tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    for folder, value in ((inside / "dogs", 1), (outside, 2)):
        folder.mkdir(parents=True)
        Image.new("L", (2, 2), value).save(folder / "a.png")
    (inside / "cats").symlink_to(outside)
    (inside / "dogs" / "back").symlink_to(inside)
    data = load(inside, classes=True)
    assert (data.classes, len(data.train)) == (("cats", "dogs"), 2)


def test_images_that_are_left_out_are_told(tmp_path: Path) -> None:
    Image.new("L", (2, 2)).save(tmp_path / "a.png")
    Image.new("L", (2, 2)).save(tmp_path / "b.bmp")
    with pytest.warns(UserWarning, match=r"1 images in .* are left out, .* such as .*b.bmp"):
        assert len(load(tmp_path).train) == 1


def test_equal_channels_are_warned_of(tmp_path: Path) -> None:
    Image.new("RGB", (2, 2), (7, 7, 7)).save(tmp_path / "a.png")
    with pytest.warns(UserWarning, match="three channels of all images in .* are equal"):
        load(tmp_path)


def test_images_beside_the_parts(tmp_path: Path) -> None:
    for name in ("train/a.png", "test/a.png", "val/a.png"):
        (tmp_path / name).parent.mkdir()
        Image.new("L", (2, 2)).save(tmp_path / name)
    with pytest.raises(ValueError, match=r"in its subfolders train and test alone, got .*val/a.png"):
        load(tmp_path)
