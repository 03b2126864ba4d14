"""Models of transformers as denoisers: seen in both directions, with partial passes exact about what is stale."""

from __future__ import annotations

import gc
import sys
import weakref
from importlib.metadata import version
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    PreTrainedModel,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from hf_maskdiff import PartialCacheConfig
from hf_maskdiff.denoisers.shifted_logits import with_predecessors
from hf_maskdiff.denoisers.transformers_pass import accepted_arguments
from hf_maskdiff.models import TransformersDenoiser

VOCAB, LENGTH, MASK = 40, 14, 4
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 1,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "unk_token_id": 0,
    "mask_token_id": MASK,
}
GROUPED = {"num_key_value_heads": 2}
DECODERS: dict[str, dict[str, Any]] = {
    "llama": GROUPED,
    "qwen2": GROUPED,
    "qwen3": {**GROUPED, "head_dim": 8},
    "mistral": {**GROUPED, "sliding_window": 3},
    "gemma": {**GROUPED, "head_dim": 8},
    "gemma2": {**GROUPED, "head_dim": 8, "sliding_window": 3},
    "gemma3_text": {**GROUPED, "head_dim": 8, "sliding_window": 3},
    "phi3": GROUPED,
    "olmo2": GROUPED,
    "granite": GROUPED,
    "gpt_neox": {},
    "cohere": GROUPED,
    "smollm3": GROUPED,
    "stablelm": GROUPED,
    "modernbert-decoder": {"local_attention": 6},
}
ENCODERS: dict[str, dict[str, Any]] = {
    "bert": {},
    "roberta": {},
    "electra": {"embedding_size": 16},
    "eurobert": GROUPED,
    "modernbert": {"local_attention": 6, "global_attn_every_n_layers": 2},
    "esm": {"position_embedding_type": "rotary", "token_dropout": False},
    "distilbert": {"dim": 32, "hidden_dim": 48, "n_heads": 4},
    "albert": {"embedding_size": 16},
    "nomic_bert": {},
}
ALWAYS = ("llama", "stablelm", "mistral", "roberta", "modernbert", "albert")
# transformers has no such attention: Gemma2 with sdpa; eager ModernBERT decoders fail without a causal mask.
NOT_THERE = {("gemma2", "sdpa"), ("modernbert-decoder", "eager")}
# What transformers of the oldest supported version keeps to itself: these it lets see only what stands before them, or
# it computes their attention in a way of their own. They are refused there, by name.
REFUSED_BY_OLD = {"mistral", "gemma2", "gemma3_text", "modernbert-decoder", "modernbert", "esm"}
IS_OLD = version("transformers").split(".")[:2] == ["5", "0"]
CASES = [
    pytest.param(name, attention, marks=() if name in ALWAYS else pytest.mark.exhaustive, id=f"{name}-{attention}")
    for name in (*DECODERS, *ENCODERS)
    for attention in ("sdpa", "eager")
    if (name, attention) not in NOT_THERE
]


def make(name: str, attention: str = "sdpa", num_layers: int = 2, **settings: Any) -> PreTrainedModel:
    if IS_OLD and name in REFUSED_BY_OLD:
        pytest.skip(f"transformers 5.0 has no way to {name}'s attention")
    torch.manual_seed(0)
    auto = AutoModelForCausalLM if name in DECODERS else AutoModelForMaskedLM
    depth = {"n_layers" if name == "distilbert" else "num_hidden_layers": num_layers}
    try:
        config = AutoConfig.for_model(
            name, **{**SIZES, **depth, **DECODERS.get(name, {}), **ENCODERS.get(name, {}), **settings}
        )
    except (KeyError, ValueError):
        pytest.skip(f"this transformers has no {name}")
    model = auto.from_config(config, attn_implementation=attention).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.3)
    return model


def cached(model: PreTrainedModel, shift_logits: bool = False, num_substeps: int = 2) -> TransformersDenoiser:
    denoiser = TransformersDenoiser(model, shift_logits)
    denoiser.enable_cache(PartialCacheConfig(num_substeps))
    return denoiser


def tokens(seed: int, length: int = LENGTH) -> Tensor:
    return torch.randint(5, VOCAB, (3, length), generator=torch.Generator().manual_seed(seed))


