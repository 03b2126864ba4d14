"""Pictures, captions, numbers and paintings of the page, which need no Gradio."""

from __future__ import annotations

import base64
import io
import re

import pytest
import torch
from PIL import Image, ImageDraw

from hf_maskdiff.demo.captions import caption, empty_panel, remarks, told
from hf_maskdiff.demo.editing import painted_part, reduced, to_paint_on
from hf_maskdiff.demo.frames import as_html, history_sheet, keep_pixels, sheet
from hf_maskdiff.demo.passes import Passes, counting, watch
from hf_maskdiff.demo.requests import number, whole
from hf_maskdiff.demo.stepwise import Frame


def opened(html: str) -> Image.Image:
    found = re.search(r'src="data:image/\w+;base64,([^"]+)"', html)
    assert found is not None
    return Image.open(io.BytesIO(base64.b64decode(found[1])))


@pytest.mark.parametrize(("count", "size"), [(1, (4, 6)), (2, (10, 6)), (3, (10, 14)), (4, (10, 14)), (5, (16, 14))])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_sheet_holds_all_pictures(count: int, size: tuple[int, int], mode: str) -> None:
    pictures = [Image.new("L", (4, 6), 10 * number).convert(mode) for number in range(count)]
    paper = sheet(pictures, gap=2)
    assert (paper.size, paper.mode) == (size, mode)
    counts = {colour: pixels for pixels, colour in paper.convert("L").getcolors()}
    assert [counts[10 * number] for number in range(count)] == [24] * count


def test_a_picture_is_in_the_page_itself() -> None:
    picture = Image.new("L", (28, 28), 77)
    html = as_html(picture, 'an "image"', pixelated=True)
    assert opened(html).convert("L").tobytes() == picture.tobytes()
    assert 'alt="an &quot;image&quot;"' in html
    assert "md-pixels" in html


def test_a_large_picture_is_sent_with_loss() -> None:
    html = as_html(Image.new("RGB", (512, 512), "red"), "red", with_loss=True)
    assert (opened(html).format, opened(html).size) == ("WEBP", (512, 512))
    assert opened(as_html(Image.new("RGB", (512, 512), "red"), "red")).format == "PNG"
    assert opened(as_html(Image.new("RGB", (28, 28), "red"), "red", with_loss=True)).format == "PNG"
    assert "md-pixels" not in html


def test_heat_maps_lie_as_the_images_do() -> None:
    one, four = history_sheet(torch.ones(1, 7, 7), 8), history_sheet(torch.ones(4, 7, 7), 8)
    assert (one.size, four.size) == ((336, 336), (224 * 2 + 8, 224 * 2 + 8))


def test_pixels_outside_the_painted_codes_are_the_original() -> None:
    drawn, original = torch.rand(3, 1, 8, 8), torch.rand(1, 1, 8, 8)
    editable = torch.zeros(1, 2, 2, dtype=torch.bool)
    editable[0, 0, 1] = True
    kept = keep_pixels(drawn, original, editable)
    assert torch.equal(kept[:, :, :4, 4:], drawn[:, :, :4, 4:])
    kept[:, :, :4, 4:] = original[:, :, :4, 4:]
    assert torch.equal(kept, original.expand(3, -1, -1, -1))


def test_a_painting_is_where_its_layers_are_not_transparent() -> None:
    layers = [Image.new("RGBA", (20, 10)), Image.new("RGBA", (20, 10))]
    ImageDraw.Draw(layers[0]).rectangle((2, 3, 5, 6), fill=(255, 0, 0, 40))
    layers[1].putpixel((19, 9), (0, 0, 0, 255))
    image, painted = painted_part({"background": Image.new("RGB", (20, 10), "blue"), "layers": layers})
    assert image.size == painted.size == (20, 10)
    assert painted.getcolors() == [(20 * 10 - 17, 0), (17, 255)]
    assert (painted.getpixel((2, 3)), painted.getpixel((19, 9)), painted.getpixel((6, 6))) == (255, 255, 0)


