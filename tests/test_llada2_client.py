"""diffusers' own `LLaDA2Pipeline` with our schedulers: recorded runs to the token, and what it asks beside a step."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import BlockRefinementScheduler, LLaDA2Pipeline
from golden_data import later_cases, read
from torch import Tensor, nn
from transformers import Qwen3ForCausalLM

from hf_maskdiff import (
    ConfidenceScheduler,
    EditingScheduler,
    MaskedDiffusionScheduler,
    MaskGITScheduler,
    MomentScheduler,
    ThresholdScheduler,
)
from hf_maskdiff.sampling import Marginals

LENGTH, MASK, END = 4, 9, 7


class Model(nn.Module):
    """What the pipeline asks of any model."""

    device, dtype = torch.device("cpu"), torch.float32


class BlockCausal(Model):
    """A decoder that sees its own block and those before it, and no padding, as the recorded runs' model does."""

    def __init__(self, model: Qwen3ForCausalLM, block_length: int) -> None:
        super().__init__()
        self.model, self.block_length, self.calls = model, block_length, 0

    def forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor) -> Any:
        self.calls += 1
        places = torch.arange(input_ids.shape[1])
        block = places // self.block_length
        seen = (block <= block[:, None]) & attention_mask[:, None].bool() | (places == places[:, None])
        return self.model(input_ids, attention_mask=seen[:, None], position_ids=position_ids, use_cache=False)


def run(pipe: LLaDA2Pipeline, **call: Any) -> Tensor:
    pipe.set_progress_bar_config(disable=True)
    return pipe(output_type="seq", return_dict=False, **call)[0]


class Race:
    """Tokens of one row as the recorded exponentials of the model's latest call draw them."""

    def __init__(self, model: BlockCausal, noise: Tensor) -> None:
        self.model, self.noise = model, noise

    def draw(self, marginals: Marginals, rows: Tensor, *given: object) -> tuple[Tensor, Tensor]:
        (probs,) = marginals.reduce(lambda logits: (logits.softmax(-1),), rows)
        tokens = (probs / self.noise[self.model.calls - 1, rows, : probs.shape[1]]).argmax(-1)
        return tokens, probs.gather(1, tokens[:, None])[:, 0].log()

    def draw_all(self, marginals: Marginals, wanted: Tensor, *given: object) -> tuple[Tensor, Tensor]:
        tokens, scores = torch.zeros(wanted.shape, dtype=torch.int64), torch.zeros(wanted.shape)
        tokens[wanted], scores[wanted] = self.draw(marginals, wanted.flatten().nonzero()[:, 0])
        return tokens, scores


@pytest.mark.parametrize("path", later_cases("llada2/trace_*"))
def test_recorded_runs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace, settings = read(path)
    length, mask = int(settings["block_length"]), int(settings["mask_token_id"])
    model = BlockCausal(Qwen3ForCausalLM.from_pretrained(path.parent, trust_remote_code=False).eval(), length)
    threshold, temperature = float(settings["threshold"]), float(settings["temperature"])
    measure: dict[str, Any] = {"token_temperature": 0}
    if temperature:
        measure = {"measure": "drawn", "temperature": temperature}
        race = Race(model, trace["draw_exp"])
        monkeypatch.setattr(Marginals, "draw_all", lambda *given: race.draw_all(*given))
        monkeypatch.setattr(Marginals, "draw", lambda *given: race.draw(*given)[0])
    filters: dict[str, Any] = {"top_k": int, "top_p": float}
    filters = {name: kind(settings[name]) for name, kind in filters.items() if name in settings}
    editing = None if settings["editing_threshold"] == "null" else float(settings["editing_threshold"])
    scheduler: MaskedDiffusionScheduler
    if editing is None:
        measure |= {"rounding": "even", "follow_schedule": True}
        scheduler = ThresholdScheduler(mask, threshold=threshold, **filters, **measure)
    else:
        drawn = {"drawn": True, "temperature": temperature} if temperature else {}
        scheduler = EditingScheduler(mask, threshold=threshold, editing_threshold=editing, **filters, **drawn)
    made = run(
        LLaDA2Pipeline(model, scheduler),
        input_ids=trace["prompt"],
        attention_mask=trace["attention_mask"],
        gen_length=int(settings["gen_length"]),
        block_length=length,
        num_inference_steps=int(settings["num_inference_steps"]),
        threshold=threshold,
        temperature=temperature,
        editing_threshold=editing,
        max_post_steps=int(settings.get("max_post_steps", 16)),
        **filters,
        minimal_topk=int(settings.get("minimal_topk", 1)),
        eos_early_stop=settings["eos_early_stop"] == "true",
        eos_token_id=int(settings["eos_token_id"]),
        mask_token_id=mask,
    )
    for row, ids in enumerate(made):
        assert ids.tolist() == trace[f"final_{row}"].tolist()
    assert model.calls == int(settings["n_calls"])


