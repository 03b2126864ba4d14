"""The doors of the Hub, over HTTP to a stand-in on this machine: push, load by id, closed doors, cards."""

from __future__ import annotations

import copy
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import fresh
import pytest
import torch
from diffusers import AmusedPipeline, AmusedScheduler, VQModel
from hub_server import HUB, LoopbackHub, Repository
from huggingface_hub import EvalResult, ModelCard, ModelCardData, create_branch, upload_file
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

from hf_maskdiff import HaltonMaskGITTransformer2DModel, MaskGITPipeline, MomentScheduler
from hf_maskdiff.evaluation.digit_classifier import DigitClassifier
from hf_maskdiff_cli.installation import how_to_install

SOURCE = Path(__file__).parents[1] / "src"
Load = Callable[..., Any]


@pytest.fixture
def pipe(make_pipeline: Callable[..., MaskGITPipeline]) -> MaskGITPipeline:
    return make_pipeline()


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Loads from a cache of its own, so that nothing is there yet."""

    def load(cls: type, repo_id: str = "me/pipe", **kwargs: object) -> Any:
        return cls.from_pretrained(repo_id, cache_dir=tmp_path / "cache", **kwargs)

    return load


def codes(pipe: MaskGITPipeline) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipe(class_labels=[0, 1], num_inference_steps=3, generator=generator, output_type="latent").images


def text_on(hub: LoopbackHub, repo_id: str, path: str = "README.md") -> str:
    return hub.main[repo_id][path].decode()


def program(code: str, *arguments: str, **environment: str) -> str:
    """Runs a program in a process of its own, which has the package on its path, and returns what it printed."""
    done = fresh.run(code, *arguments, environment=os.environ | {"PYTHONPATH": str(SOURCE), **environment})
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- there and back --------------------------------------------------------------------------------------------------

ANOTHER_PROCESS = """
import sys
import torch
from diffusers import DiffusionPipeline

def stock():
    return DiffusionPipeline.from_pretrained("me/pipe", custom_pipeline="me/pipe", trust_remote_code=True)

try:
    stock()
except Exception as error:
    print(error)

from hf_maskdiff import MaskGITPipeline

def ours():
    return MaskGITPipeline.from_pretrained("me/pipe")

for door in sys.argv[1:]:
    pipe = globals()[door]()
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    codes = pipe(class_labels=[0, 1], num_inference_steps=3, generator=generator, output_type="latent").images
    print(type(pipe) is MaskGITPipeline, codes.tolist())
"""


def test_pushed_in_one_process_loaded_by_id_in_another(hub: LoopbackHub, pipe: MaskGITPipeline, tmp_path: Path) -> None:
    """By both doors; stock diffusers' opens once the package is imported, and only online."""
    pipe.push_to_hub("me/pipe")
    expected = f"True {codes(pipe).tolist()}"
    environment = hub.environment(tmp_path)
    not_imported, *printed = program(ANOTHER_PROCESS, "ours", "stock", **environment).splitlines()
    assert "hf_maskdiff.py as defined in `model_index.json` does not exist in me/pipe" in not_imported
    assert printed == [expected, expected]

    hub.requests.clear()
    assert program(ANOTHER_PROCESS, "ours", **environment | {"HF_HUB_OFFLINE": "1"}).splitlines()[1:] == [expected]
    assert hub.requests == []


WITHOUT_THE_PACKAGE = """
import importlib.util, sys
from pathlib import Path
sys.path[:] = [path for path in sys.path if not Path(path, "hf_maskdiff").is_dir()]
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder).lower()]
assert importlib.util.find_spec("hf_maskdiff") is None

from diffusers import DiffusionPipeline
from huggingface_hub import snapshot_download
for folder in (sys.argv[1], snapshot_download("me/pipe")):
    try:
        DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)
    except ImportError as error:
        print(error)
"""


def test_without_the_package_the_repository_says_what_to_install(
    hub: LoopbackHub, pipe: MaskGITPipeline, tmp_path: Path
) -> None:
    pipe.push_to_hub("me/pipe")
    pipe.save_pretrained(tmp_path / "pipe")
    printed = program(WITHOUT_THE_PACKAGE, str(tmp_path / "pipe"), **hub.environment(tmp_path), PYTHONPATH="")
    assert printed.splitlines() == [f"This pipeline needs the package hf_maskdiff. {how_to_install()}."] * 2


