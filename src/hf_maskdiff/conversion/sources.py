"""Where a checkpoint comes from: a path on this machine, or a repository on the Hub."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, ModelCard, hf_hub_download, snapshot_download

from hf_maskdiff.hub import CARD
from hf_maskdiff.published.malformed import read_json, settings_of

_CHECKPOINTS = {".pth", ".pt", ".ckpt", ""}  # flax's have no extension
_HUB_ID = re.compile(r"([\w.-]+/[\w.-]+)(?:/(.+))?")


@dataclass(frozen=True)
class Source:
    """Where a checkpoint comes from.

    Args:
        path: a file or a folder on this machine.
        name: what the model card calls it.
        repo_id, revision, licence: of the repository on the Hub it was fetched from, and the commit.
    """

    path: Path
    name: str
    repo_id: str | None = None
    revision: str | None = None
    licence: str | None = None

    @property
    def origin(self) -> str:
        """For a sentence: its name, and the revision where there is one."""
        return f"`{self.name}`" + (f" at revision `{self.revision}`" if self.revision else "")


def locate(source: str | Path, revision: str | None = None, argument: str = "source") -> Source:
    """A source on this machine; what is on the Hub is fetched, and only as much as is needed.

    Args:
        argument: what to call it in an error.

    Raises:
        ValueError: If it is neither a path nor an id, or a repository with several checkpoints.
        OSError: If the Hub has no such repository, file or revision, or cannot be reached.
    """
    path = Path(source)
    if path.exists():
        if revision is not None:
            raise ValueError(
                f"`revision` must be left out for a path on this machine, got {revision!r} for {str(source)!r}. Pass "
                "it with a repository of the Hub."
            )
        return Source(path, path.name)
    match = _HUB_ID.fullmatch(str(source))
    if match is None:
        raise ValueError(
            f"`{argument}` must be a file, a folder, a repository on the Hub or a file in one, got {str(source)!r}. "
            "Pass for example 'owner/name/model.pth'."
        )
    try:
        return _fetch(str(source), match[1], match[2], revision)
    except ValueError:
        raise
    except Exception as error:  # the Hub's client raises those of the library that it connects with, too
        raise OSError(
            f"`{argument}` must be a path on this machine, or a repository that the Hub gives out, got "
            f"{str(source)!r}. Check the name, or fetch it yourself and pass the path. ({error})"
        ) from error


def _fetch(source: str, repo_id: str, file: str | None, revision: str | None) -> Source:
    info = HfApi().model_info(repo_id, revision=revision)
    names = [sibling.rfilename for sibling in info.siblings or []]
    licence = None
    if CARD in names:
        licence = ModelCard.load(hf_hub_download(repo_id, CARD, revision=info.sha)).data.get("license")
    details = {"repo_id": repo_id, "revision": info.sha, "licence": licence}
    if file is not None:
        return Source(Path(hf_hub_download(repo_id, file, revision=info.sha)), source, **details)
    patterns = ["*.json", "*.txt", "*.jinja", "*.model", "*.safetensors"]  # what diffusers and transformers write
    if "model_index.json" not in names and "config.json" not in names:
        patterns = [name for name in names if _may_be_checkpoint(Path(name))]
        if len(patterns) > 2:
            raise ValueError(f"`source` must be one checkpoint, {repo_id!r} has {patterns}. Pass '{repo_id}/<one>'.")
    folder = snapshot_download(repo_id, revision=info.sha, allow_patterns=patterns)
    return Source(Path(folder), repo_id, **details)


def _may_be_checkpoint(path: Path) -> bool:
    """By its name; LICENSE and .gitattributes have no extension either."""
    return path.suffix in _CHECKPOINTS and not path.name.startswith(".") and not path.name.isupper()


def checkpoint_files(path: Path, argument: str = "source") -> list[Path]:
    """The checkpoints at a path: itself, or all that a folder holds.

    Raises:
        ValueError: none.
    """
    if path.suffix == ".safetensors":
        raise ValueError(
            f"`{argument}` must be the folder of {path.name!r}, with the config.json beside it, got the file. Pass "
            f"{str(path.parent)!r}."
        )
    if path.is_file():
        return [path]
    files = [file for file in sorted(path.rglob("*")) if file.is_file() and _may_be_checkpoint(file)]
    if not files:
        raise ValueError(
            f"`{argument}` must hold a checkpoint (.pth, .pt, .ckpt, or flax without an extension), {str(path)!r} "
            "holds none. Pass the file itself, or of a folder in safetensors the one with its config.json."
        )
    return files


def model_type(folder: Path) -> str | None:
    """What the `config.json` of a folder says it holds."""
    config = folder / "config.json"
    return read_settings(config).get("model_type") if config.is_file() else None


def read_settings(path: Path) -> dict[str, Any]:
    """What a .json file of unknown origin says, which must be a dictionary.

    Raises:
        ValueError: it holds anything else, or no text.
    """
    return settings_of(f"`source`'s {path.name!r}", lambda: read_json(path))
