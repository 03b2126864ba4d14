"""Direct passes: the bits of the model's own pass, fewer operations, and none where anything hangs on the model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from hf_maskdiff import DualCacheConfig
from hf_maskdiff.attention_rule import BlockCausal
from hf_maskdiff.caching import PositionalCache
from hf_maskdiff.denoisers import TransformersDenoiser, transformers_pass
from hf_maskdiff.denoisers.direct_pass import direct_pass, runs_directly

VOCAB, LENGTH = 60, 24
FAMILIES = ("llama", "qwen2", "qwen3")
VIEWS = {
    "view",
    "_unsafe_view",
    "slice",
    "transpose",
    "unsqueeze",
    "expand",
    "alias",
    "select",
    "permute",
    "t",
    "detach",
    "movedim",
    "flatten",
    "unflatten",
}


def make(name: str = "llama", num_layers: int = 2, **settings: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "num_hidden_layers": num_layers, "bos_token_id": 2, "eos_token_id": 3}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **sizes | {"pad_token_id": 1} | settings))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


def tokens(seed: int = 0, length: int = LENGTH) -> Tensor:
    return torch.randint(5, VOCAB, (3, length), generator=torch.Generator().manual_seed(seed))


def assert_same(logits: Tensor, expected: Tensor) -> None:
    """To the bit, but in transformers 5.0, which gives attention a mask where there is nothing to hide."""
    if version("transformers").startswith("5.0"):
        torch.testing.assert_close(logits, expected)
    else:
        assert torch.equal(logits, expected)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of queries of every direct pass."""
    made: list[int] = []

    def counted(model: PreTrainedModel, ids: Tensor, *others: Any) -> Tensor:
        made.append(ids.shape[1])
        return direct_pass(model, ids, *others)

    monkeypatch.setattr(transformers_pass, "direct_pass", counted)
    return made


def its_own(denoiser: TransformersDenoiser) -> TransformersDenoiser:
    """The same model without direct passes."""
    other = TransformersDenoiser(denoiser.model, denoiser.shift_logits, denoiser.rule)
    other._probed(torch.device("cpu"), LENGTH, needs_store=True).direct = False
    return other


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("in_blocks", [False, True])
@pytest.mark.parametrize("shift", [False, True])
def test_the_bits_of_the_model_s_own_passes(name: str, in_blocks: bool, shift: bool, calls: list[int]) -> None:
    direct = TransformersDenoiser(make(name), shift, BlockCausal(8) if in_blocks else None)
    own = its_own(direct)
    padded = torch.arange(LENGTH) < torch.tensor([[LENGTH], [LENGTH - 3], [LENGTH - 9]])
    offsets = torch.tensor([0, 3, 5]) if in_blocks else None
    span, anywhere = (8, 16), torch.stack([torch.randperm(LENGTH - 9)[:5] for _ in range(3)])
    some_kept = torch.where(torch.arange(5) < 3, anywhere, ~anywhere)
    with torch.no_grad():
        direct(tokens(), cache=direct.new_cache())  # the probe
        for mask in (None, padded):
            results = []
            for denoiser in (direct, own):
                cache, before = denoiser.new_cache(), len(calls)
                full = denoiser(tokens(), attention_mask=mask, cache=cache, offsets=offsets)
                range_of_all = torch.arange(*span).expand(3, -1)
                block = denoiser(tokens(1, 8), positions=range_of_all, cache=cache, span=span)
                others = denoiser(tokens(2, 5), positions=some_kept, cache=cache)
                again = denoiser(tokens(3), attention_mask=mask, offsets=offsets)
                results.append([full, block, others, again])
                assert len(calls) - before == (4 if denoiser is direct else 0)
            for mine, expected in zip(*results, strict=True):
                real = torch.ones_like(mine, dtype=torch.bool)
                if mask is not None and mine.shape[1] == LENGTH:
                    real &= mask[..., None]
                assert_same(mine[real], expected[real])


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("count", [1, 3, 6, LENGTH])  # 3 x 3 rows are filled up to 16 on a CPU, the others are not
def test_only_wanted_rows_are_computed_to_the_end(name: str, count: int, calls: list[int]) -> None:
    denoiser = TransformersDenoiser(make(name), rule=BlockCausal(8))
    wanted = torch.stack([torch.randperm(LENGTH, generator=torch.Generator().manual_seed(n))[:count] for n in range(3)])
    with torch.no_grad():
        full = denoiser(tokens())
        sizes: list[int] = []
        handle = denoiser.model.model.layers[-1].mlp.register_forward_hook(lambda *of: sizes.append(of[2].shape[1]))
        some = denoiser(tokens(), logits_at=wanted)
        handle.remove()
    assert some.shape == (3, count, VOCAB)
    torch.testing.assert_close(some, full[torch.arange(3)[:, None], wanted])
    assert sizes == [6 if count == 3 else count]
    assert len(calls) >= 2


