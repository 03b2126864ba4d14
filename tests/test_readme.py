"""The README to the letter: every block of code runs, by itself, and what it promises comes out."""

from __future__ import annotations

import os
import re
from pathlib import Path

import antiberty_wheel
import golden_data
import pytest
import tiny_llada
from accelerate.commands.launch import launch_command_parser
from hub_server import LoopbackHub
from huggingface_hub import create_repo, upload_folder
from PIL import Image
from snippets import ROOT, Stage, blocks

import hf_maskdiff
from hf_maskdiff import MaskedDiffusionScheduler

README = ROOT / "README.md"
TEXT = README.read_text(encoding="utf-8")
BLOCKS = blocks(README)


def small_wheel(folder: Path) -> Path:
    return antiberty_wheel.write_wheel(folder / "small.whl", antiberty_wheel.contents())


@pytest.fixture
def chat_model(hub: LoopbackHub, tmp_path: Path) -> str:
    """The chat model under its published name, small and with random weights."""
    repo_id = next(name for name in re.findall(r'"([\w-]+/[\w.-]+)"', TEXT) if "Instruct" in name)
    hub.users["uploader"] = repo_id.split("/")[0]
    create_repo(repo_id, token="uploader")
    upload_folder(repo_id=repo_id, folder_path=tiny_llada.write(tmp_path / "llada"), token="uploader")
    del hub.users["uploader"]
    return repo_id


def test_it_is_short() -> None:
    assert len(TEXT.splitlines()) <= 140
    assert max(len(line) for line in TEXT.splitlines() if not line.startswith("| ")) <= 130


def test_every_block_runs(
    chat_model: str,
    hub: LoopbackHub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "clone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    stage = Stage(folder, wheel=small_wheel(tmp_path))
    printed = []
    for block in BLOCKS:
        assert block.reason is None
        stage.names = {"__name__": "__main__"}  # each is complete
        stage.run(block)
        printed.append(capsys.readouterr().out)
    assert Image.open(folder / "seven.png").size == (28, 28)
    continued, filled_in = next(text for text in printed if text.startswith("ROMEO:")).rsplit("\n\nTo be, or ", 1)
    assert len(continued) > 40
    assert re.fullmatch(r".+ question\.\n", filled_in, re.DOTALL)
    chain = next(text for text in printed if text.startswith("EVQLV")).strip()
    assert re.fullmatch(r"EVQLVESGGGLVQPGGSLRLSCAASGFNIKD[A-Z]{90}", chain.replace(" ", ""))
    assert "modeling_llada.py" not in " ".join(hub.requests)
    assert any(f"{chat_model}/resolve" in request for request in hub.requests)
    assert list((folder / "out" / "digits").glob("train-*.parquet"))


@pytest.mark.exhaustive
def test_the_antibody_is_written_by_the_released_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if "HF_MASKDIFF_ANTIBERTY" not in os.environ:
        pytest.skip(golden_data.not_set("HF_MASKDIFF_ANTIBERTY"))
    monkeypatch.chdir(tmp_path)
    stage = Stage(tmp_path, wheel=Path(os.environ["HF_MASKDIFF_ANTIBERTY"]))
    for block in BLOCKS:
        if "antiberty" in block.code:
            stage.run(block)
    assert re.fullmatch(r"EVQLVESGGGLVQPGGSLRLSCAASGFNIKD[A-Z]{90}", capsys.readouterr().out.strip().replace(" ", ""))


@pytest.mark.exhaustive
def test_many_processes_as_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    stage = Stage(tmp_path, launched=True)
    for block in BLOCKS:
        if "accelerate launch" in block.code:
            stage.run(block)
    assert list((tmp_path / "out" / "digits").glob("train-*.parquet"))


def test_accelerate_has_nothing_to_remark(tmp_path: Path) -> None:
    """It notes what it was not told, unless it was configured before."""
    stage = Stage(tmp_path)
    commands = [words for block in BLOCKS if "accelerate launch" in block.code for words in stage.unfold(block.code)]
    assert commands
    for words in commands:
        given = launch_command_parser().parse_args(words[2:])
        told = (given.num_processes, given.num_machines, given.mixed_precision, given.dynamo_backend)
        assert None not in told, words


def test_the_table_has_a_row_for_every_scheduler() -> None:
    classes = [getattr(hf_maskdiff, name) for name in hf_maskdiff.__all__]
    concrete = {
        c.__name__
        for c in classes
        if isinstance(c, type) and issubclass(c, MaskedDiffusionScheduler) and not c.__abstractmethods__
    }
    assert set(re.findall(r"^\| `(\w+Scheduler)` \|", TEXT, re.MULTILINE)) == concrete


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)", TEXT)
    assert len(links) > 15
    assert [link for link in links if not (ROOT / link).exists()] == []
