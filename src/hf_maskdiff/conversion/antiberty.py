"""AntiBERTy (jeffreyruffolo/AntiBERTy), a language model of antibodies whose weights are published inside a wheel.

Of the wheel, or of its unpacked folder, four files are read, and as data alone: weights, configuration, vocabulary and
licence. The folder that is written holds a `BertForMaskedLM` with the same weights under the same names.
"""

from __future__ import annotations

import re
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

from hf_maskdiff.conversion.checkpoints import read_torch_checkpoint, require_tensors
from hf_maskdiff.conversion.sources import read_settings
from hf_maskdiff.conversion.upstream import Preset, renamed
from hf_maskdiff.pipelines import MaskedDiffusionTextPipeline
from hf_maskdiff.schedulers import MomentScheduler

NAME, LICENCE = "jeffreyruffolo/AntiBERTy", "mit"
ABOUT = (
    "A BERT of 26 million parameters that was trained on 558 million natural antibody sequences: Ruffolo, Gray and "
    'Sulam, "Deciphering antibody affinity maturation with language models and weakly supervised learning", '
    "[arXiv 2112.07782](https://arxiv.org/abs/2112.07782). It fills in and writes chains of antibodies, heavy and "
    "light, of up to 510 residues. A residue is a token, written as its letter; a chain stands between `[CLS]` and "
    "`[SEP]`, which the tokenizer adds. Left out are the heads that tell species, chain and grafting "
    "(`cls.species`, `cls.chain`, `cls.graft`) and the pooler that they read."
)
TERMS = "Its licence is MIT, as in the wheel, and stands in the file LICENSE."
NOTES = (
    "The original's `fill_masks` takes the most probable residue at every place, in one pass: "
    "`UniformScheduler.from_config(pipe.scheduler.config, top_k=1)` with `num_inference_steps=1`. The scheduler here "
    "draws instead, over several passes. `top_k` is the number of residues, which leaves out the special tokens: in "
    "every mask pattern that was tried all residues are more probable than any of these, which have at most 3e-6 of a "
    "place between them."
)
TAGS = ("biology", "protein", "antibody", "arxiv:2112.07782")
EXAMPLE = """\
heavy = "EVQLVESGGGLVQPGGSLRLSCAASGFNIKDTYIHWVRQAPGKGLEWVARIYPTNGYTRYADSVKGRFTISADTSKNTAYLQMNSLRAEDTAVYYC"
for chain in pipe(f"{heavy}[MASK:13]WGQGTLVTVSS", num_inference_steps=6, num_return_sequences=4).texts:
    print(chain)  # another third loop in each
print(pipe("[MASK:120]", num_inference_steps=60).texts[0])  # a chain from nothing\
"""

