"""What every scheduler must do alike: each exported one, and the example of one's own, passes the same test."""

from __future__ import annotations

import inspect
import json
import warnings
from pathlib import Path

import pytest
import torch
from concrete import SCHEDULERS, scheduler_in
from diffusers import ConfigMixin, SchedulerMixin

from hf_maskdiff import (
    ChooseThenSampleScheduler,
    ConfidenceScheduler,
    HaltonScheduler,
    HybridScheduler,
    MaskedDiffusionScheduler,
    MaskedDiffusionSchedulerOutput,
    MaskGITScheduler,
    MomentScheduler,
    UniformScheduler,
)

MASK, CODES = 12, 10  # columns 10 and 11 are padding, the mask lies outside
SHARED = ["mask_token_id", "codebook_size", "masking_schedule", "rounding", "temperature", "top_k", "top_p"]
STEP = [
    "model_output",
    "timestep",
    "sample",
    "starting_mask_ratio",
    "generator",
    "return_dict",
    "max_count",
    "logits_at",
    "memory",
    "given",
    "details",
    "of_block",
]


def make_logits(*shape: int, seed: int = 0) -> torch.Tensor:
    return 2 * torch.randn(*shape, CODES + 2, generator=torch.Generator().manual_seed(seed))


def run(
    scheduler: MaskedDiffusionScheduler, steps: int = 4, sample: torch.Tensor | None = None, **set_timesteps: object
) -> list[torch.Tensor]:
    """The sample after every step, with new logits in each."""
    sample = torch.full((2, 4, 5), MASK) if sample is None else sample
    generator = torch.Generator().manual_seed(7)
    scheduler.set_timesteps(steps, **set_timesteps)
    samples = []
    for n, t in enumerate(scheduler.timesteps):
        logits = make_logits(len(sample), sample[0].numel(), seed=n)
        sample = scheduler.step(logits, t, sample, generator=generator).prev_sample
        samples.append(sample)
    return samples


def arguments(function: object) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name != "self"]


def test_interface(scheduler_class: type[MaskedDiffusionScheduler]) -> None:
    assert issubclass(scheduler_class, SchedulerMixin)
    assert issubclass(scheduler_class, ConfigMixin)
    assert scheduler_class.order == 1
    parameters = inspect.signature(scheduler_class.__init__).parameters
    assert list(parameters)[1 : 1 + len(SHARED)] == SHARED
    required = [name for name, parameter in parameters.items() if parameter.default is inspect.Parameter.empty]
    assert required == ["self", "mask_token_id"]
    assert not any(p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL) for p in parameters.values())
    assert arguments(scheduler_class.set_timesteps) == ["num_inference_steps", "temperature", "device", "block_length"]
    assert arguments(scheduler_class.step) == STEP
    assert arguments(scheduler_class.add_noise) == ["original_samples", "timesteps", "generator"]
    for method in ("step", "set_timesteps", "add_noise"):
        assert inspect.getdoc(getattr(scheduler_class, method))
    if issubclass(scheduler_class, ChooseThenSampleScheduler):
        of_step_alone = ("return_dict", "details", "of_block")
        assert arguments(scheduler_class.choose) == [name for name in STEP if name not in of_step_alone]
        assert arguments(scheduler_class.sample_tokens) == ["model_output", "choice", "group"]


@pytest.mark.parametrize("steps", [1, 3, 8, 49])
def test_time(scheduler_class: type[MaskedDiffusionScheduler], steps: int) -> None:
    scheduler = scheduler_class(mask_token_id=MASK)
    scheduler.set_timesteps(steps, device="meta")  # whatever it says, the steps stay on the CPU
    assert scheduler.num_inference_steps == steps
    assert scheduler.timesteps.device.type == "cpu"
    assert scheduler.timesteps.dtype == torch.float32
    expected = torch.tensor([1 - n / steps for n in range(steps)], dtype=torch.float64)
    assert torch.equal(scheduler.timesteps, expected.float())


def test_time_zero_is_the_last_step(scheduler_class: type[MaskedDiffusionScheduler]) -> None:
    scheduler = scheduler_class(mask_token_id=MASK, codebook_size=CODES)
    scheduler.set_timesteps(4)
    sample = torch.full((2, 20), MASK)
    results = [
        scheduler.step(make_logits(2, 20), t, sample, generator=torch.Generator().manual_seed(0)).prev_sample
        for t in (0, 0.0, torch.tensor(0.0), 0.25, scheduler.timesteps[-1])
    ]
    assert not (results[0] == MASK).any()
    assert all(torch.equal(result, results[0]) for result in results)


