"""The code blocks of the README and of the pages under docs, run to the letter.

Blocks of Python run in this process. Blocks of the shell are unfolded by bash, with its variables and quotes, and each
command then runs in a process of its own; what takes an installation, a GPU or an hour is replaced by what the test
says. A block that cannot run is preceded by a line `<!-- not run: REASON -->`.
"""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import fresh

from hf_maskdiff_cli.program import parser

ROOT = Path(__file__).parents[1]
COMMANDS = ("pip", "python", "hf-maskdiff", "accelerate", "mkdocs", "git", "hf")
SHOWN = ("constraints.txt", "setup.cfg", "src", "examples", "pipelines", "schedulers", "tests", "benchmarks")
PROGRAM = "import sys\nfrom hf_maskdiff_cli import main\nsys.exit(main())"
_FENCE = re.compile(
    r"""
    ^(<!--\ not\ run:\ (?P<reason>[^\n]+)\ -->\n)?
    ```(?P<language>\w+)(\ title="(?P<title>[^"]+)")?\n
    (?P<code>.*?)
    ^```$
    """,
    re.MULTILINE | re.DOTALL | re.VERBOSE,
)


@dataclass(frozen=True)
class Block:
    """A block of code.

    Args:
        language: the word behind the fence.
        code: its text.
        line: the line of the page that it begins in.
        title: the file that it shall be saved as, if it says so.
        reason: why it is not run, if it is not.
    """

    language: str
    code: str
    line: int
    title: str | None
    reason: str | None


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(line=text.count("\n", 0, found.start("code")) + 1, **found.groupdict()) for found in _FENCE.finditer(text)
    ]


Command = Callable[["Stage", list[str]], None]


@dataclass
class Stage:
    """A folder that looks like a clone of the repository, where the blocks of a page run.

    Args:
        folder: empty; it gets links to what the repository holds.
        wheel: what `pip download` fetches.
        extra: arguments added to an example by its name, or to `generate` and the like, which make it short.
        names: the names that blocks of Python share.
    """

    folder: Path
    wheel: Path | None = None
    extra: dict[str, list[str]] = field(default_factory=dict)
    names: dict[str, Any] = field(default_factory=lambda: {"__name__": "__main__"})
    launched: bool = False  # whether `accelerate launch` starts processes, or one takes the command over

    def __post_init__(self) -> None:
        for name in SHOWN:
            (self.folder / name).symlink_to(ROOT / name)

    def run(self, block: Block) -> None:
        """Runs a block in the folder, which has to be the working directory where it is of Python."""
        if block.title:
            (self.folder / block.title).write_text(block.code)
        elif block.language == "python":
            exec(compile(block.code, f"block of line {block.line}", "exec"), self.names)
        elif block.language == "bash":
            for words in self.unfold(block.code):
                ALL[words[0]](self, words[1:])
        else:
            raise ValueError(f"no block of {block.language!r} can be run. Mark it as text, or as not run.")

    def unfold(self, code: str) -> list[list[str]]:
        """The commands of a block as lists of words, by a shell in which each command says its words alone."""
        tell = "".join(f"{name}() {{ printf '%s\\0' {name} \"$@\"; printf '\\n\\0'; }}\n" for name in COMMANDS)
        ran = subprocess.run(
            ["bash", "-c", f"{tell}set -eu\n{code}"], cwd=self.folder, capture_output=True, text=True, check=True
        )
        assert ran.stderr == ""
        return [line.removesuffix("\0").split("\0") for line in ran.stdout.removesuffix("\n\0").split("\n\0") if line]

    def process(self, command: list[str]) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
        run = {"cwd": self.folder, "env": environment, "capture_output": True, "text": True, "timeout": 300}
        done = subprocess.run(command, **run)
        assert done.returncode == 0, done.stdout + done.stderr

    def start(self, program: str | Path, *arguments: str) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
        done = fresh.run(program, *arguments, environment=environment, folder=self.folder)
        assert done.returncode == 0, done.stderr


def _hf_maskdiff(stage: Stage, words: list[str]) -> None:
    if words[0] == "demo":  # would serve a page; tests/demo run it
        parser().parse_args(words)
        return
    stage.start(PROGRAM, *words, *stage.extra.get(words[0], []))


def _python(stage: Stage, words: list[str]) -> None:
    if words[:2] == ["-m", "hf_maskdiff"]:
        _hf_maskdiff(stage, words[2:])
    elif words[:2] == ["-m", "pytest"]:
        assert [word for word in words[2:] if word.startswith("tests/") and not (ROOT / word).exists()] == []
        if "--scheduler" in words:  # of one file
            command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", *words[2:]]
            stage.process(command)
    else:
        program = ROOT / words[0]
        stage.start(program, *words[1:], *stage.extra.get(program.name, []))


def _accelerate(stage: Stage, words: list[str]) -> None:
    """Options of `launch` come first; the command is a program, or `-m` with a module."""
    assert words[0] == "launch"
    begin = next(i for i, word in enumerate(words) if word == "-m" or word.endswith(".py"))
    if not stage.launched:
        _python(stage, words[begin:])
        return
    stage.process(["accelerate", *words])


def _pip(stage: Stage, words: list[str]) -> None:
    """Installs nothing: the files and extras that are named have to be there; a download is the wheel at hand."""
    if words[0] == "download":
        assert stage.wheel is not None
        shutil.copyfile(stage.wheel, stage.folder / "antiberty-0.1.3-py3-none-any.whl")
        return
    assert words[0] == "install"
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    for extra in re.findall(r"(?:\.|hf-maskdiff)\[(\w+)\]", " ".join(words)):
        assert extra in setup["options.extras_require"]
    for option, file in pairwise(words):
        assert option != "-c" or (ROOT / file).is_file()


ALL: dict[str, Command] = {"pip": _pip, "python": _python, "hf-maskdiff": _hf_maskdiff, "accelerate": _accelerate}
