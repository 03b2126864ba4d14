"""Editing in this package's loop: as diffusers' pipeline does it, row by row, and for so many passes and no more."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import BlockRefinementScheduler, LLaDA2Pipeline
from test_llada2_client import LENGTH, MASK, Table, call, run
from torch import Tensor

from hf_maskdiff import EditingScheduler, ThresholdScheduler
from hf_maskdiff.pipelines.denoising import denoise


class Counted(Table):
    calls = 0

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return super().forward(*args, **kwargs)


def fill(scheduler: Any, sample: Tensor, steps: int, **more: Any) -> tuple[Tensor, list[int]]:
    """Blocks of four behind a prompt of four, filled in by the loop; and how many passes each row had."""
    table, passes = Table(), [0] * len(sample)

    def denoiser(tokens: Tensor, t: Tensor, rows: Any) -> Tensor:
        for row in range(len(sample))[rows] if isinstance(rows, slice) else rows.tolist():
            passes[row] += 1
        places = torch.arange(tokens.shape[1]).expand_as(tokens)
        return table(tokens, None, places).logits

    scheduler.set_timesteps(steps)
    bar = nullcontext(SimpleNamespace(update=lambda: None))
    hooks: dict[str, Any] = {"progress_bar": lambda total: bar, "on_step_end": lambda i, t, sample: sample}
    return denoise(denoiser, scheduler, sample, torch.Generator().manual_seed(0), **hooks, **more), passes


def blocks(*lasts: int) -> Tensor:
    prompts = torch.tensor([[2, 3, 4, last] for last in lasts])
    return torch.cat([prompts, torch.full((len(lasts), LENGTH), MASK)], 1)


@pytest.mark.parametrize("steps", [1, 2, 4, 7])
@pytest.mark.parametrize("most", [0, 1, 16])
@pytest.mark.parametrize("thresholds", [(0.2, 0.1), (0.3, 0.3), (0.9, 0.2)])
def test_it_is_theirs(thresholds: tuple[float, float], most: int, steps: int) -> None:
    """To the token and the pass: their scheduler in their pipeline, ours there, and ours in this package's loop.

    Their pipeline takes no more steps than a block has positions.
    """
    threshold, editing = thresholds
    settings = {"threshold": threshold, "editing_threshold": editing, "max_post_steps": most}
    same = call(num_inference_steps=steps, gen_length=LENGTH, input_ids=blocks(1)[:, :LENGTH], **settings)
    results = []
    for scheduler in (BlockRefinementScheduler(), EditingScheduler(MASK, **settings)):
        table = Counted()
        results.append((run(LLaDA2Pipeline(table, scheduler), **same, eos_early_stop=False).tolist(), table.calls))
    assert results[0] == results[1]
    ids, passes = fill(EditingScheduler(MASK, **settings), blocks(1), min(steps, LENGTH))
    assert ([ids[0, LENGTH:].tolist()], passes[0]) == results[0]


def test_edits_change_something() -> None:
    settings = {"threshold": 0.2, "rounding": "even"}
    greedy = ThresholdScheduler(MASK, follow_schedule=True, token_temperature=0, **settings)
    plain, _ = fill(greedy, blocks(*range(8)), 4)
    made, passes = fill(EditingScheduler(MASK, editing_threshold=0.1, **settings), blocks(*range(8)), 4)
    assert not torch.equal(plain, made)
    assert torch.equal(made[:, :LENGTH], blocks(*range(8))[:, :LENGTH])
    assert len(set(passes)) > 1
    never, _ = fill(EditingScheduler(MASK, editing_threshold=1.0, **settings), blocks(*range(8)), 4)
    assert torch.equal(never, plain)


@pytest.mark.parametrize("edits", ["overwrite", "mask"])
def test_a_row_is_the_same_alone_and_in_a_batch(edits: str) -> None:
    config = {"threshold": 0.2, "editing_threshold": 0.1, "edits": edits}
    together, passes = fill(EditingScheduler(MASK, **config), blocks(*range(6)), 5)
    for row in range(6):
        alone, own = fill(EditingScheduler(MASK, **config), blocks(row), 5)
        assert torch.equal(alone[0], together[row])
        assert own[0] == passes[row]


class Undecided:
    """Wants another token wherever one stands, in every pass."""

    def __call__(self, tokens: Tensor, t: Tensor, rows: Any) -> Tensor:
        wanted = torch.where(tokens == MASK, 0, (tokens + 1) % 5)
        return 20.0 * torch.nn.functional.one_hot(wanted, MASK + 1).float()


@pytest.mark.parametrize("most", [0, 2, 5])
def test_no_more_passes_than_allowed(most: int) -> None:
    """A block that is full in the first step and never comes to rest."""
    calls = []

    def denoiser(*given: Any) -> Tensor:
        calls.append(1)
        return Undecided()(*given)

    scheduler = EditingScheduler(MASK, max_post_steps=most)
    scheduler.set_timesteps(3)
    bar = nullcontext(SimpleNamespace(update=lambda: None))
    hooks: dict[str, Any] = {"progress_bar": lambda total: bar, "on_step_end": lambda i, t, sample: sample}
    made = denoise(denoiser, scheduler, blocks(1), torch.Generator().manual_seed(0), **hooks)
    assert len(calls) == 1 + most + 1
    assert made[0, LENGTH:].tolist() == [(most + 1) % 5] * LENGTH
    assert made[0, :LENGTH].tolist() == blocks(1)[0, :LENGTH].tolist()


def test_to_mask_ends_without_masks() -> None:
    """It masks what it would replace, fills it in again, and ends with the run."""
    scheduler = EditingScheduler(MASK, edits="mask")
    scheduler.set_timesteps(6)
    seen: list[Tensor] = []

    def keep(i: int, t: Tensor, sample: Tensor) -> Tensor:
        seen.append(sample)
        return sample

    bar = nullcontext(SimpleNamespace(update=lambda: None))
    hooks: dict[str, Any] = {"progress_bar": lambda total: bar, "on_step_end": keep}
    made = denoise(Undecided(), scheduler, blocks(1), torch.Generator().manual_seed(0), **hooks)
    masks = [int((sample == MASK).sum()) for sample in seen]
    assert masks == [0, 4, 0, 4, 0, 0]  # the last step takes nothing back
    assert not (made == MASK).any()


def test_settings() -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"threshold": -0.1}, r"`threshold` must be a number of at least 0, got -0\.1"),
        ({"editing_threshold": 0}, r"`editing_threshold` must be in \(0, 1\], got 0"),
        ({"edits": "both"}, "`edits` must be one of"),
        ({"max_post_steps": -1}, "`max_post_steps` must be an integer of at least 0, got -1"),
    ]
    for config, message in wrong:
        with pytest.raises(ValueError, match=message):
            EditingScheduler(MASK, **config)
    scheduler = EditingScheduler(mask_token_id=MASK)
    assert scheduler.with_sampling_temperature(0.5).config.temperature == 0.5
    assert scheduler.with_sampling_temperature(0.5).config.drawn
    assert not scheduler.with_sampling_temperature(0).config.drawn
    with pytest.raises(
        ValueError, match=r"`editing_threshold` must be None or the scheduler's own 0\.5, got 0\.9\. Pass"
    ):
        run(LLaDA2Pipeline(Table(), scheduler), **call(editing_threshold=0.9))
