"""Models that see blocks from left to right: each opens by its own layout, and sees what it was trained to see."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from block_models import BLOCK, FAMILIES, llada2_logits, llada2_weights, open_family, save_llada2
from golden_data import later_cases
from safetensors.torch import load_file
from small_models import change_json, save_bert, save_tokenizer
from torch import Tensor, nn
from transformers import AutoModelForMaskedLM, Glm4MoeForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM

from hf_maskdiff import MaskedDiffusionTextPipeline, MDLMPipeline, MDLMTransformer, ThresholdScheduler
from hf_maskdiff.attention_rule import BlockCausal
from hf_maskdiff.cli import main
from hf_maskdiff.denoisers import TransformersDenoiser
from hf_maskdiff.published.attention import OWN_SIZE_NAME

CLOSE = {"atol": 5e-5, "rtol": 5e-5}
CLASSES = {
    "sdar": Qwen3ForCausalLM,
    "fast_dllm": Qwen2ForCausalLM,
    "llada2": Glm4MoeForCausalLM,
    "dllm": Qwen3ForCausalLM,
    "bd3lm": MDLMTransformer,
}


def tokens(length: int, rows: int = 2) -> Tensor:
    return torch.randint(5, 38, (rows, length), generator=torch.Generator().manual_seed(0))


# --- every family, with random weights --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_a_family(name: str, tmp_path: Path) -> None:
    """It is opened as a class of ours or of transformers, sees its blocks, and stays what it is when it is saved."""
    pipe = open_family(name, tmp_path / "model")
    assert type(pipe.transformer) is CLASSES[name]
    assert pipe.denoiser.rule == BlockCausal(BLOCK)
    ids, shift = tokens(3 * BLOCK), int(pipe.config.shift_logits)
    logits = pipe.denoiser(ids)
    for place in (BLOCK, 2 * BLOCK - 1):
        changed = ids.clone()
        changed[:, place] = 4
        moved = (pipe.denoiser(changed) - logits).abs().amax((0, -1)) > 1e-4
        # Row i - 1 of a shifted model predicts position i, so that its blocks seem to begin one position later.
        assert not moved[: BLOCK + shift].any()
        assert moved[BLOCK + shift :].all()
    pipe.save_pretrained(tmp_path / "saved")
    again = type(pipe).from_pretrained(tmp_path / "saved")
    assert again.denoiser.rule == pipe.denoiser.rule
    assert again.config.shift_logits == pipe.config.shift_logits
    torch.testing.assert_close(again.denoiser(ids), logits)


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_rows_of_a_batch_are_what_they_are_alone(name: str, tmp_path: Path) -> None:
    """With padding, and with blocks that begin elsewhere in each row."""
    denoiser = open_family(name, tmp_path / "model").denoiser
    ids, lengths, offsets = tokens(11, 3), torch.tensor([11, 6, 9]), torch.tensor([0, 1, 3])
    real = torch.arange(11) < lengths[:, None]
    logits = denoiser(ids, attention_mask=real, offsets=offsets)
    for row, length in enumerate(lengths.tolist()):
        alone = denoiser(ids[row : row + 1, :length], offsets=offsets[row : row + 1])
        torch.testing.assert_close(logits[row, :length], alone[0], **CLOSE)
    assert not torch.allclose(logits[2, :9], denoiser(ids[2:, :9])[0], atol=1e-2)


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_a_finished_block_is_stored_exactly(name: str, tmp_path: Path) -> None:
    """Block by block in a store that grows, rows at different places: the logits are those of a full pass."""
    denoiser = open_family(name, tmp_path / "model").denoiser
    ids, offsets = tokens(16, 4), torch.tensor([0, 3, 2, 1])
    cache = denoiser.new_cache()
    starts = BLOCK - offsets
    known = torch.arange(int(starts.max())) < starts[:, None]
    denoiser(ids[:, : known.shape[1]], attention_mask=known, cache=cache, offsets=offsets)
    for _ in range(3):
        ends = starts + BLOCK
        length = int(ends.max())
        real = torch.arange(length) < ends[:, None]
        places = starts[:, None] + torch.arange(BLOCK)
        for value in (4, None):  # masked, then as it stays
            new = ids.gather(1, places) if value is None else torch.full_like(places, value)
            now = {"attention_mask": real, "length": length}
            now |= {"offsets": offsets} if name == "bd3lm" else {}
            partial = denoiser(new, positions=places, cache=cache, **now)
            whole = denoiser(ids[:, :length].scatter(1, places, new), attention_mask=real, offsets=offsets)
            rows = torch.arange(4)[:, None]
            assert (partial - whole[rows, places]).abs().max() < 1e-5 * whole.std()
        starts = ends


@torch.no_grad()
def test_llada2_computes_what_is_published(tmp_path: Path) -> None:
    folder = save_llada2(tmp_path / "model")
    pipe = MaskedDiffusionTextPipeline.from_pretrained(folder, block_size=BLOCK)
    config, ids = json.loads((folder / "config.json").read_text()), tokens(10)
    blocks = torch.arange(10) // BLOCK
    expected = llada2_logits(config, llada2_weights(config), ids, blocks <= blocks[:, None])
    torch.testing.assert_close(pipe.denoiser(ids), expected, **CLOSE)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_converted_folder_needs_no_more_saying(name: str, tmp_path: Path) -> None:
    save, needed = FAMILIES[name]
    said = [text for key, value in needed.items() for text in (f"--{key}", str(value))]
    said += ["--tokenizer", str(save_tokenizer(tmp_path / "words", 39))] if name == "bd3lm" else []
    assert main(["convert", str(save(tmp_path / "model")), str(tmp_path / "out"), *said]) == 0
    pipe = MaskedDiffusionTextPipeline.from_pretrained(tmp_path / "out")
    assert pipe.denoiser.rule == BlockCausal(BLOCK)
    assert pipe.config.shift_logits == (name == "fast_dllm")


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("sdar", {"threshold": 0.85, "measure": "drawn", "follow_schedule": True}, "`low_confidence_dynamic`"),
        ("llada2", {"threshold": 0.95, "token_temperature": 0, "follow_schedule": True}, "`LLaDA2Pipeline`"),
        ("fast_dllm", {"threshold": 0.9, "token_temperature": 0, "follow_schedule": False}, "`block_length=8`"),
    ],
)
def test_a_converted_folder_samples_as_its_authors_do(
    name: str, settings: dict[str, Any], said: str, tmp_path: Path
) -> None:
    save, needed = FAMILIES[name]
    arguments = [text for key, value in needed.items() for text in (f"--{key}", str(value))]
    assert main(["convert", str(save(tmp_path / "model")), str(tmp_path / "out"), *arguments]) == 0
    config = json.loads((tmp_path / "out" / "scheduler" / "scheduler_config.json").read_text())
    assert config["_class_name"] == "ThresholdScheduler"
    assert config["block_length"] == BLOCK
    assert {key: config[key] for key in settings} == settings
    notes = (tmp_path / "out" / "README.md").read_text().split("## Sampling")[1]
    assert said in notes
    assert f"`threshold={settings['threshold']}`" in notes or "`confidence_threshold=0.85`" in notes
    pipe = MaskedDiffusionTextPipeline.from_pretrained(tmp_path / "out")
    pipe.set_progress_bar_config(disable=True)
    assert isinstance(pipe.scheduler, ThresholdScheduler)
    written = pipe(input_ids=[[7, 8]], max_new_tokens=6, generator=torch.Generator().manual_seed(0)).sequences[0]
    assert written[:2].tolist() == [7, 8]
    assert len(written) == 8
    assert not (written == pipe.mask_token_id).any()


def test_bd3lm_as_a_model_of_transformers(tmp_path: Path) -> None:
    """The door of MDLM opens it too, and what it saves says its blocks."""
    pipe = open_family("bd3lm", tmp_path / "model")
    words = str(tmp_path / "words")
    mdlm = MDLMPipeline.from_pretrained(tmp_path / "model", tokenizer=words)
    assert mdlm.denoiser.rule == BlockCausal(BLOCK)
    mdlm.save_pretrained(tmp_path / "saved")
    opened = AutoModelForMaskedLM.from_pretrained(tmp_path / "saved", trust_remote_code=False)
    assert opened.config.block_size == BLOCK
    assert opened.backbone.rule == pipe.denoiser.rule


# --- golden -----------------------------------------------------------------------------------------------------------


def given(folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    return load_file(folder / "input.safetensors"), load_file(folder / "expected.safetensors")


def golden(name: str) -> list[Any]:
    return later_cases(f"{name}/config.json")


def opened(config: Path, tmp_path: Path, block_size: int | None = None, **said: Any) -> MaskedDiffusionTextPipeline:
    """A golden model; its configuration says the block size, where that is given."""
    settings = json.loads(config.read_text())
    words = save_tokenizer(tmp_path / "words", settings["vocab_size"] - (settings["model_type"] == "bd3lm"))
    folder = tmp_path / f"model-{block_size}"
    shutil.copytree(config.parent, folder, ignore=shutil.ignore_patterns("trace_*", "fast*"))
    folder.chmod(0o755)
    if block_size is not None:
        (folder / "config.json").chmod(0o644)
        change_json(folder / "config.json", lambda settings: settings | {"block_size": block_size})
    return MaskedDiffusionTextPipeline.from_pretrained(folder, tokenizer=str(words), **said)


def block_sizes(expected: dict[str, Tensor]) -> Iterator[tuple[int, str]]:
    for key in expected:
        if key.startswith("logits_block") and key[12:].isdigit():
            yield int(key[12:]), key


@pytest.mark.parametrize("config", golden("sdar"))
@torch.no_grad()
def test_golden_sdar(config: Path, tmp_path: Path) -> None:
    inputs, expected = given(config.parent)
    assert any(block_sizes(expected))
    for size, key in block_sizes(expected):
        pipe = opened(config, tmp_path / key, size)
        torch.testing.assert_close(pipe.denoiser(inputs["input_ids"]), expected[key], **CLOSE)


@pytest.mark.parametrize("config", golden("llada2"))
@torch.no_grad()
def test_golden_llada2_loop(config: Path, tmp_path: Path) -> None:
    """The Qwen3 that its pipeline was run with, whose blocks the caller says."""
    inputs, expected = given(config.parent)
    size = json.loads(config.read_text())["block_length"]
    pipe = MaskedDiffusionTextPipeline.from_pretrained(
        config.parent,
        tokenizer=str(save_tokenizer(tmp_path / "words", json.loads(config.read_text())["vocab_size"])),
        attention="block_causal",
        block_size=size,
    )
    real = inputs["attention_mask"].bool()
    logits = pipe.denoiser(inputs["input_ids"], attention_mask=real)
    torch.testing.assert_close(logits[real], expected["logits"][real], **CLOSE)


@pytest.mark.parametrize("config", golden("dllm_bd3lm"))
@torch.no_grad()
def test_golden_dllm(config: Path, tmp_path: Path) -> None:
    """Its left padding is where each row's blocks begin; here a row has no padding before it."""
    inputs, expected = given(config.parent)
    mask = inputs["block_causal_mask"].bool()[:, 0]
    padding = [int(row.diagonal().long().argmax()) for row in mask]
    size = int(mask[0, 0].sum())
    words = save_tokenizer(tmp_path / "words", json.loads(config.read_text())["vocab_size"])
    said = {"attention": "block_causal", "block_size": size}
    pipe = MaskedDiffusionTextPipeline.from_pretrained(config.parent, tokenizer=str(words), **said)
    assert len(set(padding)) > 1
    for row, pad in enumerate(padding):
        ids = inputs["input_ids_left_padded"][row : row + 1, pad:]
        logits = pipe.denoiser(ids, offsets=torch.tensor([pad % size]))
        torch.testing.assert_close(logits[0], expected["logits_block_causal"][row, pad:], **CLOSE)


