"""aMUSEd (amused/amused-256 and -512): published as a pipeline of diffusers, and passed through as it is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from hf_maskdiff.conversion.upstream import Preset
from hf_maskdiff.schedulers import MaskGITScheduler

LICENCE = "openrail++"
_COPIED = {".json", ".txt", ".model", ".safetensors"}
_OTHER_WEIGHTS = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".msgpack", ".h5"}
NOTES = """\
A copy of the published pipeline, which stock diffusers opens as it is. Its sampler is `AmusedScheduler`; any scheduler
of `hf-maskdiff` takes its place:

```python
from diffusers import AmusedPipeline
from hf_maskdiff import MaskGITScheduler, MomentScheduler

pipe = AmusedPipeline.from_pretrained({folder!r})
pipe.scheduler = MomentScheduler.from_config(pipe.scheduler.config)
image = pipe("a small red house by the sea", num_inference_steps=12, temperature=(2, 0)).images[0]
```

`MaskGITScheduler` with `choice_temperature=(2.0, 0.0)` is its own sampler.
"""


def is_amused(folder: Path) -> bool:
    """Whether a folder is a saved pipeline of aMUSEd."""
    index = folder / "model_index.json"
    return index.is_file() and str(json.loads(index.read_text()).get("_class_name")).startswith("Amused")


def copy_amused(folder: Path, output: Path) -> None:
    """Copy weights in safetensors, configurations and tokenizer of a pipeline of aMUSEd: no pickles, and no code.

    Raises:
        ValueError: a component whose weights are there as pickles only.
    """
    for component in (path for path in folder.iterdir() if path.is_dir()):
        weights = [path for path in component.iterdir() if path.suffix in _OTHER_WEIGHTS]
        if weights and not list(component.glob("*.safetensors")):
            raise ValueError(
                f"{component.name!r} must have its weights in safetensors, got {weights[0].name!r} alone. Pass a "
                "revision that has them."
            )
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
