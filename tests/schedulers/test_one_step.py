"""`OneStepScheduler`: the contract of all schedulers as far as one step goes, and the laws of what it starts from."""

from __future__ import annotations

import importlib
import itertools
import json
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_contract
import torch
from chi_square import FALSE_ALARM, count_outcomes, goodness_of_fit, rounds_for_power
from scipy.stats import kstest

from hf_maskdiff import (
    DelayedCacheConfig,
    HaltonMaskGITTransformer2DModel,
    HybridScheduler,
    MaskedDiffusionSchedulerOutput,
    MaskGITPipeline,
    MaskGITTransformer2DModel,
    MDLMPipeline,
    MomentScheduler,
    OneStepScheduler,
    PartialCacheConfig,
    RunStart,
)
from hf_maskdiff.sampling import Purpose, normal_noise
from hf_maskdiff.schedulers import EmbeddingNoise

MASK, CODES = test_contract.MASK, test_contract.CODES
ROOT = Path(__file__).parents[2]


def scheduler_of(**config: Any) -> OneStepScheduler:
    scheduler = OneStepScheduler(mask_token_id=MASK, codebook_size=CODES, **config)
    scheduler.set_timesteps(1)
    return scheduler


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


# --- the contract -----------------------------------------------------------------------------------------------------


def test_what_every_scheduler_does_alike() -> None:
    test_contract.test_interface(OneStepScheduler)
    test_contract.test_add_noise_masks_with_the_schedule_s_probability(OneStepScheduler)
    test_contract.test_add_noise_with_a_generator_per_row(OneStepScheduler)
    test_contract.test_time(OneStepScheduler, 1)
    test_contract.test_temperature_in_the_config_is_that_of_the_marginals(OneStepScheduler)


def test_a_step_draws_what_is_not_given() -> None:
    scheduler, generator = scheduler_of(), torch.Generator()
    sample = torch.full((2, 4, 5), MASK)
    sample[:, 0, :3] = 11  # known tokens may be any, also ids that are never drawn
    sample[:, 1] = 3
    given = torch.zeros_like(sample, dtype=torch.bool)
    given[:, 0, :3] = True
    before, logits = sample.clone(), test_contract.make_logits(2, 20)
    logits[:, 5:10, 3] = -math.inf  # so that the second line must change
    arguments = (logits, 1.0, sample, 1.0, generator)
    output = scheduler.step(*arguments, given=given, memory=scheduler.new_memory(), details=True)
    assert isinstance(output, MaskedDiffusionSchedulerOutput)
    assert torch.equal(sample, before)
    assert (output.prev_sample.shape, output.prev_sample.dtype) == (sample.shape, torch.int64)
    assert torch.equal(output.prev_sample[given], sample[given])
    assert int(output.prev_sample[~given].max()) < CODES
    assert not (output.prev_sample[:, 1] == 3).any()
    assert torch.equal(output.pred_original_sample, output.prev_sample)
    assert output.pred_logits is logits
    assert torch.equal(output.transfer_index, output.prev_sample != sample)
    generator.manual_seed(generator.initial_seed())
    assert torch.equal(scheduler.step(*arguments, return_dict=False, given=given)[0], output.prev_sample)
    by_grid = logits.transpose(1, 2).unflatten(2, (4, 5))
    generator.manual_seed(generator.initial_seed())
    assert torch.equal(scheduler.step(by_grid, 1.0, sample, 1.0, generator, given=given)[0], output.prev_sample)


def test_who_does_not_say_what_is_given_is_warned() -> None:
    """Random codes look like tokens to keep, so these stay as in every scheduler."""
    scheduler, logits = scheduler_of(), test_contract.make_logits(2, 20)
    sample = torch.full((2, 20), MASK)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not (scheduler.step(logits, 1.0, sample).prev_sample == MASK).any()
    sample[:, ::3] = 1
    for memory in (None, scheduler.new_memory()):
        with pytest.warns(UserWarning, match=r"cannot tell the random codes of its start from tokens to keep.* Pass"):
            drawn = scheduler.step(logits, 1.0, sample, memory=memory).prev_sample
        assert torch.equal(drawn[:, ::3], sample[:, ::3])
        assert not (drawn == MASK).any()