def test_step(scheduler_class: type[MaskedDiffusionScheduler]) -> None:
    scheduler = scheduler_class(mask_token_id=MASK, codebook_size=CODES)
    scheduler.set_timesteps(4)
    sample = torch.full((2, 4, 5), MASK)
    sample[:, 0, :3] = 11  # known tokens may be any, also ids that are never drawn
    before, logits = sample.clone(), make_logits(2, 20)
    output = scheduler.step(logits, scheduler.timesteps[0], sample, generator=torch.Generator().manual_seed(0))
    assert isinstance(output, MaskedDiffusionSchedulerOutput)
    assert output.prev_sample.shape == sample.shape
    assert output.prev_sample.dtype == torch.int64
    assert torch.equal(sample, before)
    plain = scheduler.step(
        logits, scheduler.timesteps[0], sample, generator=torch.Generator().manual_seed(0), return_dict=False
    )
    assert isinstance(plain, tuple)
    assert torch.equal(plain[0], output.prev_sample)
    if isinstance(scheduler, ChooseThenSampleScheduler) or output.pred_original_sample is None:
        assert output.pred_original_sample is None
        assert len(plain) == 1  # nothing is drawn that is not used
    else:
        assert torch.equal(plain[1], output.pred_original_sample)
        assert not (plain[1] == MASK).any()
        revealed = output.prev_sample != MASK
        assert torch.equal(plain[1][revealed], output.prev_sample[revealed])


def test_details_are_given_where_they_are_asked_for(scheduler_class: type[MaskedDiffusionScheduler]) -> None:
    """Under the names of diffusers' conventions for discrete schedulers."""
    scheduler = scheduler_class(mask_token_id=MASK, codebook_size=CODES)
    scheduler.set_timesteps(2)
    logits, sample = make_logits(2, 20), torch.full((2, 4, 5), MASK)
    sample[:, 0] = 3
    output = scheduler.step(logits, 1.0, sample)
    assert output.pred_logits is None
    assert output.transfer_index is None
    output = scheduler.step(logits, 1.0, sample, details=True, memory=scheduler.new_memory())
    assert output.pred_logits is logits
    assert output.transfer_index.dtype == torch.bool
    assert output.transfer_index.any()
    assert torch.equal(output.transfer_index, output.prev_sample != sample)


def test_a_run_with_a_memory_is_over_in_time(scheduler_class: type[MaskedDiffusionScheduler]) -> None:
    scheduler = scheduler_class(mask_token_id=MASK, codebook_size=CODES)
    scheduler.set_timesteps(4)
    memory, sample, generator = scheduler.new_memory(), torch.full((3, 20), MASK), torch.Generator().manual_seed(0)
    assert scheduler.new_memory() is not memory
    for n, t in enumerate(scheduler.timesteps):
        before = sample
        sample = scheduler.step(make_logits(3, 20, seed=n), t, sample, generator=generator, memory=memory).prev_sample
        if not scheduler.revises:
            assert torch.equal(sample[before != MASK], before[before != MASK])
    assert not (sample == MASK).any()


@pytest.mark.parametrize("told", ["by the caller", "by the memory", "by nobody"])
def test_given_tokens_never_change_and_counts_follow_the_plan(
    scheduler_class: type[MaskedDiffusionScheduler], told: str
) -> None:
    """Whatever a scheduler takes back: from a run's first step on, and after the same number of masks."""
    scheduler = scheduler_class(mask_token_id=MASK, codebook_size=CODES)
    scheduler.set_timesteps(6)
    random = torch.Generator().manual_seed(3)
    sample = torch.randint(0, CODES, (6, 4, 5), generator=random)
    sample[torch.rand(sample.shape, generator=random) < 0.7] = MASK
    given, planned = sample != MASK, scheduler.planned_counts((sample == MASK).flatten(1).sum(1))
    start, masks, ratio = sample, [], (~given).flatten(1).double().mean(1)
    arguments: dict = {"by the caller": {"given": given}, "by nobody": {}}.get(told, {"memory": scheduler.new_memory()})
    took_back = False
    for n, t in enumerate(scheduler.timesteps):
        before, logits = sample, make_logits(6, 20, seed=n)
        with warnings.catch_warnings():
            action = "ignore" if told == "by nobody" else "error"
            warnings.filterwarnings(action, message=".*cannot tell given tokens from revealed ones")
            sample = scheduler.step(logits, t, sample, ratio, random, **arguments).prev_sample
        assert torch.equal(sample[given], start[given])
        took_back |= bool(((sample != before) & (before != MASK)).any())
        masks.append((sample == MASK).flatten(1).sum(1))
    assert not masks[-1].any()
    if planned is not None:
        assert torch.equal(torch.stack(masks), (~given).flatten(1).sum(1) - planned.cumsum(0))
    assert not took_back or (scheduler.revises and told != "by nobody")