@pytest.mark.parametrize("config", golden("bd3lm/block*"))
@torch.no_grad()
def test_golden_bd3lm(config: Path, tmp_path: Path) -> None:
    inputs, expected = given(config.parent)
    size = json.loads(config.read_text())["block_size"]
    words = save_tokenizer(tmp_path / "words", json.loads(config.read_text())["vocab_size"] - 1)
    pipe = MaskedDiffusionTextPipeline.from_pretrained(config.parent, tokenizer=str(words))
    assert isinstance(pipe.transformer, MDLMTransformer)
    assert pipe.denoiser.rule == BlockCausal(size)
    noised, clean = inputs["xt"], inputs["x0"]
    short = expected["logits_block_causal_short"].shape[1]
    torch.testing.assert_close(pipe.denoiser(noised), expected["logits_block_causal"], **CLOSE)
    torch.testing.assert_close(pipe.denoiser(noised[:, :short]), expected["logits_block_causal_short"], **CLOSE)
    torch.testing.assert_close(pipe.denoiser(clean), expected["logits_cached_clean"], **CLOSE)
    cache = pipe.denoiser.new_cache()
    pipe.denoiser(clean[:, :size], cache=cache)
    for start in range(size, clean.shape[1], size):
        places = torch.arange(start, start + size).expand(len(clean), -1)
        logits = pipe.denoiser(noised.gather(1, places), positions=places, cache=cache, length=start + size)
        for key in ("logits_cached_noised", "logits_two_stream"):
            torch.testing.assert_close(logits, expected[key][:, start : start + size], **CLOSE)
        pipe.denoiser(clean.gather(1, places), positions=places, cache=cache)


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "changes", "said", "error"),
    [
        ("sdar", {}, {"attention": "full"}, "`attention` must be 'block_causal' for .* of type 'sdar', got 'full'"),
        ("sdar", {}, {"block_size": 8}, "`block_size` must be the 4 that config.json in .* states, got 8"),
        ("sdar", {"block_size": None}, {}, "`block_size` must be given: .* of type 'sdar'"),
        ("sdar", {"block_size": 0}, {}, "`block_size` must be an integer of at least 1, got 0"),
        ("sdar", {"use_sliding_window": True}, {}, "`use_sliding_window` must be false"),
        ("sdar", {"rope_scaling": {"type": "yarn"}}, {}, "`rope_scaling` must be null"),
        ("fast_dllm", {}, {"block_size": 32}, "`block_size` must be the 4 that config.json"),
        ("llada2", {}, {"block_size": None}, "`block_size` must be given: .* of type 'llada2_moe'"),
        ("llada2", {"score_function": "softmax"}, {}, "must compute what GLM-4-MoE does, got {'score_function': 'soft"),
        ("llada2", {"num_attention_heads": 4}, {}, r"must have the 48 rows of 4 \+ 2 \* 1 heads of 8, got 32"),
        ("dllm", {}, {"block_size": None}, "`block_size` must be given: .* of type 'a2d-qwen3'"),
        ("bd3lm", {}, {"block_size": 8}, "`attention` and `block_size` must be those of config.json"),
        ("bd3lm", {}, {"attention": "full"}, "`attention` and `block_size` must be those of config.json"),
        ("bd3lm", {"causal": True}, {}, "a BD3-LM must have adaptive norms and blocks, got {'causal': True}"),
        ("bd3lm", {"block_size": None}, {}, "`config.json` of a BD3-LM must name its `block_size`"),
    ],
)
def test_what_does_not_fit(
    name: str, changes: dict[str, Any], said: dict[str, Any], error: str, tmp_path: Path
) -> None:
    save, needed = FAMILIES[name]
    words = {"tokenizer": str(save_tokenizer(tmp_path / "words", 39))} if name == "bd3lm" else {}
    with pytest.raises(ValueError, match=error):
        MaskedDiffusionTextPipeline.from_pretrained(save(tmp_path / "model", **changes), **(needed | words | said))


