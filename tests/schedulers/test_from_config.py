"""Swapping `pipe.scheduler`: any scheduler from the configuration of any other, and from that of aMUSEd."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from itertools import permutations
from pathlib import Path

import pytest
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
}


def public(scheduler: MaskedDiffusionScheduler) -> dict[str, object]:
    return {key: value for key, value in scheduler.config.items() if not key.startswith("_")}


def own(cls: type[MaskedDiffusionScheduler]) -> dict[str, object]:
    """Every argument of a scheduler, given explicitly; those named above not at their defaults."""
    arguments = public(cls(mask_token_id=0))
    return arguments | SHARED | {key: value for key, value in OWN.items() if key in arguments}


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
