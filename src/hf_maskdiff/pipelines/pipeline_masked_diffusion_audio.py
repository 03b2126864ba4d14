"""Audio by filling in masked codes: variations of a clip, inpainting, continuations, new clips."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, ModelMixin
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.utils import replace_example_docstring
from diffusers.utils.torch_utils import unwrap_module
from torch import Tensor
from transformers import PreTrainedModel

from ..hub import PipelineRepositoryMixin
from ..integers import as_integer
from ..models import VampNetTransformer
from ..sampling import Generators, check_generators
from ..schedulers import MaskedDiffusionScheduler
from ..wav_files import write_wav
from .audio_codecs import AudioCodec, MissingCodec, audio_codec, decode, encode
from .audio_denoising import Stage, fill_in
from .audio_inputs import (
    check_call_defaults,
    check_codes,
    check_models,
    check_no_guidance,
    check_rates,
    check_read,
    check_sources,
    class_ids,
    frames_of,
    overlap_of,
    read_audio,
    read_keep,
)
from .audio_output import MaskedDiffusionAudioPipelineOutput
from .calls import CallStateMixin, GuidanceScale, PipelineCall
from .checks import (
    check_callback_inputs,
    check_components,
    check_count,
    check_guidance_scale,
    check_output_type,
    tensor_inputs_of,
)
from .code_caching import CodeCachingMixin
from .image_inputs import check_counts
from .step_end import after_step

OUTPUT_TYPES = ("pt", "np", "codes")

EXAMPLE_DOC_STRING = """
    Examples:
        ```py
        >>> import soundfile
        >>> from hf_maskdiff import MaskedDiffusionAudioPipeline
        >>> from hf_maskdiff.audio_masks import keep_codebooks, keep_every, keep_outside

        >>> pipe = MaskedDiffusionAudioPipeline.from_pretrained("me/music")
        >>> audio, sampling_rate = soundfile.read("loop.wav", dtype="float32")
        >>> codes = pipe.encode_audio(audio, sampling_rate)
        >>> num_frames = codes.shape[-1]

        >>> keep = keep_every(7, num_frames) & keep_codebooks(3, pipe.num_codebooks)
        >>> variation = pipe(codes=codes, keep=keep, num_inference_steps=24).audios[0]
        >>> pipe.save_wav("variation.wav", variation)

        >>> keep = keep_outside(2.0, 3.5, num_frames, pipe.frame_rate)  # draws these seconds anew
        >>> inpainted = pipe(audio=audio, sampling_rate=sampling_rate, keep=keep).audios[0]
        >>> new = pipe(audio_length_in_s=8.0).audios[0]
        ```
