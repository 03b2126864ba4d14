"""Class-conditional and unconditional image generation and editing by filling in masked codes."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from numbers import Real
from typing import Any

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput, VQModel
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.image_processor import PipelineImageInput, VaeImageProcessor
from diffusers.utils import is_torch_xla_available, replace_example_docstring
from torch import Tensor
from torch.nn.functional import adaptive_max_pool2d

from ..hub import PipelineRepositoryMixin
from ..models import HaltonMaskGITTransformer2DModel, MaskGITTransformer2DModel, MaskGITVQModel
from ..sampling import Generators, check_generators
from ..schedulers import MaskedDiffusionScheduler
from .denoising import denoise

if is_torch_xla_available():
    import torch_xla.core.xla_model as xm

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

OUTPUT_TYPES = ("pil", "np", "pt", "latent")
GuidanceScale = float | Sequence[float]


class MaskGITPipeline(PipelineRepositoryMixin, DiffusionPipeline):
    r"""Draws and edits images with any scheduler of this package; swap `pipe.scheduler` freely.

    Args:
        vqvae ([`~diffusers.VQModel`] or [`MaskGITVQModel`]): the tokenizer; its decoder turns codes into images, its
            encoder the images to be edited into codes.
        transformer ([`HaltonMaskGITTransformer2DModel`] or [`MaskGITTransformer2DModel`]): the denoiser, codes and
            class to logits.
        scheduler ([`MaskedDiffusionScheduler`]): which positions are revealed when, and at what temperature.
        do_normalize (`bool`): whether the tokenizer's images lie in [-1, 1] rather than in [0, 1]. What the pipeline
            takes and returns lies in [0, 1].
        call_defaults (`dict`, *optional*): what `num_inference_steps` and `guidance_scale` of a call are where it does
            not say: 8 and 1.0 unless named here. Converted models bring those they were published with.
    """

    model_cpu_offload_seq = "transformer->vqvae"
    card_pipeline_tag = "unconditional-image-generation"
    card_tags = ("maskgit",)
    _callback_tensor_inputs = ["latents"]  # noqa: RUF012 - diffusers' name and type

    def __init__(
        self,
        vqvae: VQModel | MaskGITVQModel,
        transformer: HaltonMaskGITTransformer2DModel | MaskGITTransformer2DModel,
        scheduler: MaskedDiffusionScheduler,
        do_normalize: bool = False,
        call_defaults: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        unknown = sorted(set(call_defaults or {}) - {"num_inference_steps", "guidance_scale"})
        if unknown:
            raise ValueError(
                f"`call_defaults` must name `num_inference_steps` and `guidance_scale` only, got {unknown}. Pass the "
                "others to the call."
            )
        self.register_modules(vqvae=vqvae, transformer=transformer, scheduler=scheduler)
        self.register_to_config(do_normalize=do_normalize, call_defaults=call_defaults)
        levels = len(self.vqvae.config.block_out_channels) if getattr(self, "vqvae", None) else 1
        self.vae_scale_factor = 2 ** (levels - 1)
        channels = self.vqvae.config.in_channels if getattr(self, "vqvae", None) else 3
        # No latent channels: four-channel tensors are images like any other.
        self.image_processor = VaeImageProcessor(
            vae_scale_factor=self.vae_scale_factor,
            vae_latent_channels=0,
            do_normalize=False,
            do_convert_rgb=channels == 3,
            do_convert_grayscale=channels == 1,
        )
        self.mask_processor = VaeImageProcessor(
            vae_latent_channels=0, do_resize=False, do_normalize=False, do_convert_grayscale=True
        )

    @property
    def card_example(self) -> str:  # type: ignore[override]
        """A call that works with this model."""
        labels = "class_labels=[0]" if self.transformer.config.num_classes else ""
        steps = "" if self.config.call_defaults else "num_inference_steps=8"
        return f'pipe({", ".join(filter(None, (labels, steps)))}).images[0].save("image.png")'

    @property
    def guidance_scale(self) -> GuidanceScale:
        """What the call was given; a callback may set `pipe._guidance_scale` for the steps to come."""
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether some step of the run has a scale above 1."""
        scale = self._guidance_scale
        return max(scale if isinstance(scale, Sequence) else (scale,)) > 1

    def guidance_scale_at(self, timestep: float | Tensor) -> float:
        """The scale of the step at time `timestep`: `start + (end - start) n / (T - 1)` in step n of T."""
        scale, num_steps = self._guidance_scale, self.scheduler.num_inference_steps
        start, end = scale if isinstance(scale, Sequence) else (scale, scale)
        step_index = round((1 - float(timestep)) * num_steps)
        return start + (end - start) * step_index / max(num_steps - 1, 1)

    @property
    def num_timesteps(self) -> int:
        """Steps run by the last call; each costs one model pass, two where it is guided."""
        return self._num_timesteps

    @property
    def current_timestep(self) -> Tensor | None:
        return self._current_timestep

    @property
    def interrupt(self) -> bool:
        """Set `pipe._interrupt = True` in a callback to stop; positions still masked are then shown grey."""
        return self._interrupt

    # --- input --------------------------------------------------------------------------------------------------------

    def get_label_ids(self, labels: int | str | Sequence[int | str] | Tensor | None) -> list[int]:
        """Class ids from ids or names; None is the unconditional class.

        Names are those of `id2label` in the transformer's config; where one lists several, separated by commas, each of
        them counts.

        Raises:
            ValueError: an id out of range, or a name that is not there.
        """
        num_classes = self.transformer.config.num_classes
        if labels is None:
            if not self.transformer.has_null_class:
                raise ValueError(
                    "`class_labels` must be given, got None: this model was never shown an image without its class. "
                    f"Pass ids in 0 .. {num_classes - 1}."
                )
            return [num_classes]
        if isinstance(labels, Tensor):
            labels = labels.flatten().tolist()
        elif isinstance(labels, int | str):
            labels = [labels]
        ids_of_names: dict[str, int] = {}
        for label_id, names in (self.transformer.config.get("id2label") or {}).items():
            for name in (names, *str(names).split(",")):
                ids_of_names.setdefault(name.strip(), int(label_id))
        return [self._label_id(label, ids_of_names, num_classes) for label in labels]

    @staticmethod
    def _label_id(label: int | str, ids_of_names: dict[str, int], num_classes: int) -> int:
        if isinstance(label, str):
            if label in ids_of_names:
                return ids_of_names[label]
            close = difflib.get_close_matches(label, ids_of_names, n=3) or list(ids_of_names)[:3]
            remedy = f"Did you mean one of {close}?" if close else "This model has no names: pass an id."
            raise ValueError(f"`class_labels` must be names in the model's `id2label` or ids, got {label!r}. {remedy}")
        if not isinstance(label, int) or not 0 <= label < num_classes:
            raise ValueError(
                f"`class_labels` must be in 0 .. {num_classes - 1}, got {label!r}. Pass None for an image of no class."
            )
        return label

    def preprocess_image(self, image: PipelineImageInput) -> Tensor:
        """Images to edit as the tokenizer reads them, float32 `(num_images, channels, height, width)` in [0, 1].

        Raises:
            ValueError: not images, or values outside [0, 1], such as NaN.
        """
        side = self.transformer.config.sample_size * self.vae_scale_factor
        return torch.cat(_preprocess("image", image, self.image_processor, self.vqvae.config.in_channels, side))

    def preprocess_mask(self, mask_image: PipelineImageInput) -> Tensor:
        """Which codes a mask of any size lets change, bool `(num_masks, height, width)`: those with a white pixel.

        White is a value of at least 0.5.

        Raises:
            ValueError: not grey images, or values outside [0, 1], such as NaN.
        """
        side = self.transformer.config.sample_size
        masks = _preprocess("mask_image", mask_image, self.mask_processor, 1)
        return torch.cat([adaptive_max_pool2d(mask, side)[:, 0] >= 0.5 for mask in masks])

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
        if not isinstance(self.scheduler, MaskedDiffusionScheduler):
            name = type(self.scheduler).__name__
            raise ValueError(
                f"`scheduler` must be a MaskedDiffusionScheduler, got {name}. Set for example "
                "`pipe.scheduler = MomentScheduler.from_config(pipe.scheduler.config)`."
            )
        if not isinstance(num_images_per_prompt, int) or num_images_per_prompt < 1:
            raise ValueError(
                f"`num_images_per_prompt` must be an integer of at least 1, got {num_images_per_prompt!r}. Pass how "
                "many images you want of each class."
            )
        if counts["class_labels"] == 0:
            raise ValueError("`class_labels` must hold at least one label, got none. Pass None for no class.")
        if any(count not in (1, max(counts.values())) for count in counts.values()):
            raise ValueError(
                f"{', '.join(f'`{name}`' for name in counts)} must hold one each, or as many as the others, got "
                f"{counts}. Pass one for all images or one for each."
            )
        scales = list(guidance_scale) if isinstance(guidance_scale, Sequence) else [guidance_scale, guidance_scale]
        if len(scales) != 2 or not all(isinstance(scale, Real) and math.isfinite(scale) for scale in scales):
            raise ValueError(
                "`guidance_scale` must be a finite number or a pair (start, end) of such, got "
                f"{guidance_scale!r}. Pass 1.0 for no guidance."
            )
        if max(scales) > 1 and not self.transformer.has_null_class:
            raise ValueError(
                f"`guidance_scale` must not exceed 1, got {guidance_scale!r}: this model was never shown an image "
                "without its class. Leave it out."
            )
        if not isinstance(strength, Real) or not 0 < strength <= 1:
            raise ValueError(
                f"`strength` must be in (0, 1], got {strength!r}. Pass the share of the steps to run; 1 draws anew."
            )
        if "image" not in counts and ("mask_image" in counts or strength != 1):
            given = "mask_image" if "mask_image" in counts else "strength"
            raise ValueError(f"`{given}` must come with an `image`, got none. Pass the image to edit as `image=`.")
        if "image" in counts and latents is not None:
            raise ValueError(
                "`latents` must be None where an `image` is given, got both. Pass `image` with `mask_image`, or codes "
                "that are masked already."
            )
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"`output_type` must be one of {OUTPUT_TYPES}, got {output_type!r}. Pick one of these.")
        unknown = [name for name in callback_on_step_end_tensor_inputs if name not in self._callback_tensor_inputs]
        if unknown:
            raise ValueError(
                f"`callback_on_step_end_tensor_inputs` must be among {self._callback_tensor_inputs}, got {unknown}. "
                "Leave it out to get the latents."
            )
        check_generators(generator, batch_size)
        if latents is not None:
            self._check_latents(latents, batch_size)

    def _check_latents(self, latents: Tensor, batch_size: int) -> None:
        side, mask_token_id = self.transformer.config.sample_size, self.scheduler.config.mask_token_id
        shape = (batch_size, side, side)
        if tuple(latents.shape) != shape or latents.dtype != torch.int64:
            raise ValueError(
                f"`latents` must be int64 codes of shape {shape}, got {latents.dtype} {tuple(latents.shape)}. Pass "
                f"codes of the tokenizer, {mask_token_id} where the image shall be filled in."
            )
        codebook_size = self.transformer.config.codebook_size
        known = (latents >= 0) & (latents < codebook_size)
        if not bool((known | (latents == mask_token_id)).all()):
            raise ValueError(
                f"`latents` must hold codes in 0 .. {codebook_size - 1} or the mask {mask_token_id}, got values from "
                f"{int(latents.min())} to {int(latents.max())}. Replace the others by the mask."
            )

    def prepare_latents(self, batch_size: int, latents: Tensor | None, device: torch.device) -> Tensor:
        """Codes to start from, int64 `(batch_size, height, width)`: all masked unless given."""
        if latents is not None:
            return latents.to(device)
        side = self.transformer.config.sample_size
        return torch.full((batch_size, side, side), self.scheduler.config.mask_token_id, device=device)

    def prepare_image_latents(
        self, codes: Tensor, editable: Tensor | None, first_step: int, generator: Generators
    ) -> tuple[Tensor, Tensor]:
        """Codes of images with what shall be drawn anew masked, as far as it is at the time of `first_step`.

        Args:
            codes: int64 `(batch_size, height, width)`.
            editable: bool, the shape of `codes`; None is all.

        Returns:
            The masked codes, and the size of each row's editable region, int64 `(batch_size,)`.
        """
        noisy = torch.full_like(codes, self.scheduler.config.mask_token_id)
        if first_step > 0:  # else all is masked and no noise is drawn, just as without an image
            noisy = self.scheduler.add_noise(codes, self.scheduler.timesteps[first_step], generator)
        editable = torch.ones_like(codes, dtype=torch.bool) if editable is None else editable
        return torch.where(editable, noisy, codes), editable.flatten(1).sum(-1)

    # --- the tokenizer ------------------------------------------------------------------------------------------------

    @contextmanager
    def _upcast_vqvae(self) -> Iterator[None]:
        """float32 for a float16 tokenizer that asks for it, while it works."""
        needs_upcasting = self.vqvae.dtype == torch.float16 and self.vqvae.config.force_upcast
        if needs_upcasting:
            self.vqvae.float()
        try:
            yield
        finally:
            if needs_upcasting:
                self.vqvae.half()

    @torch.no_grad()
    def encode_image(self, image: Tensor) -> Tensor:
        """Codes of images, int64 `(batch_size, height, width)`.

        Args:
            image: `(batch_size, channels, height, width)` in [0, 1], see `preprocess_image`.
        """
        image = image * 2 - 1 if self.config.do_normalize else image
        with self._upcast_vqvae():
            latents = self.vqvae.encode(image.to(self._execution_device, self.vqvae.dtype)).latents
        # At once: an offloaded tokenizer is on the device from here until another component runs. And the codebook from
        # its module's call: `vqvae.quantize` reads the weight itself, which a hook may keep elsewhere.
        code_ids = torch.arange(self.vqvae.config.num_vq_embeddings, device=latents.device)
        codebook = self.vqvae.quantize.embedding(code_ids).float()
        vectors = latents.float().permute(0, 2, 3, 1)
        return torch.cdist(vectors.flatten(1, 2), codebook).argmin(-1).view(vectors.shape[:-1])

    @torch.no_grad()
    def decode_latents(self, latents: Tensor) -> Tensor:
        """Images in [0, 1], `(batch_size, channels, height, width)`, of codes; what is still masked is grey.

        Args:
            latents: int64 `(batch_size, height, width)`.
        """
        masked = latents == self.scheduler.config.mask_token_id
        shape = (*latents.shape, self.vqvae.quantize.vq_embed_dim)
        codes = latents.masked_fill(masked, 0)
        with self._upcast_vqvae():
            image = self.vqvae.decode(codes, force_not_quantize=True, shape=shape).sample
        image = (image / 2 + 0.5 if self.config.do_normalize else image).clip(0, 1)
        grey = masked.repeat_interleave(image.shape[-2] // masked.shape[-2], 1)
        grey = grey.repeat_interleave(image.shape[-1] // masked.shape[-1], 2)
        return image.masked_fill(grey[:, None], 0.5)

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
    ) -> ImagePipelineOutput | tuple:
        """
        Generate images, or edit some: draw a part anew (`image`, `mask_image`), or vary what is there (`strength`).

        Args:
            class_labels (`int`, `str`, list of them, or int64 tensor, *optional*): ids, or names where the
                transformer's config has `id2label`; None draws an image of no class.
            num_inference_steps (`int`, *optional*): model passes; one step reveals several positions. None is the
                pipeline's own number, 8 where it has none.
            guidance_scale (`float` or pair, *optional*): classifier-free guidance,
                `logits = uncond + scale (cond - uncond)`. A pair `(start, end)` is spaced evenly over the steps;
                `(1, 1 + w)` is the ramp of weight w of MaskGIT's samplers. A step whose scale is above 1 costs a second
                pass; the others, and all where no class is given, are not guided. None is the pipeline's own, 1.0
                where it has none.
            num_images_per_prompt (`int`): images of each label.
            temperature (`float` or pair, *optional*): choice temperature for this call, see
                `MaskedDiffusionScheduler.set_timesteps`; None keeps the scheduler's.
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
                [0, 1]: one for all labels, or one for each (one label then also serves several images). It is read as
                codes, and returns as these codes decode.
            mask_image (as `image`, grey, *optional*): white where to draw anew, of any size. A code changes if any of
                its pixels is white, the others come back unchanged; None is all white.
            strength (`float`): in (0, 1]: the last `round(strength * num_inference_steps)` steps are run, from codes of
                which the scheduler's `add_noise` has masked as many as are at that time. 1 draws the white part anew
                whatever it held.

        Examples:

        Returns:
            [`~diffusers.ImagePipelineOutput`] or `tuple`: `images`.

        Raises:
            ValueError: for arguments that cannot work, before any model call.
        """
        if isinstance(callback_on_step_end, PipelineCallback | MultiPipelineCallbacks):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
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
            callback_on_step_end_tensor_inputs,
        )
        self.scheduler.set_timesteps(num_inference_steps, temperature)
        first_step = num_inference_steps - round(strength * num_inference_steps)
        if first_step == num_inference_steps:
            raise ValueError(
                f"`strength` must leave a step to run, got {strength} of {num_inference_steps} steps. Pass at least "
                f"{1 / num_inference_steps:.2g}, or more steps."
            )
        self._guidance_scale, self._interrupt, self._num_timesteps = guidance_scale, False, 0
        self._current_timestep: Tensor | None = None

        self.maybe_free_model_hooks()  # a call that raised has not
        device = self._execution_device

        def rows(values: Tensor) -> Tensor:
            values = values.to(device).expand(num_prompts, *values.shape[1:])
            return values.repeat_interleave(num_images_per_prompt, 0)

        classes = rows(torch.tensor(labels))
        no_class = torch.full_like(classes, self.transformer.config.num_classes)
        initial = None
        if image is None:
            latents = self.prepare_latents(batch_size, latents, device)
        else:
            codes, editable = rows(self.encode_image(image)), None if mask_image is None else rows(mask_image)
            latents, initial = self.prepare_image_latents(codes, editable, first_step, generator)

        def denoiser(sample: Tensor, t: Tensor, rows: Tensor | slice, positions: Tensor | None = None) -> Tensor:
            self._current_timestep = t  # diffusers' caches ask for it
            partial = {} if positions is None else {"positions": positions}
            of_rows = "" if isinstance(rows, slice) else " of some rows"  # what is cached of all rows stays
            with self.transformer.cache_context(f"cond{of_rows}"):
                cond = self.transformer(sample, classes[rows], return_dict=False, **partial)[0]
            scale = self.guidance_scale_at(t)
            if scale <= 1 or class_labels is None:
                return cond
            with self.transformer.cache_context(f"uncond{of_rows}"):
                uncond = self.transformer(sample, no_class[rows], return_dict=False, **partial)[0]
            return uncond.lerp_(cond, scale)

        def on_step_end(i: int, t: Tensor, latents: Tensor) -> Tensor:
            self._num_timesteps = i + 1
            if callback_on_step_end is not None:
                given = {"latents": latents} if "latents" in callback_on_step_end_tensor_inputs else {}
                latents = callback_on_step_end(self, i, t, given).pop("latents", latents)
            if is_torch_xla_available():
                xm.mark_step()
            return latents

        try:
            latents = denoise(
                denoiser,
                self.scheduler,
                latents,
                generator,
                first_step=first_step,
                initial=initial,
                partial_cache=self.transformer.partial_cache,
                progress_bar=self.progress_bar,
                on_step_end=on_step_end,
                interrupted=lambda: self.interrupt,
            )
        finally:  # what caches hold is freed, also after an error
            self.transformer._reset_stateful_cache()
        self._current_timestep = None

        images: Any = latents
        if output_type != "latent":
            images = self.image_processor.postprocess(self.decode_latents(latents), output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)