def test_who_is_told_nothing_says_that_nothing_is_taken_back() -> None:
    scheduler = scheduler_in("examples/custom_remasking.py:SecondThoughtsScheduler")(
        mask_token_id=MASK, codebook_size=CODES
    )
    scheduler.set_timesteps(4)
    sample = torch.full((2, 20), MASK)
    sample[:, ::3] = 1
    with pytest.warns(UserWarning, match="cannot tell given tokens from revealed ones, so it takes none back. Pass"):
        scheduler.step(make_logits(2, 20), scheduler.timesteps[1], sample)


def test_what_is_given_is_checked(scheduler_class: type[MaskedDiffusionScheduler]) -> None:
    scheduler = scheduler_class(mask_token_id=MASK, codebook_size=CODES)
    scheduler.set_timesteps(2)
    sample = torch.full((2, 20), MASK)
    for wrong in (torch.zeros(2, 19, dtype=torch.bool), torch.zeros(2, 20), [True] * 20):
        with pytest.raises(ValueError, match=r"`given` must be a bool tensor of the shape of `sample`, \(2, 20\), got"):
            scheduler.step(make_logits(2, 20), 1.0, sample, given=wrong)
    # A masked position is not given, whatever the caller says.
    free = scheduler.step(make_logits(2, 20), 0.5, sample, given=torch.ones(2, 20, dtype=torch.bool)).prev_sample
    assert not (free == MASK).any()


def test_results_may_enter_a_graph(scheduler_class: type[MaskedDiffusionScheduler]) -> None:
    scheduler = scheduler_class(mask_token_id=MASK, codebook_size=CODES)
    scheduler.set_timesteps(2)
    logits = make_logits(2, 20).requires_grad_()
    embedding = torch.nn.Embedding(MASK + 1, 3)
    for result in scheduler.step(logits, 1.0, torch.full((2, 20), MASK), return_dict=False):
        assert not result.is_inference()
        embedding(result).sum().backward()
    assert embedding.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    "schedule", [{}, {"masking_schedule": "linear", "rounding": "even"}, {"masking_schedule": [3, 4, 11, 40]}]
)
def test_counts_follow_the_plan(scheduler_class: type[MaskedDiffusionScheduler], schedule: dict[str, object]) -> None:
    scheduler = scheduler_class(mask_token_id=MASK, codebook_size=CODES, **schedule)
    masks = [(sample == MASK).flatten(1).sum(1) for sample in run(scheduler)]
    planned = scheduler.planned_counts(torch.tensor([20, 20]))
    if planned is not None:
        assert torch.equal(torch.stack(masks), 20 - planned.cumsum(0))
    else:  # the logits decide: the method that says how many is the scheduler's own
        own = getattr(scheduler_class, "count_positions", None)
        assert own is not ChooseThenSampleScheduler.count_positions
        assert masks[0].max() < 20
    assert masks[-1].tolist() == [0, 0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, float])
def test_masks_at_the_start_are_recovered_from_their_share(dtype: torch.dtype | type) -> None:
    """49 * (1 / 49) is below 1, and so are many others: the product is rounded to the nearest integer."""
    scheduler = UniformScheduler(mask_token_id=MASK, masking_schedule="linear")
    scheduler.set_timesteps(2)
    for length in (49, 55, 77, 98, 107):
        initial = torch.arange(1, length + 1)
        sample = torch.where(torch.arange(length) < initial[:, None], MASK, 0)
        logits = torch.zeros(length, length, CODES)
        planned = scheduler.planned_counts(initial)[0]
        if dtype is float:
            ratios = (initial.double() / length).tolist()
            rows = [scheduler.step(logits[:1], 1.0, sample[[n]], ratios[n]).prev_sample for n in range(length)]
            after = torch.cat(rows)
        else:
            after = scheduler.step(logits, 1.0, sample, initial.to(dtype) / length).prev_sample
        assert torch.equal(initial - (after == MASK).sum(-1), planned)


