"""The arrows between the rooms of both packages: what may import what. Every import in the sources is walked."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from configparser import ConfigParser
from os.path import normpath
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "hf_maskdiff"
COMMAND_LINE = ROOT / "src" / "hf_maskdiff_cli"
STANDARD = sys.stdlib_module_names
ANYTHING = {"*"}

# room -> what it may import besides the standard library and itself. A new room has no arrow until it is written here.
ARROWS: dict[str, set[str]] = {
    "integers": set(),
    "masking": {"torch", "integers"},
    "audio_masks": {"torch", "integers"},
    "wav_files": {"torch"},
    "orders": {"torch", "kept_tensors"},
    "token_filters": {"torch"},
    "revising": {"torch", "orders"},
    "kept_tensors": {"torch"},
    "kernels": {"torch", "triton", "orders"},
    "draws": {"torch"},
    "marginals": {"torch", "token_filters", "kernels", "draws"},
    "sampling": {"torch", "kept_tensors", "kernels", "draws", "marginals"},
    "hub": {"huggingface_hub", "hf_maskdiff_cli"},
    "hub_access": {"huggingface_hub"},
    "schedulers": {
        *("torch", "diffusers", "hub", "integers", "kept_tensors", "masking", "orders", "revising", "sampling"),
    },
    "exclusive": {"torch"},
    "attention_rule": {"torch"},
    "devices": {"torch"},
    "pictures": {"torch", "PIL"},
    "caching": {"torch", "diffusers", "transformers", "integers"},
    "published": {"torch", "safetensors", "diffusers", "transformers", "attention_rule"},
    "models": {
        *("torch", "diffusers", "transformers"),
        *("hub", "kept_tensors", "caching", "published", "attention_rule"),
    },
    "denoisers": {"torch", "diffusers", "transformers", "caching", "models", "exclusive", "attention_rule"},
    "likelihood": {"torch", "attention_rule", "denoisers"},
    "pipelines": {
        *("torch", "torch_xla", "PIL", "diffusers", "transformers"),
        *("hub", "hub_access", "integers", "sampling", "exclusive", "pictures", "attention_rule"),
        *("schedulers", "caching", "models", "published", "denoisers", "likelihood", "wav_files"),
    },
    "conversion": {
        *("torch", "safetensors", "huggingface_hub", "diffusers", "transformers", "tokenizers"),
        *("hub", "models", "published", "pipelines", "schedulers", "attention_rule", "hf_maskdiff_cli"),
    },
    "evaluation": ANYTHING,
    "sets": {
        *("torch", "transformers", "accelerate", "datasets", "pyarrow", "tqdm", "huggingface_hub"),
        *("__init__", "caching", "pipelines", "schedulers", "devices", "hub_access", "wav_files", "hf_maskdiff_cli"),
    },
    "harness": {
        *("torch", "accelerate", "tqdm", "lm_eval"),
        *("devices", "hub_access", "caching", "likelihood", "pipelines", "sets", "hf_maskdiff_cli"),
    },
    "tuning": {
        *("torch", "numpy", "accelerate", "datasets", "matplotlib", "huggingface_hub"),
        *("devices", "caching", "likelihood", "schedulers", "pipelines"),
        *("evaluation", "sets", "parallel", "hf_maskdiff_cli"),
    },
    "demo": {
        *("torch", "PIL", "gradio"),
        *("__init__", "caching", "schedulers", "devices", "evaluation", "sets", "wav_files", "hf_maskdiff_cli"),
    },
    "parallel": {"sets", "hf_maskdiff_cli"},
    "generation": {"torch", "sets", "hf_maskdiff_cli"},
    "cli": {"hf_maskdiff_cli"},
    "__main__": {"cli"},
    "hf_maskdiff_cli": {
        "conversion",
        "sets",
        "evaluation",
        "demo",
        "harness",
        "lm_eval",
        "tuning",
        "matplotlib",
    },  # inside functions: see the test of its module level
    "_versions": set(),
    "__init__": {"diffusers", "_versions", "schedulers", "models", "pipelines"},
}
# Where names that have moved to a room above are still found: imported when somebody asks for one of them.
OLD_ADDRESSES = {"models/__init__.py"}
BASES = {"scheduling_masked_diffusion", "scheduling_choose_then_sample", "scheduling_revising"}


def room_of(path: Path) -> str:
    if path.is_relative_to(COMMAND_LINE):
        return COMMAND_LINE.name
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported(path: Path, source: str) -> Iterator[tuple[str, ...]]:
    """Every import of a file as the parts of an absolute name, `from x import y` as x.y; nested ones too."""
    package = path.relative_to(SOURCE.parent).parts[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield tuple(name.name.split("."))
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else ()
            module = tuple(node.module.split(".")) if node.module else ()
            for name in node.names:
                yield (*start, *module, name.name)
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in (
            "import_module",
            "__import__",
        ):
            if path.is_relative_to(SOURCE) and str(path.relative_to(SOURCE)) in OLD_ADDRESSES:
                continue
            yield ("<import at run time>",)


def wrong_arrows(path: Path, source: str) -> list[str]:
    room, wrong = room_of(path), []
    allowed = ARROWS.get(room, set())
    for name in imported(path, source):
        if name[0] == "hf_maskdiff":
            target = name[1] if len(name) > 1 else "__init__"
            target = target if (SOURCE / target).is_dir() or (SOURCE / f"{target}.py").exists() else "__init__"
            if target == room or allowed >= ANYTHING:
                is_private = target.startswith("_") and target not in (room, "__init__")
                concrete = {part for part in name if part.startswith("scheduling_")} - BASES
                if is_private or (room == "schedulers" and path.stem != "__init__" and concrete):
                    wrong.append(f"{room}/{path.name} -> {'.'.join(name)}")
                continue
        else:
            target = name[0]
            if target in STANDARD or allowed >= ANYTHING or target == room:
                continue
        if target not in allowed:
            wrong.append(f"{room}/{path.name} -> {'.'.join(name)}")
    return wrong


def sources() -> list[Path]:
    return sorted([*SOURCE.rglob("*.py"), *COMMAND_LINE.rglob("*.py")])


def test_no_arrow_but_these() -> None:
    assert len(sources()) > 15
    assert [arrow for path in sources() for arrow in wrong_arrows(path, path.read_text())] == []


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("masking.py", "import numpy"),
        ("orders.py", "from .sampling import gumbel"),
        ("sampling.py", "from hf_maskdiff.masking import mask_ratio"),
        ("sampling.py", "def late():\n    import diffusers"),
        ("schedulers/scheduling_new.py", "from .scheduling_moment import MomentScheduler"),
        ("schedulers/scheduling_new.py", "from . import scheduling_moment"),
        ("schedulers/scheduling_new.py", "from ..pipelines import MaskGITPipeline"),
        ("schedulers/scheduling_new.py", "from hf_maskdiff import MomentScheduler"),
        ("models/transformer_new.py", "from ..schedulers import MomentScheduler"),
        ("models/transformer_new.py", "from ..sampling import gumbel"),
        ("models/transformer_new.py", "from ..denoisers import text_denoiser"),
        ("caching/new.py", "from ..models import MDLMTransformer"),
        ("caching/new.py", "from ..schedulers import Choice"),
        ("denoisers/new.py", "from ..published import load_published_text"),
        ("published/new.py", "from ..models import MDLMTransformer"),
        ("pipelines/pipeline_new.py", "from ..conversion import halton_maskgit"),
        ("pipelines/pipeline_new.py", "import datasets"),
        ("conversion/new.py", "from ..evaluation import laws"),
        ("evaluation/new.py", "from .._versions import SUPPORTED"),
        ("parallel.py", "from .pipelines import MaskGITPipeline"),
        ("sets/new.py", "from ..evaluation.samples import load_samples"),
        ("schedulers/scheduling_new.py", "from hf_maskdiff_cli import main"),
        ("../hf_maskdiff_cli/new.py", "def run():\n    from hf_maskdiff.models import PartialCacheConfig"),
        ("../hf_maskdiff_cli/new.py", "def run():\n    import torch"),
        ("__init__.py", "from .evaluation import laws"),
        ("new_room.py", "import torch"),
        ("models/transformer_new.py", "import importlib\nimportlib.import_module('scipy')"),
    ],
)
def test_wrong_arrows_are_seen(file: str, line: str) -> None:
    assert len(wrong_arrows(Path(normpath(SOURCE / file)), line)) == 1


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("schedulers/scheduling_new.py", "from .scheduling_masked_diffusion import require"),
        ("schedulers/scheduling_new.py", "from . import position_orders"),
        ("schedulers/__init__.py", "from .scheduling_moment import MomentScheduler"),
        ("models/transformer_new.py", "from hf_maskdiff.caching import KeyValueSlot"),
        ("evaluation/new.py", "import scipy\nfrom hf_maskdiff import MomentScheduler\nfrom ..parallel import generate"),
        ("sets/new.py", "from hf_maskdiff import __version__\nfrom hf_maskdiff_cli.set_folder import HIDDEN"),
        ("../hf_maskdiff_cli/new.py", "from .checks import require_positive\nfrom hf_maskdiff_cli import main"),
    ],
)
def test_right_arrows_are_allowed(file: str, line: str) -> None:
    assert wrong_arrows(Path(normpath(SOURCE / file)), line) == []


def begins_with(path: Path, source: str) -> set[str]:
    """The packages that importing a file imports; imports inside functions are not counted."""
    names = set()
    for node in ast.parse(source).body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names |= {name[0] for name in imported(path, ast.unparse(node))}
    return names


def test_the_command_line_begins_with_the_standard_library_alone() -> None:
    files = sorted(COMMAND_LINE.rglob("*.py"))
    assert len(files) > 5
    for path in files:
        assert begins_with(path, path.read_text()) - STANDARD - {COMMAND_LINE.name} == set(), path.name


def test_heavy_beginnings_are_seen() -> None:
    path = COMMAND_LINE / "new.py"
    assert begins_with(path, "import hf_maskdiff") == {"hf_maskdiff"}
    assert begins_with(path, "try:\n    from torch import Tensor\nexcept ImportError:\n    pass") == {"torch"}
    assert begins_with(path, "def run():\n    import torch") == set()


def test_names_that_have_moved_are_found_where_they_were() -> None:
    from hf_maskdiff import denoisers, models, published

    assert models.TransformersDenoiser is denoisers.TransformersDenoiser
    assert models.load_published_text is published.load_published_text
    for name in models._MOVED:
        assert getattr(models, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = models.nothing


def test_what_an_import_of_the_package_needs_is_installed_with_it() -> None:
    """Everything reachable from `__init__`, imports inside functions not counted, is a requirement, not an extra."""
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    names = re.findall(r"^[\w-]+", setup["options"]["install_requires"], re.MULTILINE)
    required = {name.lower().replace("-", "_") for name in names} | {"PIL"}
    needed = set()
    for path in sources():
        if room_of(path) in (
            "evaluation",
            "conversion",
            "sets",
            "harness",
            "tuning",
            "demo",
            "parallel",
            "generation",
            "cli",
            "__main__",
        ):
            continue
        if path.name == "row_kernels.py":  # imported where a GPU needs it; without Triton torch does the work
            continue
        tree = ast.parse(path.read_text())
        for node in tree.body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                needed |= {name[0] for name in imported(path, ast.unparse(node))}
    assert "diffusers" in needed
    assert needed - required - STANDARD - {"hf_maskdiff", "hf_maskdiff_cli"} == set()


# --- no path of anyone's machine --------------------------------------------------------------------------------------

MACHINE_PATH = re.compile(r"(?<![\w.:/~-])/(?:home|Users|root|work|mnt|scratch|workspace|tmp|var)/\w")
TEXT = {".py", ".md", ".cfg", ".toml", ".json", ".txt", ".yml", ".yaml", ".cff", ".sh", ".csv", ""}
SKIPPED = {".git", ".venv", "build", "dist", "__pycache__", "runs", "out"}


def repository_files() -> Iterator[Path]:
    for path in sorted(ROOT.rglob("*")):
        parts = path.relative_to(ROOT).parts
        if SKIPPED & set(parts) or any(part.endswith(("_cache", ".egg-info")) for part in parts):
            continue
        if path.is_file() and path.suffix in TEXT and ".hypothesis" not in parts:
            yield path


def test_no_file_holds_a_path_of_a_machine() -> None:
    files = list(repository_files())
    assert Path(__file__) in files
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in files
        for number, line in enumerate(path.read_text(errors="ignore").splitlines(), 1)
        if MACHINE_PATH.search(line)
    ]
    assert found == []


def test_machine_paths_are_seen() -> None:
    for folder in ("home", "Users", "root", "work", "tmp"):
        assert MACHINE_PATH.search(f"data = '/{folder}/someone/data'")
        assert MACHINE_PATH.search(f"/{folder}/x")
    for harmless in ("https://host/work/x", "a/tmp/b", "./home/x", "docs/root/a"):
        assert not MACHINE_PATH.search(harmless)
