"""Class-conditional and unconditional image generation by filling in masked codes."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput, VQModel
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils import is_torch_xla_available, replace_example_docstring
from torch import Tensor

from ..models import HaltonMaskGITTransformer2DModel
from ..sampling import Generators, check_generators
from ..schedulers import MaskedDiffusionScheduler
from .denoising import denoise

if is_torch_xla_available():
    import torch_xla.core.xla_model as xm

EXAMPLE_DOC_STRING = """
    Examples:
        ```py
        >>> from hf_maskdiff import HybridScheduler, MaskGITPipeline

        >>> pipe = MaskGITPipeline.from_pretrained("pipelines/maskgit-mnist")
        >>> image = pipe(class_labels=7, num_inference_steps=8).images[0]

        >>> pipe.scheduler = HybridScheduler.from_config(pipe.scheduler.config)
        >>> images = pipe(class_labels=["3", "8"], num_images_per_prompt=4).images
        ```
"""

# Written beside `model_index.json`, for `DiffusionPipeline.from_pretrained(repo, custom_pipeline=repo)`.
PIPELINE_FILE = '''\
"""Opens this repository with the installed package: `pip install hf-maskdiff`."""

try:
    from hf_maskdiff import {name}
except ImportError as error:
    raise ImportError("This pipeline needs the package hf_maskdiff. Run `pip install hf-maskdiff`.") from error
'''

OUTPUT_TYPES = ("pil", "np", "pt", "latent")


class MaskGITPipeline(DiffusionPipeline):
    r"""Draws images from a masked image model with any scheduler of this package; swap `pipe.scheduler` freely.

    Args:
        vqvae ([`~diffusers.VQModel`]): the tokenizer; its decoder turns codes into images in [0, 1].
        transformer ([`HaltonMaskGITTransformer2DModel`]): the denoiser, codes and class to logits.
        scheduler ([`MaskedDiffusionScheduler`]): which positions are revealed when, and at what temperature.
    """

    model_cpu_offload_seq = "transformer->vqvae"
    _callback_tensor_inputs = ["latents"]  # noqa: RUF012 - diffusers' name and type

    def __init__(
        self, vqvae: VQModel, transformer: HaltonMaskGITTransformer2DModel, scheduler: MaskedDiffusionScheduler
    ) -> None:
        super().__init__()
        self.register_modules(vqvae=vqvae, transformer=transformer, scheduler=scheduler)
        levels = len(self.vqvae.config.block_out_channels) if getattr(self, "vqvae", None) else 1
        self.vae_scale_factor = 2 ** (levels - 1)
        self.image_processor = VaeImageProcessor(vae_scale_factor=self.vae_scale_factor, do_normalize=False)

    @property
    def guidance_scale(self) -> float:
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        return self._guidance_scale > 1

    @property
    def num_timesteps(self) -> int:
        """Steps run by the last call; each costs one model pass, two with guidance."""
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

    def check_inputs(
        self,
        num_images_per_prompt: int,
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
        if batch_size == 0:
            raise ValueError("`class_labels` must hold at least one label, got none. Pass None for no class.")
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

    # --- output -------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def decode_latents(self, latents: Tensor) -> Tensor:
        """Images in [0, 1], `(batch_size, channels, height, width)`, of codes; what is still masked is grey.

        Args:
            latents: int64 `(batch_size, height, width)`.
        """
        masked = latents == self.scheduler.config.mask_token_id
        shape = (*latents.shape, self.vqvae.config.latent_channels)
        needs_upcasting = self.vqvae.dtype == torch.float16 and self.vqvae.config.force_upcast
        if needs_upcasting:
            self.vqvae.float()
        codes = latents.masked_fill(masked, 0)
        image = self.vqvae.decode(codes, force_not_quantize=True, shape=shape).sample.clip(0, 1)
        if needs_upcasting:
            self.vqvae.half()
        grey = masked.repeat_interleave(image.shape[-2] // masked.shape[-2], 1)
        grey = grey.repeat_interleave(image.shape[-1] // masked.shape[-1], 2)
        return image.masked_fill(grey[:, None], 0.5)

    def save_pretrained(self, save_directory: str | PathLike, *args: Any, **kwargs: Any) -> None:
        """As `DiffusionPipeline.save_pretrained`, with a one-import `pipeline.py` for `custom_pipeline=` loading."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "pipeline.py").write_text(PIPELINE_FILE.format(name=type(self).__name__))
        super().save_pretrained(save_directory, *args, **kwargs)

    # --- the call -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    @replace_example_docstring(EXAMPLE_DOC_STRING)
    def __call__(
        self,
        class_labels: int | str | Sequence[int | str] | Tensor | None = None,
        num_inference_steps: int = 8,
        guidance_scale: float = 1.0,
        num_images_per_prompt: int = 1,
        temperature: float | Sequence[float] | None = None,
        generator: Generators = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., dict] | PipelineCallback | MultiPipelineCallbacks | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> ImagePipelineOutput | tuple:
        """
        Generate images.

        Args:
            class_labels (`int`, `str`, list of them, or int64 tensor, *optional*): ids, or names where the
                transformer's config has `id2label`; None draws an image of no class.
            num_inference_steps (`int`): model passes; one step reveals several positions.
            guidance_scale (`float`): classifier-free guidance, `logits = uncond + scale (cond - uncond)`; above 1 each
                step costs a second pass.
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

        Examples:

        Returns:
            [`~diffusers.ImagePipelineOutput`] or `tuple`: `images`.

        Raises:
            ValueError: for arguments that cannot work, before any model call.
        """
        if isinstance(callback_on_step_end, PipelineCallback | MultiPipelineCallbacks):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        labels = self.get_label_ids(class_labels)
        batch_size = len(labels) * num_images_per_prompt if isinstance(num_images_per_prompt, int) else 0
        self.check_inputs(
            num_images_per_prompt, latents, batch_size, generator, output_type, callback_on_step_end_tensor_inputs
        )
        self.scheduler.set_timesteps(num_inference_steps, temperature)
        self._guidance_scale, self._interrupt, self._num_timesteps = guidance_scale, False, 0
        self._current_timestep: Tensor | None = None

        device = self._execution_device
        classes = torch.tensor(labels, device=device).repeat_interleave(num_images_per_prompt)
        no_class = torch.full_like(classes, self.transformer.config.num_classes)
        latents = self.prepare_latents(batch_size, latents, device)

        def denoiser(sample: Tensor) -> Tensor:
            with self.transformer.cache_context("cond"):
                cond = self.transformer(sample, classes, return_dict=False)[0]
            if not self.do_classifier_free_guidance:
                return cond
            with self.transformer.cache_context("uncond"):
                uncond = self.transformer(sample, no_class, return_dict=False)[0]
            return uncond.lerp_(cond, self.guidance_scale)

        def on_step_end(i: int, t: Tensor, latents: Tensor) -> Tensor:
            self._num_timesteps, self._current_timestep = i + 1, t
            if callback_on_step_end is not None:
                given = {"latents": latents} if "latents" in callback_on_step_end_tensor_inputs else {}
                latents = callback_on_step_end(self, i, t, given).pop("latents", latents)
            if is_torch_xla_available():
                xm.mark_step()
            return latents

        latents = denoise(
            denoiser,
            self.scheduler,
            latents,
            generator,
            progress_bar=self.progress_bar,
            on_step_end=on_step_end,
            interrupted=lambda: self.interrupt,
        )
        self._current_timestep = None

        images: Any = latents
        if output_type != "latent":
            images = self.image_processor.postprocess(self.decode_latents(latents), output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)
