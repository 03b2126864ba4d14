"""Recorded runs of text models, run again through the text pipeline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from golden_data import num_rows, real_prompt
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from hf_maskdiff import MaskedDiffusionTextPipeline
from hf_maskdiff.sampling import Marginals


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def number(settings: dict[str, str], key: str) -> float:
    """Of a run, 0 where it was not told one."""
    value = settings.get(key, "None")
    return 0.0 if value == "None" else float(value)


def open_pipeline(folder: Path) -> MaskedDiffusionTextPipeline:
    words = WordLevel({f"w{i}": i for i in range(num_rows(config_of(folder)))}, unk_token="w0")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words))
    pipe = MaskedDiffusionTextPipeline.from_pretrained(folder, tokenizer=tokenizer)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def starts(trace: dict[str, Tensor], mask_token_id: int) -> list[Tensor]:
    """Each row without its padding, int64 `(1, length)`."""
    new = trace["final"].shape[1] - trace["prompt"].shape[1]
    masks = torch.full((new,), mask_token_id)
    return [torch.cat([ids[row], masks])[None] for ids, row in zip(trace["prompt"], real_prompt(trace), strict=True)]


class Run:
    """A run of a pipeline: all that is written before each step and after the last one, each `(batch_size, length)`."""

    def __init__(self, pipe: MaskedDiffusionTextPipeline, ids: Tensor) -> None:
        self.pipe, self.states = pipe, [ids]

    def block(self, size: int, num_steps: int) -> slice:
        """Where the current block of `size` tokens stands, `num_steps` steps a block."""
        first = self.states[0]
        prompt_length = int((first[0] != self.pipe.mask_token_id).sum()) if size < first.shape[1] else 0
        start = prompt_length + (len(self.states) - 1) // num_steps * size
        return slice(start, start + size)

    def __call__(self, num_inference_steps: int, **call: Any) -> Tensor:
        def keep(pipe: object, step: int, timestep: object, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            state = self.states[-1].clone()
            size = tensors["sequences"].shape[1]
            state[:, self.block(size, num_inference_steps)] = tensors["sequences"]
            self.states.append(state)
            return tensors

        call |= {"callback_on_step_end": keep, "callback_on_step_end_tensor_inputs": ["sequences"]}
        self.pipe(input_ids=self.states[0], num_inference_steps=num_inference_steps, **call)
        return torch.stack(self.states)


def passes_of(pipe: MaskedDiffusionTextPipeline, start: Tensor, **call: object) -> tuple[list[Tensor], Tensor]:
    """What the model saw in each pass, and what came out, `(batch_size, length)`."""
    seen: list[Tensor] = []

    def look(model: object, args: tuple, given: dict) -> None:
        ids = given["input_ids"] if "input_ids" in given else args[0]
        if ids.shape[1] == start.shape[1]:  # shorter ones ask the model how it attends
            seen.append(ids)

    hook = pipe.transformer.register_forward_pre_hook(look, with_kwargs=True)
    made = torch.stack(pipe(input_ids=start, **call).sequences)
    hook.remove()
    return seen, made


def everywhere(marginals: Marginals, shape: torch.Size) -> Tensor:
    """The logits of all positions; those of positions that are known, which nothing reads, are 0."""
    if marginals.places is None:
        return marginals.logits
    logits = marginals.logits.new_zeros(shape.numel(), marginals.logits.shape[-1])
    real = marginals.places >= 0
    logits[marginals.places[real]] = marginals.logits[real]
    return logits.view(*shape, -1)
