"""What a repository on the Hub needs besides configuration and weights: a model card, and the file that opens it."""

from __future__ import annotations

import inspect
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData, file_exists, upload_folder

from hf_maskdiff_cli.installation import DISTRIBUTION, how_to_install

LIBRARY = DISTRIBUTION
CARD = "README.md"

# Sections that `generate_model_card` writes; all others are somebody's own words.
GENERATED = ("Usage", "Components", "Configuration", "Evaluation")

# Written beside `model_index.json`, for `DiffusionPipeline.from_pretrained(repo, custom_pipeline=repo)`.
PIPELINE_FILE = '''\
"""Opens this repository with the installed package {package}."""

# diffusers runs every local `pipeline.py` in one module, and allows that module one pipeline.
for name in [name for name in globals() if name.endswith("Pipeline")]:
    del globals()[name]

try:
    {import_line}
except ImportError as error:
    raise ImportError(
        "This pipeline needs the package {package}. "
        "{install}."
    ) from error
'''

# For pipelines that diffusers knows by name once their package is imported, and for others.
PLAIN_DOOR = """\
Or, after `import {package}`, as any pipeline of diffusers, `DiffusionPipeline.from_pretrained(repo)`{task}.
"""
TASK = ', or of\ntransformers, `pipeline("{task}", model=repo)`: there the task has to be named'
STOCK_DOOR = """\
With stock diffusers, where {package} is installed: `import {package}`, then
`DiffusionPipeline.from_pretrained(repo, custom_pipeline=repo, trust_remote_code=True)`. Without that import diffusers
says that `{package}.py` does not exist in the repository.
"""


# Not diffusers' `ConfigMixin`: put before a model's bases it would also come before `nn.Module`.
_Base: Any = object