def test_logits_of_some_positions() -> None:
    scheduler, sample = scheduler_of(), torch.full((2, 6), MASK)
    given = torch.tensor([[True, False, False, True, False, False], [False, True, True, True, True, False]])
    sample[given], sample[0, 1] = 4, 5
    logits = test_contract.make_logits(2, 6)
    whole = scheduler.step(logits, 1.0, sample, 1.0, seeded(1, 2), given=given).prev_sample
    places = torch.tensor([[5, 1, 2, 4], [6, 11, -1, -1]])
    some = logits.flatten(0, 1)[places.clamp(min=0)]
    part = scheduler.step(some, 1.0, sample, 1.0, seeded(1, 2), logits_at=places, given=given).prev_sample
    assert torch.equal(part, whole)


def test_results_may_enter_a_graph() -> None:
    scheduler, embedding = scheduler_of(), torch.nn.Embedding(MASK + 1, 3)
    start = scheduler.start_run(torch.full((2, 20), MASK))
    logits = test_contract.make_logits(2, 20).requires_grad_()
    given = torch.zeros(2, 20, dtype=torch.bool)
    for result in (start.sample, *scheduler.step(logits, 1.0, start.sample, given=given, return_dict=False)):
        assert not result.is_inference()
        embedding(result).sum().backward()
    states = torch.randn(2, 20, 4, requires_grad=True)
    start.embedding_noise(states).sum().backward()
    torch.testing.assert_close(states.grad, torch.full_like(states, math.sqrt(1 - 0.01)))


