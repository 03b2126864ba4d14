"""The text half of a CLIP as transformers publishes it, of which the other half is never read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from hf_maskdiff.conversion.checkpoints import read_checkpoint, require_stored
from hf_maskdiff.conversion.sources import read_settings
from hf_maskdiff.published import check_ids
from hf_maskdiff.published.malformed import refusing
from hf_maskdiff.published.sizes import check_sizes

PICKLE = "pytorch_model.bin"
_WEIGHTS = "model.safetensors"
_PARTS = ("text_model.", "text_projection.")
_REMEDY = "Fetch its files again."


def open_clip_text(folder: Path | None) -> tuple[CLIPTokenizer, CLIPTextModelWithProjection]:
    """Tokenizer and text encoder of a folder, which may hold a whole CLIP; texts are as long as the encoder reads.

    Raises:
        ValueError: files that are missing, malformed, or do not fit each other.
    """
    if folder is None or not (folder / "config.json").is_file():
        raise ValueError(
            f"`text_encoder` must hold a CLIP of transformers with its config.json, {folder and folder.name!r} does "
            "not. Pass its repository or folder."
        )
    settings = read_settings(folder / "config.json")
    settings = settings.get("text_config") or settings
    weights = _weights_of(folder)
    check_sizes(settings, {name: tuple(tensor.shape) for name, tensor in weights.items()})
    with refusing("the text encoder", _REMEDY):
        config = CLIPTextConfig.from_dict(settings)
        encoder, info = CLIPTextModelWithProjection.from_pretrained(
            None, config=config, state_dict=weights, output_loading_info=True, trust_remote_code=False
        )
    kinds = ("missing_keys", "mismatched_keys", "unexpected_keys")
    wrong: dict[str, Any] = {kind: sorted(map(str, info[kind])) for kind in kinds if info.get(kind)}
    if wrong:
        raise ValueError(f"The text encoder's weights must fit its config.json, got {wrong}. Fetch both again.")
    with refusing("the text encoder's tokenizer", _REMEDY):
        tokenizer = CLIPTokenizer.from_pretrained(folder, trust_remote_code=False)
    check_ids(tokenizer, config.vocab_size)
    tokenizer.model_max_length = config.max_position_embeddings
    return tokenizer, encoder.eval()


def _weights_of(folder: Path) -> dict[str, Tensor]:
    """The text half's weights; of a pickle nothing is run, and the rest stays on the disk."""
    if (folder / _WEIGHTS).is_file():
        with safe_open(folder / _WEIGHTS, "pt") as held:
            return {name: held.get_tensor(name) for name in held.keys() if _is_text(name)}  # noqa: SIM118
    if not (folder / PICKLE).is_file():
        raise ValueError(
            f"`text_encoder` must hold {_WEIGHTS!r} or {PICKLE!r}, {folder.name!r} holds neither. Fetch it again."
        )
    held = read_checkpoint(folder / PICKLE)
    return {name: require_stored(held[name], name) for name in held if _is_text(name)}


def _is_text(name: object) -> bool:
    """Whether a weight is one of the text half; places' numbers, which old versions stored, are no weights."""
    return isinstance(name, str) and name.startswith(_PARTS) and not name.endswith("position_ids")