def test_saved_and_loaded(scheduler_class: type[MaskedDiffusionScheduler], tmp_path: Path) -> None:
    config = {"mask_token_id": MASK, "codebook_size": CODES, "masking_schedule": [2, 9, 13, 20], "temperature": 0.8}
    config |= {"top_k": 5, "top_p": 0.95, "rounding": "floor_revealed"}
    scheduler = scheduler_class(**config)
    scheduler.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "scheduler_config.json").read_text())
    assert written["_class_name"] == scheduler_class.__name__
    assert {key: written[key] for key in config} == config
    loaded = scheduler_class.from_pretrained(tmp_path)
    assert json.loads(loaded.to_json_string()) == written == json.loads(scheduler.to_json_string())
    for ours, theirs in zip(run(scheduler), run(loaded), strict=True):
        assert torch.equal(ours, theirs)
    copied = scheduler_class.from_config(scheduler.config)
    assert all(torch.equal(a, b) for a, b in zip(run(scheduler), run(copied), strict=True))


def test_typical_tokens_alone_are_drawn(scheduler_class: type[MaskedDiffusionScheduler]) -> None:
    """One token has a probability of 0.4, six have 0.1: the entropy is 1.98 nats, and the six are typical."""
    if "typical_p" not in inspect.signature(scheduler_class).parameters:
        return  # one of one's own need not have it
    scheduler = scheduler_class(mask_token_id=MASK, codebook_size=7, typical_p=0.3)
    scheduler.set_timesteps(3)
    sample = torch.full((4, 50), MASK)
    for t in scheduler.timesteps:
        logits = torch.tensor([0.4, *[0.1] * 6]).log().expand(4, 50, -1)
        sample = scheduler.step(logits, t, sample, generator=torch.Generator().manual_seed(0)).prev_sample
    assert set(sample.unique().tolist()) <= set(range(1, 7))


APART = [c for c in SCHEDULERS if "min_distance" in inspect.signature(c).parameters]


@pytest.mark.parametrize("scheduler_class", APART)
@pytest.mark.parametrize("shape", [(24,), (5, 6)])
@pytest.mark.parametrize("distance", [2, 3])
def test_positions_of_a_step_lie_apart_and_counts_stay(
    scheduler_class: type[ChooseThenSampleScheduler], shape: tuple[int, ...], distance: int
) -> None:
    """Apart until no others are left: whatever is still masked then is near one of those chosen."""
    scheduler = scheduler_class(mask_token_id=MASK, codebook_size=CODES, min_distance=distance)
    other = scheduler_class(mask_token_id=MASK, codebook_size=CODES)
    for one in (scheduler, other):
        one.set_timesteps(3)
    sample = torch.full((3, *shape), MASK)
    sample[1].view(-1)[2:9] = 1
    near_ones = 0
    planned = scheduler.planned_counts((sample == MASK).flatten(1).sum(1))
    assert torch.equal(planned, other.planned_counts((sample == MASK).flatten(1).sum(1)))
    ratio = (sample == MASK).flatten(1).double().mean(1)
    axes = torch.stack(torch.meshgrid(*[torch.arange(n) for n in shape], indexing="ij")).flatten(1).T
    between = (axes[:, None] - axes).abs().amax(-1)  # (L, L)
    for n, t in enumerate(scheduler.timesteps):
        masked = (sample == MASK).flatten(1)
        logits = make_logits(3, masked.shape[1], seed=n)
        generators = [torch.Generator().manual_seed(10 * n + row) for row in range(3)]
        choice = scheduler.choose(logits, t, sample, ratio, generators, max_count=int(planned[n].max()))
        sample = scheduler.step(logits, t, sample, ratio, [g.manual_seed(g.initial_seed()) for g in generators])[0]
        for row in range(3):
            chosen = choice.positions[row, : choice.count[row]]
            revealed = (masked[row] & (sample[row].flatten() != MASK)).nonzero()[:, 0]
            assert len(chosen) == planned[n, row]
            assert sorted(chosen.tolist()) == revealed.tolist()
            apart = [p for i, p in enumerate(chosen) if (between[p, chosen[:i]] >= distance).all()]
            assert torch.equal(torch.stack(apart), chosen[: len(apart)])  # those that lie apart come first
            near_ones += len(chosen) - len(apart)
            if len(apart) < len(chosen):
                assert (between[masked[row]][:, torch.stack(apart)] < distance).any(1).all()
    assert near_ones > 0 or scheduler_class is HaltonScheduler
    assert not (sample == MASK).any()