def _preprocess(
    name: str, images: PipelineImageInput, processor: VaeImageProcessor, channels: int, side: int | None = None
) -> list[Tensor]:
    """What diffusers' processor makes of each image, float32 `(1, channels, height, width)`, batches together."""
    images = images if isinstance(images, list | tuple) else [images]
    got = [tuple(image.shape) if hasattr(image, "shape") else image for image in images]
    try:
        tensors = [processor.preprocess(image, side, side).float() for image in images]
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"`{name}` must be a PIL image, a float array or tensor, or a list of them, got {got}. Pass "
            f"for example `Image.open(path)`. ({error})"
        ) from error
    if not tensors or any(t.ndim != 4 or t.shape[1] != channels or not t.numel() for t in tensors):
        raise ValueError(
            f"`{name}` must hold images of {channels} channel(s), got {got}. Pass PIL images, which are "
            "converted, arrays (height, width, channels) or tensors (channels, height, width)."
        )
    for tensor in tensors:
        if not bool(((tensor >= 0) & (tensor <= 1)).all()):
            raise ValueError(
                f"`{name}` must hold values in [0, 1], got values from {float(tensor.min()):.3g} to "
                f"{float(tensor.max()):.3g}. Divide bytes by 255, or pass PIL images."
            )
    return tensors
