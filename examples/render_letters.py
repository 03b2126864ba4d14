r"""Make a set of coloured letters, A to Z, from the fonts of a computer: real shapes, without a download site.

    python examples/render_letters.py --font_dir /usr/share/fonts --shapes data/shapes.npz --output_dir data/letters

Writes `train.npz` and `test.npz`, which the training programs read with `--data_dir data/letters`: 48 x 48 pixels in
colour, 26 classes. No family of fonts is in both splits. `--shapes FILE` keeps the uncoloured letters, so that another
computer, without fonts, paints the same set from that file alone (leave out `--font_dir`).

Left out are fonts that lack a letter, that draw pictures or letters unlike everybody's, and that look like another.
Fonts have licences: say which ones you used.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import string
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from tqdm.auto import tqdm

LETTERS = string.ascii_uppercase
SIDE, LETTER_SIDE, DRAWN_SIDE = 48, 36, 160  # pixels of an image, of its letter, and of a letter as it is drawn first
LEVELS = 8  # of grey, which keep the file of shapes small
# Colour at the top of the background, at its bottom, and of the letter.
SCHEMES = torch.tensor(
    [
        [(18, 32, 74), (48, 92, 160), (255, 209, 82)],
        [(122, 20, 38), (208, 64, 56), (255, 240, 220)],
        [(8, 74, 62), (38, 142, 98), (240, 248, 200)],
        [(252, 226, 150), (248, 170, 92), (120, 36, 60)],
        [(206, 236, 248), (120, 184, 226), (20, 40, 88)],
        [(62, 24, 92), (138, 64, 150), (150, 240, 220)],
        [(244, 240, 232), (206, 196, 186), (206, 44, 44)],
        [(28, 28, 32), (84, 84, 92), (120, 214, 90)],
    ],
    dtype=torch.float32,
)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--font_dir", type=Path, help="folder of .ttf and .otf files, at any depth")
    parser.add_argument("--shapes", type=Path, required=True, help="file of uncoloured letters: written, or else read")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--paintings", type=int, default=4, help="of every shape")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


def draw_letter(letter: str, font: ImageFont.FreeTypeFont) -> NDArray[np.uint8]:
    """The letter in the middle of `(SIDE, SIDE)` pixels, its longer side `LETTER_SIDE` long; 255 is ink."""
    left, top, right, bottom = (round(edge) for edge in font.getbbox(letter))
    page = Image.new("L", (max(1, right - left), max(1, bottom - top)))
    ImageDraw.Draw(page).text((-left, -top), letter, 255, font)
    page = page.crop(page.getbbox() or (0, 0, 1, 1))
    share = LETTER_SIDE / max(page.size)
    page = page.resize([max(1, round(side * share)) for side in page.size], Image.Resampling.BOX)
    middle = Image.new("L", (SIDE, SIDE))
    middle.paste(page, tuple((SIDE - side) // 2 for side in page.size))
    levels = np.round(np.asarray(middle) / 255 * (LEVELS - 1))
    return np.round(levels * 255 / (LEVELS - 1)).astype(np.uint8)


def has_letters(font: ImageFont.FreeTypeFont) -> bool:
    """Whether every letter has ink, and none is drawn as a letter that the font lacks."""
    lacking = bytes(font.getmask("\uffff"))
    drawn = [bytes(font.getmask(letter)) for letter in LETTERS]
    return all(any(letter) and letter != lacking for letter in drawn) and len(set(drawn)) == len(LETTERS)


def read_fonts(folder: Path) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Family and letters `(26, SIDE, SIDE)` of every font."""
    for path in tqdm(sorted(path for kind in ("*.ttf", "*.otf") for path in folder.rglob(kind)), desc="fonts"):
        try:
            font = ImageFont.truetype(str(path), DRAWN_SIDE, layout_engine=ImageFont.Layout.BASIC)
            if has_letters(font):
                # "Lato Light" is of the family "lato"
                family = (font.getname()[0] or path.stem).split()[0].lower()
                yield family, np.stack([draw_letter(letter, font) for letter in LETTERS])
        except (OSError, ValueError):  # no font, or a broken one
            continue