def test_saved_and_loaded(tmp_path: Path) -> None:
    config = {"mask_token_id": MASK, "codebook_size": CODES, "initial_mask_ratio": 0.3, "embedding_noise": 0.2}
    config |= {"temperature": 0.8, "top_k": 5, "top_p": 0.95, "masking_schedule": "linear"}
    scheduler = OneStepScheduler(**config)
    scheduler.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "scheduler_config.json").read_text())
    assert {key: written[key] for key in config} == config
    loaded = OneStepScheduler.from_pretrained(tmp_path)
    assert json.loads(loaded.to_json_string()) == written
    other = HybridScheduler.from_config(scheduler.config)
    assert (other.config.temperature, other.config.masking_schedule) == (0.8, "linear")
    assert OneStepScheduler.from_config(other.config).config.initial_mask_ratio == 0.3


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"initial_mask_ratio": 0}, r"`initial_mask_ratio` must be in \(0, 1\], got 0\. Pass 0\.6"),
        ({"initial_mask_ratio": 1.1}, r"`initial_mask_ratio` must be in \(0, 1\], got 1\.1"),
        ({"initial_mask_ratio": True}, r"`initial_mask_ratio` must be in \(0, 1\], got True"),
        ({"embedding_noise": 1}, r"`embedding_noise` must be in \[0, 1\), got 1\. Pass 0\.1, or 0"),
        ({"embedding_noise": -0.1}, r"`embedding_noise` must be in \[0, 1\), got -0\.1"),
        ({"embedding_noise": "0.1"}, r"`embedding_noise` must be in \[0, 1\), got '0\.1'"),
        ({"masking_schedule": [3, 20]}, r"`masking_schedule` must be a name, or a table of one step, got \[3, 20\]"),
    ],
)
def test_settings_that_cannot_be(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OneStepScheduler(mask_token_id=MASK, codebook_size=CODES, **config)


def test_calls_that_cannot_be() -> None:
    scheduler = OneStepScheduler(mask_token_id=MASK, codebook_size=CODES)
    sample = torch.full((2, 20), MASK)
    with pytest.raises(ValueError, match="`set_timesteps` must be called before `step`"):
        scheduler.step(test_contract.make_logits(2, 20), 1.0, sample)
    for steps in (2, 8):
        with pytest.raises(ValueError, match=rf"`num_inference_steps` must be 1 with a OneStepScheduler, got {steps}"):
            scheduler.set_timesteps(steps)
    for steps in (0, "one"):
        with pytest.raises(ValueError, match=r"`num_inference_steps` must be an integer of at least 1, got"):
            scheduler.set_timesteps(steps)
    scheduler.set_timesteps(1)
    assert scheduler.timesteps.tolist() == [1.0]
    with pytest.raises(ValueError, match="must hold one per row, got 3 for a batch of 2"):
        scheduler.start_run(sample, None, seeded(1, 2, 3))
    unknown = OneStepScheduler(mask_token_id=MASK)
    with pytest.raises(ValueError, match="`codebook_size` must be given to draw random codes, got None"):
        unknown.start_run(sample)
    assert torch.equal(OneStepScheduler(mask_token_id=MASK, initial_mask_ratio=1).start_run(sample).sample, sample)
    logits = test_contract.make_logits(2, 20)
    logits[1, 3] = math.nan
    with pytest.raises(ValueError, match=r"hold no NaN or \+inf, got such logits in step 0"):
        scheduler.step(logits, 1.0, sample)


# --- what it starts from ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(20,), (4, 5)])
@pytest.mark.parametrize(("ratio", "count"), [(0.6, 12), (0.03, 1), (1.0, 20), (0.125, 2), (0.175, 4)])
def test_exactly_as_many_masks(shape: tuple[int, ...], ratio: float, count: int) -> None:
    """Halves go to the even number, as in the original: 0.125 of 20 is 2.5, and 0.175 is 3.5."""
    start = scheduler_of(initial_mask_ratio=ratio).start_run(torch.full((50, *shape), MASK))
    masked = (start.sample == MASK).flatten(1)
    assert start.sample.shape == (50, *shape)
    assert set(masked.sum(1).tolist()) == {count}
    assert ((start.sample >= 0) & (start.sample < CODES))[start.sample != MASK].all()
    assert len(masked.unique(dim=0)) > 1 or count == 20


def test_a_row_s_start_is_its_own() -> None:
    scheduler, masks = scheduler_of(), torch.full((3, 20), MASK)
    batch = scheduler.start_run(masks, None, seeded(1, 2, 3))
    alone = scheduler.start_run(masks[:1], None, seeded(2))
    assert torch.equal(batch.sample[1:2], alone.sample)
    assert not torch.equal(batch.sample[0], batch.sample[1])
    states = torch.randn(3, 20, 8)
    assert torch.equal(batch.embedding_noise(states)[1:2], alone.embedding_noise(states[1:2]))
    index = torch.tensor([2, 1])
    assert torch.equal(batch.embedding_noise.of_rows(index)(states[index]), batch.embedding_noise(states)[index])
    generators = seeded(1, 2, 3)
    after = [scheduler.start_run(masks, None, generators).sample for _ in range(2)]
    assert torch.equal(after[0], batch.sample)
    assert not torch.equal(after[0], after[1])


def test_without_noise_embeddings_stay() -> None:
    assert scheduler_of(embedding_noise=0).start_run(torch.full((2, 20), MASK)).embedding_noise is None
    assert isinstance(MomentScheduler(mask_token_id=MASK).start_run(torch.full((1, 2), 3)), RunStart)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_noise_is_normal_and_of_its_share(dtype: torch.dtype) -> None:
    noise = EmbeddingNoise(0.6, torch.tensor([5, -(2**62)]))
    zeros, states = torch.zeros(2, 30, 200, dtype=dtype), torch.randn(2, 30, 200, dtype=dtype)
    drawn = noise(zeros) / 0.6
    assert drawn.dtype == dtype
    assert kstest(drawn.double().flatten().numpy(), "norm").pvalue > (1e-6 if dtype == torch.float32 else 0)
    expected = 0.6 * (noise(zeros) / 0.6) + 0.8 * states
    torch.testing.assert_close(noise(states), expected, atol=2e-2 if dtype == torch.bfloat16 else 1e-6, rtol=1e-2)


def test_noise_is_independent_between_rows_positions_and_numbers() -> None:
    """The hash of a position is the key of its numbers: no two streams may go together, or repeat one another."""
    noise = normal_noise(torch.arange(4), 8, 500, Purpose.EXPLORATION)
    streams = noise.flatten(0, 1).numpy()
    together = np.corrcoef(streams) - np.eye(32)
    assert abs(together).max() < 6 / math.sqrt(500)
    assert abs(np.corrcoef(streams.T)[0, 1:]).max() < 5.5 / math.sqrt(32) * 1.2
    assert len(np.unique(streams)) == streams.size
    assert torch.equal(noise[:, :5, :40], normal_noise(torch.arange(4), 5, 40, Purpose.EXPLORATION))
    assert not torch.equal(noise, normal_noise(torch.arange(4), 8, 500, Purpose.TOKEN))


# --- laws -------------------------------------------------------------------------------------------------------------

LENGTH, COLOURS, ABSENT, RATIO = 3, 2, 2, 0.6  # round(1.8) = 2 masks
Law = dict[tuple[int, ...], float]


def starts(count: int, codes: int = COLOURS) -> Law:
    """The law of the start: every set of `count` masks alike, every code alike."""
    law: Law = {}
    sets = list(itertools.combinations(range(LENGTH), count))
    others = LENGTH - count
    for masks, drawn in itertools.product(sets, itertools.product(range(codes), repeat=others)):
        state, left = [-1] * LENGTH, iter(drawn)
        for i in set(range(LENGTH)) - set(masks):
            state[i] = next(left)
        law[tuple(state)] = 1 / len(sets) / codes**others
    return law


def conditional(state: tuple[int, ...]) -> np.ndarray:
    """A model: how probable each token is at each place depends on every token of the start, `(LENGTH, COLOURS)`."""
    seen = sum((token + 1) * 3**i for i, token in enumerate(state))
    logits = np.random.default_rng(seen).normal(size=(LENGTH, COLOURS))
    return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)


