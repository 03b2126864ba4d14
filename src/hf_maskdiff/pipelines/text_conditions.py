"""What a text-to-image model is told: prompts, in words or encoded, and the size, crop and score of the image."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..integers import as_integer, is_integer, is_number
from ..schedulers.checks import warn_user
from .image_conditions import COND, UNCOND, Arguments


@dataclass(frozen=True)
class TextFeatures:
    """What a text encoder makes of prompts.

    Args:
        pooled: one vector of each prompt, `(num_prompts, width)`.
        hidden: one of each of its tokens, `(num_prompts, num_tokens, width)`; where the tokenizer of images reads the
            text too, what it reads stands behind it, `(num_prompts, num_tokens, 2 * width)`.
    """

    pooled: Tensor
    hidden: Tensor

    def map(self, change: Callable[[Tensor], Tensor]) -> TextFeatures:
        """Both changed alike."""
        return TextFeatures(change(self.pooled), change(self.hidden))


@dataclass(frozen=True)
class TextReader:
    """The text encoder of a pipeline, and what its denoiser and its tokenizer of images read of a text.

    Args:
        tokenizer, text_encoder: None where prompts come encoded.
        pad_token_id: what texts are filled up with; None is what the tokenizer says.
        for_images: whether the tokenizer of images reads the text too.
        num_tokens: of a text, where that tokenizer reads so many; None for any number.
        read: widths of the pooled and the hidden features that the denoiser reads.
    """

    tokenizer: Any
    text_encoder: Any
    pad_token_id: int | None = None
    for_images: bool = False
    num_tokens: int | None = None
    read: tuple[int | None, int | None] = (None, None)

    @property
    def widths(self) -> tuple[int | None, int | None]:
        """Of pooled and hidden features; None where nobody tells them."""
        pooled, hidden = self.read
        if self.text_encoder is not None:
            pooled, hidden = self.text_encoder.config.projection_dim, self.text_encoder.config.hidden_size
        return pooled, hidden and hidden * (2 if self.for_images else 1)

    def encode(self, texts: list[str], device: torch.device) -> TextFeatures:
        """Features of texts; equal ones are encoded once.

        They are the projected output and the hidden states before the last layer; for images those behind it too,
        normalised.

        Raises:
            ValueError: no tokenizer, or no text encoder.
        """
        if self.tokenizer is None or self.text_encoder is None:
            raise ValueError(
                "prompts must come encoded to a pipeline without tokenizer and text encoder, got texts. Pass "
                "`prompt_embeds` and `encoder_hidden_states`, and the negative ones too where the image is guided."
            )
        different = list(dict.fromkeys(texts))
        ids = self._ids(different).to(device)
        encoded = self.text_encoder(ids, output_hidden_states=True, return_dict=True)
        hidden = encoded.hidden_states[-2]
        if self.for_images:
            hidden = torch.cat([hidden, encoded.last_hidden_state], -1)
        features = TextFeatures(encoded.text_embeds, hidden)
        if len(different) == len(texts):
            return features
        index = torch.tensor([different.index(text) for text in texts], device=device)
        return features.map(lambda values: values[index])

    def _ids(self, texts: list[str]) -> Tensor:
        """Ids of texts, all cut or filled up to one length; a warning for each that is cut."""
        length = self.tokenizer.model_max_length
        found = self.tokenizer(texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        for text, kept in zip(texts, found.input_ids, strict=True):
            if len(self.tokenizer(text, verbose=False).input_ids) > len(kept):
                start = text if len(text) <= 40 else f"{text[:40]} ..."
                message = f"the text encoder reads {length} tokens, what follows is left out: {start!r}"
                warn_user(message)
        if self.pad_token_id is None:
            return found.input_ids
        return found.input_ids.masked_fill(found.attention_mask == 0, self.pad_token_id)


@dataclass(frozen=True)
class TextInput:
    """A prompt argument of a call, and what may stand in its place.

    Args:
        name: of the argument.
        texts: None where features were given.
        features: None where texts were given.
    """

    name: str
    texts: list[str] | None = None
    features: TextFeatures | None = None

    def __len__(self) -> int:
        return len(self.texts) if self.features is None else len(self.features.pooled)  # type: ignore[arg-type]

    def encoded(self, encode: Callable[[list[str]], TextFeatures]) -> TextFeatures:
        """Its features."""
        return encode(self.texts or []) if self.features is None else self.features


def read_prompt(
    prefix: str, prompt: Any, pooled: Any, hidden: Any, default: str | None, reader: TextReader
) -> TextInput:
    """The prompts of a call, or the negative ones.

    Args:
        prefix: of the names of the three arguments: "" or "negative_".
        prompt: text, or several.
        pooled, hidden: `prompt_embeds` and `encoder_hidden_states`.
        default: the text where nothing is given; None where something must be.
        reader: whose features' sizes they must have.

    Raises:
        ValueError: neither, both, one of the two tensors alone, or of wrong types and shapes.
    """
    name, of_pooled, of_hidden = f"{prefix}prompt", f"{prefix}prompt_embeds", f"{prefix}encoder_hidden_states"
    if pooled is None and hidden is None:
        return TextInput(
            name, texts_of(name, default if prompt is None else prompt, f", or `{of_pooled}` in its place")
        )
    if prompt is not None:
        raise ValueError(
            f"`{name}` must be left out where `{of_pooled}` is given, got both. Pass the text, or what the text "
            "encoder made of it."
        )
    features = []
    for argument, value, ndim, width in zip(
        (of_pooled, of_hidden), (pooled, hidden), (2, 3), reader.widths, strict=True
    ):
        fits = isinstance(value, Tensor) and value.ndim == ndim and value.is_floating_point() and len(value)
        if not fits or width not in (None, value.shape[-1]):
            shape = ("num_prompts", *["num_tokens"] * (ndim - 2), width or "width")
            got = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else value
            raise ValueError(
                f"`{argument}` must be a floating-point tensor ({', '.join(map(str, shape))}), got {got}. Pass both "
                f"tensors that `pipe.encode_prompt` returns, as `{of_pooled}` and `{of_hidden}`."
            )
        features.append(value)
    if len(pooled) != len(hidden):
        raise ValueError(
            f"`{of_pooled}` and `{of_hidden}` must be of as many prompts, got {len(pooled)} and {len(hidden)}. Pass "
            "both tensors that one `pipe.encode_prompt` returns."
        )
    if not prefix and hidden.shape[1] != (reader.num_tokens or hidden.shape[1]):
        raise ValueError(
            f"`{of_hidden}` must be of the {reader.num_tokens} tokens that the tokenizer of images reads, got "
            f"{hidden.shape[1]}. Pass both tensors that `pipe.encode_prompt` returns."
        )
    return TextInput(name, features=TextFeatures(*features))


def widths_read(config: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Widths of the pooled and the hidden features that a denoiser reads, as its configuration calls them."""
    pooled = config.get("pooled_projection_dim", config.get("cond_embed_dim"))
    return pooled, config.get("joint_attention_dim", config.get("encoder_hidden_size"))


