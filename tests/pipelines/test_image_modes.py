"""Images as users' files hold them: 16 bits, floats, palettes, transparency, turned by a camera."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hf_maskdiff import MaskGITPipeline
from hf_maskdiff.evaluation.image_data import load_labelled_images
from hf_maskdiff.evaluation.samples import load_samples

MakePipeline = Callable[..., MaskGITPipeline]
GREY = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
RIGHT = torch.tensor([False, False, True, True]).expand(1, 4, 4)


@pytest.fixture
def pipe(make_pipeline: MakePipeline) -> MaskGITPipeline:
    return make_pipeline()


def saved(image: Image.Image, kind: str = "PNG", **options: object) -> Image.Image:
    """The image as a file of it opens."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return Image.open(io.BytesIO(buffer.getvalue()))


def sixteen_bits(grey: np.ndarray) -> Image.Image:
    return Image.fromarray(grey.astype(np.uint16) * 257)


def png_of_old_pillow() -> Image.Image:
    """Before Pillow 11 a 16-bit PNG opened as 32-bit integers."""
    image = Image.fromarray(GREY.astype(np.int32) * 257)
    image.format = "PNG"
    return image


ALIKE = {
    "L": lambda: Image.fromarray(GREY),
    "I;16": lambda: sixteen_bits(GREY),
    "16-bit PNG": lambda: saved(sixteen_bits(GREY)),
    "16-bit TIFF": lambda: saved(sixteen_bits(GREY), "TIFF"),
    "I;16B": lambda: Image.frombytes("I;16B", (8, 8), (GREY.astype(">u2") * 257).tobytes()),
    "I": png_of_old_pillow,
    "F": lambda: Image.fromarray(GREY.astype(np.float32) / 255),
    "RGB": lambda: Image.fromarray(GREY).convert("RGB"),
    "LA": lambda: Image.fromarray(GREY).convert("LA"),
    "La": lambda: Image.fromarray(GREY).convert("LA").convert("La"),
    "RGBA": lambda: Image.fromarray(GREY).convert("RGBA"),
    "RGBa": lambda: Image.fromarray(GREY).convert("RGBA").convert("RGBa"),
    "P": lambda: Image.fromarray(GREY).convert("P"),
    "P with transparency": lambda: saved(Image.fromarray(GREY).convert("P"), transparency=bytes([7] * 256)),
    "PA": lambda: Image.fromarray(GREY).convert("P").convert("PA"),
    "turned": lambda: saved(Image.fromarray(GREY).rotate(90), exif=turned_by(90)),
    "16 bits, turned": lambda: saved(Image.fromarray(np.rot90(GREY).astype(np.uint16) * 257), exif=turned_by(90)),
}


