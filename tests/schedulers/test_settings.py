"""What a scheduler may be told beside a configuration, and which class a preset becomes."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AmusedScheduler

from hf_maskdiff import (
    AncestralScheduler,
    ChooseThenSampleScheduler,
    EntropyBoundedScheduler,
    FirstHittingScheduler,
    HaltonScheduler,
    HybridScheduler,
    KLASSScheduler,
    MaskedDiffusionScheduler,
    MaskGITPipeline,
    MaskGITScheduler,
    MomentScheduler,
    OneStepScheduler,
    ThresholdScheduler,
)

PRESETS = Path(__file__).parents[2] / "schedulers"


@pytest.mark.parametrize("route", ["from_config", "from_pretrained"])
def test_a_keyword_that_nobody_knows(
    scheduler_class: type[MaskedDiffusionScheduler], route: str, tmp_path: Path
) -> None:
    scheduler = scheduler_class(mask_token_id=3)
    scheduler.save_pretrained(tmp_path)
    source: Any = scheduler.config if route == "from_config" else tmp_path
    with pytest.raises(ValueError, match=r"got `masking_shedule`\. Did you mean `masking_schedule`\?"):
        getattr(scheduler_class, route)(source, masking_shedule="linear")
    with pytest.raises(ValueError, match=r"settings of .* must be among \[.*'mask_token_id'.*\], got `x`\. Leave it"):
        getattr(scheduler_class, route)(source, x=1)
    assert getattr(scheduler_class, route)(source, mask_token_id=4).config.mask_token_id == 4


def test_the_default_dtype_changes_nothing(scheduler_class: type[MaskedDiffusionScheduler]) -> None:
    found = []
    logits = [torch.randn(2, 9, 7, generator=torch.Generator().manual_seed(n)) for n in range(4)]
    try:
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            torch.set_default_dtype(dtype)
            scheduler = scheduler_class(mask_token_id=7)
            scheduler.set_timesteps(1 if scheduler_class is OneStepScheduler else 4)
            memory, sample = scheduler.new_memory(), torch.full((2, 9), 7)
            none, generator = torch.zeros_like(sample, dtype=torch.bool), torch.Generator().manual_seed(0)
            for n, t in enumerate(scheduler.timesteps):
                taken = scheduler.step(logits[n], t, sample, 1.0, generator, memory=memory, given=none)
                sample = taken.prev_sample
            found.append(sample)
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(sample, found[0]) for sample in found)


def test_the_choice_temperature_misspelt() -> None:
    config = MomentScheduler(mask_token_id=3).config
    with pytest.raises(ValueError, match=r"got `choice_temprature`\. Did you mean `choice_temperature`\?"):
        HybridScheduler.from_config(config, choice_temprature=3)
    with pytest.raises(ValueError, match="got `choice_temperature`"):  # which an ancestral sampler does not have
        AncestralScheduler.from_config({"mask_token_id": 3}, choice_temperature=3)


def test_keywords_may_be_asked_for_and_loaders_pass_theirs(tmp_path: Path) -> None:
    scheduler = MomentScheduler(mask_token_id=3)
    scheduler.save_pretrained(tmp_path)
    made, unused = MomentScheduler.from_config(scheduler.config, return_unused_kwargs=True, mine=1)
    assert unused["mine"] == 1
    assert made.config == scheduler.config
    assert MomentScheduler.from_pretrained(tmp_path, torch_dtype=None, variant="fp16").config.mask_token_id == 3


def test_a_setting_of_the_other_scheduler_is_kept_for_the_way_back() -> None:
    config = MomentScheduler(mask_token_id=3, choice_temperature=2.0).config
    assert MomentScheduler.from_config(AncestralScheduler.from_config(config).config).config.choice_temperature == 2.0
    there = AncestralScheduler.from_config(config, choice_temperature=5.0)
    assert MomentScheduler.from_config(there.config).config.choice_temperature == 5.0
    default = AncestralScheduler.from_config(MomentScheduler(mask_token_id=3).config, choice_temperature=5.0)
    assert MomentScheduler.from_config(default.config).config.choice_temperature == 5.0


@pytest.mark.parametrize(
    "cls", [AncestralScheduler, FirstHittingScheduler, EntropyBoundedScheduler, KLASSScheduler, ThresholdScheduler]
)
@pytest.mark.parametrize("schedule", [{}, {"choice_temperature_schedule": "constant"}])
def test_what_is_kept_for_another_scheduler_does_nothing(
    cls: type[ChooseThenSampleScheduler], schedule: dict[str, Any], make_pipeline: Callable[..., MaskGITPipeline]
) -> None:
    """A sampler without a choice temperature draws from the model's own marginals, wherever its settings come from."""
    config = MomentScheduler(mask_token_id=16, codebook_size=16, choice_temperature=2.0, **schedule).config
    scheduler = cls.from_config(config)
    scheduler.set_timesteps(4)
    choice = scheduler.choose(torch.zeros(1, 16, 16), 1.0, torch.full((1, 16), 16))
    assert (choice.beta == 1).all()
    with pytest.raises(ValueError, match=r"`temperature` must be left out with a .* that has no choice temperature"):
        make_pipeline(scheduler)(0, temperature=3.0)


@pytest.mark.parametrize("base", [MaskedDiffusionScheduler, ChooseThenSampleScheduler])
def test_a_base_opens_what_a_preset_names(base: type[MaskedDiffusionScheduler]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opened = base.from_pretrained(PRESETS / "image-halton", mask_token_id=9)
        expected = HaltonScheduler.from_pretrained(PRESETS / "image-halton", mask_token_id=9)
    assert type(opened) is HaltonScheduler
    assert opened.to_json_string() == expected.to_json_string()
    assert type(base.from_config(expected.config)) is HaltonScheduler


@pytest.mark.parametrize(
    "config", [MaskGITScheduler(mask_token_id=3).config, AmusedScheduler(mask_token_id=3).config, {"mask_token_id": 3}]
)
def test_a_base_needs_a_name_of_its_own_kind(config: Any) -> None:
    with pytest.raises(ValueError, match=r"ChooseThenSampleScheduler, a base, must name .*, got .*\. Call"):
        ChooseThenSampleScheduler.from_config(config)


def test_a_preset_opened_by_another_class_says_so(tmp_path: Path) -> None:
    """It is diffusers' way to swap a scheduler, so it works; but it may be a slip of the pen."""
    message = r"image-halton' is a preset of HaltonScheduler; MomentScheduler takes over .*MaskedDiffusionScheduler"
    with pytest.warns(UserWarning, match=message) as caught:
        scheduler = MomentScheduler.from_pretrained(PRESETS / "image-halton")
    assert caught[0].filename == __file__
    assert scheduler.config.masking_schedule == HaltonScheduler.load_config(PRESETS / "image-halton").get(
        "masking_schedule", "cosine"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        MomentScheduler.from_config(HaltonScheduler.from_pretrained(PRESETS / "image-halton").config)
        type("Mine", (HaltonScheduler,), {}).from_pretrained(PRESETS / "image-halton")
        AmusedScheduler(mask_token_id=3).save_pretrained(tmp_path)
        assert type(MomentScheduler.from_pretrained(tmp_path)) is MomentScheduler
