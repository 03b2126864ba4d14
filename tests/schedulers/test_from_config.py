"""Swapping `pipe.scheduler`: any scheduler from the configuration of any other, and from that of aMUSEd."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from itertools import permutations
from pathlib import Path

import pytest
import torch
from concrete import SCHEDULERS
from diffusers import AmusedScheduler

from hf_maskdiff import (
    ConfidenceScheduler,
    EntropyBoundedScheduler,
    HaltonScheduler,
    HybridScheduler,
    MaskedDiffusionScheduler,
    MaskGITScheduler,
    MomentScheduler,
    UniformScheduler,
)

SHARED = {
    "mask_token_id": 12,
    "codebook_size": 11,
    "masking_schedule": "arccos",
    "rounding": "floor_revealed",
    "temperature": 0.9,
    "top_k": 7,
    "top_p": 0.8,
}
# What only some of them have.
OWN = {
    "choice_temperature": [4.0, 1.0],
    "choice_temperature_schedule": "constant",
    "randomize": True,
    "measure": "margin",
    "exploration": "uniform",
    "exploitation": "entropy",
    "exploration_ratio": [1.0, 0.25],
    "plain_exploration": True,
    "entropy_bound": 2.5,
    "follow_schedule": True,
    "typical_p": 0.7,
    "typical_min_tokens": 2,
    "sample_cutoff": 0.5,
    "min_distance": 3,
    "num_candidates": 4,
    "candidate_cost": 0.5,
    "unsure_token_ids": [2, 3, 4],
    "position_decay": 1.0,
    "threshold": 0.2,
    "editing_threshold": 0.15,
}


def public(scheduler: MaskedDiffusionScheduler) -> dict[str, object]:
    return {key: value for key, value in scheduler.config.items() if not key.startswith("_")}


def own(cls: type[MaskedDiffusionScheduler]) -> dict[str, object]:
    """Every argument of a scheduler, given explicitly; those named above not at their defaults."""
    arguments = public(cls(mask_token_id=0))
    arguments |= SHARED | {key: value for key, value in OWN.items() if key in arguments}
    return arguments | ({"min_distance": 1} if cls is HybridScheduler else {})  # it has `plain_exploration`


@pytest.fixture
def warnings_of_diffusers() -> Iterator[list[str]]:
    messages: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("diffusers")
    logger.addHandler(handler)
    yield messages
    logger.removeHandler(handler)


def test_warnings_are_seen(warnings_of_diffusers: list[str]) -> None:
    MomentScheduler.from_config({"mask_token_id": 3, "no_such_argument": 1})
    assert len(warnings_of_diffusers) == 1


@pytest.mark.parametrize(("first", "second"), permutations(SCHEDULERS, 2))
def test_any_from_any_and_back(
    first: type[MaskedDiffusionScheduler],
    second: type[MaskedDiffusionScheduler],
    warnings_of_diffusers: list[str],
) -> None:
    original = first(**own(first))
    assert public(original) == own(first)
    swapped = second.from_config(original.config)
    common = own(first).keys() & own(second).keys()
    assert {key: swapped.config[key] for key in common} == {key: own(first)[key] for key in common}
    # What the second scheduler has no use for is kept for the way back.
    back = first.from_config(swapped.config)
    assert {key: back.config[key] for key in own(first)} == own(first)
    assert type(back) is first
    # The same through a file.
    loaded = second.from_config(json.loads(original.to_json_string()))
    assert public(loaded) == public(swapped)
    assert warnings_of_diffusers == []


@pytest.mark.parametrize(("first", "second"), permutations(SCHEDULERS, 2))
def test_defaults_are_each_scheduler_s_own(
    first: type[MaskedDiffusionScheduler], second: type[MaskedDiffusionScheduler]
) -> None:
    swapped = second.from_config(first(mask_token_id=5).config)
    fresh = public(second(mask_token_id=5))
    assert {key: swapped.config[key] for key in fresh} == fresh


def run(scheduler: MaskedDiffusionScheduler) -> list[torch.Tensor]:
    """The tokens after each step of a short run, on logits that change from step to step."""
    noise, generator = torch.Generator().manual_seed(0), torch.Generator().manual_seed(1)
    sample, memory = torch.full((2, 9), scheduler.config.mask_token_id), scheduler.new_memory()
    samples = []
    given = torch.zeros_like(sample, dtype=torch.bool)
    scheduler.set_timesteps(3)
    for t in scheduler.timesteps:
        logits = torch.randn(2, 9, 11, generator=noise) * 3
        sample = scheduler.step(logits, t, sample, generator=generator, memory=memory, given=given).prev_sample
        samples.append(sample)
    return samples


@pytest.mark.parametrize("first", SCHEDULERS)
def test_what_is_kept_for_the_way_back_has_no_effect(first: type[MaskedDiffusionScheduler]) -> None:
    for second in SCHEDULERS:
        swapped = second.from_config(first(**own(first)).config)
        known = public(second(mask_token_id=0)).keys()
        plain = second(**{name: swapped.config[name] for name in known})
        for kept, written in zip(run(swapped), run(plain), strict=True):
            assert torch.equal(kept, written), second


def test_what_is_given_by_position_is_handed_on(scheduler_class: type[MaskedDiffusionScheduler]) -> None:
    for second in SCHEDULERS:
        made = second.from_config(scheduler_class(12, 11, "square").config)
        assert (made.config.mask_token_id, made.config.codebook_size, made.config.masking_schedule) == (
            12,
            11,
            "square",
        )


def test_what_a_subclass_hands_on_has_its_effect() -> None:
    class Apart(MomentScheduler):
        def __init__(self, mask_token_id: int) -> None:
            super().__init__(mask_token_id, masking_schedule="linear", choice_temperature=2.0, min_distance=5)

    apart = Apart(12)
    assert apart.choice_temperature == 2.0
    apart.set_timesteps(6)
    sample = torch.full((8, 12), 12)
    revealed = apart.step(torch.zeros(8, 12, 11), 1.0, sample, generator=torch.Generator().manual_seed(0)).prev_sample
    places = (revealed != 12).nonzero()[:, 1].view(8, 2)
    assert (places.diff() >= 5).all()


def test_from_the_configuration_of_amused(
    scheduler_class: type[MaskedDiffusionScheduler], warnings_of_diffusers: list[str]
) -> None:
    stock = AmusedScheduler(mask_token_id=8255, masking_schedule="linear")
    scheduler = scheduler_class.from_config(stock.config)
    assert public(scheduler) == public(scheduler_class(mask_token_id=8255, masking_schedule="linear"))
    assert warnings_of_diffusers == []


def test_compatibles(scheduler_class: type[MaskedDiffusionScheduler]) -> None:
    compatibles = scheduler_class(mask_token_id=5).compatibles
    assert {*SCHEDULERS, AmusedScheduler} <= set(compatibles)
    assert len(compatibles) == len(set(compatibles))
    assert not any(getattr(c, "__abstractmethods__", None) for c in compatibles)


def test_a_scheduler_of_two_parents_is_compatible_once() -> None:
    class OfTwoParents(MomentScheduler, UniformScheduler):
        pass

    assert MaskGITScheduler(mask_token_id=5).compatibles.count(OfTwoParents) == 1


def test_a_file_holds_the_whole_preset(tmp_path: Path) -> None:
    """Written by hand, as a card would show it."""
    preset = {"_class_name": "HybridScheduler", "mask_token_id": 9, "exploration_ratio": [1.0, 0.0]}
    (tmp_path / "scheduler_config.json").write_text(json.dumps(preset))
    loaded = HybridScheduler.from_pretrained(tmp_path)
    built = HybridScheduler(mask_token_id=9, exploration_ratio=(1.0, 0.0))
    assert loaded.to_json_string() == built.to_json_string()


def test_every_scheduler_of_the_package_is_here() -> None:
    exported = {
        ConfidenceScheduler,
        EntropyBoundedScheduler,
        HaltonScheduler,
        HybridScheduler,
        MaskGITScheduler,
        MomentScheduler,
        UniformScheduler,
    }
    assert exported <= set(SCHEDULERS)
