"""Checkpoints of Halton-MaskGIT (valeoai/Halton-MaskGIT, arXiv 2503.17076) as `HaltonMaskGITTransformer2DModel`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import torch

from hf_maskdiff.conversion.checkpoints import require_tensors
from hf_maskdiff.conversion.upstream import (
    Component,
    Preset,
    Tree,
    Upstream,
    names_in,
    one_head_count,
    require_key,
    square_side,
)
from hf_maskdiff.conversion.vqgan import llamagen_vq
from hf_maskdiff.models import HaltonMaskGITTransformer2DModel
from hf_maskdiff.schedulers import HaltonScheduler, MaskGITScheduler

_WHAT = "a Halton-MaskGIT transformer"
_HEADS = {384: 6, 512: 6, 768: 12, 1024: 16, 1152: 16}  # of tiny, small, base, large and xlarge
_MODEL_KEYS = {
    "cls_emb.weight": "class_embedding.weight",
    "tok_emb.weight": "token_embedding.weight",
    "pos_emb.weight": "position_embedding.weight",
    "reg_tokens.weight": "register_embedding.weight",
    "last_norm.norm_final.weight": "norm_out.weight",
    "last_norm.norm_final.bias": "norm_out.bias",
    "last_norm.mlp.1.weight": "modulation_out.weight",
    "last_norm.mlp.1.bias": "modulation_out.bias",
    "head.bias": "token_embedding.bias",
}
_BLOCK_KEYS = {
    "mlp.1.weight": "modulation.weight",
    "mlp.1.bias": "modulation.bias",
    "ln1.weight": "norm1.weight",
    "attn.wq.weight": "attn.to_q.weight",
    "attn.wk.weight": "attn.to_k.weight",
    "attn.wv.weight": "attn.to_v.weight",
    "attn.wo.weight": "attn.to_out.0.weight",
    "ln2.weight": "norm2.weight",
    "ff.w1.weight": "ff.gate_proj.weight",
    "ff.w2.weight": "ff.down_proj.weight",
    "ff.w3.weight": "ff.up_proj.weight",
}
_BLOCK = re.compile(r"transformer\.layers\.(\d+)\.(.+)")
_WRAPPERS = re.compile(r"^(?:module\.|_orig_mod\.)+")  # left by distributed training and by compilation


def convert_halton_maskgit_state_dict(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename an upstream transformer's tensors to ours; the tensors themselves are passed on, not copied.

    Args:
        state_dict: What upstream stores under `model_state_dict`, with or without the prefixes of wrappers.

    Returns:
        A state dict for `HaltonMaskGITTransformer2DModel`.

    Raises:
        ValueError: If a name is unknown, or the output layer is not tied to the token table.
    """
    upstream = {_WRAPPERS.sub("", key): tensor for key, tensor in state_dict.items()}
    head = upstream.pop("head.weight", None)
    table = upstream.get("tok_emb.weight")
    if head is not None and (table is None or not torch.equal(head, table)):
        raise ValueError(
            "`head.weight` must equal `tok_emb.weight`: this model's output layer is its token table, and the two "
            "differ here. Pass a checkpoint of the published architecture."
        )

    converted = {}
    for key, tensor in upstream.items():
        block = _BLOCK.fullmatch(key)
        if block is not None and block[2] in _BLOCK_KEYS:
            converted[f"transformer_blocks.{block[1]}.{_BLOCK_KEYS[block[2]]}"] = tensor
        elif key in _MODEL_KEYS:
            converted[_MODEL_KEYS[key]] = tensor
        else:
            raise ValueError(
                f"`state_dict` must hold a Halton-MaskGIT class-conditional transformer, got the key {key!r}. Pass "
                "what the checkpoint stores under `model_state_dict`."
            )
    return converted


