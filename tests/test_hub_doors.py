"""A repository opened as users try first: plain `DiffusionPipeline`, `AutoTokenizer`, `fill-mask`; and pushed on."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import DiffusionPipeline
from hub_server import LoopbackHub
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from transformers import AutoTokenizer, PreTrainedTokenizerFast, pipeline

import hf_maskdiff
from hf_maskdiff import AncestralScheduler, MaskGITPipeline, MDLMPipeline, MDLMTransformer, MomentScheduler

ROOT = Path(__file__).parents[1]
SHIPPED = sorted(path.parent for path in ROOT.glob("pipelines/*/model_index.json"))
TEXTS = [folder for folder in SHIPPED if (folder / "tokenizer").is_dir()]

PLAIN = """
import sys
import hf_maskdiff
from diffusers import DiffusionPipeline
for repo in sys.argv[1:]:
    print(type(DiffusionPipeline.from_pretrained(repo)).__name__)
"""


@pytest.fixture
def pipe(make_pipeline: Callable[..., MaskGITPipeline]) -> MaskGITPipeline:
    return make_pipeline()


def words_pipeline() -> MDLMPipeline:
    """Eight letters and a mask."""
    torch.manual_seed(0)
    tokens = Tokenizer(BPE({letter: i for i, letter in enumerate("abcdefgh")}, merges=[]))
    tokens.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokens, mask_token="[MASK]", pad_token="h")
    transformer = MDLMTransformer(9, 12, hidden_dim=16, cond_dim=8, n_blocks=1, n_heads=2).eval()
    for parameter in transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return MDLMPipeline(tokenizer, transformer, AncestralScheduler(mask_token_id=8, codebook_size=8))


# --- plain diffusers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda folder: folder.name)
def test_diffusion_pipeline_opens_a_folder(folder: Path) -> None:
    opened = DiffusionPipeline.from_pretrained(folder)
    assert type(opened) is getattr(hf_maskdiff, type(opened).__name__)
    swapped = DiffusionPipeline.from_pretrained(folder, scheduler=MomentScheduler(mask_token_id=3))
    assert swapped.scheduler.config.mask_token_id == 3


def test_diffusion_pipeline_opens_an_id_in_another_process(hub: LoopbackHub, pipe: MaskGITPipeline) -> None:
    pipe.push_to_hub("me/images")
    words_pipeline().push_to_hub("me/words")
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-W", "ignore", "-c", PLAIN, "me/images", "me/words"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["MaskGITPipeline", "MDLMPipeline"]


def test_no_name_of_diffusers_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only our pipelines are added, and where diffusers has one of that name, it keeps it."""
    ours = {name for name, value in vars(diffusers).items() if str(getattr(value, "__module__", "")).startswith("hf_m")}
    images = {"MaskGITPipeline", "MaskedDiffusionTextToImagePipeline"}
    audio = {"MaskedDiffusionAudioPipeline"}
    assert ours == images | audio | {"MDLMPipeline", "MaskedDiffusionTextPipeline"}
    theirs = type("MDLMPipeline", (), {"__module__": "diffusers.pipelines.mdlm"})
    monkeypatch.setattr(diffusers, "MDLMPipeline", theirs)
    source = Path(hf_maskdiff.__file__).read_text()
    start = source.index("for _pipeline in (")
    exec(source[start : source.index("__all__")], vars(hf_maskdiff) | {})
    assert diffusers.MDLMPipeline is theirs


