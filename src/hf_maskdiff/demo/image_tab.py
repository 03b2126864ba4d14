"""The tab of a pipeline of images: drawing, and drawing a painted part anew."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr
from PIL import Image

from .captions import remarks, told
from .controls import Comparison, choice_of, shown, steps_and_guidance
from .editing import edit_of, painted_part, to_paint_on
from .image_runs import MOST_IMAGES, ImageRequest, image_runs
from .opening import Opened
from .requests import MOST_GUIDANCE
from .runs import panels_of

NO_CLASS = "no class"
# In the editor of Gradio 5.50 a script fails when it is given an image, and then it hands nothing over.
_CAN_PAINT = int(gr.__version__.partition(".")[0]) >= 6


def image_tab(opened: Opened, prefix: str, concurrency_id: str) -> None:
    """Add the controls and panels of a pipeline of images to the page that is being built.

    Args:
        opened: the pipeline.
        prefix: of the elements' ids.
        concurrency_id: of events that run models.
    """
    transformer = opened.pipe.transformer
    side = transformer.config.sample_size
    first_steps, first_guidance = published_settings(opened.pipe, side * side, 8, 1.0)
    last = gr.State([])  # the images of A
    with gr.Row():
        classes, first = classes_of(transformer), first_class(transformer)
        label = gr.Dropdown(classes, value=first, label="Class", elem_id=f"{prefix}-class")
        images = gr.Slider(1, MOST_IMAGES, 4, step=1, label="Images", elem_id=f"{prefix}-images")
        seed = gr.Number(0, precision=0, label="Seed", elem_id=f"{prefix}-seed")
    unused = "" if transformer.has_null_class else "This model was never shown an image without its class: not used."
    steps, guidance = steps_and_guidance(side * side, first_steps, first_guidance, prefix, unused)
    compared = Comparison(opened, "Draw", prefix)
    gr.HTML(remarks(["Editing by painting needs Gradio 6: `pip install -U gradio`."]), visible=not _CAN_PAINT)
    with gr.Accordion(
        "Edit: paint over a part of an image, and it is drawn anew",
        open=False,
        visible=_CAN_PAINT,
        elem_id=f"{prefix}-edit",
    ):
        with gr.Row():
            take = gr.Button("Paint on A's image", elem_id=f"{prefix}-take")
            redraw = gr.Button("Draw the painted part anew", variant="primary", elem_id=f"{prefix}-redraw")
        edit_message = gr.HTML(elem_id=f"{prefix}-edit-message", elem_classes="md-message", padding=False)
        editor = gr.ImageEditor(
            type="pil",
            format="png",  # without loss
            show_label=False,
            sources=("upload", "clipboard"),
            transforms=(),
            layers=False,
            brush=gr.Brush(default_size=40, colors=["#e5484d"], color_mode="fixed"),
            elem_id=f"{prefix}-editor",
        )
        gr.HTML('<div class="md-remark">Both samplers draw the painted codes anew; all other pixels stay.</div>')

    def run(editing: bool, value: Any, *values: Any) -> Iterator[list[Any]]:
        label_id = None if values[0] == NO_CLASS else values[0]
        chosen = [choice_of(*values[5:8]), choice_of(*values[8:11])]
        edit = edit_of(opened.pipe, *painted_part(value)) if editing else None
        num_images, first_seed, num_steps, scale = values[1:5]
        request = ImageRequest.of(label_id, num_images, first_seed, num_steps, scale, edit)
        runs = image_runs(opened, chosen, request)
        for state in panels_of(runs):
            yield [*state, runs[0].pictures()]

    def draw_images(*values: Any) -> Iterator[list[Any]]:
        yield from shown(lambda: run(False, None, *values), 3)

    def draw_painted_part(value: Any, *values: Any) -> Iterator[list[Any]]:
        yield from shown(lambda: run(True, value, *values), 3)

    def take_image(images_of_a: list[Image.Image]) -> list[Any]:
        if not images_of_a:
            return [
                told("there must be an image to paint on, got none. Press “Draw” first, or upload one."),
                gr.update(),
            ]
        return ["", to_paint_on(images_of_a[0])]

    values = [label, images, seed, steps, guidance, *compared.inputs]
    outputs = [compared.message, *compared.panels, last]
    options: dict[str, Any] = {"show_progress": "hidden", "concurrency_id": concurrency_id}
    started = [
        compared.start.click(draw_images, values, outputs, **options),
        redraw.click(draw_painted_part, [editor, *values], [edit_message, *compared.panels, last], **options),
    ]
    compared.stop.click(None, cancels=started)
    take.click(take_image, last, [edit_message, editor], show_progress="hidden")


def classes_of(transformer: Any) -> list[Any]:
    """The choices of classes of a denoiser, as pairs of what is read and the id."""
    names = {int(number): str(name) for number, name in (transformer.config.get("id2label") or {}).items()}
    count = transformer.config.get("num_classes") or 0
    classes: list[Any] = [(names.get(number, str(number)).split(",")[0], number) for number in range(count)]
    return [*classes, *([(NO_CLASS, NO_CLASS)] if getattr(transformer, "has_null_class", True) or not count else [])]


def first_class(transformer: Any) -> Any:
    """The choice that the page begins with."""
    classes = classes_of(transformer)
    return classes[min(3, len(classes) - 1)][1]


def published_settings(pipe: Any, most_steps: int, steps: int, guidance_scale: float) -> tuple[int, float]:
    """Steps and guidance that a pipeline was published with; a rise of guidance begins the slider in its middle.

    Args:
        most_steps: of the slider.
        steps, guidance_scale: of a pipeline that says nothing.
    """
    known = pipe.config.get("call_defaults") or {}
    scale = known.get("guidance_scale", guidance_scale)
    middle = sum(scale[:2]) / 2 if isinstance(scale, list | tuple) else scale
    return min(known.get("num_inference_steps", steps), most_steps), min(max(float(middle), 1.0), MOST_GUIDANCE)