def test_what_a_pushed_pipeline_holds(hub: LoopbackHub, pipe: MaskGITPipeline) -> None:
    pipe.push_to_hub("me/pipe")
    weights = {f"{part}/diffusion_pytorch_model.safetensors" for part in ("transformer", "vqvae")}
    configs = {"scheduler/scheduler_config.json", "transformer/config.json", "vqvae/config.json"}
    files = {".gitattributes", "README.md", "model_index.json", "pipeline.py", "config.json"}
    assert set(hub.main["me/pipe"]) == weights | configs | files
    index = json.loads(text_on(hub, "me/pipe", "model_index.json"))
    assert index["_class_name"] == "MaskGITPipeline"
    assert index["scheduler"] == ["hf_maskdiff", "MomentScheduler"]
    assert hub.repositories["me/pipe"].messages[-1] == "Upload MaskGITPipeline"


def test_a_scheduler_alone(hub: LoopbackHub, load: Load) -> None:
    scheduler = MomentScheduler(mask_token_id=9, masking_schedule=[1, 3, 4], choice_temperature=[3.0, 1.0], top_k=5)
    scheduler.push_to_hub("me/preset", commit_message="A preset")
    assert set(hub.main["me/preset"]) == {".gitattributes", "README.md", "scheduler_config.json"}
    assert hub.repositories["me/preset"].messages[-1] == "A preset"
    loaded = load(MomentScheduler, "me/preset")
    assert loaded.to_json_string() == scheduler.to_json_string()
    assert load(MomentScheduler, "me/preset", mask_token_id=7).config.mask_token_id == 7


def test_a_model_alone(hub: LoopbackHub, load: Load, pipe: MaskGITPipeline) -> None:
    pipe.transformer.push_to_hub("me/model")
    state = load(HaltonMaskGITTransformer2DModel, "me/model").state_dict()
    assert state.keys() == pipe.transformer.state_dict().keys()
    assert all(torch.equal(state[key], value) for key, value in pipe.transformer.state_dict().items())


def test_components_of_a_pipeline_by_subfolder(hub: LoopbackHub, load: Load, pipe: MaskGITPipeline) -> None:
    pipe.push_to_hub("me/pipe")
    scheduler = load(MomentScheduler, subfolder="scheduler")
    transformer = load(HaltonMaskGITTransformer2DModel, subfolder="transformer")
    again = MaskGITPipeline(load(VQModel, subfolder="vqvae"), transformer, scheduler)
    assert torch.equal(codes(again), codes(pipe))
    mine = load(MaskGITPipeline, scheduler=MomentScheduler(mask_token_id=16, codebook_size=16, top_k=2))
    assert mine.scheduler.config.top_k == 2


def test_revisions(hub: LoopbackHub, load: Load) -> None:
    def top_k(revision: str | None) -> int:
        return load(MomentScheduler, "me/preset", revision=revision).config.top_k

    first = MomentScheduler(mask_token_id=9, top_k=1).push_to_hub("me/preset")
    create_branch("me/preset", branch="v1")
    MomentScheduler(mask_token_id=9, top_k=2).push_to_hub("me/preset")
    MomentScheduler(mask_token_id=9, top_k=3).push_to_hub("me/preset", create_pr=True)
    assert [top_k(revision) for revision in (None, "main", "v1", first.oid, "refs/pr/1")] == [2, 2, 1, 1, 3]


def test_variants(hub: LoopbackHub, load: Load, make_pipeline: Callable[..., MaskGITPipeline]) -> None:
    make_pipeline().push_to_hub("me/pipe")
    half = make_pipeline().to(torch.float16)
    half.push_to_hub("me/pipe", variant="fp16")
    assert "transformer/diffusion_pytorch_model.fp16.safetensors" in hub.main["me/pipe"]
    hub.requests.clear()
    loaded = load(MaskGITPipeline, variant="fp16", torch_dtype=torch.float16)
    fetched = {request.split("/")[-1] for request in hub.requests if request.endswith(".safetensors")}
    assert fetched == {"diffusion_pytorch_model.fp16.safetensors"}
    for key, value in half.transformer.state_dict().items():
        assert torch.equal(loaded.transformer.state_dict()[key], value)