"""


class MaskedDiffusionAudioPipeline(CodeCachingMixin, CallStateMixin, PipelineRepositoryMixin, DiffusionPipeline):
    r"""Draws and varies audio with any scheduler of this package; swap `pipe.scheduler` freely.

    A clip is codes `(num_codebooks, num_frames)`, the coarsest codebook first. `transformer` draws the first of them,
    then `fine_transformer`, where there is one, the others, given the first. Without it the sound is that of the first
    codebooks. Long clips are drawn window after window, in bounded memory.

    Args:
        codec ([`~transformers.PreTrainedModel`], *optional*): turns audio into codes and back: a `DacModel`, an
            `EncodecModel` of whole clips (24 kHz), a `MimiModel`, or any codec that encodes to
            `(batch_size, num_codebooks, num_frames)` as they do, and decodes its first codebooks alone, too. Without
            one codes come in and go out.
        transformer ([`VampNetTransformer`]): the denoiser of the first codebooks, codes to logits.
        scheduler ([`MaskedDiffusionScheduler`]): which codes are revealed when, at what temperature; of both models.
        fine_transformer ([`VampNetTransformer`], *optional*): the denoiser of the other codebooks, which is given the
            first.
        call_defaults (`dict`, *optional*): what `num_inference_steps`, `num_fine_inference_steps`, `guidance_scale` and
            `chunk_length_s` of a call are where it does not say: 12, as many as the former, 1.0 and 10.0 unless named
            here.
        sampling_rate, hop_length (`int`, *optional*): what the models' codec has to have, samples in a second and in a
            frame; a pipeline without a codec tells time by them.
    """

    model_cpu_offload_seq = "transformer->fine_transformer"
    _denoiser_names = ("transformer", "fine_transformer")
    _filled_in = "a clip"
    card_pipeline_tag = "audio-to-audio"
    card_tags = ("audio",)
    card_task = "masked-diffusion-audio-generation"
    _callback_tensor_inputs = ["codes"]  # noqa: RUF012 - diffusers' name and type
    _optional_components = ["codec", "fine_transformer"]  # noqa: RUF012 - diffusers' name and type
    # Its methods are called rather than itself, which hooks of accelerate do not see.
    _exclude_from_cpu_offload = ["codec"]  # noqa: RUF012 - diffusers' name and type

    def __init__(
        self,
        codec: PreTrainedModel | ModelMixin | None,
        transformer: VampNetTransformer,
        scheduler: MaskedDiffusionScheduler,
        fine_transformer: VampNetTransformer | None = None,
        call_defaults: dict[str, Any] | None = None,
        sampling_rate: int | None = None,
        hop_length: int | None = None,
    ) -> None:
        super().__init__()
        check_call_defaults(call_defaults)
        self.register_modules(
            codec=codec, transformer=transformer, scheduler=scheduler, fine_transformer=fine_transformer
        )
        self.register_to_config(
            call_defaults=call_defaults and dict(call_defaults), sampling_rate=sampling_rate, hop_length=hop_length
        )

    @property
    def card_example(self) -> str:  # type: ignore[override]
        """A call that works with this model."""
        label = "class_labels=0, " if self.transformer.config.get("num_classes") else ""
        call = f"pipe({label}audio_length_in_s={min(5.0, self.chunk_length_s):g})"
        made = f"audio = {call}.audios[0]  # (channels, num_samples), at `pipe.sampling_rate`"
        return f'{made}\npipe.save_wav("sound.wav", audio)'

    # --- what is there ------------------------------------------------------------------------------------------------

    @property
    def _codec(self) -> AudioCodec:
        rates = self.config.sampling_rate, self.config.hop_length
        if self.codec is None:
            return MissingCodec(*rates, self.num_codebooks, self.transformer.config.codebook_size)
        found = audio_codec(unwrap_module(self.codec))  # compiled, it is of no kind that tells how to speak with it
        check_rates(found, *rates)
        return found

    @property
    def sampling_rate(self) -> int:
        """Samples in a second of audio, in and out."""
        return self._codec.sampling_rate

    @property
    def frame_rate(self) -> float:
        """Frames of codes in a second."""
        return self._codec.frame_rate

    @property
    def chunk_length_s(self) -> float:
        """Seconds that the models see at a time, where a call does not say."""
        return self._defaults["chunk_length_s"]

    @property
    def num_codebooks(self) -> int:
        """Codebooks that the pipeline draws; the codec may have more."""
        fine = 0 if self.fine_transformer is None else self.fine_transformer.config.num_codebooks
        return self.transformer.config.num_codebooks + fine

    @property
    def _defaults(self) -> dict[str, Any]:
        made = {"num_inference_steps": 12, "guidance_scale": 1.0, "chunk_length_s": 10.0}
        return made | {"num_fine_inference_steps": None} | (self.config.call_defaults or {})

    # --- the codec ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode_audio(self, audio: Any, sampling_rate: int | None, chunk_length_s: float | None = None) -> Tensor:
        """Codes of clips, int64 `(num_clips, num_codebooks, num_frames)` of the codebooks that the pipeline draws.

        Args:
            audio: floats in [-1, 1]: a clip `(num_samples,)` or `(channels, num_samples)`, a list of such of one
                length, or a batch `(num_clips, channels, num_samples)`.
            sampling_rate: of the clips, which must be that of the codec.
            chunk_length_s: seconds encoded at a time; None as in a call.

        Raises:
            ValueError: for audio that the codec cannot read.
        """
        self._codec.require()
        return self._encoded(read_audio(audio, sampling_rate, self._codec), self._chunk(chunk_length_s))

    @torch.no_grad()
    def decode_codes(self, codes: Tensor, chunk_length_s: float | None = None) -> Tensor:
        """Waveforms of codes, float32 `(batch_size, channels, num_samples)`; frames that hold a mask are silent.

        Args:
            codes: int64 `(batch_size, num_codebooks, num_frames)`, of the codec's first codebooks or all.
            chunk_length_s: seconds decoded at a time; None as in a call.

        Raises:
            ValueError: codes that the codec does not have.
        """
        codec = self._codec
        codec.require()
        codes = check_codes(codes, codec.num_codebooks, codec.codebook_size, at_least=1).to(self._execution_device)
        masked = codes == self.scheduler.config.mask_token_id
        audio = decode(codec, codes.masked_fill(masked, 0), self._chunk(chunk_length_s)).float()
        silent = masked.any(1).repeat_interleave(codec.hop_length, 1)[:, : audio.shape[-1]]
        return audio.masked_fill(silent[:, None], 0)

    def save_wav(self, path: str | Path, audio: Any) -> None:
        """Write one of the `audios` of a call as a WAV file of 16 bits; see `hf_maskdiff.wav_files.write_wav`."""
        write_wav(path, audio, self.sampling_rate)

    def _encoded(self, audio: Tensor, chunk: int) -> Tensor:
        audio = audio.to(self._execution_device, self.codec.dtype)
        return encode(self._codec, audio, chunk)[:, : self.num_codebooks]

    def _chunk(self, chunk_length_s: float | None) -> int:
        seconds = self._defaults["chunk_length_s"] if chunk_length_s is None else chunk_length_s
        return frames_of("chunk_length_s", seconds, self.frame_rate)

    # --- input --------------------------------------------------------------------------------------------------------

    def check_inputs(
        self,
        counts: dict[str, int],
        num_waveforms_per_prompt: int,
        guidance_scale: GuidanceScale,
        batch_size: int,
        generator: Generators,
        output_type: str,
        callback_on_step_end_tensor_inputs: Sequence[str],
    ) -> None:
        """Raise `ValueError` for arguments that cannot work, before any work is done."""
        check_count("num_waveforms_per_prompt", num_waveforms_per_prompt, "Pass how many clips you want of each input.")
        check_counts(counts)
        check_guidance_scale(guidance_scale)
        if not self.transformer.config.get("num_classes"):
            check_no_guidance(guidance_scale)
        check_output_type(output_type, OUTPUT_TYPES)
        check_callback_inputs(callback_on_step_end_tensor_inputs, self._callback_tensor_inputs)
        check_generators(generator, batch_size)

    def _stages(self, labels: list[int] | None, given: bool, steps: int, fine_steps: int, rows: Any) -> list[Stage]:
        """What each model draws."""
        num_coarse = self.transformer.config.num_codebooks
        switches = self._all_switches()
        owns = [(slice(0, num_coarse), None, steps), (slice(num_coarse, None), slice(0, num_coarse), fine_steps)]
        made = []
        for switch, (own, of_others, num_steps) in zip(switches, owns, strict=False):
            num_classes = switch.model.config.get("num_classes")
            classes = rows(torch.tensor(labels)) if num_classes and labels is not None else None
            made.append(Stage(switch, own, of_others, num_steps, classes, num_classes or 0, given))
        return made

    # --- the call -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    @replace_example_docstring(EXAMPLE_DOC_STRING)
    def __call__(
        self,
        class_labels: int | str | Sequence[int | str] | Tensor | None = None,
        audio: Any = None,
        sampling_rate: int | None = None,
        keep: Tensor | None = None,
        codes: Tensor | None = None,
        audio_length_in_s: float | None = None,
        num_inference_steps: int | None = None,
        num_fine_inference_steps: int | None = None,
        guidance_scale: GuidanceScale | None = None,
        num_waveforms_per_prompt: int = 1,
        generator: Generators = None,
        chunk_length_s: float | None = None,
        chunk_overlap_s: float | None = None,
        temperature: float | Sequence[float] | None = None,
        sampling_temperature: float | None = None,
        output_type: str = "pt",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., dict] | PipelineCallback | MultiPipelineCallbacks | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("codes",),
    ) -> MaskedDiffusionAudioPipelineOutput | tuple:
        """
        Vary a clip (`audio` or `codes`, and what of it to `keep`), or make a new one (`audio_length_in_s`).

        Args:
            class_labels (`int`, `str`, or several, *optional*): ids, or names where the transformer's config has
                `id2label`; only for models with classes. None draws a clip of no class.
            audio (array or tensor, or a list of them, *optional*): floats in [-1, 1]: a clip `(num_samples,)` or
                `(channels, num_samples)`, a list of such of one length, or a batch `(num_clips, channels,
                num_samples)`. One for all labels, or one for each.
            sampling_rate (`int`, *optional*): of `audio`, which must be that of the codec.
            keep (bool tensor, *optional*): which codes stay, True where they do: `(num_codebooks, num_frames)`, or one
                for each clip; see `hf_maskdiff.audio_masks`. These codes never change, and come back as they are.
            codes (int64 tensor, *optional*): codes `(num_clips, num_codebooks, num_frames)` in place of `audio`, the
                scheduler's `mask_token_id` where to be drawn; all others stay, or those that `keep` says.
            audio_length_in_s (`float`, *optional*): seconds of a clip that is all new, to the nearest frame.
            num_inference_steps (`int`, *optional*): model passes of a window; one step reveals several codes. None is
                the pipeline's own number, 12 where it has none.
            num_fine_inference_steps (`int`, *optional*): those of the fine transformer. None is the pipeline's own
                number, `num_inference_steps` where it has none.
            guidance_scale (`float` or pair, *optional*): classifier-free guidance, see `MaskGITPipeline`; only for
                models with classes. None is the pipeline's own, 1.0 where it has none.
            num_waveforms_per_prompt (`int`): clips of each input; they lie side by side in the output.
            generator (`torch.Generator` or list, *optional*): one for the batch, or one per clip, which makes a clip
                independent of the others in its batch.
            chunk_length_s (`float`, *optional*): seconds that the models and the codec see at a time. A longer clip is
                filled in window after window; each sees what the one before it has drawn. None is the pipeline's own,
                10 where it has none.
            chunk_overlap_s (`float`, *optional*): seconds that a window shares with the one before it. None is a
                quarter of the chunk.
            temperature (`float` or pair, *optional*): *choice* temperature for this call, see
                `MaskedDiffusionScheduler.set_timesteps`; None keeps the scheduler's. Not for schedulers without one.
            sampling_temperature (`float`, *optional*): temperature at which codes are drawn in this call, 0 for the
                most probable ones; None keeps the scheduler's.
            output_type (`str`): `"pt"` or `"np"`, waveforms, or `"codes"`, which are not decoded.
            return_dict (`bool`): return a `MaskedDiffusionAudioPipelineOutput` rather than a tuple.
            callback_on_step_end (*optional*): called as `callback(pipe, step, timestep, {{"codes": codes}})` after each
                step, with the codes of the window and of the codebooks that are being drawn; returns such a dict, whose
                codes are used from there on.
            callback_on_step_end_tensor_inputs (list of `str`): the tensors that the callback gets.

        Examples:

        Returns:
            [`MaskedDiffusionAudioPipelineOutput`] or `tuple`: `audios` and `codes`.

        Raises:
            ValueError: for arguments that cannot work, before any model call.
        """
        names = tensor_inputs_of(callback_on_step_end, callback_on_step_end_tensor_inputs)
        defaults, codec = self._defaults, self._codec
        steps = defaults["num_inference_steps"] if num_inference_steps is None else num_inference_steps
        fine_steps = num_fine_inference_steps
        if fine_steps is None:
            fine_steps = defaults["num_fine_inference_steps"] or steps
        guidance_scale = defaults["guidance_scale"] if guidance_scale is None else guidance_scale
        check_components(self.components)
        check_count("num_inference_steps", steps, "Pass the number of model passes you want.")
        check_count("num_fine_inference_steps", fine_steps, "Pass the number of model passes you want.")
        mask_token_id = self.scheduler.config.mask_token_id
        check_models(codec, self.transformer, self.fine_transformer, mask_token_id)
        check_sources(audio, codes, audio_length_in_s, keep)
        check_read(audio, sampling_rate, self.fine_transformer, num_fine_inference_steps)
        if audio is not None:
            codec.require()
        labels = class_ids(class_labels, self.transformer)
        counts = {"class_labels": 1 if labels is None else len(labels)}
        chunk = self._chunk(chunk_length_s)
        lengths = (chunk, overlap_of(chunk_overlap_s, chunk, codec.frame_rate))
        if audio is not None:
            audio = read_audio(audio, sampling_rate, codec)
            counts["audio"], num_frames = len(audio), -(-audio.shape[-1] // codec.hop_length)
        elif codes is not None:
            codes = check_codes(codes, self.num_codebooks, codec.codebook_size)
            counts["codes"], num_frames = len(codes), codes.shape[-1]
        else:
            num_frames = frames_of("audio_length_in_s", audio_length_in_s, codec.frame_rate)
        if keep is not None:
            keep = read_keep(keep, (self.num_codebooks, num_frames))
            counts["keep"] = len(keep)
        num_prompts = max(counts.values())
        num_each = as_integer(num_waveforms_per_prompt)
        batch_size = num_prompts * num_each if isinstance(num_each, int) else 0
        self.check_inputs(counts, num_each, guidance_scale, batch_size, generator, output_type, names)
        if output_type != "codes":
            codec.require()
        call = PipelineCall(self.scheduler, steps, temperature, guidance_scale, sampling_temperature)
        if self.fine_transformer is not None:
            call.scheduler.set_timesteps(fine_steps, temperature)  # so that what is wrong with it is said now
        self.maybe_free_model_hooks()  # a call that raised has not
        device = self._execution_device

        def rows(values: Tensor) -> Tensor:
            values = values.to(device).expand(num_prompts, *values.shape[1:])
            return values.repeat_interleave(num_each, 0)

        if codes is None:
            codes = torch.full((1, self.num_codebooks, num_frames), mask_token_id)
            codes = codes if audio is None else self._encoded(audio, chunk)
        codes = rows(codes)
        if keep is not None:
            codes = codes.masked_fill(~rows(keep), mask_token_id)
        stages = self._stages(labels, class_labels is not None, steps, fine_steps, rows)
        on_step_end = after_step(self, call, callback_on_step_end, names, "codes")
        with self._running(call):
            codes = fill_in(stages, codes, call, temperature, generator, lengths, self.progress_bar, on_step_end)
        audios: Any = None
        if output_type != "codes":
            audios = self.decode_codes(codes, chunk_length_s)
            if audio is not None:
                audios = audios[..., : audio.shape[-1]]
            audios = audios.cpu().numpy() if output_type == "np" else audios
        self.maybe_free_model_hooks()
        return MaskedDiffusionAudioPipelineOutput(audios, codes) if return_dict else (audios, codes)
