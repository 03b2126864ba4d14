"""Checkpoints of MDLM's training code (kuleshov-group/mdlm, arXiv 2406.07524) as `MDLMTransformer`."""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from hf_maskdiff.models.transformer_mdlm import MDLMTransformer

_PREFIX = "backbone."
_BUFFER = "rotary_emb.inv_freq"
# All that a checkpoint's tensors and containers need to be put together; storages are recognised by torch itself.
_ADMITTED = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    ("torch", "Size"): torch.Size,
}


class _Foreign:
    """Stands for anything not admitted: it takes whatever a pickle does to an object, and does nothing."""

    def __new__(cls, *args: object, **kwargs: object) -> _Foreign:
        return super().__new__(cls)

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __call__(self, *args: object) -> _Foreign:
        return self

    def ignore(self, *args: object) -> None:
        pass

    __setstate__ = __setitem__ = append = extend = add = ignore


class _RestrictedUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return _ADMITTED.get((module, name), _Foreign)


def read_mdlm_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint of PyTorch Lightning without running anything it names: safe on files of unknown origin.

    Tensors and plain containers are kept. Objects of other classes, such as the configuration and the tokenizer that
    are pickled under "hyper_parameters", are neither imported nor called; placeholders stand in their places.

    Args:
        path: A file written by `torch.save` in its zip format, the only one since PyTorch 1.6.

    Raises:
        ValueError: If the file is no such checkpoint, or its weights hold anything but tensors.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = {Path(name).name for name in archive.namelist()}
    except zipfile.BadZipFile:
        names = set()
    if "data.pkl" not in names or "constants.pkl" in names:  # the latter marks a program, which torch would load as one
        raise ValueError(f"`path` must be a checkpoint written by `torch.save`, got {str(path)!r}. Fetch it again.")
    try:
        checkpoint = torch.load(
            path,
            map_location="cpu",
            pickle_module=SimpleNamespace(Unpickler=_RestrictedUnpickler, __name__=__name__),
            weights_only=False,  # torch's own restriction would refuse the foreign classes instead of dropping them
        )
    except Exception as error:  # a crafted file can make the unpickler fail in any way
        raise ValueError(f"{str(path)!r} cannot be read as tensors and plain containers: {error}") from error

    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
        raise ValueError(f'{str(path)!r} must hold a dictionary with a "state_dict". Pass a checkpoint of MDLM.')
    for key, tensor in checkpoint["state_dict"].items():
        if not isinstance(tensor, torch.Tensor):
            raise ValueError(f"The weights in {str(path)!r} must be tensors, {key!r} is not. Do not use this file.")
    return checkpoint


def convert_mdlm_checkpoint(checkpoint: Mapping[str, Any], use_ema: bool = True) -> dict[str, torch.Tensor]:
    """Take the weights of an `MDLMTransformer` out of a checkpoint; the tensors are passed on, not copied.

    Args:
        checkpoint: What `read_mdlm_checkpoint` returned.
        use_ema: Whether to take the averaged weights, which MDLM samples with and publishes, or the last ones. The
            average is a list without names, in the order of the weights.

    Raises:
        ValueError: If the averaged weights are not there, or are not as many or not shaped as the weights.
    """
    state_dict = {
        key.removeprefix(_PREFIX): tensor
        for key, tensor in checkpoint["state_dict"].items()
        if key.startswith(_PREFIX)  # what else there is belongs to the noise schedule
    }
    if not use_ema:
        return state_dict
    average = checkpoint.get("ema")
    if not isinstance(average, Mapping) or not isinstance(average.get("shadow_params"), list):
        raise ValueError('The checkpoint must hold averaged weights under "ema", got none. Pass `use_ema=False`.')
    names = [name for name in state_dict if name != _BUFFER]
    shadows = average["shadow_params"][: len(names)]
    shapes = [tuple(shadow.shape) for shadow in shadows if isinstance(shadow, torch.Tensor)]
    if shapes != [tuple(state_dict[name].shape) for name in names]:
        raise ValueError("The averaged weights must be tensors shaped as the weights, they are not. Use another file.")
    return state_dict | dict(zip(names, shadows, strict=True))


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
