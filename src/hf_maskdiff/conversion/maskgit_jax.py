"""Checkpoints of MaskGIT (google-research/maskgit, arXiv 2202.04200), which flax wrote, without flax."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from hf_maskdiff.conversion.upstream import (
    Component,
    Preset,
    Tree,
    Upstream,
    count_blocks,
    names_in,
    renamed,
    require_key,
    square_side,
)
from hf_maskdiff.conversion.vqgan import maskgit_vq
from hf_maskdiff.models import MaskGITTransformer2DModel
from hf_maskdiff.schedulers import MaskGITScheduler

_WHAT = "MaskGIT's transformer"
_LAYER = r"TransformerLayer_(\d+)/"
_ATTENTION = rf"{_LAYER}Attention_0/"


def _dense(theirs: str, ours: str) -> dict[str, str]:
    return {f"{theirs}/kernel": f"{ours}.weight", f"{theirs}/bias": f"{ours}.bias"}


def _norm(theirs: str, ours: str) -> dict[str, str]:
    return {f"{theirs}/scale": f"{ours}.weight", f"{theirs}/bias": f"{ours}.bias"}


_KEYS = {
    "Embed_0/word_embeddings/embedding": "token_embedding.weight",
    "Embed_0/position_embeddings/embedding": "position_embedding.weight",
    **_norm("Embed_0/embeddings_ln", "norm_in"),
    **_dense(f"{_ATTENTION}self_attention/query", r"transformer_blocks.\1.attn.to_q"),
    **_dense(f"{_ATTENTION}self_attention/key", r"transformer_blocks.\1.attn.to_k"),
    **_dense(f"{_ATTENTION}self_attention/value", r"transformer_blocks.\1.attn.to_v"),
    **_dense(f"{_ATTENTION}self_attention/out", r"transformer_blocks.\1.attn.to_out.0"),
    **_norm(f"{_ATTENTION}attention_output_ln", r"transformer_blocks.\1.norm1"),
    **_dense(f"{_LAYER}Mlp_0/intermediate_output", r"transformer_blocks.\1.ff.net.0.proj"),
    **_dense(f"{_LAYER}Mlp_0/layer_output", r"transformer_blocks.\1.ff.net.2"),
    **_norm(f"{_LAYER}Mlp_0/layer_output_ln", r"transformer_blocks.\1.norm2"),
    **_dense("MlmLayer_0/mlm_dense", "head.0"),
    **_norm("MlmLayer_0/mlm_ln", "head.2"),
    "MlmLayer_0/mlm_bias/bias": "token_embedding.bias",
}


def flattened(tree: dict[str, Any], prefix: str = "") -> dict[str, Tensor]:
    """Nested dictionaries, which are emptied, as one, with names joined by slashes.

    Raises:
        ValueError: naming an entry that is no tensor.
    """
    result: dict[str, Tensor] = {}
    for key in list(tree):
        value = tree.pop(key)
        if isinstance(value, dict):
            result |= flattened(value, f"{prefix}{key}/")
        elif isinstance(value, Tensor):
            result[prefix + key] = value
        else:
            raise ValueError(f"The checkpoint must hold tensors, '{prefix}{key}' is not one. Do not use this file.")
    return result


def _as_matrix(name: str, kernel: Tensor) -> Tensor:
    """A flax kernel, inputs first, as torch's weight, outputs first; heads are part of the inputs or the outputs."""
    if kernel.ndim == 3:
        kernel = kernel.flatten(0, 1) if ".to_out." in name else kernel.flatten(1)
    return kernel.T.contiguous()


def convert_transformer(params: dict[str, Tensor], codebook_size: int) -> Component:
    """The denoiser of a checkpoint's flattened "params", which are emptied: at no time there are two copies of all.

    Raises:
        ValueError: unknown weights.
    """
    weights = renamed(params, _KEYS, _WHAT)
    query = require_key(weights, "transformer_blocks.0.attn.to_q.weight", _WHAT)
    heads = query.shape[1] if query.ndim == 3 else 1
    params.clear()
    for name in list(weights):
        if name.startswith(("transformer_blocks", "head")) and ".norm" not in name and name != "head.2.weight":
            value = weights.pop(name)
            weights[name] = _as_matrix(name, value) if name.endswith("weight") else value.flatten()
    # The class slot is first there, last here.
    weights["position_embedding.weight"] = require_key(weights, "position_embedding.weight", _WHAT).roll(-1, 0)
    num_places, width = weights["position_embedding.weight"].shape
    vocab_size = require_key(weights, "token_embedding.weight", _WHAT).shape[0]
    config: dict[str, Any] = {
        "sample_size": square_side(num_places - 1),
        "codebook_size": codebook_size,
        "num_classes": vocab_size - codebook_size - 1,
        "hidden_size": width,
        "num_layers": count_blocks(weights, r"transformer_blocks\.(\d+)\."),
        "num_attention_heads": heads,
        "intermediate_size": require_key(weights, "transformer_blocks.0.ff.net.2.weight", _WHAT).shape[1],
        "mask_token_id": vocab_size - 1,  # -1 there: the last row
        "class_token_offset": codebook_size,
        "vocab_size": vocab_size,
        "norm_first": False,
        "activation": "gelu_tanh",
        "norm_eps": 1e-12,
        "block_norm_eps": 1e-12,
        "head_norm_eps": 1e-12,
    }
    return Component(MaskGITTransformer2DModel, config, weights)


