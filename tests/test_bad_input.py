"""What cannot work is refused at the door: one `ValueError` with rule, value and remedy, before any model call."""

from __future__ import annotations

import re
from collections.abc import Callable
from inspect import signature

import numpy as np
import pytest
import torch
from concrete import SCHEDULERS

from hf_maskdiff import (
    AnnealedScheduler,
    ConfidenceScheduler,
    EntropyBoundedScheduler,
    HaltonScheduler,
    HybridScheduler,
    MaskedDiffusionScheduler,
    MaskGITPipeline,
    MaskGITScheduler,
    MomentScheduler,
    PathPlanningScheduler,
)
from hf_maskdiff.pipelines.checks import check_flag

MASK = 9


def tokens(*shape: int, value: int = MASK) -> torch.Tensor:
    return torch.full(shape, value)


def generators(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


# --- configurations ---------------------------------------------------------------------------------------------------

SHARED_CONFIGURATIONS = [
    ({"mask_token_id": -1}, "`mask_token_id` must be an integer of at least 0, got -1. Pass the id"),
    ({"mask_token_id": "abc"}, "`mask_token_id` must be an integer of at least 0, got 'abc'"),
    ({"codebook_size": 0}, "`codebook_size` must be an integer of at least 1, got 0. Pass the number"),
    ({"codebook_size": "many"}, "`codebook_size` must be an integer of at least 1, got 'many'"),
    ({"masking_schedule": "cosin"}, "`masking_schedule` must be one of .*'cosine'.* or a table .*, got 'cosin'. Pick"),
    ({"masking_schedule": 5}, "`masking_schedule` must be one of .* or a table .*, got 5. Pick"),
    ({"masking_schedule": None}, "`masking_schedule` must be one of .* or a table .*, got None. Pick"),
    ({"masking_schedule": []}, r"table must hold strictly increasing positive integers.*, got \[\]. For"),
    ({"masking_schedule": [0, 5]}, r"strictly increasing positive integers.*, got \[0, 5\]"),
    ({"masking_schedule": [2, 5, 5]}, r"strictly increasing positive integers.*, got \[2, 5, 5\]"),
    ({"masking_schedule": (7, 5)}, r"strictly increasing positive integers.*, got \[7, 5\]"),
    ({"masking_schedule": [0.5, 1.0]}, r"strictly increasing positive integers.*, got \[0.5, 1.0\]"),
    ({"rounding": "floor"}, "`rounding` must be one of .*'floor_masked'.*, got 'floor'. Pick"),
    ({"temperature": 0}, "`temperature` must be a number above 0, got 0. For greedy tokens pass top_k=1"),
    ({"temperature": -1.0}, "`temperature` must be a number above 0, got -1.0"),
    ({"temperature": float("nan")}, "`temperature` must be a number above 0, got nan"),
    ({"temperature": float("inf")}, "`temperature` must be a number above 0, got inf"),
    ({"temperature": [1, 2]}, r"`temperature` must be a number above 0, got \[1, 2\]"),
    ({"top_k": 0}, "`top_k` must be an integer of at least 1, got 0. Pass a number of tokens, or None"),
    ({"top_k": 1.5}, "`top_k` must be an integer of at least 1, got 1.5"),
    ({"top_p": "half"}, r"`top_p` must be in \(0, 1\], got 'half'"),
    ({"top_p": 0.0}, r"`top_p` must be in \(0, 1\], got 0.0. Pass None"),
    ({"top_p": 1.5}, r"`top_p` must be in \(0, 1\], got 1.5"),
]
TYPICAL = [0, 1.5, "half", float("nan"), True]
DISTANCES = [0, -2, 1.5, None, "2"]
CHOICE_TEMPERATURES = [-1.0, float("nan"), float("inf"), (float("inf"), 1.0), (1.0, -1.0), (1.0,), (1.0, 2.0, 3.0), "6"]


@pytest.mark.parametrize(("config", "message"), SHARED_CONFIGURATIONS)
def test_configurations(
    scheduler_class: type[MaskedDiffusionScheduler], config: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        scheduler_class(**({"mask_token_id": MASK} | config))


def test_words_are_no_flags(scheduler_class: type[MaskedDiffusionScheduler]) -> None:
    """`follow_schedule=no` on the command line is a word."""
    flags = [name for name, one in signature(scheduler_class).parameters.items() if isinstance(one.default, bool)]
    for name in flags:
        for value in ("no", 1, None, []):
            with pytest.raises(ValueError, match=rf"`{name}` must be True or False, got {re.escape(repr(value))}"):
                scheduler_class(mask_token_id=MASK, **{name: value})


def test_flags_of_numpy_and_torch() -> None:
    for value in (True, np.False_, torch.tensor(True)):
        check_flag("stop_at_eos", value, "")
    for wrong in (1, "no", None, np.int64(1), torch.ones(2, dtype=torch.bool)):
        with pytest.raises(ValueError, match="`stop_at_eos` must be True or False, got"):
            check_flag("stop_at_eos", wrong, "")


def test_a_flag_of_a_subclass_may_be_no_setting() -> None:
    class Own(ConfidenceScheduler):
        def __init__(self, mask_token_id: int, verbose: bool = False) -> None:
            super().__init__(mask_token_id)
            self.verbose = verbose

    assert Own(MASK, verbose=True).verbose


@pytest.mark.parametrize("value", TYPICAL)
@pytest.mark.parametrize("scheduler_class", [c for c in SCHEDULERS if "typical_p" in signature(c).parameters])
def test_typical_tokens(scheduler_class: type[MaskedDiffusionScheduler], value: object) -> None:
    with pytest.raises(ValueError, match=r"`typical_p` must be in \(0, 1\], got .* Pass None to allow every token"):
        scheduler_class(mask_token_id=MASK, typical_p=value)


@pytest.mark.parametrize("value", DISTANCES)
@pytest.mark.parametrize("scheduler_class", [c for c in SCHEDULERS if "min_distance" in signature(c).parameters])
def test_distances(scheduler_class: type[MaskedDiffusionScheduler], value: object) -> None:
    with pytest.raises(ValueError, match=r"`min_distance` must be an integer of at least 1, got .* Pass 1 to let"):
        scheduler_class(mask_token_id=MASK, min_distance=value)


@pytest.mark.parametrize("value", CHOICE_TEMPERATURES)
@pytest.mark.parametrize("scheduler_class", [c for c in SCHEDULERS if "choice_temperature" in signature(c).parameters])
def test_choice_temperatures(scheduler_class: type[MaskedDiffusionScheduler], value: object) -> None:
    scheduler = scheduler_class(mask_token_id=MASK)
    message = r"`choice_temperature` must be a number of at least 0 or a pair \(start, end\) of such, got .* Try"
    with pytest.raises(ValueError, match=message):
        scheduler_class(mask_token_id=MASK, choice_temperature=value)
    with pytest.raises(ValueError, match=r"`choice_temperature_schedule` must be .*, got 'cosine'. Pick"):
        scheduler_class(mask_token_id=MASK, choice_temperature_schedule="cosine")
    if scheduler.config.choice_temperature is not None:
        with pytest.raises(ValueError, match=message):
            scheduler.set_timesteps(4, temperature=value)


@pytest.mark.parametrize(
    ("scheduler_type", "config", "message"),
    [
        (ConfidenceScheduler, {"measure": "surprise"}, "`measure` must be one of .*'margin'.*, got 'surprise'. Pick"),
        (EntropyBoundedScheduler, {"entropy_bound": -0.5}, "`entropy_bound` must be .* at least 0, got -0.5. Try 4.0"),
        (EntropyBoundedScheduler, {"entropy_bound": float("nan")}, "`entropy_bound` must be .* at least 0, got nan"),
        (EntropyBoundedScheduler, {"entropy_bound": None}, "`entropy_bound` must be a number of nats, .*, got None"),
        (EntropyBoundedScheduler, {"entropy_bound": True}, "`entropy_bound` must be a number of nats, .*, got True"),
        (HaltonScheduler, {"inverse_temperature": float("inf")}, "`inverse_temperature` must be above 0, .*, got inf"),
        (HaltonScheduler, {"inverse_temperature": ("a", 1.0)}, "`inverse_temperature` must be above 0, .* pair"),
        (AnnealedScheduler, {"logits_temperature": 1.0}, "`logits_temperature` must be None, or a pair .*, got 1.0"),
        (AnnealedScheduler, {"logits_temperature": (float("inf"), 1)}, "`logits_temperature` must be None, or a pair"),
        (PathPlanningScheduler, {"eta": float("inf")}, "`eta` must be a number of at least 0, got inf"),
        (HybridScheduler, {"exploration": "spiral"}, "`exploration` must be one of .*'halton'.*, got 'spiral'. Pick"),
        (HybridScheduler, {"exploitation": None}, "`exploitation` must be one of .*'moment'.*, got None. Pick"),
        (HybridScheduler, {"exploration_ratio": 1.5}, r"`exploration_ratio` must be a number in \[0, 1\].*, got 1.5"),
        (HybridScheduler, {"exploration_ratio": (0.5, -0.1)}, r"`exploration_ratio` must be .*, got \(0.5, -0.1\)"),
        (HybridScheduler, {"exploration_ratio": (0.1, 0.2, 0.3)}, "`exploration_ratio` must be .* pair"),
        (HybridScheduler, {"exploration_ratio": None}, "`exploration_ratio` must be .*, got None"),
        (
            HybridScheduler,
            {"min_distance": 2, "plain_exploration": True},
            "`min_distance` must be 1 with `plain_exploration`, .*, got 2. Leave one",
        ),
    ],
)
def test_configurations_of_some(
    scheduler_type: type[MaskedDiffusionScheduler], config: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        scheduler_type(mask_token_id=MASK, **config)


# --- the run ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [0, -3, 2.0, None, "8"])
def test_numbers_of_steps(scheduler_class: type[MaskedDiffusionScheduler], steps: object) -> None:
    message = f"`num_inference_steps` must be an integer of at least 1, got {steps!r}. Pass the number of model passes"
    with pytest.raises(ValueError, match=message):
        scheduler_class(mask_token_id=MASK).set_timesteps(steps)


def test_a_table_fixes_the_number_of_steps(scheduler_class: type[MaskedDiffusionScheduler]) -> None:
    scheduler = scheduler_class(mask_token_id=MASK, masking_schedule=[2, 5, 10])
    with pytest.raises(ValueError, match=r"`num_inference_steps` must be 3, the length of .*, got 4. Pass 3, or use"):
        scheduler.set_timesteps(4)
    scheduler.set_timesteps(3)


def test_a_step_before_set_timesteps(scheduler_class: type[MaskedDiffusionScheduler]) -> None:
    scheduler = scheduler_class(mask_token_id=MASK)
    with pytest.raises(ValueError, match=r"`set_timesteps` must be called before `step`, got no timesteps. Call"):
        scheduler.step(torch.zeros(1, 4, 9), 1.0, tokens(1, 4))
    with pytest.raises(ValueError, match="`set_timesteps` must be called"):
        scheduler.planned_counts(torch.tensor([4]))


SAMPLES = r"`sample` must hold int64 tokens \(batch_size, L\) or \(batch_size, height, width\), got .* Pass token ids"
LOGITS = r"`model_output` must hold logits \(batch_size, L, V\).*, got .* Check the model's output"
STEPS = {
    "float sample": ({"sample": torch.zeros(2, 4)}, SAMPLES),
    "int32 sample": ({"sample": tokens(2, 4).int()}, SAMPLES),
    "flat sample": ({"sample": tokens(8)}, SAMPLES),
    "deep sample": ({"sample": tokens(2, 1, 2, 2)}, SAMPLES),
    "logits of another length": ({"model_output": torch.zeros(2, 5, 9)}, LOGITS),
    "logits of another batch": ({"model_output": torch.zeros(3, 4, 9)}, LOGITS),
    "flat logits": ({"model_output": torch.zeros(8, 9)}, LOGITS),
    "logits on a grid, sample on a line": ({"model_output": torch.zeros(2, 9, 2, 2)}, LOGITS),
    "another grid": ({"model_output": torch.zeros(2, 9, 4, 1), "sample": tokens(2, 2, 2)}, LOGITS),
    "integer logits": (
        {"model_output": torch.zeros(2, 4, 9).long()},
        "must hold floating point logits, got torch.int64",
    ),
    "no column": ({"model_output": torch.zeros(2, 4, 0)}, "`model_output` must"),
    "late": ({"timestep": 1.5}, r"`timestep` must be in \[0, 1\], got 1.5. Pass an entry of `scheduler.timesteps`"),
    "early": ({"timestep": -0.5}, r"`timestep` must be in \[0, 1\], got -0.5"),
    "no time": ({"timestep": float("nan")}, r"`timestep` must be in \[0, 1\], got nan"),
    "too few generators": (
        {"generator": generators(1)},
        "generators must hold one per row, got 1 for a batch of 2. Pass",
    ),
    "too many generators": ({"generator": generators(3)}, "generators must hold one per row, got 3 for a batch of 2"),
    "ratios of another batch": ({"starting_mask_ratio": torch.ones(3)}, "`starting_mask_ratio` must"),
    "ratios per position": ({"starting_mask_ratio": torch.ones(2, 4)}, "`starting_mask_ratio` must"),
}


@pytest.mark.parametrize("case", STEPS)
def test_steps(scheduler_class: type[MaskedDiffusionScheduler], case: str) -> None:
    wrong, message = STEPS[case]
    scheduler = scheduler_class(mask_token_id=MASK)
    scheduler.set_timesteps(2)
    arguments = {"model_output": torch.zeros(2, 4, 9), "timestep": 1.0, "sample": tokens(2, 4)}
    with pytest.raises(ValueError, match=message):
        scheduler.step(**(arguments | wrong))
    if hasattr(scheduler, "choose"):
        with pytest.raises(ValueError, match=message):
            scheduler.choose(**(arguments | wrong))
    scheduler.step(**arguments)  # without what is wrong it works


def test_no_token_but_the_mask(scheduler_class: type[MaskedDiffusionScheduler]) -> None:
    scheduler = scheduler_class(mask_token_id=0)
    scheduler.set_timesteps(2)
    with pytest.raises(ValueError, match="`model_output` must"):
        scheduler.step(torch.zeros(2, 4, 1), 1.0, tokens(2, 4, value=0))


def test_broken_logits(scheduler_class: type[MaskedDiffusionScheduler]) -> None:
    scheduler = scheduler_class(mask_token_id=MASK)
    scheduler.set_timesteps(4)
    for bad in (torch.nan, torch.inf, -torch.inf):
        with pytest.raises(ValueError, match=r"no NaN or \+inf, got such logits in step 2 \(counted from 0\). Check"):
            scheduler.step(torch.full((2, 4, 9), bad), 0.5, tokens(2, 4), generator=torch.Generator().manual_seed(0))


ADD_NOISE = {
    "time": ({"timesteps": 1.5}, r"`timesteps` must be in \[0, 1\]"),
    "time, negative": ({"timesteps": torch.tensor([0.5, -0.1])}, r"`timesteps` must be in \[0, 1\]"),
    "no time": ({"timesteps": float("nan")}, r"`timesteps` must be in \[0, 1\]"),
    "times of another batch": ({"timesteps": torch.ones(3)}, "`timesteps` must"),
    "float tokens": ({"original_samples": torch.zeros(2, 4)}, "`original_samples` must hold int64 tokens"),
    "too few generators": ({"generator": generators(1)}, "generators must hold one per row, got 1 for a batch of 2"),
}


@pytest.mark.parametrize("case", ADD_NOISE)
def test_add_noise(case: str) -> None:
    wrong, message = ADD_NOISE[case]
    arguments = {"original_samples": tokens(2, 4, value=1), "timesteps": 0.5}
    with pytest.raises(ValueError, match=message):
        MomentScheduler(mask_token_id=MASK).add_noise(**(arguments | wrong))


# --- the pipeline -----------------------------------------------------------------------------------------------------

OTHER = torch.full((1, 4, 4), 17)  # 16 codes, and 16 is the mask
CALLS = {
    "label": ({"class_labels": 3}, r"`class_labels` must be in 0 .. 2, got 3. Pass None"),
    "negative label": ({"class_labels": [0, -1]}, r"`class_labels` must be in 0 .. 2, got -1"),
    "label in a tensor": ({"class_labels": torch.tensor([7])}, r"`class_labels` must be in 0 .. 2, got 7"),
    "float label": ({"class_labels": [1.0]}, r"`class_labels` must be in 0 .. 2, got 1.0"),
    "name": ({"class_labels": "doq"}, r"`class_labels` must be names .*, got 'doq'. Did you mean one of \['dog'\]"),
    "strange name": ({"class_labels": ["owl", "zzzz"]}, r"got 'zzzz'. Did you mean one of \["),
    "no labels": ({"class_labels": []}, "`class_labels` must hold at least one label, got none. Pass None"),
    "no images": (
        {"num_images_per_prompt": 0},
        "`num_images_per_prompt` must be an integer of at least 1, got 0. Pass",
    ),
    "half an image": ({"num_images_per_prompt": 0.5}, "`num_images_per_prompt` must be an integer .*, got 0.5"),
    "no steps": ({"num_inference_steps": 0}, "`num_inference_steps` must be an integer of at least 1, got 0. Pass"),
    "temperature": ({"temperature": -1.0}, "`choice_temperature` must be a number of at least 0"),
    "output": ({"output_type": "jpeg"}, r"`output_type` must be one of \('pil', .*\), got 'jpeg'. Pick"),
    "generators": ({"generator": generators(2)}, "generators must hold one per row, got 2 for a batch of 1. Pass"),
    "callback": (
        {"callback_on_step_end_tensor_inputs": ["logits"]},
        r"a list of names among \['latents'\], got \['logits'\]",
    ),
    "latents on a line": (
        {"latents": tokens(1, 16)},
        r"`latents` must be int64 codes of shape \(1, 4, 4\), got .*Pass",
    ),
    "latents of another batch": ({"latents": tokens(2, 4, 4)}, r"of shape \(1, 4, 4\), got torch.int64 \(2, 4, 4\)"),
    "float latents": ({"latents": torch.zeros(1, 4, 4)}, r"`latents` must be int64 codes .*, got torch.float32"),
    "unknown codes": ({"latents": OTHER}, r"`latents` must hold codes in 0 .. 15 or the mask 16, got .*17. Replace"),
    "negative codes": (
        {"latents": -OTHER},
        r"`latents` must hold codes in 0 .. 15 or the mask 16, got values from -17",
    ),
}


@pytest.fixture
def pipe(make_pipeline: Callable[..., MaskGITPipeline]) -> MaskGITPipeline:
    return make_pipeline()


@pytest.mark.parametrize("case", CALLS)
def test_calls_of_the_pipeline(pipe: MaskGITPipeline, case: str) -> None:
    wrong, message = CALLS[case]
    calls = []
    for module in (pipe.transformer, pipe.vqvae):
        module.register_forward_pre_hook(lambda *_: calls.append(1))
    with pytest.raises(ValueError, match=message):
        pipe(**wrong)
    assert calls == []
    pipe(num_inference_steps=1)
    assert calls == [1]  # the transformer's forward; the tokenizer is only asked to decode


def test_a_table_of_another_length(make_pipeline: Callable[..., MaskGITPipeline]) -> None:
    pipe = make_pipeline(MaskGITScheduler(mask_token_id=16, masking_schedule=[4, 16]))
    pipe.transformer.register_forward_pre_hook(lambda *_: pytest.fail("the model was called"))
    with pytest.raises(ValueError, match=r"`num_inference_steps` must be 2, .*, got 8. Pass 2"):
        pipe()


def test_names_without_names(make_pipeline: Callable[..., MaskGITPipeline]) -> None:
    with pytest.raises(ValueError, match=r"got 'dog'. This model has no names: pass an id"):
        make_pipeline(id2label=None)("dog")


def test_a_foreign_scheduler(pipe: MaskGITPipeline) -> None:
    from diffusers import AmusedScheduler

    pipe.scheduler = AmusedScheduler(mask_token_id=16)
    with pytest.raises(ValueError, match=r"`scheduler` must be a MaskedDiffusionScheduler, got AmusedScheduler. Set"):
        pipe()


def test_broken_weights_name_the_step(pipe: MaskGITPipeline) -> None:
    def spoil(module: torch.nn.Module, args: object, output: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        calls.append(1)
        return (output[0] * torch.nan,) if len(calls) == 3 else output

    calls: list[int] = []
    pipe.transformer.register_forward_hook(spoil)
    with pytest.raises(ValueError, match=r"got such logits in step 2 \(counted from 0\). Check the model's weights"):
        pipe(num_inference_steps=5)
    assert len(calls) == 3