class ModelCardMixin(_Base):
    """Gives whatever is pushed a card that says what it is and how to load it, in place of diffusers' empty one.

    A `README.md` that somebody wrote is never overwritten: neither that of a folder, nor that of a repository.
    Goes before diffusers' bases. The class attributes are what a card says of the class:

        card_pipeline_tag: the Hub's name of the task.
        card_tags: tags besides "masked-diffusion" and "diffusers".
        card_variable: what the snippet calls the loaded object.
        card_example: lines of Python that use it.
    """

    card_pipeline_tag: str | None = None
    card_tags: tuple[str, ...] = ()
    card_variable = "model"
    card_example = ""
    _card_before: bytes | None = None
    _loaded_from: str | None = None  # where the configuration does not say so

    def generate_model_card(self, repo_id: str, written: ModelCard | None = None) -> ModelCard:
        """A card that is right about the object, and keeps what was written by hand.

        ```python
        card = pipe.generate_model_card("me/digits", ModelCard.load("digits/README.md"))
        card.save("digits/README.md")
        ```

        Args:
            repo_id: what `from_pretrained` shall be called with in the card: an id or a folder.
            written: a card whose metadata, description and sections are kept; the sections Usage, Components,
                Configuration and Evaluation are written anew, the last from the results in its metadata.
        """
        name = Path(repo_id).absolute().name
        metadata = {} if written is None else written.data.to_dict()
        data = ModelCardData(**{"pipeline_tag": self.card_pipeline_tag, **metadata, "library_name": LIBRARY})
        data.model_name = name if data.eval_results else None
        data.tags = list(dict.fromkeys(["masked-diffusion", "diffusers", *self.card_tags, *(data.tags or [])]))

        (_, description), *sections = _sections("" if written is None else written.text)
        description = description or (inspect.getdoc(type(self)) or "").split("\n\n")[0]
        blocks = [f"# {name}", description, f"## Usage\n\n{self._usage(repo_id)}", self._facts()]
        if data.eval_results:
            rows = [(r.metric_name or r.metric_type, r.metric_value, r.dataset_name) for r in data.eval_results]
            blocks.append(f"## Evaluation\n\n{_table(('metric', 'value', 'data'), rows)}")
        blocks += [f"## {title}\n\n{text}" for title, text in sections if title not in GENERATED]
        body = "\n\n".join(block.strip() for block in blocks)
        return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}\n")

    def _new_card(self, repo_id: str) -> ModelCard:
        """A generated card, around the words and with the metadata of the one that the object came with."""
        return self.generate_model_card(repo_id, self._card_of_origin())

    def _card_of_origin(self) -> ModelCard | None:
        """The card in the folder or repository that the object was loaded from, if it is of such an object."""
        card = _card_in(self._loaded_from or self.config.get("_name_or_path"))
        return card if card is not None and f"{type(self).__name__}.from_pretrained(" in card.text else None

    def _usage(self, repo_id: str) -> str:
        name, variable = type(self).__name__, self.card_variable
        code = f'{_import_line(type(self))}\n\n{variable} = {name}.from_pretrained("{repo_id}")\n{self.card_example}'
        return f"{_install(type(self))}, then\n\n```python\n{code.strip()}\n```"

    def _facts(self) -> str:
        public = [(f"`{key}`", value) for key, value in sorted(self.config.items()) if not key.startswith("_")]
        rows = [(key, f"`{value}`" if len(str(value)) <= 60 else "see the file") for key, value in public]
        return f"## Configuration\n\n{_table(('key', 'value'), rows)}"

    # --- the hooks: diffusers calls `save_config`, then writes its own card, then calls `_upload_folder` --------------

    def register_to_config(self, **kwargs: Any) -> None:
        super().register_to_config(**kwargs)
        # Beside the settings, not among them: `transformers.pipeline` of 5.12 and before reads it from any object.
        self._internal_dict.__dict__["_commit_hash"] = None

    def save_config(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        card = Path(save_directory, CARD)
        self._card_before = card.read_bytes() if card.is_file() else None
        super().save_config(save_directory, *args, **kwargs)

    def _upload_folder(
        self,
        working_dir: str | os.PathLike,
        repo_id: str,
        token: str | None = None,
        commit_message: str | None = None,
        create_pr: bool = False,
        subfolder: str | None = None,
    ) -> str:
        card = Path(working_dir, CARD)
        generated = str(self._new_card(card.parent.as_posix())).encode()
        if self._card_before and self._card_before != generated:
            card.write_bytes(self._card_before)
        elif subfolder:
            card.unlink(missing_ok=True)
        else:
            self._new_card(repo_id).save(card)
        has_card = file_exists(repo_id, f"{subfolder}/{CARD}" if subfolder else CARD, token=token)
        return upload_folder(
            repo_id=repo_id,
            folder_path=str(working_dir),
            path_in_repo=subfolder,
            token=token,
            commit_message=commit_message or f"Upload {type(self).__name__}",
            create_pr=create_pr,
            ignore_patterns=[CARD] if has_card else None,
        )


class PipelineRepositoryMixin(ModelCardMixin):
    """Makes a saved pipeline a complete repository: card, `pipeline.py` for `custom_pipeline=`, `config.json`.

    A text pipeline's tokenizer lies at the root too, where `AutoTokenizer.from_pretrained(repo)` looks for it.

        card_task: the task of transformers that opens it.
        tokenizer_at_root: whether a tokenizer, if it has one, is what its users look for.
    """

    card_variable = "pipe"
    card_task: str | None = None
    tokenizer_at_root = True

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """As diffusers does, with `pipeline.py`, `config.json` and a `README.md` where there is none.

        The card keeps the words, licence, data sets and results of the one that the pipeline was loaded with.
        """
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        self.save_pipeline_file(folder)
        config = json.dumps(self.transformers_config(), indent=2, sort_keys=True)
        (folder / "config.json").write_text(f"{config}\n", encoding="utf-8")
        if self.tokenizer_at_root and (tokenizer := self.components.get("tokenizer")) is not None:
            tokenizer.save_pretrained(folder)
        super().save_pretrained(save_directory, *args, **kwargs)
        if not (folder / CARD).exists():
            self._new_card(folder.as_posix()).save(folder / CARD)

    def save_pipeline_file(self, folder: Path) -> None:
        """Write the `pipeline.py` that opens the repository with `custom_pipeline=`."""
        cls = type(self)
        names = {"import_line": _import_line(cls), "package": _package(cls), "install": _install(cls)}
        (folder / "pipeline.py").write_text(PIPELINE_FILE.format(**names), encoding="utf-8")

    def _card_of_origin(self) -> ModelCard | None:
        return _card_in(self.config.get("_name_or_path"))

    def transformers_config(self) -> dict[str, Any]:
        """`config.json`, by which `transformers.pipeline(task, model=repo)` knows what it has before it."""
        return {"model_type": "masked_diffusion_pipeline"}

    def _usage(self, repo_id: str) -> str:
        cls = type(self)
        names = {"package": _package(cls)}
        if getattr(sys.modules.get("diffusers"), cls.__name__, None) is cls:
            door = PLAIN_DOOR.format(**names, task=TASK.format(task=self.card_task) if self.card_task else "")
        else:
            door = STOCK_DOOR.format(**names)
        return f"{super()._usage(repo_id)}\n\n{door}"

    def _facts(self) -> str:
        rows = [
            (f"`{name}`", f"{_package(type(part))} `{type(part).__name__}`", _size(part))
            for name, part in sorted(self.components.items())
            if part is not None
        ]
        return f"## Components\n\n{_table(('component', 'class', 'parameters'), rows)}"


def _card_in(source: str | os.PathLike | None) -> ModelCard | None:
    """The card of a folder or of a repository, which is asked for it; None where there is none or nobody answers."""
    if not source:
        return None
    folder = Path(source)
    try:
        if folder.is_dir():
            return ModelCard.load(folder / CARD) if (folder / CARD).is_file() else None
        return ModelCard.load(str(source))
    except (OSError, ValueError):  # what `huggingface_hub` raises without a network, file, access or valid metadata
        return None


def _package(cls: type) -> str:
    return cls.__module__.split(".")[0]


def _install(cls: type) -> str:
    """How to get a class's package; of one that is not this, nobody here knows where it is to be had."""
    package = _package(cls)
    return how_to_install() if package == __package__ else f"Install the package `{package}`"


def _import_line(cls: type) -> str:
    is_public = getattr(sys.modules.get(_package(cls)), cls.__name__, None) is cls
    return f"from {_package(cls) if is_public else cls.__module__} import {cls.__name__}"


def _size(part: Any) -> str:
    return f"{part.num_parameters():,}" if hasattr(part, "num_parameters") else ""


def _table(header: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def _sections(text: str) -> Iterator[tuple[str, str]]:
    """Titles and texts of a card's sections; the first is what stands between the card's title and `## `."""
    is_code, title = False, ""
    lines: list[str] = []
    for line in text.splitlines():
        is_code ^= line.startswith("```")
        if line.startswith("## ") and not is_code:
            yield title, "\n".join(lines).strip()
            title, lines = line[3:].strip(), []
        elif title or is_code or not re.match(r"# ", line):
            lines.append(line)
    yield title, "\n".join(lines).strip()