def results(start: Law, keeps_codes: bool = False) -> Law:
    """The law of what is drawn; of a mutant that keeps the random codes, where told."""
    law: Law = {}
    for state, mass in start.items():
        probs = conditional(state)
        for tokens in itertools.product(range(COLOURS), repeat=LENGTH):
            likely = [
                float(tokens[i] == state[i]) if keeps_codes and state[i] >= 0 else probs[i, tokens[i]]
                for i in range(LENGTH)
            ]
            law[tokens] = law.get(tokens, 0) + mass * math.prod(likely)
    return law


def drawn(rounds: int) -> tuple[torch.Tensor, torch.Tensor]:
    scheduler = OneStepScheduler(mask_token_id=ABSENT, codebook_size=COLOURS, initial_mask_ratio=RATIO)
    scheduler.set_timesteps(1)
    generator = torch.Generator().manual_seed(11)
    masks = torch.full((rounds, LENGTH), ABSENT)
    start = scheduler.start_run(masks, None, generator).sample
    known, which = start.unique(dim=0, return_inverse=True)
    table = torch.from_numpy(np.stack([conditional(tuple(t if t < ABSENT else -1 for t in k)) for k in known.tolist()]))
    logits = table.log().float()[which]
    nothing = torch.zeros_like(masks, dtype=torch.bool)
    return start, scheduler.step(logits, 1.0, start, generator=generator, given=nothing).prev_sample


def test_laws_of_start_and_result() -> None:
    """With rounds enough to reject a start of one mask more, codes that stay, and a start that draws no codes."""
    law, result = starts(2), results(starts(2))
    mutants = (results(starts(2), keeps_codes=True), results(starts(3)), results(starts(1)))
    rounds = max(rounds_for_power(result, mutant) for mutant in mutants)
    assert rounds < 100_000
    start, made = drawn(max(rounds, 20_000))
    assert goodness_of_fit(count_outcomes(start.numpy(), ABSENT), law).p_value > FALSE_ALARM
    assert goodness_of_fit(count_outcomes(made.numpy(), ABSENT), result).p_value > FALSE_ALARM


# --- in pipelines -----------------------------------------------------------------------------------------------------


@pytest.fixture
def pipe(make_pipeline: Callable[..., MaskGITPipeline]) -> MaskGITPipeline:
    made = make_pipeline()
    made.scheduler = OneStepScheduler.from_config(made.scheduler.config)
    return made


