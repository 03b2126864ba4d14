"""Class-conditional and unconditional image generation and editing by filling in masked codes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput, VQModel
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.image_processor import PipelineImageInput
from diffusers.utils import replace_example_docstring
from torch import Tensor

from ..hub import PipelineRepositoryMixin
from ..integers import as_integer
from ..models import (
    HaltonMaskGITTransformer2DModel,
    MaskGITTransformer2DModel,
    MaskGITVQModel,
    TiTokTransformer1DModel,
    TiTokVQModel,
)
from ..sampling import Generators, check_generators
from ..schedulers import MaskedDiffusionScheduler
from .calls import CallStateMixin, GuidanceScale, PipelineCall
from .checks import (
    check_callback_inputs,
    check_components,
    check_count,
    check_guidance_scale,
    check_output_type,
    tensor_inputs_of,
)
from .image_conditions import ClassCondition
from .image_editing import OUTPUT_TYPES, ImageEditingMixin
from .image_inputs import (
    check_call_defaults,
    check_counts,
    check_editing,
    check_latents,
    check_unguided,
    first_step_of,
    label_ids,
)
from .step_end import after_step

EXAMPLE_DOC_STRING = """
    Examples:
        ```py
        >>> from PIL import Image
        >>> from hf_maskdiff import HybridScheduler, MaskGITPipeline

        >>> pipe = MaskGITPipeline.from_pretrained("pipelines/maskgit-mnist")
        >>> image = pipe(class_labels=7, num_inference_steps=8).images[0]

        >>> pipe.scheduler = HybridScheduler.from_config(pipe.scheduler.config)
        >>> images = pipe(class_labels=["3", "8"], num_images_per_prompt=4).images

        >>> mask_image = Image.new("L", image.size)
        >>> mask_image.paste(255, (14, 0, 28, 28))  # white: draw the right half anew
        >>> repainted = pipe(class_labels=7, image=image, mask_image=mask_image).images[0]
        >>> similar = pipe(class_labels=7, image=image, strength=0.6).images[0]
        ```
