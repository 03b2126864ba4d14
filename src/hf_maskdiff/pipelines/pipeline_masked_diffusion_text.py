"""Text generation and infilling by filling in masked tokens, with any model."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.utils import BaseOutput, is_torch_xla_available, replace_example_docstring
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..hub import PipelineRepositoryMixin
from ..models import (
    MDLMTransformer,
    PartialCacheConfig,
    PublishedText,
    TextDenoiser,
    load_published_text,
    text_denoiser,
)
from ..sampling import Generators, check_generators
from ..schedulers import ConfidenceScheduler, MaskedDiffusionScheduler
from .denoising import denoise

if is_torch_xla_available():
    import torch_xla.core.xla_model as xm

EXAMPLE_DOC_STRING = """
    Examples:
        ```py
        >>> import torch
        >>> from hf_maskdiff import MaskedDiffusionTextPipeline

        >>> pipe = MaskedDiffusionTextPipeline.from_pretrained("GSAI-ML/LLaDA-8B-Instruct", dtype=torch.bfloat16)
        >>> pipe.to("cuda")
        >>> chat = [{"role": "user", "content": "Why is the sky blue?"}]
        >>> pipe(chat, max_new_tokens=128, block_length=32, num_inference_steps=16).texts[0]

        >>> pipe(["Once upon a time", "The [MASK:2] of Paris"], max_new_tokens=20).texts
        ```
