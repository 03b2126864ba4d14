"""The sampler of models that make all tokens in one pass."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from ..masking import MaskingSchedule
from ..sampling import Generators, Purpose, draw_keys, float64_device, position_noise
from .checks import ChoiceTemperature, is_number, require, require_drawn, require_steps, warn_user
from .output import MaskedDiffusionSchedulerOutput
from .run_memory import RunMemory
from .run_start import EmbeddingNoise, RunStart
from .scheduling_masked_diffusion import MaskedDiffusionScheduler


class OneStepScheduler(MaskedDiffusionScheduler):
    r"""Draws all tokens in one pass, also those that are no masks: for models that were distilled for that (Di[M]O).

    $$ x_i \sim p_i(\,\cdot \mid z) \;\text{ at every position } i $$

    The start z has masks at `r L` of its positions and random codes at the others. It makes one image differ from
    another: `start_run` draws it, with normal noise that the model mixes into the embeddings of its tokens. Nothing can
    be given: such a model was not made to keep tokens, so it neither edits nor continues. "Di[M]O: Distilling Masked
    Diffusion Models into One-step Generator" (arXiv 2503.15457).

    Example:

        scheduler = OneStepScheduler(mask_token_id=1024, codebook_size=1024)
        scheduler.set_timesteps(1)
        masks = torch.full((4, 16, 16), 1024)
        start, nothing = scheduler.start_run(masks), torch.zeros_like(masks, dtype=torch.bool)
        logits = model(start.sample, class_labels, embedding_noise=start.embedding_noise).sample
        sample = scheduler.step(logits, 1.0, start.sample, given=nothing).prev_sample

    Args:
        mask_token_id (`int`): id of the mask.
        codebook_size (`int`, optional): number of codes; needed to draw random ones.
        masking_schedule, rounding, temperature, top_k, top_p, typical_p: see `MaskedDiffusionScheduler`; the first two
            have no effect but in `add_noise`.
        initial_mask_ratio (`float`): r, in (0, 1], the share of masks in what a run starts from: exactly
            `round(r L)` positions of each row, at least one; all others hold codes drawn uniformly.
        embedding_noise (`float`): sigma, in [0, 1): embeddings e become `sigma N(0, 1) + sqrt(1 - sigma^2) e`.
    """

    @register_to_config
    def __init__(
        self,
        mask_token_id: int,
        codebook_size: int | None = None,
        masking_schedule: MaskingSchedule = "cosine",
        rounding: str = "floor_masked",
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        initial_mask_ratio: float = 0.6,
        embedding_noise: float = 0.1,
        typical_p: float | None = None,
    ) -> None:
        self.check_config()
        ratio, noise, table = initial_mask_ratio, embedding_noise, self.config.masking_schedule
        valid = is_number(ratio) and 0 < ratio <= 1
        require(valid, "initial_mask_ratio", "in (0, 1]", ratio, "Pass 0.6, or 1 to start from masks alone.")
        valid = is_number(noise) and 0 <= noise < 1
        require(valid, "embedding_noise", "in [0, 1)", noise, "Pass 0.1, or 0 for none.")
        valid = isinstance(table, str) or len(table) == 1
        require(valid, "masking_schedule", "a name, or a table of one step", table, "Leave it out.")

    @property
    def revises(self) -> bool:
        return True

    @property
    def reads_revealed(self) -> bool:
        return True

    def set_timesteps(
        self,
        num_inference_steps: int,
        temperature: ChoiceTemperature | None = None,
        device: str | torch.device | None = None,
        block_length: int | None = None,
    ) -> None:
        steps = require_steps(num_inference_steps)
        remedy = "Pass `num_inference_steps=1`, or take another scheduler for more."
        require(steps == 1, "num_inference_steps", "1 with a OneStepScheduler", steps, remedy)
        super().set_timesteps(steps, temperature, device, block_length)

    def start_run(self, sample: Tensor, given: Tensor | None = None, generator: Generators = None) -> RunStart:
        """Random codes and masks, and the noise of their embeddings; the arguments are those of the base.

        With one generator per row a row's start is its own in any batch.

        Raises:
            ValueError: something is given, or random codes are wanted and `codebook_size` is not set.
        """
        config, tokens = self.config, sample.flatten(1)
        kept = (tokens != config.mask_token_id) if given is None else given
        if bool(kept.any()):
            raise ValueError(
                f"`sample` must be masks alone for a OneStepScheduler, got {int(kept.sum())} tokens that are to be "
                "kept: a model that makes all tokens in one pass keeps none. Take another scheduler, and a model of "
                "many steps, to edit an image or to continue a text."
            )
        keys = draw_keys(generator, len(tokens), float64_device(tokens.device))
        codes = self._random_codes(keys, tokens.shape[1])
        order = position_noise(keys, tokens.shape[1], Purpose.CHOICE)[0].argsort(-1)
        count = max(1, round(config.initial_mask_ratio * tokens.shape[1]))
        start = codes.scatter(1, order[:, :count], config.mask_token_id)
        noise = EmbeddingNoise(config.embedding_noise, keys) if config.embedding_noise > 0 else None
        return RunStart(start.view_as(sample).to(sample.device), noise)

    def _random_codes(self, keys: Tensor, length: int) -> Tensor:
        """Codes drawn uniformly, int64 `(batch_size, L)`."""
        size = self.config.codebook_size
        if size is None:
            require(
                self.config.initial_mask_ratio == 1, "codebook_size", "given to draw random codes", size, "Pass it."
            )
            size = 1
        return (position_noise(keys, length, Purpose.TOKEN)[0] * size).long()

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        starting_mask_ratio: float | Tensor = 1.0,
        generator: Generators = None,
        return_dict: bool = True,
        max_count: int | None = None,
        logits_at: Tensor | None = None,
        memory: RunMemory | None = None,
        given: Tensor | None = None,
        details: bool = False,
        **of_block: Any,
    ) -> MaskedDiffusionSchedulerOutput | tuple[Tensor, ...]:
        if of_block:
            return self._step_of_block(model_output, timestep, sample, generator, return_dict, of_block)
        with torch.inference_mode():
            arguments = (model_output, timestep, sample, starting_mask_ratio, generator, logits_at, memory, given)
            marginals, context = self.start_step(*arguments)
            if given is None:
                self._warn_of_known(context.masked)
            free = ~context.given
            drawn, _ = marginals.draw_all(free, context.uniform(Purpose.TOKEN))
            if sample.device.type == "cpu":
                require_drawn(drawn, marginals.num_tokens, context.step_index)
            drawn = drawn.to(sample.device)
            # On an accelerator, a position at which no token can be drawn (NaN logits) is a mask.
            drawn = drawn.masked_fill(drawn >= marginals.num_tokens, self.config.mask_token_id)

        # Outside inference mode, so that the results may enter a graph.
        prev_sample = torch.where(free, drawn, sample.flatten(1)).view_as(sample)
        if not return_dict:
            return prev_sample, prev_sample.clone()
        output = MaskedDiffusionSchedulerOutput(prev_sample, prev_sample.clone())
        return output.with_details(model_output, sample) if details else output

    step.__doc__ = MaskedDiffusionScheduler.step.__doc__

    def _warn_of_known(self, masked: Tensor) -> None:
        if masked.device.type == "cpu" and not bool(masked.all()):  # elsewhere looking would make the host wait
            warn_user(
                "OneStepScheduler cannot tell the random codes of its start from tokens to keep, so it draws masks "
                "alone. Pass `given=torch.zeros_like(sample, dtype=torch.bool)` to draw every token."
            )
