"""Text generation and infilling by filling in masked tokens, with any model."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.utils import replace_example_docstring
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from ..attention_rule import BLOCK_CAUSAL, block_causal
from ..hub import PipelineRepositoryMixin
from ..hub_access import stop_out_of_reach
from ..integers import as_integer
from ..models import MDLMTransformer
from ..published import PublishedText
from ..published.malformed import refusing, settings_of
from ..sampling import Generators, check_generators
from ..schedulers import MaskedDiffusionScheduler
from .adapters import require_no_adapters, without_wrapper
from .calls import CallStateMixin, GuidanceScale, PipelineCall
from .checks import (
    check_callback_inputs,
    check_components,
    check_count,
    check_flag,
    check_guidance_scale,
    check_lengths,
    check_output_type,
    tensor_inputs_of,
)
from .logits_rules import LogitsRules
from .published_pipelines import open_published, scheduler_of
from .split_models import generator_of_all, split_component
from .step_end import after_step
from .streaming import InOrder, check_streamer, ending_streams
from .text_blocks import block_settings, check_block_length, grid_of
from .text_caching import TextCachingMixin
from .text_likelihood import LikelihoodMixin
from .text_output import OUTPUT_TYPES, MaskedDiffusionTextPipelineOutput, decode_with_masks, ends_of_text
from .text_prompts import EncodedPrompt, NewTokens, Prompt, PromptEncoder, as_list, check_given, check_tokens
from .text_run import TextRun

EXAMPLE_DOC_STRING = """
    Examples:
        ```py
        >>> import torch
        >>> from hf_maskdiff import MaskedDiffusionTextPipeline

        >>> pipe = MaskedDiffusionTextPipeline.from_pretrained("GSAI-ML/LLaDA-8B-Instruct", dtype=torch.bfloat16)
        >>> chat = [{"role": "user", "content": "Why is the sky blue?"}]
        >>> pipe(chat, max_new_tokens=128, block_length=32, num_inference_steps=16).texts[0]

        >>> pipe(["Once upon a time", "The [MASK:2] of Paris"], max_new_tokens=20).texts
        ```
