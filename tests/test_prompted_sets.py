"""Sets of images that are drawn from text: prompts in turn, seeds, resume, processes; and the page with a text box."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import launched
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from maskgen_folder import save_maskgen
from meissonic_folder import SIZES, save_text_encoder
from PIL import Image
from test_parallel import EXAMPLE
from tiny_text_to_image import pipeline
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from hf_maskdiff import MaskedDiffusionTextToImagePipeline
from hf_maskdiff.conversion.convert import convert
from hf_maskdiff.demo.image_runs import image_runs
from hf_maskdiff.demo.opening import open_all
from hf_maskdiff.demo.prompt_requests import PromptRequest
from hf_maskdiff.demo.samplers import Choice
from hf_maskdiff.demo.stepwise import in_turns
from hf_maskdiff.sets.sources import PromptedImageSource
from hf_maskdiff_cli import main

PROMPTS = ["a red house", "mud", "a cat"]


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose codes have places, and one whose tokenizer of images reads the text too."""
    folder = tmp_path_factory.mktemp("prompted")
    save_text_encoder(folder / "text")
    sizes = {"encoder_hidden_size": SIZES["joint_attention_dim"], "cond_embed_dim": SIZES["pooled_projection_dim"]}
    pipe = pipeline(**sizes)
    tokenizer = CLIPTokenizer.from_pretrained(folder / "text" / "tokenizer", trust_remote_code=False)
    encoder = CLIPTextModelWithProjection.from_pretrained(folder / "text" / "text_encoder", trust_remote_code=False)
    pipe.register_modules(tokenizer=tokenizer, text_encoder=encoder)
    pipe.save_pretrained(folder / "grid")
    parts = save_maskgen(folder / "maskgen")
    convert(parts.generator, folder / "row", parts.tokenizer, text_encoder=parts.text_encoder)
    (folder / "prompts").write_text("\n".join(PROMPTS))
    return folder


def arguments(pipelines: Path, name: str, folder: Path) -> list[str]:
    given = {"pipeline": pipelines / name, "num_samples": 5, "output_dir": folder, "prompt_file": pipelines / "prompts"}
    given |= {"num_inference_steps": 3, "guidance_scale": 3, "block_size": 2, "batch_size": 2, "shard_size": 4}
    return [word for option, value in given.items() for word in (f"--{option}", str(value))]


def rows(folder: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(folder.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


@pytest.mark.parametrize("name", ["grid", "row"])
def test_a_set_is_what_the_pipeline_draws_and_is_completed_after_a_stop(
    name: str, pipelines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample, calls = PromptedImageSource.sample, []

    def stopping(self: PromptedImageSource, *given: Any) -> Any:
        calls.append(given)
        if len(calls) == 2:
            raise OSError("stopped")
        return sample(self, *given)

    monkeypatch.setattr(PromptedImageSource, "sample", stopping)
    command = ["generate", *arguments(pipelines, name, tmp_path / "set")]
    assert main(command) != 0
    assert main(command) == 0
    assert len(calls) == 4  # what was finished is not made again
    found = rows(tmp_path / "set")
    assert [row["prompt"] for row in found] == [PROMPTS[i % 3] for i in range(5)]
    pipe = MaskedDiffusionTextToImagePipeline.from_pretrained(pipelines / name)
    pipe.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(row["seed"]) for row in found]
    call = {"num_inference_steps": 3, "guidance_scale": 3.0, "generator": generators}
    prompts = [row["prompt"] for row in found]
    codes = pipe(prompts, output_type="latent", **call).images
    assert [row["tokens"] for row in found] == codes.flatten(1).tolist()
    told = [pipe.encode_prompt(prompts)[1]] if name == "row" else []
    pictures = pipe.image_processor.postprocess(pipe.decode_latents(codes, *told), "pil")
    for row, picture in zip(found, pictures, strict=True):
        stored = Image.open(io.BytesIO(row["image"]["bytes"]))
        assert stored.size == picture.size
        difference = np.asarray(stored, dtype=int) - np.asarray(picture, dtype=int)
        assert np.abs(difference).max() <= 1  # of five images at once the last bits are others


def test_prompts_need_something_that_reads_them(
    pipelines: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The remedy is another folder, or Python: the command line takes no encoded prompts."""
    pipeline().save_pretrained(tmp_path / "mute")
    assert main(["generate", *arguments(pipelines, str(tmp_path / "mute"), tmp_path / "set")]) == 1
    told = capsys.readouterr().err
    assert (
        f"got one without in {str(tmp_path / 'mute')!r}. Pass a folder that holds both, or call this one in Py" in told
    )
    assert not (tmp_path / "set").exists()


def test_two_processes_draw_what_one_draws(pipelines: Path, tmp_path: Path) -> None:
    assert main(["generate", *arguments(pipelines, "row", tmp_path / "one")]) == 0
    group = launched.start(EXAMPLE, arguments(pipelines, "row", tmp_path / "two"), tmp_path / "printed")
    assert group.wait() == [0, 0], group.printed()
    assert rows(tmp_path / "two") == rows(tmp_path / "one")


def test_the_page_draws_what_the_pipeline_draws(pipelines: Path) -> None:
    (opened,) = open_all([str(pipelines / "grid")], "cpu")
    request = PromptRequest.of("a red house", "mud", 2, 5, 3, 4.0)
    runs = image_runs(opened, [Choice("Moment", 4.0, 1), Choice("Uniform", 4.0, 1)], request)
    frame = list(in_turns([run.stepwise for run in runs]))[-1][1]
    pipe = runs[1].pipe
    generators = [torch.Generator().manual_seed(seed) for seed in (5, 6)]
    call = {"num_inference_steps": 3, "guidance_scale": 4.0, "num_images_per_prompt": 2, "output_type": "latent"}
    expected = pipe("a red house", negative_prompt="mud", generator=generators, **call).images
    assert torch.equal(frame.tokens, expected)
    assert "<img" in runs[1].panel(frame)
    with pytest.raises(ValueError, match="“Prompt” must say what to draw, got nothing"):
        PromptRequest.of(" ", "", 1, 0, 3, 1.0)
    assert PromptRequest.of("a", "mud", 1, 0, 3, 1.0).remarks() != []
    with pytest.raises(ValueError, match="the demo must be given images whose codes have places"):
        open_all([str(pipelines / "row")], "cpu")


def test_the_page_has_a_text_box(pipelines: Path) -> None:
    pytest.importorskip("gradio")
    from hf_maskdiff.demo.page import build_page

    page, _ = build_page(open_all([str(pipelines / "grid")], "cpu"))
    labels = [block.label for block in page.blocks.values() if getattr(block, "label", None)]
    assert {"Prompt", "Not to be seen", "Steps", "Guidance"} <= set(labels)