_TRAINED = "antiberty/trained_models"
_WEIGHTS = f"{_TRAINED}/AntiBERTy_md_smooth/pytorch_model.bin"
_CONFIG = f"{_TRAINED}/AntiBERTy_md_smooth/config.json"
_VOCABULARY = f"{_TRAINED}/vocab.txt"
_LICENCE = re.compile(r"antiberty-[\w.]+\.dist-info/LICENSE(\.\w+)?", re.IGNORECASE)
_FETCH = "Fetch it with `pip download --no-deps antiberty==0.1.3`."
_LARGEST = 2**30  # bytes that a file of the wheel may unpack to, ten times what the largest does

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_SETTINGS = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act"),
    *("hidden_dropout_prob", "attention_probs_dropout_prob", "max_position_embeddings", "type_vocab_size"),
    *("initializer_range", "layer_norm_eps", "pad_token_id"),
)
_WEIGHT_NAMES = {
    r"bert\.embeddings\.position_ids": "",  # 0, 1, 2 ...
    r"bert\.pooler\..+": "",
    r"cls\.(?:species|chain|graft)\..+": "",
    r"(bert\.(?:embeddings|encoder)\..+|cls\.predictions\..+)": r"\1",
}
_TIED = {
    "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}


def antiberty(num_residues: int = 20, mask_token_id: int = 4) -> Preset:
    """Moment sampling: positions are drawn by how sure the model is of them, residues from its own marginals."""
    scheduler = MomentScheduler(
        mask_token_id=mask_token_id,
        masking_schedule="linear",
        rounding="even",
        top_k=num_residues,
        choice_temperature=6.0,
    )
    return Preset(scheduler, 64)


def is_antiberty(path: Path) -> bool:
    """Whether it is a wheel, which no other format is, or holds the model's folder as the wheel does."""
    return (path / _TRAINED).is_dir() if path.is_dir() else path.suffix == ".whl"


def open_antiberty(path: Path) -> tuple[MaskedDiffusionTextPipeline, str]:
    """The pipeline, and the text of its licence.

    Args:
        path: the wheel, or the folder that it was unpacked to.

    Raises:
        ValueError: another wheel, one that is not whole or has names that lead out of it, files that are missing, or
            weights that are not those of a `BertForMaskedLM` and the heads that are left out.
    """
    if path.is_dir():
        return _open(path, path.name)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        try:
            _unpack(path, Path(folder))
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
            raise ValueError(f"`source` must be a whole wheel, {path.name!r} is not: {error}. {_FETCH}") from error
        return _open(Path(folder), path.name)


def _unpack(wheel: Path, folder: Path) -> None:
    """Copy the files that are read to a folder, under the names that are known here."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        outside = [name for name in names if _leads_outside(name)]
        if outside:
            raise ValueError(
                f"`source` must be a wheel whose files stay in their folder, {wheel.name!r} holds {outside[0]!r}. Do "
                "not use this file."
            )
        for name in (name for name in names if name in (_WEIGHTS, _CONFIG, _VOCABULARY) or _LICENCE.fullmatch(name)):
            if archive.getinfo(name).file_size > _LARGEST:
                raise ValueError(f"`source` must hold at most 1 GiB in {name!r}, {wheel.name!r} holds more. {_FETCH}")
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            with archive.open(name) as packed, (folder / name).open("wb") as file:
                shutil.copyfileobj(packed, file)


def _leads_outside(name: str) -> bool:
    parts = PurePosixPath(name.replace("\\", "/")).parts
    return ".." in parts or parts[:1] == ("/",) or ":" in name


def _open(folder: Path, name: str) -> tuple[MaskedDiffusionTextPipeline, str]:
    found = (path.relative_to(folder).as_posix() for path in folder.glob("antiberty-*.dist-info/*"))
    licences = [file for file in found if _LICENCE.fullmatch(file)]
    missing = [file for file in (_WEIGHTS, _CONFIG, _VOCABULARY) if not (folder / file).is_file()]
    missing += [] if licences else ["antiberty-0.1.3.dist-info/LICENSE.MD"]
    if missing:
        raise ValueError(
            f"`source` must be the wheel of antiberty or its unpacked folder, {name!r} lacks {', '.join(missing)}. "
            f"{_FETCH}"
        )
    config = read_settings(folder / _CONFIG)
    tokens = (folder / _VOCABULARY).read_text().split()
    if len(tokens) != config["vocab_size"]:
        raise ValueError(
            f"`source` must have as many tokens in vocab.txt as in config.json, got {len(tokens)} and "
            f"{config['vocab_size']}. {_FETCH}"
        )
    tokenizer = residue_tokenizer(tokens, config["max_position_embeddings"])
    model = _model(config, require_tensors(read_torch_checkpoint(folder / _WEIGHTS), repr(name)))
    scheduler = antiberty(len(tokens) - len(_SPECIAL), tokenizer.mask_token_id).scheduler
    pipe = MaskedDiffusionTextPipeline.from_model(model, tokenizer, scheduler)
    # What its card says of it, in place of what is said of all text models.
    pipe.card_pipeline_tag, pipe.card_tags, pipe.card_example = "fill-mask", TAGS, EXAMPLE
    return pipe, (folder / licences[0]).read_text()


def residue_tokenizer(tokens: Sequence[str], max_length: int) -> PreTrainedTokenizerFast:
    """A tokenizer of chains: a letter is a token, white space is none, and `[CLS]` and `[SEP]` go around them.

    It gives the ids of the original, which puts spaces between the letters and calls a `BertTokenizer`.

    Args:
        tokens: `[PAD]`, `[UNK]`, `[CLS]`, `[SEP]` and `[MASK]`, then letters; their places are their ids.
        max_length: the model's, both special tokens included.

    Raises:
        ValueError: other tokens.
    """
    letters = list(tokens[len(_SPECIAL) :])
    if tuple(tokens[: len(_SPECIAL)]) != _SPECIAL or any(len(letter) != 1 for letter in letters) or not letters:
        raise ValueError(f"the vocabulary must be {', '.join(_SPECIAL)}, then letters, got {list(tokens)}. {_FETCH}")
    ids = {token: i for i, token in enumerate(tokens)}
    if len(ids) != len(tokens):
        raise ValueError(f"the vocabulary must hold every token once, got {list(tokens)}. {_FETCH}")
    tokenizer = Tokenizer(WordLevel(ids, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex("."), "isolated")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(token, ids[token]) for token in ("[CLS]", "[SEP]")]
    )
    tokenizer.decoder = decoders.Fuse()
    roles = {f"{token.strip('[]').lower()}_token": token for token in _SPECIAL}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=max_length, **roles)


def _model(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> BertForMaskedLM:
    kind, position = config["model_type"], config.get("position_embedding_type", "absolute")
    if (kind, position) != ("bert", "absolute"):
        raise ValueError(f"`source` must be a BERT with absolute positions, got {kind!r}, {position!r}. {_FETCH}")
    own = renamed(weights, _WEIGHT_NAMES, "AntiBERTy")
    for name, same in _TIED.items():
        if name in own and same in own and not torch.equal(own[name], own[same]):
            raise ValueError(f"The checkpoint's {name!r} must equal {same!r}, of which it is a copy. {_FETCH}")
    try:
        settings = BertConfig(**{name: config[name] for name in _SETTINGS})
        with torch.device("meta"):  # before memory is taken for what a configuration merely says
            BertForMaskedLM(settings).load_state_dict(own, assign=True)
    except Exception as error:  # a crafted configuration fails in any way
        raise ValueError(
            f"The checkpoint's weights must be those of the BertForMaskedLM of its config.json, they are not: {error}. "
            f"{_FETCH}"
        ) from error
    model = BertForMaskedLM(settings)
    model.load_state_dict(own)  # copied: the file may be gone when the model is used
    return model.eval()