def test_a_range_is_written_as_positions_are() -> None:
    for ranges in ([(4, 9), (0, 3)], [(10, LENGTH)]):
        stores = [PositionalCache(), PositionalCache()]
        for store in stores:
            store.at(None).update(torch.zeros(2, 2, LENGTH, 4), torch.zeros(2, 2, LENGTH, 4), 0)
        for start, stop in ranges:
            positions = torch.arange(start, stop).expand(2, -1)
            key, value = torch.randn(2, 2, 2, stop - start, 4)
            one = stores[0].at(positions, (start, stop)).update(key, value, 0)
            other = stores[1].at(positions).update(key, value, 0)
            assert all(torch.equal(mine, expected) for mine, expected in zip(one, other, strict=True))


def test_what_a_pass_leaves_behind_may_be_used_anywhere() -> None:
    """Its work is done in inference mode, but nothing that lasts is of that mode."""
    denoiser = TransformersDenoiser(make())
    span, head = (8, 16), denoiser.model.lm_head
    positions = torch.arange(*span).expand(3, -1)
    with torch.no_grad():
        denoiser(tokens(), cache=denoiser.new_cache())  # the probe
        inside: list[bool] = []
        handle = denoiser.model.model.layers[0].mlp.register_forward_hook(
            lambda *of: inside.append(of[2].is_inference())
        )
        cache = denoiser.new_cache()
        full = denoiser(tokens(), cache=cache)
        cache.put(torch.tensor([1]), cache.take(torch.tensor([1])))  # writes into what the pass has stored
        block = denoiser(tokens(1, 8), positions=positions, cache=cache, span=span)
    kept = [states for layer in cache.store.layers for states in (layer.keys, layer.values)]
    assert inside == [True, True]
    assert not any(made.is_inference() for made in (full, block, *kept))
    (head(torch.ones(1, 32, requires_grad=True)).sum() * full.mean()).backward()
    with torch.enable_grad():
        denoiser(tokens()).sum().backward()
    handle.remove()
    assert inside[2:] == [False]
    assert denoiser.model.model.embed_tokens.weight.grad is not None


@pytest.mark.parametrize("rope_type", ["dynamic", "longrope"])
def test_frequencies_of_a_length_that_a_pass_has_kept_are_for_training_too(rope_type: str) -> None:
    """Distributed training writes into every buffer, which it must not if a pass has made it in inference mode."""
    rope: dict[str, Any] = {"rope_type": rope_type, "rope_theta": 10000.0, "factor": 2.0}
    if rope_type == "longrope":
        rope |= {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "original_max_position_embeddings": 16}
    model = make(max_position_embeddings=32 if rope_type == "longrope" else 16, rope_parameters=rope)
    rotary = model.model.rotary_emb
    before = rotary.inv_freq.clone()
    assert runs_directly(model)
    with torch.no_grad():
        made = direct_pass(model, tokens(), torch.arange(LENGTH)[None])
    assert not torch.equal(rotary.inv_freq, before)
    assert not any(value.is_inference() for value in vars(rotary).values() if isinstance(value, Tensor))
    for buffer in model.buffers():
        buffer.copy_(buffer.clone())
    everything = {"attention_mask": torch.ones(3, 1, LENGTH, LENGTH, dtype=torch.bool)}
    with torch.no_grad():
        torch.testing.assert_close(made, model(tokens(), **everything).logits)


