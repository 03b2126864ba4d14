"""The pipelines that the page shows."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hf_maskdiff.caching import PartialCacheConfig
from hf_maskdiff.devices import require_device
from hf_maskdiff.sets.loading import open_pipeline
from hf_maskdiff_cli.names import IMAGES, SOUNDS, TEXTS
from hf_maskdiff_cli.samples import kind_of_pipeline

from .passes import watch
from .samplers import Choice

# Where the pipeline's own scheduler has no choice temperature, as it was published.
_CHOICE_TEMPERATURES = {IMAGES: 6.0, TEXTS: 4.0, SOUNDS: 6.0}


@dataclass(frozen=True)
class Opened:
    """A pipeline whose weights all users of the page share; nothing else of it is used by a run.

    Args:
        name: of its folder, or its repository.
        kind: `IMAGES`, `TEXTS` or `SOUNDS`.
        pipe: the pipeline.
    """

    name: str
    kind: str
    pipe: Any

    @property
    def mask_token_id(self) -> int:
        """The token that stands where one is to be filled in."""
        return self.pipe.scheduler.config.mask_token_id

    @property
    def choice_temperature(self) -> float:
        """What the sliders begin with: the choice temperature of the pipeline's own scheduler, where it is a number."""
        own = self.pipe.scheduler.choice_temperature
        return float(own) if isinstance(own, int | float) else _CHOICE_TEMPERATURES[self.kind]

    def for_one_run(self, choice: Choice) -> Any:
        """A pipeline of the same parts with a scheduler, and a switch for partial caching, of its own.

        Raises:
            ValueError: no such sampler, or settings that it refuses.
        """
        scheduler = choice.of.make(self.pipe.scheduler.config, choice.choice_temperature)
        parts, kind = {**self.pipe.components, "scheduler": scheduler}, type(self.pipe)
        names = [name for name in inspect.signature(kind.__init__).parameters if name != "self"]
        pipe = kind(**{name: parts[name] if name in parts else self.pipe.config[name] for name in names})
        pipe.set_progress_bar_config(disable=True)
        if choice.substeps > 1:
            pipe.enable_cache(PartialCacheConfig(num_substeps=choice.substeps))
        return pipe


def open_all(pipelines: Sequence[str], device: str | None = None, dtype: str = "float32") -> list[Opened]:
    """Open pipelines by their folders or ids.

    Args:
        pipelines: folders, or repositories of the Hub.
        device: such as "cuda"; None is the accelerator where there is one.
        dtype: name of torch's.

    Raises:
        ValueError: one cannot be loaded, or the machine has no such device.
    """
    if device is None:
        device = str(torch.accelerator.current_accelerator()) if torch.accelerator.is_available() else "cpu"
    require_device("--device", device)
    return [_open(pipeline, device, dtype) for pipeline in pipelines]


def _open(pipeline: str, device: str, dtype: str) -> Opened:
    pipe = open_pipeline(pipeline, {"dtype": getattr(torch, dtype)}).to(device)
    if "num_tokens" in pipe.transformer.config:
        raise ValueError(
            f"the demo must be given images whose codes have places, {pipeline!r} makes rows of codes. Call it from "
            "Python."
        )
    if getattr(pipe, "fine_transformer", None) is not None or getattr(pipe, "codec", True) is None:
        raise ValueError(
            f"the demo must be given sounds that one transformer draws and a codec decodes, {pipeline!r} has other "
            "parts. Call it from Python."
        )
    watch(pipe.transformer)
    name = Path(pipeline).resolve().name if Path(pipeline).exists() else pipeline
    return Opened(name, kind_of_pipeline(type(pipe).__name__, pipeline), pipe)
