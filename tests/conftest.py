"""What many tests share: golden and data folders, every concrete scheduler, a tiny image pipeline.

Nothing heavy is imported before the first test module is: the process that only hands tests out needs none of it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import covering_array
import fresh
import hub_server

os.environ.update(hub_server.HUB.environment(hub_server.HOME.name))  # before huggingface_hub reads it
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch reads it; subprocesses inherit both

import pytest

if TYPE_CHECKING:
    from hf_maskdiff import MaskedDiffusionScheduler, MaskGITPipeline


@cache
def _prepare() -> None:
    import torch
    from hypothesis import settings

    torch.set_num_threads(1)
    settings.register_profile("hf_maskdiff", deadline=None, derandomize=True, database=None)
    settings.load_profile("hf_maskdiff")


def pytest_pycollect_makemodule() -> None:
    """Before a test module is imported, and so only where tests run."""
    _prepare()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--scheduler", metavar="FILE:CLASS", help="test this scheduler in place of every exported one")
    parser.addoption("--covering", type=int, metavar="STRENGTH", help="with all tests what the mark says of some")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`scheduler_class` is each concrete scheduler in turn, where a test says nothing else."""
    marks = [mark.args[0] for mark in metafunc.definition.iter_markers("parametrize")]
    names = [name for given in marks for name in (given.split(",") if isinstance(given, str) else given)]
    if "scheduler_class" in metafunc.fixturenames and "scheduler_class" not in names:
        from concrete import SCHEDULERS, scheduler_in

        own = metafunc.config.getoption("--scheduler")
        classes = SCHEDULERS if own is None else [scheduler_in(own)]
        metafunc.parametrize("scheduler_class", classes, ids=[c.__name__ for c in classes], scope="session")


@pytest.hookimpl(trylast=True)  # what other options leave out covers nothing
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out settings of which every value, or every pair of values, is in another test: see the mark `covering`."""
    largest = config.getoption("--covering")
    strengths = {item: mark.args[0] for item in items if (mark := item.get_closest_marker("covering"))}
    if largest is not None:
        strengths = {item: min(largest, strengths.get(item, largest)) for item in items}
    kept = covering_array.choose({item: values_of(item) for item in strengths}, strengths)
    if left_out := strengths.keys() - kept:
        config.hook.pytest_deselected(items=[item for item in items if item in left_out])
        items[:] = [item for item in items if item not in left_out]


def values_of(item: pytest.Item) -> frozenset[tuple[str, object]]:
    """The test's name, and which value it has of each parameter."""
    values: dict[str, object] = item.callspec.params if hasattr(item, "callspec") else {}
    return frozenset({("test", item.nodeid.partition("[")[0]), *((name, id(value)) for name, value in values.items())})


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Each worker runs a stretch of tests in their order, so that few prepare the same, and then takes of another's."""
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log) if config.getoption("dist") == "load" else None


def pytest_unconfigure() -> None:
    fresh.stop()


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marks of diffusers' own tests, for test_diffusers_suites: an undeclared mark is an error."""
    if "HF_MASKDIFF_DIFFUSERS" in os.environ:
        source = Path(os.environ["HF_MASKDIFF_DIFFUSERS"], "tests", "testing_utils.py").read_text()
        for mark in sorted(set(re.findall(r"pytest\.mark\.(\w+)", source))):
            config.addinivalue_line("markers", f"{mark}: of diffusers' tests")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[hub_server.LoopbackHub]:
    """An empty Hub, to which this process is signed in as "me"."""
    monkeypatch.setenv("HF_TOKEN", "owner")
    yield hub_server.HUB
    hub_server.HUB.repositories.clear()
    hub_server.HUB.requests.clear()


def _folder(variable: str) -> Path:
    if variable not in os.environ:
        import golden_data

        pytest.skip(golden_data.not_set(variable))
    return Path(os.environ[variable])


@pytest.fixture(scope="session")
def golden_folder() -> Path:
    return _folder("HF_MASKDIFF_GOLDEN")


@pytest.fixture(scope="session")
def golden2_folder() -> Path:
    return _folder("HF_MASKDIFF_GOLDEN2")


@pytest.fixture(scope="session")
def converted(golden_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function from an upstream's name to the pipeline folder that its golden checkpoint is converted to."""

    import golden_data

    from hf_maskdiff.conversion.convert import convert

    @cache
    def folder_of(name: str) -> Path:
        source, arguments = golden_data.conversion(golden_folder / name)
        return convert(source, tmp_path_factory.mktemp("converted") / name, **arguments)

    return folder_of


@pytest.fixture(scope="session")
def data_folder() -> Path:
    return _folder("HF_MASKDIFF_DATA")


@pytest.fixture(scope="session")
def make_pipeline() -> Callable[..., MaskGITPipeline]:
    """A function that makes tiny image pipelines: 4 x 4 tokens of 16 codes, 3 classes, 8 x 8 grey images."""

    import torch
    from diffusers import VQModel
    from tiny_weights import draw_weights

    from hf_maskdiff import HaltonMaskGITTransformer2DModel, MaskGITPipeline, MomentScheduler

    def make(scheduler: MaskedDiffusionScheduler | None = None, **transformer_config: object) -> MaskGITPipeline:
        torch.manual_seed(0)
        vqvae = VQModel(
            in_channels=1,
            out_channels=1,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 16),
            latent_channels=4,
            num_vq_embeddings=16,
            norm_num_groups=4,
            lookup_from_codebook=True,
        )
        config = {"sample_size": 4, "codebook_size": 16, "num_classes": 3, "hidden_size": 32, "num_layers": 2}
        config |= {"num_attention_heads": 2, "intermediate_size": 32, "id2label": {0: "cat, tabby", 1: "dog", 2: "owl"}}
        transformer = HaltonMaskGITTransformer2DModel(**(config | transformer_config))
        draw_weights(transformer)
        scheduler = scheduler or MomentScheduler(mask_token_id=16, codebook_size=16)
        pipe = MaskGITPipeline(vqvae.eval(), transformer.eval(), scheduler)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return make
