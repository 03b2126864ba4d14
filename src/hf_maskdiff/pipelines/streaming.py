"""Text that is shown while it is written: to transformers' streamers in order, to a canvas all of it in every step."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import wraps
from queue import Queue
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from .text_output import decode_with_masks
from .text_windows import first

_MOVE_UP_AND_CLEAR = "\033[{}F\033[J"


class CanvasStreamer(BaseStreamer):
    """Shows the whole text in every step, with `_` where nothing is written yet; a terminal's text fills in in place.

    For text in reading order pass a streamer of transformers (`TextStreamer`, `TextIteratorStreamer`) to the pipeline
    instead. To show the text elsewhere, override `on_canvas`, or loop over a `CanvasIteratorStreamer`.

    Example:

        streamer = CanvasStreamer(pipe.tokenizer, mask_token_id=pipe.mask_token_id)
        pipe("ROMEO:", num_inference_steps=32, streamer=streamer)

    Args:
        tokenizer: the pipeline's.
        mask_token_id: the token at places that are not filled in yet, `pipe.mask_token_id`.
        skip_prompt: leave out everything before the first place to fill in; useful for chats.
        mask_text: what such a place reads as.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        mask_token_id: int,
        skip_prompt: bool = False,
        mask_text: str = "_",
    ) -> None:
        self.tokenizer, self.mask_token_id = tokenizer, mask_token_id
        self.skip_prompt, self.mask_text = skip_prompt, mask_text
        self._known: list[Tensor] = []
        self._num_lines = 0

    def put(self, value: Tensor) -> None:
        """Receive the next tokens in reading order, int64 `(length,)`; the first call brings the prompt."""
        self._known.append(value)

    def put_draft(self, value: Tensor) -> None:
        """Receive what follows the tokens so far, int64 `(length,)`, places to fill in among it, and show it all."""
        self._show(value)

    def end(self) -> None:
        """Show the finished text, and get ready for the next one."""
        if self._known:
            self._show(self._known[-1][:0], stream_end=True)
        self._known, self._num_lines = [], 0

    def _show(self, draft: Tensor, stream_end: bool = False) -> None:
        ids = torch.cat([*self._known[int(self.skip_prompt) :], draft])
        text = decode_with_masks(self.tokenizer, [ids], self.mask_token_id, self.mask_text)[0]
        self.on_canvas(text, stream_end=stream_end)

    def on_canvas(self, text: str, stream_end: bool = False) -> None:
        """Print the text over the one before it.

        Args:
            text: all of it, so far.
            stream_end: True for the finished text.
        """
        above = _MOVE_UP_AND_CLEAR.format(self._num_lines) if self._num_lines else ""
        width = max(shutil.get_terminal_size().columns, 1)
        self._num_lines = sum(max(1, -(-len(line) // width)) for line in text.split("\n"))
        print(above + text, flush=True)


class CanvasIteratorStreamer(CanvasStreamer):
    """Gives the whole text of every step to a loop, while the pipeline runs in a thread.

    Example:

        streamer = CanvasIteratorStreamer(pipe.tokenizer, mask_token_id=pipe.mask_token_id)
        Thread(target=pipe, args=("ROMEO:",), kwargs={"streamer": streamer}).start()
        for text in streamer:
            page.update(text)

    The loop ends with the finished text, or where the pipeline stops with an error.

    Args:
        tokenizer, mask_token_id, skip_prompt, mask_text: see `CanvasStreamer`.
        timeout: seconds to wait for the next text before `queue.Empty` is raised; None waits for ever.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        mask_token_id: int,
        skip_prompt: bool = False,
        mask_text: str = "_",
        timeout: float | None = None,
    ) -> None:
        super().__init__(tokenizer, mask_token_id, skip_prompt, mask_text)
        self.timeout = timeout
        self._texts: Queue[str | None] = Queue()

    def end(self) -> None:
        super().end()
        self._texts.put(None)

    def on_canvas(self, text: str, stream_end: bool = False) -> None:
        self._texts.put(text)

    def __iter__(self) -> CanvasIteratorStreamer:
        return self

    def __next__(self) -> str:
        text = self._texts.get(timeout=self.timeout)
        if text is None:
            raise StopIteration
        return text


class InOrder:
    """Hands the tokens of a sequence to a streamer in reading order, each once it is known and all before it are.

    A streamer that has `put_draft`, as transformers' `TextDiffusionStreamer`, gets in every step what follows them,
    too, places to fill in included.

    Args:
        streamer: of transformers, or like them.
        mask_token_id: the token at places to fill in.
    """

    def __init__(self, streamer: BaseStreamer, mask_token_id: int) -> None:
        self._put = streamer.put
        self._put_draft: Callable[[Tensor], Any] | None = getattr(streamer, "put_draft", None)
        self._mask_token_id, self._num_put = mask_token_id, -1

    def show(self, sequence: Tensor, num_final: int | None = None) -> None:
        """Hand over what is new in the sequence, int64 `(length,)`; the first call hands over its prompt.

        Args:
            num_final: how many of the first tokens do not change any more; None if no known one does.
        """
        sequence = sequence.cpu()
        num_known = first(sequence == self._mask_token_id)
        if num_final is not None:
            num_known = max(min(num_known, num_final), self._num_put)
        if num_known > self._num_put:
            self._put(sequence[max(self._num_put, 0) : num_known])
            self._num_put = num_known
        if self._put_draft is not None and num_known < len(sequence):
            self._put_draft(sequence[num_known:])


def check_streamer(streamer: Any, num_sequences: int) -> None:
    """Raise `ValueError` for what is no streamer, and for one streamer where several texts are written."""
    if streamer is None:
        return
    if not (callable(getattr(streamer, "put", None)) and callable(getattr(streamer, "end", None))):
        raise ValueError(
            f"`streamer` must have `put` and `end`, got {type(streamer).__name__}. Pass a streamer of transformers, "
            "or a CanvasStreamer."
        )
    if num_sequences != 1:
        raise ValueError(
            f"`streamer` shows one text, got {num_sequences} texts to write. Pass one prompt and "
            "`num_return_sequences=1`."
        )


def ending_streams(call: Callable[..., Any]) -> Callable[..., Any]:
    """Let a pipeline's call end its `streamer` whatever happens: who reads from it in another thread must not wait."""

    @wraps(call)
    def ended(*args: Any, **kwargs: Any) -> Any:
        try:
            return call(*args, **kwargs)
        finally:
            end = getattr(kwargs.get("streamer"), "end", None)
            if end is not None:
                end()

    return ended