"""


class MaskGITPipeline(ImageEditingMixin, CallStateMixin, PipelineRepositoryMixin, DiffusionPipeline):
    r"""Draws and edits images with any scheduler of this package; swap `pipe.scheduler` freely.

    Args:
        vqvae ([`~diffusers.VQModel`], [`MaskGITVQModel`] or [`TiTokVQModel`]): the tokenizer; its decoder turns codes
            into images, its encoder the images to be edited into codes. Those of the last are a row, `(batch_size, L)`
            where others are `(batch_size, height, width)`.
        transformer ([`HaltonMaskGITTransformer2DModel`], [`MaskGITTransformer2DModel`] or [`TiTokTransformer1DModel`]):
            the denoiser, codes and class to logits.
        scheduler ([`MaskedDiffusionScheduler`]): which positions are revealed when, and at what temperature.
        do_normalize (`bool`): whether the tokenizer's images lie in [-1, 1] rather than in [0, 1]. What the pipeline
            takes and returns lies in [0, 1].
        call_defaults (`dict`, *optional*): what `num_inference_steps` and `guidance_scale` of a call are where it does
            not say: 8 and 1.0 unless named here. Converted models bring those they were published with.
    """

    model_cpu_offload_seq = "transformer->vqvae"
    card_pipeline_tag = "unconditional-image-generation"
    card_tags = ("maskgit",)
    card_task = "masked-diffusion-image-generation"
    _callback_tensor_inputs = ["latents"]  # noqa: RUF012 - diffusers' name and type

    def __init__(
        self,
        vqvae: VQModel | MaskGITVQModel | TiTokVQModel,
        transformer: HaltonMaskGITTransformer2DModel | MaskGITTransformer2DModel | TiTokTransformer1DModel,
        scheduler: MaskedDiffusionScheduler,
        do_normalize: bool = False,
        call_defaults: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        check_call_defaults(call_defaults)
        self.register_modules(vqvae=vqvae, transformer=transformer, scheduler=scheduler)
        self.register_to_config(do_normalize=do_normalize, call_defaults=call_defaults and dict(call_defaults))
        self._make_processors()

    @property
    def card_example(self) -> str:  # type: ignore[override]
        """A call that works with this model."""
        config = self.transformer.config
        name = {int(label): names for label, names in (config.get("id2label") or {}).items()}.get(0, "0")
        first = name.split(",")[0].strip()
        labels = f"class_labels=[{0 if first == '0' else json.dumps(first)}]" if config.num_classes else ""
        steps = "" if self.config.call_defaults else "num_inference_steps=8"
        return f'pipe({", ".join(filter(None, (labels, steps)))}).images[0].save("image.png")'

    # --- input --------------------------------------------------------------------------------------------------------

    def get_label_ids(self, labels: int | str | Sequence[int | str] | Tensor | None) -> list[int]:
        """Class ids from ids or names; None is the unconditional class.

        Names are those of `id2label` in the transformer's config; where one lists several, separated by commas, each of
        them counts.

        Raises:
            ValueError: an id out of range, or a name that is not there.
        """
        config = self.transformer.config
        return label_ids(labels, config.num_classes, self.transformer.has_null_class, config.get("id2label") or {})

    def check_inputs(
        self,
        counts: dict[str, int],
        num_images_per_prompt: int,
        guidance_scale: GuidanceScale,
        strength: float,
        latents: Tensor | None,
        batch_size: int,
        generator: Generators,
        output_type: str,
        callback_on_step_end_tensor_inputs: Sequence[str],
    ) -> None:
        """Raise `ValueError` for arguments that cannot work, before any work is done."""
        check_components(self.components)
        check_count("num_images_per_prompt", num_images_per_prompt, "Pass how many images you want of each class.")
        check_counts(counts)
        check_guidance_scale(guidance_scale)
        if not self.transformer.has_null_class:
            check_unguided(guidance_scale)
        check_editing(counts, strength, latents)
        check_output_type(output_type, OUTPUT_TYPES)
        check_callback_inputs(callback_on_step_end_tensor_inputs, self._callback_tensor_inputs)
        check_generators(generator, batch_size)
        if latents is not None:
            mask_token_id = self.scheduler.config.mask_token_id
            check_latents(latents, (batch_size, *self._grid()), self.transformer.config.codebook_size, mask_token_id)

    # --- the call -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    @replace_example_docstring(EXAMPLE_DOC_STRING)
    def __call__(
        self,
        class_labels: int | str | Sequence[int | str] | Tensor | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: GuidanceScale | None = None,
        num_images_per_prompt: int = 1,
        temperature: float | Sequence[float] | None = None,
        generator: Generators = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., dict] | PipelineCallback | MultiPipelineCallbacks | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        image: PipelineImageInput | None = None,
        mask_image: PipelineImageInput | None = None,
        strength: float = 1.0,
        sampling_temperature: float | None = None,
    ) -> ImagePipelineOutput | tuple:
        """
        Generate images, or edit some: draw a part anew (`image`, `mask_image`), or vary what is there (`strength`).

        Args:
            class_labels (`int`, `str`, or several in a list, tensor, array or column, *optional*): ids, or names where
                the transformer's config has `id2label`; None draws an image of no class.
            num_inference_steps (`int`, *optional*): model passes; one step reveals several positions. None is the
                pipeline's own number, 8 where it has none.
            guidance_scale (`float` or pair, *optional*): classifier-free guidance,
                `logits = uncond + scale (cond - uncond)`. A pair `(start, end)` is spaced evenly over the steps;
                `(1, 1 + w)` is the ramp of weight w of MaskGIT's samplers; a triple `(start, end, power)` rises as
                `(1 - cos(pi (n / T) ** power)) / 2` does in step n of T, and with a fourth number as it does so many
                steps later. A step whose scale is above 1 costs a second pass; the others, and all where no class is
                given, are not guided. None is the pipeline's own, 1.0 where it has none.
            num_images_per_prompt (`int`): images of each label.
            temperature (`float` or pair, *optional*): *choice* temperature for this call, see
                `MaskedDiffusionScheduler.set_timesteps`; None keeps the scheduler's. Not for schedulers without one.
            generator (`torch.Generator` or list, *optional*): one for the batch, or one per image, which makes an
                image independent of the others in its batch.
            latents (int64 tensor, *optional*): codes `(batch_size, height, width)` to start from, the scheduler's
                `mask_token_id` where to be filled in; the others come back unchanged.
            output_type (`str`): `"pil"`, `"np"` (batch, height, width, channels), `"pt"` (batch, channels, height,
                width), both in [0, 1], or `"latent"`, the codes.
            return_dict (`bool`): return an `ImagePipelineOutput` rather than a tuple.
            callback_on_step_end (*optional*): called as `callback(pipe, step, timestep, {{"latents": codes}})` after
                each step; returns such a dict, whose latents are used from there on.
            callback_on_step_end_tensor_inputs (list of `str`): the tensors that the callback gets.
            image (`PIL.Image.Image`, array, tensor, or list of them, *optional*): what to edit, of any size, values in
                [0, 1]: one for all labels, or one for each (one label then also serves several images). PIL images of
                any mode are read, 16-bit ones too, turned as their EXIF data say, without their transparency. It is
                read as codes, and returns as these codes decode.
            mask_image (as `image`, grey, *optional*): white where to draw anew, of any size; what is transparent is not
                white. A code changes if any of its pixels is white, the others come back unchanged; None is all white.
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
        defaults = {"num_inference_steps": 8, "guidance_scale": 1.0, **(self.config.call_defaults or {})}
        if num_inference_steps is None:
            num_inference_steps = defaults["num_inference_steps"]
        if guidance_scale is None:
            guidance_scale = defaults["guidance_scale"]
        labels = self.get_label_ids(class_labels)
        counts = {"class_labels": len(labels)}
        if image is not None:
            image = self.preprocess_image(image)
            counts["image"] = len(image)
        if mask_image is not None:
            mask_image = self.preprocess_mask(mask_image)
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
            batch_size,
            generator,
            output_type,
            names,
        )
        call = PipelineCall(self.scheduler, num_inference_steps, temperature, guidance_scale, sampling_temperature)
        num_inference_steps = as_integer(num_inference_steps)
        first_step = first_step_of(strength, num_inference_steps)
        self.maybe_free_model_hooks()  # a call that raised has not
        device = self._execution_device

        def rows(values: Tensor) -> Tensor:
            values = values.to(device).expand(num_prompts, *values.shape[1:])
            return values.repeat_interleave(num_images_per_prompt, 0)

        if image is None:
            start: dict[str, Any] = {"sample": self.prepare_latents(batch_size, latents, device)}
        else:
            codes, editable = rows(self.encode_image(image)), None if mask_image is None else rows(mask_image)
            start = self._start(codes, editable, first_step, generator, call)
        on_step_end = after_step(self, call, callback_on_step_end, names, "latents")
        classes = rows(torch.tensor(labels))
        condition = ClassCondition(classes, self.transformer.config.num_classes, class_labels is not None)
        images = self._fill_in(call, condition, start, generator, on_step_end, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)