# --- plain transformers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", TEXTS, ids=lambda folder: folder.name)
def test_a_text_folder_is_a_tokenizer_and_a_masked_language_model(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    pipe = MDLMPipeline.from_pretrained(folder)
    own = pipe.tokenizer
    assert tokenizer.get_vocab() == own.get_vocab()
    assert tokenizer("To be, or not to be").input_ids == own("To be, or not to be").input_ids
    fill = pipeline("fill-mask", model=str(folder), device="cpu")
    text = f"To be, or not to {tokenizer.mask_token}, that is"
    ids = tokenizer(text, return_tensors="pt").input_ids
    logits = pipe.transformer(ids).logits[ids == pipe.mask_token_id]
    assert [one["token"] for one in fill(text, top_k=3)] == logits[0].topk(3).indices.tolist()


def test_a_saved_text_pipeline_is_too(tmp_path: Path, hub: LoopbackHub) -> None:
    pipe = words_pipeline()
    pipe.save_pretrained(tmp_path / "here")
    pipe.push_to_hub("me/words")
    for source in (tmp_path / "here", "me/words"):
        assert AutoTokenizer.from_pretrained(source)("ab").input_ids == pipe.tokenizer("ab").input_ids
        fill = pipeline("fill-mask", model=str(source), device="cpu")
        ids = torch.tensor([[0, pipe.mask_token_id]])
        expected = pipe.transformer(ids).logits[0, 1, : pipe.mask_token_id].argmax()
        assert fill(f"a{pipe.tokenizer.mask_token}", top_k=1)[0]["token"] == expected
    assert type(MDLMPipeline.from_pretrained(tmp_path / "here")) is MDLMPipeline


# --- cards ------------------------------------------------------------------------------------------------------------


def test_the_card_names_the_doors(pipe: MaskGITPipeline) -> None:
    for made, task in ((pipe, "image"), (words_pipeline(), "text")):
        text = str(made.generate_model_card("me/thing"))
        assert "`DiffusionPipeline.from_pretrained(repo)`" in text
        assert f'`pipeline("masked-diffusion-{task}-generation", model=repo)`' in text
        assert "trust_remote_code" not in text


def written(folder: Path, name: str) -> None:
    """A card with a licence, data sets, results and words of its own."""
    result = EvalResult("unconditional-image-generation", "ylecun/mnist", "MNIST", "fid", 8.9, metric_name="Frechet")
    data = ModelCardData(license="mit", datasets=["ylecun/mnist"], eval_results=[result], model_name="x", language="en")
    usage = f"## Usage\n\n{name}.from_pretrained('x')"
    ModelCard(f"---\n{data.to_yaml()}\n---\n# x\n\nWords.\n\n{usage}\n\n## Limits\n\nMany.\n").save(
        folder / "README.md"
    )


def kept(text: str, name: str) -> None:
    card = ModelCard(text)
    assert (card.data.license, card.data.datasets, card.data.language) == ("mit", ["ylecun/mnist"], "en")
    assert [result.metric_value for result in card.data.eval_results] == [8.9]
    assert card.data.library_name == "hf-maskdiff"
    assert "Words." in text
    assert "| Frechet | 8.9 | MNIST |" in text
    assert "## Limits\n\nMany." in text
    assert f'{name}.from_pretrained("' in text
    assert "from_pretrained('x')" not in text


@pytest.mark.parametrize("kind", ["pipeline", "scheduler"])
def test_a_card_goes_with_what_was_loaded(kind: str, hub: LoopbackHub, pipe: MaskGITPipeline, tmp_path: Path) -> None:
    """From folder to repository, from there to another one and to a folder."""
    part: Any = pipe if kind == "pipeline" else pipe.scheduler
    cls, name = type(part), type(part).__name__
    part.save_pretrained(tmp_path / "first")
    written(tmp_path / "first", name)
    cls.from_pretrained(tmp_path / "first").push_to_hub("me/first")
    kept(hub.main["me/first"]["README.md"].decode(), name)
    cls.from_pretrained("me/first").push_to_hub("me/second")
    second = hub.main["me/second"]["README.md"].decode()
    kept(second, name)
    assert f'{name}.from_pretrained("me/second")' in second
    cls.from_pretrained("me/second").save_pretrained(str(tmp_path / "third"), push_to_hub=True, repo_id="me/third")
    kept(hub.main["me/third"]["README.md"].decode(), name)
    if kind == "pipeline":
        kept((tmp_path / "third" / "README.md").read_text(), name)


def test_a_part_does_not_take_the_card_of_the_whole(hub: LoopbackHub, pipe: MaskGITPipeline, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path)
    written(tmp_path, "MaskGITPipeline")
    loaded = MaskGITPipeline.from_pretrained(tmp_path)
    apart = MomentScheduler.from_pretrained(tmp_path, subfolder="scheduler")
    for number, part in enumerate((loaded.scheduler, loaded.transformer, apart)):
        part.push_to_hub(f"me/part{number}")
        assert "Words." not in hub.main[f"me/part{number}"]["README.md"].decode()


def test_what_was_loaded_from_nowhere_any_more(pipe: MaskGITPipeline, hub: LoopbackHub, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path / "gone")
    loaded = MaskGITPipeline.from_pretrained(tmp_path / "gone")
    shutil.rmtree(tmp_path / "gone")
    loaded.push_to_hub("me/pipe")
    assert hub.main["me/pipe"]["README.md"].decode() == str(pipe.generate_model_card("me/pipe"))