def halton_maskgit_config(state_dict: Mapping[str, torch.Tensor], num_attention_heads: int) -> dict[str, int]:
    """Read the configuration of `HaltonMaskGITTransformer2DModel` off the shapes of a converted state dict.

    Args:
        state_dict: What `convert_halton_maskgit_state_dict` returned.
        num_attention_heads: The one number that no shape tells. Published: 6 for the sizes tiny and small, 12 for
            base, 16 for large.

    Raises:
        ValueError: If the number of heads does not fit the width of the attention layers, or the positions do not form
            a square.
    """
    sample_size = square_side(require_key(state_dict, "position_embedding.weight", _WHAT).shape[0])
    inner_dim, hidden_size = require_key(state_dict, "transformer_blocks.0.attn.to_q.weight", _WHAT).shape
    if num_attention_heads < 1 or num_attention_heads * (hidden_size // num_attention_heads) != inner_dim:
        raise ValueError(
            f"`num_attention_heads` heads of {hidden_size} // `num_attention_heads` must be {inner_dim} wide in all, "
            f"got {num_attention_heads} heads. Pass the number that the model was built with."
        )
    registers = state_dict.get("register_embedding.weight")
    return {
        "sample_size": sample_size,
        "codebook_size": require_key(state_dict, "token_embedding.weight", _WHAT).shape[0] - 1,
        "num_classes": require_key(state_dict, "class_embedding.weight", _WHAT).shape[0] - 1,
        "hidden_size": hidden_size,
        "num_layers": sum(key.endswith(".norm1.weight") for key in state_dict),
        "num_attention_heads": num_attention_heads,
        "intermediate_size": require_key(state_dict, "transformer_blocks.0.ff.gate_proj.weight", _WHAT).shape[0],
        "num_register_tokens": 0 if registers is None else registers.shape[0],
    }


def convert_transformer(
    state_dict: Mapping[str, torch.Tensor], codebook_size: int, heads: Sequence[int] = ()
) -> Component:
    """The denoiser of what a checkpoint holds under "model_state_dict".

    Raises:
        ValueError: unknown weights, a table of another size than the tokenizer's, or a width that was not published
            without its number of heads.
    """
    weights = convert_halton_maskgit_state_dict(state_dict)
    width = require_key(weights, "class_embedding.weight", _WHAT).shape[1]
    config = halton_maskgit_config(weights, one_head_count(heads, _HEADS.get(width), width))
    if config["codebook_size"] != codebook_size:
        raise ValueError(
            f"The transformer's codes must be the tokenizer's, got {config['codebook_size']} and {codebook_size}. Pass "
            "the tokenizer that the model was trained with."
        )
    return Component(HaltonMaskGITTransformer2DModel, config, weights)


def valeoai_halton(codebook_size: int = 16384) -> Preset:
    """Halton-MaskGIT's own sampler at the settings of its README, for any image size and number of steps."""
    scheduler = HaltonScheduler(
        mask_token_id=codebook_size,
        codebook_size=codebook_size,
        masking_schedule="arccos",
        rounding="floor_revealed",
        inverse_temperature=[1.0, 1.2],
        randomize=True,
    )
    return Preset(scheduler, 32, 3.0)


def confidence_counts(num_tokens: int, num_steps: int, schedule: str = "arccos") -> list[int]:
    """Positions revealed after each step of the confidence sampler: the schedule at i / (T - 1), at least one each.

    Args:
        schedule: `"root"`, `"linear"`, `"square"`, `"cosine"` or `"arccos"`, all rising from 0 to 1.
    """
    curves = {
        "root": lambda r: r**0.5,
        "linear": lambda r: r,
        "square": lambda r: r**2,
        "cosine": lambda r: 1 - math.cos(r * math.pi / 2),
        "arccos": lambda r: 1 - math.acos(r) / (math.pi / 2),
    }
    if num_steps == 1:
        return [num_tokens]
    shares = [curves[schedule](i / (num_steps - 1)) for i in range(num_steps)]
    return [max(int(share * num_tokens + 1e-9), i + 1) for i, share in enumerate(shares)]


def valeoai_confidence(codebook_size: int = 16384, num_tokens: int = 256, num_inference_steps: int = 12) -> Preset:
    """Halton-MaskGIT's confidence sampler at its defaults; the table fixes image size and number of steps.

    The original draws the tokens that are already known anew in every step. That is not what it means to do: here they
    stay.
    """
    scheduler = MaskGITScheduler(
        mask_token_id=codebook_size,
        codebook_size=codebook_size,
        masking_schedule=confidence_counts(num_tokens, num_inference_steps),
        choice_temperature=[4.5, 0.0],
    )
    return Preset(scheduler, num_inference_steps, (1.0, 4.0))


def _widths(tree: Tree) -> list[tuple[int, int | None]]:
    weights = require_tensors(tree["model_state_dict"], '"model_state_dict"')
    table = require_key({_WRAPPERS.sub("", key): tensor for key, tensor in weights.items()}, "cls_emb.weight", _WHAT)
    return [(table.shape[1], _HEADS.get(table.shape[1]))]


def _contents(tree: Tree) -> set[str]:
    if "cls_emb.weight" in {_WRAPPERS.sub("", name) for name in names_in(tree, "model_state_dict")}:
        return {"transformer"}
    return {"vqvae"} if "quantize.codebook_used" in names_in(tree, "model") else set()


UPSTREAM = Upstream(
    name="valeoai/Halton-MaskGIT",
    licence="mit",
    contents=_contents,
    transformer=lambda tree, codebook_size, heads: convert_transformer(
        require_tensors(tree["model_state_dict"], '"model_state_dict"'), codebook_size, heads
    ),
    vqvae=lambda tree: llamagen_vq(require_tensors(tree["model"], '"model"')),
    preset=lambda transformer: valeoai_halton(transformer.config.codebook_size),
    widths=_widths,
    notes=(
        "The scheduler is the Halton sampler of its README. The original may draw the mask itself as a token, and "
        "replaces it at the end; here it is never drawn. Where a step's count is a whole number the original's float32 "
        "may come out one lower: with 24 x 24 tokens it reveals one position of 576 a step later."
    ),
    tokenizer_source="FoundationVision/LlamaGen/vq_ds16_c2i.pt",
    do_normalize=True,
)
