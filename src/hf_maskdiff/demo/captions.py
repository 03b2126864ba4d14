"""The lines above a result."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from .stepwise import Frame


def caption(title: str, described: str, frame: Frame | None) -> str:
    """HTML that says what is shown: which sampler with which settings, how far it is, its passes and its seconds."""
    head = f'<div class="md-caption"><b>{escape(title)}</b> {escape(described)}'
    if frame is None:
        return f"{head}</div>"
    step = f"{frame.step} step{'' if frame.step == 1 else 's'}" if frame.finished else f"step {frame.step}"
    numbers = f"{step} · {frame.passes} · {frame.seconds:.2f} s"
    return f'{head}<div class="md-numbers">{numbers}</div></div>'


def remarks(sentences: Sequence[str]) -> str:
    """HTML of what must be said of a run's settings; empty where there is nothing to say."""
    return "".join(f'<div class="md-remark">{escape(sentence)}</div>' for sentence in sentences)


def panel(caption: str, remarks: str, view: str, heat_map: str) -> str:
    """HTML of a panel: the caption over what has been made and, beside it where there is room, its heat map."""
    return (
        f'<div class="md-panel">{caption}{remarks}<div class="md-pair">'
        f'<div><div class="md-heading">Result</div>{view}</div>'
        f'<div><div class="md-heading">Which step revealed it</div>{heat_map}</div></div></div>'
    )


def empty_panel(says: str) -> str:
    """HTML of a panel before the first run."""
    return f'<div class="md-panel"><div class="md-empty">{escape(says)}</div></div>'


def told(message: str) -> str:
    """HTML of what went wrong, in one line."""
    return f'<div class="md-error" role="alert">{escape(message)}</div>'
