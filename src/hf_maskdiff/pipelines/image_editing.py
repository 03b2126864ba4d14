"""From images to codes, to codes of which some are masked, and back: what the image pipelines share."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.image_processor import PipelineImageInput, VaeImageProcessor
from torch import Tensor
from torch.nn.functional import adaptive_max_pool2d

from ..sampling import Generators
from ..schedulers import MaskedDiffusionScheduler
from .calls import PipelineCall
from .code_caching import CodeCachingMixin
from .denoising import StepCallback, denoise
from .image_codes import code_shape, nearest_codes, upcast, with_grey
from .image_conditions import DecodedCondition
from .image_denoising import ImageDenoiser
from .image_inputs import read_images, read_masks

OUTPUT_TYPES = ("pil", "np", "pt", "latent")


class ImageEditingMixin(CodeCachingMixin):
    """Gives a pipeline of images what lies around its denoiser: the tokenizer, masks, and the run of the loop.

    Sizes of images are in pixels, height before width; None is the size that the model was trained with.
    """

    vqvae: Any
    scheduler: MaskedDiffusionScheduler
    config: Any
    _execution_device: Any
    progress_bar: Any
    upcasts_half = False  # whether a tokenizer in float16 works in float32 whatever its configuration says

    def _make_processors(self) -> None:
        config = self.vqvae.config if getattr(self, "vqvae", None) else {}
        levels = len(config.get("block_out_channels", [1]))  # of one whose codes are no places there may be none
        self.vae_scale_factor = 2 ** (levels - 1)
        channels = config.get("in_channels", 3)
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

    def _grid(self, size: tuple[int, int] | None = None) -> tuple[int, ...]:
        """How many codes an image of a size in pixels has: rows and columns, or one number where they are no places."""
        trained = code_shape(self.transformer)
        if size is None or len(trained) == 1:
            return trained
        return size[0] // self.vae_scale_factor, size[1] // self.vae_scale_factor

    # --- input --------------------------------------------------------------------------------------------------------

    def preprocess_image(self, image: PipelineImageInput, size: tuple[int, int] | None = None) -> Tensor:
        """Images to edit as the tokenizer reads them, float32 `(num_images, channels, height, width)` in [0, 1].

        Raises:
            ValueError: not images, or values outside [0, 1], such as NaN.
        """
        grid = self._grid(size)
        pixels = tuple(codes * self.vae_scale_factor for codes in grid)
        if len(grid) == 1:
            pixels = self.vqvae.image_size
        return torch.cat(read_images("image", image, self.image_processor, self.vqvae.config.in_channels, pixels))

    def preprocess_mask(self, mask_image: PipelineImageInput, size: tuple[int, int] | None = None) -> Tensor:
        """Which codes a mask of any size lets change, bool `(num_masks, rows, columns)`: those with a white pixel.

        White is a value of at least 0.5, and what is transparent is not white.

        Raises:
            ValueError: not grey images, values outside [0, 1], such as NaN, or nothing but black and darkest grey; or
                each code tells something of the whole image.
        """
        if len(self._grid(size)) == 1:
            raise ValueError(
                f"`mask_image` must be left out for a {type(self.vqvae).__name__}, each of whose codes tells something "
                "of the whole image, got one. Pass `image` with a `strength` below 1."
            )
        masks = read_masks(mask_image, self.mask_processor)
        return torch.cat([adaptive_max_pool2d(mask, self._grid(size))[:, 0] >= 0.5 for mask in masks])

    def prepare_latents(
        self, batch_size: int, latents: Tensor | None, device: torch.device, size: tuple[int, int] | None = None
    ) -> Tensor:
        """Codes to start from, int64 `(batch_size, rows, columns)` or `(batch_size, L)`: all masked unless given."""
        if latents is not None:
            return latents.to(device)
        return torch.full((batch_size, *self._grid(size)), self.scheduler.config.mask_token_id, device=device)

    def prepare_image_latents(
        self,
        codes: Tensor,
        editable: Tensor | None,
        first_step: int,
        generator: Generators,
        scheduler: MaskedDiffusionScheduler | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Codes of images in which the codes to draw anew are masked, as far as they are at the time of `first_step`.

        Args:
            codes: int64 `(batch_size, height, width)`.
            editable: bool, the shape of `codes`; None is all.
            first_step: the step that the run starts with.
            generator: one for the batch, or one per image.
            scheduler: with its timesteps set; None is the pipeline's own.

        Returns:
            The masked codes, and the size of each row's editable region, int64 `(batch_size,)`.
        """
        scheduler = scheduler or self.scheduler
        noisy = torch.full_like(codes, scheduler.config.mask_token_id)
        if first_step > 0:  # else all is masked and no noise is drawn, just as without an image
            noisy = scheduler.add_noise(codes, scheduler.timesteps[first_step], generator)
        editable = torch.ones_like(codes, dtype=torch.bool) if editable is None else editable
        return torch.where(editable, noisy, codes), editable.flatten(1).sum(-1)

    # --- the tokenizer ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode_image(self, image: Tensor) -> Tensor:
        """Codes of images, int64 `(batch_size, height, width)`.

        Args:
            image: `(batch_size, channels, height, width)` in [0, 1], see `preprocess_image`.
        """
        image = image * 2 - 1 if self.config.get("do_normalize", False) else image
        with upcast(self.vqvae, self.upcasts_half):
            latents = self.vqvae.encode(image.to(self._execution_device, self.vqvae.dtype)).latents
        # At once: an offloaded tokenizer is on the device from here until another component runs.
        return nearest_codes(self.vqvae, latents)

    @torch.no_grad()
    def decode_latents(self, latents: Tensor, encoder_hidden_states: Tensor | None = None) -> Tensor:
        """Images in [0, 1], `(batch_size, channels, height, width)`, of codes; what is still masked is grey.

        Args:
            latents: int64 `(batch_size, height, width)`, or `(batch_size, L)` where they are no places.
            encoder_hidden_states: of the prompt of each image, as `encode_prompt` returns them, for a tokenizer of
                images that reads the text too.
        """
        masked = latents == self.scheduler.config.mask_token_id
        shape = (*latents.shape, self.vqvae.quantize.vq_embed_dim)
        codes = latents.masked_fill(masked, 0)
        with upcast(self.vqvae, self.upcasts_half):
            text = {}
            if encoder_hidden_states is not None:
                own = encoder_hidden_states[..., -self.vqvae.config.text_embed_dim :]
                text["encoder_hidden_states"] = own.to(codes.device, self.vqvae.dtype)
            image = self.vqvae.decode(codes, force_not_quantize=True, shape=shape, **text).sample
        image = (image / 2 + 0.5 if self.config.get("do_normalize", False) else image).clip(0, 1)
        return with_grey(image, masked)

    # --- the run ------------------------------------------------------------------------------------------------------

    def _start(
        self,
        latents: Tensor,
        editable: Tensor | None,
        first_step: int,
        generator: Generators,
        call: PipelineCall,
    ) -> dict[str, Any]:
        """What the loop takes of codes of images that are to be edited: where to start, and what is given."""
        start, initial = self.prepare_image_latents(latents, editable, first_step, generator, call.scheduler)
        given = torch.zeros_like(start, dtype=torch.bool) if editable is None else ~editable
        return {"sample": start, "initial": initial, "given": given, "first_step": first_step}

    def _fill_in(
        self,
        call: PipelineCall,
        condition: DecodedCondition,
        start: dict[str, Any],
        generator: Generators,
        on_step_end: StepCallback,
        output_type: str,
    ) -> Any:
        """Run the loop, and return images of the type asked for.

        Args:
            start: what `denoise` begins with, `sample` among it.
        """
        run = ImageDenoiser(self._cache_switch, condition, call, len(start["sample"]))
        try:
            with self._running(call):  # type: ignore[attr-defined]
                latents = denoise(
                    run,
                    call.scheduler,
                    generator=generator,
                    partial_cache=self.partial_cache,
                    pass_of_step=run.pass_of_step,
                    progress_bar=self.progress_bar,
                    on_step_end=on_step_end,
                    interrupted=lambda: call.interrupt,
                    **start,
                )
        finally:  # what diffusers' caches hold is freed, also after an error
            self._cache_switch.model._reset_stateful_cache()
        if output_type == "latent":
            return latents
        return self.image_processor.postprocess(self.decode_latents(latents, **condition.decoding), output_type)
