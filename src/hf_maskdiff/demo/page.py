"""The page: a tab for each pipeline."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from hf_maskdiff_cli.names import IMAGES, OF_PROMPTS, SOUNDS, TEXTS

from .image_tab import image_tab
from .opening import Opened
from .prompt_tab import prompt_tab
from .sound_tab import sound_tab
from .text_tab import text_tab

TITLE = "Masked diffusion, step by step"
_INTRODUCTION = f"""# {TITLE}

Two samplers fill in the same masks with the same model and the same seed, a step at a time. Watch which positions each
of them takes first, and what it gets for its passes.
"""
_TABS: dict[str, Callable[[Opened, str, str], None]] = {
    IMAGES: image_tab,
    TEXTS: text_tab,
    SOUNDS: sound_tab,
}
_STYLE = Path(__file__).with_name("page.css")
_LARGEST_UPLOAD = "20mb"


def build_page(pipelines: Sequence[Opened], concurrent_runs: int = 4) -> tuple[gr.Blocks, dict[str, Any]]:
    """The page, and with which arguments of `launch` it looks as it should.

    Args:
        pipelines: a tab each.
        concurrent_runs: how many runs may be under way at once; further ones wait.
    """
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    look: dict[str, Any] = {"theme": theme, "css": _STYLE.read_text(encoding="utf-8")}
    # Gradio 5 takes them at the beginning, Gradio 6 at the launch.
    known = inspect.signature(gr.Blocks.launch).parameters
    at_launch = {name: value for name, value in look.items() if name in known}
    at_once = {name: value for name, value in look.items() if name not in known}
    at_launch |= {"max_file_size": _LARGEST_UPLOAD, "ssr_mode": False}
    at_launch |= {"run_history": False} if "run_history" in known else {}  # no browser keeps what was made
    with gr.Blocks(title=TITLE, analytics_enabled=False, **at_once) as page:
        gr.Markdown(_INTRODUCTION)
        with gr.Tabs():
            for number, opened in enumerate(pipelines):
                with gr.Tab(opened.name, id=number):
                    tab = prompt_tab if type(opened.pipe).__name__ in OF_PROMPTS else _TABS[opened.kind]
                    tab(opened, f"tab{number}", "runs")
    page.queue(default_concurrency_limit=concurrent_runs, max_size=64)
    return page, at_launch
