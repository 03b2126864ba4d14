"""Several conversions at once, and after one that was killed: one folder, one line for the others, nothing left."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hf_maskdiff.conversion import whole_folders
from hf_maskdiff.conversion.whole_folders import whole_folder, workshop_of

pytestmark = pytest.mark.skipif(whole_folders.fcntl is None, reason="this system has no locks of this kind")

# Writes a folder as slowly as it is told, and says when it has begun; only this module is imported.
WRITER = """
import importlib.util, sys, time
from pathlib import Path

spec = importlib.util.spec_from_file_location("whole_folders", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
output, seconds = Path(sys.argv[2]), float(sys.argv[3])
try:
    with module.whole_folder(output) as folder:
        (folder / "part").write_text(str(seconds))
        print("begun", flush=True)
        time.sleep(seconds)
except ValueError as error:
    sys.exit(f"refused: {error}")
"""


def start(output: Path, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, whole_folders.__file__, str(output), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_three_at_once(tmp_path: Path) -> None:
    """The first writes, and the others say so in one line; an output that is there is left alone."""
    output = tmp_path / "deep" / "out"
    first = start(output, 60)
    assert first.stdout.readline() == "begun\n"
    others = [start(output, 0) for _ in range(2)]
    for other in others:
        _, error = other.communicate()
        assert other.returncode == 1
        assert error.splitlines() == [
            "refused: `output` must be written by one program at a time, another one is at "
            f"{str(output)!r}. Wait for it, or pass another folder."
        ]
    assert not output.exists()

    first.send_signal(signal.SIGKILL)
    first.wait()
    assert (workshop_of(output) / "lock").is_file()
    with whole_folder(output) as folder:
        assert [path for path in workshop_of(output).iterdir() if path.is_dir()] == [folder]
        (folder / "part").write_text("whole")
    assert [path.name for path in output.parent.iterdir()] == ["out"]
    with pytest.raises(ValueError, match="`output` must be a new or empty folder"), whole_folder(output):
        pytest.fail("it was there")
    assert (output / "part").read_text() == "whole"


def test_others_in_the_same_folder_are_nobody_s_business(tmp_path: Path) -> None:
    mine = [tmp_path / name for name in (".out.partial-of-mine", ".out2.partial", "out2")]
    for folder in mine:
        folder.mkdir()
    with whole_folder(tmp_path / "out"), whole_folder(tmp_path / "out2"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.partial-of-mine", "out", "out2"]


def test_one_that_finishes_while_another_waits_at_the_door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the first look at the output and the lock somebody else may have written all of it."""
    lock, output = whole_folders._lock, tmp_path / "out"

    def late(descriptor: int, place: Path) -> bool:
        output.mkdir(exist_ok=True)
        (output / "theirs").write_text("theirs")
        return lock(descriptor, place)

    monkeypatch.setattr(whole_folders, "_lock", late)
    with pytest.raises(ValueError, match="`output` must be a new or empty folder"), whole_folder(output):
        pytest.fail("it was there")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_lock_that_was_taken_away_is_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last owner removes the file: who has it open by then must open the new one."""
    lock, calls = whole_folders._lock, []

    def removed(descriptor: int, place: Path) -> bool:
        calls.append(descriptor)
        if len(calls) == 1:
            (workshop_of(place) / "lock").unlink()
        return lock(descriptor, place)

    monkeypatch.setattr(whole_folders, "_lock", removed)
    second = whole_folder(tmp_path / "out")
    with whole_folder(tmp_path / "out"), pytest.raises(ValueError, match="one program at a time"):
        second.__enter__()
    assert len(calls) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_where_there_are_no_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last one finds the output written, in the same words; nothing of the other's is taken away."""
    monkeypatch.setattr(whole_folders, "_lock", lambda descriptor, place: False)
    output = tmp_path / "out"

    def second() -> None:
        with whole_folder(output) as folder:
            (folder / "part").write_text("second")
            with whole_folder(output) as other:
                (other / "part").write_text("first")
            assert folder.is_dir()

    with pytest.raises(ValueError, match="`output` must be a new or empty folder"):
        second()
    assert (output / "part").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