def some_positions(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.stack([torch.randperm(LENGTH - 4, generator=generator)[:count] for _ in range(3)])


def full_pass_with_stale(
    model: PreTrainedModel, denoiser: TransformersDenoiser, old: Tensor, new: Tensor, at: Tensor, mask: Tensor
) -> Tensor:
    """Logits of a full-length pass over `new`, where all keys and values outside `at` are those of `old`."""
    own = model.config._attn_implementation
    kept: list[tuple[Tensor, Tensor]] = []
    step = {"substitutes": False, "layer": 0}
    fresh = torch.zeros(old.shape, dtype=torch.bool).scatter(1, at, True)[:, None, :, None]

    def attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any
    ) -> Any:
        if step["substitutes"]:
            stale_key, stale_value = kept[step["layer"]]
            key, value = torch.where(fresh, key, stale_key), torch.where(fresh, value, stale_value)
            step["layer"] += 1
        else:
            kept.append((key, value))
        eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
        return ALL_ATTENTION_FUNCTIONS.get(own, eager)(module, query, key, value, attention_mask, **kwargs)

    AttentionInterface.register("stale", attention)
    AttentionMaskInterface.register("stale", AttentionMaskInterface()[own])
    abilities = denoiser._probed(old.device, LENGTH, needs_store=True)
    places = torch.arange(LENGTH).expand_as(old)
    model.set_attn_implementation("stale")
    inputs = {"position_ids": places + abilities.first_position} if "position_ids" in accepted_arguments(model) else {}
    try:
        for ids in (old, new):
            # The arguments that the probe found, made for the implementation that is really run.
            model.config._attn_implementation_internal = own
            given = abilities.attention(model, mask)
            model.config._attn_implementation_internal = "stale"
            logits = model(input_ids=ids, **inputs, **given).logits
            step["substitutes"] = True
    finally:
        model.set_attn_implementation(own)
    return logits


@pytest.mark.parametrize(("name", "attention"), CASES)
@torch.no_grad()
def test_partial_passes(name: str, attention: str) -> None:
    """With padding, positions in any order, and positions that are not to be written."""
    model = make(name, attention, num_layers=3)
    plain, denoiser = TransformersDenoiser(model), cached(model)
    old, new, rows = tokens(0), tokens(1), torch.arange(3)[:, None]
    mask = torch.arange(LENGTH) < torch.tensor([[LENGTH], [LENGTH - 2], [LENGTH - 4]])
    close = {"atol": 2e-4, "rtol": 2e-4}

    expected = plain(old, attention_mask=mask)
    torch.testing.assert_close(denoiser(old, attention_mask=mask)[mask], expected[mask], **close)
    at = some_positions(5)
    unchanged = denoiser(old.gather(1, at), positions=at)
    torch.testing.assert_close(unchanged, expected[rows, at], **close)

    changed = old.scatter(1, at, new.gather(1, at))
    stale = full_pass_with_stale(model, denoiser, old, changed, at, mask)
    torch.testing.assert_close(denoiser(changed.gather(1, at), positions=at), stale[rows, at], **close)
    assert (stale[rows, at] - plain(changed, attention_mask=mask)[rows, at]).abs().max() > 1e-2  # three layers

    denoiser(old, attention_mask=mask)
    written = torch.where(torch.arange(5) < torch.tensor([[5], [2], [3]]), at, ~at)
    partly = old.scatter(1, at, torch.where(written >= 0, new.gather(1, at), old.gather(1, at)))
    denoiser(new.gather(1, at), positions=written)
    again = denoiser(partly.gather(1, at), positions=written)
    stale = full_pass_with_stale(model, denoiser, old, partly, at, mask)
    # A row that is written in full: elsewhere the reference renews keys that stay here.
    torch.testing.assert_close(again[:1], stale[rows, at][:1], **close)

    every = torch.stack([torch.randperm(LENGTH, generator=torch.Generator().manual_seed(i)) for i in range(3)])
    denoiser(old)
    all_new = denoiser(new.gather(1, every), positions=every)
    torch.testing.assert_close(all_new, plain(new)[rows, every], **close)