"""

_LOCATION = ("cache_dir", "force_download", "proxies", "token", "revision", "local_files_only")


class MaskedDiffusionTextPipeline(
    CallStateMixin, TextCachingMixin, LikelihoodMixin, PipelineRepositoryMixin, DiffusionPipeline
):
    r"""Writes, answers and fills in text with any masked model and any scheduler; swap `pipe.scheduler` freely.

    The model may be any of transformers that has `.logits` and attends in both directions, or can be told to: a masked
    language model (ModernBERT, BERT), or a decoder that was trained to fill in masks (LLaDA, Dream). `enable_cache`
    switches a cache on, whatever the model.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): its ids are rows of the model.
        transformer ([`~transformers.PreTrainedModel`] or [`MDLMTransformer`]): the denoiser, token ids to logits.
        scheduler ([`MaskedDiffusionScheduler`]): which positions are revealed when, and at what temperature.
        shift_logits (`bool`): row i - 1 of the model's output predicts position i (Dream).
        eos_token_ids (list of `int`, *optional*): tokens that end a text; None for the tokenizer's own.
        attention (`str`, *optional*): `"block_causal"` if the model was trained to see blocks of `block_size` from left
            to right (SDAR, LLaDA2); None for what the model's configuration says, else it sees everything.
        block_size (`int`, *optional*): size of these blocks.
        blocks_from (`str`): `"start"` counts them from the first token, `"prompt"` from the first behind the prompt.
    """

    model_cpu_offload_seq = "transformer"
    card_pipeline_tag = "text-generation"
    card_task = "masked-diffusion-text-generation"
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
        attention: str | None = None,
        block_size: int | None = None,
        blocks_from: str = "start",
    ) -> None:
        super().__init__()
        self.register_modules(tokenizer=tokenizer, transformer=without_wrapper(transformer), scheduler=scheduler)
        ends = None if eos_token_ids is None else list(eos_token_ids)
        blocks = block_settings(self.transformer, attention, block_size, blocks_from)
        self.register_to_config(shift_logits=shift_logits, eos_token_ids=ends, **blocks)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any
    ) -> MaskedDiffusionTextPipeline:
        """As `DiffusionPipeline.from_pretrained`; also opens repositories of models alone, and runs none of their code.

        Those are LLaDA, LLaDA2, Dream, SDAR, Fast-dLLM v2, BD3-LM, dLLM's models, and every masked language model of
        transformers: see `load_published_text`, which gets all arguments. Their scheduler is LLaDA's, the surest token
        first, unless `scheduler` is given; another tokenizer is given as `tokenizer`, an object or a name. dLLM's types
        do not tell MDLM from BD3LM: `attention="full"` or `attention="block_causal", block_size=32` does.

        `tp_plan="auto"` or `distributed_config`, with `torchrun`, split a model over processes as transformers does;
        each process then makes the same calls.
        """
        location = {name: kwargs[name] for name in _LOCATION if kwargs.get(name) is not None}
        try:
            index = settings_of(
                f"model_index.json in {str(pretrained_model_name_or_path)!r}",
                lambda: cls.load_config(pretrained_model_name_or_path, **location),
            )
        except OSError as error:  # no pipeline
            stop_out_of_reach(error, pretrained_model_name_or_path, location.get("cache_dir"))
            scheduler, blocks_from = kwargs.pop("scheduler", None), kwargs.pop("blocks_from", "start")
            return cls._of(open_published(pretrained_model_name_or_path, **kwargs), scheduler, blocks_from)
        what = f"the pipeline in {str(pretrained_model_name_or_path)!r}"
        with refusing(what, "Fetch its files again.", passed=(RuntimeError, MemoryError)):
            kwargs |= split_component(pretrained_model_name_or_path, index, location, kwargs)
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    @classmethod
    def from_model(
        cls,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        scheduler: MaskedDiffusionScheduler | None = None,
        shift_logits: bool = False,
        attention: str | None = None,
        block_size: int | None = None,
        blocks_from: str = "start",
    ) -> MaskedDiffusionTextPipeline:
        """Make a pipeline of a loaded model; mask and ends of text are those that model and tokenizer name.

        Args:
            model: of transformers, or a `PeftModel` around one.
            tokenizer: its ids are rows of the model.
            scheduler: None for LLaDA's, the surest token first.
            shift_logits: row i - 1 of the model's output predicts position i.
            attention, block_size, blocks_from: which positions the model was trained to see, see the class.
        """
        rule = block_causal(attention, block_size)
        found = PublishedText.of(without_wrapper(model), tokenizer, shift_logits, rule)
        return cls._of(found, scheduler, blocks_from)

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """As diffusers does, with all that makes the folder a repository.

        Raises:
            ValueError: the model has adapters, which the folder could not hold.
        """
        require_no_adapters(self.transformer)
        super().save_pretrained(save_directory, *args, **kwargs)

    @classmethod
    def _of(
        cls, found: PublishedText, scheduler: MaskedDiffusionScheduler | None, blocks_from: str
    ) -> MaskedDiffusionTextPipeline:
        attention = None if found.rule is None else BLOCK_CAUSAL
        block_size = None if found.rule is None else found.rule.block_size
        scheduler = scheduler_of(found) if scheduler is None else scheduler
        model = (found.tokenizer, found.model, scheduler, found.shift_logits, found.eos_token_ids)
        return cls(*model, attention, block_size, blocks_from)

    @property
    def mask_token_id(self) -> int:
        """The token at places that are to be filled in, which the scheduler's configuration names."""
        return self.scheduler.config.mask_token_id

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
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> None:
        """Raise `ValueError` for arguments that cannot work, before any work is done."""
        check_components(self.components)
        check_tokens(self.tokenizer, self.denoiser, self.mask_token_id)
        check_given(prompt, input_ids, mask, attention_mask, token_type_ids)
        check_lengths(self.denoiser.model_length, max_new_tokens, stride, block_length)
        check_block_length(self.denoiser.rule, block_length, stride)
        check_count("num_return_sequences", num_return_sequences, "Pass how many texts you want of each prompt.")
        if stop_at_eos is not None:
            check_flag("stop_at_eos", stop_at_eos, "Leave it out to end chats alone.")
        if stop_at_eos and not ends_of_text(self.tokenizer, self.config.eos_token_ids):
            raise ValueError("`stop_at_eos` needs a tokenizer with an `eos_token`, got one without. Leave it out.")
        check_output_type(output_type, OUTPUT_TYPES)
        check_callback_inputs(callback_on_step_end_tensor_inputs, self._callback_tensor_inputs)

    def encode_prompt(self, prompt: Prompt) -> Tensor:
        """Ids of a prompt, int64 `(length,)`: of a text the mask where it says `[MASK]`, n of them for `[MASK:n]`.

        They are what the tokenizer itself builds of the text, its special tokens included. A chat goes through the
        tokenizer's chat template, up to where the answer begins.

        Raises:
            ValueError: an empty prompt, a mask span that does not parse, ids that the model does not have, or a chat
                for a tokenizer without a template.
        """
        return self._encoder().encode(prompt).ids

    def _encoder(self) -> PromptEncoder:
        return PromptEncoder(self.tokenizer, self.mask_token_id, self.denoiser.vocab_size)

    def prepare_sequences(
        self,
        prompt: Prompt | Sequence[Prompt] | None,
        input_ids: Tensor | None,
        mask: Tensor | None,
        max_new_tokens: int | None,
        stride: int | None,
        attention_mask: Tensor | None = None,
    ) -> list[EncodedPrompt]:
        """The sequences to fill in, one for each prompt, masks included."""
        encoder = self._encoder()
        if input_ids is not None:
            known = encoder.rows_of_ids(input_ids, mask, attention_mask)
        else:
            known = [encoder.encode(one) for one in ([None] if prompt is None else as_list(prompt))]
        room = NewTokens(self.denoiser.model_length, self.default_max_new_tokens, max_new_tokens, stride is not None)
        return [room.after(one, self.mask_token_id, fills_in=mask is not None) for one in known]

    # --- output -------------------------------------------------------------------------------------------------------

    def decode_sequences(self, sequences: Iterable[Tensor], mask_text: str = "_") -> list[str]:
        """Texts of sequences that may still hold masks, which read as `mask_text`: what a streaming callback shows."""
        return decode_with_masks(self.tokenizer, sequences, self.mask_token_id, mask_text)

    # --- the call -----------------------------------------------------------------------------------------------------

    @ending_streams
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
        guidance_scale: GuidanceScale = 1.0,
        temperature: float | Sequence[float] | None = None,
        generator: Generators = None,
        output_type: str = "text",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., dict] | PipelineCallback | MultiPipelineCallbacks | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("sequences",),
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        sampling_temperature: float | None = None,
        *,
        streamer: BaseStreamer | None = None,
        logits_processor: LogitsProcessorList | Sequence[LogitsProcessor] | None = None,
        repetition_penalty: float = 1.0,
        suppress_tokens: Sequence[int] | None = None,
        bad_words_ids: Sequence[Sequence[int]] | None = None,
    ) -> MaskedDiffusionTextPipelineOutput | tuple:
        """
        Write text.

        Args:
            prompt (`str`, chat, or list of these, *optional*): texts to continue, of any lengths; where one holds
                `[MASK]` or `[MASK:n]`, these places are filled in instead; `\\[MASK]` is text, and so is the
                tokenizer's own mask. The tokenizer's special tokens stand around a text, where only the model sees
                them. A chat, a list of messages with `role` and `content`, is answered. None writes from nothing.
            num_inference_steps (`int`): the most model passes for a block; see the scheduler.
            max_new_tokens (`int`, *optional*): tokens to write after the prompt; None fills the model's length, at most
                `default_max_new_tokens`, or only the places to be filled in.
            num_return_sequences (`int`): number of texts for each prompt.
            input_ids (int64 tensor, array or lists, *optional*): ids `(batch_size, length)` instead of a prompt; lists
                may differ in length. The mask's id is a place to fill in.
            mask (bool tensor, *optional*): with `input_ids`, True where a token is to be filled in; the others come
                back unchanged.
            stride (`int`, *optional*): allows sequences longer than the model, filled in from left to right block by
                block: each sees the `model_length - stride` tokens before it. None refuses them.
            block_length (`int`, *optional*): fills in this many tokens at a time, from left to right, while the model
                sees all of the sequence; `num_inference_steps` are those of a block. None fills in all at once, or a
                block at a time where the model sees blocks.
            stop_at_eos (`bool`, *optional*): end a sequence with the first end of text after its prompt; None does so
                for chats.
            guidance_scale (`float` or pair): w in `l + (w - 1) (l - l')`, l the logits and l' those with the prompt
                masked; 1 is no guidance, anything else runs the model twice as often. A pair `(start, end)` is spaced
                evenly over the steps of a block.
            temperature (`float` or pair, *optional*): *choice* temperature for this call, see
                `MaskedDiffusionScheduler.set_timesteps`; None keeps the scheduler's. Not for schedulers without one.
            generator (`torch.Generator` or list, *optional*): one for the batch, or one per sequence, which makes a
                text independent of the others in its batch.
            output_type (`str`): `"text"`, or `"ids"` to leave the texts out.
            return_dict (`bool`): return a `MaskedDiffusionTextPipelineOutput` rather than a tuple.
            callback_on_step_end (*optional*): called as `callback(pipe, step, timestep, {{"sequences": ids}})` after
                each step, with the block that is being filled in, `(rows, block_length)`, padded at the end; returns
                such a dict, whose sequences are used from there on. `pipe.decode_sequences` shows them.
            callback_on_step_end_tensor_inputs (list of `str`): the tensors that the callback gets.
            attention_mask (tensor, array or lists, *optional*): with `input_ids`, 0 or False where padded, on the left
                or on the right: `pipe(**tokenizer(texts, padding=True, return_tensors="pt"))`. Padding is not returned.
            token_type_ids (*optional*): accepted because many tokenizers return them; must be 0.
            sampling_temperature (`float`, *optional*): temperature at which tokens are drawn in this call, 0 for the
                most probable ones; None keeps the scheduler's.
            streamer (`transformers.TextStreamer` or alike, *optional*): gets the text while it is written, the prompt
                first: transformers' streamers in reading order, each token as soon as all before it are known, so use
                `block_length`; a `CanvasStreamer` all of it in every step. For one text; ends with the call, also
                where that fails.
            logits_processor (`transformers.LogitsProcessorList`, *optional*): change the logits of masked positions
                before the scheduler reads them, after guidance. They get all tokens that the model sees, the mask where
                there is none: those that need an order of the tokens are refused.
            repetition_penalty (`float`): tokens that the sequence has become less probable above 1, as in `generate`.
            suppress_tokens (list of `int`, *optional*): tokens that are never drawn, an end of text for example.
            bad_words_ids (list of lists, *optional*): the same, as in `generate`; words of one token each.

        Examples:

        Returns:
            [`MaskedDiffusionTextPipelineOutput`] or `tuple` of its fields.

        Raises:
            ValueError: for arguments that cannot work, before any model call.
        """
        names = tensor_inputs_of(callback_on_step_end, callback_on_step_end_tensor_inputs)
        counts = (num_inference_steps, max_new_tokens, num_return_sequences, stride, block_length)
        num_inference_steps, max_new_tokens, num_return_sequences, stride, block_length = map(as_integer, counts)
        given = (prompt, input_ids, mask, max_new_tokens, stride, block_length, stop_at_eos, num_return_sequences)
        self.check_inputs(*given, output_type, names, attention_mask, token_type_ids)
        check_guidance_scale(guidance_scale)
        bans = (repetition_penalty, suppress_tokens, bad_words_ids)
        sizes = (self.mask_token_id, self.denoiser.vocab_size, self.scheduler.config.codebook_size)
        rules = LogitsRules.of_call(logits_processor, *bans, *sizes)
        prepared = self.prepare_sequences(prompt, input_ids, mask, max_new_tokens, stride, attention_mask)
        batch_size = len(prepared) * num_return_sequences
        check_generators(generator, batch_size)
        check_streamer(streamer, batch_size)
        ids = [one.ids.tolist() for one in prepared]
        asked = (ids, counts, stop_at_eos, guidance_scale, temperature, sampling_temperature, *bans)
        generator = generator_of_all(self.transformer, generator, self.scheduler, *asked)
        scales = (temperature, guidance_scale, sampling_temperature)
        call = PipelineCall(self.scheduler, num_inference_steps, *scales, rules)
        self.maybe_free_model_hooks()  # a call that raised has not

        is_chat = [False] * len(prepared) if prompt is None else [not isinstance(one, str) for one in as_list(prompt)]
        answers = [chat for chat in is_chat for _ in range(num_return_sequences)]
        run = TextRun(
            [one for one in prepared for _ in range(num_return_sequences)],
            answers,
            stops=[chat if stop_at_eos is None else stop_at_eos for chat in answers],
            ends=ends_of_text(self.tokenizer, self.config.eos_token_ids),
            lengths=(self.denoiser.model_length, stride, block_length),
            mask_token_id=self.mask_token_id,
            device=self._execution_device,
            grid=grid_of(self.denoiser.rule, self.config.blocks_from),
        )

        on_step_end = after_step(self, call, callback_on_step_end, names, "sequences")

        with self._running(call):
            stream = None if streamer is None else InOrder(streamer, self.mask_token_id)
            run.fill(self.denoiser, call, generator, self.progress_bar, on_step_end, stream)

        texts = self.decode_sequences(run.written()) if output_type == "text" else None
        self.maybe_free_model_hooks()
        output = MaskedDiffusionTextPipelineOutput(run.sequences, texts, *run.passes.tolist())
        return output if return_dict else tuple(vars(output).values())
