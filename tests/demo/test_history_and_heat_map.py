"""Which step revealed which position, in numbers, colours, pictures and words."""

from __future__ import annotations

import re

import pytest
import torch
from PIL import Image

from hf_maskdiff.demo.heat_map import as_css, colour_of, grid_picture, legend, text_colour_on
from hf_maskdiff.demo.history import GIVEN, MASKED, Record, after_step, start_of

MASK = 9


def luminance(colour: tuple[int, int, int]) -> float:
    linear = [(c / 255 + 0.055) ** 2.4 / 1.055**2.4 if c > 10 else c / 255 / 12.92 for c in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_what_is_given_revealed_changed_and_taken_back() -> None:
    record = Record(torch.tensor([[5, MASK, MASK, MASK]]), MASK)
    assert record.history.tolist() == [[GIVEN, MASKED, MASKED, MASKED]]
    record.add(torch.tensor([[5, 1, MASK, 2]]), 1)
    assert record.history.tolist() == [[GIVEN, 1, MASKED, 1]]
    record.add(torch.tensor([[5, 1, 3, MASK]]), 2)  # the last one is masked again
    assert record.history.tolist() == [[GIVEN, 1, 2, MASKED]]
    record.add(torch.tensor([[5, 4, 3, 2]]), 3)  # the second one is drawn anew
    assert record.history.tolist() == [[GIVEN, 3, 2, 3]]
    assert record.tokens.tolist() == [[5, 4, 3, 2]]


def test_a_step_counts_once() -> None:
    record = Record(torch.tensor([MASK, MASK]), MASK)
    for _ in range(2):
        record.add(torch.tensor([1, MASK]), 1)
    assert (record.step, record.history.tolist()) == (1, [1, MASKED])


def test_the_histories_are_pure_functions() -> None:
    before, after = torch.tensor([MASK, MASK]), torch.tensor([3, MASK])
    start = start_of(before, MASK)
    assert after_step(start, before, after, 7, MASK).tolist() == [7, MASKED]
    assert start.tolist() == [MASKED, MASKED]


@pytest.mark.parametrize("num_steps", [2, 8, 49])
def test_later_steps_are_lighter(num_steps: int) -> None:
    light = [luminance(colour_of(step, num_steps)) for step in range(1, num_steps + 1)]
    assert light == sorted(light)
    assert len(set(light)) == num_steps


def test_one_step_alone_has_a_colour() -> None:
    assert colour_of(1, 1) == colour_of(1, 8)


def test_what_is_given_or_masked_is_no_step() -> None:
    steps = {colour_of(step, 64) for step in range(1, 65)}
    given, masked = colour_of(GIVEN, 64), colour_of(MASKED, 64)
    assert len({given, masked} | steps) == 66


def test_numbers_are_read_on_every_colour() -> None:
    """Of large text, accessibility guidelines ask for a contrast of 3, of small text for 4.5."""
    for step in [GIVEN, MASKED, *range(1, 65)]:
        colour = colour_of(step, 64)
        ink = 1.0 if text_colour_on(colour) == "#ffffff" else luminance((17, 17, 17))
        high, low = sorted((luminance(colour), ink), reverse=True)
        assert (high + 0.05) / (low + 0.05) >= 4.2, (step, colour)


def test_a_cell_has_the_colour_of_its_step() -> None:
    history = torch.tensor([[1, 2, GIVEN], [4, MASKED, 3]])
    picture = grid_picture(history, num_steps=4, side=90)
    assert picture.size == (90, 60)
    for y, row in enumerate(history.tolist()):
        for x, step in enumerate(row):
            assert picture.getpixel((x * 30 + 2, y * 30 + 2)) == colour_of(step, 4)


def test_numbers_are_written_where_they_can_be_read() -> None:
    history = torch.full((2, 2), 3)
    large, small = grid_picture(history, 8, side=80), grid_picture(history, 8, side=20)
    assert len(cell(large).getcolors()) > 1
    assert len(cell(small).getcolors()) == 1
    assert len(cell(grid_picture(torch.full((2, 2), GIVEN), 8, side=80)).getcolors()) == 1


def cell(picture: Image.Image) -> Image.Image:
    """The inside of the first cell of two by two."""
    return picture.crop((1, 1, picture.width // 2 - 2, picture.height // 2 - 2))


def test_the_legend_goes_from_the_first_colour_to_the_last() -> None:
    html = legend(12)
    ramp = re.findall(r"#[0-9a-f]{6}", html)
    assert (ramp[0], ramp[-2], ramp[-1]) == tuple(map(as_css, (colour_of(1, 12), colour_of(12, 12), colour_of(0, 12))))
    assert "step 12" in html