class Operations(TorchDispatchMode):
    """Counts the operations that compute something."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[function._schema.name.removeprefix("aten::")] += 1
        return function(*args, **(kwargs or {}))

    @property
    def computing(self) -> int:
        return sum(count for name, count in self.counts.items() if name not in VIEWS)


def test_a_cached_pass_issues_two_operations_a_layer_more_than_a_plain_one() -> None:
    def operations(num_layers: int) -> tuple[int, int, int]:
        denoiser = TransformersDenoiser(make(num_layers=num_layers, num_key_value_heads=4))
        denoiser.enable_cache(DualCacheConfig())
        cache, found, span = denoiser.new_cache(), [], (8, 16)
        with torch.no_grad():
            denoiser(tokens(), cache=cache)
            positions = torch.arange(*span).expand(3, -1)
            of_block = {"positions": positions, "cache": cache, "span": span}
            own = its_own(denoiser)
            denoiser.disable_cache()
            for run in (lambda: denoiser(tokens()), lambda: denoiser(tokens(1, 8), **of_block), lambda: own(tokens())):
                with Operations() as counted:
                    run()
                found.append(counted.computing)
        return found[0], found[1], found[2]

    few, more = operations(2), operations(5)
    plain, cached, own = ((later - before) / 3 for before, later in zip(few, more, strict=True))
    assert cached == plain + 2  # the keys, and the values, into the store
    assert plain < own


def hook(model: PreTrainedModel) -> Callable[[], None]:
    return model.model.layers[1].register_forward_hook(lambda *of: None).remove


def hook_before(model: PreTrainedModel) -> Callable[[], None]:
    return model.model.layers[0].self_attn.register_forward_pre_hook(lambda *of: None).remove


def hook_on_all_modules(model: PreTrainedModel) -> Callable[[], None]:
    return nn.modules.module.register_module_forward_hook(lambda *of: None).remove


def own_forward(model: PreTrainedModel) -> Callable[[], None]:
    """As offloading does it."""
    layer = model.model.layers[0]
    layer.forward = layer.forward
    return lambda: delattr(layer, "forward")


def another_class(model: PreTrainedModel) -> Callable[[], None]:
    """As sharding does it."""
    layer, known = model.model.layers[0], type(model.model.layers[0])
    layer.__class__ = type("Sharded", (known,), {})

    def back() -> None:
        layer.__class__ = known

    return back


def compiled(model: PreTrainedModel) -> Callable[[], None]:
    layer = model.model.layers[0]
    layer._compiled_call_impl = layer._call_impl
    return lambda: delattr(layer, "_compiled_call_impl")


def training(model: PreTrainedModel) -> Callable[[], None]:
    model.train()
    return model.eval


def eager(model: PreTrainedModel) -> Callable[[], None]:
    model.set_attn_implementation("eager")
    return lambda: model.set_attn_implementation("sdpa")


@pytest.mark.parametrize(
    "hang", [hook, hook_before, hook_on_all_modules, own_forward, another_class, compiled, training, eager]
)
def test_none_where_a_forward_must_not_be_skipped(hang: Callable[..., Any]) -> None:
    model = make()
    assert runs_directly(model)
    back = hang(model)
    assert not runs_directly(model)
    back()
    assert runs_directly(model)


@pytest.mark.parametrize("name", ["gemma", "mistral", "olmo2"])
def test_none_of_other_models(name: str) -> None:
    assert not runs_directly(make(name))


def test_none_within_a_window() -> None:
    assert not runs_directly(make("qwen2", sliding_window=4, use_sliding_window=True, max_window_layers=0))


def test_a_hook_in_the_middle_of_a_call_is_run_and_the_store_stays(calls: list[int]) -> None:
    denoiser = TransformersDenoiser(make())
    cache, span, seen = denoiser.new_cache(), (4, 12), []
    block = {"positions": torch.arange(*span).expand(3, -1), "cache": cache, "span": span}
    with torch.no_grad():
        denoiser(tokens(), cache=cache)
        before = denoiser(tokens(1, 8), **block)
        made = len(calls)
        denoiser.model.model.layers[0].register_forward_hook(lambda *of: seen.append(of[0]))
        after = denoiser(tokens(1, 8), **block)
    assert len(seen) == 1
    assert len(calls) == made
    assert_same(before, after)


class Adapted(nn.Module):
    """A projection with something beside it, as an adapter does it."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base

    def forward(self, states: Tensor) -> Tensor:
        return self.base(states) * 1.5


def test_adapters_and_hooks_within_layers_take_part(calls: list[int]) -> None:
    model, hooked = make(), []
    plain = TransformersDenoiser(model)(tokens())
    model.model.layers[0].self_attn.q_proj = Adapted(model.model.layers[0].self_attn.q_proj)
    for part in (model.model.layers[1].mlp, model.model.layers[1].input_layernorm):
        part.register_forward_hook(lambda *of: hooked.append(of[0]))
    denoiser = TransformersDenoiser(model)
    adapted = denoiser(tokens())
    made = len(calls)
    assert made
    hooked.clear()
    assert torch.equal(denoiser(tokens()), adapted)
    assert len(hooked) == 2
    assert len(calls) == made + 1
    assert_same(its_own(denoiser)(tokens()), adapted)
    assert not torch.allclose(adapted, plain)


def test_gradients_pass_through() -> None:
    model = make()
    denoiser = TransformersDenoiser(model)
    found = []
    for run in (denoiser, its_own(denoiser)):
        model.zero_grad()
        run(tokens()).logsumexp(-1).sum().backward()
        found.append([parameter.grad.clone() for parameter in model.parameters()])
    for mine, expected in zip(*found, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-3, atol=1e-3)


def test_none_where_a_class_has_another_forward_or_a_part_is_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(attention_dropout=0.5)
    parts = [type(part) for part in (model, model.model, model.model.layers[0], model.model.layers[0].self_attn)]
    for part in parts:
        with monkeypatch.context() as patch:
            own = part.forward
            patch.setattr(part, "forward", lambda self, *given, own=own, **named: own(self, *given, **named))
            assert not runs_directly(model)
    assert runs_directly(model)
    model.model.layers[1].self_attn.train()
    assert not runs_directly(model)


def test_a_model_in_training_is_refused_after_the_first_use_too() -> None:
    denoiser = TransformersDenoiser(make())
    with torch.no_grad():
        cache = denoiser.new_cache()
        denoiser(tokens(), cache=cache)
        denoiser.model.train()
        for given in ({}, {"cache": cache, "positions": torch.arange(LENGTH).expand(3, -1)}):
            with pytest.raises(ValueError, match="must be in evaluation mode, got LlamaForCausalLM in training"):
                denoiser(tokens(), **given)
