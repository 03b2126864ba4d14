"""Checkpoints of valeoai/Maskgit-pytorch, branch v1.0 (arXiv 2310.14400), as `MaskGITTransformer2DModel`."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from diffusers import ModelMixin
from torch import Tensor

from hf_maskdiff.conversion.checkpoints import require_tensors
from hf_maskdiff.conversion.upstream import (
    Component,
    Preset,
    Tree,
    Upstream,
    count_blocks,
    names_in,
    one_head_count,
    renamed,
    require_key,
    split_qkv,
    square_side,
)
from hf_maskdiff.conversion.vqgan import taming_vqgan
from hf_maskdiff.models import MaskGITTransformer2DModel
from hf_maskdiff.schedulers import MaskGITScheduler

_WHAT = "a transformer of Maskgit-pytorch v1.0"
_HEADS = {768: 16, 1024: 16}  # of the sizes that its code names
_PARAMETER = r"(weight|bias)"
_BLOCK = r"transformer\.layers\.(\d+)\."
_KEYS = {
    r"pos_emb": "position_embedding.weight",
    r"tok_emb\.weight": "token_embedding.weight",
    r"bias": "token_embedding.bias",
    rf"first_layer\.0\.{_PARAMETER}": r"norm_in.\1",
    rf"first_layer\.2\.{_PARAMETER}": r"proj_in.0.\1",
    rf"first_layer\.4\.{_PARAMETER}": r"proj_in.2.\1",
    rf"first_layer\.6\.{_PARAMETER}": r"proj_in.3.\1",
    rf"{_BLOCK}0\.norm\.{_PARAMETER}": r"transformer_blocks.\1.norm1.\2",
    rf"{_BLOCK}0\.fn\.mha\.in_proj_{_PARAMETER}": r"transformer_blocks.\1.attn.qkv.\2",
    rf"{_BLOCK}0\.fn\.mha\.out_proj\.{_PARAMETER}": r"transformer_blocks.\1.attn.to_out.0.\2",
    rf"{_BLOCK}1\.norm\.{_PARAMETER}": r"transformer_blocks.\1.norm2.\2",
    rf"{_BLOCK}1\.fn\.net\.0\.{_PARAMETER}": r"transformer_blocks.\1.ff.net.0.proj.\2",
    rf"{_BLOCK}1\.fn\.net\.3\.{_PARAMETER}": r"transformer_blocks.\1.ff.net.2.\2",
    rf"last_layer\.0\.{_PARAMETER}": r"norm_out.\1",
    rf"last_layer\.2\.{_PARAMETER}": r"head.0.\1",
    rf"last_layer\.4\.{_PARAMETER}": r"head.2.\1",
}
_WRAPPERS = re.compile(r"^(?:module\.|_orig_mod\.)+")  # left by distributed training and by compilation


def convert_transformer(state_dict: Mapping[str, Tensor], codebook_size: int, heads: Sequence[int] = ()) -> Component:
    """The denoiser of what a checkpoint holds under "model_state_dict".

    Raises:
        ValueError: unknown weights, or a width that was not published without its number of heads.
    """
    weights = renamed({_WRAPPERS.sub("", key): tensor for key, tensor in state_dict.items()}, _KEYS, _WHAT)
    weights = split_qkv(weights, "qkv.")
    weights["position_embedding.weight"] = require_key(weights, "position_embedding.weight", _WHAT).flatten(0, -2)
    num_places, width = weights["position_embedding.weight"].shape
    rows = require_key(weights, "token_embedding.weight", _WHAT).shape[0]
    config: dict[str, Any] = {
        "sample_size": square_side(num_places - 1),
        "codebook_size": codebook_size,
        "num_classes": rows - codebook_size - 2,
        "hidden_size": width,
        "num_layers": count_blocks(weights, r"transformer_blocks\.(\d+)\."),
        "num_attention_heads": one_head_count(heads, _HEADS.get(width), width),
        "intermediate_size": require_key(weights, "transformer_blocks.0.ff.net.2.weight", _WHAT).shape[1],
        "project_embeddings": True,
        "position_bias": True,
        "norm_eps": 1e-12,
        "head_norm_eps": 1e-12,
    }
    return Component(MaskGITTransformer2DModel, config, weights)


def cumulative_counts(num_tokens: int, num_steps: int, schedule: str = "arccos") -> list[int]:
    """Positions revealed after each step: step i reveals a share proportional to the schedule at 1 - i / (T - 1).

    Args:
        schedule: `"root"`, `"linear"`, `"square"`, `"cosine"` or `"arccos"`, all falling from 1 to 0.
    """
    curves = {
        "root": lambda r: 1 - r**0.5,
        "linear": lambda r: 1 - r,
        "square": lambda r: 1 - r**2,
        "cosine": lambda r: math.cos(r * math.pi / 2),
        "arccos": lambda r: math.acos(r) / (math.pi / 2),
    }
    if num_steps == 1:
        return [num_tokens]
    shares = [curves[schedule](1 - i / (num_steps - 1)) for i in range(num_steps)]
    counts = [max(round(share / sum(shares) * num_tokens), 1) for share in shares]
    counts[-1] += num_tokens - sum(counts)
    return [sum(counts[: i + 1]) for i in range(num_steps)]


def valeoai_v1(
    codebook_size: int = 1024,
    num_tokens: int = 256,
    num_inference_steps: int = 8,
    choice_temperature: float = 4.5,
    guidance_weight: float = 3.0,
) -> Preset:
    """The sampler of v1.0 at its settings for 256 pixels; the table fixes image size and number of steps."""
    scheduler = MaskGITScheduler(
        mask_token_id=codebook_size,
        codebook_size=codebook_size,
        masking_schedule=cumulative_counts(num_tokens, num_inference_steps),
        choice_temperature=[choice_temperature, 0.0],
    )
    return Preset(scheduler, num_inference_steps, (1.0, 1.0 + guidance_weight))


def _preset(transformer: ModelMixin) -> Preset:
    codebook_size, num_tokens = transformer.config.codebook_size, transformer.config.sample_size**2
    if num_tokens > 256:  # its settings for 512 pixels
        return valeoai_v1(codebook_size, num_tokens, 15, choice_temperature=7.0, guidance_weight=2.8)
    return valeoai_v1(codebook_size, num_tokens)


def widths_of(weights: Mapping[str, Tensor]) -> list[tuple[int, int | None]]:
    """The width of a transformer, and the number of heads that it was published with."""
    table = require_key({_WRAPPERS.sub("", key): tensor for key, tensor in weights.items()}, "tok_emb.weight", _WHAT)
    return [(table.shape[1], _HEADS.get(table.shape[1]))]


def are_of_transformer(names: Iterable[str]) -> bool:
    """Whether weights of these names are a transformer's."""
    return "first_layer.0.weight" in {_WRAPPERS.sub("", name) for name in names}


