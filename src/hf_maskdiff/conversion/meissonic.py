"""Meissonic (MeissonFlow/Meissonic) and Monetico (Collov-Labs/Monetico) as `MeissonicTransformer2DModel`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import VQModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from hf_maskdiff.conversion.amused import amused
from hf_maskdiff.conversion.components import open_component, require_safetensors
from hf_maskdiff.conversion.options import MissingOptions
from hf_maskdiff.conversion.sources import read_settings
from hf_maskdiff.conversion.upstream import Component, Preset, renamed, require_key
from hf_maskdiff.models import MeissonicTransformer2DModel
from hf_maskdiff.pipelines import MaskedDiffusionTextToImagePipeline
from hf_maskdiff.published import check_ids
from hf_maskdiff.published.malformed import refusing
from hf_maskdiff.published.sizes import check_sizes, shapes_of

NAME = "viiika/Meissonic"
LICENCE = "apache-2.0"
NOTES = """\
Sampled as its authors do it: aMUSEd's sampler in 64 steps, with guidance 9. The transformer is told how many steps are
left, as in the original, where that number depends on how many there are in all; other numbers of steps work, as they
do there. In float16 the original multiplies that number in float16, which ends at 65 steps; here it is float32.
Its transformer sees 32 x 32 positions, for which the authors trained the images: 1024 pixels where 2 x 2 codes are one
position (Meissonic), 512 where each code is (Monetico). Pass `height` and `width` for others."""
_SIDE = 32  # positions of the transformer per side, in Meissonic as in Monetico
_PARTS = ("transformer", "vqvae", "text_encoder", "tokenizer")
_SETTINGS = (
    *("num_layers", "num_single_layers", "num_attention_heads", "attention_head_dim", "axes_dims_rope"),
    *("joint_attention_dim", "pooled_projection_dim", "vocab_size", "codebook_size", "downsample"),
)
_WEIGHTS = "diffusion_pytorch_model"
_BLOCKS = r"((?:single_)?transformer_blocks\.\d+\..+)"
_KEPT = r"((?:time_text_embed|cond_embed|context_embedder)\..+)"
_RULES = {
    _BLOCKS: r"\1",
    _KEPT: r"\1",
    r"embed\.embeddings\.weight": "token_embedding.weight",
    r"embed\.layer_norm\.weight": "code_in.norm.weight",
    r"embed\.conv\.weight": "code_in.proj.weight",
    r"down_block\.downsample\.norm\.weight": "square_in.norm.weight",
    r"down_block\.downsample\.(?:conv|Conv2d_0)\.weight": "square_in.proj.weight",
    r"project_to_hidden_norm\.weight": "proj_in.norm.weight",
    r"project_to_hidden\.weight": "proj_in.proj.weight",
    r"encoder_proj_layer_norm\.weight": "context_norm.weight",
    r"project_from_hidden_norm\.weight": "proj_out.norm.weight",
    r"project_from_hidden\.weight": "proj_out.proj.weight",
    r"up_block\.upsample\.norm\.weight": "square_out.norm.weight",
    r"up_block\.upsample\.conv\.weight": "square_out.proj.weight",
    r"mlm_layer\.conv1\.weight": "code_out.weight",
    r"mlm_layer\.layer_norm\.weight": "head.norm.weight",
    r"mlm_layer\.conv2\.weight": "head.proj.weight",
}


def convert_weights(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights as published under the names of `MeissonicTransformer2DModel`; convolutions become projections.

    A convolution whose kernel is as large as its stride sees each square of codes for itself. As a projection, it takes
    the square's codes row by row.

    Raises:
        ValueError: weights that such a model does not have.
    """
    weights = renamed(state_dict, _RULES, "a Meissonic")
    for name in ("code_in.proj.weight", "code_out.weight", "head.proj.weight"):
        weights[name] = require_key(weights, name, "a Meissonic").flatten(1)
    if "square_in.proj.weight" in weights:  # (out, in, row, column)
        weights["square_in.proj.weight"] = weights["square_in.proj.weight"].permute(0, 2, 3, 1).flatten(1)
    if "square_out.proj.weight" in weights:  # (in, out, row, column)
        weights["square_out.proj.weight"] = weights["square_out.proj.weight"].permute(2, 3, 1, 0).flatten(0, 2)
    return weights


def meissonic(codebook_size: int = 8192, mask_token_id: int = 8255) -> Preset:
    """Meissonic's sampler, which is aMUSEd's, at the settings of its authors: 64 steps with guidance 9."""
    return Preset(amused(codebook_size, mask_token_id).scheduler, 64, 9.0)