"""

# A chat is a list of messages, each with a role and a content.
Prompt = str | Sequence[Mapping[str, str]]

OUTPUT_TYPES = ("text", "ids")
MASK_SPAN = re.compile(r"\[MASK(?::([1-9][0-9]{0,5}))?\]")
_LOCATION = ("cache_dir", "force_download", "proxies", "token", "revision", "local_files_only")


@dataclass
class MaskedDiffusionTextPipelineOutput(BaseOutput):
    """Output of `MaskedDiffusionTextPipeline`.

    Args:
        sequences: token ids of each sequence, prompt included, int64 `(length,)`; lengths differ.
        texts: the sequences as text, of a chat the answer alone; None for `output_type="ids"`.
        num_model_passes: how often the model was run for each sequence, partial passes (`PartialCacheConfig`) aside.
    """

    sequences: list[Tensor]
    texts: list[str] | None
    num_model_passes: list[int]


class MaskedDiffusionTextPipeline(PipelineRepositoryMixin, DiffusionPipeline):
    r"""Writes, answers and fills in text with any masked model and any scheduler; swap `pipe.scheduler` freely.

    The model may be any of transformers that has `.logits` and attends in both directions, or can be told to: a masked
    language model (ModernBERT, BERT), or a decoder that was trained to fill in masks (LLaDA, Dream). `enable_cache`
    switches partial caching on, whatever the model.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): its ids are rows of the model.
        transformer ([`~transformers.PreTrainedModel`] or [`MDLMTransformer`]): the denoiser, token ids to logits.
        scheduler ([`MaskedDiffusionScheduler`]): which positions are revealed when, and at what temperature.
        shift_logits (`bool`): row i - 1 of the model's output predicts position i (Dream).
        eos_token_ids (list of `int`, *optional*): tokens that end a text; None for the tokenizer's own.
    """

    model_cpu_offload_seq = "transformer"
    card_pipeline_tag = "text-generation"
    card_example = 'print(pipe("Once upon a time", max_new_tokens=32, num_inference_steps=32).texts[0])'
    # New tokens where neither the call nor masks in the prompt say how many; None fills the model's length.
    default_max_new_tokens: int | None = 128
    _callback_tensor_inputs = ["sequences"]  # noqa: RUF012 - diffusers' name and type

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        transformer: PreTrainedModel | MDLMTransformer,
        scheduler: MaskedDiffusionScheduler,
        shift_logits: bool = False,
        eos_token_ids: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(tokenizer=tokenizer, transformer=transformer, scheduler=scheduler)
        ends = None if eos_token_ids is None else list(eos_token_ids)
        self.register_to_config(shift_logits=shift_logits, eos_token_ids=ends)
        self._denoiser: Any = None

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any
    ) -> MaskedDiffusionTextPipeline:
        """As `DiffusionPipeline.from_pretrained`; opens repositories of models too, with no code of theirs.

        Those are LLaDA, Dream, dLLM's models, and every masked language model of transformers: see
        `load_published_text`, which gets all arguments. Their scheduler is LLaDA's, the surest token first, unless
        `scheduler` is given; another tokenizer is given as `tokenizer`, an object or a name.
        """
        location = {name: kwargs[name] for name in _LOCATION if kwargs.get(name) is not None}
        try:
            cls.load_config(pretrained_model_name_or_path, **location)
        except OSError:  # no pipeline
            scheduler = kwargs.pop("scheduler", None)
            return cls._of(load_published_text(pretrained_model_name_or_path, **kwargs), scheduler)
        return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    @classmethod
    def from_model(
        cls,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        scheduler: MaskedDiffusionScheduler | None = None,
        shift_logits: bool = False,
    ) -> MaskedDiffusionTextPipeline:
        """Around a model that is loaded: mask and ends of text are those that model and tokenizer name."""
        return cls._of(PublishedText.of(model, tokenizer, shift_logits), scheduler)

    @classmethod
    def _of(cls, found: PublishedText, scheduler: MaskedDiffusionScheduler | None) -> MaskedDiffusionTextPipeline:
        if scheduler is None:
            scheduler = ConfidenceScheduler(
                mask_token_id=found.mask_token_id,
                codebook_size=min(len(found.tokenizer), found.model.config.vocab_size),
                masking_schedule="linear",
                rounding="even",
                token_temperature=0,
            )
        return cls(found.tokenizer, found.model, scheduler, found.shift_logits, found.eos_token_ids)

    @property
    def denoiser(self) -> TextDenoiser:
        """The model as it is called: with attention in both directions, aligned logits and partial passes."""
        if self._denoiser is None or self._denoiser.model is not self.transformer:
            self._denoiser = text_denoiser(self.transformer, self.config.shift_logits)
        return self._denoiser

    def enable_cache(self, config: PartialCacheConfig) -> None:
        """Switch partial caching on: `pipe.enable_cache(PartialCacheConfig(num_substeps=2))`."""
        self.denoiser.enable_cache(config)

    def disable_cache(self) -> None:
        """Switch partial caching off."""
        self.denoiser.disable_cache()

    @property
    def mask_token_id(self) -> int:
        """The token that stands where one is to be filled in: the scheduler's."""
        return self.scheduler.config.mask_token_id

    @property
    def num_timesteps(self) -> int:
        """Steps run by the last call."""
        return self._num_timesteps

    @property
    def current_timestep(self) -> Tensor | None:
        return self._current_timestep

    @property
    def interrupt(self) -> bool:
        """Set `pipe._interrupt = True` in a callback to stop; what is still masked then reads as `_`."""
        return self._interrupt

    # --- input --------------------------------------------------------------------------------------------------------

    def check_inputs(
        self,
        prompt: Prompt | Sequence[Prompt] | None,
        input_ids: Tensor | None,
        mask: Tensor | None,
        max_new_tokens: int | None,
        stride: int | None,
        block_length: int | None,
        stop_at_eos: bool | None,
        num_return_sequences: int,
        output_type: str,
        callback_on_step_end_tensor_inputs: Sequence[str],
    ) -> None:
        """Raise `ValueError` for arguments that cannot work, before any work is done."""
        scheduler = self.scheduler
        if not isinstance(scheduler, MaskedDiffusionScheduler):
            raise ValueError(
                f"`scheduler` must be a MaskedDiffusionScheduler, got {type(scheduler).__name__}. Set for example "
                "`pipe.scheduler = MomentScheduler.from_config(pipe.scheduler.config)`."
            )
        denoiser = self.denoiser
        named = denoiser.mask_token_id
        if not 0 <= self.mask_token_id < denoiser.vocab_size or named not in (None, self.mask_token_id):
            rows = f"a row of the model, 0 .. {denoiser.vocab_size - 1}"
            wanted = rows if named is None else f"the model's, {named}"
            raise ValueError(
                f"the scheduler's `mask_token_id` must be {wanted}, got {self.mask_token_id}. Pass the right one to "
                "`from_config` as mask_token_id."
            )
        if len(self.tokenizer) > denoiser.vocab_size:
            raise ValueError(
                f"the tokenizer must have at most {denoiser.vocab_size} tokens, the rows of the model, got "
                f"{len(self.tokenizer)}. Load the tokenizer that the model was trained with."
            )
        if prompt is not None and input_ids is not None:
            raise ValueError("`prompt` and `input_ids` must not both be given, got both. Pass one of them.")
        if prompt is not None and not _are_prompts(prompt):
            raise ValueError(
                "`prompt` must be a string or a list of them, or a chat (a list of messages, each with a `role` and a "
                f"`content`) or a list of them, got {prompt!r}. Pass None to write freely."
            )
        if mask is not None and input_ids is None:
            raise ValueError("`mask` must come with `input_ids`, got it alone. In a prompt write [MASK:5].")
        for name, value in (("max_new_tokens", max_new_tokens), ("stride", stride), ("block_length", block_length)):
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(
                    f"`{name}` must be an integer of at least 1 or None, got {value!r}. Pass None to leave it out."
                )
        if stride is not None and denoiser.model_length is not None and stride > denoiser.model_length:
            raise ValueError(
                f"`stride` must be at most the model's length {denoiser.model_length}, got {stride}. Half of it keeps "
                "half a block as context."
            )
        if not isinstance(num_return_sequences, int) or num_return_sequences < 1:
            raise ValueError(
                f"`num_return_sequences` must be an integer of at least 1, got {num_return_sequences!r}. Pass how many "
                "texts you want of each prompt."
            )
        if stop_at_eos and not self._ends():
            raise ValueError("`stop_at_eos` needs a tokenizer with an `eos_token`, got one without. Leave it out.")
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"`output_type` must be one of {OUTPUT_TYPES}, got {output_type!r}. Pick one of these.")
        unknown = [name for name in callback_on_step_end_tensor_inputs if name not in self._callback_tensor_inputs]
        if unknown:
            raise ValueError(
                f"`callback_on_step_end_tensor_inputs` must be among {self._callback_tensor_inputs}, got {unknown}. "
                "Leave it out to get the sequences."
            )

    def encode_prompt(self, prompt: Prompt) -> Tensor:
        """Ids of a prompt, int64 `(length,)`: of a text the mask where it says `[MASK]`, n of them for `[MASK:n]`.

        The text on either side of a mask span is tokenized by itself, without special tokens. A chat goes through the
        tokenizer's chat template, up to where the answer begins.

        Raises:
            ValueError: an empty prompt, a mask span that does not parse, ids that the model does not have, or a chat
                for a tokenizer without a template.
        """
        if not isinstance(prompt, str):
            if getattr(self.tokenizer, "chat_template", None) is None:
                raise ValueError(
                    "a chat needs a tokenizer with a `chat_template`, got one without. Pass a text, or set it."
                )
            text = self.tokenizer.apply_chat_template(list(prompt), tokenize=False, add_generation_prompt=True)
            ids = self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids
            return self._checked_ids(torch.tensor(ids), "prompt")
        ids, end = [], 0
        for span in [*MASK_SPAN.finditer(prompt), None]:
            text = prompt[end : len(prompt) if span is None else span.start()]
            if "[MASK" in text:
                raise ValueError(
                    "a mask span must read [MASK] or [MASK:n], n from 1 to 999999, got "
                    f"{text[text.index('[MASK') :][:20]!r}. Write for example [MASK:5] where five tokens are missing."
                )
            if text:
                ids += self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids
            if span is not None:
                ids += [self.mask_token_id] * int(span[1] or 1)
                end = span.end()
        if not ids:
            raise ValueError("`prompt` must hold at least one token, got ''. Pass None to write freely.")
        return self._checked_ids(torch.tensor(ids), "prompt")

    def _checked_ids(self, ids: Tensor, name: str) -> Tensor:
        size = self.denoiser.vocab_size
        if bool(((ids < 0) | (ids >= size)).any()):
            raise ValueError(
                f"`{name}` must hold ids in 0 .. {size - 1}, the mask being {self.mask_token_id}, got "
                f"{int(ids.min())} to {int(ids.max())}. Load the tokenizer that the model was trained with."
            )
        return ids

    def _rows_of_ids(self, input_ids: Tensor, mask: Tensor | None) -> list[Tensor]:
        if input_ids.ndim != 2 or input_ids.dtype != torch.int64 or not input_ids.numel():
            raise ValueError(
                f"`input_ids` must be int64 of shape (batch_size, length), got {input_ids.dtype} "
                f"{tuple(input_ids.shape)}. Pass `tokenizer(texts, return_tensors='pt').input_ids`."
            )
        if mask is not None and (mask.shape != input_ids.shape or mask.dtype != torch.bool):
            raise ValueError(
                f"`mask` must be bool of the shape of `input_ids`, {tuple(input_ids.shape)}, got {mask.dtype} "
                f"{tuple(mask.shape)}. True is where a token is to be filled in."
            )
        ids = self._checked_ids(input_ids, "input_ids")
        return list(ids if mask is None else ids.masked_fill(mask.to(ids.device), self.mask_token_id))

    def prepare_sequences(
        self,
        prompt: Prompt | Sequence[Prompt] | None,
        input_ids: Tensor | None,
        mask: Tensor | None,
        max_new_tokens: int | None,
        stride: int | None,
    ) -> list[Tensor]:
        """The sequences to fill in, one for each prompt, int64 `(length,)`, masks included."""
        length, mask_token_id = self.denoiser.model_length, self.mask_token_id
        if input_ids is not None:
            known = self._rows_of_ids(input_ids, mask)
        elif prompt is not None:
            known = [self.encode_prompt(one) for one in _as_list(prompt)]
        else:
            known = [torch.empty(0, dtype=torch.int64)]
        sequences = []
        for ids in known:
            fills_in = mask is not None or bool((ids == mask_token_id).any())
            room = [n for n in (self.default_max_new_tokens, length and max(length - len(ids), 0)) if n is not None]
            free = 0 if fills_in else min(room)
            new = free if max_new_tokens is None else max_new_tokens
            total = len(ids) + new
            if length is not None and total > length and stride is None:
                raise ValueError(
                    f"prompt and new tokens must fit the model's length {length}, got {len(ids)} + {new}. Pass "
                    f"`stride`, for example {max(length // 2, 1)}, to write block by block, or fewer tokens."
                )
            if not new and not fills_in:
                raise ValueError(
                    f"a prompt must leave room for new tokens, got one of {len(ids)} for a model of {length}. Pass "
                    "`max_new_tokens` and `stride` to write on."
                )
            sequences.append(torch.nn.functional.pad(ids, (0, new), value=mask_token_id))
        return sequences

    # --- output -------------------------------------------------------------------------------------------------------

    def decode_sequences(self, sequences: Iterable[Tensor], mask_text: str = "_") -> list[str]:
        """Texts of sequences that may still hold masks, which read as `mask_text`: what a streaming callback shows."""
        mask_token_id = self.mask_token_id

        def text(ids: list[int]) -> str:
            runs = ((masked, list(run)) for masked, run in groupby(ids, lambda token: token == mask_token_id))
            return "".join(
                mask_text * len(run) if masked else self.tokenizer.decode(run, skip_special_tokens=True)
                for masked, run in runs
            )

        return [text(ids.tolist()) for ids in sequences]

    def _ends(self) -> list[int]:
        """Tokens that end a text."""
        if self.config.eos_token_ids is not None:
            return list(self.config.eos_token_ids)
        return [] if self.tokenizer.eos_token_id is None else [self.tokenizer.eos_token_id]

    def _cut_at_eos(self, sequence: Tensor, prompt_length: int) -> Tensor:
        """Up to the first end of text that was written before any mask, itself included."""
        ends = torch.isin(sequence, torch.tensor(self._ends(), device=sequence.device)).nonzero()[:, 0]
        first_mask = _first(sequence == self.mask_token_id)
        ends = ends[(ends >= prompt_length) & (ends < first_mask)]
        return sequence[: int(ends[0]) + 1] if len(ends) else sequence

    # --- the call -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    @replace_example_docstring(EXAMPLE_DOC_STRING)
    def __call__(
        self,
        prompt: Prompt | Sequence[Prompt] | None = None,
        num_inference_steps: int = 64,
        max_new_tokens: int | None = None,
        num_return_sequences: int = 1,
        input_ids: Tensor | None = None,
        mask: Tensor | None = None,
        stride: int | None = None,
        block_length: int | None = None,
        stop_at_eos: bool | None = None,
        guidance_scale: float = 1.0,
        temperature: float | Sequence[float] | None = None,
        generator: Generators = None,
        output_type: str = "text",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., dict] | PipelineCallback | MultiPipelineCallbacks | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("sequences",),
    ) -> MaskedDiffusionTextPipelineOutput | tuple:
        """
        Write text.

        Args:
            prompt (`str`, chat, or list of these, *optional*): texts to go on from, of any lengths; where one holds
                `[MASK]` or `[MASK:n]` these places are filled in instead. A chat, a list of messages with `role` and
                `content`, is answered. None writes freely.
            num_inference_steps (`int`): the most model passes for a block; see the scheduler.
            max_new_tokens (`int`, *optional*): tokens to write after the prompt; None fills the model's length, at most
                `default_max_new_tokens`, or only the places to be filled in.
            num_return_sequences (`int`): texts of each prompt.
            input_ids (int64 tensor, *optional*): ids `(batch_size, length)` instead of a prompt.
            mask (bool tensor, *optional*): with `input_ids`, True where a token is to be filled in; the others come
                back unchanged.
            stride (`int`, *optional*): allows sequences longer than the model, filled in from left to right block by
                block: each sees the `model_length - stride` tokens before it. None refuses them.
            block_length (`int`, *optional*): fills in so many tokens at a time, from left to right, while the model
                sees all of the sequence; `num_inference_steps` are those of a block. None fills in all at once.
            stop_at_eos (`bool`, *optional*): end a sequence with the first end of text after its prompt; None does so
                for chats.
            guidance_scale (`float`): w in `l + (w - 1) (l - l')`, l the logits and l' those with the prompt masked; 1
                is no guidance, anything else runs the model twice as often.
            temperature (`float` or pair, *optional*): choice temperature for this call, see
                `MaskedDiffusionScheduler.set_timesteps`; None keeps the scheduler's.
            generator (`torch.Generator` or list, *optional*): one for the batch, or one per sequence, which makes a
                text independent of the others in its batch.
            output_type (`str`): `"text"`, or `"ids"` to leave the texts out.
            return_dict (`bool`): return an `MaskedDiffusionTextPipelineOutput` rather than a tuple.
            callback_on_step_end (*optional*): called as `callback(pipe, step, timestep, {{"sequences": ids}})` after
                each step, with the block that is being filled in, `(rows, block_length)`, padded at the end; returns
                such a dict, whose sequences are used from there on. `pipe.decode_sequences` shows them.
            callback_on_step_end_tensor_inputs (list of `str`): the tensors that the callback gets.

        Examples:

        Returns:
            [`MaskedDiffusionTextPipelineOutput`] or `tuple`: `sequences`, `texts`, `num_model_passes`.

        Raises:
            ValueError: for arguments that cannot work, before any model call.
        """
        if isinstance(callback_on_step_end, PipelineCallback | MultiPipelineCallbacks):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        self.check_inputs(
            prompt,
            input_ids,
            mask,
            max_new_tokens,
            stride,
            block_length,
            stop_at_eos,
            num_return_sequences,
            output_type,
            callback_on_step_end_tensor_inputs,
        )
        prepared = self.prepare_sequences(prompt, input_ids, mask, max_new_tokens, stride)
        batch_size = len(prepared) * num_return_sequences
        check_generators(generator, batch_size)
        self.scheduler.set_timesteps(num_inference_steps, temperature)
        self._interrupt, self._num_timesteps = False, 0
        self._current_timestep: Tensor | None = None
        self.maybe_free_model_hooks()  # a call that raised has not

        device, mask_token_id = self._execution_device, self.mask_token_id
        sequences = [ids.to(device).clone() for ids in prepared for _ in range(num_return_sequences)]
        prompts = [ids != mask_token_id for ids in sequences]
        prompt_lengths = [_first(~known) for known in prompts]
        is_chat = [False] * len(prepared) if prompt is None else [not isinstance(one, str) for one in _as_list(prompt)]
        answers = [chat for chat in is_chat for _ in range(num_return_sequences)]
        stops = [chat if stop_at_eos is None else stop_at_eos for chat in answers]
        passes = torch.zeros(batch_size, dtype=torch.int64, device=device)

        while not self._interrupt and (
            rows := [r for r, ids in enumerate(sequences) if bool((ids == mask_token_id).any())]
        ):
            parts = [self._next_part(sequences[row], stride, block_length) for row in rows]
            windows = [sequences[row][window] for row, (window, _) in zip(rows, parts, strict=True)]
            filled = self._fill_in(
                windows,
                [block for _, block in parts],
                None if guidance_scale == 1 else [prompts[r][w] for r, (w, _) in zip(rows, parts, strict=True)],
                guidance_scale,
                [generator[row] for row in rows] if isinstance(generator, Sequence) else generator,
                passes,
                rows,
                callback_on_step_end,
                callback_on_step_end_tensor_inputs,
            )
            for row, (window, _), ids in zip(rows, parts, filled, strict=True):
                sequences[row][window] = ids
                if stops[row]:
                    sequences[row] = self._cut_at_eos(sequences[row], prompt_lengths[row])
        self._current_timestep = None

        texts = None
        if output_type == "text":
            starts = [length if chat else 0 for chat, length in zip(answers, prompt_lengths, strict=True)]
            texts = self.decode_sequences(ids[start:] for ids, start in zip(sequences, starts, strict=True))
        self.maybe_free_model_hooks()
        output = MaskedDiffusionTextPipelineOutput(sequences, texts, passes.tolist())
        return output if return_dict else (output.sequences, output.texts, output.num_model_passes)

    def _next_part(self, sequence: Tensor, stride: int | None, block_length: int | None) -> tuple[slice, slice]:
        """What the model sees of a sequence next, and the part of that which is filled in.

        A window holds `stride` places from the first mask on, with what stands before them; a block begins at the first
        mask.
        """
        length = min(self.denoiser.model_length or len(sequence), len(sequence))
        first_mask = _first(sequence == self.mask_token_id)
        context = length - min(stride or length, length)
        start = max(min(first_mask - context, len(sequence) - length), 0)
        block = (
            slice(0, length) if block_length is None else slice(first_mask - start, first_mask - start + block_length)
        )
        return slice(start, start + length), slice(block.start, min(block.stop, length))

    def _fill_in(
        self,
        windows: list[Tensor],
        blocks: list[slice],
        prompts: list[Tensor] | None,
        guidance_scale: float,
        generator: Generators,
        passes: Tensor,
        rows_of_windows: list[int],
        callback_on_step_end: Callable[..., dict] | PipelineCallback | MultiPipelineCallbacks | None,
        callback_on_step_end_tensor_inputs: Sequence[str],
    ) -> list[Tensor]:
        """Windows without masks in their blocks; `passes` counts the model passes of each sequence."""
        lengths = torch.tensor([len(window) for window in windows], device=windows[0].device)
        # What pads is hidden from the model; it only must not be the mask.
        padding = 0 if self.mask_token_id else 1
        seen = pad_sequence(windows, batch_first=True, padding_value=padding)
        places = torch.arange(seen.shape[1], device=seen.device)
        attention_mask = None if bool((lengths == seen.shape[1]).all()) else places < lengths[:, None]
        size = max(block.stop - block.start for block in blocks)
        # Where each position of a block stands. A shorter block goes on with what stands after it, and before it: all
        # that is known.
        starts = torch.tensor([block.start for block in blocks], device=seen.device)
        block_places = (starts[:, None] + places[:size]) % seen.shape[1]
        whole = size == seen.shape[1] and bool((starts == 0).all())
        sample = seen if whole else seen.gather(1, block_places)
        hidden = None if prompts is None else pad_sequence(prompts, batch_first=True, padding_value=False)
        row_ids = torch.tensor(rows_of_windows, device=seen.device)
        first_step, mask_token_id, denoiser = self._num_timesteps, self.mask_token_id, self.denoiser

        def logits_of(
            context: str,
            tokens: Tensor,
            t: Tensor,
            rows: Tensor | slice,
            positions: Tensor | None,
            hidden: Tensor | None,
        ) -> Tensor:
            of_rows = "" if isinstance(rows, slice) else " of some rows"  # what is cached of all rows stays
            with denoiser.cache_context(f"{context}{of_rows}"):
                if positions is not None:
                    if not whole:
                        stand = block_places.gather(1, torch.where(positions < 0, ~positions, positions))
                        positions = torch.where(positions < 0, ~stand, stand)
                    return denoiser(tokens, t, positions=positions, attention_mask=attention_mask)
                visible = None if attention_mask is None else attention_mask[rows]
                if whole:
                    at, ids = None, tokens
                else:
                    at = block_places[rows]
                    ids = seen[rows].scatter(1, at, tokens)
                if hidden is not None:
                    ids = ids.masked_fill(hidden[rows], mask_token_id)
                return denoiser(ids, t, attention_mask=visible, logits_at=at)

        def denoise_step(sample: Tensor, t: Tensor, rows: Tensor | slice, positions: Tensor | None = None) -> Tensor:
            self._current_timestep = t  # diffusers' caches ask for it
            if positions is None:
                passes[row_ids[rows]] += (sample == mask_token_id).any(-1)  # a finished row gains nothing from a pass
            logits = logits_of("cond", sample, t, rows, positions, None)
            if hidden is None:
                return logits
            return logits_of("uncond", sample, t, rows, positions, hidden).lerp_(logits, guidance_scale)

        def on_step_end(i: int, t: Tensor, sample: Tensor) -> Tensor:
            self._num_timesteps = first_step + i + 1
            if callback_on_step_end is not None:
                given = {"sequences": sample} if "sequences" in callback_on_step_end_tensor_inputs else {}
                sample = callback_on_step_end(self, first_step + i, t, given).pop("sequences", sample)
            if is_torch_xla_available():
                xm.mark_step()
            return sample

        try:
            sample = denoise(
                denoise_step,
                self.scheduler,
                sample,
                generator,
                reuse_logits=not denoiser.time_conditioning,
                partial_cache=denoiser.partial_cache,
                lengths=lengths,
                progress_bar=self.progress_bar,
                on_step_end=on_step_end,
                interrupted=lambda: self.interrupt,
            )
        finally:  # what caches hold is freed, also after an error
            denoiser._reset_stateful_cache()
        filled = sample if whole else seen.scatter(1, block_places, sample)
        return [ids[: len(window)] for ids, window in zip(filled, windows, strict=True)]


def _is_prompt(value: Any) -> bool:
    """Whether it is one text or one chat."""
    if isinstance(value, str):
        return True
    return (
        isinstance(value, Sequence)
        and len(value) > 0
        and all(isinstance(message, Mapping) and {"role", "content"} <= message.keys() for message in value)
    )


def _are_prompts(value: Any) -> bool:
    return _is_prompt(value) or (isinstance(value, list | tuple) and len(value) > 0 and all(map(_is_prompt, value)))


def _as_list(prompt: Prompt | Sequence[Prompt]) -> list[Any]:
    return [prompt] if _is_prompt(prompt) else list(prompt)


def _first(wanted: Tensor) -> int:
    """Where the first True stands, or the length where there is none."""
    found = wanted.nonzero()
    return int(found[0]) if len(found) else len(wanted)