def is_vqgan(tree: Tree) -> bool:
    """Whether a checkpoint is that of the image tokenizer."""
    return "encoder.down.0.block.0.conv1.weight" in names_in(tree, "state_dict")


def _contents(tree: Tree) -> set[str]:
    if are_of_transformer(names_in(tree, "model_state_dict")):
        return {"transformer"}
    return {"vqvae"} if is_vqgan(tree) else set()


UPSTREAM = Upstream(
    name="valeoai/Maskgit-pytorch",
    licence="mit",
    contents=_contents,
    transformer=lambda tree, codebook_size, heads: convert_transformer(
        require_tensors(tree["model_state_dict"], '"model_state_dict"'), codebook_size, heads
    ),
    vqvae=lambda tree: taming_vqgan(require_tensors(tree["state_dict"], '"state_dict"')),
    preset=_preset,
    widths=lambda tree: widths_of(require_tensors(tree["model_state_dict"], '"model_state_dict"')),
    notes=(
        "The scheduler is that of branch v1.0 with its arccos counts, which fix the number of steps, and its "
        "guidance, which grows from none to its full weight. The original may draw the mask itself as a token and "
        "counts its probability in; here it is never drawn."
    ),
    tokenizer_source="llvictorll/Maskgit-pytorch/pretrained_maskgit/VQGAN/last.ckpt",
    do_normalize=True,
)
