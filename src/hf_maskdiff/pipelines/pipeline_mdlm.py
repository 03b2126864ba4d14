"""Text generation and infilling by filling in masked tokens."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.utils import BaseOutput, is_torch_xla_available, replace_example_docstring
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ..hub import PipelineRepositoryMixin
from ..models import MDLMTransformer
from ..sampling import Generators, check_generators
from ..schedulers import AncestralScheduler, MaskedDiffusionScheduler
from .denoising import denoise

if is_torch_xla_available():
    import torch_xla.core.xla_model as xm

EXAMPLE_DOC_STRING = """
    Examples:
        ```py
        >>> from hf_maskdiff import MDLMPipeline

        >>> pipe = MDLMPipeline.from_pretrained("pipelines/mdlm-shakespeare")
        >>> text = pipe("ROMEO:", num_inference_steps=32).texts[0]

        >>> pipe(["JULIET:", "First Citizen:"], num_return_sequences=2).texts  # four texts
        >>> pipe("To be, or [MASK:12] question.").texts  # infilling: twelve tokens
        >>> pipe("KING", max_new_tokens=500, stride=32).texts  # longer than the model, by sliding blocks
        ```
"""

OUTPUT_TYPES = ("text", "ids")
MASK_SPAN = re.compile(r"\[MASK(?::([1-9][0-9]{0,5}))?\]")
# The tokenizer of the published models, whose repositories hold none.
PUBLISHED_TOKENIZER = "openai-community/gpt2"
_LOCATION = ("cache_dir", "force_download", "proxies", "token", "revision", "local_files_only")


@dataclass
class MDLMPipelineOutput(BaseOutput):
    """Output of `MDLMPipeline`.

    Args:
        sequences: token ids of each sequence, prompt included, int64 `(length,)`; lengths differ.
        texts: the sequences as text; None for `output_type="ids"`.
        num_model_passes: how often the model was run for each sequence, partial passes (`PartialCacheConfig`) aside.
    """

    sequences: list[Tensor]
    texts: list[str] | None
    num_model_passes: list[int]


class MDLMPipeline(PipelineRepositoryMixin, DiffusionPipeline):
    r"""Writes, continues and fills in text with any scheduler of this package; swap `pipe.scheduler` freely.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): its ids are rows of the transformer.
        transformer ([`MDLMTransformer`]): the denoiser, token ids to logits; its last row is the mask.
        scheduler ([`MaskedDiffusionScheduler`]): which positions are revealed when, and at what temperature.
    """

    model_cpu_offload_seq = "transformer"
    card_pipeline_tag = "text-generation"
    card_tags = ("mdlm",)
    card_example = 'print(pipe("ROMEO:", num_inference_steps=32).texts[0])'
    _callback_tensor_inputs = ["sequences"]  # noqa: RUF012 - diffusers' name and type

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, transformer: MDLMTransformer, scheduler: MaskedDiffusionScheduler
    ) -> None:
        super().__init__()
        self.register_modules(tokenizer=tokenizer, transformer=transformer, scheduler=scheduler)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> MDLMPipeline:
        """As `DiffusionPipeline.from_pretrained`; opens the repositories of MDLM's authors too.

        Those (kuleshov-group/mdlm-owt) hold a model and no tokenizer: it is `openai-community/gpt2` unless `tokenizer`
        is given, an object or a name. The scheduler is their own, `AncestralScheduler`, unless `scheduler` is given.
        """
        location = {name: kwargs[name] for name in _LOCATION if kwargs.get(name) is not None}
        try:
            cls.load_config(pretrained_model_name_or_path, **location)
        except OSError as error:  # no pipeline
            try:
                config = MDLMTransformer.load_config(pretrained_model_name_or_path, **location)
            except OSError:
                raise error from None
            if config.get("model_type") != "mdlm":
                raise
        else:
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

        tokenizer = kwargs.pop("tokenizer", PUBLISHED_TOKENIZER)
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            tokenizer = AutoTokenizer.from_pretrained(tokenizer)
        scheduler = kwargs.pop("scheduler", None)
        transformer = kwargs.pop("transformer", None)
        if transformer is None:
            transformer = MDLMTransformer.from_pretrained(pretrained_model_name_or_path, **kwargs)
        if scheduler is None:
            mask_token_id = transformer.config.vocab_size - 1
            scheduler = AncestralScheduler(mask_token_id=mask_token_id, codebook_size=mask_token_id)
        return cls(tokenizer, transformer, scheduler)

    def transformers_config(self) -> dict[str, Any]:
        """`config.json` of the model, by which `AutoModelForMaskedLM` opens the repository too."""
        settings = {name: value for name, value in self.transformer.config.items() if not name.startswith("_")}
        weights = "transformer/diffusion_pytorch_model.safetensors"
        return {**settings, "model_type": "mdlm", "transformers_weights": weights}

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
        prompt: str | Sequence[str] | None,
        input_ids: Tensor | None,
        mask: Tensor | None,
        max_new_tokens: int | None,
        stride: int | None,
        stop_at_eos: bool,
        num_return_sequences: int,
        output_type: str,
        callback_on_step_end_tensor_inputs: Sequence[str],
    ) -> None:
        """Raise `ValueError` for arguments that cannot work, before any work is done."""
        config, scheduler = self.transformer.config, self.scheduler
        if not isinstance(scheduler, MaskedDiffusionScheduler):
            raise ValueError(
                f"`scheduler` must be a MaskedDiffusionScheduler, got {type(scheduler).__name__}. Set for example "
                "`pipe.scheduler = MomentScheduler.from_config(pipe.scheduler.config)`."
            )
        if scheduler.config.mask_token_id != config.vocab_size - 1:
            raise ValueError(
                f"the scheduler's `mask_token_id` must be the model's last row, {config.vocab_size - 1}, got "
                f"{scheduler.config.mask_token_id}. Pass mask_token_id={config.vocab_size - 1} to `from_config`."
            )
        if len(self.tokenizer) > config.vocab_size:
            raise ValueError(
                f"the tokenizer must have at most {config.vocab_size} tokens, the rows of the model, got "
                f"{len(self.tokenizer)}. Load the tokenizer that the model was trained with."
            )
        if prompt is not None and input_ids is not None:
            raise ValueError("`prompt` and `input_ids` must not both be given, got both. Pass one of them.")
        if (
            prompt is not None
            and not isinstance(prompt, str)
            and not (isinstance(prompt, Sequence) and prompt and all(isinstance(p, str) for p in prompt))
        ):
            raise ValueError(f"`prompt` must be a string or a list of them, got {prompt!r}. Pass None to write freely.")
        if mask is not None and input_ids is None:
            raise ValueError("`mask` must come with `input_ids`, got it alone. In a prompt write [MASK:5].")
        for name, value in (("max_new_tokens", max_new_tokens), ("stride", stride)):
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(
                    f"`{name}` must be an integer of at least 1 or None, got {value!r}. Pass None to leave it out."
                )
        if stride is not None and stride > config.model_length:
            raise ValueError(
                f"`stride` must be at most the model's length {config.model_length}, got {stride}. Half of it keeps "
                "half a block as context."
            )
        if not isinstance(num_return_sequences, int) or num_return_sequences < 1:
            raise ValueError(
                f"`num_return_sequences` must be an integer of at least 1, got {num_return_sequences!r}. Pass how many "
                "texts you want of each prompt."
            )
        if stop_at_eos and self.tokenizer.eos_token_id is None:
            raise ValueError("`stop_at_eos` needs a tokenizer with an `eos_token`, got one without. Leave it out.")
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"`output_type` must be one of {OUTPUT_TYPES}, got {output_type!r}. Pick one of these.")
        unknown = [name for name in callback_on_step_end_tensor_inputs if name not in self._callback_tensor_inputs]
        if unknown:
            raise ValueError(
                f"`callback_on_step_end_tensor_inputs` must be among {self._callback_tensor_inputs}, got {unknown}. "
                "Leave it out to get the sequences."
            )

    def encode_prompt(self, prompt: str) -> Tensor:
        """Ids of a prompt, int64 `(length,)`, the mask where the text says `[MASK]`, n of them for `[MASK:n]`.

        The text on either side of a mask span is tokenized by itself.

        Raises:
            ValueError: an empty prompt, a mask span that does not parse, or ids that the model does not have.
        """
        mask_token_id, ids, end = self.transformer.config.vocab_size - 1, [], 0
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
                ids += [mask_token_id] * int(span[1] or 1)
                end = span.end()
        if not ids:
            raise ValueError("`prompt` must hold at least one token, got ''. Pass None to write freely.")
        return self._checked_ids(torch.tensor(ids), "prompt")

    def _checked_ids(self, ids: Tensor, name: str) -> Tensor:
        mask_token_id = self.transformer.config.vocab_size - 1
        if bool(((ids < 0) | (ids > mask_token_id)).any()):
            raise ValueError(
                f"`{name}` must hold ids in 0 .. {mask_token_id}, the mask being the last, got {int(ids.min())} "
                f"to {int(ids.max())}. Load the tokenizer that the model was trained with."
            )
        return ids

    def _rows_of_ids(self, input_ids: Tensor, mask: Tensor | None) -> list[Tensor]:
        mask_token_id = self.transformer.config.vocab_size - 1
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
        return list(ids if mask is None else ids.masked_fill(mask.to(ids.device), mask_token_id))

    def prepare_sequences(
        self,
        prompt: str | Sequence[str] | None,
        input_ids: Tensor | None,
        mask: Tensor | None,
        max_new_tokens: int | None,
        stride: int | None,
    ) -> list[Tensor]:
        """The sequences to fill in, one for each prompt, int64 `(length,)`, masks included."""
        length, mask_token_id = self.transformer.config.model_length, self.transformer.config.vocab_size - 1
        if input_ids is not None:
            known = self._rows_of_ids(input_ids, mask)
        elif prompt is not None:
            known = [self.encode_prompt(text) for text in ([prompt] if isinstance(prompt, str) else prompt)]
        else:
            known = [torch.empty(0, dtype=torch.int64)]
        sequences = []
        for ids in known:
            fills_in = mask is not None or bool((ids == mask_token_id).any())
            free = 0 if fills_in else max(length - len(ids), 0)
            new = free if max_new_tokens is None else max_new_tokens
            total = len(ids) + new
            if total > length and stride is None:
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
        mask_token_id = self.transformer.config.vocab_size - 1

        def text(ids: list[int]) -> str:
            runs = ((masked, list(run)) for masked, run in groupby(ids, lambda token: token == mask_token_id))
            return "".join(
                mask_text * len(run) if masked else self.tokenizer.decode(run, skip_special_tokens=True)
                for masked, run in runs
            )

        return [text(ids.tolist()) for ids in sequences]

    def _cut_at_eos(self, sequence: Tensor, prompt_length: int) -> Tensor:
        """Up to the first end of text that was written before any mask, itself included."""
        ends = (sequence == self.tokenizer.eos_token_id).nonzero()[:, 0]
        masked = (sequence == self.transformer.config.vocab_size - 1).nonzero()[:, 0]
        first_mask = int(masked[0]) if len(masked) else len(sequence)
        ends = ends[(ends >= prompt_length) & (ends < first_mask)]
        return sequence[: int(ends[0]) + 1] if len(ends) else sequence

    # --- the call -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    @replace_example_docstring(EXAMPLE_DOC_STRING)
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        num_inference_steps: int = 64,
        max_new_tokens: int | None = None,
        num_return_sequences: int = 1,
        input_ids: Tensor | None = None,
        mask: Tensor | None = None,
        stride: int | None = None,
        stop_at_eos: bool = False,
        temperature: float | Sequence[float] | None = None,
        generator: Generators = None,
        output_type: str = "text",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., dict] | PipelineCallback | MultiPipelineCallbacks | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("sequences",),
    ) -> MDLMPipelineOutput | tuple:
        """
        Write text.

        Args:
            prompt (`str` or list, *optional*): texts to go on from, of any lengths; where one holds `[MASK]` or
                `[MASK:n]` these places are filled in instead. None writes freely.
            num_inference_steps (`int`): the most model passes for a block; see the scheduler.
            max_new_tokens (`int`, *optional*): tokens to write after the prompt; None fills the model's length, or only
                the places to be filled in.
            num_return_sequences (`int`): texts of each prompt.
            input_ids (int64 tensor, *optional*): ids `(batch_size, length)` instead of a prompt.
            mask (bool tensor, *optional*): with `input_ids`, True where a token is to be filled in; the others come
                back unchanged.
            stride (`int`, *optional*): allows sequences longer than the model, filled in from left to right block by
                block: each sees the `model_length - stride` tokens before it. None refuses them.
            stop_at_eos (`bool`): end a sequence with the first end of text after its prompt.
            temperature (`float` or pair, *optional*): choice temperature for this call, see
                `MaskedDiffusionScheduler.set_timesteps`; None keeps the scheduler's.
            generator (`torch.Generator` or list, *optional*): one for the batch, or one per sequence, which makes a
                text independent of the others in its batch.
            output_type (`str`): `"text"`, or `"ids"` to leave the texts out.
            return_dict (`bool`): return an `MDLMPipelineOutput` rather than a tuple.
            callback_on_step_end (*optional*): called as `callback(pipe, step, timestep, {{"sequences": ids}})` after
                each step, with the block that is being filled in, `(rows, block_length)`, padded at the end; returns
                such a dict, whose sequences are used from there on. `pipe.decode_sequences` shows them.
            callback_on_step_end_tensor_inputs (list of `str`): the tensors that the callback gets.

        Examples:

        Returns:
            [`MDLMPipelineOutput`] or `tuple`: `sequences`, `texts`, `num_model_passes`.

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

        device, mask_token_id = self._execution_device, self.transformer.config.vocab_size - 1
        sequences = [ids.to(device).clone() for ids in prepared for _ in range(num_return_sequences)]
        prompt_lengths = [_first(ids == mask_token_id) for ids in sequences]
        passes = torch.zeros(batch_size, dtype=torch.int64, device=device)

        while not self._interrupt and (
            rows := [r for r, ids in enumerate(sequences) if bool((ids == mask_token_id).any())]
        ):
            blocks = [self._next_block(sequences[row], stride) for row in rows]
            filled = self._fill_in(
                [sequences[row][block] for row, block in zip(rows, blocks, strict=True)],
                [generator[row] for row in rows] if isinstance(generator, Sequence) else generator,
                passes,
                rows,
                callback_on_step_end,
                callback_on_step_end_tensor_inputs,
            )
            for row, block, ids in zip(rows, blocks, filled, strict=True):
                sequences[row][block] = ids
                if stop_at_eos:
                    sequences[row] = self._cut_at_eos(sequences[row], prompt_lengths[row])
        self._current_timestep = None

        texts = self.decode_sequences(sequences) if output_type == "text" else None
        self.maybe_free_model_hooks()
        output = MDLMPipelineOutput(sequences, texts, passes.tolist())
        return output if return_dict else (output.sequences, output.texts, output.num_model_passes)

    def _next_block(self, sequence: Tensor, stride: int | None) -> slice:
        """The part of a sequence that is filled in next: `stride` new tokens with what stands before them."""
        length = self.transformer.config.model_length
        context = length - (length if stride is None else stride)
        first_mask = _first(sequence == self.transformer.config.vocab_size - 1)
        start = max(min(first_mask - context, len(sequence) - length), 0)
        return slice(start, start + length)

    def _fill_in(
        self,
        blocks: list[Tensor],
        generator: Generators,
        passes: Tensor,
        rows_of_blocks: list[int],
        callback_on_step_end: Callable[..., dict] | PipelineCallback | MultiPipelineCallbacks | None,
        callback_on_step_end_tensor_inputs: Sequence[str],
    ) -> list[Tensor]:
        """Blocks without masks; `passes` counts the model passes of each sequence."""
        lengths = [len(block) for block in blocks]
        # What pads is hidden from the model; it only must not be the mask.
        sample = pad_sequence(blocks, batch_first=True, padding_value=0)
        real = (
            torch.arange(sample.shape[1], device=sample.device) < torch.tensor(lengths, device=sample.device)[:, None]
        )
        attention_mask = None if min(lengths) == sample.shape[1] else real
        row_ids = torch.tensor(rows_of_blocks, device=sample.device)
        first_step, mask_token_id = self._num_timesteps, self.transformer.config.vocab_size - 1

        def denoiser(sample: Tensor, t: Tensor, rows: Tensor | slice, positions: Tensor | None = None) -> Tensor:
            self._current_timestep = t  # diffusers' caches ask for it
            visible = None if attention_mask is None else attention_mask[rows]
            partial = {} if positions is None else {"positions": positions}
            if positions is None:
                passes[row_ids[rows]] += (sample == mask_token_id).any(-1)  # a finished row gains nothing from a pass
            with self.transformer.cache_context("cond"):
                return self.transformer(sample, t, attention_mask=visible, return_dict=False, **partial)[0]

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
                denoiser,
                self.scheduler,
                sample,
                generator,
                reuse_logits=not self.transformer.config.time_conditioning,
                num_substeps=self.transformer.num_substeps,
                progress_bar=self.progress_bar,
                on_step_end=on_step_end,
                interrupted=lambda: self.interrupt,
            )
        finally:  # what caches hold is freed, also after an error
            self.transformer._reset_stateful_cache()
        return [ids[:length] for ids, length in zip(sample, lengths, strict=True)]


def _first(wanted: Tensor) -> int:
    """Where the first True stands, or the length where there is none."""
    places = wanted.nonzero()
    return int(places[0]) if len(places) else len(wanted)