@pytest.mark.parametrize(("name", "attention"), CASES)
@torch.no_grad()
def test_one_layer_is_exact(name: str, attention: str) -> None:
    model = make(name, attention, num_layers=1)
    denoiser = cached(model)
    old, new, at = tokens(0), tokens(1), some_positions(4)
    denoiser(old)
    changed = old.scatter(1, at, new.gather(1, at))
    expected = TransformersDenoiser(model)(changed)[torch.arange(3)[:, None], at]
    torch.testing.assert_close(denoiser(changed.gather(1, at), positions=at), expected, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("name", ALWAYS)
@torch.no_grad()
def test_every_position_sees_all_real_ones_and_no_padding(name: str) -> None:
    denoiser = TransformersDenoiser(make(name, num_layers=6))  # six windows wide
    ids, mask = tokens(0), torch.arange(LENGTH) < torch.tensor([[LENGTH], [LENGTH - 2], [LENGTH - 4]])
    logits = denoiser(ids, attention_mask=mask)
    for place in range(LENGTH):
        other = ids.clone()
        other[:, place] = 5 + (ids[:, place] - 4) % (VOCAB - 5)
        moved = (denoiser(other, attention_mask=mask) - logits).abs().amax(-1) > 0
        for row in range(3):
            seen = moved[row, mask[row]]
            assert bool(seen.all()) if mask[row, place] else not bool(seen.any())


@torch.no_grad()
def test_without_partial_passes_it_is_the_model_itself() -> None:
    model, ids = make("bert"), tokens(0)
    once = TransformersDenoiser(model)
    once.enable_cache(PartialCacheConfig(num_substeps=1))
    assert torch.equal(once(ids), model(ids, position_ids=torch.arange(LENGTH).expand_as(ids)).logits)
    assert not list(once._contexts)


@torch.no_grad()
def test_only_wanted_rows_reach_the_head() -> None:
    model = make("llama")
    denoiser, ids = TransformersDenoiser(model), tokens(0)
    wanted, sizes = some_positions(2), []
    model.lm_head.register_forward_hook(lambda head, inputs, output: sizes.append(output.shape[1]))
    full = denoiser(ids)
    torch.testing.assert_close(denoiser(ids, logits_at=wanted), full[torch.arange(3)[:, None], wanted])
    assert sizes[-2:] == [LENGTH, 2]


# --- models whose row i - 1 predicts position i -----------------------------------------------------------------------


@torch.no_grad()
def test_shifted_logits_belong_to_the_row_before() -> None:
    model, ids = make("qwen2"), tokens(0)
    rows = TransformersDenoiser(model)(ids)
    shifted = TransformersDenoiser(model, shift_logits=True)(ids)
    torch.testing.assert_close(shifted, torch.cat([rows[:, :1], rows[:, :-1]], 1))


@pytest.mark.parametrize("count", [1, 4, 10])
@torch.no_grad()
def test_shifted_partial_passes_run_the_rows_before_too(count: int) -> None:
    model = make("qwen2", num_layers=1)
    denoiser, plain = cached(model, shift_logits=True), TransformersDenoiser(model, shift_logits=True)
    old, new, rows = tokens(0), tokens(1), torch.arange(3)[:, None]
    at = some_positions(count)
    denoiser(old)
    changed = old.scatter(1, at, new.gather(1, at))
    for _ in range(2):  # the second time with what the first has written
        partial = denoiser(changed.gather(1, at), positions=at)
        torch.testing.assert_close(partial, plain(changed)[rows, at], atol=2e-4, rtol=2e-4)
    if count > 1:
        first = torch.where(torch.arange(count) < 2, at, ~at)
        denoiser(old)
        partly = old.scatter(1, at[:, :2], new.gather(1, at[:, :2]))
        partial = denoiser(partly.gather(1, at), positions=first)
        torch.testing.assert_close(partial[:, :2], plain(partly)[rows, at[:, :2]], atol=2e-4, rtol=2e-4)


def test_queries_with_predecessors() -> None:
    sequence = torch.arange(8).repeat(2, 1)
    new, at = torch.tensor([[50, 30, 20], [70, 10, 40]]), torch.tensor([[5, 3, 2], [0, 7, ~4]])
    written, queries, index = with_predecessors(sequence, new, at)
    assert written.tolist() == [[0, 1, 20, 30, 4, 50, 6, 7], [70, 1, 2, 3, 4, 5, 6, 10]]
    assert [sorted(q for q in row if q >= 0) for row in queries.tolist()] == [[1, 2, 3, 4, 5], [0, 6, 7]]
    assert queries.shape == (2, 6)
    places = torch.where(queries < 0, ~queries, queries)
    assert all(len(set(row)) == 6 for row in places.tolist())
    assert places.gather(1, index)[0].tolist() == [4, 2, 1]
    assert places.gather(1, index)[1, :2].tolist() == [0, 6]


# --- the probe --------------------------------------------------------------------------------------------------------


def test_models_without_a_way_are_refused_by_name() -> None:
    ids = tokens(0)
    with pytest.raises(ValueError, match=r"DebertaV2ForMaskedLM does not give them .*0 of 2 layers were seen"):
        cached(make("deberta-v2", "eager"))(ids)
    with pytest.raises(ValueError, match=r"must be bidirectional, got Mamba"):
        TransformersDenoiser(make_mamba())(ids)
    with pytest.raises(ValueError, match=r"in evaluation mode, got BertForMaskedLM in training"):
        TransformersDenoiser(make("bert").train())(ids)
    with pytest.raises(ValueError, match=r"takes a PartialCacheConfig, .* got str"):
        TransformersDenoiser(make("bert")).enable_cache("fast")  # type: ignore[arg-type]
    TransformersDenoiser(make("deberta-v2", "eager"))(ids)  # without partial passes

    if IS_OLD:
        return
    with pytest.raises(ValueError, match=r"EsmForMaskedLM does not give them .*unchanged tokens do not repeat"):
        cached(make("esm", token_dropout=True))(ids)  # it scales its input by the share of masks among the queries


def make_mamba() -> PreTrainedModel:
    config = AutoConfig.for_model("mamba", vocab_size=VOCAB, hidden_size=16, num_hidden_layers=1, state_size=4)
    return AutoModelForCausalLM.from_config(config).eval()


@torch.no_grad()
def test_a_window_is_probed_once_a_sequence_is_longer_than_it() -> None:
    denoiser = cached(make("modernbert", local_attention=32))
    denoiser(tokens(0))
    assert denoiser._abilities.probed_lengths == {12}
    denoiser(tokens(0, length=30))
    assert denoiser._abilities.probed_lengths == {12, 28}


@torch.no_grad()
def test_another_attention_is_probed_anew() -> None:
    model = make("stablelm", "sdpa")
    denoiser = cached(model)
    first = denoiser(tokens(0))
    model.set_attn_implementation("eager")
    torch.testing.assert_close(denoiser(tokens(0)), first, atol=2e-4, rtol=2e-4)
    assert denoiser._abilities.implementation == "eager"


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
@torch.no_grad()
def test_frequencies_that_depend_on_other_texts_or_passes_are_refused(kind: str) -> None:
    """Without the refusal a short text is another one beside a long one, and a partial pass of old tokens differs."""
    factors = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "original_max_position_embeddings": 16}
    rope = {"rope_type": kind, "rope_theta": 1e4, "factor": 4.0, **(factors if kind == "longrope" else {})}
    sizes = {"rope_parameters": rope, "max_position_embeddings": 64 if kind == "longrope" else 16}
    denoiser = TransformersDenoiser(make("llama", **sizes))
    cache, length = denoiser.new_cache(), torch.tensor([[LENGTH], [LENGTH], [9]])
    mixed = denoiser(tokens(0), attention_mask=torch.arange(LENGTH) < length)
    torch.testing.assert_close(mixed[2:, :9], denoiser(tokens(0)[2:, :9]), atol=2e-4, rtol=2e-4)
    full = denoiser(tokens(0), cache=cache)
    torch.testing.assert_close(
        denoiser(tokens(0)[:, :5], positions=torch.arange(5).expand(3, -1), cache=cache), full[:, :5]
    )
    long, padded = tokens(0, length=24), torch.arange(24) < torch.tensor([[24], [24], [9]])
    with pytest.raises(ValueError, match="frequencies change beyond 16 tokens"):
        denoiser(long, cache=denoiser.new_cache())
    with pytest.raises(ValueError, match="frequencies change beyond 16 tokens"):
        denoiser(long, attention_mask=padded)
    if kind == "longrope":
        padded = torch.arange(24) < torch.tensor([[24], [24], [19]])
        mixed = denoiser(long, attention_mask=padded)
        torch.testing.assert_close(mixed[2:, :19], denoiser(long[2:, :19]), atol=2e-4, rtol=2e-4)
    with pytest.raises(ValueError, match="frequencies change beyond 16 tokens"):
        denoiser(tokens(0)[:, :5], positions=torch.arange(5).expand(3, -1), cache=cache, length=24)


# --- what stays behind ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "modernbert"])
@torch.no_grad()
def test_contexts_do_not_mix_and_nothing_is_kept(name: str) -> None:
    model = make(name, num_layers=1)
    denoiser, plain = cached(model), TransformersDenoiser(model)
    at, rows = some_positions(3), torch.arange(3)[:, None]
    own = model.config._attn_implementation
    for context, seed in (("cond", 0), ("uncond", 1)):
        with denoiser.cache_context(context):
            denoiser(tokens(seed))
    for context, seed in (("cond", 0), ("uncond", 1)):
        changed = tokens(seed).scatter(1, at, tokens(2).gather(1, at))
        with denoiser.cache_context(context):
            partial = denoiser(changed.gather(1, at), positions=at)
        torch.testing.assert_close(partial, plain(changed)[rows, at], atol=2e-4, rtol=2e-4)
    stores = [weakref.ref(context.store) for context in denoiser._contexts]
    denoiser._reset_stateful_cache()
    gc.collect()
    assert len(stores) == 2
    assert all(store() is None for store in stores)
    assert model.config._attn_implementation == own
    with pytest.raises(ValueError, match=r"need a full pass over the same 3 rows before them"):
        denoiser(tokens(0).gather(1, at), positions=at)