def test_add_noise_masks_with_the_schedule_s_probability(scheduler_class: type[MaskedDiffusionScheduler]) -> None:
    scheduler = scheduler_class(mask_token_id=MASK, masking_schedule="cosine")
    clean = torch.arange(3 * 20_000).remainder(CODES).view(3, 100, 200)
    times = torch.tensor([1.0, 0.5, 0.0])
    noisy = scheduler.add_noise(clean, times, torch.Generator().manual_seed(0))
    masked = noisy == MASK
    assert torch.equal(noisy[~masked], clean[~masked])
    share = masked.flatten(1).double().mean(1)
    assert share[0] == 1
    assert share[1].item() == pytest.approx(0.5**0.5, abs=0.02)
    assert share[2] == 0
    again = scheduler.add_noise(clean, times, torch.Generator().manual_seed(0))
    assert torch.equal(again, noisy)
    # More is masked as time goes up, at the same seed in the same places.
    later = scheduler.add_noise(clean, 0.7, torch.Generator().manual_seed(0)) == MASK
    assert (later | ~masked)[1:].all()
    assert torch.equal(later, scheduler.add_noise(clean, torch.tensor(0.7), torch.Generator().manual_seed(0)) == MASK)


def test_add_noise_with_a_generator_per_row(scheduler_class: type[MaskedDiffusionScheduler]) -> None:
    scheduler = scheduler_class(mask_token_id=MASK)
    clean = torch.zeros(3, 50, dtype=torch.int64)

    def noisy(tokens: torch.Tensor, *seeds: int) -> torch.Tensor:
        return scheduler.add_noise(tokens, 0.6, [torch.Generator().manual_seed(seed) for seed in seeds])

    batch = noisy(clean, 1, 2, 3)
    assert torch.equal(noisy(clean[:1, :30], 2), batch[1:2, :30])
    assert torch.equal(noisy(clean, 1, 2, 3, 4, 5), batch)  # more than rows: the first ones
    assert not torch.equal(batch[0], batch[1])


# --- the choice temperature -------------------------------------------------------------------------------------------

HAS_CHOICE_TEMPERATURE = [
    scheduler_type(mask_token_id=MASK, codebook_size=CODES, choice_temperature=6.0)
    for scheduler_type in (
        MaskGITScheduler,
        MomentScheduler,
        UniformScheduler,
        HaltonScheduler,
        ConfidenceScheduler,
        HybridScheduler,
    )
]


def with_temperature(scheduler: MaskedDiffusionScheduler, **config: object) -> MaskedDiffusionScheduler:
    return type(scheduler).from_config(scheduler.config, **config)


def same(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("scheduler", HAS_CHOICE_TEMPERATURE, ids=lambda s: type(s).__name__)
def test_choice_temperature_of_a_run(scheduler: MaskedDiffusionScheduler) -> None:
    """None is the config; a pair is spaced evenly; a number s is (s, 0.01): for this run only."""
    plain = run(scheduler)
    pair = run(with_temperature(scheduler, choice_temperature=(2.0, 0.0)))
    assert not same(plain, pair)
    assert same(run(scheduler, temperature=(2.0, 0.0)), pair)
    assert same(run(scheduler, temperature=[2.0, 0.0]), pair)
    number = run(with_temperature(scheduler, choice_temperature=(0.1, 0.01)))
    assert same(run(scheduler, temperature=0.1), number)
    assert same(run(scheduler), plain)
    assert same(run(scheduler, temperature=None), plain)
    assert scheduler.config.choice_temperature == 6.0


@pytest.mark.parametrize("scheduler", HAS_CHOICE_TEMPERATURE, ids=lambda s: type(s).__name__)
def test_choice_temperature_schedules(scheduler: MaskedDiffusionScheduler) -> None:
    """Linear is alpha (1 - (n + 1) / T), a pair from alpha (1 - 1 / T) to 0; constant is a pair of equals."""
    linear = with_temperature(scheduler, choice_temperature=1.0)
    assert same(run(linear), run(linear, temperature=(0.75, 0.0)))
    constant = with_temperature(scheduler, choice_temperature=1.0, choice_temperature_schedule="constant")
    assert same(run(constant), run(linear, temperature=(1.0, 1.0)))
    assert not same(run(constant), run(linear))


@pytest.mark.parametrize("scheduler_type", [UniformScheduler, HaltonScheduler, ConfidenceScheduler])
def test_schedulers_without_choice_temperature_ignore_it(scheduler_type: type[MaskedDiffusionScheduler]) -> None:
    scheduler = scheduler_type(mask_token_id=MASK, codebook_size=CODES)
    assert same(run(scheduler, temperature=(2.0, 0.0)), run(scheduler))


def test_temperature_in_the_config_is_that_of_the_marginals(scheduler_class: type[MaskedDiffusionScheduler]) -> None:
    cold = scheduler_class(mask_token_id=MASK, codebook_size=CODES, temperature=1e-3)
    final = run(cold, steps=1)[0].flatten(1)
    assert torch.equal(final, make_logits(2, 20)[..., :CODES].argmax(-1))
