"""Every sampler of the package is on the page, and a setting that it does not have is neither used nor passed over."""

from __future__ import annotations

from pathlib import Path

import pytest

import hf_maskdiff
from hf_maskdiff.demo.samplers import Choice, samplers
from hf_maskdiff_cli.names import SCHEDULERS

DIGITS = Path(__file__).parents[2] / "pipelines" / "maskgit-mnist"
CONFIG = hf_maskdiff.MomentScheduler.load_config(DIGITS, subfolder="scheduler")


def test_every_scheduler_is_listed() -> None:
    assert {one.scheduler.__name__ for one in samplers().values()} == {*SCHEDULERS} - {"OneStepScheduler"}
    assert all(name == one.name for name, one in samplers().items())


def test_one_that_can_do_without_a_choice_temperature_is_listed_twice() -> None:
    assert not samplers()["Halton"].has_choice_temperature
    assert samplers()["Halton + choice temperature"].has_choice_temperature
    assert {"Moment", "MaskGIT", "Entropy bounded", "First hitting"} <= samplers().keys()


@pytest.mark.parametrize("name", sorted(samplers()))
def test_it_is_made_with_the_settings_that_it_has(name: str) -> None:
    sampler = samplers()[name]
    scheduler = sampler.make(CONFIG, 2.5)
    assert type(scheduler) is sampler.scheduler
    assert scheduler.choice_temperature == (2.5 if sampler.has_choice_temperature else None)
    assert scheduler.config.mask_token_id == CONFIG["mask_token_id"]


@pytest.mark.parametrize("name", sorted(samplers()))
def test_what_it_does_not_have_is_said(name: str) -> None:
    sampler = samplers()[name]
    said = " ".join(sampler.remarks())
    assert ("has no choice temperature" in said) is not sampler.has_choice_temperature
    assert ("R is 1" in said) is not sampler.has_substeps
    assert ("sets its own number of steps" in said) is not sampler.has_steps


def test_what_the_class_says_is_so() -> None:
    assert {name for name, one in samplers().items() if not one.has_substeps} >= {"MaskGIT"}
    assert samplers()["Moment"].has_substeps
    assert samplers()["First hitting"].has_steps is False
    assert samplers()["Moment"].has_steps


def test_a_setting_without_effect_is_not_in_the_line_above_the_result() -> None:
    assert Choice("Moment", 6.0, 2).described(8) == "Moment, 8 steps, choice temperature 6, R = 2"
    assert Choice("MaskGIT", 4.5, 2).described(8) == "MaskGIT, 8 steps, choice temperature 4.5"
    assert Choice("Halton", 6.0, 1).described(8) == "Halton, 8 steps"
    assert Choice("First hitting", 6.0, 1).described(8) == "First hitting"
    assert Choice("MaskGIT", 4.5, 2).substeps == 1


def test_a_sampler_that_there_is_not() -> None:
    with pytest.raises(ValueError, match=r"`sampler` must be one of .*Moment.*, got 'Moent'\. Pick one from the list"):
        _ = Choice("Moent", 6.0, 1).of