def test_one_pass_with_the_noise_that_was_prepared(pipe: MaskGITPipeline) -> None:
    """What the scheduler prepares is what the model sees, and its logits are what tokens are drawn from."""
    mask, seen = pipe.scheduler.config.mask_token_id, []
    hook = pipe.transformer.register_forward_hook(
        lambda module, args, kwargs, out: seen.append((args, kwargs, out[0].clone())), with_kwargs=True
    )
    codes = pipe([0, 2], num_inference_steps=1, generator=seeded(4, 5), output_type="latent").images
    hook.remove()
    (((sample, labels), arguments, logits),) = seen
    assert labels.tolist() == [0, 2]
    generators, masks = seeded(4, 5), torch.full_like(codes, mask)
    start = pipe.scheduler.start_run(masks, None, generators)
    assert torch.equal(sample, start.sample)
    assert torch.equal(arguments["embedding_noise"].keys, start.embedding_noise.keys)
    with torch.no_grad():
        expected = pipe.transformer(start.sample, labels, embedding_noise=start.embedding_noise).sample
        plain = pipe.transformer(start.sample, labels).sample
    torch.testing.assert_close(logits, expected)
    assert not torch.allclose(plain, expected, atol=1e-4)
    nothing = torch.zeros_like(masks, dtype=torch.bool)
    direct = pipe.scheduler.step(expected, 1.0, start.sample, 1.0, generators, given=nothing).prev_sample
    assert torch.equal(codes, direct)


def test_an_image_is_its_own_in_any_batch(pipe: MaskGITPipeline) -> None:
    def draw(labels: list[int], *seeds: int, **call: Any) -> torch.Tensor:
        return pipe(labels, num_inference_steps=1, generator=seeded(*seeds), output_type="latent", **call).images

    batch = draw([0, 1, 2], 7, 8, 9)
    assert torch.equal(draw([1], 8)[0], batch[1])
    assert torch.equal(draw([0, 1, 2], 7, 8, 9), batch)
    assert not torch.equal(draw([1, 1], 8, 9)[0], draw([1, 1], 8, 9)[1])
    guided = draw([0, 1, 2], 7, 8, 9, guidance_scale=4.0)
    assert torch.equal(draw([1], 8, guidance_scale=4.0)[0], guided[1])
    assert pipe(1, num_inference_steps=1).images[0].size == (8, 8)


def test_guidance_takes_both_passes_from_one_start(pipe: MaskGITPipeline) -> None:
    seen = []
    hook = pipe.transformer.register_forward_hook(
        lambda module, args, kwargs, out: seen.append((args[0], args[1].tolist(), kwargs["embedding_noise"])),
        with_kwargs=True,
    )
    pipe([0, 2], num_inference_steps=1, guidance_scale=3.0, output_type="latent")
    hook.remove()
    (one, other) = seen
    assert torch.equal(one[0], other[0])
    assert torch.equal(one[2].keys, other[2].keys)
    assert (one[1], other[1]) == ([0, 2], [pipe.transformer.config.num_classes] * 2)


SIZES = {"sample_size": 3, "codebook_size": 8, "num_classes": 2, "hidden_size": 16, "num_layers": 1}
SIZES |= {"num_attention_heads": 2, "intermediate_size": 16}
MODELS = {
    "Halton": (HaltonMaskGITTransformer2DModel, {}),
    "BERT": (MaskGITTransformer2DModel, {"project_embeddings": True, "position_bias": True}),
    "MAGE": (MaskGITTransformer2DModel, {"num_decoder_layers": 1}),
}


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_the_class_has_no_noise(name: str) -> None:
    """Every denoiser mixes it in before positions are added, and in full passes alone."""
    kind, more = MODELS[name]
    model, seen = kind(**SIZES, **more).eval(), []
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    codes, labels = torch.arange(18).remainder(8).view(2, 3, 3), torch.tensor([0, 1])

    def keep(embeddings: torch.Tensor) -> torch.Tensor:
        seen.append(embeddings)
        return embeddings

    plain = model(codes, labels).sample
    torch.testing.assert_close(model(codes, labels, embedding_noise=keep).sample, plain)
    torch.testing.assert_close(seen[0], model.token_embedding.weight[codes.flatten(1)])
    # One code in place of all others, by its embedding: the same as by its id.
    by_id = model(torch.full_like(codes, 5), labels).sample
    table = model.token_embedding.weight[5]
    torch.testing.assert_close(model(codes, labels, embedding_noise=lambda e: table.expand_as(e)).sample, by_id)
    assert not torch.allclose(plain, by_id, atol=1e-3)
    positions = torch.zeros(2, 1, dtype=torch.int64)
    with pytest.raises(ValueError, match="`embedding_noise` must be None in a partial pass"):
        model(positions, labels, positions=positions, cache=model.new_cache(), embedding_noise=keep)


