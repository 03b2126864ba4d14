"""Text to image, image to image and inpainting by filling in masked codes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import AmusedScheduler, DiffusionPipeline, ImagePipelineOutput, UVit2DModel, VQModel
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.image_processor import PipelineImageInput
from diffusers.utils import replace_example_docstring
from torch import Tensor
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from ..hub import PipelineRepositoryMixin
from ..integers import as_integer
from ..models import MaskGenTransformer1DModel, MeissonicTransformer2DModel, TATiTokVQModel
from ..sampling import Generators, check_generators
from ..schedulers import MaskedDiffusionScheduler, MaskGITScheduler
from .adapters import TextToImageLoraMixin, require_no_adapters
from .calls import CallStateMixin, GuidanceScale, PipelineCall
from .checks import (
    check_callback_inputs,
    check_components,
    check_count,
    check_guidance_scale,
    check_output_type,
    tensor_inputs_of,
)
from .image_editing import OUTPUT_TYPES, ImageEditingMixin
from .image_inputs import check_call_defaults, check_counts, check_editing, check_latents, first_step_of
from .step_end import after_step
from .text_conditions import (
    TextCondition,
    TextFeatures,
    TextInput,
    TextReader,
    check_micro_conditioning,
    check_read,
    image_size,
    micro_conditions,
    only_size,
    read_prompt,
    texts_of,
    widths_read,
)

EXAMPLE_DOC_STRING = """
    Examples:
        ```py
        >>> import torch
        >>> from hf_maskdiff import HybridScheduler, MaskedDiffusionTextToImagePipeline

        >>> pipe = MaskedDiffusionTextToImagePipeline.from_pretrained("amused/amused-256", torch_dtype=torch.float16)
        >>> pipe = pipe.to("cuda")
        >>> image = pipe("a small red house by the sea").images[0]

        >>> pipe.scheduler = HybridScheduler.from_config(pipe.scheduler.config)
        >>> images = pipe(["a cat", "a dog"], negative_prompt="a drawing", num_images_per_prompt=4).images

        >>> similar = pipe("a small blue house by the sea", image=image, strength=0.6).images[0]
        >>> repainted = pipe("a lighthouse", image=image, mask_image=mask_image).images[0]  # white: draw anew
        ```
