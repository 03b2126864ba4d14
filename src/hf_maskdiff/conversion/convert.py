"""Published checkpoints as pipeline folders: recognised, read without running anything in them, written whole."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from diffusers import DiffusionPipeline
from safetensors import SafetensorError

from hf_maskdiff.conversion import (
    amused,
    antiberty,
    dimo,
    halton_maskgit,
    mage,
    maskgen,
    maskgit_jax,
    maskgit_pytorch_v1,
    mdlm,
    meissonic,
    sdtt,
    text_models,
    titok,
    vampnet,
)
from hf_maskdiff.conversion.cards import Description, card_of
from hf_maskdiff.conversion.checkpoints import read_checkpoint
from hf_maskdiff.conversion.clip_text import PICKLE
from hf_maskdiff.conversion.options import MissingOptions
from hf_maskdiff.conversion.parts import check_parts
from hf_maskdiff.conversion.sources import Source, locate, model_type, read_settings
from hf_maskdiff.conversion.upstream import Tree, Upstream, missing_heads
from hf_maskdiff.conversion.whole_folders import whole_folder
from hf_maskdiff.hub import CARD
from hf_maskdiff.models import MDLMTransformer
from hf_maskdiff.models.transformer_mdlm import PUBLISHED_TYPES as MDLM_TYPES
from hf_maskdiff.pipelines import (
    MaskedDiffusionAudioPipeline,
    MaskedDiffusionTextPipeline,
    MaskedDiffusionTextToImagePipeline,
    MaskGITPipeline,
    MDLMPipeline,
)
from hf_maskdiff.pipelines.pipeline_mdlm import PUBLISHED_TOKENIZER
from hf_maskdiff.published import open_tokenizer
from hf_maskdiff_cli.convert import checkpoint_files

Write = Callable[[Path], None]  # writes all of a pipeline folder into an empty one
UPSTREAMS = (
    *(halton_maskgit.UPSTREAM, mage.UPSTREAM, maskgit_jax.UPSTREAM, maskgit_pytorch_v1.UPSTREAM),
    *(dimo.UPSTREAM, titok.UPSTREAM),
)
_HUB_NAME = re.compile(r"[\w.-]+(?:/[\w.-]+)?")  # of a repository of transformers


def convert(
    source: str | Path,
    output: str | Path,
    tokenizer: str | Path | None = None,
    revision: str | None = None,
    num_attention_heads: Sequence[int] = (),
    attention: str | None = None,
    block_size: int | None = None,
    text_encoder: str | Path | None = None,
) -> Path:
    """Convert a published checkpoint to a pipeline folder in safetensors, ready for `from_pretrained` and for the Hub.

    The format is recognised by itself. Nothing in a checkpoint is run, whatever it holds. `output` appears whole or not
    at all, and only where weights, tokenizer and sampler have been found to fit each other.

    Example:

        tokenizer = "FoundationVision/LlamaGen/vq_ds16_c2i.pt"
        convert("llvictorll/Halton-Maskgit/ImageNet_256_base.pth", "halton-256", tokenizer)
        pipe = MaskGITPipeline.from_pretrained("halton-256")

    Args:
        source: A file or folder, a repository's id on the Hub, alone or with a revision (`"owner/name@revision"`), or
            such an id and the path of a file in it.
        output: The folder to write; it must not exist yet, or be empty.
        tokenizer: For images, where the tokenizer is, if not in the same file or folder; it is given like `source`. For
            text, the name or folder of a tokenizer of transformers.
        revision: Branch, tag or commit of `source` on the Hub.
        num_attention_heads: Needed for models of sizes that were not published, since no tensor shows it; MAGE takes
            two numbers, the encoder's and the decoder's.
        attention: "full" or "block_causal": how a model of dLLM was trained whose type and name do not tell, as MDLM or
            as BD3LM.
        block_size: Size of the blocks that a model sees from left to right, where its configuration does not say it.
        text_encoder: For MaskGen, where the CLIP is that reads its prompts; it is given like `source`.

    Returns:
        `output`.

    Raises:
        MissingOptions: A `ValueError` that names all arguments that this source needs besides.
        ValueError: A source that is of no known format or incomplete, or has weights that are missing, unknown, of the
            wrong shape or no numbers, or a tokenizer that is larger than the model; an output that is there, or that
            another program is writing.
        OSError: Files that cannot be read or written.
    """
    with whole_folder(Path(output)) as folder:
        found = locate(source, revision)
        try:
            given = _Given(tokenizer, num_attention_heads, attention, block_size, text_encoder)
            write = _writer(found, Path(output), given)
        except SafetensorError as error:
            raise ValueError(
                f"`source` must hold whole safetensors, {str(source)!r} does not: {error}. Fetch it again."
            ) from error
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError) as error:
            # Sizes are read off the weights.
            raise ValueError(
                f"`source` must hold weights shaped as published, {str(source)!r} does not: {error}. Fetch it again."
            ) from error
        write(folder)
    return Path(output)


def _writer(found: Source, output: Path, given: _Given) -> Write:
    """Find out what the source holds, and return the function that writes it to a folder.

    All that can be wrong with the source is raised here, before anything is written.
    """
    for known in _BY_FILES:
        if known.is_at(found.path):
            return known.writer(found, output, given)
    tokenizer, heads = given.tokenizer, given.num_attention_heads
    _leave_out("a checkpoint of this kind", given, "tokenizer", "num_attention_heads")
    files = vampnet.files_in(found.path) or checkpoint_files(found.path)
    trees: dict[Path, Tree] = {path: read_checkpoint(path) for path in files}
    if any(vampnet.is_model(tree) for tree in trees.values()):
        return _vampnet_writer(trees, found, output, given)
    if [mdlm.is_mdlm(tree) for tree in trees.values()] == [True]:
        _leave_out("MDLM", given, "tokenizer")
        return _mdlm_writer(mdlm.load_mdlm_checkpoint(next(iter(trees))), found, output, tokenizer)
    if tokenizer is None:
        return _image_writer(trees, found, output, None, heads)
    beside = locate(tokenizer, argument="tokenizer")
    trees |= {path: read_checkpoint(path) for path in checkpoint_files(beside.path, "tokenizer")}
    return _image_writer(trees, found, output, beside.origin, heads)


def _leave_out(what: str, given: _Given, *used: str) -> None:
    """`ValueError` for an option that would have no effect: of all but those that are used."""
    for name, value in asdict(given).items():
        if name not in used and value not in (None, (), []):
            raise ValueError(f"`--{name}` must be left out for {what}, got {value!r}. It would have no effect.")


# --- what it holds ----------------------------------------------------------------------------------------------------


def _parts(trees: dict[Path, Tree], found: Source, heads: Sequence[int]) -> tuple[Upstream, Tree, Tree]:
    """Find the one denoiser among the checkpoints, and the tokenizer that goes with it.

    Returns:
        whose format they are in, the denoiser's weights, and the tokenizer's.
    """
    parts: dict[tuple[Upstream, str], list[Path]] = {}
    for path, tree in trees.items():
        for upstream in UPSTREAMS:
            for part in upstream.contents(tree):
                parts.setdefault((upstream, part), []).append(path)
    if not parts:
        known = ", ".join(upstream.name for upstream in UPSTREAMS)
        keys = sorted({str(key) for tree in trees.values() for key in tree})[:8]
        raise ValueError(
            f"`source` must be a checkpoint of {known}, MDLM, SDTT, aMUSEd, Meissonic, MaskGen, VampNet, LLaDA, "
            f"Dream or AntiBERTy, got {found.name!r} with {keys}."
        )
    transformers = [(key[0], path) for key, paths in parts.items() if key[1] == "transformer" for path in paths]
    if len(transformers) != 1:
        names = [path.name for _, path in transformers] or "none"
        raise ValueError(f"`source` must hold one transformer, {found.name!r} holds {names}. Pass the file itself.")
    ((upstream, path),) = transformers
    tokenizers = parts.get((upstream, "vqvae"), [])
    missing = missing_heads(upstream.widths(trees[path]), heads)
    if len(tokenizers) != 1:
        names = [tokenizer.name for tokenizer in tokenizers] or "none"
        hint = upstream.tokenizer_source or "the file as published"
        missing["tokenizer"] = f"there must be one tokenizer for {path.name!r}, got {names}. Pass {hint}."
    if missing:
        raise MissingOptions(missing)
    return upstream, trees[path], trees[tokenizers[0]]


def _image_pipeline(upstream: Upstream, transformer: Tree, vqvae: Tree, heads: Sequence[int]) -> MaskGITPipeline:
    decoder = upstream.vqvae(vqvae).build()
    denoiser = upstream.transformer(transformer, decoder.config.num_vq_embeddings, heads).build()
    preset = upstream.preset(denoiser)
    defaults = {"num_inference_steps": preset.num_inference_steps, "guidance_scale": preset.guidance_scale}
    return MaskGITPipeline(decoder, denoiser, preset.scheduler, upstream.do_normalize, defaults)


def _text_tokenizer(tokenizer: str | Path | None) -> str | Path | None:
    """Return the tokenizer as it is; `ValueError` if it is neither a path nor a name that transformers could know."""
    if tokenizer is None or Path(tokenizer).exists() or _HUB_NAME.fullmatch(str(tokenizer)):
        return tokenizer
    raise ValueError(
        f"`--tokenizer` must be a folder or the name of a tokenizer of transformers, got {str(tokenizer)!r}. Pass for "
        f"example {PUBLISHED_TOKENIZER!r}."
    )


@dataclass(frozen=True)
class _Given:
    """What `convert` was told besides the source and the output; not every format has a use for all of it."""

    tokenizer: str | Path | None
    num_attention_heads: Sequence[int]
    attention: str | None
    block_size: int | None
    text_encoder: str | Path | None


@dataclass(frozen=True)
class _Format:
    """A published format that is known by its files, before any weight is read.

    Args:
        is_at: whether a path holds it.
        writer: maps source, output and what was given to the function that writes the folder.
    """

    is_at: Callable[[Path], bool]
    writer: Callable[[Source, Path, _Given], Write]


# --- what is written --------------------------------------------------------------------------------------------------


def _amused_writer(found: Source, output: Path, given: _Given) -> Write:
    _leave_out("aMUSEd", given)
    amused.check_amused(found.path)
    return lambda folder: _write_amused(found, folder, output)


def _meissonic_writer(found: Source, output: Path, given: _Given) -> Write:
    _leave_out("Meissonic", given, "tokenizer")
    others, origin = None, None
    if given.tokenizer is not None:
        beside = locate(given.tokenizer, argument="tokenizer")
        others, origin = beside.path, f"{beside.origin}, as are its text encoder and the tokenizer of images"
    pipe = meissonic.open_meissonic(found.path, others)
    description = Description(meissonic.NAME, meissonic.LICENCE, meissonic.NOTES, tokenizer=origin)
    return _pipeline_writer(pipe, found, output, description)


def _maskgen_writer(found: Source, output: Path, given: _Given) -> Write:
    _leave_out("MaskGen", given, "tokenizer", "text_encoder")
    asked = {"tokenizer": (given.tokenizer, ()), "text_encoder": (given.text_encoder, (PICKLE,))}
    beside = {
        name: locate(place, argument=name, else_fetch=files)
        for name, (place, files) in asked.items()
        if place is not None
    }
    pipe = maskgen.open_maskgen(found.path, **{name: part.path for name, part in beside.items()})
    origin = "{tokenizer.origin}, its text encoder the text half of {text_encoder.origin}".format(**beside)
    description = Description(maskgen.NAME, maskgen.LICENCE, maskgen.NOTES, tokenizer=origin)
    return _pipeline_writer(pipe, found, output, description)


def _titok_writer(found: Source, output: Path, given: _Given) -> Write:
    _leave_out("TiTok", given, "tokenizer", "num_attention_heads")
    trees, origin = {found.path: titok.read_titok(found.path)}, None
    if given.tokenizer is not None:
        beside = locate(given.tokenizer, argument="tokenizer")
        trees[beside.path], origin = titok.read_titok(beside.path), beside.origin
    return _image_writer(trees, found, output, origin, given.num_attention_heads)


def _vampnet_writer(trees: dict[Path, Tree], found: Source, output: Path, given: _Given) -> Write:
    _leave_out("VampNet", given, "tokenizer")
    origin = None
    if given.tokenizer is not None:
        beside = locate(given.tokenizer, argument="tokenizer")
        trees = trees | {path: read_checkpoint(path) for path in checkpoint_files(beside.path, "tokenizer")}
        origin = beside.origin
    pipe = vampnet.open_vampnet(trees, found.name)
    about = vampnet.about(pipe) + (f" {vampnet.TERMS}" if found.licence else "")
    parts = (vampnet.NAME, vampnet.LICENCE, vampnet.NOTES, vampnet.TERMS)
    return _pipeline_writer(pipe, found, output, Description(*parts, tokenizer=origin, about=about))


def _mdlm_folder_writer(found: Source, output: Path, given: _Given) -> Write:
    _leave_out("MDLM", given, "tokenizer")
    return _mdlm_writer(MDLMTransformer.from_pretrained(found.path), found, output, given.tokenizer)


def _sdtt_writer(found: Source, output: Path, given: _Given) -> Write:
    _leave_out("SDTT", given, "tokenizer")
    transformer = MDLMTransformer.from_pretrained(found.path)
    return _mdlm_writer(transformer, found, output, given.tokenizer, sdtt.DESCRIPTION)


def _mdlm_writer(
    transformer: MDLMTransformer,
    found: Source,
    output: Path,
    tokenizer: str | Path | None,
    description: Description | None = None,
) -> Write:
    name = _text_tokenizer(tokenizer) or PUBLISHED_TOKENIZER
    of_blocks = transformer.config.block_size is not None
    preset = (mdlm.bd3lm if of_blocks else mdlm.mdlm)(transformer.config.vocab_size)
    if description is None:
        description = Description(*(mdlm.DESCRIPTION_OF_BLOCKS if of_blocks else mdlm.DESCRIPTION))
    try:
        opened = open_tokenizer(name)
    except (OSError, ValueError, ImportError) as error:  # the last of what another format of tokenizers would need
        raise ValueError(
            f"`--tokenizer` must be a folder or the name of a tokenizer of transformers, {str(name)!r} cannot be "
            f"opened. Pass the folder of one. ({error})"
        ) from error
    mdlm.check_mask(opened, transformer)
    pipe = MDLMPipeline(opened, transformer, preset.scheduler)
    return _pipeline_writer(pipe, found, output, replace(description, tokenizer=f"`{name}`"))


def _text_writer(found: Source, output: Path, given: _Given) -> Write:
    _leave_out("a language model", given, "tokenizer", "attention", "block_size")
    tokenizer, name = given.tokenizer, found.repo_id or found.path
    said = (given.attention, name, given.block_size)
    pipe, upstream = text_models.open_text_model(found.path, _text_tokenizer(tokenizer), *said)
    terms = f"Its publisher states the licence {upstream.licence}; read the card of the repository it came from."
    origin = None if tokenizer is None else f"`{tokenizer}`"
    description = Description(upstream.name, upstream.licence, upstream.notes, terms, origin)
    return _pipeline_writer(pipe, found, output, description)


def _antiberty_writer(found: Source, output: Path, given: _Given) -> Write:
    _leave_out("AntiBERTy", given)
    pipe, licence_text = antiberty.open_antiberty(found.path)
    parts = (antiberty.NAME, antiberty.LICENCE, antiberty.NOTES, antiberty.TERMS)
    description = Description(*parts, about=antiberty.ABOUT, licence_text=licence_text)
    return _pipeline_writer(pipe, found, output, description)


def _image_writer(
    trees: dict[Path, Tree], found: Source, output: Path, tokenizer: str | None, heads: Sequence[int]
) -> Write:
    upstream, transformer, vqvae = _parts(trees, found, heads)
    pipe = _image_pipeline(upstream, transformer, vqvae, heads)
    description = Description(upstream.name, upstream.licence, upstream.notes, upstream.terms, tokenizer)
    return _pipeline_writer(pipe, found, output, description)


def _pipeline_writer(
    pipe: MaskGITPipeline
    | MaskedDiffusionTextPipeline
    | MaskedDiffusionTextToImagePipeline
    | MaskedDiffusionAudioPipeline,
    found: Source,
    output: Path,
    description: Description,
) -> Write:
    check_parts(pipe)

    def write(folder: Path) -> None:
        pipe.save_pretrained(folder)
        pipe.generate_model_card(output.as_posix(), card_of(found, description)).save(folder / CARD)
        if description.licence_text is not None:
            (folder / "LICENSE").write_text(description.licence_text, encoding="utf-8")

    return write


def _write_amused(found: Source, folder: Path, output: Path) -> None:
    amused.copy_amused(found.path, folder)
    index = read_settings(folder / "model_index.json")
    DiffusionPipeline.from_pretrained(
        folder, trust_remote_code=False, use_safetensors=True
    )  # it must open before anything of it appears
    notes = amused.NOTES.format(folder=output.as_posix())
    card = card_of(found, Description(f"{index['_class_name']} of diffusers", amused.LICENCE, notes))
    card.text = f"# {output.name}\n\n{card.text}"
    card.save(folder / CARD)


_BY_FILES = (
    _Format(meissonic.is_meissonic, _meissonic_writer),  # by its transformer, whatever pipeline the folder names
    _Format(amused.is_amused, _amused_writer),
    _Format(lambda path: model_type(path) in MDLM_TYPES, _mdlm_folder_writer),
    _Format(sdtt.is_sdtt_at, _sdtt_writer),
    _Format(maskgen.is_maskgen, _maskgen_writer),  # whose settings name TiTok's parts too
    _Format(titok.is_titok, _titok_writer),
    _Format(text_models.is_text_model, _text_writer),
    _Format(antiberty.is_antiberty, _antiberty_writer),
)
