"""One pass of a Llama-like decoder by its own layers, without the work that transformers does around them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama import modeling_llama as llama
from transformers.models.qwen2 import modeling_qwen2 as qwen2
from transformers.models.qwen3 import modeling_qwen3 as qwen3

from hf_maskdiff.denoisers.attention_arguments import smallest_window

# (new keys, new values, layer) -> the keys and values to attend to, all (batch_size, heads, length, head_dim)
Keep = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]

# The classes whose work a direct pass does itself: model, inner model, layer and attention. LLaDA is opened as a Llama,
# Dream and Fast-dLLM v2 as a Qwen2, SDAR as a Qwen3. All other parts are called as the modules that they are.
_FAMILIES: dict[type, tuple[type, type, type]] = {
    llama.LlamaForCausalLM: (llama.LlamaModel, llama.LlamaDecoderLayer, llama.LlamaAttention),
    qwen2.Qwen2ForCausalLM: (qwen2.Qwen2Model, qwen2.Qwen2DecoderLayer, qwen2.Qwen2Attention),
    qwen3.Qwen3ForCausalLM: (qwen3.Qwen3Model, qwen3.Qwen3DecoderLayer, qwen3.Qwen3Attention),
}
_NORMS = {llama.LlamaRMSNorm, qwen2.Qwen2RMSNorm, qwen3.Qwen3RMSNorm}
# Their `forward` as transformers has it: some packages put another into the class, which then is not skipped.
_FORWARDS: dict[type, Any] = {
    known: known.forward for known in (*_NORMS, *_FAMILIES, *(part for parts in _FAMILIES.values() for part in parts))
}
# What torch calls beside a module's `forward`; it has such of single modules, and of all of them.
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
# On a CPU, MKL takes twice as long for a float32 product with 7 to 15 rows as for one with 16.
_SLOW_ROWS = range(7, 16)


def runs_directly(model: PreTrainedModel) -> bool:
    """Whether `direct_pass` does all that the model's own `forward` would do.

    It skips the `forward` of the model, of its layers and of their attention, so these must be of classes that are
    known, in evaluation, and without anything hung on them: hooks, another `forward` (as offloading sets, or of the
    whole class), compilation. Projections and the rest are called as modules; adapters, quantised layers and hooks
    there take part.
    """
    if model.training or type(model) not in _FAMILIES or model.config._attn_implementation != "sdpa":
        return False
    if smallest_window(model.config) is not None or any(getattr(torch_module, f"_global{name}") for name in _HOOKS):
        return False
    return all(type(module) is known and _is_plain(module) for module, known in _skipped(model))


def _skipped(model: PreTrainedModel) -> Iterator[tuple[nn.Module, type]]:
    """The modules whose `forward` a direct pass does not call, and what they must be."""
    inner, layer_class, attention_class = _FAMILIES[type(model)]
    yield model, type(model)
    yield model.model, inner
    for layer in model.model.layers:
        yield layer, layer_class
        yield layer.self_attn, attention_class


def _is_plain(module: nn.Module) -> bool:
    own = vars(module)
    if own["training"] or type(module).forward is not _FORWARDS[type(module)]:
        return False
    for name in _HOOKS:  # asked of every layer, its attention and its norms in each pass: `any` takes twice as long
        if own[name]:
            return False
    return "forward" not in own and not own.get("_compiled_call_impl")


def direct_pass(
    model: PreTrainedModel,
    input_ids: Tensor,
    places: Tensor,
    seen: Tensor | None = None,
    keep: Keep | None = None,
    rows: Tensor | None = None,
) -> Tensor:
    """Logits `(batch_size, n, vocab_size)` of one pass: those of the model's own in which every query sees `seen`.

    In the last layer only the queries whose logits are wanted are computed to the end. Where no gradients are taken,
    all but the head runs in inference mode: what a hook sees there must be cloned to enter a graph.

    Args:
        model: one that `runs_directly`.
        input_ids: tokens of the queries, int64 `(batch_size, num_queries)`.
        places: their position ids, int64 `(batch_size or 1, num_queries)`.
        seen: the keys that each query sees, bool `(batch_size or 1, 1, num_queries or 1, num_keys)`; None for all.
        keep: stores the new keys and values of a layer, and returns those to attend to; None for the new ones alone.
        rows: the queries whose logits are wanted, int64 `(batch_size, n)`; None for all.
    """
    # Without the bookkeeping for gradients, each of its many small operations takes less time.
    with torch.inference_mode(not torch.is_grad_enabled()):
        wanted = None if rows is None else _filled(rows, model.dtype)
        states = _hidden_states(model, input_ids, places, seen, keep, wanted)
    logits = model.lm_head(states)
    return logits if rows is None or wanted is rows else logits[:, : rows.shape[1]]


def _hidden_states(
    model: PreTrainedModel,
    input_ids: Tensor,
    places: Tensor,
    seen: Tensor | None,
    keep: Keep | None,
    wanted: Tensor | None,
) -> Tensor:
    """What the head makes logits of, `(batch_size, n, hidden_size)`; arguments as of `direct_pass`."""
    inner, attend = model.model, ALL_ATTENTION_FUNCTIONS["sdpa"]
    hidden = inner.embed_tokens(input_ids)
    with torch.inference_mode(False):  # some make frequencies of a length and keep them, which training reads later
        tables = inner.rotary_emb(hidden, position_ids=places)
    cos, sin = (table[:, None] for table in tables)
    sin = torch.cat([-sin[..., : sin.shape[-1] // 2], sin[..., sin.shape[-1] // 2 :]], -1)
    layers = inner.layers[: model.config.num_hidden_layers]
    for number, layer in enumerate(layers):
        attention, normed = layer.self_attn, _normed(layer.input_layernorm, hidden)
        key = _rotated(_in_heads(attention, "k", normed), cos, sin)
        value = _in_heads(attention, "v", normed)
        if keep is not None:
            key, value = keep(key, value, number)
        if wanted is not None and number == len(layers) - 1:
            hidden, normed = _of_rows(hidden, wanted), _of_rows(normed, wanted)
            cos, sin = (_of_rows(table[:, 0], wanted)[:, None] for table in (cos, sin))
            seen = seen if seen is None or seen.shape[2] == 1 else _of_rows(seen[:, 0], wanted)[:, None]
        query = _rotated(_in_heads(attention, "q", normed), cos, sin)
        attended = attend(attention, query, key, value, seen, dropout=0.0, scaling=attention.scaling, is_causal=False)[
            0
        ]
        hidden = hidden + attention.o_proj(attended.flatten(2))
        hidden = hidden + layer.mlp(_normed(layer.post_attention_layernorm, hidden))
    return _normed(inner.norm, hidden)


def _in_heads(attention: nn.Module, name: str, states: Tensor) -> Tensor:
    """The queries, keys or values before they are turned, `(batch_size, heads, n, head_dim)`."""
    heads = getattr(attention, f"{name}_proj")(states).unflatten(-1, (-1, attention.head_dim))
    norm = attention._modules.get(f"{name}_norm")  # `getattr` takes long to find nothing
    return (heads if norm is None else _normed(norm, heads)).transpose(1, 2)


def _normed(norm: Any, states: Tensor) -> Tensor:
    """What a norm makes of its states.

    On an accelerator one that is known takes two operations instead of eight. They may sum the squares in another
    order, so that a last bit may differ there.
    """
    if type(norm) not in _NORMS or not _is_plain(norm):
        return norm(states)
    return norm.weight * F.rms_norm(states, norm.weight.shape, None, norm.variance_epsilon)


def _rotated(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions; the first half of `sin` has the other sign, so that the halves only change places."""
    return (states * cos).add_(states.roll(states.shape[-1] // 2, -1).mul_(sin))


def _of_rows(states: Tensor, rows: Tensor) -> Tensor:
    """Rows `(batch_size, n)` of `(batch_size or 1, num_queries, size)`."""
    return states.expand(len(rows), -1, -1).gather(1, rows[..., None].expand(-1, -1, states.shape[-1]))


def _filled(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """The wanted rows, on a CPU with as many more as make the products over them fast, `(batch_size, n or more)`."""
    if rows.device.type != "cpu" or dtype != torch.float32 or rows.numel() not in _SLOW_ROWS:
        return rows
    more = -(-_SLOW_ROWS.stop // len(rows)) - rows.shape[1]
    return torch.cat([rows, rows[:, :1].expand(-1, more)], 1)
