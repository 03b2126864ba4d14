"""The tab of a pipeline of sounds: words, say, to hear and to see."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from .controls import Comparison, choice_of, shown, steps_and_guidance
from .image_tab import NO_CLASS, classes_of, first_class, published_settings
from .opening import Opened
from .runs import panels_of
from .sound_runs import MOST_SOUNDS, SoundRequest, sound_runs

_MOST_STEPS = 64


def sound_tab(opened: Opened, prefix: str, concurrency_id: str) -> None:
    """Add the controls and panels of a pipeline of sounds to the page that is being built.

    Args:
        opened: the pipeline.
        prefix: of the elements' ids.
        concurrency_id: of events that run models.
    """
    transformer = opened.pipe.transformer
    first_steps, first_guidance = published_settings(opened.pipe, _MOST_STEPS, 12, 1.0)
    with gr.Row():
        classes, first = classes_of(transformer), first_class(transformer)
        label = gr.Dropdown(classes, value=first, label="Class", elem_id=f"{prefix}-class")
        sounds = gr.Slider(1, MOST_SOUNDS, 2, step=1, label="Sounds", elem_id=f"{prefix}-sounds")
        seed = gr.Number(0, precision=0, label="Seed", elem_id=f"{prefix}-seed")
    unused = "" if transformer.config.get("num_classes") else "This model has no classes: not used."
    steps, guidance = steps_and_guidance(_MOST_STEPS, first_steps, 1 if unused else first_guidance, prefix, unused)
    compared = Comparison(opened, "Draw", prefix)

    def run(*values: Any) -> Iterator[list[Any]]:
        label_id = None if values[0] == NO_CLASS else values[0]
        chosen = [choice_of(*values[5:8]), choice_of(*values[8:11])]
        yield from panels_of(sound_runs(opened, chosen, SoundRequest.of(label_id, *values[1:5])))

    def draw_sounds(*values: Any) -> Iterator[list[Any]]:
        yield from shown(lambda: run(*values), 2)

    values = [label, sounds, seed, steps, guidance, *compared.inputs]
    outputs = [compared.message, *compared.panels]
    started = compared.start.click(draw_sounds, values, outputs, show_progress="hidden", concurrency_id=concurrency_id)
    compared.stop.click(None, cancels=[started])