"""


class MaskedDiffusionTextToImagePipeline(
    ImageEditingMixin, CallStateMixin, PipelineRepositoryMixin, TextToImageLoraMixin, DiffusionPipeline
):
    r"""Draws and edits images from text with any scheduler of this package; swap `pipe.scheduler` freely.

    Opens the repositories of aMUSEd (amused/amused-256, amused/amused-512) as they are, in place of the three pipelines
    that diffusers has deprecated. A tokenizer in float16 works in float32, since aMUSEd's gives NaN otherwise.

    Args:
        vqvae ([`~diffusers.VQModel`] or [`TATiTokVQModel`]): the tokenizer of images, which lie in [0, 1].
        tokenizer ([`~transformers.CLIPTokenizer`], *optional*): of prompts.
        text_encoder ([`~transformers.CLIPTextModelWithProjection`], *optional*): its projected output and its
            penultimate hidden states condition the image. Without it prompts come encoded.
        transformer ([`~diffusers.UVit2DModel`], [`MeissonicTransformer2DModel`] or [`MaskGenTransformer1DModel`]): the
            denoiser, codes and text to logits.
        scheduler ([`MaskedDiffusionScheduler`]): which positions are revealed when, and at what temperature. An
            `AmusedScheduler` is taken as the `MaskGITScheduler` that does the same, with choice temperature (2, 0).
        call_defaults (`dict`, *optional*): what `num_inference_steps`, `guidance_scale` and
            `micro_conditioning_aesthetic_score` of a call are where it does not say: 12, 10.0 and 6, as for aMUSEd,
            unless named here.
    """

    model_cpu_offload_seq = "text_encoder->transformer->vqvae"
    card_pipeline_tag = "text-to-image"
    card_tags = ("text-to-image",)
    card_task = "masked-diffusion-image-generation"
    tokenizer_at_root = False
    card_example = 'pipe("a small red house by the sea").images[0].save("image.png")'
    upcasts_half = True
    _callback_tensor_inputs = ["latents"]  # noqa: RUF012 - diffusers' name and type
    _optional_components = ["tokenizer", "text_encoder"]  # noqa: RUF012 - diffusers' name and type

    def __init__(
        self,
        vqvae: VQModel | TATiTokVQModel,
        tokenizer: CLIPTokenizer,
        text_encoder: CLIPTextModelWithProjection,
        transformer: UVit2DModel | MeissonicTransformer2DModel | MaskGenTransformer1DModel,
        scheduler: MaskedDiffusionScheduler,
        call_defaults: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        check_call_defaults(call_defaults, "micro_conditioning_aesthetic_score")
        if isinstance(scheduler, AmusedScheduler):
            codes = {} if transformer is None else {"codebook_size": transformer.config.codebook_size}
            scheduler = MaskGITScheduler.from_config(scheduler.config, choice_temperature=[2.0, 0.0], **codes)
        self.register_modules(
            vqvae=vqvae, tokenizer=tokenizer, text_encoder=text_encoder, transformer=transformer, scheduler=scheduler
        )
        self.register_to_config(call_defaults=call_defaults and dict(call_defaults))
        self._make_processors()

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """As diffusers does, with a model card.

        Raises:
            ValueError: adapters are loaded, which a pipeline's folder could not hold.
        """
        require_no_adapters(self.transformer)
        super().save_pretrained(save_directory, *args, **kwargs)

    # --- input --------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode_prompt(self, prompt: str | list[str]) -> tuple[Tensor, Tensor]:
        """What a call takes as `prompt_embeds` and `encoder_hidden_states` in place of prompts.

        Returns:
            Projected outputs `(num_prompts, width)`, and penultimate hidden states `(num_prompts, num_tokens, width)`;
            for a tokenizer of images that reads the text too with the last ones, normalised, behind them,
            `(num_prompts, num_tokens, 2 * width)`.

        Raises:
            ValueError: no text, or no tokenizer or text encoder.
        """
        features = self._encoded(texts_of("prompt", prompt))
        return features.pooled, features.hidden

    def _encoded(self, texts: list[str]) -> TextFeatures:
        return self._reader.encode(texts, self._execution_device)

    @property
    def _reader(self) -> TextReader:
        config, for_images = self.transformer.config, self._image_tokenizer_reads_text
        num_tokens = self.vqvae.config.num_text_tokens if for_images else None
        pad_token_id, read = config.get("text_pad_token_id"), widths_read(config)
        return TextReader(self.tokenizer, self.text_encoder, pad_token_id, for_images, num_tokens, read)

    @property
    def _image_tokenizer_reads_text(self) -> bool:
        return getattr(self.vqvae, "reads_text", False)

    def _size(self, height: int | None, width: int | None) -> tuple[int, int]:
        """Height and width of the images in pixels."""
        config = self.transformer.config
        if len(self._grid()) == 1:
            return only_size(height, width, self.vqvae.image_size)
        multiple = self.vae_scale_factor * (2 if config.get("downsample", False) else 1)
        return image_size(height, width, config.sample_size * self.vae_scale_factor, multiple)

    def check_inputs(
        self,
        counts: dict[str, int],
        num_images_per_prompt: int,
        guidance_scale: GuidanceScale,
        strength: float,
        latents: Tensor | None,
        size: tuple[int, int],
        batch_size: int,
        generator: Generators,
        output_type: str,
        callback_on_step_end_tensor_inputs: Sequence[str],
    ) -> None:
        """Raise `ValueError` for arguments that cannot work, before any work is done."""
        check_components(self.components)
        config, mask_token_id = self.transformer.config, self.scheduler.config.mask_token_id
        rows = config.get("vocab_size", config.codebook_size + 1)
        if not config.codebook_size <= mask_token_id < rows:
            raise ValueError(
                f"`scheduler` must have the model's mask, in {config.codebook_size} .. {rows - 1}, got "
                f"`mask_token_id` {mask_token_id}. Make it with `from_config(pipe.scheduler.config)`, of the scheduler "
                "that the model came with."
            )
        check_count("num_images_per_prompt", num_images_per_prompt, "Pass how many images you want of each prompt.")
        check_counts(counts)
        check_guidance_scale(guidance_scale)
        check_editing(counts, strength, latents)
        check_output_type(output_type, OUTPUT_TYPES)
        check_callback_inputs(callback_on_step_end_tensor_inputs, self._callback_tensor_inputs)
        check_generators(generator, batch_size)
        if latents is not None:
            check_latents(latents, (batch_size, *self._grid(size)), config.codebook_size, mask_token_id)

    # --- the call -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    @replace_example_docstring(EXAMPLE_DOC_STRING)
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: GuidanceScale | None = None,
        negative_prompt: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
        generator: Generators = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        negative_encoder_hidden_states: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., dict] | PipelineCallback | MultiPipelineCallbacks | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        micro_conditioning_aesthetic_score: float | None = None,
        micro_conditioning_crop_coord: Sequence[float] = (0, 0),
        temperature: float | Sequence[float] | None = None,
        image: PipelineImageInput | None = None,
        mask_image: PipelineImageInput | None = None,
        strength: float = 1.0,
        sampling_temperature: float | None = None,
    ) -> ImagePipelineOutput | tuple:
        """
        Generate images from text, or edit some: draw a part anew (`image`, `mask_image`), or vary what is there
        (`strength`).

        Args:
            prompt (`str` or list, *optional*): what the images shall show.
            height, width (`int`, *optional*): in pixels, multiples of what a cell of the model covers. None is the size
                that the model was trained with, and the only one where codes are no places.
            num_inference_steps (`int`, *optional*): model passes; one step reveals several positions. None is the
                pipeline's own number, 12 where it has none.
            guidance_scale (`float` or pair, *optional*): classifier-free guidance,
                `logits = negative + scale (positive - negative)`. A pair `(start, end)` is spaced evenly over the
                steps, for three and four numbers see `MaskGITPipeline`. A step whose scale is above 1 costs a second
                pass; the others are not guided. None is the pipeline's own, 10.0 where it has none.
            negative_prompt (`str` or list, *optional*): what guidance leads away from; one for all, or one for each
                prompt. None is the empty text.
            num_images_per_prompt (`int`): images of each prompt; they lie side by side in the output.
            generator (`torch.Generator` or list, *optional*): one for the batch, or one per image, which makes an
                image independent of the others in its batch.
            latents (int64 tensor, *optional*): codes `(batch_size, rows, columns)`, or `(batch_size, L)` where they are
                no places, to start from, the scheduler's `mask_token_id` where to be filled in; the others come back
                unchanged.
            prompt_embeds, encoder_hidden_states (tensors, *optional*): what `encode_prompt` returns, in place of
                `prompt`; both or neither.
            negative_prompt_embeds, negative_encoder_hidden_states (tensors, *optional*): the same in place of
                `negative_prompt`.
            output_type (`str`): `"pil"`, `"np"` (batch, height, width, channels), `"pt"` (batch, channels, height,
                width), both in [0, 1], or `"latent"`, the codes.
            return_dict (`bool`): return an `ImagePipelineOutput` rather than a tuple.
            callback_on_step_end (*optional*): called as `callback(pipe, step, timestep, {{"latents": codes}})` after
                each step; returns such a dict, whose latents are used from there on.
            callback_on_step_end_tensor_inputs (list of `str`): the tensors that the callback gets.
            micro_conditioning_aesthetic_score (`float`, *optional*): of the images, as the model was told it in
                training. None is the pipeline's own, 6 where it has none.
            micro_conditioning_crop_coord (pair): where the images are cropped, as the model was told it in training.
            temperature (`float` or pair, *optional*): *choice* temperature for this call, see
                `MaskedDiffusionScheduler.set_timesteps`; None keeps the scheduler's. Not for schedulers without one.
            image (`PIL.Image.Image`, array, tensor, or list of them, *optional*): what to edit, of any size, values in
                [0, 1]: one for all prompts, or one for each (one prompt then also serves several images). It is read as
                codes, and returns as these codes decode.
            mask_image (as `image`, grey, *optional*): white where to draw anew, of any size. A code changes if any of
                its pixels is white, the others come back unchanged; None is all white.
            strength (`float`): in (0, 1]: the last `round(strength * num_inference_steps)` steps are run, from codes of
                which the scheduler's `add_noise` has masked as many as are at that time. 1 draws the white part anew
                whatever it held.
            sampling_temperature (`float`, *optional*): temperature at which codes are drawn in this call, 0 for the
                most probable ones; None keeps the scheduler's.

        Examples:

        Returns:
            [`~diffusers.ImagePipelineOutput`] or `tuple`: `images`.

        Raises:
            ValueError: for arguments that cannot work, before any model call.
        """
        names = tensor_inputs_of(callback_on_step_end, callback_on_step_end_tensor_inputs)
        defaults: dict[str, Any] = {"num_inference_steps": 12, "guidance_scale": 10.0}
        defaults |= {"micro_conditioning_aesthetic_score": 6, **(self.config.call_defaults or {})}
        if num_inference_steps is None:
            num_inference_steps = defaults["num_inference_steps"]
        if guidance_scale is None:
            guidance_scale = defaults["guidance_scale"]
        if micro_conditioning_aesthetic_score is None:
            micro_conditioning_aesthetic_score = defaults["micro_conditioning_aesthetic_score"]
        size, reader = self._size(height, width), self._reader
        check_micro_conditioning(micro_conditioning_crop_coord, micro_conditioning_aesthetic_score)
        check_read(self.transformer, micro_conditioning_crop_coord)
        positive = read_prompt("", prompt, prompt_embeds, encoder_hidden_states, None, reader)
        encoded = (negative_prompt_embeds, negative_encoder_hidden_states)
        negative = read_prompt("negative_", negative_prompt, *encoded, "", reader)
        counts = {"prompt": len(positive), "negative_prompt": len(negative)}
        if image is not None:
            image = self.preprocess_image(image, size)
            counts["image"] = len(image)
        if mask_image is not None:
            mask_image = self.preprocess_mask(mask_image, size)
            counts["mask_image"] = len(mask_image)
        num_prompts = max(counts.values())
        num_images_per_prompt = as_integer(num_images_per_prompt)
        batch_size = num_prompts * num_images_per_prompt if isinstance(num_images_per_prompt, int) else 0
        self.check_inputs(
            counts,
            num_images_per_prompt,
            guidance_scale,
            strength,
            latents,
            size,
            batch_size,
            generator,
            output_type,
            names,
        )
        call = PipelineCall(self.scheduler, num_inference_steps, temperature, guidance_scale, sampling_temperature)
        first_step = first_step_of(strength, as_integer(num_inference_steps))
        self.maybe_free_model_hooks()  # a call that raised has not
        device = self._execution_device

        def rows(values: Tensor) -> Tensor:
            values = values.to(device).expand(num_prompts, *values.shape[1:])
            return values.repeat_interleave(num_images_per_prompt, 0)

        def features(text: TextInput) -> TextFeatures:
            return text.encoded(self._encoded).map(lambda values: rows(values.to(device, self.transformer.dtype)))

        micro = (size, micro_conditioning_crop_coord, micro_conditioning_aesthetic_score, batch_size, device)
        noise = getattr(self.transformer, "takes_noise", False)
        told = (micro_conditions(*micro), noise, reader.for_images)
        condition = TextCondition(features(positive), lambda: features(negative), *told)
        if call.may_guide:
            condition.prepare()
        if image is None:
            start: dict[str, Any] = {"sample": self.prepare_latents(batch_size, latents, device, size)}
        else:
            codes, editable = rows(self.encode_image(image)), None if mask_image is None else rows(mask_image)
            start = self._start(codes, editable, first_step, generator, call)
        on_step_end = after_step(self, call, callback_on_step_end, names, "latents")
        images = self._fill_in(call, condition, start, generator, on_step_end, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)
