"""Programs that `fresh` runs are to the eye those of a new interpreter, and hold nothing of this package."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import fresh
import pytest

PROGRAMS = {
    "arguments": "import sys; print(sys.argv, sys.path[0], repr(sys.stdin.read()))",
    "a place": "import os; print(os.getcwd(), os.environ['A'], 'HF_HUB_CACHE' in os.environ)",
    "a status": "import sys; sys.stderr.write('no'); sys.exit(3)",
    "a message": "raise SystemExit('a word')",
    "an error": "def f(): raise ValueError('a word')\nf()",
    "a signal": "import os, signal; print('a word', flush=True); os.kill(os.getpid(), signal.SIGKILL)",
    "what follows": "import atexit; atexit.register(print, 'after'); print('before', __name__)",
    "a limit": (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (5, 5)); open(sys.argv[1], 'w').write('a' * 9)"
    ),
}


@pytest.mark.parametrize("is_file", [False, True], ids=["code", "file"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_does_what_it_does_in_a_new_interpreter(name: str, is_file: bool, tmp_path: Path) -> None:
    program: str | Path = PROGRAMS[name]
    if is_file:
        program = tmp_path / "program.py"
        program.write_text(PROGRAMS[name])
    environment = {"PATH": os.environ["PATH"], "A": "1"}
    command = [sys.executable, "-W", "ignore", *([] if is_file else ["-c"]), str(program), str(tmp_path / "new")]
    options = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True, "stdin": subprocess.DEVNULL}
    expected = subprocess.run(command, **options)
    done = fresh.run(program, tmp_path / "new", environment=environment, folder=tmp_path)
    assert (done.returncode, done.stdout) == (expected.returncode, expected.stdout)
    assert done.stderr.splitlines()[-1:] == expected.stderr.splitlines()[-1:]


STATE = """
import sys
import huggingface_hub.constants
assert not [name for name in sys.modules if name.startswith("hf_maskdiff")]
print("diffusers" in sys.modules, huggingface_hub.constants.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_CACHE)
huggingface_hub.constants.HF_HUB_OFFLINE = "spoilt"
import hf_maskdiff
print(hf_maskdiff.__file__)
"""


@pytest.mark.parametrize("settings", [{}, {"HF_HUB_OFFLINE": "1"}, {"HF_HUB_CACHE": "elsewhere"}], ids=str)
def test_the_package_is_imported_anew_and_settings_are_those_given(settings: dict[str, str]) -> None:
    """Also the second time; with a cache elsewhere the libraries are imported anew as well."""
    import hf_maskdiff

    cache = settings.get("HF_HUB_CACHE", os.environ["HF_HUB_CACHE"])
    state = f"{'HF_HUB_CACHE' not in settings} {settings.get('HF_HUB_OFFLINE') == '1'} {cache}"
    for _ in range(1 if "HF_HUB_CACHE" in settings else 2):
        done = fresh.run(STATE, environment=os.environ | settings)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines() == [state, hf_maskdiff.__file__]


@pytest.mark.exhaustive
def test_a_program_that_does_not_end_is_ended() -> None:
    with pytest.raises(TimeoutError, match=r"must end within 0\.2 seconds"):
        fresh.run("import time; time.sleep(60)", timeout=0.2)
    assert fresh.run("print(1)").stdout == "1\n"
