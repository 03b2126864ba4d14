"""Schedulers."""

from __future__ import annotations

from mutant_lists.mutant import Mutant

_SCHEDULERS = "hf_maskdiff/schedulers/scheduling_"
_BASE = "hf_maskdiff/schedulers/scheduling_masked_diffusion.py"
_CHOOSE = "hf_maskdiff/schedulers/scheduling_choose_then_sample.py"
_CONTEXT = "hf_maskdiff/schedulers/step_context.py"

MUTANTS = [
    Mutant(
        "beta-without-one",
        "beta is 1 / alpha",
        _CONTEXT,
        "else 1 + 1 / max(self.choice_temperature, _SMALLEST_ALPHA)",
        "else 1 / max(self.choice_temperature, _SMALLEST_ALPHA)",
        ("tests/test_properties.py::test_plain_exploration_draws_explored_positions_at_the_model_s_temperature",),
    ),
    Mutant(
        "beta-in-the-last-step",
        "the step that empties a row is sharpened too",
        _CONTEXT,
        "torch.where(self.count < self.remaining, self.sharpness, 1.0)",
        "torch.where(self.count <= self.remaining, self.sharpness, 1.0)",
        ("tests/test_properties.py::test_plain_exploration_draws_explored_positions_at_the_model_s_temperature",),
    ),
    Mutant(
        "annealing-one-step-late",
        "alpha falls from its full value, and not to 0",
        _BASE,
        "return [value * (1 - (n + 1) / num_steps) for n in range(num_steps)]",
        "return [value * (1 - n / num_steps) for n in range(num_steps)]",
        ("tests/test_contract.py::test_choice_temperature_schedules",),
    ),
    Mutant(
        "a-pair-that-does-not-end",
        "a pair of temperatures stops short of its end",
        _BASE,
        "return [start + (end - start) * n / max(num_steps - 1, 1) for n in range(num_steps)]",
        "return [start + (end - start) * n / num_steps for n in range(num_steps)]",
        ("tests/test_contract.py::test_choice_temperature_schedules",),
    ),
    Mutant(
        "noise-keeps-what-it-masks",
        "add_noise masks with probability 1 - m(t)",
        _BASE,
        "masked = (noise < ratio[:, None])",
        "masked = (noise > ratio[:, None])",
        ("tests/test_contract.py::test_add_noise_masks_with_the_schedule_s_probability",),
    ),
    Mutant(
        "token-noise-of-the-rank",
        "the noise of a draw belongs to the rank, not to the position",
        _CHOOSE,
        "noise=context.uniform(Purpose.TOKEN).gather(1, positions)",
        "noise=context.uniform(Purpose.TOKEN)[:, :num_ranks]",
        (
            "tests/schedulers/test_entropy_bounded.py::test_no_bound_is_one_pass_and_a_bound_of_zero_one_position_a_step",
        ),
    ),
    Mutant(
        "token-noise-of-the-choice",
        "tokens are drawn with the noise that chose their positions",
        _CHOOSE,
        "noise=context.uniform(Purpose.TOKEN).gather(1, positions)",
        "noise=context.uniform(Purpose.CHOICE).gather(1, positions)",
        ("tests/test_properties.py::test_which_position_comes_first_says_nothing_about_its_token",),
    ),
    Mutant(
        "one-rank-too-many",
        "one rank more than counted is valid",
        _CHOOSE,
        "device=self.count.device) < self.count[:, None]",
        "device=self.count.device) <= self.count[:, None]",
        ("tests/test_properties.py::test_a_run_fills_in_what_is_masked_and_nothing_else[moment]",),
    ),
    Mutant(
        "maskgit-noise-sign",
        "MaskGIT subtracts its Gumbel noise",
        f"{_SCHEDULERS}maskgit.py",
        "score = log_prob + (context.choice_temperature or 0.0)",
        "score = log_prob - (context.choice_temperature or 0.0)",
        ("tests/test_scheduler_laws.py::test_each_row_of_a_mixed_batch_has_its_own_law[maskgit]",),
    ),
    Mutant(
        "moment-noise-not-divided",
        "the moment sampler's noise is not on the scale of its score",
        "hf_maskdiff/schedulers/position_orders.py",
        "noise = context.gumbel(purpose).div_(context.sharpness)",
        "noise = context.gumbel(purpose)",
        ("tests/test_scheduler_laws.py::test_each_row_of_a_mixed_batch_has_its_own_law[moment]",),
    ),
    Mutant(
        "hybrid-share-cut",
        "the share that explores is cut, not rounded",
        f"{_SCHEDULERS}hybrid.py",
        "context.count.to(context.keys.device) + 0.5).long()",
        "context.count.to(context.keys.device)).long()",
        ("tests/test_properties.py::test_hybrid_explores_a_share_of_a_step",),
    ),
    Mutant(
        "plain-exploration-of-the-others",
        "the model's own temperature is for the positions that do not explore",
        f"{_SCHEDULERS}hybrid.py",
        "explored = torch.arange(num_ranks, device=beta.device) < self.num_explored(context)[:, None]",
        "explored = torch.arange(num_ranks, device=beta.device) >= self.num_explored(context)[:, None]",
        ("tests/test_properties.py::test_plain_exploration_draws_explored_positions_at_the_model_s_temperature",),
    ),
    Mutant(
        "ancestral-probability",
        "a position is revealed with the difference of the ratios",
        f"{_SCHEDULERS}ancestral.py",
        "return 1 - after / before",
        "return before - after",
        ("tests/test_ancestral_laws.py::test_the_probability_of_a_reveal_is_the_schedule_s",),
    ),
    Mutant(
        "first-hitting-two-at-a-time",
        "a step reveals two positions",
        f"{_SCHEDULERS}first_hitting.py",
        "return context.remaining.clamp(max=1)",
        "return context.remaining.clamp(max=2)",
        ("tests/test_ancestral_laws.py::test_first_hitting_reveals_one_position_of_each_row_at_a_time",),
    ),
    Mutant(
        "randomized-halton-per-step",
        "a randomized order starts elsewhere in every step",
        "hf_maskdiff/schedulers/position_orders.py",
        "place = position_noise(context.run_keys, 1, Purpose.SHIFT)[0]",
        "place = position_noise(context.keys, 1, Purpose.SHIFT)[0]",
        ("tests/test_properties.py::test_a_randomized_halton_order_is_one_rotation_per_run",),
    ),
    Mutant(
        "token-temperature-inverted",
        "token_temperature multiplies the logits",
        f"{_SCHEDULERS}confidence.py",
        "beta = 1 / max(self.config.token_temperature, _GREEDY)",
        "beta = max(self.config.token_temperature, _GREEDY)",
        ("tests/pipelines/test_masked_diffusion_text.py::test_guidance_compares_with_a_hidden_prompt",),
    ),
]
