"""Texts of models that see blocks from left to right: exact with and without the cache, for every row by itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from block_models import BLOCK, FAMILIES, open_family
from small_models import save_bert
from torch import Tensor

from hf_maskdiff import (
    BlockCacheConfig,
    ConfidenceScheduler,
    DelayedCacheConfig,
    DualCacheConfig,
    FirstHittingScheduler,
    MaskedDiffusionTextPipeline,
    MomentScheduler,
    PartialCacheConfig,
    PrefixCacheConfig,
    StepContext,
    ThresholdScheduler,
)
from hf_maskdiff.pipelines.step_logits import StepLogits
from hf_maskdiff.pipelines.text_denoising import WindowDenoiser
from hf_maskdiff.sampling import Marginals

PROMPTS = (6, 3, 8, 1)  # tokens: in the second block, in the first, at the end of the second, at the very beginning
NEW = 11


def prompts() -> list[list[int]]:
    ids = torch.randint(5, 38, (len(PROMPTS), max(PROMPTS)), generator=torch.Generator().manual_seed(1)).tolist()
    return [row[:length] for row, length in zip(ids, PROMPTS, strict=True)]


def generators() -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(len(PROMPTS))]


@contextmanager
def counted(pipe: MaskedDiffusionTextPipeline) -> Iterator[list[tuple[int, int]]]:
    """Rows and positions of every pass of the model; it must have been probed before."""
    passes: list[tuple[int, int]] = []

    def look(model: object, args: tuple, given: dict[str, Any]) -> None:
        passes.append(tuple((given["input_ids"] if "input_ids" in given else args[0]).shape))

    handle = pipe.transformer.register_forward_pre_hook(look, with_kwargs=True)
    yield passes
    handle.remove()


def written(pipe: MaskedDiffusionTextPipeline, rows: list[int] | None = None, **call: Any) -> list[list[int]]:
    rows = list(range(len(PROMPTS))) if rows is None else rows
    own = generators()
    given = {"input_ids": [prompts()[row] for row in rows], "generator": [own[row] for row in rows]}
    call = {"max_new_tokens": NEW, "num_inference_steps": BLOCK, "output_type": "ids"} | given | call
    return [ids.tolist() for ids in pipe(**call).sequences]


SCHEDULERS = {
    "confidence": lambda mask: ConfidenceScheduler(mask, token_temperature=0, masking_schedule="linear"),
    "moment": lambda mask: MomentScheduler(mask, choice_temperature=2.0),
    "threshold": lambda mask: ThresholdScheduler(mask, threshold=0.5, measure="drawn"),
    "first hitting": lambda mask: FirstHittingScheduler(mask),
}


ALWAYS = {
    ("sdar", "threshold", "start"),
    ("fast_dllm", "moment", "prompt"),
    ("llada2", "confidence", "start"),
    ("dllm", "confidence", "prompt"),
    ("bd3lm", "first hitting", "start"),
}
# Every pair of the three: the third alternates.
CASES = [
    pytest.param(*case, marks=() if case in ALWAYS else pytest.mark.exhaustive, id="-".join(case))
    for case in product(FAMILIES, SCHEDULERS, ["start", "prompt"])
    if case in ALWAYS or (list(FAMILIES).index(case[0]) + list(SCHEDULERS).index(case[1])) % 2 == (case[2] == "prompt")
]


@pytest.mark.parametrize(("name", "scheduler", "blocks_from"), CASES)
def test_the_cache_changes_no_token(name: str, scheduler: str, blocks_from: str, tmp_path: Path) -> None:
    """Four unequal prompts: with the cache, without it, and each row alone, with fewer positions computed."""
    pipe = open_family(name, tmp_path / "model", blocks_from=blocks_from)
    pipe.scheduler = SCHEDULERS[scheduler](pipe.mask_token_id)
    written(pipe)  # the probe's passes are not counted
    with counted(pipe) as cached:
        texts = written(pipe)
    assert [len(text) for text in texts] == [length + NEW for length in PROMPTS]
    assert all(text[:length] == prompt for text, length, prompt in zip(texts, PROMPTS, prompts(), strict=True))
    for row, text in enumerate(texts):
        assert written(pipe, [row]) == [text]
    pipe.disable_cache()
    with counted(pipe) as whole:
        assert written(pipe) == texts
    assert len(cached) == len(whole)  # no pass is spent on storing finished blocks
    assert sum(rows * length for rows, length in cached) < 0.8 * sum(rows * length for rows, length in whole)
    pipe.enable_cache(BlockCacheConfig())
    with counted(pipe) as again:
        assert written(pipe) == texts
    assert again == cached


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("sdar", {"guidance_scale": 1.7}),
        ("bd3lm", {"guidance_scale": 1.7}),
        ("fast_dllm", {"block_length": BLOCK // 2}),
        ("bd3lm", {"block_length": 1}),
    ],
)
def test_guidance_and_smaller_blocks(
    name: str, call: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = open_family(name, tmp_path / "model")
    pipe.scheduler = SCHEDULERS["confidence"](pipe.mask_token_id)
    call = {"num_inference_steps": 2} | call
    logits = noted_logits(monkeypatch)
    texts = written(pipe, **call)
    cached = logits.copy()
    assert written(pipe, num_inference_steps=2) != texts
    pipe.disable_cache()
    logits.clear()
    assert written(pipe, **call) == texts
    for (places, values), (same_places, expected) in zip(cached, logits, strict=True):
        assert torch.equal(places, same_places)
        torch.testing.assert_close(values[places >= 0], expected[places >= 0], atol=1e-5, rtol=1e-5)


def noted_logits(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Tensor]]:
    """The places and the logits of every pass that a step begins with: tokens may be the same where logits are not."""
    noted: list[tuple[Tensor, Tensor]] = []
    plain = WindowDenoiser.pass_of_step

    def pass_of_step(run: WindowDenoiser, *given: Any) -> StepLogits:
        logits = plain(run, *given)
        assert logits.places is not None
        noted.append((logits.places.clone(), logits.values.clone()))
        return logits

    monkeypatch.setattr(WindowDenoiser, "pass_of_step", pass_of_step)
    return noted


@pytest.mark.parametrize("name", ["fast_dllm", "bd3lm"])
def test_steps_in_groups(name: str, tmp_path: Path) -> None:
    """Partial caching within a step, on top of what the blocks keep."""
    pipe = open_family(name, tmp_path / "model")
    pipe.scheduler = ConfidenceScheduler(pipe.mask_token_id, token_temperature=0, masking_schedule="linear")
    few = {"num_inference_steps": 2}
    plain = written(pipe, **few)
    pipe.enable_cache(PartialCacheConfig(num_substeps=2, full_pass_threshold=1))
    assert pipe.denoiser.plan == BlockCacheConfig(pipe.denoiser.partial_cache)
    texts = written(pipe, **few)
    assert texts != plain
    for row, text in enumerate(texts):
        assert written(pipe, [row], **few) == [text]


def test_infilling_and_windows(tmp_path: Path) -> None:
    """Masks with blocks of known tokens between them, and texts longer than the model."""
    pipe = open_family("bd3lm", tmp_path / "model")
    ids = torch.tensor([prompts()[2] * 4])
    mask = torch.zeros_like(ids, dtype=torch.bool)
    mask[0, [1, 2, 13, 14, 15, 16, 29]] = True
    call = {"input_ids": ids, "mask": mask, "max_new_tokens": None}
    texts = written(pipe, [0], **call)
    assert torch.equal(torch.tensor(texts)[~mask], ids[~mask])
    long = {"max_new_tokens": 80, "stride": 2 * BLOCK}
    both = written(pipe, **long)
    assert [len(text) for text in both] == [length + 80 for length in PROMPTS]
    assert written(pipe, [3], **long) == both[3:]
    pipe.disable_cache()
    assert written(pipe, [0], **call) == texts
    assert written(pipe, **long) == both


@pytest.mark.parametrize("name", ["sdar", "bd3lm"])
def test_a_finished_row_costs_nothing_more(name: str, tmp_path: Path) -> None:
    """A text ends with the first end after its prompt, also in the middle of a block; the others go on as they were."""
    pipe = open_family(name, tmp_path / "model")
    texts = written(pipe)
    new = [text[length:] for text, length in zip(texts, PROMPTS, strict=True)]
    early = {token for row in new for token in row[: NEW // 2]}
    end = max(early, key=lambda token: (0 < sum(token in row for row in new) < len(new), token))
    assert 0 < sum(end in row for row in new) < len(new)
    pipe.register_to_config(eos_token_ids=[end])
    with counted(pipe) as passes:
        output = stopped(pipe, [0, 1, 2, 3])
    expected = [
        text[: length + row.index(end) + 1] if end in row else text
        for text, length, row in zip(texts, PROMPTS, new, strict=True)
    ]
    assert [ids.tolist() for ids in output.sequences] == expected
    spent = spent_passes(output)
    assert sum(rows for rows, _ in passes) == sum(spent)
    assert spent == [spent_passes(stopped(pipe, [row]))[0] for row in range(len(PROMPTS))]
    assert min(spent) < max(spent)


class LeftToRight(ConfidenceScheduler):
    def score_positions(self, marginals: Marginals, context: StepContext) -> Tensor:
        return -torch.arange(context.masked.shape[1], dtype=torch.float64).expand(context.masked.shape)


@pytest.mark.parametrize("name", ["sdar", "dllm"])
def test_a_row_that_ends_inside_a_block_takes_part_in_no_other_pass_of_it(name: str, tmp_path: Path) -> None:
    """A token a pass, from left to right: as many passes as tokens, the end included."""
    pipe = open_family(name, tmp_path / "model")
    pipe.scheduler = LeftToRight(pipe.mask_token_id, masking_schedule="linear")
    new = [text[length:] for text, length in zip(written(pipe), PROMPTS, strict=True)]
    end = new[1][1]
    pipe.register_to_config(eos_token_ids=[end])
    output = stopped(pipe, [0, 1, 2, 3])
    lengths = [len(ids) - prompt for ids, prompt in zip(output.sequences, PROMPTS, strict=True)]
    assert lengths == [row.index(end) + 1 if end in row else NEW for row in new]
    assert any(
        length < NEW and (prompt + length) % BLOCK for length, prompt in zip(lengths, PROMPTS, strict=True)
    )  # some row ended inside a block
    assert spent_passes(output) == lengths


def stopped(pipe: MaskedDiffusionTextPipeline, rows: list[int]) -> Any:
    given = {"input_ids": [prompts()[row] for row in rows], "generator": [generators()[row] for row in rows]}
    return pipe(**given, max_new_tokens=NEW, num_inference_steps=BLOCK, output_type="ids", stop_at_eos=True)


def spent_passes(output: Any) -> list[int]:
    """Passes of each row, full and partial ones."""
    return [full + partial for full, partial in zip(*list(vars(output).values())[2:4], strict=True)]


@pytest.mark.parametrize("config", [PrefixCacheConfig(), DualCacheConfig(), DelayedCacheConfig()])
@pytest.mark.parametrize("name", ["sdar", "bd3lm"])
def test_other_caches_are_refused(name: str, config: Any, tmp_path: Path) -> None:
    pipe = open_family(name, tmp_path / "model")
    with pytest.raises(
        ValueError, match=f"must be cached exactly, which it is unless .* got a {type(config).__name__}"
    ):
        pipe.enable_cache(config)
    assert written(pipe)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    pipe = open_family("sdar", tmp_path / "model")
    with pytest.raises(ValueError, match=r"`block_length` must divide the blocks of 4 .* got 3"):
        written(pipe, block_length=3)
    with pytest.raises(ValueError, match=r"`block_length` must divide the blocks of 4 .* got 8"):
        written(pipe, block_length=8)
    with pytest.raises(ValueError, match="`stride` must be at least the block size of the model, 4, got 2"):
        written(pipe, stride=2)
    bert = MaskedDiffusionTextPipeline.from_pretrained(save_bert(tmp_path / "bert"))
    with pytest.raises(ValueError, match="`BlockCacheConfig` must be used with a model that sees blocks"):
        bert.enable_cache(BlockCacheConfig())


def test_a_callback_may_edit_the_block(tmp_path: Path) -> None:
    """What it puts in is seen, with the cache as without."""
    pipe = open_family("sdar", tmp_path / "model")

    def edit(pipe: Any, step: int, timestep: object, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        sequences = tensors["sequences"].clone()
        if step == 5:
            sequences[0, 0] = 7
        return {"sequences": sequences}

    call = {"callback_on_step_end": edit, "rows": [0]}
    texts = written(pipe, **call)
    pipe.disable_cache()
    assert written(pipe, **call) == texts