def legible(shapes: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which of the fonts `(num_fonts, 26, SIDE, SIDE)` draw what one takes for letters.

    More than half of the letters of such a font are nearer to the mean of their own letter than to that of any other.
    """
    flat = shapes.reshape(*shapes.shape[:2], -1).astype(np.float32)
    flat -= flat.mean(-1, keepdims=True)
    means = flat.mean(0)
    means /= np.linalg.norm(means, axis=-1, keepdims=True)
    nearest = (flat @ means.T).argmax(-1)
    return (nearest == np.arange(len(LETTERS))).mean(1) > 0.5


def distinct(shapes: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which of the fonts differ from all before them: many have two names, and some weights look alike.

    Their difference, seen at half the resolution, has at least a twentieth of the energy of the fainter font.
    """
    half = shapes.reshape(len(shapes), -1, SIDE // 2, 2, SIDE // 2, 2).mean((3, 5), dtype=np.float32)
    flat = half.reshape(len(shapes), -1) / 255
    products = flat @ flat.T
    energy = products.diagonal()
    difference = (energy[:, None] + energy - 2 * products) / np.minimum(energy[:, None], energy)
    kept = np.zeros(len(shapes), bool)
    for i, row in enumerate(difference):
        kept[i] = (row[:i][kept[:i]] > 0.05).all()
    return kept


def is_test(family: str) -> bool:
    """Whether a family belongs to the test split: a fixed eighth of all names."""
    return hashlib.sha256(family.encode()).digest()[0] < 32


def make_shapes(folder: Path, file: Path) -> None:
    names, drawn = zip(*read_fonts(folder), strict=True)
    families, shapes = np.array(names), np.stack(drawn)
    for rule, choose in (("draw something else", legible), ("look like another", distinct)):
        kept = choose(shapes)
        print(f"{len(shapes)} fonts, of which {(~kept).sum()} {rule} and are left out")
        families, shapes = families[kept], shapes[kept]
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(file, shapes=shapes, families=families)


def move(shapes: Tensor, generator: torch.Generator) -> Tensor:
    """Each shape `(num_shapes, 1, SIDE, SIDE)` turned by up to 12 degrees, up to 15 % smaller, a little aside."""
    turn, shrink, *aside = torch.rand(4, len(shapes), generator=generator) * 2 - 1
    angle, size = turn * math.pi / 15, 0.925 + 0.075 * shrink
    cos, sin, aside = angle.cos() / size, angle.sin() / size, [0.12 * part for part in aside]
    inverse = torch.stack([torch.stack([cos, sin, aside[0]], -1), torch.stack([-sin, cos, aside[1]], -1)], 1)
    grid = F.affine_grid(inverse, list(shapes.shape), align_corners=False)
    return F.grid_sample(shapes, grid, mode="bicubic", align_corners=False).clamp(0, 1)


def paint(shapes: Tensor, generator: torch.Generator) -> Tensor:
    """Each of the shapes `(num_shapes, SIDE, SIDE)` in a colour scheme of its own: `(num_shapes, SIDE, SIDE, 3)`."""
    down = torch.linspace(0, 1, SIDE)[:, None, None]
    images = torch.empty(*shapes.shape, 3, dtype=torch.uint8)
    for part, into in zip(shapes.split(2000), images.split(2000), strict=True):
        ink = move(part[:, None] / 255, generator)[:, 0, :, :, None]
        schemes = SCHEMES[torch.randint(len(SCHEMES), (len(part),), generator=generator)]
        top, bottom, letter = schemes[:, :, None, None].unbind(1)
        into.copy_(torch.lerp(torch.lerp(top, bottom, down), letter, ink).round())
    return images


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    if args.font_dir is not None:
        make_shapes(args.font_dir, args.shapes)
    with np.load(args.shapes) as file:
        shapes, test = file["shapes"], np.array([is_test(family) for family in file["families"]])
    args.output_dir.mkdir(parents=True, exist_ok=True)
    for number, (split, chosen) in enumerate((("train", ~test), ("test", test))):
        flat = torch.from_numpy(shapes[chosen]).flatten(0, 1).repeat(args.paintings, 1, 1)
        labels = np.tile(np.arange(len(LETTERS)), len(flat) // len(LETTERS))
        images = paint(flat, torch.Generator().manual_seed(2 * args.seed + number)).numpy()
        np.savez(args.output_dir / f"{split}.npz", images=images, labels=labels, class_names=np.array(list(LETTERS)))
        print(f"{split}: {len(images)} images of {chosen.sum()} fonts")


if __name__ == "__main__":
    main()
