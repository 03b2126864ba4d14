"""Text pipelines with caches across steps: against a reference that keeps stale keys by hand, and row by row."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from test_masked_diffusion_text import MASK, VOCAB, make_pipeline, make_tokenizer, seeds
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from hf_maskdiff import (
    AncestralScheduler,
    ChooseThenSampleScheduler,
    ConfidenceScheduler,
    DelayedCacheConfig,
    DualCacheConfig,
    FirstHittingScheduler,
    HaltonScheduler,
    HybridScheduler,
    MaskedDiffusionTextPipeline,
    MaskGITScheduler,
    MDLMTransformer,
    MomentScheduler,
    PartialCacheConfig,
    PathPlanningScheduler,
    PrefixCacheConfig,
    ReMDMScheduler,
    StepContext,
    ThresholdScheduler,
    UniformScheduler,
)
from hf_maskdiff.caching import CachePlanConfig, KeyValueSlot, PassState, Queries
from hf_maskdiff.denoisers import transformers_denoiser
from hf_maskdiff.pipelines import planned_passes, text_run
from hf_maskdiff.pipelines.step_logits import StepLogits, StepRows
from hf_maskdiff.pipelines.substeps import groups_of
from hf_maskdiff.pipelines.text_denoising import WindowDenoiser
from hf_maskdiff.sampling import Marginals, Purpose
from hf_maskdiff.schedulers.position_orders import confidence

PARTIAL = PartialCacheConfig(3, full_pass_threshold=1)
PLANS: list[CachePlanConfig] = [
    PrefixCacheConfig(),
    DualCacheConfig(),
    DualCacheConfig(refresh_every=3),
    DelayedCacheConfig(refresh_every=3),
    DualCacheConfig(partial=PARTIAL),
    DelayedCacheConfig(refresh_every=None, partial=PARTIAL),
]


def name_of(config: CachePlanConfig) -> str:
    return f"{type(config).__name__}-{config.refresh_every}{'-partial' if config.partial else ''}"


every_plan = pytest.mark.parametrize("config", PLANS, ids=name_of)


def make_mdlm(num_layers: int = 3) -> MaskedDiffusionTextPipeline:
    """With tokens that are words: its mask is the last id, so the tokenizer's is left to the others."""
    torch.manual_seed(0)
    model = MDLMTransformer(VOCAB, 48, hidden_dim=32, cond_dim=8, n_blocks=num_layers, n_heads=4).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.3)
    tokenizer = make_tokenizer()
    tokenizer.mask_token = f"w{VOCAB - 1}"
    scheduler = ConfidenceScheduler(mask_token_id=VOCAB - 1, masking_schedule="linear")
    pipe = MaskedDiffusionTextPipeline(tokenizer, model, scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def make_any(name: str) -> MaskedDiffusionTextPipeline:
    return make_mdlm() if name == "mdlm" else make_pipeline(name, num_layers=3, shift_logits=name == "qwen2")


@pytest.fixture(params=["llama", "modernbert", "qwen2", "mdlm"])
def pipe(request: pytest.FixtureRequest) -> MaskedDiffusionTextPipeline:
    made = make_any(request.param)
    mask = made.scheduler.config.mask_token_id
    made.scheduler = MomentScheduler(mask_token_id=mask, masking_schedule="linear", choice_temperature=4.0)
    return made


# --- against a reference ----------------------------------------------------------------------------------------------


class StaleKeys:
    """Whole passes of an MDLM in which positions that are not fresh keep the keys and values that they had."""

    def __init__(self, model: MDLMTransformer) -> None:
        self.model, self.kept, self.fresh = model, {}, torch.empty(0)
        self.context = ""
        for module in model.modules():
            if isinstance(module, KeyValueSlot):
                module.register_forward_hook(self.mix)

    def mix(self, slot: KeyValueSlot, args: tuple, output: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        kept = self.kept.get((self.context, slot), output)
        new = tuple(torch.where(self.fresh[:, None, None], now, then) for now, then in zip(output, kept, strict=True))
        self.kept[self.context, slot] = new
        return new

    @torch.no_grad()
    def __call__(self, ids: Tensor, fresh: Tensor, hidden: Tensor, scale: float) -> Tensor:
        self.fresh, logits = fresh, []
        for self.context, seen in (("cond", ids), ("uncond", ids.masked_fill(hidden, VOCAB - 1))):
            logits.append(self.model(seen[None], return_dict=False)[0])
        return logits[1] + scale * (logits[0] - logits[1])


@dataclass
class Reference:
    """A run for one row, with every decision spelt out: which positions are fresh in which pass."""

    pipe: MaskedDiffusionTextPipeline
    config: CachePlanConfig
    scale: float

    def fresh(self, step: int, block: range, before: Tensor, length: int) -> Tensor:
        every, places = self.config.refresh_every, torch.arange(length)
        delayed = isinstance(self.config, DelayedCacheConfig)
        if step == 0 or (delayed and step == 1) or (every is not None and step % every == 0):
            return places >= 0
        if delayed:
            return before
        if isinstance(self.config, DualCacheConfig):
            return (places >= block.start) & (places < block.stop)
        return places >= block.start

    def __call__(self, prompt: list[int], count: int, size: int, steps: int, generator: torch.Generator) -> Tensor:
        mask, scheduler = self.pipe.scheduler.config.mask_token_id, self.pipe.scheduler
        model, groups = StaleKeys(self.pipe.transformer), self.config.partial or PartialCacheConfig(1)
        ids = torch.tensor([*prompt, *[mask] * count])
        hidden = torch.arange(len(ids)) < len(prompt)
        for start in range(len(prompt), len(ids), size):
            block, before = range(start, min(start + size, len(ids))), ids == mask
            scheduler.set_timesteps(steps)
            for step, t in enumerate(scheduler.timesteps):
                sample = ids[None, block.start : block.stop]
                if not (sample == mask).any():
                    break
                logits = model(ids, self.fresh(step, block, before, len(ids)), hidden, self.scale)
                before = ids == mask
                choice = scheduler.choose(logits[:, block.start : block.stop], t, sample, 1.0, [generator])
                group_of_rank, places = groups_of(choice, groups), choice.positions[0] + block.start
                for group in range(min(groups.num_substeps, len(places))):
                    if group:
                        fresh = torch.zeros(len(ids), dtype=torch.bool).index_fill(0, places, True)
                        logits = model(ids, fresh, hidden, self.scale)
                    drawn = scheduler.sample_tokens(logits[:, places], choice, group_of_rank == group)
                    ids[places] = torch.where(group_of_rank == group, drawn, ids[places])[0]
        return ids


@every_plan
@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_it_computes_what_it_says_and_keeps_all_else(config: CachePlanConfig, scale: float) -> None:
    prompt = [7, 8, 9, 10, 11]
    call = {"max_new_tokens": 21, "block_length": 8, "num_inference_steps": 5, "guidance_scale": scale}
    pipe = make_mdlm()
    plain = pipe(input_ids=[prompt], generator=seeds(1), **call).sequences[0]
    pipe.enable_cache(config)
    cached = pipe(input_ids=[prompt], generator=seeds(1), **call).sequences[0]
    expected = Reference(make_mdlm(), config, scale)(prompt, 21, 8, 5, seeds(1)[0])
    assert torch.equal(cached, expected)
    assert not torch.equal(cached, plain)  # stale keys were seen


# --- what equals no cache ---------------------------------------------------------------------------------------------


CALLS: list[dict[str, Any]] = [
    {"max_new_tokens": 13, "block_length": 5, "num_inference_steps": 4},
    {"max_new_tokens": 9, "num_inference_steps": 4, "guidance_scale": 1.7},
]
PROMPTS = ["w7", "w8 w9 w10 w11 w12 w15 w16", "w13 [MASK:3] w14"]


@pytest.mark.parametrize("kind", [PrefixCacheConfig, DualCacheConfig, DelayedCacheConfig])
def test_refreshed_in_every_step_it_equals_no_cache(
    pipe: MaskedDiffusionTextPipeline, kind: type[CachePlanConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []
    plain = WindowDenoiser.pass_of_step

    def noted(run: WindowDenoiser, sample: Tensor, t: Tensor, now: StepRows) -> StepLogits:
        logits = plain(run, sample, t, now)
        seen.append(logits.values.clone())
        return logits

    monkeypatch.setattr(WindowDenoiser, "pass_of_step", noted)
    runs = []
    for cache in (None, kind(refresh_every=1)):
        if cache is not None:
            pipe.enable_cache(cache)
        seen.clear()
        outputs = [pipe(PROMPTS, generator=seeds(0, 1, 2), **call) for call in CALLS]
        assert all(output.num_partial_passes == [0] * 3 for output in outputs)
        runs.append(([ids for output in outputs for ids in output.sequences], list(seen)))
    assert all(torch.equal(a, b) for a, b in zip(runs[0][0], runs[1][0], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(runs[0][1], runs[1][1], strict=True))


class Everything:
    """A plan whose passes compute all positions, but as queries: stored keys are all overwritten."""

    outlives_blocks = False
    asked = 0

    def queries(self, state: PassState) -> Queries | None:
        if state.step == 0:
            return None
        self.asked += 1
        length = state.masked.shape[1]
        positions = torch.arange(length - 1, -1, -1).expand(len(state.masked), -1)
        return Queries(torch.where(positions < state.lengths[:, None], positions, ~positions), num_runs=1)


def test_a_plan_of_all_positions_equals_no_cache(
    pipe: MaskedDiffusionTextPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    for call in CALLS:
        plain = pipe(PROMPTS, generator=seeds(0, 1, 2), **call)
        with monkeypatch.context() as patched:
            plan = Everything()
            patched.setattr(type(pipe.denoiser), "plan", plan)
            planned = pipe(PROMPTS, generator=seeds(0, 1, 2), **call)
        assert all(torch.equal(a, b) for a, b in zip(plain.sequences, planned.sequences, strict=True))
        assert planned.num_model_passes == plain.num_model_passes  # a pass over all positions is a full one
        assert plan.asked > 0


def test_after_it_is_switched_off_nothing_is_cached(pipe: MaskedDiffusionTextPipeline) -> None:
    plain = pipe(PROMPTS, generator=seeds(0, 1, 2), **CALLS[0]).sequences
    pipe.enable_cache(DualCacheConfig())
    cached = pipe(PROMPTS, generator=seeds(0, 1, 2), **CALLS[0]).sequences
    assert not all(torch.equal(a, b) for a, b in zip(plain, cached, strict=True))
    pipe.disable_cache()
    again = pipe(PROMPTS, generator=seeds(0, 1, 2), **CALLS[0]).sequences
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


# --- rows -------------------------------------------------------------------------------------------------------------


def schedulers(mask: int) -> Iterator[Any]:
    yield MomentScheduler(mask_token_id=mask, masking_schedule="linear", choice_temperature=4.0)
    yield ThresholdScheduler(mask_token_id=mask, threshold=0.3)
    yield AncestralScheduler(mask_token_id=mask)
    yield MaskGITScheduler(mask_token_id=mask, masking_schedule="linear")


@pytest.mark.covering(2)
@every_plan
@pytest.mark.parametrize("which", range(4), ids=["moment", "threshold", "ancestral", "maskgit"])
def test_a_row_does_not_depend_on_its_batch(
    pipe: MaskedDiffusionTextPipeline, config: CachePlanConfig, which: int
) -> None:
    """Rows of other lengths and other progress: with ancestral some have no pass where others have, or are finished."""
    if config.partial is not None and which == 3:  # MaskGIT's sampler draws before it chooses
        which = 2
    pipe.scheduler = list(schedulers(pipe.mask_token_id))[which]
    pipe.enable_cache(config)
    calls = ({"block_length": 5}, {"block_length": 4, "guidance_scale": 2.0})
    for call in calls if which in (0, 2) else calls[:1]:
        call = {"num_inference_steps": 7, "max_new_tokens": 11, "stop_at_eos": False, **call}
        together = pipe(PROMPTS, generator=seeds(0, 1, 2), **call)
        for i, prompt in enumerate(PROMPTS):
            alone = pipe(prompt, generator=seeds(i), **call)
            assert torch.equal(alone.sequences[0], together.sequences[i])
            assert alone.num_model_passes == [together.num_model_passes[i]]
            assert alone.num_partial_passes == [together.num_partial_passes[i]]
        assert sum(together.num_partial_passes) > 0


class Spy:
    """Notes how many rows and positions each pass of a model computes, and how many logits."""

    def __init__(self, pipe: MaskedDiffusionTextPipeline) -> None:
        self.passes: list[tuple[int, int]] = []
        self.logits: list[tuple[int, ...]] = []
        cache = pipe.denoiser.new_cache()
        ids = torch.zeros(1, 20, dtype=torch.int64)
        pipe.denoiser(ids, cache=cache)  # the probe's passes are not the run's
        pipe.transformer.register_forward_pre_hook(self.note, with_kwargs=True)
        pipe.transformer.register_forward_hook(self.note_logits)

    def note(self, model: object, args: tuple, kwargs: dict[str, Any]) -> None:
        self.passes.append(tuple((args[0] if args else kwargs["input_ids"]).shape))

    def note_logits(self, model: object, args: tuple, output: Any) -> None:
        self.logits.append(tuple(output[0].shape))


@pytest.mark.parametrize("config", [None, *PLANS[:4]], ids=lambda config: name_of(config) if config else "none")
def test_a_finished_row_is_in_no_pass(pipe: MaskedDiffusionTextPipeline, config: CachePlanConfig | None) -> None:
    """A step reveals one position of each row, so the rows have one pass for each mask."""
    pipe.scheduler = ConfidenceScheduler(mask_token_id=pipe.mask_token_id, masking_schedule="linear")
    if config is not None:
        pipe.enable_cache(config)
    spy = Spy(pipe)
    prompts = ["w7 w9 [MASK:2] w8", "w10 [MASK:6] w11", "w12 [MASK:4] w13 w14"]
    output = pipe(prompts, num_inference_steps=6, block_length=6, generator=seeds(0, 1, 2))
    assert [rows for rows, _ in spy.passes] == [3, 3, 2, 2, 1, 1]
    passes = zip(output.num_model_passes, output.num_partial_passes, strict=True)
    assert [full + partial for full, partial in passes] == [2, 6, 4]
    # And logits are of masked positions alone: at most as many as the row with most masks has.
    assert [shape[:2] for shape in spy.logits] == [(3, 6), (3, 5), (2, 4), (2, 3), (1, 2), (1, 1)]


def test_a_guided_step_passes_the_masked_positions_alone_too() -> None:
    pipe = make_pipeline()
    pipe.scheduler = ConfidenceScheduler(mask_token_id=MASK, masking_schedule="linear")
    pipe.enable_cache(DualCacheConfig())
    spy = Spy(pipe)
    pipe("w7 w8", max_new_tokens=8, block_length=4, num_inference_steps=2, guidance_scale=2.0)
    assert spy.passes == [(2, 10), (2, 4)] * 2  # with and without the prompt, as one batch
    assert [shape[:2] for shape in spy.logits] == [(2, 4), (2, 2)] * 2


@every_plan
def test_guidance_that_begins_or_ends_in_the_middle(config: CachePlanConfig) -> None:
    """A pair of scales with a 1 in it, and a scale that a callback changes: no pass sees what is not stored."""
    pipe = make_mdlm()
    pipe.enable_cache(config)
    call = {"max_new_tokens": 16, "block_length": 8, "num_inference_steps": 4}
    prompts = {"input_ids": [[7, 8, 9], [10, 11, 12, 13, 14]]}
    for scales in ((1.0, 3.0), (3.0, 1.0)):
        together = pipe(**prompts, guidance_scale=scales, generator=seeds(0, 1), **call).sequences
        alone = pipe(input_ids=prompts["input_ids"][1:], guidance_scale=scales, generator=seeds(1), **call).sequences
        assert torch.equal(alone[0], together[1])

    for before, after in ((1.0, 3.0), (3.0, 1.0)):
        spy = Spy(pipe)

        def callback(pipe: Any, step: int, t: Any, given: dict[str, Tensor], new: float = after) -> dict[str, Tensor]:
            if step == 2:
                pipe._guidance_scale = new
            return given

        pipe(**prompts, guidance_scale=before, generator=seeds(0, 1), callback_on_step_end=callback, **call)
        (first,) = {rows for rows, _ in spy.passes[:1]}
        assert first == (2 if before == 1 else 4)
        assert spy.passes[-1][0] == (2 if after == 1 else 4)
        whole = [shape for shape in spy.passes if shape[1] == 5 + 16]
        assert len(whole) >= 3  # at each block, and where guidance begins or ends


def test_a_shifted_model_computes_one_position_more_than_the_block() -> None:
    pipe = make_pipeline("qwen2", shift_logits=True)
    pipe.scheduler = ConfidenceScheduler(mask_token_id=MASK, masking_schedule="linear")
    pipe.enable_cache(DualCacheConfig())
    spy = Spy(pipe)
    pipe("w7 w8", max_new_tokens=8, block_length=4, num_inference_steps=2)
    assert spy.passes == [(1, 10), (1, 5)] * 2


def blind_schedulers(mask: int) -> list[ChooseThenSampleScheduler]:
    settings = {"mask_token_id": mask, "masking_schedule": "linear"}
    return [
        UniformScheduler(**settings, choice_temperature=3.0),
        HaltonScheduler(**settings, randomize=True),
        HybridScheduler(**settings, exploration="halton", exploitation="uniform"),
        FirstHittingScheduler(mask_token_id=mask),
    ]


@pytest.mark.parametrize("config", [None, DualCacheConfig(), DelayedCacheConfig(3, PARTIAL)])
@pytest.mark.parametrize("which", range(4), ids=["uniform", "halton", "hybrid", "first-hitting"])
def test_a_scheduler_that_reads_no_logits_to_choose_gets_those_of_its_choice(
    config: CachePlanConfig | None, which: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the same tokens as if it chose after the pass."""
    pipe = make_pipeline()
    pipe.scheduler = blind_schedulers(MASK)[which]
    if config is not None:
        pipe.enable_cache(config)
    call = {"max_new_tokens": 12, "block_length": 8, "num_inference_steps": 4, "generator": seeds(0, 1, 2)}
    spy = Spy(pipe)
    ahead = pipe([*PROMPTS[:2], "w13 [MASK:5] w14"], **call)
    most = 1 if which == 3 else 2
    assert max(shape[1] for shape in spy.logits) == most
    monkeypatch.setattr(type(pipe.scheduler), "chooses_without_logits", False)
    spy.logits.clear()
    after = pipe([*PROMPTS[:2], "w13 [MASK:5] w14"], **call | {"generator": seeds(0, 1, 2)})
    assert max(shape[1] for shape in spy.logits) > most
    assert all(torch.equal(a, b) for a, b in zip(ahead.sequences, after.sequences, strict=True))
    assert ahead.num_model_passes == after.num_model_passes
    assert ahead.num_partial_passes == after.num_partial_passes


def test_a_scheduler_of_ones_own_on_such_a_base_gets_all_logits() -> None:
    class Surest(UniformScheduler):
        def score_positions(self, marginals: Marginals, context: StepContext) -> Tensor:
            return confidence(marginals, context, Purpose.CHOICE)

    pipe = make_pipeline()
    spy = Spy(pipe)
    pipe.scheduler = Surest(mask_token_id=MASK, masking_schedule="linear")
    assert not pipe.scheduler.chooses_without_logits
    pipe("w7 w8", max_new_tokens=8, num_inference_steps=4)
    assert [shape[1] for shape in spy.logits] == [8, 6, 4, 2]
    for scheduler in (ConfidenceScheduler(mask_token_id=MASK), HybridScheduler(mask_token_id=MASK)):
        assert not scheduler.chooses_without_logits
        scheduler.set_timesteps(2)
        with pytest.raises(ValueError, match=r"`model_output` must hold logits .* got NoneType"):
            scheduler.choose(None, 1.0, torch.full((1, 4), MASK))


# --- the loop around it -----------------------------------------------------------------------------------------------


@every_plan
def test_what_a_callback_changes_is_seen(pipe: MaskedDiffusionTextPipeline, config: CachePlanConfig) -> None:
    """Other tokens anywhere in the block: the next pass computes everything. The same ones again change nothing."""
    pipe.enable_cache(config)
    call = {"max_new_tokens": 8, "block_length": 8, "num_inference_steps": 4, "generator": seeds(3)}

    def run(change: Callable[[int, Tensor], Tensor]) -> Any:
        def callback(pipe: Any, step: int, t: Any, given: dict[str, Tensor]) -> dict[str, Tensor]:
            return {"sequences": change(step, given["sequences"].clone())}

        return pipe("w7 w8", callback_on_step_end=callback, **call | {"generator": seeds(3)})

    plain = pipe("w7 w8", **call)
    same = run(lambda step, ids: ids)
    assert torch.equal(plain.sequences[0], same.sequences[0])
    assert plain.num_model_passes == same.num_model_passes

    def change(step: int, ids: Tensor) -> Tensor:
        return ids.masked_fill(ids != pipe.mask_token_id, 12) if step == 2 else ids

    assert run(change).num_model_passes == [plain.num_model_passes[0] + (config.refresh_every != 3)]


def test_two_calls_of_one_pipeline_have_caches_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call from within a callback leaves the outer call as it is."""
    pipe = make_pipeline()
    pipe.enable_cache(DualCacheConfig())
    call = {"max_new_tokens": 8, "block_length": 4, "num_inference_steps": 4}
    expected = pipe("w7 w8", generator=seeds(0), **call).sequences[0]

    def callback(pipe: Any, step: int, t: Any, given: dict[str, Tensor]) -> dict[str, Tensor]:
        pipe("w9 w10 w11", generator=seeds(1), **call)
        return given

    assert torch.equal(pipe("w7 w8", generator=seeds(0), callback_on_step_end=callback, **call).sequences[0], expected)


def test_a_store_lives_for_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    class Noted(text_run.CallCaches):
        def __init__(self, denoiser: Any) -> None:
            super().__init__(denoiser)
            made.append(self)

    monkeypatch.setattr(text_run, "CallCaches", Noted)
    pipe = make_pipeline()
    pipe.enable_cache(DualCacheConfig())
    for _ in range(2):
        pipe("w7 w8", max_new_tokens=9, block_length=3, num_inference_steps=2)
    assert len(made) == 2


def test_a_model_that_cannot_have_it_is_refused() -> None:
    pipe = make_mdlm()
    with pytest.raises(ValueError, match=r"Cache config .* is not supported"):
        pipe.enable_cache("dual")
    pipe = make_pipeline()
    with pytest.raises(ValueError, match=r"takes a PartialCacheConfig, PrefixCacheConfig, .* got str"):
        pipe.enable_cache("dual")
    pipe.enable_cache(DualCacheConfig(partial=PartialCacheConfig(2)))
    pipe.scheduler = MaskGITScheduler(mask_token_id=MASK)
    with pytest.raises(ValueError, match=r"partial caching needs a scheduler that chooses"):
        pipe("w7", max_new_tokens=4)


@pytest.mark.parametrize(
    ("kind", "own", "spare"),
    [
        (ReMDMScheduler, {"exact_order": "uniform", "eta": 0.4}, 1),
        (ReMDMScheduler, {"exact_order": "moment", "remasking": "conf"}, 1),
        (ReMDMScheduler, {"exact_order": "uniform", "remasking": "rescale", "eta": 0.2}, 1),
        (PathPlanningScheduler, {"measure": "uniform"}, 12),
        (PathPlanningScheduler, {"measure": "confidence", "eta": 0}, 0),
    ],
)
def test_what_is_masked_again_is_bounded_where_counting_it_would_wait(
    kind: Any, own: dict[str, Any], spare: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An accelerator is given the bound, and computes at most so many positions more; the texts are the same."""
    pipe = make_pipeline()
    pipe.scheduler = kind(mask_token_id=MASK, **own)
    pipe.enable_cache(DelayedCacheConfig(refresh_every=None))
    call = {"max_new_tokens": 24, "num_inference_steps": 8}
    expected = pipe(["w7 w8", "w9"], generator=seeds(0, 1), **call).sequences
    true, given = [], []
    queries = DelayedCacheConfig.queries

    def noted(config: DelayedCacheConfig, state: PassState) -> Queries | None:
        true.append(state.masked.sum(-1))
        given.append(state.num_masked)
        return queries(config, state)

    monkeypatch.setattr(DelayedCacheConfig, "queries", noted)
    monkeypatch.setattr(planned_passes, "_waits_for", lambda device: True)
    found = pipe(["w7 w8", "w9"], generator=seeds(0, 1), **call).sequences
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    excess = torch.stack(given) - torch.stack(true)
    assert len(given) == 8
    assert 0 <= excess.min() <= excess.max() <= spare
    assert not spare or excess.any()


def test_who_revises_and_says_no_bound_may_mask_all_that_is_revealed() -> None:
    class Own(UniformScheduler):
        revises = True

    remaining, num_free = torch.tensor([3, 0]), torch.tensor([8, 5])
    assert Own(MASK).most_put_back(1, remaining, num_free).tolist() == [5, 5]
    assert UniformScheduler(MASK).most_put_back(1, remaining, num_free).tolist() == [0, 0]


class OperationsBesideTheModel(TorchDispatchMode):
    """Counts what is asked of torch outside the passes of the model."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.count, self._in_pass = 0, False
        run = transformers_denoiser.run_pass

        def run_pass(*arguments: Any) -> Tensor:
            self._in_pass = True
            logits = run(*arguments)
            self._in_pass = False
            return logits

        monkeypatch.setattr(transformers_denoiser, "run_pass", run_pass)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not self._in_pass
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("adapts", [False, True])
def test_a_step_asks_little_beside_the_model(adapts: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On small models each operation costs a thousandth of a pass."""
    pipe = make_pipeline("llama", num_layers=1)
    kind, own = (ThresholdScheduler, {"threshold": 1.0}) if adapts else (ConfidenceScheduler, {"rounding": "even"})
    pipe.scheduler = kind(mask_token_id=MASK, masking_schedule="linear", token_temperature=0, **own)
    pipe.enable_cache(DualCacheConfig())
    call = {"input_ids": torch.full((1, 4), 5), "max_new_tokens": 16, "output_type": "ids"}
    pipe(**call, num_inference_steps=1)  # the probe
    counts = []
    for steps in (4, 12):
        with OperationsBesideTheModel(monkeypatch) as operations:
            pipe(**call, num_inference_steps=steps)
        counts.append(operations.count)
    assert 50 < (counts[1] - counts[0]) / 8 < 118  # 106 and 108 by torch 2.13, 112 and 115 by 2.6