def is_meissonic(folder: Path) -> bool:
    """Whether a folder is Meissonic as published: components in folders, the transformer with its settings."""
    config = folder / "transformer" / "config.json"
    if not config.is_file():
        return False
    settings = read_settings(config)
    return settings.get("_class_name") != MeissonicTransformer2DModel.__name__ and _marks(settings)


def _marks(settings: Mapping[str, Any]) -> bool:
    """Whether a configuration has what neither Flux's, nor aMUSEd's transformer has both of."""
    return "num_single_layers" in settings and "codebook_size" in settings


def open_meissonic(folder: Path, others: Path | None = None) -> MaskedDiffusionTextToImagePipeline:
    """The pipeline of a folder as published, in memory; the transformer's weights stay on the disk until they are read.

    Args:
        others: the folder of the other parts, where the transformer was published alone.

    Raises:
        MissingOptions: a `ValueError`: there is a transformer alone, and no `others`.
        ValueError: components that are missing, whose weights do not fit their settings or are no numbers, or that do
            not fit each other; `others` of what is whole.
    """
    _check_parts(folder, others)
    transformer = _open_transformer(folder / "transformer")
    folder = others or folder
    vqvae = open_component(folder, "vqvae", VQModel)
    text_encoder = open_component(folder, "text_encoder", CLIPTextModelWithProjection)
    with refusing("'tokenizer'", "Fetch its files again."):
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", trust_remote_code=False)
    check_ids(tokenizer, text_encoder.config.vocab_size)
    # The original pads to 77 tokens whatever the tokenizer's files say; this is how many the text encoder reads.
    tokenizer.model_max_length = text_encoder.config.max_position_embeddings
    config = transformer.config
    for what, ours, of, theirs in (
        ("codes", config.codebook_size, "vqvae", vqvae.config.num_vq_embeddings),
        ("`joint_attention_dim`", config.joint_attention_dim, "text_encoder", text_encoder.config.hidden_size),
        ("`pooled_projection_dim`", config.pooled_projection_dim, "text_encoder", text_encoder.config.projection_dim),
    ):
        if ours != theirs:
            raise ValueError(
                f"The transformer's {what} must be those of the {of}, got {ours} and {theirs}. Fetch both."
            )
    stated = folder / "scheduler" / "scheduler_config.json"
    sampler = read_settings(stated) if stated.is_file() else {}
    preset = meissonic(config.codebook_size, sampler.get("mask_token_id", config.vocab_size - 1))
    defaults = {"num_inference_steps": preset.num_inference_steps, "guidance_scale": preset.guidance_scale}
    return MaskedDiffusionTextToImagePipeline(vqvae, tokenizer, text_encoder, transformer, preset.scheduler, defaults)


def _check_parts(folder: Path, others: Path | None) -> None:
    """Raise the error of parts that are missing, or there twice."""
    there = [name for name in _PARTS[1:] if (folder / name).is_dir()]
    if others is None and not there:
        needed = (
            "there is a transformer alone, whose images and prompts other parts read. Pass the Meissonic that it was"
        )
        raise MissingOptions({"tokenizer": f"{needed} made from, for example 'MeissonFlow/Meissonic'."})
    if others is not None and there:
        raise ValueError(f"`--tokenizer` must be left out for a whole Meissonic, got {there} twice. Leave it out.")
    missing = [name for name in _PARTS[1:] if not ((others or folder) / name).is_dir()]
    if missing:
        name = "source" if others is None else "tokenizer"
        raise ValueError(f"`{name}` must hold all parts of a Meissonic, {missing} are not there. Fetch it again.")


def _open_transformer(folder: Path) -> MeissonicTransformer2DModel:
    settings = read_settings(folder / "config.json")
    missing = [name for name in _SETTINGS if settings.get(name) is None]
    if missing:
        raise ValueError(
            f"config.json of the transformer must name its sizes, {missing} are not there. Fetch it again."
        )
    found = {name: settings.get(name, False) for name in ("downsample", "upsample", "guidance_embeds")}
    if found["upsample"] != found["downsample"] or found["guidance_embeds"]:
        raise ValueError(
            f"a Meissonic must have `upsample` as it has `downsample` and no `guidance_embeds`, got {found}. It is "
            "another model."
        )
    require_safetensors(folder)
    files = [folder / f"{_WEIGHTS}.safetensors"]
    if not files[0].is_file():
        files = sorted(folder.glob(f"{_WEIGHTS}-*-of-*.safetensors"))
    check_sizes(settings, shapes_of(map(str, files)))
    weights = {name: tensor for file in files for name, tensor in load_file(file).items()}
    config = {name: settings[name] for name in _SETTINGS} | {
        "sample_size": _SIDE * (2 if settings["downsample"] else 1)
    }
    return Component(MeissonicTransformer2DModel, config, convert_weights(weights)).build()
