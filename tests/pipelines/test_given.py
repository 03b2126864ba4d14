"""What is given never changes, in every pipeline, with every scheduler and cache; what was revealed may."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from concrete import scheduler_in
from test_cached_steps import make_any
from test_masked_diffusion_text import MASK, VOCAB, seeds
from torch import Tensor

from hf_maskdiff import (
    DelayedCacheConfig,
    DualCacheConfig,
    EditingScheduler,
    FreeCorrectionScheduler,
    MaskedDiffusionScheduler,
    MaskedDiffusionTextPipeline,
    MaskGITPipeline,
    PartialCacheConfig,
    PathPlanningScheduler,
    PrefixCacheConfig,
    ReMDMScheduler,
    RevisingScheduler,
)
from hf_maskdiff.pipelines import text_run
from hf_maskdiff.pipelines.step_logits import StepLogits, StepRows
from hf_maskdiff.pipelines.text_denoising import WindowDenoiser

SecondThoughts: Any = scheduler_in("examples/custom_remasking.py:SecondThoughtsScheduler")
GROUPS = PartialCacheConfig(2, full_pass_threshold=0.4)
CACHES = [None, GROUPS, PrefixCacheConfig(), DualCacheConfig(partial=GROUPS), DelayedCacheConfig(refresh_every=4)]
CALLS = [
    {"num_inference_steps": 5},
    {"num_inference_steps": 3, "block_length": 5},
]


class Forgetful(RevisingScheduler):
    """Takes back half of what is revealed, at random: it reads no logits there, so every cache serves it."""

    def __init__(self, mask_token_id: int, codebook_size: int | None = None) -> None:
        names = {"masking_schedule": "linear", "rounding": "even", "temperature": 1.0, "top_k": None, "top_p": None}
        self.register_to_config(mask_token_id=mask_token_id, codebook_size=codebook_size, **names)
        self.check_config()

    reads_revealed = False

    def score_positions(self, marginals: Any, context: Any) -> Tensor:
        return context.uniform(0)

    def score_revealed(self, marginals: Any, context: Any) -> Tensor:
        return context.uniform(2)

    def count_put_back(self, scores: Tensor, context: Any) -> Tensor:
        return context.revealed.sum(-1) // 2


def prompts(number: int) -> list[Tensor]:
    """Random prompts with random gaps, of different lengths."""
    random = torch.Generator().manual_seed(number)
    made = [torch.randint(6, VOCAB - 1, (length,), generator=random) for length in (12, 17, 9)]
    return [ids.where(torch.rand(len(ids), generator=random) < 0.4, MASK) for ids in made]


def served(scheduler: MaskedDiffusionScheduler, cache: Any) -> bool:
    """Others are refused, see test_a_cache_that_lacks_the_logits_of_revealed_positions."""
    if isinstance(cache, DelayedCacheConfig) and scheduler.reads_revealed:
        return False
    grouped = cache is GROUPS or getattr(cache, "partial", None) is not None
    return not grouped or hasattr(scheduler, "choose")


@pytest.fixture(scope="module")
def text_pipe() -> MaskedDiffusionTextPipeline:
    return make_any("llama")


@pytest.mark.covering(1)  # other pairs of scheduler and cache are in test_text_combinations
@pytest.mark.parametrize("cache", CACHES, ids=lambda cache: type(cache).__name__)
def test_texts(
    text_pipe: MaskedDiffusionTextPipeline, scheduler_class: type[MaskedDiffusionScheduler], cache: Any
) -> None:
    text_pipe.scheduler = scheduler_class(mask_token_id=MASK)
    if cache is not None and served(text_pipe.scheduler, cache):
        text_pipe.enable_cache(cache)
    try:
        for number, call in enumerate(CALLS):
            given = prompts(number)
            output = text_pipe(input_ids=given, generator=seeds(0, 1, 2), **call)
            for ids, row in zip(given, output.sequences, strict=True):
                assert torch.equal(row[ids != MASK], ids[ids != MASK])
                assert not (row == MASK).any()
    finally:
        text_pipe.disable_cache()


@pytest.mark.covering(1)  # other pairs are in test_image_combinations
@pytest.mark.parametrize("strength", [1.0, 0.6])
@pytest.mark.parametrize("cache", [None, GROUPS, DelayedCacheConfig(refresh_every=3)], ids=lambda c: type(c).__name__)
def test_images(
    make_pipeline: Callable[..., MaskGITPipeline],
    scheduler_class: type[MaskedDiffusionScheduler],
    cache: Any,
    strength: float,
) -> None:
    pipe = make_pipeline(scheduler_class(mask_token_id=16, codebook_size=16))
    if cache is not None and served(pipe.scheduler, cache):
        pipe.enable_cache(cache)
    random = torch.Generator().manual_seed(int(10 * strength))
    image, editable = torch.rand(3, 1, 8, 8, generator=random), torch.rand(3, 1, 4, 4, generator=random) < 0.7
    mask_image = editable.float().repeat_interleave(2, 2).repeat_interleave(2, 3)
    codes = pipe.encode_image(pipe.preprocess_image(image))
    call = {"class_labels": [0, 1, 2], "num_inference_steps": 5, "guidance_scale": 2.0, "output_type": "latent"}
    drawn = pipe(image=image, mask_image=mask_image, strength=strength, generator=seeds(0, 1, 2), **call).images
    kept = ~editable[:, 0]
    assert kept.any()
    assert torch.equal(drawn[kept], codes[kept])
    assert not (drawn == 16).any()


# --- what is revealed -------------------------------------------------------------------------------------------------


def seen_by(pipe: MaskGITPipeline, **call: Any) -> list[Tensor]:
    seen: list[Tensor] = []

    def keep(pipe: Any, step: int, t: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.append(tensors["latents"].flatten(1))
        return tensors

    pipe(output_type="latent", callback_on_step_end=keep, **call)
    return seen


def test_an_image_that_is_varied_may_change_anywhere(make_pipeline: Callable[..., MaskGITPipeline]) -> None:
    """The codes that noise has left of it count as revealed, so some of them are taken back."""
    pipe = make_pipeline(SecondThoughts(mask_token_id=16, codebook_size=16, masking_schedule="linear"))
    image = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    codes = pipe.encode_image(pipe.preprocess_image(image)).flatten(1)
    taken_back = 0
    for seed in range(8):
        generator = torch.Generator().manual_seed(seed)
        seen = seen_by(pipe, image=image, strength=0.5, num_inference_steps=8, generator=generator)
        noisy = pipe.scheduler.add_noise(codes, 0.5, torch.Generator().manual_seed(seed))
        taken_back += int(((seen[-1] != codes) & (noisy != 16)).sum())
    assert taken_back > 0


@pytest.mark.parametrize("scheduler", [SecondThoughts, Forgetful])
def test_masks_follow_the_schedule_in_a_pipeline(
    make_pipeline: Callable[..., MaskGITPipeline], scheduler: type[MaskedDiffusionScheduler]
) -> None:
    pipe = make_pipeline(scheduler(mask_token_id=16, codebook_size=16))
    seen = seen_by(pipe, class_labels=[0, 1], num_inference_steps=6, generator=seeds(0, 1))
    planned = pipe.scheduler.planned_counts(torch.tensor([16, 16]))
    assert torch.equal(torch.stack([(codes == 16).sum(-1) for codes in seen]), 16 - planned.cumsum(0))
    back = any(((after == 16) & (before != 16)).any() for before, after in pairwise(seen))
    assert back or scheduler is SecondThoughts  # of 16 codes a tenth is none, most often


REVISING: dict[str, Callable[[int], MaskedDiffusionScheduler]] = {
    "second thoughts": SecondThoughts,
    "forgetful": Forgetful,
    "remdm": lambda mask: ReMDMScheduler(mask, eta=0.3),
    "remdm, conf": lambda mask: ReMDMScheduler(mask, remasking="conf"),
    "remdm, exact": lambda mask: ReMDMScheduler(mask, eta=0.4, exact_order="moment", choice_temperature=4.0),
    "planning": lambda mask: PathPlanningScheduler(mask, eta=2.0),
    "correction": lambda mask: FreeCorrectionScheduler(mask, corrected_shares=[0.2], correction_start=0.2),
    "editing": lambda mask: EditingScheduler(mask, threshold=0.3, editing_threshold=0.05),
    "to mask": lambda mask: EditingScheduler(mask, threshold=0.3, editing_threshold=0.05, edits="mask"),
}
QUICK = ("second thoughts", "remdm, conf", "planning")
EACH = [
    pytest.param(make, id=name, marks=() if name in QUICK else pytest.mark.exhaustive)
    for name, make in REVISING.items()
]


@pytest.mark.covering(1)
@pytest.mark.parametrize("cache", CACHES, ids=lambda cache: type(cache).__name__)
@pytest.mark.parametrize("scheduler", EACH)
def test_a_row_is_the_same_alone_and_in_a_batch(
    text_pipe: MaskedDiffusionTextPipeline, scheduler: Any, cache: Any
) -> None:
    text_pipe.scheduler = scheduler(MASK)
    if cache is not None and served(text_pipe.scheduler, cache):
        text_pipe.enable_cache(cache)
    try:
        for number, call in enumerate(CALLS):
            given = prompts(number)
            together = text_pipe(input_ids=given, generator=seeds(0, 1, 2), **call).sequences
            for row in range(3):
                (alone,) = text_pipe(input_ids=[given[row]], generator=seeds(row), **call).sequences
                assert torch.equal(alone, together[row])
    finally:
        text_pipe.disable_cache()


def test_a_token_that_is_masked_again_is_computed_as_a_mask(
    text_pipe: MaskedDiffusionTextPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its keys and values are of the token that stood there until the next pass computes them."""
    queries: list[Tensor] = []
    tokens: list[Tensor] = []
    original, computed = WindowDenoiser.pass_of_step, WindowDenoiser._computed

    def pass_of_step(run: WindowDenoiser, sample: Tensor, t: Tensor, now: StepRows) -> StepLogits:
        tokens.append(sample)
        return original(run, sample, t, now)

    def recorded(run: WindowDenoiser, contexts: Any, ids: Tensor, *rest: Any) -> Tensor:
        *_, asked, _ = rest
        queries.append(torch.arange(ids.shape[1])[None] if asked is None else asked.positions)
        return computed(run, contexts, ids, *rest)

    monkeypatch.setattr(WindowDenoiser, "pass_of_step", pass_of_step)
    monkeypatch.setattr(WindowDenoiser, "_computed", recorded)
    text_pipe.scheduler = Forgetful(MASK)
    text_pipe.enable_cache(DelayedCacheConfig(refresh_every=None))
    try:
        text_pipe(input_ids=[torch.full((14,), MASK)], generator=seeds(3), num_inference_steps=10)
    finally:
        text_pipe.disable_cache()
    assert len(tokens) == 10
    again = 0
    for (before, after), asked in zip(pairwise(tokens), queries[1:], strict=True):
        computed = set(asked[0][asked[0] >= 0].tolist())
        changed = (before != after)[0].nonzero()[:, 0].tolist()
        again += int(((before != MASK) & (after == MASK)).sum())
        assert computed >= set(changed)  # also what was drawn in the last step
        assert computed >= set((after[0] == MASK).nonzero()[:, 0].tolist())
    assert again > 0
    assert any(len(asked[0]) < 14 for asked in queries)