class Table(Model):
    """Logits that depend on the position and on the token to the left; the mask is never probable."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.logits = nn.Parameter(2 * torch.randn(MASK + 1, MASK + 1, generator=generator))
        self.places = nn.Parameter(2 * torch.randn(32, MASK + 1, generator=generator))

    @torch.no_grad()
    def forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor) -> Any:
        logits = self.logits[input_ids.roll(1, 1)] + self.places[position_ids]
        logits[..., MASK] = -30  # diffusers' scheduler would write it
        return type("Output", (), {"logits": logits})


def call(**changed: Any) -> dict[str, Any]:
    given = {"input_ids": torch.tensor([[1, 2, 3]] * 2), "gen_length": 9, "block_length": LENGTH}
    given |= {"num_inference_steps": 4, "editing_threshold": None, "mask_token_id": MASK}
    return given | changed


def test_any_scheduler_runs_there(scheduler_class: type[MaskedDiffusionScheduler]) -> None:
    scheduler = scheduler_class(mask_token_id=MASK)
    made = run(LLaDA2Pipeline(Table(), scheduler), **call(eos_early_stop=False))
    assert made.shape == (2, 9)
    assert not (made == MASK).any()


@pytest.mark.parametrize("steps", [1, 3, 4, 7])
@pytest.mark.parametrize("threshold", [0.3, 0.6, 2.0])
def test_the_preset_is_their_scheduler(threshold: float, steps: int) -> None:
    """Also with a prompt that ends inside a block, ends of text, and more steps than positions."""
    ours = ThresholdScheduler(MASK, rounding="even", threshold=threshold, follow_schedule=True, token_temperature=0)
    same = call(threshold=threshold, num_inference_steps=steps, eos_token_id=END)
    theirs = run(LLaDA2Pipeline(Table(), BlockRefinementScheduler()), **same)
    assert torch.equal(run(LLaDA2Pipeline(Table(), ours), **same), theirs)


@pytest.mark.parametrize("length", [None, LENGTH, 6])
def test_a_call_may_leave_out_the_length_of_a_block(length: int | None) -> None:
    """Then it is the scheduler's, and of a scheduler that is told none it is theirs."""
    given: dict[str, Any] = {} if length is None else {"block_length": length}
    preset = {"rounding": "even", "threshold": 0.6, "follow_schedule": True, "token_temperature": 0}
    ours, theirs = ThresholdScheduler(MASK, **preset, **given), BlockRefinementScheduler(**given)
    same = call(threshold=0.6, num_inference_steps=9)
    told = run(LLaDA2Pipeline(Table(), theirs), **same | {"block_length": length or 32})
    same.pop("block_length")
    assert torch.equal(run(LLaDA2Pipeline(Table(), ours), **same), told)
    assert torch.equal(run(LLaDA2Pipeline(Table(), theirs), **same), told)
    # The blocks can be told by what they make.
    other = run(LLaDA2Pipeline(Table(), ours), **same | {"block_length": 2})
    assert not torch.equal(other, told)


def test_no_other_scheduler_has_a_length_of_blocks(scheduler_class: type[MaskedDiffusionScheduler]) -> None:
    settings = scheduler_class(mask_token_id=MASK).config
    assert ("block_length" in settings) is (scheduler_class is ThresholdScheduler)