def test_what_a_one_step_model_cannot_do(pipe: MaskGITPipeline) -> None:
    """One clear error each, before the model is called."""
    pipe.transformer.register_forward_pre_hook(lambda *_: pytest.fail("the model was called"))
    with pytest.raises(ValueError, match="`num_inference_steps` must be 1 with a OneStepScheduler, got 8"):
        pipe(1)
    image, half = torch.rand(1, 1, 8, 8), torch.zeros(1, 1, 8, 8)
    half[..., :4] = 1
    message = r"`sample` must be masks alone for a OneStepScheduler, got 8 tokens that are to be kept.* Take another"
    with pytest.raises(ValueError, match=message):
        pipe(1, num_inference_steps=1, image=image, mask_image=half)
    latents = torch.full((1, 4, 4), pipe.scheduler.config.mask_token_id)
    latents[0, 0] = 1
    with pytest.raises(ValueError, match="got 4 tokens that are to be kept"):
        pipe(1, num_inference_steps=1, latents=latents)
    with pytest.raises(ValueError, match="`temperature` must be left out with a OneStepScheduler"):
        pipe(1, num_inference_steps=1, temperature=2.0)
    pipe.enable_cache(PartialCacheConfig(num_substeps=2))
    with pytest.raises(ValueError, match="partial caching needs a scheduler that chooses positions before"):
        pipe(1, num_inference_steps=1)
    pipe.disable_cache()
    pipe.enable_cache(DelayedCacheConfig())
    with pytest.raises(ValueError, match="OneStepScheduler must have the logits of revealed positions"):
        pipe(1, num_inference_steps=1)


def test_on_a_text_model() -> None:
    """There is none that was made for it; it runs all the same, without noise and without a prompt."""
    texts = MDLMPipeline.from_pretrained(ROOT / "pipelines" / "mdlm-shakespeare")
    texts.set_progress_bar_config(disable=True)
    texts.scheduler = OneStepScheduler.from_config(texts.scheduler.config, embedding_noise=0)
    mask, call = texts.scheduler.config.mask_token_id, {"num_inference_steps": 1, "max_new_tokens": 12}
    (made,) = texts(None, generator=torch.Generator().manual_seed(0), **call).sequences
    assert not (made == mask).any()
    with pytest.raises(ValueError, match="tokens that are to be kept"):
        texts("ROMEO:", **call)
    texts.scheduler = OneStepScheduler.from_config(texts.scheduler.config, embedding_noise=0.2)
    with pytest.raises(ValueError, match=r"`embedding_noise` of the scheduler must be 0 for a model.*, got 0\.2\. Set"):
        texts(None, **call)


def test_the_benchmark_of_one_step(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A guided step costs two passes, and the first of a ramp, which is not guided, one."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    sizes = {"sample_size": 4, "codebook_size": 16, "hidden_size": 16, "num_layers": 1, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 16, "batch_size": 2, "repeats": 1}
    benchmark = importlib.import_module("one_step")
    results = benchmark.main([f"--{name}={value}" for name, value in sizes.items()])
    assert [row["passes"] for row in results.values()] == [1, 8, 15]
    assert results["one step"]["seconds"] < results["eight steps, guided"]["seconds"]
    assert capsys.readouterr().out.splitlines()[-1].startswith("| eight steps, guided | 15 |")