def test_a_rule_is_not_guessed_and_not_contradicted(tmp_path: Path) -> None:
    pipe = open_family("sdar", tmp_path / "model")
    parts = (pipe.tokenizer, pipe.transformer, pipe.scheduler)
    assert getattr(pipe.transformer.config, OWN_SIZE_NAME) == BLOCK
    assert MaskedDiffusionTextPipeline(*parts).denoiser.rule == BlockCausal(BLOCK)  # the model's configuration says it
    assert MaskedDiffusionTextPipeline.from_model(pipe.transformer, pipe.tokenizer).config.block_size == BLOCK
    with pytest.raises(ValueError, match="must be the model's, 'block_causal' and 4, got 'full' and None"):
        MaskedDiffusionTextPipeline(*parts, attention="full")
    with pytest.raises(ValueError, match="must be the model's, 'block_causal' and 4, got 'block_causal' and 8"):
        MaskedDiffusionTextPipeline.from_model(*parts[1::-1], attention="block_causal", block_size=8)
    with pytest.raises(ValueError, match="`blocks_from` must be 'start' or 'prompt', got 'end'"):
        MaskedDiffusionTextPipeline(*parts, blocks_from="end")
    pipe.transformer.save_pretrained(tmp_path / "alone")
    pipe.tokenizer.save_pretrained(tmp_path / "alone")
    assert MaskedDiffusionTextPipeline.from_pretrained(tmp_path / "alone").config.block_size == BLOCK
    with pytest.raises(ValueError, match=r"`block_size` must be the 4 that config.json"):
        MaskedDiffusionTextPipeline.from_pretrained(tmp_path / "alone", block_size=2)


def test_a_model_that_does_not_keep_to_the_mask_is_refused(tmp_path: Path) -> None:
    model = open_family("sdar", tmp_path / "model").transformer

    def ignoring(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, kwargs | {"attention_mask": torch.ones_like(kwargs["attention_mask"])}

    handle = model.register_forward_pre_hook(ignoring, with_kwargs=True)
    with pytest.raises(ValueError, match=r"must take a mask `\(batch_size, 1, L, L\)` and keep to it, got Qwen3"):
        TransformersDenoiser(model, rule=BlockCausal(BLOCK))(tokens(8))
    handle.remove()
    model.set_attn_implementation("eager")
    TransformersDenoiser(model, rule=BlockCausal(BLOCK))(tokens(8))
    bert = MaskedDiffusionTextPipeline.from_pretrained(save_bert(tmp_path / "bert"))
    assert bert.denoiser.rule is None