def turned_by(degrees: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = {90: 6}[degrees]
    return exif


@pytest.mark.parametrize("name", ALIKE)
def test_every_mode_is_the_same_image(pipe: MaskGITPipeline, make_pipeline: MakePipeline, name: str) -> None:
    expected = torch.from_numpy(GREY / 255).float()[None, None]
    assert torch.equal(pipe.preprocess_image(ALIKE[name]()), expected)
    colour = make_pipeline()
    colour.vqvae.register_to_config(in_channels=3)
    colour = MaskGITPipeline(**colour.components)
    torch.testing.assert_close(colour.preprocess_image(ALIKE[name]()), expected.expand(1, 3, 8, 8), atol=1e-6, rtol=0)
    mask = (expected >= 0.5)[0, 0].unflatten(0, (4, 2)).unflatten(2, (4, 2)).amax((1, 3))
    assert torch.equal(pipe.preprocess_mask(ALIKE[name]())[0], mask)


def test_a_16_bit_image_is_rounded_to_the_nearest_grey() -> None:
    from hf_maskdiff.pictures import in_eight_bits

    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    found = np.asarray(in_eight_bits(Image.fromarray(values), "L"))
    assert np.array_equal(found, np.floor(values / 257 + 0.5).astype(np.uint8))


def test_a_resized_16_bit_image_is_close_to_its_bytes(pipe: MaskGITPipeline) -> None:
    large = np.random.default_rng(1).integers(0, 256, (20, 30), dtype=np.uint8)
    ours = pipe.preprocess_image(saved(sixteen_bits(large)))
    assert torch.equal(ours, pipe.preprocess_image(Image.fromarray(large)))


HALF = np.zeros((8, 8), np.uint8)
HALF[:, 4:] = 255


def layer(colour: int, alpha: np.ndarray = HALF) -> Image.Image:
    grey = np.full((8, 8), colour, np.uint8)
    return Image.fromarray(np.stack([grey, grey, grey, alpha], -1))


MASKS = {
    "white strokes on nothing": layer(255),
    "white strokes on transparent black": Image.fromarray(np.stack([HALF] * 4, -1)),
    "grey and alpha": layer(255).convert("LA"),
    "a palette": saved(layer(255).quantize(4)),
    "one bit": Image.fromarray(HALF).convert("1"),
    "16 bits": sixteen_bits(HALF),
    "opaque": Image.fromarray(HALF).convert("RGBA"),
    "all half transparent": Image.merge("LA", (Image.fromarray(HALF), Image.new("L", (8, 8), 100))),
    "array of bools": HALF > 0,
    "turned": saved(Image.fromarray(HALF).rotate(90), exif=turned_by(90)),
}


@pytest.mark.parametrize("name", MASKS)
def test_masks_are_white_where_they_look_white(pipe: MaskGITPipeline, name: str) -> None:
    assert torch.equal(pipe.preprocess_mask(MASKS[name]), RIGHT)


def float_image(value: float) -> Image.Image:
    return Image.fromarray(np.full((8, 8), value, np.float32))


REFUSED = {
    "black strokes": ({"mask_image": layer(0)}, r"`mask_image` .* transparency alone .*mask\.getchannel\('A'\)"),
    "a hole in grey": ({"mask_image": layer(100, 255 - HALF)}, r"transparency alone .*ImageOps\.invert\("),
    "ones of 255": ({"mask_image": Image.fromarray(HALF // 255)}, r"at least 0\.5 .*, got at most 0\.00392\. Multiply"),
    "an array of quarters": ({"mask_image": HALF / 1020}, r"at least 0\.5 where to draw anew, got at most 0\.25"),
    "integers of any range": ({"image": Image.fromarray(GREY.astype(np.int32))}, "mode 'I' may hold numbers of any"),
    "floats up to 255": ({"image": float_image(255.0)}, r"mode 'F' must hold values in \[0, 1\], got .* 255"),
    "not a number": ({"image": float_image(np.nan)}, r"mode 'F' must hold values in \[0, 1\], got values from nan"),
    "uint16 mask": (
        {"mask_image": HALF.astype(np.uint16) * 257},
        r"in \[0, 1\], got .* Divide 16-bit values by 65535",
    ),
    "uint8 mask": ({"mask_image": HALF}, r"in \[0, 1\], got .*255. Divide bytes by 255"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_may_mean_two_things_is_refused(pipe: MaskGITPipeline, case: str) -> None:
    wrong, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        pipe(**{"image": Image.fromarray(GREY), **wrong})


def test_an_image_with_a_transparent_border_is_its_colours(pipe: MaskGITPipeline) -> None:
    image = Image.fromarray(GREY).convert("RGBA")
    image.putalpha(Image.fromarray(HALF))
    assert torch.equal(pipe.preprocess_image(image), pipe.preprocess_image(Image.fromarray(GREY)))


@pytest.mark.parametrize("name", ["L", "16-bit PNG", "16-bit TIFF", "RGBA", "P with transparency"])
def test_training_and_evaluation_read_the_same_bytes(name: str, tmp_path: Path) -> None:
    kind = "tiff" if "TIFF" in name else "png"
    for split in ("train", "test"):
        for label in ("a", "b"):
            folder = tmp_path / split / label
            folder.mkdir(parents=True)
            ALIKE[name]().save(folder / f"1.{kind}")
    images = load_labelled_images("test", data_dir=tmp_path).images
    assert torch.equal(images, torch.from_numpy(GREY).expand(2, 1, 8, 8))
    (samples,) = load_samples(tmp_path / "train" / "a").batches("L", 4)
    assert torch.equal(samples, images[:1])