def texts_of(name: str, prompt: Any, in_its_place: str = "") -> list[str]:
    """The texts of an argument that holds one or several; `ValueError` where it holds anything else.

    Args:
        in_its_place: the end of the remedy.
    """
    texts = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(texts, Sequence) or not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(
            f'`{name}` must be a text or a list of texts, got {prompt!r}. Pass for example `{name}="a red house"`'
            f"{in_its_place}."
        )
    return list(texts)


def micro_conditions(
    size: tuple[int, int], crop: Sequence[float], score: float, batch_size: int, device: torch.device
) -> Tensor:
    """Width, height, crop and aesthetic score of each image, float32 `(batch_size, 5)`.

    In float32 whatever the model computes in: bfloat16 does not hold every size.
    """
    return torch.tensor([size[1], size[0], *crop, score], dtype=torch.float32, device=device).expand(batch_size, -1)


def check_micro_conditioning(crop: Any, score: Any) -> None:
    """Raise `ValueError` unless they are a pair of finite numbers and a finite number."""
    if not isinstance(crop, Sequence) or len(crop) != 2 or not all(map(_is_finite, crop)):
        raise ValueError(
            f"`micro_conditioning_crop_coord` must be a pair of finite numbers, got {crop!r}. Pass (0, 0) for an image "
            "that was not cropped."
        )
    if not _is_finite(score):
        raise ValueError(
            f"`micro_conditioning_aesthetic_score` must be a finite number, got {score!r}. Pass 6 for the usual one."
        )


