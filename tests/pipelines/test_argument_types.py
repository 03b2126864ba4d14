"""What users hold their arguments in: numbers of numpy and torch, tuples, columns of a data set; and what is none."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from test_transformers_tasks import IMAGE, MASK, TEXT, pipe, seeds, tokenizer  # noqa: F401
from transformers import pipeline

from hf_maskdiff import (
    MaskedDiffusionScheduler,
    MaskGITPipeline,
    MDLMPipeline,
    MomentScheduler,
    PartialCacheConfig,
)

INTEGERS: list[Callable[[int], Any]] = [np.int64, np.uint8, np.array, torch.tensor, lambda n: torch.tensor([n])]
Make = Callable[..., MaskGITPipeline]


@pytest.fixture
def images(make_pipeline: Make) -> MaskGITPipeline:
    return make_pipeline()


def codes(images: MaskGITPipeline, labels: Any, **kwargs: Any) -> torch.Tensor:
    arguments = {"num_inference_steps": 3, "generator": torch.Generator().manual_seed(0)} | kwargs
    return images(labels, output_type="latent", **arguments).images


# --- labels -----------------------------------------------------------------------------------------------------------

LABELS = {
    "array": np.array([0, 2, 1]),
    "bytes": np.array([0, 2, 1], np.uint8),
    "array on a grid": torch.tensor([[0, 2, 1]]),
    "numpy integers": [np.int64(0), np.int32(2), np.uint8(1)],
    "numbers of torch": [torch.tensor(0), torch.tensor(2), torch.tensor(1, dtype=torch.int32)],
    "tuple": (0, 2, 1),
    "names and numbers": ("cat", np.int64(2), "dog"),
    "numpy names": np.array(["cat", "owl", "dog"]),
    "column": datasets.Dataset.from_dict({"label": [0, 2, 1]})["label"],
    "generator": (label for label in (0, 2, 1)),
}


@pytest.mark.parametrize("case", LABELS)
def test_labels(images: MaskGITPipeline, case: str) -> None:
    assert images.get_label_ids(LABELS[case]) == [0, 2, 1]


@pytest.mark.parametrize("make", INTEGERS)
def test_one_label(images: MaskGITPipeline, make: Callable[[int], Any]) -> None:
    (label,) = images.get_label_ids(make(2))
    assert (label, type(label)) == (2, int)


@pytest.mark.parametrize("label", [True, [True], np.array([True]), torch.tensor(True), 1.0, np.float32(1), -1, [3]])
def test_what_is_no_label(images: MaskGITPipeline, label: Any) -> None:
    with pytest.raises(ValueError, match=r"`class_labels` must be in 0 \.\. 2, got (True|1\.0|-1|3)\. Pass"):
        images(label)


# --- counts -----------------------------------------------------------------------------------------------------------

NO_COUNTS = [True, np.True_, torch.tensor(True), 2.0, "2", np.float64(2), np.array([2, 2]), 0, np.int64(0), -1]


@pytest.mark.parametrize("make", INTEGERS)
def test_counts(images: MaskGITPipeline, pipe: MDLMPipeline, make: Callable[[int], Any]) -> None:  # noqa: F811
    ours = codes(images, 1, num_inference_steps=make(3), num_images_per_prompt=make(2))
    assert torch.equal(ours, codes(images, 1, num_images_per_prompt=2))
    plain = {"num_inference_steps": 3, "max_new_tokens": 20, "num_return_sequences": 2, "stride": 8, "block_length": 4}
    made = pipe("ab", **{name: make(value) for name, value in plain.items()}, generator=seeds(0, 1))
    assert made.texts == pipe("ab", **plain, generator=seeds(0, 1)).texts
    assert PartialCacheConfig(num_substeps=make(2)) == PartialCacheConfig(num_substeps=2)
    scheduler = MomentScheduler(mask_token_id=3)
    scheduler.set_timesteps(make(4))
    assert type(scheduler.num_inference_steps) is int


@pytest.mark.parametrize("value", NO_COUNTS, ids=repr)
def test_what_is_no_count(images: MaskGITPipeline, pipe: MDLMPipeline, value: Any) -> None:  # noqa: F811
    for name in ("num_inference_steps", "num_images_per_prompt"):
        with pytest.raises(ValueError, match=f"`{name}` must be an integer of at least 1, got "):
            images(1, **{name: value})
    for name in ("num_inference_steps", "num_return_sequences", "max_new_tokens", "stride", "block_length"):
        with pytest.raises(ValueError, match=f"`{name}` must be an integer of at least 1"):
            pipe("ab", **{name: value})
    with pytest.raises(ValueError, match="`num_substeps` must be an integer of at least 1"):
        PartialCacheConfig(num_substeps=value)


def test_configurations_of_numpy_numbers_are_saved(
    scheduler_class: type[MaskedDiffusionScheduler], tmp_path: Path
) -> None:
    table = [np.int64(3), np.int64(16)]
    given = {"mask_token_id": np.int64(16), "codebook_size": torch.tensor(16), "top_k": np.uint8(4)}
    given |= {"temperature": np.float64(0.5), "top_p": np.float32(0.5), "masking_schedule": table}
    scheduler_class(**given).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "scheduler_config.json").read_text())
    expected = {"mask_token_id": 16, "codebook_size": 16, "top_k": 4, "temperature": 0.5, "top_p": 0.5}
    assert {name: saved[name] for name in given} == expected | {"masking_schedule": [3, 16]}
    for name in ("mask_token_id", "codebook_size", "top_k", "temperature", "top_p"):
        with pytest.raises(ValueError, match=f"`{name}` must be "):
            scheduler_class(**{"mask_token_id": 16, name: "1"})
    for name in ("mask_token_id", "codebook_size", "top_k"):
        with pytest.raises(ValueError, match=f"`{name}` must be "):
            scheduler_class(**{"mask_token_id": 16, name: True})


# --- generators -------------------------------------------------------------------------------------------------------

NO_GENERATORS = [42, np.int64(42), "42", [42], [None], (0,), np.random.default_rng(0), torch.Generator]


@pytest.mark.parametrize("value", NO_GENERATORS, ids=lambda value: f"{type(value).__name__} {str(value)[:6]}")
def test_what_is_no_generator(images: MaskGITPipeline, pipe: MDLMPipeline, value: Any) -> None:  # noqa: F811
    message = r"`generator` must be a torch\.Generator, a list of them, or None, got .*\. For a seed pass `torch"
    scheduler = MomentScheduler(mask_token_id=3)
    scheduler.set_timesteps(2)
    sample = torch.full((1, 4), 3)
    calls: list[Callable[[], object]] = [
        lambda: images(1, generator=value),
        lambda: pipe("ab", generator=value),
        lambda: pipeline(IMAGE, model=images)(1, generator=value),
        lambda: pipeline(TEXT, model=pipe)(["ab"], generator=value),
        lambda: scheduler.step(torch.zeros(1, 4, 3), 1.0, sample, generator=value),
        lambda: scheduler.choose(torch.zeros(1, 4, 3), 1.0, sample, generator=value),
        lambda: scheduler.add_noise(sample, 0.5, generator=value),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=message):
            call()


# --- tensors ----------------------------------------------------------------------------------------------------------


def test_arrays_and_lists_where_tensors_are_meant(images: MaskGITPipeline) -> None:
    scheduler = MomentScheduler(mask_token_id=3)
    scheduler.set_timesteps(2)
    logits, sample = torch.zeros(1, 4, 3), torch.full((1, 4), 3)
    with pytest.raises(ValueError, match=r"`sample` must hold int64 tokens .*, as a tensor, got list\. Pass token ids"):
        scheduler.step(logits, 1.0, sample.tolist())
    with pytest.raises(ValueError, match=r"`sample` must hold .*, as a tensor, got ndarray"):
        scheduler.step(logits, 1.0, sample.numpy())
    with pytest.raises(ValueError, match=r"`model_output` must hold logits .*, as a tensor, got ndarray\. Check"):
        scheduler.step(logits.numpy(), 1.0, sample)
    for wrong in (sample.tolist(), sample.numpy()):
        with pytest.raises(ValueError, match=r"`original_samples` must hold int64 tokens, as a tensor, got "):
            scheduler.add_noise(wrong, 0.5)
    with pytest.raises(ValueError, match=r"`latents` must be int64 codes of shape \(1, 4, 4\), got ndarray\. Pass"):
        images(1, latents=np.full((1, 4, 4), 16))
    for value in ("1", True, np.array([1.0, 2.0])):
        with pytest.raises(ValueError, match="`choice_temperature` must be a number of at least 0 or a pair"):
            images(1, temperature=value)
        with pytest.raises(ValueError, match="`sampling_temperature` must be a number of at least 0"):
            images(1, sampling_temperature=value)


# --- inputs of the tasks ----------------------------------------------------------------------------------------------


def streams(values: list) -> dict[str, Any]:
    """Several inputs in one of the forms of which results come one by one."""
    column = datasets.Dataset.from_dict({"x": values})

    def generator() -> Iterator[Any]:
        yield from values

    has_streams = hasattr(datasets.iterable_dataset, "IterableColumn")  # not in the oldest supported release
    return {
        **({"streamed column": column.to_iterable_dataset()["x"]} if has_streams else {}),
        "column": column["x"],
        "generator": generator(),
        "iterator": iter(values),
        "dictionary view": dict(enumerate(values)).values(),
    }


@pytest.mark.parametrize("form", ["tuple", "array", *streams([0])])
def test_texts_come_in_any_form(pipe: MDLMPipeline, form: str) -> None:  # noqa: F811
    prompts = ["a", "bcd.", "ef"]
    write = pipeline(TEXT, model=pipe, num_inference_steps=2)
    inputs = {"tuple": tuple(prompts), "array": np.array(prompts), **streams(prompts)}[form]
    made = write(inputs, batch_size=2, generator=seeds(0, 1, 2))
    assert form not in ("tuple", "array") or isinstance(made, list)
    assert list(made) == write(prompts, generator=seeds(0, 1, 2))


@pytest.mark.parametrize("form", ["tuple", "array", "tensor", *streams([0])])
def test_labels_come_in_any_form(images: MaskGITPipeline, form: str) -> None:
    labels = [0, 2, 1]
    draw = pipeline(IMAGE, model=images, num_inference_steps=2)
    forms = {"tuple": tuple(labels), "array": np.array(labels), "tensor": torch.tensor(labels), **streams(labels)}
    inputs = forms[form]
    made = draw(inputs, batch_size=2, generator=seeds(0, 1, 2))
    assert form not in ("tuple", "array", "tensor") or isinstance(made, list)
    expected = draw(labels, generator=seeds(0, 1, 2))
    assert [image.tobytes() for image in made] == [image.tobytes() for image in expected]


def test_no_inputs_and_one(images: MaskGITPipeline, pipe: MDLMPipeline) -> None:  # noqa: F811
    draw, write = pipeline(IMAGE, model=images), pipeline(TEXT, model=pipe)
    assert draw([]) == write(()) == draw(np.array([])) == []
    for make in INTEGERS[:4]:
        assert draw(make(2), generator=seeds(0)[0]).tobytes() == draw(2, generator=seeds(0)[0]).tobytes()
    (made,) = write("ab", generator=seeds(0)[0], num_return_sequences=np.int64(1))
    assert made == write(np.str_("ab"), generator=seeds(0)[0])[0]


# --- the cache of an image pipeline -----------------------------------------------------------------------------------


def test_a_cache_is_switched_on_the_pipeline(images: MaskGITPipeline) -> None:
    config, call = PartialCacheConfig(num_substeps=2), {"num_images_per_prompt": 8, "num_inference_steps": 2}
    plain = codes(images, 1, **call)
    images.enable_cache(config)
    assert images.partial_cache == config
    cached = codes(images, 1, **call)
    assert not torch.equal(cached, plain)
    images.disable_cache()
    assert torch.equal(codes(images, 1, **call), plain)
    images.transformer.enable_cache(config)
    assert torch.equal(codes(images, 1, **call), cached)
