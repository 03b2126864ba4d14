"""What is decided once for a run: where a randomized order begins."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from hf_maskdiff import HaltonScheduler, HybridScheduler, MaskedDiffusionScheduler, MaskGITPipeline
from hf_maskdiff.orders import spread_ranks
from hf_maskdiff.sampling import Generators

MASK = 16
RANKS = spread_ranks((4, 4), torch.device("cpu"))
ONE_EACH = list(range(1, 17))


def halton(**config: object) -> MaskedDiffusionScheduler:
    return HaltonScheduler(mask_token_id=MASK, codebook_size=16, randomize=True, **config)


def hybrid(**config: object) -> MaskedDiffusionScheduler:
    explores = {"exploration": "randomized_halton", "exploration_ratio": 1.0}
    return HybridScheduler(mask_token_id=MASK, codebook_size=16, **explores, **config)


both = pytest.mark.parametrize("make", [halton, hybrid])


def orders(scheduler: MaskedDiffusionScheduler, generator: Generators, rows: int = 1) -> list[list[int]]:
    """The ranks of each row's positions in the order in which a run of a position a step reveals them."""
    sample, found = torch.full((rows, 4, 4), MASK), [[] for _ in range(rows)]
    for t in scheduler.timesteps:
        before = sample
        sample = scheduler.step(torch.zeros(rows, 16, 16), t, sample, generator=generator).prev_sample
        for row, position in (before != sample).flatten(1).nonzero().tolist():
            found[row].append(int(RANKS[position]))
    return found


def places(scheduler: MaskedDiffusionScheduler, generator: Generators, rows: int = 1) -> list[int]:
    """Where each row's order begins; a run goes round once from there."""
    found = orders(scheduler, generator, rows)
    for order in found:
        assert order == [(order[0] + n) % 16 for n in range(16)]
    return [order[0] for order in found]


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@both
@pytest.mark.parametrize("whose", ["one", "none", "one per row"])
def test_every_place_is_equally_likely_over_many_runs(
    make: Callable[..., MaskedDiffusionScheduler], whose: str
) -> None:
    """False alarm at 1e-6. A place that follows from the seed is among as many as there are rows: p below 1e-100."""
    torch.manual_seed(0)
    generator = {"one": seeded(1)[0], "none": None, "one per row": seeded(2, 3, 4, 5)}[whose]
    scheduler, counts = make(masking_schedule=ONE_EACH), np.zeros(16)
    scheduler.set_timesteps(16)
    for _ in range(160):
        counts += np.bincount(places(scheduler, generator, rows=4), minlength=16)
    assert chisquare(counts).pvalue > 1e-6
    fixed = np.zeros(16)
    fixed[:4] = 160
    assert chisquare(fixed).pvalue < 1e-100


@both
def test_calls_of_a_pipeline_with_one_generator(
    make: Callable[..., MaskedDiffusionScheduler], make_pipeline: Callable[..., MaskGITPipeline]
) -> None:
    pipe = make_pipeline(make(masking_schedule=[1, 16]))
    first: list[int] = []

    def look(pipe: MaskGITPipeline, step: int, t: torch.Tensor, given: dict[str, torch.Tensor]) -> dict:
        if step == 0:
            first.extend(RANKS[(given["latents"] != MASK).flatten(1).int().argmax(-1)].tolist())
        return {}

    call = {"num_inference_steps": 2, "num_images_per_prompt": 4, "output_type": "latent", "callback_on_step_end": look}
    generator = seeded(0)[0]
    for _ in range(40):
        pipe(0, generator=generator, **call)
    assert set(first) == set(range(16))
    first.clear()
    torch.manual_seed(0)
    for _ in range(40):
        pipe(0, **call)
    assert set(first) == set(range(16))


@both
def test_a_row_alone_and_in_a_batch(make: Callable[..., MaskedDiffusionScheduler]) -> None:
    """Also with generators that have been used, and given in another order; and with the same one for several rows."""
    scheduler = make(masking_schedule=ONE_EACH)
    scheduler.set_timesteps(16)
    together = [places(scheduler, generators := seeded(*range(8)), 8), places(scheduler, generators, 8)]
    for row in range(8):
        alone = seeded(row)
        assert [places(scheduler, alone), places(scheduler, alone)] == [[run[row]] for run in together]
    backwards = seeded(*range(7, -1, -1))
    assert [places(scheduler, backwards, 8)[::-1], places(scheduler, backwards, 8)[::-1]] == together
    assert together[0] != together[1]
    (shared,) = seeded(3)
    places(scheduler, [shared, shared], 2)


@both
def test_the_same_seed_gives_the_same_place_whatever_ran_before(make: Callable[..., MaskedDiffusionScheduler]) -> None:
    scheduler, (generator,) = make(masking_schedule=ONE_EACH), seeded(5)
    scheduler.set_timesteps(16)
    expected = orders(scheduler, generator, 3)
    assert orders(scheduler, generator, 3) != expected
    assert orders(scheduler, generator.manual_seed(5), 3) == expected
    scheduler.set_timesteps(16)
    assert orders(scheduler, generator.manual_seed(5), 3) == expected
    for same in (copy.deepcopy(scheduler), pickle.loads(pickle.dumps(scheduler))):
        assert orders(same, seeded(5)[0], 3) == expected


def test_two_runs_at_once_and_runs_that_begin_late() -> None:
    """Loops over one scheduler, each with its generator; and with one generator, from step 10 each time."""
    scheduler = halton(masking_schedule=ONE_EACH)
    scheduler.set_timesteps(16)
    apart = [orders(scheduler, generator) for generator in seeded(0, 1)]
    samples, found = [torch.full((1, 4, 4), MASK)] * 2, [[], []]
    generators = seeded(0, 1)
    for t in scheduler.timesteps:
        for i, generator in enumerate(generators):
            after = scheduler.step(torch.zeros(1, 16, 16), t, samples[i], generator=generator).prev_sample
            found[i].append(int(RANKS[(after != samples[i]).flatten()]))
            samples[i] = after
    assert [[order] for order in found] == apart

    first, start = set(), torch.where(torch.isin(RANKS, torch.tensor([0, 3, 6, 9, 12, 15])), MASK, 0).view(1, 4, 4)
    for _ in range(40):
        sample = start
        for t in scheduler.timesteps[10:]:
            before = sample
            sample = scheduler.step(torch.zeros(1, 16, 16), t, sample, generator=generators[0]).prev_sample
            if before is start:
                first.add(int(RANKS[(before != sample).flatten()]))
    assert first == {0, 3, 6, 9, 12, 15}
