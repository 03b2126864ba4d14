"""What the image pipelines take, read and checked: labels, images, masks, codes, guidance."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from diffusers.image_processor import PipelineImageInput, VaeImageProcessor
from PIL import Image
from torch import Tensor

from ..integers import as_integer, is_integer, is_number, plain
from ..pictures import opaque_white, upright
from .calls import GuidanceScale, as_pair

Label = int | str


def label_ids(
    labels: Label | Iterable[Label] | Tensor | None, num_classes: int, has_null_class: bool, id2label: Mapping
) -> list[int]:
    """Class ids from ids or names; None is the unconditional class, `num_classes`.

    Args:
        labels: one or several, in whatever holds them; numbers of numpy and torch too.
        num_classes: of the model.
        has_null_class: whether the model knows images of no class.
        id2label: names of the classes; where one lists several, separated by commas, each of them counts.

    Raises:
        ValueError: an id out of range, a name that is not there, None for a model without a null class.
    """
    if labels is None:
        if not has_null_class:
            raise ValueError(
                "`class_labels` must be given, got None: this model was never shown an image without its class. "
                f"Pass ids in 0 .. {num_classes - 1}."
            )
        return [num_classes]
    if isinstance(labels, Tensor):
        labels = labels.flatten()
    several: Any = labels
    if isinstance(labels, str) or not isinstance(labels, Iterable) or getattr(labels, "ndim", 1) == 0:
        several = [labels]
    ids_of_names: dict[str, int] = {}
    for label_id, names in id2label.items():
        for name in (names, *str(names).split(",")):
            ids_of_names.setdefault(name.strip(), int(label_id))
    return [_label_id(label, ids_of_names, num_classes) for label in several]


def _label_id(label: Any, ids_of_names: dict[str, int], num_classes: int) -> int:
    if isinstance(label, str):
        if label in ids_of_names:
            return ids_of_names[label]
        close = difflib.get_close_matches(label, ids_of_names, n=3) or list(ids_of_names)[:3]
        remedy = f"Did you mean one of {close}?" if close else "This model has no names: pass an id."
        raise ValueError(f"`class_labels` must be names in the model's `id2label` or ids, got {label!r}. {remedy}")
    if not is_integer(label, at_least=0) or (found := as_integer(label)) >= num_classes:
        raise ValueError(
            f"`class_labels` must be in 0 .. {num_classes - 1}, got {plain(label)!r}. Pass None for an image of no "
            "class."
        )
    return found


def read_images(
    name: str,
    images: PipelineImageInput,
    processor: VaeImageProcessor,
    channels: int,
    size: tuple[int, int] | None = None,
    pillow: Callable[[Image.Image], Image.Image] = upright,
) -> list[Tensor]:
    """What diffusers' processor makes of each image, float32 `(1, channels, height, width)`; a batch stays together.

    Args:
        name: of the argument, for errors.
        images: PIL images, arrays or tensors, one or a list.
        processor: converts and resizes.
        channels: that each image must have then.
        size: pixels to resize to, height and width; None keeps the size.
        pillow: what is made of a PIL image before the processor sees it: 8 bits a channel.

    Raises:
        ValueError: not images, or values outside [0, 1], such as NaN.
    """
    given = images if isinstance(images, list | tuple) else [images]
    height, width = size or (None, None)
    got = [tuple(image.shape) if hasattr(image, "shape") else image for image in given]
    try:
        read = [pillow(image) if isinstance(image, Image.Image) else image for image in given]
        tensors = [processor.preprocess(image, height, width).float() for image in read]
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"`{name}` must be a PIL image, a float array or tensor, or a list of them, got {got}. Pass "
            f"for example `Image.open(path)`. ({error})"
        ) from error
    if not tensors or any(t.ndim != 4 or t.shape[1] != channels or not t.numel() for t in tensors):
        raise ValueError(
            f"`{name}` must hold images of {channels} channel(s), got {got}. Pass PIL images, which are "
            "converted, arrays (height, width, channels) or tensors (channels, height, width)."
        )
    for tensor, image in zip(tensors, given, strict=True):
        if not bool(((tensor >= 0) & (tensor <= 1)).all()):
            raise ValueError(
                f"`{name}` must hold values in [0, 1], got values from {float(tensor.min()):.3g} to "
                f"{float(tensor.max()):.3g}. Divide {_largest(image)}, or pass PIL images."
            )
    return tensors


def _largest(image: Any) -> str:
    """What to divide an array by to get values in [0, 1], as far as its type says that."""
    is_uint16 = str(getattr(image, "dtype", "")).endswith("uint16")
    return "16-bit values by 65535" if is_uint16 else "bytes by 255"


def read_masks(masks: PipelineImageInput, processor: VaeImageProcessor) -> list[Tensor]:
    """Masks as `read_images` gives them, `(1, 1, height, width)`; at least 0.5 is white.

    Raises:
        ValueError: also for a mask that is neither black nor white anywhere: one that means 1 of 255 as white.
    """
    tensors = read_images("mask_image", masks, processor, 1, pillow=opaque_white)
    for tensor in tensors:
        if 0 < (largest := float(tensor.max())) < 0.5:
            raise ValueError(
                f"`mask_image` must hold values of at least 0.5 where to draw anew, got at most {largest:.3g}. "
                "Multiply it, for example `mask.point(lambda value: 255 * (value > 0))`."
            )
    return tensors


def check_call_defaults(call_defaults: Mapping[str, Any] | None, *others: str) -> None:
    """Raise `ValueError` for a default of what a pipeline of images has none of.

    Args:
        others: names besides those that all of them have.
    """
    names = ("num_inference_steps", "guidance_scale", *others)
    unknown = sorted(set(call_defaults or {}) - set(names))
    if unknown:
        raise ValueError(
            f"`call_defaults` must name {', '.join(f'`{name}`' for name in names)} only, got {unknown}. Pass the "
            "others to the call."
        )


def check_counts(given: Mapping[str, int]) -> None:
    """There must be as many labels, images and masks as of each other, or one; `given` counts each argument."""
    if given.get("class_labels") == 0:
        raise ValueError("`class_labels` must hold at least one label, got none. Pass None for no class.")
    if any(count not in (1, max(given.values())) for count in given.values()):
        raise ValueError(
            f"{', '.join(f'`{name}`' for name in given)} must hold one each, or as many as the others, got "
            f"{given}. Pass one for all, or one for each."
        )


def check_unguided(guidance_scale: GuidanceScale) -> None:
    """No scale may exceed 1: for models that know no image of no class."""
    if max(as_pair(guidance_scale)) > 1:
        raise ValueError(
            f"`guidance_scale` must not exceed 1, got {guidance_scale!r}: this model was never shown an image without "
            "its class. Leave it out."
        )


def check_editing(given: Mapping[str, int], strength: float, latents: Tensor | None) -> None:
    """Masks and strength need an image, codes exclude one; `given` counts what was given of each argument."""
    if not is_number(strength) or not 0 < strength <= 1:
        raise ValueError(
            f"`strength` must be in (0, 1], got {strength!r}. Pass the share of the steps to run; 1 draws anew."
        )
    if "image" not in given and ("mask_image" in given or strength != 1):
        name = "mask_image" if "mask_image" in given else "strength"
        raise ValueError(f"`{name}` must come with an `image`, got none. Pass the image to edit as `image=`.")
    if "image" in given and latents is not None:
        raise ValueError(
            "`latents` must be None where an `image` is given, got both. Pass `image` with `mask_image`, or codes "
            "that are masked already."
        )


def first_step_of(strength: float, num_inference_steps: int) -> int:
    """The step that an edit starts with, of the last `round(strength * num_inference_steps)` of all."""
    first_step = num_inference_steps - round(strength * num_inference_steps)
    if first_step == num_inference_steps:
        raise ValueError(
            f"`strength` must leave a step to run, got {strength} of {num_inference_steps} steps. Pass at least "
            f"{1 / num_inference_steps:.2g}, or more steps."
        )
    return first_step


def check_latents(latents: Tensor, shape: tuple[int, ...], codebook_size: int, mask_token_id: int) -> None:
    """They must be int64 of that shape, and hold codes or the mask."""
    if not isinstance(latents, Tensor) or tuple(latents.shape) != shape or latents.dtype != torch.int64:
        got = f"{latents.dtype} {tuple(latents.shape)}" if isinstance(latents, Tensor) else type(latents).__name__
        raise ValueError(
            f"`latents` must be int64 codes of shape {shape}, got {got}. Pass "
            f"codes of the tokenizer, {mask_token_id} where the image shall be filled in."
        )
    known = (latents >= 0) & (latents < codebook_size)
    if not bool((known | (latents == mask_token_id)).all()):
        raise ValueError(
            f"`latents` must hold codes in 0 .. {codebook_size - 1} or the mask {mask_token_id}, got values from "
            f"{int(latents.min())} to {int(latents.max())}. Replace the others by the mask."
        )
