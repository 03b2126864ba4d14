"""Calls of one pipeline in several threads give what they give one after the other, whatever their arguments."""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import transformers
from packaging import version
from tiny_weights import draw_weights
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedTokenizerFast

from hf_maskdiff import (
    AncestralScheduler,
    FirstHittingScheduler,
    MaskedDiffusionTextPipeline,
    MaskGITPipeline,
    MDLMPipeline,
    MDLMTransformer,
    MomentScheduler,
    PartialCacheConfig,
)

VOCAB, MASK, THREADS = 24, 23, 4
IS_OLD = version.parse(transformers.__version__) < version.parse("5.1")


def tokenizer() -> PreTrainedTokenizerFast:
    words = {f"w{i}": i for i in range(VOCAB - 1)} | {"[M]": MASK}
    core = Tokenizer(WordLevel(words, unk_token="w0"))
    core.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, mask_token="[M]", eos_token="w1", unk_token="w0")


def transformers_model(name: str) -> Any:
    """A decoder whose keys and values its cache keeps, and an encoder whose attention function has to be replaced."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    special = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1, "mask_token_id": MASK}
    config = AutoConfig.for_model(name, vocab_size=VOCAB, max_position_embeddings=64, **sizes, **special)
    auto = AutoModelForCausalLM if name == "llama" else AutoModelForMaskedLM
    return auto.from_config(config)


def text_pipeline(name: str) -> MaskedDiffusionTextPipeline:
    torch.manual_seed(0)
    if name == "mdlm":
        model = MDLMTransformer(VOCAB, 64, hidden_dim=32, cond_dim=8, n_blocks=2, n_heads=4)
        scheduler = AncestralScheduler(mask_token_id=MASK, codebook_size=MASK)
        pipe: Any = MDLMPipeline(tokenizer(), model.eval(), scheduler)
    else:
        model = transformers_model(name)
        scheduler = MomentScheduler(mask_token_id=MASK, codebook_size=MASK, masking_schedule="linear")
        pipe = MaskedDiffusionTextPipeline(tokenizer(), model.eval(), scheduler)
    draw_weights(model, bias=1.0 if name == "mdlm" else 0.1)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(params=["images", "mdlm", "llama", "modernbert"])
def pipe(request: pytest.FixtureRequest, make_pipeline: Callable[..., MaskGITPipeline]) -> Any:
    return make_pipeline() if request.param == "images" else text_pipeline(request.param)


def arguments(pipe: Any, number: int) -> dict[str, Any]:
    """Those of one call: steps, guidance, temperature, prompt and batch differ from call to call."""
    draw = random.Random(number)
    shared = {
        "num_inference_steps": draw.choice([1, 2, 3, 5, 7]),
        "guidance_scale": draw.choice([1.0, 1.5, 3.0]),
        "temperature": draw.choice([None, 2.0]) if isinstance(pipe.scheduler, MomentScheduler) else None,
    }
    size = draw.choice([1, 2, 3])
    generator = [torch.Generator().manual_seed(1000 * number + row) for row in range(size)]
    if isinstance(pipe, MaskGITPipeline):
        labels = [draw.randrange(3) for _ in range(size)]
        return shared | {"class_labels": labels, "generator": generator, "output_type": "latent"}
    prompts = [" ".join(f"w{draw.randrange(3, 20)}" for _ in range(draw.choice([1, 2, 5]))) for _ in range(size)]
    length = {"max_new_tokens": draw.choice([3, 6]), "block_length": draw.choice([None, 2])}
    return shared | length | {"prompt": prompts, "generator": generator, "output_type": "ids"}


def result(pipe: Any, number: int) -> list[Tensor]:
    output = pipe(**arguments(pipe, number))
    return list(output.images if isinstance(pipe, MaskGITPipeline) else output.sequences)


@pytest.fixture
def quick_switches() -> Iterator[None]:
    """Threads take turns after 10 microseconds rather than 5 milliseconds: they meet in the middle of everything."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.mark.parametrize("cached", [False, True])
