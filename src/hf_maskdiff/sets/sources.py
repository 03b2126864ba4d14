"""What makes the samples of a set: a pipeline of images of classes or from text, or one of texts, or of sounds."""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from datasets import Audio, Features, Image, Value
from torch import Tensor

from hf_maskdiff.pipelines import MaskedDiffusionAudioPipeline, MaskedDiffusionTextPipeline
from hf_maskdiff.pipelines.audio_inputs import class_ids
from hf_maskdiff.wav_files import wav
from hf_maskdiff_cli.generate import require_arguments_of
from hf_maskdiff_cli.names import IMAGES, OF_PROMPTS, PIPELINES, SOUNDS, TEXTS
from hf_maskdiff_cli.samples import kind_of_pipeline


class Source(Protocol):
    """Makes samples of one kind; `generate` knows nothing else about the difference between images, texts and sounds.

    Args:
        features: the columns of the set.
        passes: of the model, over all samples made so far; a pass over part of a sample counts as that part.
    """

    features: Features
    passes: float

    def sample(self, indices: range, seeds: Sequence[int]) -> dict[str, Sequence[Any]]:
        """The samples with these indices, made together: one list for each column, in the order of `indices`."""

    def encode(self, columns: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """The columns as `features` store them; called in a second thread, while the next batch is made."""


class PassCounter:
    """Counts all the work of a model, by what its calls read: a row costs as much without a mask as with some.

    Args:
        model: whose first tensor argument is the tokens, `(batch_size, ...)`.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self.calls: list[tuple[int, int]] = []
        model.register_forward_pre_hook(self._count, with_kwargs=True)

    @torch.compiler.disable
    def _count(self, _: torch.nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
        tokens = next(value for value in (*inputs, *options.values()) if isinstance(value, Tensor))
        self.calls.append((tokens.shape[0], tokens[0].numel()))

    def take(self) -> float:
        """Passes since the last time, summed over all rows; the longest call among them is taken for a full pass."""
        length = max((length for _, length in self.calls), default=1)
        passes = sum(rows * positions for rows, positions in self.calls) / length
        self.calls.clear()
        return passes


class ImageSource:
    """Images of the classes in turn, stored as PNG with their label and codes.

    Args:
        pipe: the pipeline.
        args: of `hf-maskdiff generate`; its `class_labels` and `decode_chunk_size` are read.
        call: arguments of every call of the pipeline.
    """

    features = Features(
        index=Value("int64"), seed=Value("int64"), label=Value("int64"), image=Image(), tokens=[Value("int32")]
    )

    def __init__(self, pipe: Any, args: argparse.Namespace, call: dict[str, Any]) -> None:
        self.pipe, self.call, self.decode_chunk_size = pipe, call, args.decode_chunk_size
        self.counter, self.passes = PassCounter(pipe.transformer), 0.0
        self.read_arguments(pipe, args)

    def read_arguments(self, pipe: Any, args: argparse.Namespace) -> None:
        """What the images shall show."""
        num_classes = pipe.transformer.config.num_classes
        # A model without classes draws images without labels.
        labels = pipe.get_label_ids(args.class_labels) if args.class_labels else range(num_classes)
        self.labels: list[int | None] = [*labels] or [None]

    def sample(self, indices: range, seeds: Sequence[int]) -> dict[str, Sequence[Any]]:
        """Images before they are converted, `(channels, height, width)`, with labels and codes."""
        labels = [self.labels[i % len(self.labels)] for i in indices]
        generator = [torch.Generator().manual_seed(seed) for seed in seeds]
        which = {"num_images_per_prompt": len(labels)} if labels[0] is None else {"class_labels": labels}
        codes = self.pipe(**which, **self.call, generator=generator, output_type="latent").images
        self.passes += self.counter.take()
        return {"label": labels, **self._decoded(codes)}

    def _decoded(self, codes: Tensor, *told: Tensor) -> dict[str, Sequence[Any]]:
        """Codes and images, decoded in chunks of one size: how many are decoded together decides their last bits.

        Args:
            told: what the tokenizer of images reads besides, a row for each image.
        """
        chunks = zip(*(values.split(self.decode_chunk_size) for values in (codes, *told)), strict=True)
        images: list[Tensor] = []
        for chunk in chunks:
            missing = self.decode_chunk_size - len(chunk[0])
            padded = (torch.cat([part, part[-1:].expand(missing, *part.shape[1:])]) for part in chunk)
            images += self.pipe.decode_latents(*padded)[: len(chunk[0])].float().cpu()
        self.pipe.maybe_free_model_hooks()
        return {"tokens": codes.flatten(1).cpu().tolist(), "image": images}

    def encode(self, columns: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """The images as bytes of PNG."""
        pictures = self.pipe.image_processor.postprocess(torch.stack(columns["image"]), "pil")
        return {**columns, "image": [{"bytes": _png(picture), "path": None} for picture in pictures]}


class PromptedImageSource(ImageSource):
    """Images of the prompts in turn, stored as PNG with their prompt and codes; arguments as of `ImageSource`."""

    features = Features(
        index=Value("int64"), seed=Value("int64"), prompt=Value("string"), image=Image(), tokens=[Value("int32")]
    )

    def read_arguments(self, pipe: Any, args: argparse.Namespace) -> None:
        """See `ImageSource`."""
        if pipe.tokenizer is None or pipe.text_encoder is None:
            raise ValueError(
                "sets of images from text need a pipeline with a tokenizer and a text encoder, got one without in "
                f"{args.pipeline!r}. Pass a folder that holds both, or call this one in Python, with `prompt_embeds` "
                "and `encoder_hidden_states`."
            )
        self.prompts: list[str] = args.prompts

    def sample(self, indices: range, seeds: Sequence[int]) -> dict[str, Sequence[Any]]:
        """Images before they are converted, `(channels, height, width)`, with prompts and codes."""
        prompts = [self.prompts[i % len(self.prompts)] for i in indices]
        generator = [torch.Generator().manual_seed(seed) for seed in seeds]
        pooled, hidden = self.pipe.encode_prompt(prompts)
        which = {"prompt_embeds": pooled, "encoder_hidden_states": hidden}
        codes = self.pipe(**which, **self.call, generator=generator, output_type="latent").images
        self.passes += self.counter.take()
        read = [hidden] if getattr(self.pipe.vqvae, "reads_text", False) else []
        return {"prompt": prompts, **self._decoded(codes, *read)}


def _png(picture: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


class TextSource:
    """Texts after the prompts in turn, or free ones, stored with their prompt and token ids.

    Args:
        pipe: the pipeline.
        args: of `hf-maskdiff generate`; its `prompts` and `max_new_tokens` are read.
        call: arguments of every call of the pipeline.
    """

    features = Features(
        index=Value("int64"), seed=Value("int64"), prompt=Value("string"), text=Value("string"), tokens=[Value("int32")]
    )

    def __init__(self, pipe: MaskedDiffusionTextPipeline, args: argparse.Namespace, call: dict[str, Any]) -> None:
        self.pipe, self.counter, self.passes = pipe, PassCounter(pipe.transformer), 0.0
        self.call = call | ({} if args.max_new_tokens is None else {"max_new_tokens": args.max_new_tokens})
        self.prompts = args.prompts or [None]

    def sample(self, indices: range, seeds: Sequence[int]) -> dict[str, Sequence[Any]]:
        """Texts with their prompts and token ids."""
        prompts = [self.prompts[i % len(self.prompts)] for i in indices]
        generator = [torch.Generator().manual_seed(seed) for seed in seeds]
        which = {"num_return_sequences": len(prompts)} if prompts[0] is None else {"prompt": prompts}
        made = self.pipe(**which, **self.call, generator=generator)
        self.passes += self.counter.take()
        return {"prompt": prompts, "text": made.texts, "tokens": [ids.tolist() for ids in made.sequences]}

    def encode(self, columns: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """The columns as they are."""
        return columns


class SoundSource:
    """Sounds of the classes in turn, or of none, stored as WAV with their label and codes, codebook by codebook.

    Args:
        pipe: the pipeline.
        args: of `hf-maskdiff generate`; its `class_labels` and `audio_length_in_s` are read.
        call: arguments of every call of the pipeline.
    """

    def __init__(self, pipe: MaskedDiffusionAudioPipeline, args: argparse.Namespace, call: dict[str, Any]) -> None:
        models = [part for part in (pipe.transformer, pipe.fine_transformer) if part is not None]
        self.pipe, self.counters, self.passes = pipe, [PassCounter(model) for model in models], 0.0
        seconds = pipe.chunk_length_s if args.audio_length_in_s is None else args.audio_length_in_s
        self.call = call | {"audio_length_in_s": seconds, "output_type": "codes"}
        labels = class_ids(args.class_labels, pipe.transformer) if args.class_labels else None
        self.labels: list[int | None] = [*(labels or range(pipe.transformer.config.get("num_classes") or 0))] or [None]
        self.features = Features(
            index=Value("int64"),
            seed=Value("int64"),
            label=Value("int64"),
            audio=Audio(sampling_rate=pipe.sampling_rate),
            tokens=[Value("int32")],
        )

    def sample(self, indices: range, seeds: Sequence[int]) -> dict[str, Sequence[Any]]:
        """Waveforms `(channels, num_samples)`, with labels and codes."""
        labels = [self.labels[i % len(self.labels)] for i in indices]
        generator = [torch.Generator().manual_seed(seed) for seed in seeds]
        which = {"num_waveforms_per_prompt": len(labels)} if labels[0] is None else {"class_labels": labels}
        codes = self.pipe(**which, **self.call, generator=generator).codes
        self.passes += sum(counter.take() for counter in self.counters)
        audio = [self.pipe.decode_codes(one[None])[0].cpu() for one in codes]  # alone: a batch may change last bits
        self.pipe.maybe_free_model_hooks()
        return {"label": labels, "tokens": codes.flatten(1).cpu().tolist(), "audio": audio}

    def encode(self, columns: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """The waveforms as bytes of WAV."""
        files = [{"bytes": wav(audio, self.pipe.sampling_rate), "path": None} for audio in columns["audio"]]
        return {**columns, "audio": files}


_SOURCES: dict[str, Any] = {IMAGES: ImageSource, TEXTS: TextSource, SOUNDS: SoundSource}


def _source(pipeline: str) -> Any:
    return PromptedImageSource if pipeline in OF_PROMPTS else _SOURCES[PIPELINES[pipeline]]


def source_of(pipe: Any, args: argparse.Namespace) -> Source:
    """The source of a pipeline's samples, by what its class makes, or the one that it is derived from.

    Raises:
        ValueError: another pipeline, an argument for the other kind, or a class that the model does not have.
    """
    names = [base.__name__ for base in type(pipe).__mro__]
    known = next((name for name in names if name in PIPELINES), names[0])
    kind_of_pipeline(known, args.pipeline)
    require_arguments_of(known, args)
    wanted = {"num_inference_steps": args.num_inference_steps, "guidance_scale": args.guidance_scale}
    return _source(known)(pipe, args, {name: value for name, value in wanted.items() if value is not None})
