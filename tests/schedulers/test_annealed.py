"""TiTok's sampler: its authors' rule with our noise, their counts, and the laws of its draws; and rises of guidance."""

from __future__ import annotations

import math

import pytest
import torch

from hf_maskdiff import AnnealedScheduler, UniformScheduler
from hf_maskdiff.pipelines.calls import PipelineCall
from hf_maskdiff.pipelines.checks import check_guidance_scale
from hf_maskdiff.sampling import Purpose

MASK, CODES, LENGTH = 9, 9, 12


def authors_count(length: int, step: int, num_steps: int, unknown: int) -> int:
    """How many positions of a row are masked after a step, as the original computes it."""
    ratio = (step + 1) / num_steps
    if step == num_steps - 1:
        return 0
    return max(1, min(unknown - 1, math.floor(length * math.acos(ratio) / (math.pi / 2))))


@pytest.mark.parametrize("logits_temperature", [None, (1.3, 0.5)])
@pytest.mark.parametrize("num_steps", [1, 5, 8])
def test_the_authors_rule_with_our_noise(num_steps: int, logits_temperature: tuple[float, float] | None) -> None:
    scheduler = AnnealedScheduler(MASK, CODES, choice_temperature=3.0, logits_temperature=logits_temperature)
    scheduler.set_timesteps(num_steps)
    sample, noise = torch.full((3, LENGTH), MASK), torch.Generator().manual_seed(1)
    for n, t in enumerate(scheduler.timesteps):
        logits = 2 * torch.randn(3, LENGTH, CODES, generator=noise)
        _, context = scheduler.start_step(logits, t, sample, 1.0, torch.Generator().manual_seed(n))
        ratio = (n + 1) / num_steps
        alpha, hot = 3.0 * (1 - ratio), 0.5 + 0.8 * (1 - ratio) if logits_temperature else 1.0
        scaled = logits.double() / hot
        probs = (scaled / max(alpha, 1e-9)).softmax(-1)
        tokens = (probs.cumsum(-1) < context.uniform(Purpose.TOKEN)[..., None]).sum(-1)
        tokens = tokens if alpha else logits.argmax(-1)
        score = scaled.gather(-1, tokens[..., None])[..., 0] + alpha * context.gumbel(Purpose.CHOICE)
        masked = sample == MASK
        score = score.masked_fill(~masked, math.inf)
        expected = torch.where(masked, tokens, sample)
        for row in range(3):
            left = authors_count(LENGTH, n, num_steps, int(masked[row].sum()))
            expected[row, score[row].argsort()[:left]] = MASK
        sample = scheduler.step(logits, t, sample, generator=torch.Generator().manual_seed(n)).prev_sample
        assert torch.equal(sample, expected)
    assert (sample != MASK).all()


def test_tokens_are_drawn_at_the_choice_temperature() -> None:
    """4000 rows of one position, the same logits: the frequencies of p^(1 / (alpha hot)), within four deviations."""
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0]).expand(4000, 2, 4)
    scheduler = AnnealedScheduler(4, 4, choice_temperature=2.5, logits_temperature=(1.6, 0.4))
    scheduler.set_timesteps(3)
    sample = torch.full((4000, 2), 4)
    generator = torch.Generator().manual_seed(0)
    candidates = scheduler.step(logits, scheduler.timesteps[0], sample, generator=generator).pred_original_sample
    expected = (logits[0, 0].double() / (2.5 * 2 / 3) / 1.2).softmax(-1)
    counts = candidates.flatten().bincount(minlength=4)
    deviation = (8000 * expected * (1 - expected)).sqrt()
    assert ((counts - 8000 * expected).abs() < 4 * deviation).all()
    assert (counts[:4] - 8000 * logits[0, 0].softmax(-1)).abs().max() > 8 * deviation.max()  # not at temperature 1


def test_settings_that_cannot_be() -> None:
    for value in ((1.0,), (1.0, 0.0), (1.0, "2")):
        with pytest.raises(ValueError, match=r"`logits_temperature` must be None, or a pair .* got"):
            AnnealedScheduler(MASK, logits_temperature=value)
    saved = AnnealedScheduler(MASK, logits_temperature=(1.3, 0.5)).config
    assert AnnealedScheduler.from_config(saved).config.logits_temperature == [1.3, 0.5]


# --- rises of guidance ------------------------------------------------------------------------------------------------


def scales(guidance_scale: list[float] | float, num_steps: int) -> list[float]:
    call = PipelineCall(UniformScheduler(MASK), num_steps, guidance_scale=guidance_scale)
    return [call.guidance_scale_at(t) for t in call.scheduler.timesteps]


@pytest.mark.parametrize("num_steps", [1, 2, 8, 64])
def test_the_three_rises_of_titok(num_steps: int) -> None:
    """Constant and linear weights w are scales 1 + w; a power-cosine is a scale itself, in its authors' words."""
    assert scales(1 + 4.5, num_steps) == [5.5] * num_steps
    linear = [1 + 4.5 * n / num_steps for n in range(num_steps)]
    assert scales([1, 1 + 4.5 * (num_steps - 1) / num_steps], num_steps) == pytest.approx(linear)
    power = [(6.9 - 1) * (1 - math.cos(((n / num_steps) ** 3) * math.pi)) / 2 + 1 for n in range(num_steps)]
    assert scales([1, 6.9, 3.0], num_steps) == pytest.approx(power)
    assert PipelineCall(UniformScheduler(MASK), num_steps, guidance_scale=[1, 6.9, 3.0]).may_guide
    ahead = [(12 - 1) * (1 - math.cos((n + 1) / num_steps * math.pi)) / 2 + 1 for n in range(num_steps)]
    assert scales([2, 13, 1.0, 1], num_steps) == pytest.approx([1 + weight for weight in ahead])  # MaskGen's


@pytest.mark.parametrize("value", [[1.0], [1, 2, 0], [1, 2, 0, 1], [1, 2, 3, -1], [1, 2, 3, 4, 5], [1, 2, math.inf]])
def test_rises_that_cannot_be(value: list[float]) -> None:
    with pytest.raises(ValueError, match="`guidance_scale` must be a finite number or a pair"):
        check_guidance_scale(value)
    check_guidance_scale([1, 2, 0.5])