def test_mixed_calls_in_four_threads(pipe: Any, cached: bool, quick_switches: None) -> None:
    """Eight runs of 25 calls, 200 in all: images, our text model, both ways to cache a model of transformers."""
    if cached and "ModernBert" in type(pipe.transformer).__name__ and IS_OLD:
        pytest.skip("transformers 5.0 does not show ModernBERT's keys and values")
    if cached:
        pipe.scheduler = MomentScheduler(mask_token_id=pipe.scheduler.config.mask_token_id)
        (pipe.transformer if isinstance(pipe, MaskGITPipeline) else pipe).enable_cache(
            PartialCacheConfig(num_substeps=2)
        )
    numbers = range(25)
    serial = [result(pipe, number) for number in numbers]
    with ThreadPoolExecutor(THREADS) as threads:
        concurrent = list(threads.map(lambda number: result(pipe, number), numbers))
    for number, expected, found in zip(numbers, serial, concurrent, strict=True):
        assert len(expected) == len(found)
        assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True)), arguments(pipe, number)


def test_what_a_callback_sets_is_its_own_call_s(make_pipeline: Callable[..., MaskGITPipeline]) -> None:
    """One call is interrupted, one changes its guidance; a third, in between all the time, does neither."""
    pipe = make_pipeline()
    meet = threading.Barrier(3, timeout=60)
    seen: dict[str, list[Any]] = {"stops": [], "guides": [], "plain": []}

    def call(name: str, steps: int, guidance_scale: float) -> Tensor:
        def callback(pipe: Any, step: int, timestep: Tensor, tensors: dict) -> dict:
            if step < 2:
                meet.wait()
            if step == 1 and name == "stops":
                pipe._interrupt = True
            if step == 0 and name == "guides":
                pipe._guidance_scale = 1.0
            seen[name].append((pipe.num_timesteps, pipe.guidance_scale, pipe.interrupt, float(pipe.current_timestep)))
            return tensors

        generator = torch.Generator().manual_seed(5)
        options = {"num_inference_steps": steps, "guidance_scale": guidance_scale, "generator": generator}
        return pipe(class_labels=[1], callback_on_step_end=callback, output_type="latent", **options).images

    with ThreadPoolExecutor(3) as threads:
        calls = [threads.submit(call, *given) for given in (("stops", 4, 2.0), ("guides", 5, 2.0), ("plain", 6, 3.0))]
        stopped, guided, plain = [call.result() for call in calls]
    assert seen["stops"] == [(1, 2.0, False, 1.0), (2, 2.0, True, 0.75)]
    assert seen["guides"] == [(n + 1, 1.0, False, pytest.approx(1 - n / 5)) for n in range(5)]
    assert seen["plain"] == [(n + 1, 3.0, False, pytest.approx(1 - n / 6)) for n in range(6)]
    assert (stopped == 16).any()
    assert not (guided == 16).any()
    assert not (plain == 16).any()


def test_properties_show_the_latest_call(make_pipeline: Callable[..., MaskGITPipeline]) -> None:
    pipe = make_pipeline()
    pipe(class_labels=[1], num_inference_steps=3, guidance_scale=2.0, output_type="latent")
    assert (pipe.num_timesteps, pipe.guidance_scale, pipe.interrupt, pipe.current_timestep) == (3, 2.0, False, None)
    assert pipe.do_classifier_free_guidance
    assert pipe.scheduler.num_inference_steps == 3
    assert pipe.scheduler.timesteps.tolist() == pytest.approx([1, 2 / 3, 1 / 3])
    text = text_pipeline("mdlm")
    text.scheduler = FirstHittingScheduler(mask_token_id=MASK)
    text("w3 w4", max_new_tokens=5, num_inference_steps=1)
    assert text.scheduler.num_inference_steps == 5  # fitted to the masks of the run
    assert text.num_timesteps == 5


def test_a_call_from_a_callback_leaves_the_outer_one_s_state(make_pipeline: Callable[..., MaskGITPipeline]) -> None:
    pipe = make_pipeline()
    inside: list[tuple[int, float]] = []

    def nest(outer: Any, step: int, timestep: Tensor, tensors: dict) -> dict:
        if step == 0:
            outer(class_labels=[2], num_inference_steps=2, guidance_scale=3.0, output_type="latent")
        inside.append((outer.num_timesteps, outer.guidance_scale))
        return tensors

    def run(**more: Any) -> Tensor:
        given = {"num_inference_steps": 4, "guidance_scale": 1.5, "output_type": "latent"}
        return pipe(class_labels=[1], generator=[torch.Generator().manual_seed(3)], **given, **more).images

    expected = run()
    assert torch.equal(run(callback_on_step_end=nest), expected)
    assert inside == [(n + 1, 1.5) for n in range(4)]