def test_a_cache_that_lacks_the_logits_of_revealed_positions_is_refused(
    text_pipe: MaskedDiffusionTextPipeline, make_pipeline: Callable[..., MaskGITPipeline]
) -> None:
    expected = "SecondThoughtsScheduler must have the logits of revealed positions in every step, got a Delayed.* Use"
    text_pipe.scheduler = SecondThoughts(mask_token_id=MASK)
    text_pipe.enable_cache(DelayedCacheConfig())
    try:
        with pytest.raises(ValueError, match=expected):
            text_pipe(input_ids=[torch.full((14,), MASK)], num_inference_steps=3)
    finally:
        text_pipe.disable_cache()
    pipe = make_pipeline(SecondThoughts(mask_token_id=16, codebook_size=16))
    pipe.enable_cache(DelayedCacheConfig())
    with pytest.raises(ValueError, match=expected):
        pipe(class_labels=1, num_inference_steps=3)


def test_tokens_of_earlier_parts_stay(text_pipe: MaskedDiffusionTextPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one block has written is given in the next, and stays."""
    batches: list[Any] = []
    original = text_run.fill_in

    def fill_in(denoiser: Any, batch: Any, *args: Any, **kwargs: Any) -> list[Tensor]:
        filled = original(denoiser, batch, *args, **kwargs)
        batches.append((batch.filled(batch.sample)[0], filled[0]))
        return filled

    monkeypatch.setattr(text_run, "fill_in", fill_in)
    text_pipe.scheduler = SecondThoughts(mask_token_id=MASK)
    text_pipe(input_ids=[torch.full((15,), MASK)], generator=seeds(0), num_inference_steps=4, block_length=5)
    assert len(batches) == 3
    for before, after in batches:
        assert torch.equal(after[before != MASK], before[before != MASK])


def test_a_callback_s_tokens_are_given(make_pipeline: Callable[..., MaskGITPipeline]) -> None:
    """From the step after which it wrote them; what it masks is drawn and may be taken back."""
    pipe = make_pipeline(SecondThoughts(mask_token_id=16, codebook_size=16, masking_schedule="linear"))
    seen: list[Tensor] = []

    def write(pipe: Any, step: int, t: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        codes = tensors["latents"].clone()
        if step == 2:
            codes[:, 0] = 5
            codes[:, 3] = 16
        seen.append(codes)
        return {"latents": codes}

    pipe(class_labels=1, num_inference_steps=9, callback_on_step_end=write, generator=seeds(1), output_type="latent")
    assert len(seen) > 4
    assert all((codes[:, 0] == 5).all() for codes in seen[2:])
    assert not (seen[-1] == 16).any()