@pytest.mark.parametrize("value", [None, {"background": None, "layers": []}])
def test_no_image_is_one_clear_line(value: dict[str, object] | None) -> None:
    with pytest.raises(ValueError, match=r"an image must be there to paint on, got none\. Upload one, or press"):
        painted_part(value)


def test_an_empty_painting_is_one_clear_line() -> None:
    value = to_paint_on(Image.new("L", (28, 28)))
    for layers in ([], [Image.new("RGBA", value["background"].size)]):
        with pytest.raises(ValueError, match=r"must be painted over, got an empty painting\. Choose the brush"):
            painted_part({**value, "layers": layers})


def test_a_black_image_is_an_image() -> None:
    black = Image.new("RGB", (8, 8))
    assert painted_part({"background": black, "layers": [Image.new("RGBA", (8, 8), "red")]})[0] is black


def test_small_images_are_enlarged_to_be_painted_on() -> None:
    picture = Image.new("L", (28, 28))
    picture.putpixel((27, 0), 200)
    large = to_paint_on(picture)["background"]
    assert (large.size, large.mode) == ((448, 448), "RGB")
    assert (large.getpixel((447, 0)), large.getpixel((431, 0))) == ((200,) * 3, (0,) * 3)
    assert to_paint_on(Image.new("RGB", (512, 512)))["background"].size == (512, 512)
    assert reduced(large, 28).convert("L").tobytes() == picture.tobytes()


@pytest.mark.parametrize("size", [(27, 27), (30, 30), (56, 28), (28, 28)])
def test_other_images_are_left_to_the_pipeline(size: tuple[int, int]) -> None:
    image = Image.effect_noise(size, 50)
    assert reduced(image, 28).tobytes() == image.tobytes()


@pytest.mark.parametrize("value", [None, "8", True, 0, 65, 8.5, float("nan"), float("inf")])
def test_what_is_no_number_of_steps_is_said(value: object) -> None:
    with pytest.raises(ValueError, match=r"“Steps” must be a whole number from 1 to 64, got .*\. Set it to one of"):
        whole("Steps", value, 1, 64)


@pytest.mark.parametrize("value", [None, "1", -0.5, 11, float("nan")])
def test_what_is_no_guidance_is_said(value: object) -> None:
    with pytest.raises(ValueError, match=r"“Guidance” must be a number from 0 to 10, got "):
        number("Guidance", value, 0, 10)


def test_whole_numbers_are_integers() -> None:
    assert repr(whole("Steps", 8.0, 1, 64)) == "8"
    assert repr(number("Guidance", 2, 0, 10)) == "2.0"


def test_captions_say_steps_passes_and_seconds() -> None:
    frame = Frame(3, torch.zeros(1), Passes(3, 0), 0.126, finished=False)
    assert "step 3 · 3 passes · 0.13 s" in caption("A", "<Moment>", frame)
    assert "&lt;Moment&gt;" in caption("A", "<Moment>", None)
    last = Frame(1, torch.zeros(1), Passes(1, 2), 2.0, finished=True)
    assert "1 step · 1 pass + 2 partial · 2.00 s" in caption("A", "Moment", last)


def test_words_of_others_are_no_html() -> None:
    for html in (told("<b>"), remarks(["<b>"]), empty_panel("<b>")):
        assert "<b>" not in html
        assert "&lt;b&gt;" in html
    assert remarks([]) == ""


def test_the_calls_of_a_model_are_counted_in_the_thread_that_counts() -> None:
    from concurrent.futures import ThreadPoolExecutor

    model = torch.nn.Identity()
    watch(model)

    def run(lengths: list[int]) -> Passes:
        with counting() as calls:
            for length in lengths:
                model(torch.zeros(2, length))
        return Passes.of(calls)

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(run, [[49, 12, 49, 5], [49] * 3]))
    model(torch.zeros(2, 7))  # nobody counts
    assert found == [Passes(2, 2), Passes(3, 0)]
    assert Passes.of([]) == Passes(0, 0)
