"""Loading, as every model here does it: sizes are compared with the weights first."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from hf_maskdiff.hub import ModelCardMixin
from hf_maskdiff.published.malformed import read_json, refusing, settings_of
from hf_maskdiff.published.sizes import check_sizes, shapes_of


def check_folder(folder: Path) -> None:
    """`ValueError` where a folder's settings are malformed, or a size in them is larger than any of its weights."""
    config = folder / "config.json"
    if config.is_file():  # else it is on the Hub, or nowhere
        settings = settings_of(f"config.json in {str(folder)!r}", lambda: read_json(config))
        files = [*folder.glob("*.safetensors"), *folder.glob("transformer/*.safetensors")]  # the latter of a pipeline
        check_sizes(settings, shapes_of(map(str, files)) or None)


class SizedModelMixin(ModelCardMixin):
    """Refuses a folder whose `config.json` is malformed, or describes a larger model than its weights.

    Goes before diffusers' bases, as `ModelCardMixin`, which it is.
    """

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> Any:
        """As for every diffusers model.

        Raises:
            ValueError: settings that are malformed, or do not fit the weights beside them.
            OSError: no such model.
        """
        folder = Path(pretrained_model_name_or_path, kwargs.get("subfolder") or "")
        check_folder(folder)
        what = f"config.json in {str(folder)!r}"
        with refusing(what, "Take config.json and weights from one model.", passed=(RuntimeError, MemoryError)):
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)
