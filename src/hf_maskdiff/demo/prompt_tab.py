"""The tab of a pipeline that draws images from text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from .controls import Comparison, choice_of, shown, steps_and_guidance
from .image_runs import MOST_IMAGES, image_runs
from .image_tab import published_settings
from .opening import Opened
from .prompt_requests import PromptRequest
from .requests import MOST_STEPS
from .runs import panels_of

_PROMPTS = ("a small red house by the sea", "a cat on a windowsill, oil painting")


def prompt_tab(opened: Opened, prefix: str, concurrency_id: str) -> None:
    """Add the controls and panels of a pipeline that draws from text to the page that is being built.

    Args:
        opened: the pipeline.
        prefix: of the elements' ids.
        concurrency_id: of events that run models.
    """
    most = min(opened.pipe.transformer.config.sample_size**2, MOST_STEPS)
    first_steps, first_guidance = published_settings(opened.pipe, most, 12, 10.0)
    prompt = gr.Textbox(_PROMPTS[0], label="Prompt", lines=2, elem_id=f"{prefix}-prompt")
    gr.Examples([[text] for text in _PROMPTS], [prompt], label="Try")
    with gr.Row():
        negative = gr.Textbox("", label="Not to be seen", info="Guidance leads away from it.", elem_id=f"{prefix}-not")
        images = gr.Slider(1, MOST_IMAGES, 1, step=1, label="Images", elem_id=f"{prefix}-images")
        seed = gr.Number(0, precision=0, label="Seed", elem_id=f"{prefix}-seed")
    steps, guidance = steps_and_guidance(most, first_steps, first_guidance, prefix)
    compared = Comparison(opened, "Draw", prefix)

    def run(*values: Any) -> Iterator[list[Any]]:
        chosen = [choice_of(*values[6:9]), choice_of(*values[9:12])]
        yield from panels_of(image_runs(opened, chosen, PromptRequest.of(*values[:6])))

    def draw_images(*values: Any) -> Iterator[list[Any]]:
        yield from shown(lambda: run(*values), 2)

    values = [prompt, negative, images, seed, steps, guidance, *compared.inputs]
    outputs = [compared.message, *compared.panels]
    started = compared.start.click(draw_images, values, outputs, show_progress="hidden", concurrency_id=concurrency_id)
    compared.stop.click(None, cancels=[started])
