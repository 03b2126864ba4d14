"""VampNet's checkpoints (hugggof/vampnet) as `VampNetTransformer`s: the coarse model, and the coarse-to-fine one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hf_maskdiff.conversion.checkpoints import require_tensors
from hf_maskdiff.conversion.lac import convert_lac, is_lac, without_weight_norms
from hf_maskdiff.conversion.options import MissingOptions
from hf_maskdiff.conversion.sources import NAMED
from hf_maskdiff.conversion.upstream import Component, Preset, Tree, count_blocks, names_in, renamed, require_key
from hf_maskdiff.models import VampNetTransformer
from hf_maskdiff.pipelines import MaskedDiffusionAudioPipeline
from hf_maskdiff.schedulers import MaskGITScheduler

NAME = "hugofloresgarcia/vampnet"
LICENCE = "cc-by-nc-sa-4.0"
TERMS = (
    "The authors license the weights, and whatever is fine-tuned from them, under CC BY-NC-SA 4.0: no commercial use, "
    "and what is made of them is shared alike. The code is under the MIT licence."
)
NOTES = """\
Sampled as its authors do it: MaskGIT's sampler with a choice temperature of 10.5 in 12 steps. The original counts the
masks of a whole batch together, so that what a clip becomes depends on the others; here a clip has its own counts, and
is the same alone and in a batch. Its `top_p`, which is off, comes before the temperature, here after it, as in
transformers. Its typical filtering has no effect in the original, whose loop drops the result; here
`typical_p=0.15, typical_min_tokens=64` in the scheduler's configuration works, and is off unless you set it."""
ABOUT = """\
It is VampNet's models and their sampler: in `transformer` the coarse one and, where it was converted too, in
`fine_transformer` the one that adds the other codebooks, each with the codec's vectors of its codes. {codec}"""
WITH_CODEC = "Their codec, a LAC, is in `codec`."
WITHOUT_CODEC = "The codec is not among them: its file holds no LAC with even rates, but the vectors alone."
SAMPLING_RATE, HOP_LENGTH = 44100, 768  # of its codec, as the paper says
FINE_STEPS = 2  # of the fine model, which its authors run less often
_WHAT = "a VampNet"
_MASK, _CODEBOOK = "embedding.special.MASK", "quantizer.quantizers.{}.codebook.weight"
_MAX_DISTANCE = 128  # in no tensor, and the same in all published models
_LAYER, _BLOCK = r"transformer\.layers\.(\d+)\.", r"transformer_blocks.\1."
_RULES = {
    r"embedding\.special\.MASK": "mask",
    r"embedding\.out_proj\.(weight|bias)": r"proj_in.\1",
    r"transformer\.layers\.0\.self_attn\.relative_attention_bias\.weight": "relative_bias.embedding.weight",
    rf"{_LAYER}norm_1\.weight": rf"{_BLOCK}norm1.weight",
    rf"{_LAYER}norm_3\.weight": rf"{_BLOCK}norm2.weight",
    rf"{_LAYER}self_attn\.w_qs\.(weight|lora_A|lora_B)": rf"{_BLOCK}attn.to_q.\2",
    rf"{_LAYER}self_attn\.w_ks\.(weight)": rf"{_BLOCK}attn.to_k.\2",
    rf"{_LAYER}self_attn\.w_vs\.(weight|lora_A|lora_B)": rf"{_BLOCK}attn.to_v.\2",
    rf"{_LAYER}self_attn\.fc\.(weight|lora_A|lora_B)": rf"{_BLOCK}attn.to_out.\2",
    rf"{_LAYER}feed_forward\.w_1\.(weight|lora_A|lora_B)": rf"{_BLOCK}ff.proj_in.\2",
    rf"{_LAYER}feed_forward\.w_2\.(weight|lora_A|lora_B)": rf"{_BLOCK}ff.proj_out.\2",
    r"transformer\.norm\.weight": "norm_out.weight",
    r"classifier\.layers\.0\.(weight_g|weight_v|bias)": r"head.\1",
}


def files_in(path: Path) -> list[Path]:
    """The files of a folder that is laid out as the repository on the Hub; none for another folder, or a file."""
    if not (path / NAMED[0]).is_file():
        return []
    return [path / name for name in NAMED if (path / name).is_file()]


def is_model(tree: Tree) -> bool:
    """Whether a checkpoint holds one of the two models."""
    return {_MASK, "classifier.layers.0.weight_g"} <= names_in(tree, "state_dict")


def is_codec(tree: Tree) -> bool:
    """Whether a checkpoint holds the codec, or its codebooks."""
    return _CODEBOOK.format(0) in names_in(tree, "state_dict")


