"""Without the Hub: programs ask once and say so in a line, and a library asks for no file after the first in vain."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.file_download
import pytest
from hub_server import LoopbackHub
from huggingface_hub import create_repo, upload_file
from launched import free_port

from hf_maskdiff import MaskedDiffusionTextPipeline, MDLMPipeline
from hf_maskdiff.evaluation.image_features import ClassifierNetwork
from hf_maskdiff.evaluation.judges import load_judge
from hf_maskdiff.hub_access import HubOutOfReach, require_hub
from hf_maskdiff.pipelines.transformers_tasks import Repository
from hf_maskdiff.sets.loading import open_pipeline
from hf_maskdiff_cli import main

NAME = "nobody/nothing"
OUT_OF_REACH = re.escape(f"'{NAME}' is not on this machine, and the Hub was not reached: ")
ROOT = Path(__file__).parents[1]


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A Hub that nobody serves; how long its client would have waited before it tried again."""
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    template = f"http://127.0.0.1:{free_port()}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    return waited


@pytest.mark.parametrize(
    "load",
    [
        lambda: open_pipeline(NAME, {}),
        lambda: load_judge(NAME, None, "cpu"),
        lambda: ClassifierNetwork(NAME),
    ],
    ids=["pipeline", "judge", "network"],
)
def test_programs_ask_once(waits: list[float], load: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=f"got '{NAME}': {OUT_OF_REACH}.*Check the connection, or pass a folder.$"):
        load()
    assert waits == []


@pytest.mark.parametrize("command", ["generate", "evaluate"])
def test_a_command_says_it_in_a_line(
    waits: list[float], command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [command, "--num_samples", "1", "--output_dir", str(tmp_path / "out"), "--pipeline"]
    assert main([*words, NAME]) == 1
    assert re.fullmatch(f"hf-maskdiff {command}: .*{OUT_OF_REACH}.*\n", capsys.readouterr().err)
    if command == "generate":
        assert main([*words, str(ROOT / "pipelines" / "maskgit-mnist"), "--scheduler", NAME]) == 1
        assert re.match(f"hf-maskdiff generate: {OUT_OF_REACH}", capsys.readouterr().err.splitlines()[-1])
    assert waits == []


@pytest.mark.parametrize(
    "load",
    [
        MaskedDiffusionTextPipeline.from_pretrained,
        MDLMPipeline.from_pretrained,
        lambda name: Repository(name, {}, {}).pipeline_name,
    ],
    ids=["text", "mdlm", "task"],
)
def test_a_library_asks_for_no_second_file(
    waits: list[float], load: Callable[[str], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, ask = set(), huggingface_hub.file_download.get_hf_file_metadata

    def noted(url: str, *rest: Any, **more: Any) -> Any:
        asked.add(url.rpartition("/")[2])
        return ask(url, *rest, **more)

    monkeypatch.setattr(huggingface_hub.file_download, "get_hf_file_metadata", noted)
    with pytest.raises(HubOutOfReach, match=OUT_OF_REACH):
        load(NAME)
    assert asked == {"model_index.json"}


def test_what_was_fetched_before_is_looked_into(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """A repository of a model alone, whose other files may all be here."""
    create_repo("me/fetched", token="owner")
    config = {"path_or_fileobj": b'{"model_type": "mdlm"}', "path_in_repo": "config.json"}
    upload_file(repo_id="me/fetched", token="owner", **config)
    assert Repository("me/fetched", {}, {}).pipeline_name == "MDLMPipeline"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert Repository("me/fetched", {}, {}).pipeline_name == "MDLMPipeline"
    require_hub("me/fetched")


def test_an_answer_of_any_kind_is_one(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (NAME, "no name", str(tmp_path)):
        require_hub(name)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(HubOutOfReach, match=f"{OUT_OF_REACH}.*offline"):
        require_hub(NAME)
    require_hub(tmp_path)
