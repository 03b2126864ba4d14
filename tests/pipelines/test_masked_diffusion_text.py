"""`MaskedDiffusionTextPipeline`: chats, blocks, guidance and partial caching on models of transformers."""

from __future__ import annotations

import gc
import json
import weakref
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    pipeline,
)

from hf_maskdiff import (
    ConfidenceScheduler,
    HaltonScheduler,
    HybridScheduler,
    MaskedDiffusionTextPipeline,
    MaskGITScheduler,
    MomentScheduler,
    PartialCacheConfig,
    PrefixCacheConfig,
)

VOCAB, MASK, EOS, TURN = 40, 4, 3, 6
CHAT = [{"role": "user", "content": "w7 w8"}]
# All tokens are words; a chat is "<turn> content ... <turn>".
TEMPLATE = (
    "{% for m in messages %}<|im_end|> {{ m.content }} {% endfor %}{% if add_generation_prompt %}<|im_end|>{% endif %}"
)


def make_tokenizer(chat_template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    words = {f"w{i}": i for i in range(VOCAB)}
    for token, i in (("<pad>", 1), ("<eos>", EOS), ("<mask>", MASK), ("<|im_end|>", TURN)):
        del words[f"w{i}"]
        words[token] = i
    tokenizer = Tokenizer(WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.Fuse()
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "mask_token": "<mask>", "unk_token": "w0"}
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special, extra_special_tokens={"turn": "<|im_end|>"})
    made.chat_template = chat_template
    return made