def test_a_private_repository_opens_with_its_owner_s_token(
    hub: LoopbackHub, load: Load, pipe: MaskGITPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe.push_to_hub("me/pipe", private=True)
    assert hub.repositories["me/pipe"].private
    assert torch.equal(codes(load(MaskGITPipeline)), codes(pipe))
    monkeypatch.setenv("HF_TOKEN", "")
    with pytest.raises(OSError, match="not fully cached locally"):
        MaskGITPipeline.from_pretrained("me/pipe", cache_dir=tmp_path)
    loaded = MaskGITPipeline.from_pretrained("me/pipe", cache_dir=tmp_path, token="owner")
    assert torch.equal(codes(loaded), codes(pipe))


def test_a_loaded_pipeline_is_not_downloaded_again(
    hub: LoopbackHub, load: Load, pipe: MaskGITPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe.push_to_hub("me/pipe")
    load(MaskGITPipeline)
    hub.requests.clear()
    load(MaskGITPipeline)
    assert hub.requests
    assert not [request for request in hub.requests if request.startswith("GET /me/")]
    hub.requests.clear()
    assert torch.equal(codes(load(MaskGITPipeline, local_files_only=True)), codes(pipe))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert torch.equal(codes(load(MaskGITPipeline)), codes(pipe))
    assert hub.requests == []


# --- closed doors ----------------------------------------------------------------------------------------------------

OURS_AND_STOCK = [
    (MaskGITPipeline, AmusedPipeline),
    (HaltonMaskGITTransformer2DModel, VQModel),
    (MomentScheduler, AmusedScheduler),
]


def error_of(action: Callable[[], object]) -> tuple[list[type], str]:
    """The types along an error's chain of causes, and its message without what differs from call to call."""
    with pytest.raises(Exception) as info:
        action()
    error: BaseException | None = info.value
    message, types = re.sub(r"\(Request ID: [^)]*\)", "", str(error)), []
    while error is not None:
        types.append(type(error))
        error = error.__cause__
    return types, message


@pytest.fixture(scope="module")
def pushed(make_pipeline: Callable[..., MaskGITPipeline]) -> dict[str, Repository]:
    """What a push of a pipeline, of its model and of its scheduler leaves on the Hub."""
    with pytest.MonkeyPatch.context() as context:
        context.setenv("HF_TOKEN", "owner")
        pipe = make_pipeline()
        pipe.push_to_hub("me/pipe")
        pipe.transformer.push_to_hub("me/model")
        pipe.scheduler.push_to_hub("me/preset")
    made = dict(HUB.repositories)
    HUB.repositories.clear()
    return made


@pytest.mark.parametrize(("ours", "stock"), OURS_AND_STOCK, ids=["pipeline", "model", "scheduler"])
@pytest.mark.parametrize(
    ("situation", "expected"),
    [
        ("nowhere", RepositoryNotFoundError),
        ("private", RepositoryNotFoundError),
        ("gated", GatedRepoError),
        ("no such revision", OSError),
        ("no such file", OSError),
        ("offline", OSError),
        ("local files only", LocalEntryNotFoundError),
        ("nothing in the folder", OSError),
    ],
)
def test_errors_are_those_of_stock_diffusers(
    situation: str,
    expected: type[Exception],
    ours: type,
    stock: type,
    hub: LoopbackHub,
    load: Load,
    pushed: dict[str, Repository],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hub.repositories.update(copy.deepcopy(pushed))
    kind = OURS_AND_STOCK.index((ours, stock))
    repo_id, options = ("me/pipe", "me/model", "me/preset")[kind], {}
    if situation == "nowhere":
        repo_id = "me/nowhere"
    elif situation == "private":
        hub.repositories[repo_id].private = True
        monkeypatch.setenv("HF_TOKEN", "stranger")
    elif situation == "gated":
        hub.repositories[repo_id].gated = True
        monkeypatch.setenv("HF_TOKEN", "stranger")
    elif situation == "no such revision":
        options = {"revision": "v0"}
    elif situation == "no such file":
        files = hub.main[repo_id]
        del files[("model_index.json", "config.json", "scheduler_config.json")[kind]]
    elif situation == "offline":
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    elif situation == "local files only":
        options = {"local_files_only": True}
    else:
        repo_id = str(tmp_path)
    errors = [error_of(lambda cls=cls: load(cls, repo_id, **options)) for cls in (ours, stock)]
    assert errors[0] == errors[1]
    types, message = errors[0]
    assert issubclass(types[0], OSError)
    # Models and schedulers fetch their configuration by a function that turns every error into a plain OSError.
    assert kind > 0 or any(issubclass(cause, expected) for cause in types)
    assert repo_id in message or situation == "local files only"


@pytest.mark.parametrize("is_local", [True, False], ids=["folder", "id"])
@pytest.mark.parametrize("name", ["config.json", "diffusion_pytorch_model.safetensors"])
def test_a_missing_file_of_our_model_is_the_error_of_one_of_a_stock_model(
    name: str, is_local: bool, hub: LoopbackHub, load: Load, pipe: MaskGITPipeline, tmp_path: Path
) -> None:
    """A pipeline holds one of each, side by side."""
    errors = []
    for component in ("transformer", "vqvae"):
        folder, repo_id = tmp_path / component, f"me/{component}"
        pipe.save_pretrained(folder)
        (folder / component / name).unlink()
        pipe.push_to_hub(repo_id)
        del hub.main[repo_id][f"{component}/{name}"]
        types, message = error_of(lambda where=folder if is_local else repo_id: load(MaskGITPipeline, str(where)))
        assert Path(name).stem in message
        commit = hub.repositories[repo_id].refs["main"]
        errors.append((types, message.replace(component, "COMPONENT").replace(commit, "COMMIT")))
    assert errors[0] == errors[1]
    assert issubclass(errors[0][0][0], OSError)


def test_nobody_pushes_to_a_stranger_s_repository(
    hub: LoopbackHub, pipe: MaskGITPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = [error_of(lambda part=part: part.push_to_hub("you/pipe")) for part in (pipe, pipe.transformer, pipe.vqvae)]
    assert errors[0] == errors[1] == errors[2]
    assert "403 Forbidden" in errors[0][1]
    assert not hub.repositories


# --- cards -----------------------------------------------------------------------------------------------------------

GENERIC = "More Information Needed"


@pytest.fixture(params=["pipeline", "transformer", "scheduler", "classifier"])
def part(request: pytest.FixtureRequest, pipe: MaskGITPipeline) -> Any:
    """A pipeline, models and a scheduler."""
    return {"pipeline": pipe, "classifier": DigitClassifier(sample_size=4), **pipe.components}[request.param]


def test_stock_diffusers_writes_the_card_that_ours_replaces(hub: LoopbackHub, pipe: MaskGITPipeline) -> None:
    pipe.vqvae.push_to_hub("me/stock")
    assert GENERIC in text_on(hub, "me/stock")


@pytest.mark.parametrize("route", ["push_to_hub", "save_pretrained"])
def test_whatever_is_pushed_gets_our_card(route: str, part: Any, hub: LoopbackHub, tmp_path: Path) -> None:
    if route == "push_to_hub":
        part.push_to_hub("me/thing")
    else:
        part.save_pretrained(str(tmp_path / "here"), push_to_hub=True, repo_id="me/thing")
        assert (tmp_path / "here" / "README.md").read_text() == text_on(hub, "me/thing")
    text, card = text_on(hub, "me/thing"), ModelCard(text_on(hub, "me/thing"))
    assert text == str(part.generate_model_card("me/thing"))
    assert GENERIC not in text
    assert card.data.library_name == "hf-maskdiff"
    assert {"masked-diffusion", "diffusers"} <= set(card.data.tags)
    assert f'{type(part).__name__}.from_pretrained("me/thing")' in text
    assert f"## Usage\n\n{how_to_install()}, then\n\n```python" in text


def test_the_snippet_loads_what_was_pushed(part: Any, hub: LoopbackHub, tmp_path: Path) -> None:
    part.push_to_hub("me/thing")
    (code,) = re.findall(r"```python\n(.*?)```", text_on(hub, "me/thing"), re.DOTALL)
    names: dict[str, Any] = {}
    exec(code.replace('"image.png"', repr(str(tmp_path / "image.png"))), names)
    assert type(names[part.card_variable]) is type(part)
    assert (tmp_path / "image.png").exists() == isinstance(part, MaskGITPipeline)


def test_a_saved_pipeline_has_a_card_its_components_have_none(pipe: MaskGITPipeline, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path)
    assert [path.parent for path in tmp_path.rglob("README.md")] == [tmp_path]
    text = (tmp_path / "README.md").read_text()
    assert f'from_pretrained("{tmp_path}")' in text
    size = sum(parameter.numel() for parameter in pipe.transformer.parameters())
    assert f"| `transformer` | hf_maskdiff `HaltonMaskGITTransformer2DModel` | {size:,} |" in text


def test_a_card_that_somebody_wrote_in_a_folder_stays(part: Any, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("Mine.\n")
    part.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "Mine.\n"


def test_a_folder_s_own_card_gets_the_id_when_it_is_pushed(
    hub: LoopbackHub, pipe: MaskGITPipeline, tmp_path: Path
) -> None:
    pipe.save_pretrained(tmp_path)
    pipe.save_pretrained(str(tmp_path), push_to_hub=True, repo_id="me/pipe")
    assert 'from_pretrained("me/pipe")' in text_on(hub, "me/pipe")
    assert str(tmp_path) not in text_on(hub, "me/pipe")


def test_a_card_that_somebody_wrote_stays(part: Any, hub: LoopbackHub, tmp_path: Path) -> None:
    """In a folder, when it is saved again and when it is pushed; in a repository, whatever is pushed to it."""
    (tmp_path / "README.md").write_text("Mine.\n")
    part.save_pretrained(str(tmp_path))
    assert (tmp_path / "README.md").read_text() == "Mine.\n"
    part.save_pretrained(str(tmp_path), push_to_hub=True, repo_id="me/thing")
    assert (tmp_path / "README.md").read_text() == "Mine.\n"
    assert text_on(hub, "me/thing") == "Mine.\n"

    upload_file(path_or_fileobj=b"---\ntags: [a]\n---\nOurs.\n", path_in_repo="README.md", repo_id="me/thing")
    part.push_to_hub("me/thing")
    part.save_pretrained(str(tmp_path), push_to_hub=True, repo_id="me/thing")
    assert text_on(hub, "me/thing") == "---\ntags: [a]\n---\nOurs.\n"
    assert (tmp_path / "README.md").read_text() == "Mine.\n"


def test_a_push_to_a_subfolder_writes_no_card(part: Any, hub: LoopbackHub) -> None:
    part.push_to_hub("me/thing", subfolder="inside")
    assert all(path.startswith(("inside/", ".git")) for path in hub.main["me/thing"])
    assert not [path for path in hub.main["me/thing"] if path.endswith("README.md")]


def test_a_card_keeps_what_was_written_and_renews_the_rest(part: Any) -> None:
    result = EvalResult("unconditional-image-generation", "ylecun/mnist", "MNIST", "fid", 8.9, metric_name="Frechet")
    data = ModelCardData(license="mit", datasets=["ylecun/mnist"], tags=["mine"], eval_results=[result], model_name="x")
    words = "# old\n\nWords.\n\n## Usage\n\nold\n\n## Limits\n\n```bash\n## no title\n```\n\n## Thanks\n\nTo you."
    card = part.generate_model_card("me/thing", ModelCard(f"---\n{data.to_yaml()}\n---\n{words}"))
    text = str(card)
    assert "\n# thing\n\nWords.\n\n## Usage\n\nRun `pip install" in text
    assert text.endswith("## Limits\n\n```bash\n## no title\n```\n\n## Thanks\n\nTo you.\n")
    assert "| metric | value | data |\n| --- | --- | --- |\n| Frechet | 8.9 | MNIST |" in text
    assert "old" not in text
    assert (card.data.license, card.data.datasets, card.data.model_name) == ("mit", ["ylecun/mnist"], "thing")
    assert card.data.eval_results == [result]
    assert card.data.tags[:2] == ["masked-diffusion", "diffusers"]
    assert card.data.tags[-1] == "mine"
    assert str(part.generate_model_card("me/thing", card)) == text
    assert str(part.generate_model_card("me/other", card)) == text.replace("me/thing", "me/other").replace(
        "# thing", "# other"
    ).replace("name: thing", "name: other")


def test_a_subclass_elsewhere_is_imported_from_where_it_is(
    pipe: MaskGITPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = type("Mine", (MaskGITPipeline,), {"__module__": "my_lab.pipes"})
    monkeypatch.setitem(sys.modules, "my_lab", ModuleType("my_lab"))
    mine(**pipe.components).save_pretrained(tmp_path)
    for name in ("pipeline.py", "README.md"):
        text = (tmp_path / name).read_text()
        assert "from my_lab.pipes import Mine" in text
        assert "Install the package `my_lab`" in text
        assert "pip install" not in text  # nobody here knows where it is to be had
