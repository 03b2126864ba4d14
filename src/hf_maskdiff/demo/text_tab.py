"""The tab of a pipeline of texts: writing on, and filling in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from .controls import Comparison, choice_of, shown, steps_and_guidance
from .opening import Opened
from .runs import panels_of
from .text_runs import MOST_NEW_TOKENS, TextRequest, text_runs

_PROMPTS = ("ROMEO:", "To be, or [MASK:12] question.")


def text_tab(opened: Opened, prefix: str, concurrency_id: str) -> None:
    """Add the controls and panels of a pipeline of texts to the page that is being built.

    Args:
        opened: the pipeline.
        prefix: of the elements' ids.
        concurrency_id: of events that run models.
    """
    most = min(opened.pipe.denoiser.model_length or MOST_NEW_TOKENS, MOST_NEW_TOKENS)
    prompt = gr.Textbox(
        _PROMPTS[0],
        label="Prompt",
        info="The text goes on from here. With [MASK] or [MASK:12] in it, these places are filled in instead. "
        "Empty: it writes freely.",
        lines=2,
        elem_id=f"{prefix}-prompt",
    )
    gr.Examples([[text] for text in _PROMPTS], [prompt], label="Try")
    steps, guidance = steps_and_guidance(most, min(16, most), 1, prefix)
    with gr.Row():
        new_tokens = gr.Slider(
            0, most, 0, step=1, label="New tokens", info="0: as many as fit.", elem_id=f"{prefix}-new"
        )
        seed = gr.Number(0, precision=0, label="Seed", elem_id=f"{prefix}-seed")
    has_chats = getattr(opened.pipe.tokenizer, "chat_template", None) is not None
    is_chat = gr.Checkbox(has_chats, label="Answer the prompt, as a chat", visible=has_chats, elem_id=f"{prefix}-chat")
    compared = Comparison(opened, "Write", prefix)

    def run(*values: Any) -> Iterator[list[Any]]:
        chosen = [choice_of(*values[6:9]), choice_of(*values[9:12])]
        yield from panels_of(text_runs(opened, chosen, TextRequest.of(*values[:6])))

    def write_texts(*values: Any) -> Iterator[list[Any]]:
        yield from shown(lambda: run(*values), 2)

    values = [prompt, is_chat, new_tokens, seed, steps, guidance, *compared.inputs]
    outputs = [compared.message, *compared.panels]
    started = compared.start.click(write_texts, values, outputs, show_progress="hidden", concurrency_id=concurrency_id)
    compared.stop.click(None, cancels=[started])