def make_model(name: str, num_layers: int = 2) -> PreTrainedModel:
    if name == "modernbert" and version("transformers").split(".")[:2] == ["5", "0"]:
        name = "bert"  # the other's attention cannot be reached there
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "max_position_embeddings": 64}
    tokens = {"pad_token_id": 1, "bos_token_id": 2, "eos_token_id": EOS, "mask_token_id": MASK}
    own = {"modernbert": {"local_attention": 8}, "qwen3": {"head_dim": 8}}.get(name, {})
    own |= {} if "bert" in name else {"num_key_value_heads": 2}
    config = AutoConfig.for_model(name, vocab_size=VOCAB, num_hidden_layers=num_layers, **sizes, **tokens, **own)
    auto = AutoModelForMaskedLM if "bert" in name else AutoModelForCausalLM
    model = auto.from_config(config).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def make_pipeline(name: str = "llama", num_layers: int = 2, shift_logits: bool = False) -> MaskedDiffusionTextPipeline:
    scheduler = MomentScheduler(mask_token_id=MASK, masking_schedule="linear", choice_temperature=4.0)
    pipe = MaskedDiffusionTextPipeline(
        make_tokenizer(), make_model(name, num_layers), scheduler, shift_logits, eos_token_ids=[EOS, TURN]
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(params=["llama", "modernbert", "qwen2"])
def pipe(request: pytest.FixtureRequest) -> MaskedDiffusionTextPipeline:
    return make_pipeline(request.param, shift_logits=request.param == "qwen2")


def seeds(*numbers: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(n) for n in numbers]


# --- input and output -------------------------------------------------------------------------------------------------


def test_texts_chats_and_lists_of_both(pipe: MaskedDiffusionTextPipeline) -> None:
    call = {"max_new_tokens": 6, "num_inference_steps": 3}
    prompt_ids = [TURN, 7, 8, TURN]
    output = pipe(CHAT, generator=seeds(0), stop_at_eos=False, **call)
    (ids,) = output.sequences
    assert ids[:4].tolist() == prompt_ids
    assert len(ids) == 10
    assert output.texts == pipe.decode_sequences([ids[4:]])  # the answer alone
    both = pipe([CHAT, "w9 w10"], generator=seeds(0, 1), stop_at_eos=False, **call)
    assert torch.equal(both.sequences[0], ids)
    assert both.texts[0] == output.texts[0]
    assert both.texts[1].startswith("w9w10")
    assert len(pipe([CHAT, CHAT], num_return_sequences=2, **call).texts) == 4
    filled = pipe("w7 [MASK:3] w8", num_inference_steps=2).sequences[0].tolist()
    assert (filled[0], filled[-1], len(filled)) == (7, 8, 5)


def test_an_answer_ends_with_its_turn(pipe: MaskedDiffusionTextPipeline) -> None:
    def end(pipe: Any, step: int, t: Any, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        ids = given["sequences"].clone()
        ids[:, 4:8] = torch.tensor([9, 10, TURN, 11])
        return {"sequences": ids}

    call = {"max_new_tokens": 6, "num_inference_steps": 6, "callback_on_step_end": end}
    assert pipe(CHAT, **call).sequences[0].tolist() == [TURN, 7, 8, TURN, 9, 10, TURN]
    assert len(pipe(CHAT, stop_at_eos=False, **call).sequences[0]) == 10
    assert len(pipe("w7 w8 w9 w9", **call).sequences[0]) == 10  # a text goes on
    assert len(pipe("w7 w8 w9 w9", stop_at_eos=True, **call).sequences[0]) == 7


@pytest.mark.parametrize("block_length", [None, 2])
@pytest.mark.parametrize("end", [EOS, TURN])
def test_an_answer_that_ends_at_once_is_empty(end: int, block_length: int | None) -> None:
    """The prompt's own end, right before it, ends nothing."""

    def end_at_once(pipe: Any, step: int, t: Any, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        ids = given["sequences"].clone()
        ids[:, 4 if block_length is None else 0] = end
        return {"sequences": ids}

    call = {"max_new_tokens": 6, "num_inference_steps": 6, "callback_on_step_end": end_at_once}
    call |= {"block_length": block_length}
    output = make_pipeline()(CHAT, **call)
    assert output.sequences[0].tolist() == [TURN, 7, 8, TURN, end]
    assert output.texts == [""]
    text = make_pipeline()("w7 w8 w9 w10", stop_at_eos=True, **call)
    assert text.sequences[0].tolist() == [7, 8, 9, 10, end]
    assert text.texts == ["w7w8w9w10"]


def test_an_end_of_text_after_masks_ends_nothing_yet() -> None:
    """Another may still come before it: a run that is stopped keeps what stands after it."""

    def stop(pipe: Any, step: int, t: Any, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        pipe._interrupt = True
        ids = given["sequences"].clone()
        ids[:, 4:] = torch.tensor([9, MASK, TURN, 11, 12, EOS])
        return {"sequences": ids}

    call = {"max_new_tokens": 6, "num_inference_steps": 6, "callback_on_step_end": stop}
    (ids,) = make_pipeline()(CHAT, **call).sequences
    assert ids[4:].tolist() == [9, MASK, TURN, 11, 12, EOS]


def test_how_much_is_written() -> None:
    pipe = make_pipeline()
    assert len(pipe("w7", num_inference_steps=1).sequences[0]) == 64  # the model's length
    pipe.default_max_new_tokens = 10
    assert len(pipe("w7", num_inference_steps=1).sequences[0]) == 11
    assert len(pipe(num_inference_steps=1).sequences[0]) == 10
    with pytest.raises(ValueError, match=r"must fit the model's length 64, got 1 \+ 64"):
        pipe("w7", max_new_tokens=64)
    assert len(pipe("w7", max_new_tokens=100, stride=32, num_inference_steps=1).sequences[0]) == 101


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"prompt": [{"role": "user"}]}, "or a chat"),
        ({"prompt": [CHAT, 5]}, "or a chat"),
        ({"prompt": "w7", "block_length": 0}, "`block_length` must be an integer of at least 1"),
    ],
)
def test_bad_input(call: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_pipeline()(**call)


def test_parts_that_do_not_fit() -> None:
    pipe = make_pipeline()
    pipe.tokenizer.chat_template = None
    with pytest.raises(ValueError, match="a chat needs a tokenizer with a `chat_template`"):
        pipe(CHAT)
    pipe.scheduler = MomentScheduler(mask_token_id=5)
    with pytest.raises(ValueError, match="`mask_token_id` must be the model's, 4, got 5"):
        pipe("w7")
    pipe.transformer.config.mask_token_id = None
    pipe.scheduler = MomentScheduler(mask_token_id=VOCAB)
    with pytest.raises(ValueError, match=r"must be a row of the model, 0 \.\. 39, got 40"):
        pipe("w7")
    pipe = MaskedDiffusionTextPipeline(make_tokenizer(), torch.nn.Linear(2, 2), MomentScheduler(mask_token_id=4))
    with pytest.raises(ValueError, match="must be an MDLMTransformer or a model of transformers"):
        pipe("w7")


# --- blocks, guidance, partial passes ---------------------------------------------------------------------------------


def test_blocks_are_written_from_left_to_right(pipe: MaskedDiffusionTextPipeline) -> None:
    seen: list[list[int]] = []
    inner = pipe.transformer.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        seen.append((kwargs["input_ids"] == MASK).sum(-1).tolist())
        return inner(*args, **kwargs)

    pipe("w7", max_new_tokens=1)  # the probe is over
    pipe.transformer.forward = forward  # type: ignore[method-assign]
    output = pipe(["w7", "w8 w9"], max_new_tokens=10, block_length=4, num_inference_steps=2)
    assert seen == [[10, 10], [8, 8], [6, 6], [4, 4], [2, 2], [1, 1]]
    assert output.num_model_passes == [6, 6]
    assert [len(ids) for ids in output.sequences] == [11, 12]


def ids_of_calls(pipe: MaskedDiffusionTextPipeline) -> list[list[int]]:
    """Filled in by the calls that follow: what the model reads of the first row."""
    pipe("w7", max_new_tokens=1)  # the probe is over
    seen: list[list[int]] = []
    inner = pipe.transformer.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        seen.append(kwargs["input_ids"][0].tolist())
        return inner(*args, **kwargs)

    pipe.transformer.forward = forward  # type: ignore[method-assign]
    return seen


def test_a_window_holds_what_stands_before_its_first_mask() -> None:
    """32 places to fill in after 32 that are known; the last window ends with the text."""
    pipe = make_pipeline()
    seen = ids_of_calls(pipe)
    (ids,) = pipe("w7", max_new_tokens=100, stride=32, num_inference_steps=1).sequences
    written = [(0, 1), (32, 64), (37, 96)]  # where each window starts, and how far the text goes when it is read
    assert seen == [[*ids[start:end].tolist(), *[MASK] * (start + 64 - end)] for start, end in written]


def test_guidance_hides_the_prompt_and_not_what_was_written() -> None:
    pipe = make_pipeline()
    seen = ids_of_calls(pipe)
    call = {"max_new_tokens": 4, "block_length": 2, "num_inference_steps": 1, "guidance_scale": 2.0}
    a, b = pipe("w7 w8", **call).sequences[0][2:4].tolist()
    assert seen == [
        [7, 8, MASK, MASK, MASK, MASK],
        [MASK, MASK, MASK, MASK, MASK, MASK],
        [7, 8, a, b, MASK, MASK],
        [MASK, MASK, a, b, MASK, MASK],
    ]


@pytest.mark.covering(2)
@pytest.mark.parametrize("scheduler_class", [MomentScheduler, HybridScheduler, HaltonScheduler, ConfidenceScheduler])
@pytest.mark.parametrize("num_substeps", [1, 3])
def test_a_row_does_not_depend_on_its_batch(
    pipe: MaskedDiffusionTextPipeline, scheduler_class: Any, num_substeps: int
) -> None:
    pipe.scheduler = scheduler_class.from_config(pipe.scheduler.config)
    pipe.enable_cache(PartialCacheConfig(num_substeps, full_pass_threshold=0.2))
    prompts = ["w7", "w8 w9 w10 w11 w12", "w13 [MASK:3] w14", CHAT]
    for call in ({}, {"block_length": 3, "guidance_scale": 2.5}):
        call = {"num_inference_steps": 3, "max_new_tokens": 8, "stop_at_eos": False, **call}
        together = pipe(prompts, generator=seeds(0, 1, 2, 3), **call)
        for i, prompt in enumerate(prompts):
            alone = pipe(prompt if isinstance(prompt, str) else [prompt], generator=seeds(i), **call)
            assert torch.equal(alone.sequences[0], together.sequences[i])
            assert alone.num_model_passes == [together.num_model_passes[i]]
        assert not any((ids == MASK).any() for ids in together.sequences)
        assert together.sequences[1][:5].tolist() == [8, 9, 10, 11, 12]
        assert [together.sequences[2][i] for i in (0, 4)] == [13, 14]


@pytest.mark.parametrize("first_group_fraction", [None, 0.5])
def test_full_passes_of_a_row_s_groups_do_not_depend_on_its_batch(first_group_fraction: float | None) -> None:
    """One position a step is one group, however many another row draws."""
    pipe = make_pipeline()
    groups = {"num_substeps": 3, "first_group_fraction": first_group_fraction}
    pipe.enable_cache(PartialCacheConfig(**groups, full_pass_threshold=0))
    prompts = ["w7 [MASK:3] w8", "w9 [MASK:12]", "w7 [MASK:6]"]
    call = {"num_inference_steps": 3, "stop_at_eos": False}
    together = pipe(prompts, generator=seeds(0, 1, 2), **call)
    alone = [pipe(prompt, generator=seeds(i), **call) for i, prompt in enumerate(prompts)]
    assert [one.sequences[0].tolist() for one in alone] == [ids.tolist() for ids in together.sequences]
    assert [one.num_model_passes[0] for one in alone] == together.num_model_passes
    assert together.num_model_passes[0] == 3


def test_guidance_compares_with_a_hidden_prompt() -> None:
    pipe = make_pipeline()
    pipe.scheduler = ConfidenceScheduler(mask_token_id=MASK, token_temperature=0)
    ids = torch.tensor([[7, 8, 9, MASK, MASK]])
    hidden = torch.full_like(ids, MASK)
    with torch.no_grad():
        cond, uncond = pipe.denoiser(ids), pipe.denoiser(hidden)
    cond[..., MASK] = uncond[..., MASK] = 0
    for scale in (0.0, 1.0, 3.0):
        logits = uncond + scale * (cond - uncond)
        logits[..., MASK] = -torch.inf
        made = pipe(input_ids=ids, num_inference_steps=1, guidance_scale=scale).sequences[0]
        assert made.tolist() == [7, 8, 9, *logits[0, 3:].argmax(-1).tolist()]


def test_one_group_changes_no_bit(pipe: MaskedDiffusionTextPipeline) -> None:
    call = {"num_inference_steps": 4, "max_new_tokens": 12}
    plain = pipe("w7 w8", generator=seeds(0), **call).sequences[0]
    pipe.enable_cache(PartialCacheConfig(num_substeps=1))
    assert torch.equal(pipe("w7 w8", generator=seeds(0), **call).sequences[0], plain)
    pipe.enable_cache(PartialCacheConfig(num_substeps=4))
    assert not torch.equal(pipe("w7 w8", generator=seeds(0), **call).sequences[0], plain)
    pipe.disable_cache()
    assert torch.equal(pipe("w7 w8", generator=seeds(0), **call).sequences[0], plain)


@pytest.mark.parametrize("name", ["llama", "modernbert", "qwen2"])
@pytest.mark.parametrize("call", [{}, {"block_length": 5}, {"guidance_scale": 2.0}])
def test_with_one_layer_partial_passes_equal_full_ones(name: str, call: dict[str, Any]) -> None:
    """A partial pass is exact there, so that full passes in its place draw the same tokens."""
    pipe = make_pipeline(name, num_layers=1, shift_logits=name == "qwen2")
    made = []
    for threshold in (0.0, 0.1, 1.0):
        pipe.enable_cache(PartialCacheConfig(num_substeps=3, full_pass_threshold=threshold))
        output = pipe(["w7", "w8 w9 w10"], generator=seeds(0, 1), num_inference_steps=3, max_new_tokens=12, **call)
        made.append([ids.tolist() for ids in output.sequences])
    assert made[0] == made[1] == made[2]


def test_a_compiled_model_writes_the_same() -> None:
    pipe = make_pipeline()
    pipe.enable_cache(PartialCacheConfig(num_substeps=2))
    call = {"num_inference_steps": 2, "max_new_tokens": 6}
    plain = pipe(["w7 w8", "w9"], generator=seeds(0, 1), **call).sequences
    torch._dynamo.reset()
    pipe.transformer = torch.compile(pipe.transformer, backend="eager")
    pipe.enable_cache(PartialCacheConfig(num_substeps=2))
    compiled = pipe(["w7 w8", "w9"], generator=seeds(0, 1), **call).sequences
    assert [ids.tolist() for ids in compiled] == [ids.tolist() for ids in plain]


def test_a_setting_that_is_changed_after_the_first_use_holds_in_the_next() -> None:
    call: dict[str, Any] = {"max_new_tokens": 6, "num_inference_steps": 3}
    shifted, pipe = make_pipeline("qwen2", shift_logits=True), make_pipeline("qwen2")
    cache = PrefixCacheConfig()
    for one in (pipe, shifted):
        one.enable_cache(cache)
    plain, expected = (one("w7 w8", generator=seeds(0), **call).sequences[0].tolist() for one in (pipe, shifted))
    assert plain != expected
    pipe.register_to_config(shift_logits=True)
    assert pipe("w7 w8", generator=seeds(0), **call).sequences[0].tolist() == expected
    assert pipe.denoiser.cache_config is cache
    pipe.register_to_config(attention="block_causal", block_size=2)
    assert pipe.denoiser.rule.block_size == 2


def test_a_compiled_model_gives_the_logits_that_are_asked_for() -> None:
    """Where as many are asked for as there are, in other places, a hook that was skipped would not show."""
    pipe = make_pipeline("qwen2", shift_logits=True)
    call = {"num_inference_steps": 2, "max_new_tokens": 6, "block_length": 3}
    plain = [pipe(prompt, generator=seeds(0), **call).sequences[0].tolist() for prompt in ("w7 w8", None)]
    torch._dynamo.reset()
    pipe.transformer = torch.compile(pipe.transformer, backend="eager")
    compiled = [pipe(prompt, generator=seeds(0), **call).sequences[0].tolist() for prompt in ("w7 w8", None)]
    assert compiled == plain


def test_maskgit_cannot_use_it() -> None:
    pipe = make_pipeline()
    pipe.scheduler = MaskGITScheduler.from_config(pipe.scheduler.config)
    pipe.enable_cache(PartialCacheConfig())
    with pytest.raises(ValueError, match=r"got MaskGITScheduler\. Use MomentScheduler or another one that does"):
        pipe("w7")


# --- what stays behind ------------------------------------------------------------------------------------------------


def test_nothing_is_kept_after_a_call_or_an_error(
    pipe: MaskedDiffusionTextPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stopped(Exception):
        pass

    seen: list[weakref.ref] = []
    new_cache = pipe.denoiser.new_cache

    def noted() -> Any:
        seen.append(weakref.ref(cache := new_cache()))
        return cache

    def look(pipe: Any, step: int, t: Any, given: dict) -> dict:
        assert seen[-1]().store is not None
        return given

    def stop(pipe: Any, step: int, t: Any, given: dict) -> dict:
        raise Stopped

    monkeypatch.setattr(pipe.denoiser, "new_cache", noted)

    def live() -> tuple[int, int]:
        gc.collect()
        tensors = [found for found in gc.get_objects() if type(found) in (torch.Tensor, torch.nn.Parameter)]
        return len(tensors), sum(tensor.nbytes for tensor in tensors)

    pipe.enable_cache(PartialCacheConfig(num_substeps=2))
    call = {"num_inference_steps": 3, "max_new_tokens": 8, "guidance_scale": 2.0}
    own = pipe.transformer.config._attn_implementation
    pipe("w7", callback_on_step_end=look, **call)
    with pytest.raises(Stopped):
        pipe("w7", callback_on_step_end=stop, **call)
    counts = []
    for number in range(1, 13):
        pipe("w7", **call)
        if number in (2, 12):
            counts.append(live())
    assert counts[0] == counts[1]
    assert seen
    assert all(reference() is None for reference in seen)
    assert not list(pipe.denoiser._contexts)
    assert pipe.transformer.config._attn_implementation == own


def test_a_pipeline_within_another_s_callback_changes_neither(pipe: MaskedDiffusionTextPipeline) -> None:
    pipe.enable_cache(PartialCacheConfig(num_substeps=2))
    other = MaskedDiffusionTextPipeline(
        pipe.tokenizer, pipe.transformer, MomentScheduler.from_config(pipe.scheduler.config), pipe.config.shift_logits
    )
    other.enable_cache(PartialCacheConfig(num_substeps=3))
    other.set_progress_bar_config(disable=True)
    call = {"num_inference_steps": 3, "max_new_tokens": 8}
    inner = other("w9", generator=seeds(1), **call).sequences[0]
    outer = pipe("w7", generator=seeds(0), **call).sequences[0]
    found = []

    def nest(pipe: Any, step: int, t: Any, given: dict) -> dict:
        found.append(other("w9", generator=seeds(1), **call).sequences[0])
        return given

    assert torch.equal(pipe("w7", generator=seeds(0), callback_on_step_end=nest, **call).sequences[0], outer)
    assert len(found) == 3
    assert all(torch.equal(made, inner) for made in found)


# --- repositories -----------------------------------------------------------------------------------------------------


def test_saved_and_opened_again(pipe: MaskedDiffusionTextPipeline, tmp_path: Path) -> None:
    call = {"num_inference_steps": 3, "max_new_tokens": 8}
    made = pipe(CHAT, generator=seeds(0), **call)
    pipe.save_pretrained(tmp_path)
    opened = MaskedDiffusionTextPipeline.from_pretrained(tmp_path)
    opened.set_progress_bar_config(disable=True)
    again = opened(CHAT, generator=seeds(0), **call)
    assert again.texts == made.texts
    assert opened.config.eos_token_ids == [EOS, TURN]
    assert "MaskedDiffusionTextPipeline.from_pretrained" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("name", ["modernbert", "qwen3"])
def test_a_repository_of_a_model_is_opened_too(name: str, tmp_path: Path) -> None:
    """As dLLM publishes its own: a masked language model, and a decoder under a type of another name."""
    model = make_model(name)
    model.save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    if name == "qwen3":
        config = (tmp_path / "config.json").read_text().replace('"model_type": "qwen3"', '"model_type": "a2d-qwen3"')
        (tmp_path / "config.json").write_text(config.replace('"mask_token_id": 4,', ""))
    said = {"attention": "full"} if name == "qwen3" else {}
    pipe = MaskedDiffusionTextPipeline.from_pretrained(tmp_path, dtype=torch.float32, **said)
    pipe.set_progress_bar_config(disable=True)
    assert type(pipe.transformer) is type(model)
    assert pipe.mask_token_id == MASK
    assert pipe.config.eos_token_ids == [EOS, TURN]
    assert not pipe.config.shift_logits
    ids = torch.arange(7, 19)[None]
    with torch.no_grad():
        expected = MaskedDiffusionTextPipeline(pipe.tokenizer, model, pipe.scheduler).denoiser(ids)
        torch.testing.assert_close(pipe.denoiser(ids), expected)
    assert pipe(CHAT, max_new_tokens=8, num_inference_steps=4, block_length=4).num_model_passes == [8]
    scheduler = HaltonScheduler(mask_token_id=MASK)
    other = MaskedDiffusionTextPipeline.from_pretrained(tmp_path, scheduler=scheduler, **said)
    assert isinstance(other.scheduler, HaltonScheduler)


def test_a_model_without_a_mask_is_refused(tmp_path: Path) -> None:
    model = make_model("llama")
    model.config.mask_token_id = None
    model.save_pretrained(tmp_path)
    tokenizer = make_tokenizer()
    tokenizer.mask_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"must name a mask token, in `config\.json`"):
        MaskedDiffusionTextPipeline.from_pretrained(tmp_path)


# --- transformers.pipeline --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", ["bert", "a2d-qwen3"])
def test_as_a_task_of_transformers(model_type: str, tmp_path: Path) -> None:
    model = make_model(model_type.removeprefix("a2d-"))
    model.save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    # Names code of the repository, which is neither asked for nor run.
    config |= {"model_type": model_type, "auto_map": {"AutoModelForMaskedLM": "modeling.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    call = {"max_new_tokens": 5, "num_inference_steps": 2}
    said = {"model_kwargs": {"attention": "full"}} if model_type.startswith("a2d-") else {}
    from_folder = pipeline("masked-diffusion-text-generation", model=str(tmp_path), **said)
    from_model = pipeline("masked-diffusion-text-generation", model=model, tokenizer=make_tokenizer())
    for write in (from_folder, from_model):
        (made,) = write("w7 w8", **call)
        assert made["generated_text"].startswith("w7w8")
        (answer,) = write(CHAT, **call, return_full_text=False)
        ((first,), _) = write([CHAT, CHAT], **call)
        assert first["generated_text"] == [*CHAT, {"role": "assistant", "content": answer["generated_text"]}]
    with pytest.raises(ValueError, match="`tokenizer` must be given with a model that is loaded"):
        pipeline("masked-diffusion-text-generation", model=model)
