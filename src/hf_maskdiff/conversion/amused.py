"""aMUSEd (amused/amused-256 and -512): published as a pipeline of diffusers, and passed through as it is."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import diffusers
import transformers
from diffusers import ModelMixin
from transformers import PreTrainedModel

from hf_maskdiff.conversion.components import open_component, require_safetensors
from hf_maskdiff.conversion.parts import check_scheduler_ids
from hf_maskdiff.conversion.sources import read_settings
from hf_maskdiff.conversion.upstream import Preset
from hf_maskdiff.schedulers import MaskGITScheduler

LICENCE = "openrail++"
_COPIED = {".json", ".txt", ".model", ".safetensors"}
_SETTINGS = ("config.json", "scheduler_config.json")
NOTES = """\
A copy of the published pipeline, which opens with any scheduler of `hf-maskdiff`:

```python
from hf_maskdiff import MaskedDiffusionTextToImagePipeline, MomentScheduler

pipe = MaskedDiffusionTextToImagePipeline.from_pretrained({folder!r})
pipe.scheduler = MomentScheduler.from_config(pipe.scheduler.config)
image = pipe("a small red house by the sea").images[0]
```

Its own sampler, `MaskGITScheduler` with `choice_temperature=(2.0, 0.0)`, is the scheduler that it opens with. Stock
diffusers opens it too, with `AmusedPipeline.from_pretrained({folder!r})`, which takes these schedulers as well.
"""


def is_amused(folder: Path) -> bool:
    """Whether a folder is a saved pipeline of aMUSEd."""
    index = folder / "model_index.json"
    return index.is_file() and str(read_settings(index).get("_class_name")).startswith("Amused")


def check_amused(folder: Path) -> None:
    """Everything that is copied must fit together, and every weight be there, and a number.

    Raises:
        ValueError: a component of another library than diffusers and transformers; weights that are missing, of
            another shape, or no numbers; sizes that do not fit each other.
    """
    settings = {}
    for name, stated in read_settings(folder / "model_index.json").items():
        if isinstance(stated, list) and any(part is not None for part in stated):
            found = _class_of(name, stated)
            file = next((file for file in _SETTINGS if (folder / name / file).is_file()), None)
            settings[name] = read_settings(folder / name / file) if file else {}
            if issubclass(found, ModelMixin | PreTrainedModel):
                open_component(folder, name, found)  # and let it go: no more than one is ever in memory
    missing = sorted({"transformer", "vqvae", "scheduler"} - settings.keys())
    if missing:
        raise ValueError(f"model_index.json must name the parts of an aMUSEd, {missing} are not there. Fetch it again.")
    rows, codes = (settings["transformer"].get(size, 0) for size in ("vocab_size", "codebook_size"))
    own = settings["vqvae"].get("num_vq_embeddings")
    if codes != own:
        raise ValueError(f"The transformer's codes must be the tokenizer's, got {codes} and {own}. Fetch both again.")
    check_scheduler_ids(settings["scheduler"], rows)


def _class_of(name: str, stated: list[Any]) -> Any:
    """The class of a component, which must be one of diffusers or transformers: no other is imported."""
    library, found = next(
        ((lib, stated[1]) for lib in (diffusers, transformers) if lib.__name__ == stated[0]), (None, "")
    )
    cls = getattr(library, str(found), None)
    if len(stated) != 2 or not isinstance(cls, type):
        raise ValueError(
            f"{name!r} in model_index.json must be a class of diffusers or transformers, got {stated}. Code of a "
            "repository is never run: pass a revision without."
        )
    return cls


def copy_amused(folder: Path, output: Path) -> None:
    """Copy weights in safetensors, configurations and tokenizer of a pipeline of aMUSEd: no pickles, and no code.

    Raises:
        ValueError: a component whose weights are there as pickles only.
    """
    for component in (path for path in folder.iterdir() if path.is_dir()):
        require_safetensors(component)
    for file in (path for path in folder.rglob("*") if path.is_file() and path.suffix in _COPIED):
        relative = file.relative_to(folder)
        if not any(part.startswith(".") for part in relative.parts):
            (output / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, output / relative)


def amused(codebook_size: int = 8192, mask_token_id: int = 8255) -> Preset:
    """aMUSEd's sampler at diffusers' defaults."""
    scheduler = MaskGITScheduler(
        mask_token_id=mask_token_id,
        codebook_size=codebook_size,
        masking_schedule="cosine",
        choice_temperature=[2.0, 0.0],
    )
    return Preset(scheduler, 12, 10.0)
