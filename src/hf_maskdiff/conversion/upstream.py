"""What a published format is to the converter: how its files are known, read and sampled from."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import ModelMixin
from torch import Tensor

from hf_maskdiff.schedulers import MaskedDiffusionScheduler

Tree = Mapping[str, Any]  # a checkpoint as it was read


@dataclass(frozen=True)
class Component:
    """A model to be: its class, its configuration, and weights with its own names."""

    model_class: type[ModelMixin]
    config: Mapping[str, Any]
    state_dict: dict[str, Tensor]

    def build(self) -> ModelMixin:
        """The model, ready for use. Its weights are those of `state_dict` themselves, not copies.

        Raises:
            ValueError: naming the weights that are missing, too many, or of another shape.
        """
        with torch.device("meta"):
            model = self.model_class(**self.config)
        try:
            model.load_state_dict(self.state_dict, assign=True)
        except RuntimeError as error:
            name = self.model_class.__name__
            raise ValueError(f"The checkpoint's weights must be those of a {name}, they are not. {error}") from error
        return model.eval()


@dataclass(frozen=True)
class Preset:
    """How an upstream samples: a complete scheduler, and what its pipeline's call takes unless told otherwise.

    Args:
        guidance_scale: a number, or a pair spaced evenly over the steps.
    """

    scheduler: MaskedDiffusionScheduler
    num_inference_steps: int
    guidance_scale: float | Sequence[float] = 1.0


@dataclass(frozen=True)
class Upstream:
    """One published format of image models.

    Args:
        name: its repository.
        licence: of its code, an id of the Hub's.
        contents: which components a checkpoint holds, of "transformer" and "vqvae"; none where it is another's.
        transformer: `(checkpoint, codebook_size, heads)` to the denoiser; `heads` are what no tensor tells.
        vqvae: checkpoint to the tokenizer.
        preset: how it samples, for a denoiser.
        widths: where no tensor tells the numbers of attention heads: how wide what has heads is, and how many heads
            that width was published with.
        notes: sentences for the model card: how the preset differs from the original's sampler.
        tokenizer_source: where its tokenizer is published, where that is not in the same file.
        do_normalize: whether its tokenizer's images lie in [-1, 1], rather than in [0, 1].
        terms: a sentence on the licence, where that of the code is unknown.
    """

    name: str
    licence: str
    contents: Callable[[Tree], set[str]]
    transformer: Callable[[Tree, int, Sequence[int]], Component]
    vqvae: Callable[[Tree], Component]
    preset: Callable[[ModelMixin], Preset]
    notes: str
    widths: Callable[[Tree], Sequence[tuple[int, int | None]]] = lambda tree: ()
    tokenizer_source: str = ""
    do_normalize: bool = False
    terms: str | None = None
    tags: tuple[str, ...] = field(default_factory=tuple)


def renamed(state_dict: Mapping[str, Tensor], rules: Mapping[str, str], what: str) -> dict[str, Tensor]:
    """Weights under other names; the tensors are passed on, not copied.

    Args:
        rules: patterns of whole names, the first that fits counts, and what they become, as `re.Match.expand` reads
            it; an empty string drops the weight.
        what: the upstream, for the error.

    Raises:
        ValueError: naming what no rule knows.
    """
    compiled = [(re.compile(pattern), template) for pattern, template in rules.items()]
    result, unknown = {}, []
    for key, tensor in state_dict.items():
        match, template = next(((m, t) for p, t in compiled if (m := p.fullmatch(key))), (None, ""))
        if match is None:
            unknown.append(key)
        elif template:
            result[match.expand(template)] = tensor
    if unknown:
        raise ValueError(
            f"The checkpoint must hold the weights of {what} and no others, got {len(unknown)} unknown: "
            f"{', '.join(map(repr, unknown[:5]))}. Pass the checkpoint as published."
        )
    return result


def split_qkv(state_dict: dict[str, Tensor], fused: str) -> dict[str, Tensor]:
    """Projections that are stored as one, `<block><fused>weight` and `bias`, as diffusers names the three of them."""
    result = {}
    for key, tensor in state_dict.items():
        block, found, kind = key.partition(fused)
        if not found:
            result[key] = tensor
            continue
        for name, part in zip(("to_q", "to_k", "to_v"), tensor.chunk(3), strict=True):
            result[f"{block}{name}.{kind}"] = part
    return result


def names_in(tree: Tree, key: str) -> set[str]:
    """The names under a key of a checkpoint of unknown origin; none where there is something else."""
    weights = tree.get(key)
    return set(map(str, weights)) if isinstance(weights, Mapping) else set()


def require_key(state_dict: Mapping[str, Tensor], key: str, what: str) -> Tensor:
    """A weight that the configuration is read off."""
    if key not in state_dict:
        raise ValueError(f"The checkpoint must hold the weights of {what}, {key!r} is missing. Fetch it again.")
    return state_dict[key]


def square_side(num_tokens: int) -> int:
    """Tokens per side of a square image."""
    side = math.isqrt(num_tokens)
    if side**2 != num_tokens:
        raise ValueError(f"The number of positions must be a square, got {num_tokens}. Pass a model of square images.")
    return side


def count_blocks(state_dict: Mapping[str, Tensor], pattern: str) -> int:
    """How many numbers the first group of a pattern takes among the names."""
    return len({match[1] for key in state_dict if (match := re.match(pattern, key))})


def missing_heads(widths: Sequence[tuple[int, int | None]], heads: Sequence[int]) -> dict[str, str]:
    """What `MissingOptions` says where numbers of attention heads are neither given nor published; else nothing.

    Raises:
        ValueError: more numbers than there is use for.
    """
    if len(heads) > len(widths):
        raise ValueError(
            f"`--num_attention_heads` must be {len(widths)} numbers at most for this model, got {list(heads)}. Leave "
            "the others out."
        )
    unknown = [width for width, published in widths[len(heads) :] if published is None]
    if not unknown:
        return {}
    order = "encoder's and decoder's" if len(widths) == 2 else "that the model was built with"
    return {
        "num_attention_heads": f"must be given for a model of width {unknown[0]}, which is not among the published "
        f"sizes: no tensor tells it. Pass {len(widths)}, {order}."
    }


def one_head_count(heads: Sequence[int], published: int | None, width: int) -> int:
    """The number of attention heads: as given, else as published for this width.

    Raises:
        ValueError: neither, or one that does not divide the width.
    """
    count = heads[0] if heads else published
    if count is None or count < 1:
        raise ValueError(
            f"`num_attention_heads` must be given for a model of width {width}, which is not among the published "
            "sizes: no tensor tells it. Pass the number that the model was built with; for MAGE two, encoder's and "
            "decoder's."
        )
    return count
