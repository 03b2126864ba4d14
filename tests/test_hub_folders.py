"""Every folder under `pipelines/` and `schedulers/` opens, says what it is, works, and does so on the Hub too."""

from __future__ import annotations

import importlib
import io
import json
import re
import runpy
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any

import diffusers
import pytest
import torch
import transformers
from diffusers import DiffusionPipeline
from hub_server import LoopbackHub
from huggingface_hub import ModelCard

import hf_maskdiff
from hf_maskdiff import OneStepScheduler

ROOT = Path(__file__).parents[1]
PIPELINES = sorted(path.parent for path in ROOT.glob("pipelines/*/model_index.json"))
SCHEDULERS = sorted(path.parent for path in ROOT.glob("schedulers/*/scheduler_config.json"))
FOLDERS = [*PIPELINES, *SCHEDULERS]


def name(folder: Path) -> str:
    return folder.name


def short(folder: Path) -> str:
    return f"{folder.parent.name}/{folder.name}"


def class_of(folder: Path) -> Any:
    index = next(folder.glob("model_index.json" if folder in PIPELINES else "scheduler_config.json"))
    return getattr(hf_maskdiff, json.loads(index.read_text())["_class_name"])


def test_there_are_folders() -> None:
    assert PIPELINES
    assert SCHEDULERS


@pytest.mark.parametrize("folder", SCHEDULERS, ids=name)
def test_a_preset_loads_saves_and_runs(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "scheduler_config.json").read_text())
    scheduler = class_of(folder).from_pretrained(folder)
    assert {key: value for key, value in scheduler.config.items() if not key.startswith("_")} == {
        key: value for key, value in config.items() if not key.startswith("_")
    }
    scheduler.save_pretrained(tmp_path)
    assert type(scheduler).from_pretrained(tmp_path).config == scheduler.config

    other = type(scheduler).from_pretrained(folder, mask_token_id=30, codebook_size=30)
    table = other.config.masking_schedule
    steps = 1 if isinstance(other, OneStepScheduler) else 4
    other.set_timesteps(steps if isinstance(table, str) else len(table))
    sample = torch.full((2, 6, 6), 30)
    for t in other.timesteps:
        sample = other.step(torch.randn(2, 36, 31), t, sample).prev_sample
    assert int(sample.max()) < 30


