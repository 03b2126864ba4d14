"""What holds for every scheduler, configuration, batch, dtype and number of steps."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_maskdiff import (
    ChooseThenSampleScheduler,
    ConfidenceScheduler,
    EntropyBoundedScheduler,
    HaltonScheduler,
    HybridScheduler,
    KLASSScheduler,
    MaskedDiffusionScheduler,
    MaskGITScheduler,
    MomentScheduler,
    ThresholdScheduler,
    UniformScheduler,
)
from hf_maskdiff.orders import halton_order

CODES = 6
COLUMNS = 9  # ids 6 to 8 are padding; the mask is one of them, a code, or lies outside
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
PAIR = (4.0, 0.5)

CONFIGURATIONS: dict[str, tuple[type[MaskedDiffusionScheduler], dict[str, object]]] = {
    "maskgit": (MaskGITScheduler, {}),
    "maskgit, greedy order": (MaskGITScheduler, {"choice_temperature": 0.0, "top_k": 1}),
    "maskgit, table": (MaskGITScheduler, {"choice_temperature": PAIR, "rounding": "floor_revealed"}),
    "moment": (MomentScheduler, {}),
    "moment, apart, typical": (MomentScheduler, {"min_distance": 3, "typical_p": 0.9}),
    "moment, cold": (MomentScheduler, {"choice_temperature": 1e-9, "top_p": 0.9}),
    "uniform": (UniformScheduler, {"masking_schedule": "linear"}),
    "uniform, tempered": (UniformScheduler, {"choice_temperature": 2.0, "rounding": "even"}),
    "halton": (HaltonScheduler, {"masking_schedule": "arccos", "rounding": "floor_revealed"}),
    "halton, randomized": (HaltonScheduler, {"randomize": True, "choice_temperature": PAIR}),
    "confidence": (ConfidenceScheduler, {}),
    "margin": (ConfidenceScheduler, {"measure": "margin", "choice_temperature": 3.0}),
    "entropy": (ConfidenceScheduler, {"measure": "entropy", "masking_schedule": "square"}),
    "entropy-bounded": (EntropyBoundedScheduler, {"entropy_bound": 2.0, "top_p": 0.9}),
    "entropy-bounded, on schedule": (EntropyBoundedScheduler, {"entropy_bound": 0.5, "follow_schedule": True}),
    "threshold": (ThresholdScheduler, {"threshold": 0.7, "token_temperature": 0.5}),
    "threshold, drawn, on schedule": (ThresholdScheduler, {"measure": "drawn", "follow_schedule": True}),
    "klass": (KLASSScheduler, {"confidence_threshold": 0.3, "kl_threshold": 0.5}),
    "hybrid": (HybridScheduler, {}),
    "hybrid, two certainties": (HybridScheduler, {"exploration": "entropy", "exploitation": "confidence"}),
    "hybrid, annealed": (
        HybridScheduler,
        {
            "exploration": "randomized_halton",
            "exploitation": "uniform",
            "exploration_ratio": (1.0, 0.0),
            "plain_exploration": True,
        },
    ),
    "hybrid, no temperature": (HybridScheduler, {"exploration": "moment", "choice_temperature": None}),
}
CHOOSE_FIRST = [name for name, (c, _) in CONFIGURATIONS.items() if issubclass(c, ChooseThenSampleScheduler)]


@pytest.fixture(params=CONFIGURATIONS, scope="module")
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@dataclass(frozen=True)
class Case:
    """A run: tokens to start from, fixed logits per step and row, a seed per row."""

    sample: torch.Tensor  # (batch_size, L)
    logits: torch.Tensor  # (steps, batch_size, L, COLUMNS)
    seeds: list[int]
    mask_token_id: int

    @property
    def steps(self) -> int:
        return len(self.logits)

    @property
    def masked(self) -> torch.Tensor:
        return self.sample == self.mask_token_id

    @property
    def ratios(self) -> torch.Tensor:
        return self.masked.double().mean(-1)

    def rows(self, indices: list[int]) -> Case:
        seeds = [self.seeds[i] for i in indices]
        return replace(self, sample=self.sample[indices], logits=self.logits[:, indices], seeds=seeds)


@st.composite
def cases(draw: st.DrawFn, dtypes: list[torch.dtype] = DTYPES, most_steps: int = 12) -> Case:
    batch_size, length, steps = draw(st.integers(1, 4)), draw(st.integers(1, 10)), draw(st.integers(1, most_steps))
    mask_token_id = draw(st.sampled_from([2, CODES, COLUMNS - 1, COLUMNS, 100]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    known = torch.randint(0, CODES - 1, (batch_size, length), generator=generator)
    known[known == mask_token_id] = CODES - 1
    masked = torch.rand(batch_size, length, generator=generator) < draw(st.sampled_from([0.0, 0.3, 0.8, 1.0]))
    if draw(st.booleans()):
        masked[0] = False  # a row with nothing masked among others
    scale = draw(st.sampled_from([0.0, 1.0, 30.0]))
    logits = scale * torch.randn(steps, batch_size, length, COLUMNS, generator=generator)
    return Case(
        known.masked_fill(masked, mask_token_id),
        logits.to(draw(st.sampled_from(dtypes))),
        draw(st.lists(st.integers(0, 2**64 - 1), min_size=batch_size, max_size=batch_size)),
        mask_token_id,
    )


def scheduler_of(name: str, case: Case) -> MaskedDiffusionScheduler:
    scheduler_type, config = CONFIGURATIONS[name]
    scheduler = scheduler_type(mask_token_id=case.mask_token_id, codebook_size=CODES, **config)
    scheduler.set_timesteps(case.steps)
    return scheduler


def run(name: str, case: Case, one_generator: bool = False, ratio: object = None) -> list[torch.Tensor]:
    """The sample at the start and after every step."""
    scheduler, samples = scheduler_of(name, case), [case.sample]
    generator = [torch.Generator().manual_seed(seed) for seed in case.seeds]
    if one_generator:
        generator = generator[0]
    ratio = case.ratios if ratio is None else ratio
    for t, logits in zip(scheduler.timesteps, case.logits, strict=True):
        samples.append(scheduler.step(logits, t, samples[-1], ratio, generator).prev_sample)
    return samples


def equal(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@given(case=cases())
@settings(max_examples=40)
def test_a_run_fills_in_what_is_masked_and_nothing_else(name: str, case: Case) -> None:
    samples = run(name, case)
    planned = scheduler_of(name, case).planned_counts(case.masked.sum(-1))
    for step, (before, after) in enumerate(pairwise(samples)):
        was, still = before == case.mask_token_id, after == case.mask_token_id
        assert torch.equal(after[~was], before[~was])  # known tokens never change
        revealed = (was & ~still).sum(-1)
        if planned is None:
            assert (revealed >= was.any(-1).long()).all()
        else:
            assert torch.equal(revealed, planned[step])
    new = samples[-1][case.masked]
    assert not (new == case.mask_token_id).any()
    assert ((new >= 0) & (new < CODES)).all()


@given(case=cases(), ratio=st.floats(0, 1))
@settings(max_examples=25)
def test_a_wrong_starting_ratio_still_ends(name: str, case: Case, ratio: float) -> None:
    for before, after in zip((samples := run(name, case, ratio=ratio))[:-1], samples[1:], strict=True):
        was, still = (before == case.mask_token_id).sum(-1), (after == case.mask_token_id).sum(-1)
        assert ((still < was) | (was == 0)).all()
    assert not (samples[-1] == case.mask_token_id).any()


@given(case=cases(), data=st.data())
@settings(max_examples=25)
def test_a_row_is_the_same_alone_and_in_any_batch(name: str, case: Case, data: st.DataObject) -> None:
    together = run(name, case)
    order = data.draw(st.permutations(range(len(case.sample))))
    assert equal(run(name, case.rows(order)), [sample[order] for sample in together])
    for row in range(len(case.sample)):
        assert equal(run(name, case.rows([row])), [sample[[row]] for sample in together])
    subset = data.draw(st.lists(st.sampled_from(range(len(case.sample))), min_size=1, max_size=6))
    assert equal(run(name, case.rows(subset)), [sample[subset] for sample in together])


@given(case=cases(), padding=st.integers(1, 9))
@settings(max_examples=25)
@pytest.mark.parametrize("length_free", CONFIGURATIONS)
def test_known_tokens_on_the_right_change_nothing(length_free: str, case: Case, padding: int) -> None:
    plain = run(length_free, case)
    token = CODES - 1 if case.mask_token_id != CODES - 1 else 0
    sample = torch.nn.functional.pad(case.sample, (0, padding), value=token)
    logits = torch.nn.functional.pad(case.logits, (0, 0, 0, padding), value=1.0)
    padded = run(length_free, replace(case, sample=sample, logits=logits))
    assert equal([sample[:, :-padding] for sample in padded], plain)
    assert all((sample[:, -padding:] == token).all() for sample in padded)


@given(case=cases(), one_generator=st.booleans())
@settings(max_examples=15)
def test_the_same_seed_gives_the_same_result(name: str, case: Case, one_generator: bool) -> None:
    assert equal(run(name, case, one_generator), run(name, case, one_generator))


@pytest.mark.parametrize("one_generator", [True, False])
def test_another_seed_gives_another_result(name: str, one_generator: bool) -> None:
    logits = torch.zeros(3, 2, 40, COLUMNS)
    case = Case(torch.full((2, 40), 100), logits, [1, 2], 100)
    if "greedy" in name:  # top_k = 1 with ties leaves every token, but flat logits leave the order too
        assert CONFIGURATIONS[name][1]["top_k"] == 1
    first = run(name, case, one_generator)
    assert not equal(first, run(name, replace(case, seeds=[3, 4]), one_generator))
    assert not torch.equal(first[-1][0], first[-1][1])  # nor are two rows alike
    if one_generator:  # None is torch's global generator
        scheduler, t = scheduler_of(name, case), 1.0
        torch.manual_seed(0)
        a, b = (scheduler.step(logits[0], t, case.sample).prev_sample for _ in range(2))
        torch.manual_seed(0)
        assert torch.equal(scheduler.step(logits[0], t, case.sample).prev_sample, a)
        assert not torch.equal(a, b)


@given(case=cases())
@settings(max_examples=25)
def test_logits_of_known_positions_do_not_matter(name: str, case: Case) -> None:
    spoiled = case.logits.clone()
    spoiled[:, ~case.masked] = torch.nan
    assert equal(run(name, replace(case, logits=spoiled)), run(name, case))


@given(case=cases(), shift=st.sampled_from([0.0, -7.0, 1000.0]))
@settings(max_examples=15)
def test_half_precision_logits_are_computed_as_float32(name: str, case: Case, shift: float) -> None:
    half = replace(case, logits=(case.logits + shift).bfloat16())
    assert equal(run(name, half), run(name, replace(half, logits=half.logits.float())))


@pytest.mark.covering(2)
@pytest.mark.parametrize("shape", [(3, 4), (1, 5), (4, 1)])
@pytest.mark.parametrize("ratio", ["number", "0-dim", "per row"])
def test_layouts(name: str, shape: tuple[int, int], ratio: str) -> None:
    """(batch_size, V, height, width) gives what (batch_size, L, V) gives, and a grid what its rows in line give."""
    height, width = shape
    generator = torch.Generator().manual_seed(0)
    flat = 2 * torch.randn(2, height * width, COLUMNS, generator=generator)
    channels = flat.transpose(1, 2).reshape(2, COLUMNS, height, width).contiguous()
    scheduler_type, config = CONFIGURATIONS[name]
    scheduler = scheduler_type(mask_token_id=100, codebook_size=CODES, **config)
    scheduler.set_timesteps(3)
    starting = {"number": 1.0, "0-dim": torch.tensor(1.0), "per row": torch.ones(2)}[ratio]
    grid = line = torch.full((2, height, width), 100)
    line = line.flatten(1)
    for t in scheduler.timesteps:
        seeded = [[torch.Generator().manual_seed(7 + row) for row in range(2)] for _ in range(3)]
        expected = scheduler.step(flat, t, grid, starting, seeded[0]).prev_sample
        assert torch.equal(scheduler.step(channels, t, grid, starting, seeded[1]).prev_sample, expected)
        on_line = scheduler.step(flat, t, line, starting, seeded[2]).prev_sample
        orders = {"halton", "randomized_halton"}
        of_grid = scheduler_type is HaltonScheduler or scheduler.config.get("exploration") in orders
        if not of_grid and scheduler.config.get("min_distance", 1) == 1:  # near on a grid is not near on a line
            assert torch.equal(on_line, expected.flatten(1))
        grid, line = expected, on_line
    assert not (grid == 100).any()


# --- two halves -------------------------------------------------------------------------------------------------------


@given(case=cases(most_steps=5), num_groups=st.integers(1, 4), data=st.data())
@settings(max_examples=25)
@pytest.mark.parametrize("choose_first", CHOOSE_FIRST)
def test_choosing_and_sampling_in_groups_is_a_step(
    choose_first: str, case: Case, num_groups: int, data: st.DataObject
) -> None:
    scheduler = scheduler_of(choose_first, case)
    generators = [torch.Generator().manual_seed(seed) for seed in case.seeds]
    sample = case.sample
    for t, logits, expected in zip(scheduler.timesteps, case.logits, run(choose_first, case)[1:], strict=True):
        masked, length = sample == case.mask_token_id, sample.shape[1]
        states = [g.get_state() for g in generators]
        choice = scheduler.choose(logits, t, sample, case.ratios, generators)
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
        bound = data.draw(st.integers(int(choice.count.max()), length))
        bounded = scheduler.choose(logits, t, sample, case.ratios, generators, max_count=bound)
        assert bounded.positions.shape[1] == bound
        assert torch.equal(
            bounded.positions[:, : choice.positions.shape[1]][choice.valid], choice.positions[choice.valid]
        )

        for chosen in (choice, bounded):
            positions, valid = chosen.positions, chosen.valid
            assert torch.equal(chosen.count, choice.count)
            assert all(len(set(row)) == len(row) for row in positions.tolist())
            assert masked.gather(1, positions)[valid].all()
            assert torch.equal(chosen.tokens, sample.gather(1, positions))
            aligned = logits.gather(1, positions[..., None].expand(-1, -1, COLUMNS))
            assert torch.equal(
                sample.scatter(1, positions, scheduler.sample_tokens(aligned, chosen)),
                expected,
            )
            # In groups of ranks, each rank in one of them, in any order.
            group_of = torch.randint(num_groups, positions.shape, generator=torch.Generator().manual_seed(0))
            written = sample
            for group in reversed(range(num_groups)):
                tokens = scheduler.sample_tokens(aligned, chosen, group_of == group)
                outside = ~(valid & (group_of == group))
                assert torch.equal(tokens[outside], chosen.tokens[outside])
                written = torch.where(
                    torch.zeros_like(masked).scatter(1, positions, ~outside),
                    sample.scatter(1, positions, tokens),
                    written,
                )
            assert torch.equal(written, expected)
        sample = expected


# --- orders, seen from outside ----------------------------------------------------------------------------------------


def revealed_first(scheduler: MaskedDiffusionScheduler, logits: torch.Tensor, sample: torch.Tensor) -> list[int]:
    """Positions of row 0 in the order in which the steps of a run with one reveal each show them."""
    length = sample[0].numel()
    scheduler.set_timesteps(length)
    order = []
    for t in scheduler.timesteps:
        before = sample
        generator = [torch.Generator().manual_seed(1) for _ in sample]
        sample = scheduler.step(logits, t, sample, generator=generator).prev_sample
        order += (before != sample)[0].flatten().nonzero().flatten().tolist()
    return order


def test_halton_scheduler_follows_the_order_on_a_grid_and_in_a_line() -> None:
    scheduler = HaltonScheduler(mask_token_id=9, rounding="even")
    order = revealed_first(scheduler, torch.zeros(1, 12, 9), torch.full((1, 3, 4), 9))
    assert order == [4 * row + column for row, column in halton_order(3, 4)]
    assert revealed_first(scheduler, torch.zeros(1, 8, 9), torch.full((1, 8), 9)) == [0, 4, 2, 6, 1, 5, 3, 7]


def test_a_randomized_halton_order_is_one_rotation_per_run() -> None:
    scheduler = HaltonScheduler(mask_token_id=9, rounding="even", randomize=True)
    plain = [4 * row + column for row, column in halton_order(3, 4)]
    starts = set()
    for seed in range(30):
        scheduler.set_timesteps(12)
        generator, sample, order = torch.Generator().manual_seed(seed), torch.full((1, 3, 4), 9), []
        for t in scheduler.timesteps:
            before = sample
            sample = scheduler.step(torch.zeros(1, 12, 9), t, sample, generator=generator).prev_sample
            order += (before != sample).flatten().nonzero().flatten().tolist()
        start = plain.index(order[0])
        assert order == plain[start:] + plain[:start]
        starts.add(start)
    assert len(starts) > 6


@pytest.mark.parametrize("measure", ["confidence", "margin", "entropy"])
def test_confidence_scheduler_shows_the_surest_first(measure: str) -> None:
    probs = torch.tensor([[0.5, 0.5, 0.0], [0.6, 0.2, 0.2], [0.9, 0.1, 0.0], [0.45, 0.30, 0.25]])
    expected = {"confidence": [2, 1, 0, 3], "margin": [2, 1, 3, 0], "entropy": [2, 0, 1, 3]}[measure]
    scheduler = ConfidenceScheduler(mask_token_id=9, rounding="even", measure=measure)
    assert revealed_first(scheduler, probs.log()[None], torch.full((1, 4), 9)) == expected


@pytest.mark.parametrize(("ratio", "explored"), [(0.0, 0), (0.25, 1), (0.5, 3), (0.7, 4), (1.0, 5), ((1.0, 0.0), 5)])
def test_hybrid_explores_a_share_of_a_step(ratio: object, explored: int) -> None:
    """Of 5 positions, floor(5 ratio + 1/2) by the bit-reversed order, then the surest of the others."""
    certainty = torch.arange(8.0)  # position 7 is the surest
    logits = torch.stack([certainty, torch.zeros(8)], -1)[None]
    scheduler = HybridScheduler(
        mask_token_id=9, exploitation="confidence", exploration_ratio=ratio, masking_schedule=[5, 8]
    )
    scheduler.set_timesteps(2)
    first = [0, 4, 2, 6, 1, 5, 3, 7][:explored]
    expected = first + [i for i in range(7, -1, -1) if i not in first][: 5 - explored]
    choice = scheduler.choose(logits, 1.0, torch.full((1, 8), 9))
    assert choice.positions.tolist() == [expected]
    if ratio == (1.0, 0.0):  # annealed: nothing explores in the last step
        sample = torch.full((1, 8), 9)
        assert scheduler.choose(logits, 0.5, sample).positions.tolist() == [list(range(7, -1, -1))]


def test_plain_exploration_draws_explored_positions_at_the_model_s_temperature() -> None:
    config = {"mask_token_id": 9, "masking_schedule": [4, 8], "choice_temperature": (1.0, 1.0)}
    for plain, expected in ((True, [1.0, 1.0, 2.0, 2.0]), (False, [2.0] * 4)):
        scheduler = HybridScheduler(**config, plain_exploration=plain)
        scheduler.set_timesteps(2)
        sample = torch.full((1, 8), 9)
        assert scheduler.choose(torch.zeros(1, 8, 9), 1.0, sample).beta.tolist() == [expected]
        assert scheduler.choose(torch.zeros(1, 8, 9), 0.5, sample).beta.tolist() == [[1.0] * 8]  # the emptying step


def test_which_position_comes_first_says_nothing_about_its_token(name: str) -> None:
    """Flat logits: among the half revealed first, and among the rest, all tokens are equally frequent."""
    length = 12_000
    scheduler_type, config = CONFIGURATIONS[name]
    config = config | {"masking_schedule": [length // 2, length]}
    scheduler = scheduler_type(mask_token_id=100, codebook_size=CODES, **config)
    scheduler.set_timesteps(2)
    logits, sample = torch.zeros(1, length, COLUMNS), torch.full((1, length), 100)
    generator = torch.Generator().manual_seed(0)
    for t in scheduler.timesteps:
        before, sample = sample, scheduler.step(logits, t, sample, generator=generator).prev_sample
        frequencies = torch.bincount(sample[before != sample], minlength=CODES)
        expected = frequencies.sum() / CODES
        assert (frequencies - expected).abs().max() < 5 * expected**0.5
    assert scheduler.planned_counts(torch.tensor([length])) is None or expected == length / 2 / CODES


# --- logits from which nothing can be drawn ---------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("step", [0, 2])
def test_broken_logits_raise_at_once_with_the_step(name: str, bad: float, step: int) -> None:
    case = Case(torch.full((2, 12), 100), torch.randn(3, 2, 12, COLUMNS), [0, 1], 100)
    case.logits[step, 1, :, :CODES] = bad  # one row, every position
    message = rf"must allow a token.*NaN or \+inf, got such logits in step {step} \(counted from 0\)"
    with pytest.raises(ValueError, match=message):
        run(name, case)
    if bad != -torch.inf:
        case.logits[step] = 0
        case.logits[step, 1, :, 3] = bad  # one column
        with pytest.raises(ValueError, match=message):
            run(name, case)


@given(position=st.integers(0, 11), bad=st.sampled_from([torch.nan, torch.inf]))
@settings(max_examples=12)
def test_one_broken_position_never_goes_unnoticed(name: str, position: int, bad: float) -> None:
    case = Case(torch.full((2, 12), 100), torch.zeros(4, 2, 12, COLUMNS), [0, 1], 100)
    case.logits[:, 0, position, 1] = bad
    with pytest.raises(ValueError, match="must allow a token"):
        run(name, case)
