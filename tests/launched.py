"""A program in two processes of one group, as `accelerate launch` starts it, by forks of this one: nothing to import.

    group = launched.start(EXAMPLE, arguments, tmp_path / "log")
    assert group.wait() == [0, 0], group.printed()

Each fork has the variables by which torch and accelerate find the others, states of its own, and ends when the program
does; none ends the others, as a launcher would. What accelerate's launcher itself does is in the tests that start it.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate.state import AcceleratorState, GradientState, PartialState


def free_port() -> str:
    """Older accelerate takes the port 0 for a port."""
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return str(opened.getsockname()[1])


@dataclass
class Group:
    """Processes that were started together, and the files they print to, by a `cat` that no limit of theirs is for."""

    processes: list[Any]
    logs: list[Path]
    writers: list[subprocess.Popen[bytes]]

    def is_alive(self) -> bool:
        return any(process.is_alive() for process in self.processes)

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
        self.wait()

    def wait(self, timeout: float = 120) -> list[int | None]:
        """The exit status of each. One that does not end is killed, and its status is None."""
        for process in self.processes:
            process.join(timeout)
        ended = [process.exitcode for process in self.processes]
        for process, writer in zip(self.processes, self.writers, strict=True):
            process.kill()
            writer.wait(timeout)
        return ended

    def printed(self) -> list[str]:
        return [log.read_text() for log in self.logs]


def start(
    program: Path,
    arguments: Sequence[str],
    log: Path,
    *,
    machines: bool = False,
    environment: dict[str, str] | None = None,
    first: Callable[[], object] = lambda: None,
) -> Group:
    """Two processes that run a program.

    Args:
        log: beside it each process has a file for what it prints.
        machines: each is the only one of its machine.
        environment: further variables, as a launcher sets them.
        first: called in each process before the program.
    """
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1" if machines else "2", "MASTER_ADDR": "127.0.0.1"}
    shared |= {"MASTER_PORT": free_port(), **(environment or {})}
    group = Group([], [], [])
    for rank in range(2):
        group.logs.append(log.with_name(f"{log.name}-{rank}"))
        with group.logs[-1].open("wb") as written:
            writer = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=written)
        assert writer.stdin is not None
        own = shared | {"RANK": str(rank), "LOCAL_RANK": "0" if machines else str(rank)}
        given = (program, list(arguments), writer.stdin.fileno(), own, first)
        process = multiprocessing.get_context("fork").Process(target=_run, args=given)
        process.start()
        writer.stdin.close()  # it ends with the process
        group.writers.append(writer)
        group.processes.append(process)
    return group


def _run(program: Path, arguments: list[str], output: int, environment: dict[str, str], first: Callable) -> None:
    """In a fork: what becomes of `python program arguments`, but for the interpreter's end."""
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115
    os.environ.update(environment)
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    sys.argv = [str(program), *arguments]
    sys.path.insert(0, str(program.parent))
    status: object = 0
    try:
        first()
        runpy.run_path(str(program), run_name="__main__")
    except SystemExit as end:
        status = end.code
    except BaseException:
        traceback.print_exc()
        status = 1
    _leave_group()
    os._exit(status if isinstance(status, int) else 1)


def _leave_group() -> None:
    import torch

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