def convert_vqvae(params: dict[str, Tensor]) -> Component:
    """The tokenizer of a checkpoint's flattened "params", which are emptied.

    flax numbers residual blocks and convolutions as they come: the levels, and the blocks at the lowest resolution
    after them in the encoder, before them in the decoder.

    Raises:
        ValueError: unknown weights.
    """
    what = "MaskGIT's tokenizer"
    require_key(params, "decoder/Conv_0/kernel", what)
    num_levels = count_blocks(params, r"decoder/Conv_(\d+)/") - 1
    rules = {"quantizer/codebook": "quantize.embedding.weight"}
    for half, levels_of in (("encoder", "down_blocks"), ("decoder", "up_blocks")):
        num_blocks = count_blocks(params, rf"{half}/ResBlock_(\d+)/")
        # A level and the blocks at the lowest resolution are all as long.
        length = max(num_blocks // (num_levels + 1), 1)
        for i in range(num_blocks):
            group, block = divmod(i, length)
            level = group if half == "encoder" else group - 1
            place = f"{half}.mid_block" if level in (-1, num_levels) else f"{half}.{levels_of}.{level}"
            start, target = f"{half}/ResBlock_{i}", f"{place}.{block}"
            for theirs, ours in (("Conv_0", "conv1"), ("Conv_1", "conv2"), ("Conv_2", "conv_shortcut")):
                rules |= _dense(f"{start}/{theirs}", f"{target}.{ours}")
            for theirs, ours in (("GroupNorm_0", "norm1"), ("GroupNorm_1", "norm2")):
                rules |= _norm(f"{start}/{theirs}", f"{target}.{ours}")
        last = 1 if half == "encoder" else num_levels
        rules |= _dense(f"{half}/Conv_0", f"{half}.conv_in") | _dense(f"{half}/Conv_{last}", f"{half}.conv_out")
        rules |= _norm(f"{half}/GroupNorm_0", f"{half}.conv_norm_out")
    for i in range(num_levels - 1):
        rules |= _dense(f"decoder/Conv_{i + 1}", f"decoder.upsamplers.{i}")
    weights = renamed(params, rules, what)
    params.clear()
    for name in [name for name, tensor in weights.items() if tensor.ndim == 4]:
        weights[name] = weights.pop(name).permute(3, 2, 0, 1).contiguous()
    return maskgit_vq(weights)


def google_maskgit(codebook_size: int = 1024, mask_token_id: int = 2024) -> Preset:
    """MaskGIT's sampler for classes, at the settings of its repository: 16 steps of temperature 4.5."""
    scheduler = MaskGITScheduler(
        mask_token_id=mask_token_id, codebook_size=codebook_size, masking_schedule="cosine", choice_temperature=4.5
    )
    return Preset(scheduler, 16)


def _contents(tree: Tree) -> set[str]:
    names = names_in(tree, "params")
    return ({"transformer"} if "Embed_0" in names else set()) | ({"vqvae"} if "quantizer" in names else set())


UPSTREAM = Upstream(
    name="google-research/maskgit",
    licence="apache-2.0",
    contents=_contents,
    transformer=lambda tree, codebook_size, heads: convert_transformer(flattened(tree["params"]), codebook_size),
    vqvae=lambda tree: convert_vqvae(flattened(tree["params"])),
    preset=lambda transformer: google_maskgit(transformer.config.codebook_size, transformer.mask_token_id),
    notes=(
        "The model was never shown an image without its class: `class_labels` must be given, and there is no "
        "guidance. Its own program takes 16 steps to generate, 12 to edit."
    ),
    tokenizer_source="the file tokenizer_imagenet256_checkpoint (or 512) of its repository's list",
)
