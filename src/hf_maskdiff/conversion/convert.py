"""Published checkpoints as pipeline folders: recognised, read without running anything in them, written whole."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from huggingface_hub import HfApi, ModelCard, ModelCardData, hf_hub_download, snapshot_download
from safetensors import SafetensorError
from transformers import AutoTokenizer

from hf_maskdiff.conversion import amused, halton_maskgit, mage, maskgit_jax, maskgit_pytorch_v1, mdlm, text_models
from hf_maskdiff.conversion.checkpoints import read_checkpoint
from hf_maskdiff.conversion.upstream import Tree, Upstream
from hf_maskdiff.hub import CARD
from hf_maskdiff.models import MDLMTransformer
from hf_maskdiff.pipelines import MaskedDiffusionTextPipeline, MaskGITPipeline, MDLMPipeline
from hf_maskdiff.pipelines.pipeline_mdlm import PUBLISHED_TOKENIZER

UPSTREAMS = (halton_maskgit.UPSTREAM, mage.UPSTREAM, maskgit_jax.UPSTREAM, maskgit_pytorch_v1.UPSTREAM)
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


def convert(
    source: str | Path,
    output: str | Path,
    tokenizer: str | Path | None = None,
    revision: str | None = None,
    num_attention_heads: Sequence[int] = (),
) -> Path:
    """Write a pipeline folder in safetensors, ready for `from_pretrained` and for the Hub, of a published checkpoint.

    The format is found out. Nothing in a checkpoint is run, whatever it holds. `output` appears whole or not at all.

    Example:

        tokenizer = "FoundationVision/LlamaGen/vq_ds16_c2i.pt"
        convert("llvictorll/Halton-Maskgit/ImageNet_256_base.pth", "halton-256", tokenizer)
        pipe = MaskGITPipeline.from_pretrained("halton-256")

    Args:
        source: A file or folder, a repository's id on the Hub, or such an id and the path of a file in it.
        output: The folder to write; it must not be there, or be empty.
        tokenizer: Where images' tokenizer is, if not in the same file or folder, in the same forms. For text the name
            or folder of a tokenizer of transformers.
        revision: Branch, tag or commit of `source` on the Hub.
        num_attention_heads: What no tensor tells, for models of sizes that were not published; MAGE takes two numbers,
            encoder's and decoder's.

    Returns:
        `output`.

    Raises:
        ValueError: A source that is of no known format, incomplete, or has weights that are missing, unknown or of the
            wrong shape.
        OSError: Files that cannot be read or written.
    """
    output = Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"`output` must be a new or empty folder, got {str(output)!r}. Pass another one.")
    found = locate(source, revision)
    try:
        write = _writer(found, output, tokenizer, num_attention_heads)
    except SafetensorError as error:
        raise ValueError(
            f"`source` must hold whole safetensors, {str(source)!r} does not: {error}. Fetch it again."
        ) from error
    except json.JSONDecodeError as error:
        raise ValueError(
            f"`source` must hold readable .json files, {str(source)!r} does not: {error}. Fetch it again."
        ) from error
    write_whole(output, write)
    return output


def _writer(found: Source, output: Path, tokenizer: str | Path | None, heads: Sequence[int]) -> Callable[[Path], None]:
    """What writes the folder: all that can be wrong with the source is found before it is called."""
    if found.path.is_dir() and amused.is_amused(found.path):
        return lambda folder: _write_amused(found, folder, output)
    if found.path.is_dir() and _model_type(found.path) == "mdlm":
        return _pipeline_writer(_mdlm_pipeline(MDLMTransformer.from_pretrained(found.path), tokenizer), found, output)
    if found.path.is_dir() and text_models.is_text_model(found.path):
        pipe, text = text_models.open_text_model(found.path, tokenizer)
        terms = f"Its publisher states the licence {text.licence}; read the card of the repository it came from."
        return _pipeline_writer(pipe, found, output, text.name, text.licence, text.notes, terms)
    trees = {path: read_checkpoint(path) for path in _checkpoint_files(found.path)}
    if [mdlm.is_mdlm(tree) for tree in trees.values()] == [True]:
        return _pipeline_writer(_mdlm_pipeline(mdlm.load_mdlm_checkpoint(next(iter(trees))), tokenizer), found, output)
    if tokenizer is not None:
        trees |= {path: read_checkpoint(path) for path in _checkpoint_files(locate(tokenizer).path)}
    upstream, transformer, vqvae = _parts(trees, found)
    images = _image_pipeline(upstream, transformer, vqvae, heads)
    return _pipeline_writer(images, found, output, upstream.name, upstream.licence, upstream.notes)


# --- where it comes from ----------------------------------------------------------------------------------------------


def locate(source: str | Path, revision: str | None = None) -> Source:
    """A source on this machine; what is on the Hub is fetched, and only as much as is needed.

    Raises:
        ValueError: If it is neither a path nor an id, or a repository with several checkpoints.
    """
    path = Path(source)
    if path.exists():
        return Source(path, path.name)
    match = _HUB_ID.fullmatch(str(source))
    if match is None:
        raise ValueError(
            f"`source` must be a file, a folder, a repository on the Hub or a file in one, got {str(source)!r}. Pass "
            "for example 'owner/name/model.pth'."
        )
    repo_id, file = match.groups()
    info = HfApi().model_info(repo_id, revision=revision)
    names = [sibling.rfilename for sibling in info.siblings or []]
    licence = None
    if CARD in names:
        licence = ModelCard.load(hf_hub_download(repo_id, CARD, revision=info.sha)).data.get("license")
    details = {"repo_id": repo_id, "revision": info.sha, "licence": licence}
    if file is not None:
        return Source(Path(hf_hub_download(repo_id, file, revision=info.sha)), str(source), **details)
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


def _checkpoint_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    files = [file for file in sorted(path.rglob("*")) if file.is_file() and _may_be_checkpoint(file)]
    if not files:
        raise ValueError(
            f"`source` must hold a checkpoint (.pth, .pt, .ckpt, or flax without an extension), {str(path)!r} holds "
            "none. Pass the file itself."
        )
    return files


def _model_type(folder: Path) -> str | None:
    config = folder / "config.json"
    return json.loads(config.read_text()).get("model_type") if config.is_file() else None


# --- what it holds ----------------------------------------------------------------------------------------------------


def _parts(trees: dict[Path, dict[str, Any]], found: Source) -> tuple[Upstream, Tree, Tree]:
    """The one denoiser among checkpoints, the tokenizer that goes with it, and whose they are."""
    parts: dict[tuple[Upstream, str], list[Path]] = {}
    for path, tree in trees.items():
        for upstream in UPSTREAMS:
            for part in upstream.contents(tree):
                parts.setdefault((upstream, part), []).append(path)
    if not parts:
        known = ", ".join(upstream.name for upstream in UPSTREAMS)
        keys = sorted({str(key) for tree in trees.values() for key in tree})[:8]
        raise ValueError(
            f"`source` must be a checkpoint of {known}, MDLM, aMUSEd, LLaDA or Dream, got {found.name!r} with {keys}."
        )
    transformers = [(key[0], path) for key, paths in parts.items() if key[1] == "transformer" for path in paths]
    if len(transformers) != 1:
        names = [path.name for _, path in transformers] or "none"
        raise ValueError(f"`source` must hold one transformer, {found.name!r} holds {names}. Pass the file itself.")
    ((upstream, path),) = transformers
    tokenizers = parts.get((upstream, "vqvae"), [])
    if len(tokenizers) != 1:
        names = [tokenizer.name for tokenizer in tokenizers] or "none"
        hint = upstream.tokenizer_source or "the file as published"
        raise ValueError(f"There must be one tokenizer for {path.name!r}, got {names}. Pass `tokenizer`: {hint}.")
    return upstream, trees[path], trees[tokenizers[0]]


def _image_pipeline(upstream: Upstream, transformer: Tree, vqvae: Tree, heads: Sequence[int]) -> MaskGITPipeline:
    decoder = upstream.vqvae(vqvae).build()
    denoiser = upstream.transformer(transformer, decoder.config.num_vq_embeddings, heads).build()
    preset = upstream.preset(denoiser)
    defaults = {"num_inference_steps": preset.num_inference_steps, "guidance_scale": preset.guidance_scale}
    return MaskGITPipeline(decoder, denoiser, preset.scheduler, upstream.do_normalize, defaults)


def _mdlm_pipeline(transformer: MDLMTransformer, tokenizer: str | Path | None) -> MDLMPipeline:
    preset = mdlm.mdlm(transformer.config.vocab_size)
    name = PUBLISHED_TOKENIZER if tokenizer is None else tokenizer
    return MDLMPipeline(AutoTokenizer.from_pretrained(name), transformer, preset.scheduler)


# --- what is written --------------------------------------------------------------------------------------------------


def _pipeline_writer(
    pipe: MaskGITPipeline | MaskedDiffusionTextPipeline,
    found: Source,
    output: Path,
    upstream: str = "kuleshov-group/mdlm",
    licence: str = "apache-2.0",
    notes: str = "The scheduler is MDLM's own, which its authors run in 1000 steps.",
    terms: str | None = None,
) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        pipe.save_pretrained(folder)
        card = _card(found, upstream, licence, notes, terms)
        pipe.generate_model_card(output.as_posix(), card).save(folder / CARD)

    return write


def _write_amused(found: Source, folder: Path, output: Path) -> None:
    amused.copy_amused(found.path, folder)
    index = json.loads((folder / "model_index.json").read_text())
    DiffusionPipeline.from_pretrained(folder)  # it must open before anything of it appears
    name = str(index["_class_name"])
    card = _card(found, f"{name} of diffusers", amused.LICENCE, amused.NOTES.format(folder=output.as_posix()))
    card.text = f"# {output.name}\n\n{card.text}"
    card.save(folder / CARD)


def _card(found: Source, upstream: str, licence: str, notes: str, terms: str | None = None) -> ModelCard:
    """What a card says of where a model comes from; the rest is generated around it."""
    data = ModelCardData(license=found.licence or licence, base_model=found.repo_id)
    where = f"`{found.name}`" + (f" at revision `{found.revision}`" if found.revision else "")
    if found.licence:
        terms = f"The licence is that of the repository, {found.licence}."
    elif terms is None:
        terms = f"The code of {upstream} is under {licence}; whether its weights are too is for their publisher to say."
    description = f"Converted from {where}, a model of {upstream}. {terms}"
    body = f"{description}\n\n## Sampling\n\n{notes}"
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}\n")


def write_whole(output: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a folder beside `output`, and give it that name once all is on the disk.

    Raises:
        OSError: what cannot be written, such as on a full disk; nothing is left behind.
    """
    output = output.absolute()
    output.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    try:
        write(folder)
        umask = os.umask(0)
        os.umask(umask)
        folder.chmod(0o777 & ~umask)  # a temporary folder is its owner's alone
        for path in [*folder.rglob("*"), folder]:
            _flush(path)
        if output.exists():
            output.rmdir()
        folder.rename(output)
        _flush(output.parent)
    except SafetensorError as error:
        raise OSError(f"`output` must be writable, {str(output)!r} is not: {error}. Free some space.") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _flush(path: Path) -> None:
    """Wait until a file, or a folder's list of files, is on the disk."""
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