@pytest.mark.parametrize("folder", PIPELINES, ids=name)
def test_a_pipeline_opens_by_both_doors(folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    libraries = {module.__name__: module for module in (hf_maskdiff, diffusers, transformers)}
    for library, class_name in (value for value in index.values() if isinstance(value, list) and value[0]):
        assert hasattr(libraries[library], class_name)
    pipe = class_of(folder).from_pretrained(folder)
    stock = DiffusionPipeline.from_pretrained(folder, custom_pipeline=str(folder), trust_remote_code=True)
    assert type(stock) is type(pipe)
    assert stock.config == pipe.config
    assert {key: type(part) for key, part in stock.components.items()} == {
        key: type(part) for key, part in pipe.components.items()
    }


@pytest.mark.parametrize("folder", PIPELINES, ids=name)
def test_a_pipeline_folder_is_what_saving_it_writes(folder: Path, tmp_path: Path) -> None:
    class_of(folder).from_pretrained(folder).save_pretrained(tmp_path)
    written = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert not [path for path in written if not (folder / path).is_file()]
    assert (tmp_path / "pipeline.py").read_text() == (folder / "pipeline.py").read_text()


@pytest.mark.parametrize("folder", PIPELINES, ids=name)
def test_a_pipeline_folder_is_small_and_holds_no_pickles(folder: Path) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 8e6
    assert not [path for path in files if path.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl")]


# --- cards -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", FOLDERS, ids=name)
def test_a_card_is_what_the_generator_writes_around_its_own_words(folder: Path) -> None:
    """If it is not: `python examples/push_to_hub.py --refresh_cards`."""
    card = ModelCard.load(folder / "README.md")
    thing = class_of(folder).from_pretrained(folder)
    assert (folder / "README.md").read_text() == str(thing.generate_model_card(short(folder), card))
    assert card.data.library_name == "hf-maskdiff"
    assert card.data.license
    description = card.text.split(f"# {folder.name}\n")[1].split("## ")[0].strip()
    assert len(description) > 20
    assert not description.startswith(type(thing).__doc__.split("\n")[0])


def run_snippet(text: str, folder: Path) -> tuple[dict[str, Any], str, dict[str, bytes]]:
    """Runs a card's first lines of Python in a folder: its names, what it prints, and the files it writes."""
    snippet = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert snippet is not None
    (folder / "out").mkdir(parents=True)
    for kind in ("pipelines", "schedulers"):
        (folder / "out" / kind).symlink_to(ROOT / kind)
    names: dict[str, Any] = {}
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as printed:
        patch.chdir(folder / "out")
        exec(snippet[1], names)
    files = {path.name: path.read_bytes() for path in (folder / "out").iterdir() if path.is_file()}
    return names, printed.getvalue(), files


@pytest.mark.parametrize("folder", FOLDERS, ids=name)
def test_pushed_a_folder_works_as_it_does_here(
    folder: Path, hub: LoopbackHub, push_to_hub: ModuleType, tmp_path: Path
) -> None:
    """The snippet of its card, run with the folder and with the id: same configuration, same output."""
    push_to_hub.main([str(folder), "--namespace", "me"])
    pushed, repo_id = hub.main[f"me/{folder.name}"], f"me/{folder.name}"
    there = run_snippet(pushed["README.md"].decode(), tmp_path / "there")
    here = run_snippet((folder / "README.md").read_text(), tmp_path / "here")
    configs = [dict(names[class_of(folder).card_variable].config) for names, *_ in (here, there)]
    for config in configs:
        config.pop("_name_or_path", None)
    assert configs[0] == configs[1]
    assert here[1:] == there[1:]
    assert any(there[1:]) or folder in SCHEDULERS
    assert f'from_pretrained("{repo_id}")' in pushed["README.md"].decode()
    assert f'"{short(folder)}"' not in pushed["README.md"].decode()
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert {**pushed, "README.md": b"", ".gitattributes": b""} == {**files, "README.md": b"", ".gitattributes": b""}


# --- the program that pushes them ------------------------------------------------------------------------------------


@pytest.fixture
def push_to_hub(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """examples/push_to_hub.py."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    return importlib.import_module("push_to_hub")


Captured = pytest.CaptureFixture[str]


def test_a_dry_run_tells_all_and_uploads_nothing(hub: LoopbackHub, push_to_hub: ModuleType, capsys: Captured) -> None:
    push_to_hub.main(["--namespace", "me", "--dry_run"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == [f"me/{folder.name}" for folder in FOLDERS]
    for line, folder in zip(lines, FOLDERS, strict=True):
        files = [path for path in folder.rglob("*") if path.is_file()]
        assert line.endswith(f": {len(files)} files, {sum(path.stat().st_size for path in files):,} bytes")
    assert not hub.repositories
    assert not hub.requests


def test_one_private_folder_pushed_twice(hub: LoopbackHub, push_to_hub: ModuleType, capsys: Captured) -> None:
    for _ in range(2):
        push_to_hub.main(["--namespace", "me", "--private", str(SCHEDULERS[0])])
    (repository,) = hub.repositories.values()
    assert repository.private
    assert repository.messages == ["initial commit", f"Upload {SCHEDULERS[0].name}"]  # nothing had changed
    commit = f"{hub.url}/me/{SCHEDULERS[0].name}/commit/{repository.refs['main']}"
    assert capsys.readouterr().out.splitlines() == [f"me/{SCHEDULERS[0].name}: {commit}"] * 2


def test_cards_are_refreshed_in_place(
    hub: LoopbackHub, push_to_hub: ModuleType, make_pipeline: Callable[..., Any], tmp_path: Path
) -> None:
    folder = tmp_path / "pipelines" / "new"
    pipe = make_pipeline()
    pipe.save_pretrained(folder)
    (folder / "README.md").write_text("# x\n\nMine.\n\n## Usage\n\nold\n\n## Limits\n\nMany.\n")
    push_to_hub.main(["--refresh_cards", str(folder)])
    text = (folder / "README.md").read_text()
    assert text == str(pipe.generate_model_card("pipelines/new", ModelCard("Mine.\n\n## Limits\n\nMany.")))
    assert not hub.requests


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], r"`--namespace` must name the owner of the repositories, got none\. Pass your user name\."),
        (["--namespace", "me", "nowhere"], r"must hold one of .*model_index\.json.*, got '.*nowhere'\. Pass one"),
    ],
)
def test_its_errors_are_clear(
    arguments: list[str], message: str, hub: LoopbackHub, push_to_hub: ModuleType, capsys: Captured
) -> None:
    with pytest.raises(SystemExit, match="2"):
        push_to_hub.main(arguments)
    assert re.search(message, capsys.readouterr().err)
    assert not hub.requests


def test_it_runs_as_a_program(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.setattr(sys, "argv", ["push_to_hub.py", "--namespace", "me", str(SCHEDULERS[-1])])
    runpy.run_path(str(ROOT / "examples" / "push_to_hub.py"), run_name="__main__")
    assert list(hub.repositories) == [f"me/{SCHEDULERS[-1].name}"]
    assert capsys.readouterr().out.startswith(f"me/{SCHEDULERS[-1].name}: {hub.url}")
