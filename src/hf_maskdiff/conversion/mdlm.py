"""Checkpoints of MDLM's training code (kuleshov-group/mdlm, arXiv 2406.07524) as `MDLMTransformer`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from hf_maskdiff.conversion.checkpoints import read_torch_checkpoint, require_stored, require_tensors
from hf_maskdiff.conversion.upstream import Preset, names_in
from hf_maskdiff.models.transformer_mdlm import MDLMTransformer
from hf_maskdiff.schedulers import AncestralScheduler, FirstHittingScheduler

# Repository and licence of the code, and what a model card says of the sampler.
DESCRIPTION = (
    "kuleshov-group/mdlm",
    "apache-2.0",
    "The scheduler is MDLM's own, the `ddpm_cache` update. Its authors run it in 1000 steps: pass "
    "`num_inference_steps=1000`, steps in which nothing is revealed cost no model call. The original leaves a share of "
    "1e-5 masked until a last step, which takes the most probable token; here the last step draws like the others.",
)
DESCRIPTION_OF_BLOCKS = (
    "kuleshov-group/bd3lms",
    "apache-2.0",
    "The scheduler is the first-hitting sampler, one position per model pass, which is exact. The original's nucleus "
    "of 0.9 is `top_p=0.9` but for the token that crosses it, which it leaves out. It begins a text with "
    "`<|endoftext|>`: pass that as the prompt.",
)
_PREFIX, _NOISE = "backbone.", "noise."
_BUFFER = "rotary_emb.inv_freq"


def read_mdlm_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint of PyTorch Lightning without running anything it names: safe on files of unknown origin.

    Tensors and plain containers are kept. Objects of other classes, such as the configuration and the tokenizer that
    are pickled under "hyper_parameters", are neither imported nor called; placeholders stand in their places.

    Args:
        path: A file written by `torch.save` in its zip format, the only one since PyTorch 1.6.

    Raises:
        ValueError: If the file is no such checkpoint, or its weights hold anything but tensors.
    """
    checkpoint = read_torch_checkpoint(path)
    if not isinstance(checkpoint.get("state_dict"), dict):
        raise ValueError(f'{str(path)!r} must hold a dictionary with a "state_dict". Pass a checkpoint of MDLM.')
    require_tensors(checkpoint["state_dict"], f"The weights in {str(path)!r}")
    return checkpoint


def convert_mdlm_checkpoint(checkpoint: Mapping[str, Any], use_ema: bool = True) -> dict[str, torch.Tensor]:
    """Take the weights of an `MDLMTransformer` out of a checkpoint; the tensors are passed on, not copied.

    Args:
        checkpoint: What `read_mdlm_checkpoint` returned.
        use_ema: Whether to take the averaged weights, which MDLM samples with and publishes, or the last ones. The
            average is a list without names, in the order of the weights.

    Raises:
        ValueError: If there are weights of something else, or the averaged ones are not there, or are not as many or
            not shaped as the weights.
    """
    unknown = [key for key in checkpoint["state_dict"] if not key.startswith((_PREFIX, _NOISE))]
    if unknown:
        raise ValueError(
            f"The checkpoint must hold the weights of an MDLM, named {_PREFIX!r}..., and its noise schedule's, got "
            f"{len(unknown)} others: {', '.join(map(repr, unknown[:5]))}. Pass the checkpoint as published."
        )
    state_dict = {
        key.removeprefix(_PREFIX): tensor for key, tensor in checkpoint["state_dict"].items() if key.startswith(_PREFIX)
    }
    if not use_ema:
        return state_dict
    average = checkpoint.get("ema")
    if not isinstance(average, Mapping) or not isinstance(average.get("shadow_params"), list):
        raise ValueError(
            'The checkpoint must hold averaged weights under "ema", got none. Pass `use_ema=False` to '
            "`load_mdlm_checkpoint` for the last ones."
        )
    names = [name for name in state_dict if name != _BUFFER]
    shadows = average["shadow_params"][: len(names)]
    shapes = [tuple(shadow.shape) for shadow in shadows if isinstance(shadow, torch.Tensor)]
    if shapes != [tuple(state_dict[name].shape) for name in names]:
        raise ValueError("The averaged weights must be tensors shaped as the weights, they are not. Use another file.")
    return state_dict | {name: require_stored(shadow, name) for name, shadow in zip(names, shadows, strict=True)}


