"""Programs in processes of their own that start in a fifth of a second, where a new interpreter imports for five.

    done = fresh.run("import hf_maskdiff, sys; print(sys.argv)", "a", environment=os.environ | {"HF_HUB_OFFLINE": "1"})
    assert (done.returncode, done.stdout) == (0, "['-c', 'a']\n")

One server a test process imports torch and what the libraries stand on, and forks for each program. Between the two
stand servers that also hold the libraries, one for each setting of `HF_HUB_OFFLINE`.

Faithful to: no state of the tests (weights, registrations, patches, threads, open files), hf_maskdiff imported anew
from its files, the environment that is given, working directory, arguments, `sys.path`, exit status, output, signals,
limits. The libraries read some variables when they are imported: where these differ from the tests' own, they are
imported anew too, which takes two seconds.
Not faithful to: the import of torch and of the libraries (its time, order, warnings and memory), options of the
interpreter, the seeds of hashes and of numpy's global generator, which all programs share. What is about those takes a
`subprocess`.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import CodeType, ModuleType
from typing import IO, Any

GROUND = "torch torch._dynamo torch.distributed.fsdp scipy.stats scipy.optimize pandas pyarrow.parquet PIL.Image yaml"
# Beside the libraries themselves what of their parts this package asks for.
LIBRARIES = """
    accelerate datasets huggingface_hub.repocard transformers.pipelines transformers.models.auto.modeling_auto
    transformers.models.auto.tokenization_auto transformers.models.llama.modeling_llama
    transformers.models.clip.modeling_clip transformers.models.qwen2.tokenization_qwen2
    diffusers.pipelines.pipeline_utils diffusers.models.autoencoders.vq_model diffusers.image_processor
"""
# Asked in another way whether there are devices, CUDA is started, and cannot be used in a fork.
BEFORE_A_FORK = {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"}


@cache
def _server() -> _Server:
    return _Server.start()


def run(
    program: str | Path,
    *arguments: str | Path,
    environment: Mapping[str, str] | None = None,
    folder: str | Path | None = None,
    timeout: float = 300,
) -> subprocess.CompletedProcess[str]:
    """Run code (a string) or a file (a path) as `python -W ignore` would, and return its status and what it printed.

    `environment` replaces the tests' own, `folder` is where it runs. A program that takes more than `timeout` seconds
    is killed, with the servers; that is a `TimeoutError`.
    """
    everything = dict(os.environ if environment is None else environment)
    settings, usual = _settings(everything), _settings(os.environ)
    usual |= {key: value for key, value in settings.items() if key == "HF_HUB_OFFLINE"}
    with tempfile.TemporaryDirectory(prefix="hf_maskdiff_fresh_") as said:
        task = {
            "arguments": [str(program) if isinstance(program, Path) else "-c", *map(str, arguments)],
            "code": program.read_text() if isinstance(program, Path) else program,
            "environment": everything,
            "folder": str(folder or Path.cwd()),
            "output": [f"{said}/out", f"{said}/err"],
            "libraries": json.dumps(settings, sort_keys=True) if settings == usual else None,
        }
        status = _server().ask(task, timeout)
        out, err = (Path(path).read_text() for path in task["output"])
    return subprocess.CompletedProcess(task["arguments"], status, out, err)


def stop() -> None:
    """End the servers, if there are any."""
    if _server.cache_info().currsize:
        _server().requests.close()
        _server().process.wait()
        _server.cache_clear()


def _settings(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that the libraries read when they are imported; the token they read when they need it."""
    theirs = re.compile(r"(?!HF_TOKEN$|HF_MASKDIFF_)(HF|DIFFUSERS|TRANSFORMERS|ACCELERATE)_")
    return {key: value for key, value in environment.items() if theirs.match(key)}


@dataclass
class _Server:
    """The tests' end of a server."""

    process: subprocess.Popen[str]
    requests: IO[str]
    replies: IO[str]

    @classmethod
    def start(cls) -> _Server:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        command = [sys.executable, "-W", "ignore", __file__]
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | BEFORE_A_FORK
        process = subprocess.Popen(command, env=environment, start_new_session=True, **pipes)
        assert process.stdin is not None
        assert process.stdout is not None
        return cls(process, process.stdin, process.stdout)

    def ask(self, task: dict[str, Any], timeout: float) -> int:
        print(json.dumps(task), file=self.requests, flush=True)
        if not select.select([self.replies], [], [], timeout)[0]:
            os.killpg(self.process.pid, signal.SIGKILL)
            _server.cache_clear()
            raise TimeoutError(f"A program must end within {timeout} seconds, this did not: {task['code']}")
        return int(self.replies.readline())


# --- in the server ----------------------------------------------------------------------------------------------------


def _serve(requests: IO[str], replies: IO[str]) -> dict[str, Any]:
    """Fork for each request, and return it in the fork; the server itself ends with its requests."""
    further: dict[str, tuple[IO[str], IO[str]]] = {}
    while line := requests.readline():
        task = json.loads(line)
        libraries = task.pop("libraries", None)
        if libraries is None:
            if (child := os.fork()) == 0:
                return task
            reply = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        else:
            if libraries not in further:
                (theirs, to), (back, answers) = os.pipe(), os.pipe()
                if os.fork() == 0:
                    os.close(to)
                    os.close(back)
                    for other, _ in further.values():
                        other.close()
                    os.environ.clear()
                    os.environ.update(task["environment"] | BEFORE_A_FORK)
                    _import(LIBRARIES)
                    return _serve(os.fdopen(theirs), os.fdopen(answers, "w"))
                os.close(theirs)
                os.close(answers)
                further[libraries] = os.fdopen(to, "w"), os.fdopen(back)
            print(json.dumps(task), file=further[libraries][0], flush=True)
            reply = int(further[libraries][1].readline())
        print(reply, file=replies, flush=True)
    for other, _ in further.values():
        other.close()
        os.wait()
    os._exit(0)


def _import(names: str) -> None:
    for name in names.split():
        with contextlib.suppress(ModuleNotFoundError):  # of another version: then the program imports what there is
            importlib.import_module(name)
    assert not [name for name in sys.modules if name.startswith("hf_maskdiff")]


def _become(task: dict[str, Any]) -> None:
    """Turn this fork into the program's process."""
    for descriptor, path in enumerate([os.devnull, *task["output"]]):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), descriptor)
    os.closerange(3, 256)
    sys.stdout, sys.stderr = (open(n, "w", buffering=1, closefd=False) for n in (1, 2))  # noqa: SIM115
    os.environ.clear()
    os.environ.update(task["environment"])
    os.chdir(task["folder"])
    sys.argv = task["arguments"]
    is_file = sys.argv[0] != "-c"
    path = [os.path.dirname(sys.argv[0]) if is_file else "", *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    sys.path[:1] = [*path[:1], *filter(None, path[1:])]
    module = sys.modules["__main__"] = ModuleType("__main__")
    if is_file:
        module.__file__ = sys.argv[0]
    os._exit(_status_of(compile(task["code"], sys.argv[0] if is_file else "<string>", "exec"), module))


def _status_of(code: CodeType, module: ModuleType) -> int:
    """Run a program to its end; taking the interpreter down as well would cost a second."""
    status: object = None
    try:
        exec(code, vars(module))
    except SystemExit as stop:
        status = stop.code
    except BaseException:
        traceback.print_exc()
        status = 1
    if not isinstance(status, int | None):
        print(status, file=sys.stderr)
        status = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return status or 0


if __name__ == "__main__":
    _import(GROUND)
    _become(_serve(sys.stdin, os.fdopen(os.dup(1), "w")))
