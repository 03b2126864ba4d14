"""Where a checkpoint comes from: a path on this machine, or a repository on the Hub."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, ModelCard, hf_hub_download, snapshot_download

from hf_maskdiff.hub import CARD
from hf_maskdiff.published.malformed import read_json, settings_of
from hf_maskdiff_cli.convert import folder_of, may_be_checkpoint, repository_of

# Checkpoints that are known by their names: VampNet's two models and their codec, of a repository that holds more.
NAMED = ("coarse.pth", "c2f.pth", "codec.pth")


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


def locate(
    source: str | Path, revision: str | None = None, argument: str = "source", else_fetch: Sequence[str] = ()
) -> Source:
    """Find a source on this machine, or fetch it from the Hub, and of a repository only what is needed.

    Args:
        argument: what to call it in an error.
        else_fetch: files to fetch besides from a repository that has no safetensors.

    Raises:
        ValueError: If it is neither a path nor an id, a path with a revision, or a repository with several checkpoints.
        OSError: If the Hub has no such repository, file or revision, or cannot be reached.
    """
    place = repository_of(source, revision, argument)
    if place is None:
        return Source(folder_of(Path(source)), Path(source).name)
    try:
        return _fetch(str(source), place.repo_id, place.file, place.revision, else_fetch)
    except ValueError:
        raise
    except Exception as error:  # the Hub's client raises those of the library that it connects with, too
        raise OSError(
            f"`{argument}` must be a path on this machine, or a repository that the Hub gives out, got "
            f"{str(source)!r}. Check the name, or fetch it yourself and pass the path. ({error})"
        ) from error


def _fetch(source: str, repo_id: str, file: str | None, revision: str | None, else_fetch: Sequence[str] = ()) -> Source:
    info = HfApi().model_info(repo_id, revision=revision)
    names = [sibling.rfilename for sibling in info.siblings or []]
    licence = None
    if CARD in names:
        licence = ModelCard.load(hf_hub_download(repo_id, CARD, revision=info.sha)).data.get("license")
    details = {"repo_id": repo_id, "revision": info.sha, "licence": licence}
    written = ["*.json", "*.txt", "*.jinja", "*.model", "*.safetensors"]  # what diffusers and transformers write
    if file is not None and file not in names and any(name.startswith(f"{file}/") for name in names):
        patterns = [f"{file}/{pattern}" for pattern in (*written, *NAMED)]
        folder = snapshot_download(repo_id, revision=info.sha, allow_patterns=patterns)
        return Source(Path(folder, file), source, **details)
    if file is not None:
        return Source(Path(hf_hub_download(repo_id, file, revision=info.sha)), source, **details)
    has_safetensors = any(name.endswith(".safetensors") for name in names)
    patterns = written if has_safetensors else [*written, *else_fetch]
    if not {"model_index.json", "config.json", "transformer/config.json"} & set(names):
        patterns = [name for name in names if may_be_checkpoint(Path(name))]
        if NAMED[0] in names:
            patterns = [name for name in NAMED if name in names]
        elif len(patterns) > 2:
            raise ValueError(f"`source` must be one checkpoint, {repo_id!r} has {patterns}. Pass '{repo_id}/<one>'.")
    folder = snapshot_download(repo_id, revision=info.sha, allow_patterns=patterns)
    return Source(Path(folder), source, **details)


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