def mdlm_config(state_dict: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """Read the sizes of an `MDLMTransformer` off the shapes of its weights: all but `model_length`."""
    try:
        vocab_size, hidden_dim = state_dict["vocab_embed.embedding"].shape
        return {
            "vocab_size": vocab_size,
            "hidden_dim": hidden_dim,
            "cond_dim": state_dict["sigma_map.mlp.2.weight"].shape[0],
            "n_blocks": sum(key.endswith(".attn_out.weight") for key in state_dict),
            "n_heads": hidden_dim // (2 * len(state_dict[_BUFFER])),
        }
    except KeyError as error:
        raise ValueError(f"`state_dict` must hold the weights of an MDLM, {error} is not there.") from error


def load_mdlm_checkpoint(
    path: str | Path,
    use_ema: bool = True,
    model_length: int = 1024,
    dropout: float = 0.1,
    time_conditioning: bool = False,
) -> MDLMTransformer:
    """Make a model of a checkpoint of MDLM's training code; nothing in the file is run.

    Example:

        model = load_mdlm_checkpoint("mdlm.ckpt")
        model.save_pretrained("mdlm/transformer")

    Args:
        path: The `.ckpt` file.
        use_ema: Whether to take the averaged weights.
        model_length, dropout, time_conditioning: What no tensor tells; the defaults are those of MDLM on OpenWebText.

    Raises:
        ValueError: If the file is not such a checkpoint.
    """
    state_dict = convert_mdlm_checkpoint(read_mdlm_checkpoint(path), use_ema)
    with torch.device("meta"):
        model = MDLMTransformer(
            **mdlm_config(state_dict),
            model_length=model_length,
            dropout=dropout,
            time_conditioning=time_conditioning,
        )
    try:
        model.load_state_dict(state_dict, assign=True)
    except RuntimeError as error:
        raise ValueError(f"The weights in {str(path)!r} are not those of an MDLM. {error}") from error
    return model.eval()


def mdlm(vocab_size: int = 50258) -> Preset:
    """MDLM's sampler, by default for the model on OpenWebText, in 1000 steps."""
    scheduler = AncestralScheduler(
        mask_token_id=vocab_size - 1, codebook_size=vocab_size - 1, masking_schedule="linear"
    )
    return Preset(scheduler, 1000)


def bd3lm(vocab_size: int = 50258) -> Preset:
    """BD3-LM's sampler: a block after the other, one position per pass."""
    return Preset(FirstHittingScheduler(mask_token_id=vocab_size - 1, codebook_size=vocab_size - 1), 1000)


def check_mask(tokenizer: PreTrainedTokenizerBase, transformer: MDLMTransformer) -> None:
    """`ValueError` where the tokenizer has a text in the place of the mask, which is the model's last row."""
    mask = transformer.config.vocab_size - 1
    taken = next((token for token, index in tokenizer.get_vocab().items() if index == mask), None)
    if taken not in (None, tokenizer.mask_token):
        raise ValueError(
            f"the model's last row, {mask}, must be the mask's alone, got a tokenizer whose {taken!r} has that id. "
            "Pass the tokenizer that the model was trained with."
        )


def is_mdlm(checkpoint: Mapping[str, Any]) -> bool:
    """Whether a checkpoint is one of MDLM's training code."""
    return f"{_PREFIX}vocab_embed.embedding" in names_in(checkpoint, "state_dict")
