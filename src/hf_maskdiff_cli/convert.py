"""`hf-maskdiff convert`: its arguments, and which sources and outputs it refuses before a checkpoint is opened."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import NamedTuple

_CHECKPOINTS = {".pth", ".pt", ".ckpt", ".bin", ""}  # flax's have no extension
_IN_REPOSITORY = re.compile(r"(\w[\w.-]*/[\w.-]+)(?:@([\w./-]+)|/(.+))?")
# A folder with one of these may hold a model that is known by it; reading it shows which.
_DESCRIPTIONS = ("config.json", "model_index.json", "transformer/config.json", "antiberty/trained_models")

# Of pipelines of diffusers that are copied: the one of this package that opens them.
_AMUSED = ("AmusedPipeline", "AmusedImg2ImgPipeline", "AmusedInpaintPipeline")
_OPENS = dict.fromkeys(_AMUSED, "MaskedDiffusionTextToImagePipeline")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare every argument of the command."""
    add = parser.add_argument
    add(
        "source",
        help="file, folder, repository on the Hub, owner/name@revision of one, or owner/name/file in one",
    )
    add("output", help="folder to write: new, or empty")
    add("--tokenizer", help="where the tokenizer is, if elsewhere; forms as those of the source")
    add("--revision", help="branch, tag or commit of the source on the Hub")
    add(
        "--num_attention_heads",
        type=int,
        nargs="+",
        default=(),
        metavar="N",
        help="for sizes that were not published; for MAGE encoder's and decoder's",
    )
    add(
        "--attention",
        choices=["full", "block_causal"],
        help="of a model of dLLM that its type and name do not tell: full for an MDLM, block_causal for a BD3LM",
    )
    add("--block_size", type=int, help="of blocks seen from left to right, where config.json does not say it")
    add("--text_encoder", help="of a MaskGen: where the CLIP is that reads its prompts; forms as those of the source")


def check_arguments(args: argparse.Namespace) -> None:
    """Raise `ValueError` for a source or an output that cannot be meant; no weights are read for it."""
    require_new_or_empty(Path(args.output))
    source = Path(args.source)
    if repository_of(args.source, args.revision) is None and not _has_description(source):
        checkpoint_files(source)


def run(args: argparse.Namespace) -> Path:
    """Check the arguments, convert the checkpoint, say how to open it, and return its folder."""
    check_arguments(args)
    from hf_maskdiff.conversion.convert import convert

    said = (args.num_attention_heads, args.attention, args.block_size, args.text_encoder)
    output = convert(args.source, args.output, args.tokenizer, args.revision, *said)
    name = json.loads((output / "model_index.json").read_text())["_class_name"]
    name = _OPENS.get(name, name)
    print(f"{output}: open it with `{name}.from_pretrained({str(output)!r})`, read {output / 'README.md'}")
    return output


def require_new_or_empty(output: Path) -> None:
    """Raise `ValueError` if something already exists where a folder is to be written."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"`output` must be a new or empty folder, got {str(output)!r}. Pass another one.")


class InRepository(NamedTuple):
    """A place on the Hub: a repository, or one file in it, at a branch, tag or commit."""

    repo_id: str
    file: str | None
    revision: str | None


def repository_of(source: str | Path, revision: str | None = None, argument: str = "source") -> InRepository | None:
    """The place on the Hub that a source names, or None where it is a path on this machine.

    Args:
        argument: what to call the source in an error.

    Raises:
        ValueError: it is neither, or a path that was given a revision, or a repository that was given two.
    """
    if Path(source).exists():
        if revision is not None:
            raise ValueError(
                f"`revision` must be left out for a path on this machine, got {revision!r} for {str(source)!r}. Pass "
                "it with a repository of the Hub."
            )
        return None
    match = _IN_REPOSITORY.fullmatch(str(source))
    if match is None:
        raise ValueError(
            f"`{argument}` must be a file, a folder, a repository on the Hub or a file in one, got {str(source)!r}. "
            "Pass for example 'owner/name/model.pth'."
        )
    if match[2] is not None and revision is not None:
        raise ValueError(f"`revision` must be given once, got {revision!r} for {str(source)!r}. Leave one of them out.")
    return InRepository(match[1], match[3], match[2] or revision)


def checkpoint_files(path: Path, argument: str = "source") -> list[Path]:
    """The checkpoints at a path: the file itself, or all files of a folder that may be one.

    Args:
        argument: what to call the path in an error.

    Raises:
        ValueError: there is none, or the path is a file in safetensors, which is read with the files beside it.
    """
    if path.suffix == ".safetensors":
        raise ValueError(
            f"`{argument}` must be the folder of {path.name!r}, with the config.json beside it, got the file. Pass "
            f"{str(path.parent)!r}."
        )
    if path.is_file():
        return [path]
    files = [file for file in sorted(path.rglob("*")) if file.is_file() and may_be_checkpoint(file)]
    if not files:
        raise ValueError(
            f"`{argument}` must hold a checkpoint (.pth, .pt, .ckpt, .bin, or flax without an extension), "
            f"{str(path)!r} holds none. Pass the file itself, or of a folder in safetensors the one with its "
            "config.json."
        )
    return files


def may_be_checkpoint(path: Path) -> bool:
    """Whether a file's name is that of a checkpoint; LICENSE and .gitattributes have no extension either."""
    return path.suffix in _CHECKPOINTS and not path.name.startswith(".") and not path.name.isupper()


def folder_of(path: Path) -> Path:
    """The path itself, or of a `model.safetensors` with the config.json beside it their folder."""
    is_part = path.name == "model.safetensors" and (path.parent / "config.json").is_file()
    return path.parent if is_part else path


def _has_description(path: Path) -> bool:
    return any((folder_of(path) / name).exists() for name in _DESCRIPTIONS)