def convert_model(tree: Tree, codec: Tree) -> Component:
    """One of the two models, with the codec's vectors, which its input is made of.

    What was trained as an addition of low rank to a matrix (LoRA) is added to it, and weight norms are multiplied out.

    Raises:
        ValueError: weights that such a model does not have, or a codec of another kind.
    """
    weights = _merged(renamed(require_tensors(tree["state_dict"], '"state_dict"'), _RULES, _WHAT))
    mask = require_key(weights, "mask", _WHAT)
    del weights["mask"]
    codebooks = _codebooks(codec, mask)
    count, codebook_size = codebooks.shape[:2]
    weights["latent_embedding.weight"] = torch.cat([codebooks.to(mask), mask[:, None]], 1).flatten(0, 1)
    weights["proj_in.weight"] = require_key(weights, "proj_in.weight", _WHAT).flatten(1)
    num_codebooks, rest = divmod(len(require_key(weights, "head.bias", _WHAT)), codebook_size)
    if rest or not 1 <= num_codebooks <= count:
        raise ValueError(
            f"the model's {len(weights['head.bias'])} logits of a frame must be those of 1 to {count} of the codec's "
            f"codebooks of {codebook_size} codes, they are not. Pass model and codec of one repository."
        )
    for name in ("head.weight", "head.bias"):  # the logits of a frame go by code there, by codebook here
        weights[name] = weights[name].unflatten(0, (codebook_size, num_codebooks)).transpose(0, 1).flatten(0, 1)
    bias = require_key(weights, "relative_bias.embedding.weight", _WHAT)
    config: dict[str, Any] = {
        "num_codebooks": num_codebooks,
        "codebook_size": codebook_size,
        "latent_dim": mask.shape[1],
        "hidden_size": len(weights["proj_in.weight"]),
        "num_layers": count_blocks(weights, r"transformer_blocks\.(\d+)\."),
        "num_attention_heads": bias.shape[1],
        "num_conditioning_codebooks": count - num_codebooks,
        "num_buckets": len(bias),
        "max_distance": _MAX_DISTANCE,
        "dropout": 0.1,
    }
    return Component(VampNetTransformer, config, weights)


def _merged(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same weights without LoRA's matrices and without weight norms."""
    result = {name: tensor for name, tensor in weights.items() if ".lora_" not in name}
    for name, low in weights.items():
        if not name.endswith(".lora_A"):
            continue
        start = name.removesuffix("lora_A")
        high, whole = (require_key(weights, start + kind, _WHAT) for kind in ("lora_B", "weight"))
        if bool(high.any()):  # it is 0 where nothing was trained so; then the matrix stays in the file
            added = torch.addmm(whole.float(), high.float(), low.float(), alpha=1 / len(low))
            result[f"{start}weight"] = added.to(whole.dtype)
    result = without_weight_norms(result)
    result["head.weight"] = require_key(result, "head.weight", _WHAT).flatten(1)
    return result


def _codebooks(codec: Tree, mask: Tensor) -> Tensor:
    """The codec's vectors for as many codebooks as the model knows, `(codebooks, codebook_size, latent_dim)`."""
    found = codec["state_dict"]
    names = [_CODEBOOK.format(i) for i in range(len(mask))]
    tables = {name: found[name] for name in names if name in names_in(codec, "state_dict")}
    vectors = require_tensors(tables, '"state_dict"')
    if len(vectors) < len(names) or any(table.shape[1:] != mask.shape[1:] for table in vectors.values()):
        shapes = sorted({tuple(table.shape) for table in vectors.values()})
        raise ValueError(
            f"the codec must have the {len(names)} codebooks of the model, of vectors of {mask.shape[-1]} numbers, got "
            f"{len(vectors)} of shapes {shapes}. Pass model and codec of one repository."
        )
    return torch.stack([vectors[name] for name in names])


def about(pipe: MaskedDiffusionAudioPipeline) -> str:
    """What the card says of the parts of a pipeline."""
    return ABOUT.format(codec=WITHOUT_CODEC if pipe.codec is None else WITH_CODEC)


def open_vampnet(trees: Mapping[Path, Tree], name: str) -> MaskedDiffusionAudioPipeline:
    """The pipeline of some checkpoints; without a codec, where their file of it holds no whole one.

    Args:
        trees: what each file holds.
        name: of the source, for errors.

    Raises:
        MissingOptions: a `ValueError`: there is no codec.
        ValueError: not one coarse model, more than one of another kind, or models that do not fit each other.
    """
    codecs = [tree for tree in trees.values() if is_codec(tree)]
    if len(codecs) != 1:
        need = f"there must be one codec for {name!r}, whose vectors are the models' input, got {len(codecs)}."
        raise MissingOptions({"tokenizer": f"{need} Pass for example 'hugggof/vampnet/codec.pth'."})
    models = [convert_model(tree, codecs[0]) for tree in trees.values() if is_model(tree)]
    coarse = [model for model in models if not model.config["num_conditioning_codebooks"]]
    fine = [model for model in models if model.config["num_conditioning_codebooks"]]
    if len(coarse) != 1 or len(fine) > 1:
        raise ValueError(
            f"`source` must hold one coarse model and at most one that makes its codes finer, {name!r} holds "
            f"{len(coarse)} and {len(fine)}. Pass the folder of both files, or the coarse one's file."
        )
    given = coarse[0].config["num_codebooks"]
    if fine and fine[0].config["num_conditioning_codebooks"] != given:
        taken = fine[0].config["num_conditioning_codebooks"]
        raise ValueError(
            f"the fine model must be given what the coarse one predicts, {given} codebooks, got {taken}. Pass models "
            "of one repository."
        )
    transformer: Any = coarse[0].build()
    fine_transformer: Any = fine[0].build() if fine else None
    codec: Any = convert_lac(codecs[0]).build() if is_lac(codecs[0]) else None
    preset = vampnet(transformer.config.codebook_size)
    defaults = {"num_inference_steps": preset.num_inference_steps, "num_fine_inference_steps": FINE_STEPS}
    parts = (codec, transformer, preset.scheduler, fine_transformer, defaults)
    if codec is not None:
        return MaskedDiffusionAudioPipeline(*parts)
    return MaskedDiffusionAudioPipeline(*parts, sampling_rate=SAMPLING_RATE, hop_length=HOP_LENGTH)


def vampnet(codebook_size: int = 1024) -> Preset:
    """VampNet's sampler at the settings of its authors: MaskGIT's with a choice temperature of 10.5, 12 steps."""
    scheduler = MaskGITScheduler(
        mask_token_id=codebook_size, codebook_size=codebook_size, masking_schedule="cosine", choice_temperature=10.5
    )
    return Preset(scheduler, 12)