def _is_finite(value: Any) -> bool:
    return is_number(value) and math.isfinite(value)


def check_read(transformer: Any, crop: Sequence[float]) -> None:
    """Raise `ValueError` for what a call tells of the picture and the model does not read."""
    if getattr(transformer, "reads_score_alone", False) and any(crop):
        raise ValueError(
            f"`micro_conditioning_crop_coord` must be left out for a {type(transformer).__name__}, which reads the "
            f"aesthetic score alone, got {tuple(crop)}. It would have no effect."
        )


def only_size(height: Any, width: Any, size: tuple[int, int]) -> tuple[int, int]:
    """Height and width in pixels of a model that has one size.

    Raises:
        ValueError: another size.
    """
    for name, value, own in zip(("height", "width"), (height, width), size, strict=True):
        if value is not None and (not is_integer(value, at_least=1) or as_integer(value) != own):
            raise ValueError(
                f"`{name}` must be {own} pixels, the one size of a model whose codes are no places in the image, got "
                f"{value!r}. Leave it out."
            )
    return size


def image_size(height: Any, width: Any, default: int, multiple: int) -> tuple[int, int]:
    """Height and width in pixels.

    Raises:
        ValueError: no multiple of what one cell of the model covers.
    """
    size = []
    for name, value in (("height", height), ("width", width)):
        value = default if value is None else as_integer(value)
        if not is_integer(value, at_least=1) or value % multiple:
            raise ValueError(
                f"`{name}` must be a multiple of {multiple} pixels, got {value!r}. Leave it out for {default}, the "
                "size that the model was trained with."
            )
        size.append(value)
    return size[0], size[1]


class TextCondition:
    """Prompts, negative prompts, and micro-conditioning of a batch.

    Args:
        cond: features of the prompts, of each image.
        uncond: returns those of the negative prompts; called when a pass first needs them.
        micro_conds: `(batch_size, 5)`.
        takes_noise: whether the model takes noise for the embeddings of the codes.
        for_images: whether the tokenizer of images reads the prompts too.
    """

    is_given = True

    def __init__(
        self,
        cond: TextFeatures,
        uncond: Callable[[], TextFeatures],
        micro_conds: Tensor,
        takes_noise: bool = False,
        for_images: bool = False,
    ) -> None:
        self.takes_noise, self._for_images = takes_noise, for_images
        self.decoding: Mapping[str, Tensor] = {"encoder_hidden_states": cond.hidden} if for_images else {}
        self._of_contexts, self._uncond, self.micro_conds = {COND: cond}, uncond, micro_conds

    def prepare(self) -> None:
        """Encode the negative prompts now, while the text encoder is where it works."""
        if UNCOND not in self._of_contexts:
            self._of_contexts[UNCOND] = self._uncond()

    def arguments(self, context: str, rows: Tensor | slice, steps_left: float | Tensor) -> Arguments:
        """See `ImageCondition`."""
        if context == UNCOND:
            self.prepare()
        features, micro_conds = self._of_contexts[context], self.micro_conds[rows]
        hidden = features.hidden[rows]
        named = {
            "encoder_hidden_states": hidden.chunk(2, -1)[0] if self._for_images else hidden,
            "pooled_projections": features.pooled[rows],
            "micro_conds": micro_conds,
            "timestep": torch.as_tensor(steps_left, dtype=torch.float32, device=micro_conds.device).expand(
                len(micro_conds)
            ),
        }
        return (), named
