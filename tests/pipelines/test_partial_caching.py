"""Partial caching in the pipelines: what it draws, what it leaves alone, and that nothing stays behind."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_weights import draw_weights
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from hf_maskdiff import (
    Choice,
    ChooseThenSampleScheduler,
    EntropyBoundedScheduler,
    HaltonScheduler,
    HybridScheduler,
    MaskGITPipeline,
    MaskGITScheduler,
    MDLMPipeline,
    MDLMTransformer,
    MomentScheduler,
    PartialCacheConfig,
    UniformScheduler,
)
from hf_maskdiff.pipelines.calls import CallCaches
from hf_maskdiff.pipelines.substeps import group_of_ranks, groups_of

LETTERS, LENGTH = "abcdefghijk", 18
MASK = len(LETTERS)
SCHEDULERS = [MomentScheduler, HybridScheduler, HaltonScheduler, UniformScheduler, EntropyBoundedScheduler]


def seeds(*numbers: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(n) for n in numbers]


def make_text_pipeline(num_layers: int = 2) -> MDLMPipeline:
    torch.manual_seed(0)
    transformer = MDLMTransformer(MASK + 1, LENGTH, hidden_dim=16, cond_dim=8, n_blocks=num_layers, n_heads=2).eval()
    draw_weights(transformer)
    tokens = Tokenizer(BPE({letter: i for i, letter in enumerate(LETTERS)}, merges=[]))
    tokens.decoder = decoders.Fuse()
    scheduler = MomentScheduler(mask_token_id=MASK, codebook_size=MASK, masking_schedule="linear")
    pipe = MDLMPipeline(PreTrainedTokenizerFast(tokenizer_object=tokens), transformer, scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def text() -> MDLMPipeline:
    return make_text_pipeline()


@pytest.fixture
def image(make_pipeline: Callable[..., MaskGITPipeline]) -> MaskGITPipeline:
    return make_pipeline()


def draw(pipe: MaskGITPipeline, labels: list[int], numbers: list[int], **kwargs: Any) -> torch.Tensor:
    call = {"num_inference_steps": 3, "output_type": "latent", "generator": seeds(*numbers)} | kwargs
    return pipe(class_labels=labels, **call).images


# --- groups ----------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 20), min_size=1, max_size=4), st.integers(1, 9))
def test_groups(counts: list[int], num_groups: int) -> None:
    groups = group_of_ranks(torch.arange(20).expand(len(counts), 20), torch.tensor(counts), num_groups)
    for row, count in zip(groups.tolist(), counts, strict=True):
        valid = row[:count]
        assert valid == sorted(valid)
        assert all(group >= num_groups for group in row[count:])
        sizes = [valid.count(group) for group in range(num_groups)]
        assert sum(sizes) == count
        assert sizes == sorted(sizes, reverse=True)
        assert max(sizes) - min(sizes) <= 1
        assert sum(size > 0 for size in sizes) == min(num_groups, count)


@given(st.lists(st.integers(0, 20), min_size=1, max_size=4), st.integers(2, 9), st.floats(0.01, 0.99), st.booleans())
def test_groups_of_other_kinds(counts: list[int], num_groups: int, fraction: float, at_random: bool) -> None:
    size = len(counts)
    choice = Choice(
        positions=torch.stack([torch.randperm(20) for _ in counts]),
        count=torch.tensor(counts),
        sample=torch.zeros(size, 20, dtype=torch.int64),
        make_noise=lambda: torch.zeros(size, 20),
        beta=torch.ones(size, 20),
        keys=torch.randint(-(2**62), 2**62, (size,)),
        step_index=0,
    )
    config = PartialCacheConfig(num_groups, first_group_fraction=fraction, random_groups=at_random)
    groups = groups_of(choice, config)
    even = groups_of(choice, PartialCacheConfig(num_groups, random_groups=True))
    for row, even_row, count in zip(groups.tolist(), even.tolist(), counts, strict=True):
        assert row[count:] == even_row[count:] == [num_groups] * (20 - count)
        sizes = [row[:count].count(group) for group in range(num_groups)]
        assert sum(sizes) == count
        assert sizes[0] == (max(1, round(count * fraction)) if count else 0)
        assert max(sizes[1:]) - min(sizes[1:]) <= 1
        assert at_random or row[:count] == sorted(row[:count])
        even_sizes = [even_row[:count].count(group) for group in range(num_groups)]
        assert even_sizes == sorted(even_sizes, reverse=True)
        assert max(even_sizes) - min(even_sizes) <= 1


# --- what it draws ---------------------------------------------------------------------------------------------------


def test_one_group_changes_no_bit(text: MDLMPipeline, image: MaskGITPipeline) -> None:
    plain = text(["a", "bcd"], num_inference_steps=4, generator=seeds(0, 1)).texts, draw(image, [0, 1], [2, 3])
    for pipe in (text, image):
        pipe.transformer.enable_cache(PartialCacheConfig(num_substeps=1))
    again = text(["a", "bcd"], num_inference_steps=4, generator=seeds(0, 1)).texts, draw(image, [0, 1], [2, 3])
    assert plain[0] == again[0]
    assert torch.equal(plain[1], again[1])


CONFIGS = [
    *(PartialCacheConfig(num_substeps=n, full_pass_threshold=1) for n in (2, 3, 40)),
    PartialCacheConfig(num_substeps=3, first_group_fraction=0.2, full_pass_threshold=1),
    PartialCacheConfig(num_substeps=3, random_groups=True, full_pass_threshold=1),
    PartialCacheConfig(num_substeps=2, first_group_fraction=0.7, random_groups=True, full_pass_threshold=1),
    PartialCacheConfig(num_substeps=2, full_pass_threshold=0.3),  # some rows, in some steps
    PartialCacheConfig(num_substeps=3, full_pass_threshold=0),
]


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("scheduler_class", SCHEDULERS[:4])
def test_with_one_layer_a_step_is_drawn_group_by_group_from_full_passes(
    config: PartialCacheConfig, scheduler_class: type[ChooseThenSampleScheduler]
) -> None:
    """There a partial pass is exact, so that a plain loop with a full pass for each group draws the same tokens."""
    assert_drawn_group_by_group(make_text_pipeline(num_layers=1), config, scheduler_class)


@pytest.mark.parametrize("scheduler_class", SCHEDULERS[:4])
def test_without_partial_passes_a_step_is_drawn_group_by_group_at_any_depth(
    scheduler_class: type[ChooseThenSampleScheduler],
) -> None:
    config = PartialCacheConfig(num_substeps=3, full_pass_threshold=0)
    assert_drawn_group_by_group(make_text_pipeline(num_layers=3), config, scheduler_class)


def assert_drawn_group_by_group(
    pipe: MDLMPipeline, config: PartialCacheConfig, scheduler_class: type[ChooseThenSampleScheduler]
) -> None:
    steps = 3
    scheduler = scheduler_class(mask_token_id=MASK, codebook_size=MASK, masking_schedule="linear")
    transformer, sample = pipe.transformer, torch.full((2, LENGTH), MASK)
    sample[0, :3] = torch.tensor([1, 2, 3])
    start, generators = sample.clone(), seeds(0, 1)
    initial = (sample == MASK).sum(-1)
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        with torch.no_grad():
            logits = transformer(sample).logits
            choice = scheduler.choose(logits, t, sample, initial.double() / LENGTH, generators)
            for group in range(config.num_substeps):
                logits = transformer(sample).logits
                rows = torch.arange(2)[:, None]
                groups = groups_of(choice, config)
                drawn = scheduler.sample_tokens(logits[rows, choice.positions], choice, groups == group)
                now = torch.where(groups == group, drawn, sample.gather(1, choice.positions))
                sample = sample.scatter(1, choice.positions, now)
    pipe.scheduler = scheduler
    transformer.enable_cache(config)
    made = pipe(input_ids=start, num_inference_steps=steps, generator=seeds(0, 1), output_type="ids").sequences
    assert torch.equal(torch.stack(made), sample)


@torch.no_grad()
def test_a_full_pass_of_some_rows_leaves_what_is_kept_of_all(text: MDLMPipeline) -> None:
    """And the pass without a prompt leaves what is kept of the one with it."""
    text.transformer.enable_cache(PartialCacheConfig(num_substeps=3))
    tokens, positions = torch.arange(2 * LENGTH).view(2, LENGTH) % MASK, torch.tensor([[4, 7], [0, 9]])
    results, both = [], [0, 1]
    for others in ("", "apart", "uncond"):
        caches = CallCaches(text.denoiser)
        run = partial(caches.run, rows=both, unfinished=both)
        run("cond", positions=None, forward=lambda kept: text.transformer(tokens, **kept).logits)
        if others == "apart":
            text.transformer(tokens.flip(1)[1:], **caches.apart())
        if others == "uncond":
            run("uncond", positions=None, forward=lambda kept: text.transformer(tokens.flip(1), **kept).logits)
        new = tokens.gather(1, positions).flip(1)
        logits = run("cond", positions=positions, forward=lambda kept, new=new: text.transformer(new, **kept).logits)
        results.append(logits)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("threshold", [1.0, 0.2])
@pytest.mark.parametrize("scheduler_class", SCHEDULERS)
def test_a_row_does_not_depend_on_its_batch(
    text: MDLMPipeline, image: MaskGITPipeline, scheduler_class: type[ChooseThenSampleScheduler], threshold: float
) -> None:
    """Rows of other lengths, with other counts in a step, of which some get full passes where others get partial."""
    for pipe in (text, image):
        pipe.scheduler = scheduler_class.from_config(pipe.scheduler.config)
        config = PartialCacheConfig(num_substeps=3, random_groups=threshold < 1, full_pass_threshold=threshold)
        pipe.transformer.enable_cache(config)
    prompts = ["a", "abcdefgh", "ab[MASK:3]cd"]
    together = text(prompts, num_inference_steps=4, generator=seeds(5, 6, 7))
    for i, prompt in enumerate(prompts):
        alone = text(prompt, num_inference_steps=4, generator=seeds(5 + i))
        assert alone.texts == [together.texts[i]]
        assert alone.num_model_passes == [together.num_model_passes[i]]
    assert not any((ids == MASK).any() for ids in together.sequences)
    assert together.texts[1].startswith("abcdefgh")
    assert (together.texts[2][:2], together.texts[2][5:]) == ("ab", "cd")
    for scale in (1.0, 3.0, (0.0, 3.0)):
        images = draw(image, [0, 1, 2], [1, 2, 3], guidance_scale=scale)
        assert (images < 16).all()
        for i in range(3):
            assert torch.equal(draw(image, [i], [1 + i], guidance_scale=scale)[0], images[i])


def test_partial_passes_read_only_the_step_s_positions(image: MaskGITPipeline) -> None:
    sizes: list[int] = []
    image.transformer.register_forward_pre_hook(lambda _, args: sizes.append(args[0].flatten(1).shape[1]))
    image.transformer.enable_cache(PartialCacheConfig(num_substeps=2, full_pass_threshold=1))
    counts = image.scheduler
    counts.set_timesteps(3)
    planned = counts.planned_counts(torch.tensor([16])).flatten().tolist()
    draw(image, [0], [0])
    assert sizes == [size for count in planned for size in (16, count)]


def test_kept_codes_stay(image: MaskGITPipeline) -> None:
    image.transformer.enable_cache(PartialCacheConfig(num_substeps=3))
    latents = torch.randint(0, 16, (2, 4, 4), generator=torch.Generator().manual_seed(0))
    masked = latents.clone()
    masked[0, :2], masked[1, 1:] = 16, 16
    edited = draw(image, [0, 1], [0, 1], latents=masked)
    assert torch.equal(edited[masked < 16], latents[masked < 16])
    assert (edited < 16).all()


# --- what stays behind -----------------------------------------------------------------------------------------------


def test_nothing_is_kept_after_a_call_or_an_error(
    text: MDLMPipeline, image: MaskGITPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stopped(Exception):
        pass

    def stop(pipe: Any, step: int, timestep: torch.Tensor, tensors: dict) -> dict:
        raise Stopped

    for pipe, call in ((text, {"prompt": "ab"}), (image, {"class_labels": [0], "guidance_scale": 2.0})):
        pipe.transformer.enable_cache(PartialCacheConfig(num_substeps=2))
        caller = pipe.transformer if pipe is image else pipe.denoiser
        seen: list[weakref.ref] = []
        new_cache = caller.new_cache

        def noted(seen: list = seen, new_cache: Any = new_cache) -> Any:
            seen.append(weakref.ref(cache := new_cache()))
            return cache

        def look(pipe: Any, step: int, timestep: torch.Tensor, tensors: dict, seen: list = seen) -> dict:
            seen += [weakref.ref(layer.key) for layer in seen[0]().layers]
            return tensors

        monkeypatch.setattr(caller, "new_cache", noted)
        pipe(**call, num_inference_steps=3, callback_on_step_end=look)
        with pytest.raises(Stopped):
            pipe(**call, num_inference_steps=3, callback_on_step_end=stop)
        gc.collect()
        assert len(seen) > 3
        assert not [reference for reference in seen if reference() is not None]


def test_a_pipeline_within_another_s_callback_changes_neither(text: MDLMPipeline) -> None:
    text.transformer.enable_cache(PartialCacheConfig(num_substeps=2))
    other = MDLMPipeline(text.tokenizer, text.transformer, text.scheduler.from_config(text.scheduler.config))
    other.set_progress_bar_config(disable=True)
    inner = other("cd", num_inference_steps=3, generator=seeds(1)).texts
    outer = text("ab", num_inference_steps=3, generator=seeds(0)).texts
    found: list[list[str]] = []

    def nest(pipe: Any, step: int, timestep: torch.Tensor, tensors: dict) -> dict:
        found.append(other("cd", num_inference_steps=3, generator=seeds(1)).texts)
        return tensors

    assert text("ab", num_inference_steps=3, generator=seeds(0), callback_on_step_end=nest).texts == outer
    assert found == [inner] * 3


def test_maskgit_cannot_use_it(image: MaskGITPipeline) -> None:
    image.scheduler = MaskGITScheduler.from_config(image.scheduler.config)
    image.transformer.enable_cache(PartialCacheConfig())
    with pytest.raises(ValueError, match=r"got MaskGITScheduler\. Use MomentScheduler or another one that does"):
        draw(image, [0], [0])
    image.transformer.disable_cache()
    draw(image, [0], [0])