def test_settings_are_those_of_the_scheduler() -> None:
    pipe = LLaDA2Pipeline(Table(), ThresholdScheduler(MASK, threshold=0.4, top_k=3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for fine in ({}, {"threshold": 0.4}, {"top_k": 3}, {"temperature": 1.0}):
            run(pipe, **call(**fine))
    for wrong in ({"threshold": 0.5}, {"top_k": 4}, {"top_p": 0.9}, {"temperature": 0.3}):
        (name,) = wrong
        with pytest.raises(ValueError, match=f"`{name}` must be the pipeline's default or the scheduler's own .*Leave"):
            run(pipe, **call(**wrong))
    with pytest.raises(ValueError, match=r"`mask_token_id` must be the scheduler's 9, got 8\. `scheduler\.from_config"):
        run(pipe, **call(mask_token_id=8))
    with pytest.warns(UserWarning, match=r"ThresholdScheduler does not edit .* `editing_threshold=0\.5` has no effect"):
        run(pipe, **call(editing_threshold=0.5))
    scheduler = MomentScheduler(MASK)
    scheduler.set_timesteps(2)
    with pytest.raises(TypeError, match=r"MomentScheduler\.step\(\) got an unexpected keyword argument 'temprature'"):
        scheduler.step(torch.zeros(1, 4, 10), 0, torch.full((1, 4), MASK), temprature=1.0)


def test_what_a_step_returns_there() -> None:
    logits, sample = torch.randn(2, LENGTH, MASK + 1), torch.full((2, LENGTH), MASK)
    for scheduler in (ConfidenceScheduler(MASK), MaskGITScheduler(MASK)):
        scheduler.set_timesteps(2, device="cpu", block_length=LENGTH)
        found = scheduler.step(logits, 0, sample, mask_token_id=MASK, temperature=0.0)
        assert torch.equal(found.transfer_index, found.prev_sample != MASK)
        assert not found.editing_transfer_index.any()
        written = found.transfer_index
        assert torch.equal(found.sampled_tokens[written], found.prev_sample[written])
        assert found.pred_logits is logits
        plain = scheduler.step(logits, 0, sample, mask_token_id=MASK, return_dict=False)
        assert len(plain) == 6
        # The number of the step is not a time: 0 is the first step, 1 the second and last.
        assert (found.prev_sample == MASK).any()
        assert not (scheduler.step(logits, 1, sample, mask_token_id=MASK).prev_sample == MASK).any()


def test_ends_of_texts_are_theirs() -> None:
    generator = torch.Generator().manual_seed(0)
    ours, theirs = MomentScheduler(MASK), BlockRefinementScheduler()
    seen = set()
    for _ in range(300):
        tokens = torch.randint(MASK - 3, MASK + 1, (4, 10), generator=generator)
        tokens[:, :3] = 1  # an end of text within the prompt makes theirs overlook all others
        written = torch.rand(4, 4, generator=generator) < 0.5
        finished = torch.rand(4, generator=generator) < 0.2
        given = (tokens[:, 6:], written, finished, END, MASK, 3)
        expected = theirs.check_eos_finished(tokens, given[0], written, finished.clone(), *given[3:])
        assert torch.equal(ours.check_eos_finished(tokens, *given), expected)
        seen.update(expected[~finished].tolist())
    assert seen == {True, False}


def test_when_a_block_is_done() -> None:
    scheduler = MomentScheduler(MASK)
    scheduler.set_timesteps(4)
    no, edits = torch.tensor([False, False]), torch.zeros(2, 4, dtype=torch.bool)

    def goes_on(step: int, masks: bool | Tensor, finished: Tensor = no) -> bool:
        return scheduler.check_block_should_continue(step, masks, True, edits, 0, 16, finished)

    assert goes_on(1, torch.tensor(True))
    assert goes_on(3, True, torch.tensor([True, False]))
    assert not goes_on(4, True)
    assert not goes_on(1, torch.tensor(False))
    assert not goes_on(1, True, ~no)


def test_a_threshold_that_is_kept_for_another_scheduler_is_none_of_its_own() -> None:
    """A call that asks for it would be told nothing, and get tokens that no threshold has chosen."""
    editing = EditingScheduler(MASK, threshold=0.3, editing_threshold=0.4)
    for name, value in (("threshold", 0.3), ("editing_threshold", 0.4)):
        scheduler = ConfidenceScheduler.from_config(editing.config)
        scheduler.set_timesteps(2)
        logits, sample = torch.zeros(1, LENGTH, MASK + 1), torch.full((1, LENGTH), MASK)
        if name == "threshold":
            with pytest.raises(ValueError, match="`threshold` must be the pipeline's default"):
                scheduler.step(logits, 0, sample, **{name: value})
        else:
            with pytest.warns(UserWarning, match="does not edit tokens"):
                scheduler.step(logits, 0, sample, **{name: value})
