"""The base of every scheduler: time, counts, noise and the forward process."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from inspect import isabstract
from typing import TYPE_CHECKING, Any

import diffusers
import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from ..hub import ModelCardMixin
from ..integers import is_integer, plain
from ..masking import check_masking_schedule, mask_ratio, masks_left, reveal_counts
from ..sampling import Generators, Marginals, Purpose, draw_keys, float64_device, position_noise
from .block_refinement import BlockRefinementMixin
from .checks import (
    ChoiceTemperature,
    check_choice_temperature,
    check_flags,
    check_marginals,
    flatten_logits,
    require,
    require_steps,
    require_tensor,
)
from .output import MaskedDiffusionSchedulerOutput
from .presets import (
    check_keywords,
    class_named,
    counting_given,
    require_named,
    settings_of,
    warn_of_another_class,
    with_settings,
)
from .run_keys import RunKeys
from .run_memory import RunMemory
from .run_plan import RunPlanMixin
from .step_context import StepContext, given_positions
from .uncompiled import uncompiled


class MaskedDiffusionScheduler(BlockRefinementMixin, RunPlanMixin, ModelCardMixin, SchedulerMixin, ConfigMixin, ABC):
    """Base of all schedulers: reveals some masked positions per step, never changes a given token, ends without masks.

    A subclass registers its configuration, calls `check_config` and implements `step`. Time runs from 1 to 0:
    `timesteps[n] = 1 - n / T`, float32, on the CPU. A row that starts with N_0 masks and has N_n of them before step n
    keeps `min(N_n - 1, floor(N_0 m(t_{n+1})))` after it, so every step reveals at least one position while any is
    masked.

    Configuration shared by all schedulers:

        mask_token_id (`int`): the token that stands for "masked"; it may lie outside the logits' columns.
        codebook_size (`int`, optional): ids from this one on are never drawn; None allows every column but the mask's.
        masking_schedule (`str` or list of `int`): `"cosine"`, `"linear"`, `"arccos"`, `"square"`, `"mdlm_cosine"`, or a
            table of how many positions are revealed by the end of each step, which fixes the number of steps.
        rounding (`str`): `"floor_masked"`, `"floor_revealed"` or `"even"`, see `hf_maskdiff.masking.masks_left`.
        temperature (`float`): temperature of the model's marginals p_i.
        top_k (`int`, optional), top_p (`float`, optional): restrict p_i as in transformers; the token with which the
            total probability reaches `top_p` is kept.
        typical_p (`float`, optional): restricts p_i further, to the tokens whose information `-log p_i(x)` is nearest
            to the entropy, until their total probability reaches `typical_p`; as in transformers, after `top_p`.
    """

    order = 1
    card_tags = ("scheduler",)
    card_variable = "scheduler"
    card_example = (
        "# For a model with other tokens:\n"
        "scheduler = scheduler.from_config(scheduler.config, mask_token_id=1024, codebook_size=1024)"
    )
    if TYPE_CHECKING:
        config: Any  # a FrozenDict, whose keys are also attributes

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # `torch.compile` leaves a step as it is: its kernels are fused already, and torch 2.11 fails on tensors of
        # inference mode that cross from one compiled part to the next.
        for name in {"step", "choose", "sample_tokens"} & vars(cls).keys():
            setattr(cls, name, uncompiled(vars(cls)[name]))

    # --- configuration ------------------------------------------------------------------------------------------------

    def check_config(self) -> None:
        """Validate the configuration and reset the run's state; called at the end of every `__init__`."""
        values = {name: plain(value) for name, value in self.config.items()}
        self.register_to_config(**counting_given(type(self), values))
        config = self.config
        check_masking_schedule(config.masking_schedule, config.rounding)
        mask = config.mask_token_id
        valid = is_integer(mask, at_least=0)
        require(valid, "mask_token_id", "an integer of at least 0", mask, "Pass the id of the mask.")
        check_flags(type(self), config)
        check_marginals(config, self.own_setting("typical_p"))
        if "choice_temperature" in config:
            schedule = config.choice_temperature_schedule
            rule = "'linear' (falls to 0 over the steps) or 'constant'"
            require(
                schedule in ("linear", "constant"), "choice_temperature_schedule", rule, schedule, "Pick one of them."
            )
            check_choice_temperature(config.choice_temperature)
        self.num_inference_steps: int | None = None
        self.timesteps = torch.empty(0)
        self._choice_temperatures: list[float] | None = None
        self._run_keys = RunKeys()

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """A scheduler with these settings: those of any scheduler, with the keywords in place of its own.

        What this class has no use for in the configuration of another one is kept for the way back. Called on a base,
        `MaskedDiffusionScheduler.from_config(config)`, it makes the scheduler that the configuration names.

        Args:
            config: `scheduler.config`, or what `load_config` returns.
            return_unused_kwargs: return `(scheduler, keywords that it did not use)`.
            kwargs: settings, for example `choice_temperature=3.0`.

        Raises:
            ValueError: a keyword that neither this class nor the configuration knows; called on a base, a
                configuration that names no scheduler of this package.
        """
        if isabstract(cls):
            named: Any = require_named(cls, config, _schedulers())
            return named.from_config(config, return_unused_kwargs, **kwargs)
        if isinstance(config, Mapping):
            own = cls._get_init_keys(cls) - {"self"}
            if not return_unused_kwargs:
                check_keywords(cls.__name__, kwargs, {*own, *config})
            config = with_settings(config, {name: kwargs[name] for name in kwargs if name not in own})
        return super().from_config(config, return_unused_kwargs, **kwargs)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike | None = None,
        subfolder: str | None = None,
        return_unused_kwargs: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Open a preset, from a folder or the Hub; the arguments are those of diffusers' `SchedulerMixin`.

        `MaskedDiffusionScheduler.from_pretrained(preset)` is the scheduler that the preset names. Another class takes
        over the settings that it shares with that one, as diffusers' schedulers do, and says so in a warning.
        """
        config, settings, _ = cls.load_config(
            pretrained_model_name_or_path,
            subfolder=subfolder,
            return_unused_kwargs=True,
            return_commit_hash=True,
            **kwargs,
        )
        if not isabstract(cls):
            warn_of_another_class(cls, class_named(config, _schedulers()), pretrained_model_name_or_path)
        made = cls.from_config(config, return_unused_kwargs=return_unused_kwargs, **settings)
        if subfolder is None:  # else the card there is of what this is a part of
            (made[0] if return_unused_kwargs else made)._loaded_from = pretrained_model_name_or_path
        return made

    @property
    def choice_temperature(self) -> ChoiceTemperature | None:
        """That of the configuration; None where there is none, also where it is kept for another scheduler only."""
        return self.own_setting("choice_temperature")

    def own_setting(self, name: str, default: Any = None) -> Any:
        """A setting that only some classes have: the default in those without, whatever the configuration keeps.

        `from_config` keeps what its class has no use for, for the way back; `config.get(name)` would find that too.
        """
        return self.config[name] if name in settings_of(type(self)) else default

    @classmethod
    def _get_compatibles(cls) -> list[type]:
        return [*_schedulers(), diffusers.AmusedScheduler]

    # --- the run ------------------------------------------------------------------------------------------------------

    def set_timesteps(
        self,
        num_inference_steps: int,
        temperature: ChoiceTemperature | None = None,
        device: str | torch.device | None = None,
        block_length: int | None = None,
    ) -> None:
        """Prepare a run of `num_inference_steps` model passes.

        Args:
            temperature: the *choice* temperature for this run; the name and place of the argument are aMUSEd's. None
                keeps the config's value, a pair `(start, end)` changes linearly over the steps, and a number s means
                `(s, 0.01)`. Schedulers without a choice temperature ignore it.
            device, block_length: accepted for diffusers' pipelines but not used; `timesteps` stays on the CPU, like
                diffusers' `sigmas`.
        """
        num_inference_steps = require_steps(num_inference_steps)
        table = self.config.masking_schedule
        if not isinstance(table, str) and len(table) != num_inference_steps:
            raise ValueError(
                f"`num_inference_steps` must be {len(table)}, the length of the `masking_schedule` table, got "
                f"{num_inference_steps}. Pass {len(table)}, or use a named schedule such as 'cosine'."
            )
        self.num_inference_steps = num_inference_steps
        times = [1 - n / num_inference_steps for n in range(num_inference_steps)]
        self.timesteps = torch.tensor(times, dtype=torch.float32)
        self._choice_temperatures = self._anneal(temperature)
        self._run_keys = RunKeys()

    def _anneal(self, override: ChoiceTemperature | None) -> list[float] | None:
        value, num_steps = self.choice_temperature, self._require_run()
        if value is None:
            return None
        if override is not None:
            check_choice_temperature(override)
            value = override if isinstance(override, Sequence) else (override, 0.01)
        if isinstance(value, Sequence):
            start, end = value
            return [start + (end - start) * n / max(num_steps - 1, 1) for n in range(num_steps)]
        if self.config.choice_temperature_schedule == "constant":
            return [float(value)] * num_steps
        return [value * (1 - (n + 1) / num_steps) for n in range(num_steps)]

    def with_sampling_temperature(self, value: float) -> MaskedDiffusionScheduler:
        """A copy that draws tokens at another temperature; 0 always takes the most probable token."""
        return self.from_config(self.config, **({"temperature": value} if value > 0 else {"top_k": 1}))

    def adopt_run(self, other: MaskedDiffusionScheduler) -> None:
        """Take over the timesteps of `other`: a pipeline's call runs on a copy, but users look at the original."""
        self.num_inference_steps, self.timesteps = other.num_inference_steps, other.timesteps
        self._choice_temperatures = other._choice_temperatures

    def _require_run(self) -> int:
        if self.num_inference_steps is None:
            raise ValueError(
                "`set_timesteps` must be called before `step`, got no timesteps. Call `scheduler.set_timesteps(8)` "
                "first."
            )
        return self.num_inference_steps

    # --- one step -----------------------------------------------------------------------------------------------------

    @abstractmethod
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
        """Reveal this step's positions.

        Args:
            model_output: logits `(batch_size, L, V)`, or `(batch_size, V, height, width)`; any float dtype.
            timestep: the entry of `timesteps` for this step, in [0, 1].
            sample: tokens int64 `(batch_size, L)` or `(batch_size, height, width)`.
            starting_mask_ratio: share of positions that were masked when the run began: a number, a 0-dim tensor, or
                one per row `(batch_size,)`.
            generator: one for the batch, one per row (then a row's result does not depend on other rows), or None.
            return_dict: return a `MaskedDiffusionSchedulerOutput` rather than a tuple.
            max_count: an upper bound on the number of positions that any row reveals in this step, if the caller knows
                one; on an accelerator it avoids drawing tokens at positions that are not chosen.
            logits_at: if `model_output` holds logits `(num_rows, n, V)` of some positions alone, the index of each in
                `sample.flatten()`, int64 `(num_rows, n)`; -1 for logits that belong nowhere. All masked positions must
                be among them.
            memory: what this scheduler's `new_memory` made when the run began, the same object in every step.
            given: which positions no step may touch while they hold a token, such as a prompt, bool, the shape of
                `sample`. None: those that were known in the first step of `memory`, or all that are known now.
            details: fill in `pred_logits` and `transfer_index` of the output.
            of_block: what diffusers' `LLaDA2Pipeline` passes; with it, `timestep` is the number of the step, from 0.

        Raises:
            ValueError: wrong shapes or dtypes, a timestep outside [0, 1], a list of generators of the wrong length,
                `set_timesteps` not called; on the CPU also logits from which no token can be drawn.
        """

    def marginals(self, logits: Tensor, logits_at: Tensor | None = None, num_places: int = 0) -> Marginals:
        """The marginals p_i of logits `(batch_size, L, V)` under this scheduler's temperature and filters.

        With `logits_at`, see `step`, they are those of some of `num_places` positions.
        """
        config = self.config
        allowed = (config.mask_token_id, config.codebook_size, config.temperature, config.top_k, config.top_p)
        typical = self.own_setting("typical_p"), self.own_setting("typical_min_tokens", 1)
        return Marginals(logits, *allowed, logits_at, num_places, *typical)

    def start_step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        starting_mask_ratio: float | Tensor,
        generator: Generators,
        logits_at: Tensor | None = None,
        memory: RunMemory | None = None,
        given: Tensor | None = None,
    ) -> tuple[Marginals, StepContext]:
        """Check the input of a step; returns the marginals, and the `StepContext`, which does not depend on them."""
        num_steps = self._require_run()
        marginals = self.marginals(flatten_logits(model_output, sample, logits_at), logits_at, sample.numel())
        if marginals.num_tokens < 1:
            raise ValueError(
                f"`model_output` must have a column for a token that is not the mask, got {tuple(model_output.shape)} "
                f"with mask_token_id={self.config.mask_token_id}. Check `mask_token_id` and `codebook_size`."
            )
        time = float(timestep)
        require(0 <= time <= 1, "timestep", "in [0, 1]", time, "Pass an entry of `scheduler.timesteps`.")
        step_index = min(round((1 - time) * num_steps), num_steps - 1)

        tokens = sample.flatten(1)
        masked = tokens == self.config.mask_token_id
        remaining = masked.sum(-1)
        device = float64_device(tokens.device)
        if isinstance(starting_mask_ratio, Tensor):
            shape, allowed = tuple(starting_mask_ratio.shape), f"a number or one per row ({len(tokens)},)"
            remedy = "Pass each row's share of masked positions."
            require(shape in ((), (1,), (len(tokens),)), "starting_mask_ratio", allowed, shape, remedy)
            starting_mask_ratio = _one_of_all(starting_mask_ratio, device)
        initial = (starting_mask_ratio * tokens.shape[1] + 0.5) // 1
        target = masks_left(initial, step_index, num_steps, self.config.masking_schedule, self.config.rounding)
        if isinstance(target, Tensor):
            target = target.to(remaining.device)
        keys = draw_keys(generator, len(tokens), device)
        if memory is not None:
            memory.begin_step(tokens, keys, masked)
        return marginals, StepContext(
            step_index=step_index,
            num_inference_steps=num_steps,
            tokens=tokens,
            masked=masked,
            remaining=remaining,
            count=reveal_counts(remaining, target),
            keys=keys,
            choice_temperature=None if self._choice_temperatures is None else self._choice_temperatures[step_index],
            grid=tuple(sample.shape[1:]),
            generator=generator,
            of_run=self._run_keys,
            initial=initial,
            memory=memory,
            given=given_positions(given, sample, masked, memory),
        )

    # --- the forward process ------------------------------------------------------------------------------------------

    def add_noise(self, original_samples: Tensor, timesteps: float | Tensor, generator: Generators = None) -> Tensor:
        """Mask every position independently with probability m(t): the start of training and of image-to-image.

        Args:
            original_samples: tokens int64 `(batch_size, ...)`.
            timesteps: t in [0, 1], one for all rows or one per row `(batch_size,)`.
            generator: one for the batch, one per row, or None; of more generators than rows, the first ones are used.

        Returns:
            Tokens of the same shape, with `mask_token_id` at the masked positions.
        """
        require_tensor("original_samples", original_samples, "int64 tokens", "Pass token ids.")
        if original_samples.dtype != torch.int64:
            dtype = original_samples.dtype
            raise ValueError(f"`original_samples` must hold int64 tokens, got {dtype}. Pass token ids.")
        batch_size = len(original_samples)
        if isinstance(generator, Sequence):
            generator = generator[:batch_size]
        device = float64_device(original_samples.device)
        time = torch.as_tensor(timesteps, dtype=torch.float64)
        shape, remedy = tuple(time.shape), "Pass times from `scheduler.timesteps`, or drawn uniformly."
        require(shape in ((), (batch_size,)), "timesteps", f"one time or one per row ({batch_size},)", shape, remedy)
        if time.device.type == "cpu":  # reading times from an accelerator would make the host wait
            require(bool(((time >= 0) & (time <= 1)).all()), "timesteps", "in [0, 1]", timesteps, remedy)
        time = time.to(device).expand(batch_size)
        tokens = original_samples.flatten(1)
        keys = draw_keys(generator, batch_size, device)
        noise = position_noise(keys, tokens.shape[1], Purpose.FORWARD)[0]
        ratio = mask_ratio(self.config.masking_schedule, time.clamp(0, 1))
        masked = (noise < ratio[:, None]).to(tokens.device)
        return tokens.masked_fill(masked, self.config.mask_token_id).view_as(original_samples)


def _one_of_all(ratios: Tensor, device: torch.device) -> Tensor | float:
    """The number that all of these are, where that can be seen without waiting; else a float64 tensor on `device`."""
    found: set[float] = set(ratios.flatten().tolist()) if ratios.device.type == "cpu" else set()
    return found.pop() if len(found) == 1 else ratios.to(device=device, dtype=torch.float64, non_blocking=True)


def _schedulers(base: type = MaskedDiffusionScheduler) -> list[type]:
    """Every scheduler that is imported, with those of other packages; once, also where it has two parents."""
    children: list[type] = base.__subclasses__()
    below = [found for child in children for found in _schedulers(child)]
    return list(dict.fromkeys(below if isabstract(base) else [base, *below]))
