"""`transformers.pipeline(...)` as its users know it: by folder, by Hub id, by object; one input, lists, streams."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import fresh
import pytest
import torch
from diffusers import DDIMScheduler
from hub_server import LoopbackHub
from PIL import Image
from tiny_weights import draw_weights
from tokenizers import Tokenizer, decoders, normalizers
from tokenizers.models import BPE
from transformers import AutoModelForMaskedLM, BertConfig, BertForMaskedLM, PreTrainedTokenizerFast, pipeline
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.pipelines.pt_utils import KeyDataset

from hf_maskdiff import (
    AncestralScheduler,
    FirstHittingScheduler,
    HybridScheduler,
    MaskedDiffusionTextGenerationPipeline,
    MaskGITPipeline,
    MDLMForMaskedLM,
    MDLMPipeline,
    MDLMTransformer,
    MomentScheduler,
    UniformScheduler,
)

TEXT, IMAGE = "masked-diffusion-text-generation", "masked-diffusion-image-generation"
AUDIO = "masked-diffusion-audio-generation"
CHARACTERS, LENGTH = "abcdefghij .", 16
MASK = len(CHARACTERS)
SOURCE = Path(__file__).parents[2] / "src"


def seeds(*numbers: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(n) for n in numbers]


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    tokens = Tokenizer(BPE({c: i for i, c in enumerate(CHARACTERS)}, merges=[]))
    tokens.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokens, clean_up_tokenization_spaces=False)


@pytest.fixture
def pipe(tokenizer: PreTrainedTokenizerFast) -> MDLMPipeline:
    torch.manual_seed(0)
    transformer = MDLMTransformer(MASK + 1, LENGTH, hidden_dim=16, cond_dim=8, n_blocks=1, n_heads=2).eval()
    draw_weights(transformer)
    scheduler = MomentScheduler(mask_token_id=MASK, codebook_size=MASK, masking_schedule="linear")
    pipe = MDLMPipeline(tokenizer, transformer, scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def folder(pipe: MDLMPipeline, tmp_path: Path) -> str:
    pipe.save_pretrained(tmp_path / "text")
    return str(tmp_path / "text")


def test_the_tasks_are_registered() -> None:
    assert {TEXT, IMAGE, AUDIO, "fill-mask", "ner"} <= set(PIPELINE_REGISTRY.get_supported_tasks())
    assert PIPELINE_REGISTRY.check_task(TEXT)[1]["impl"] is MaskedDiffusionTextGenerationPipeline


def test_loaded_objects_have_what_earlier_releases_ask_of_them(pipe: MDLMPipeline, tmp_path: Path) -> None:
    """`model.config._commit_hash`, which is not saved."""
    pipe.transformer.register_to_config(dropout=0.2)
    for thing in (pipe, pipe.transformer):
        assert thing.config._commit_hash is None
    pipe.save_pretrained(tmp_path)
    assert not [path for path in tmp_path.rglob("*.json") if "_commit_hash" in path.read_text()]


# --- text ------------------------------------------------------------------------------------------------------------


def test_a_folder_and_an_object_write_what_the_pipeline_writes(pipe: MDLMPipeline, folder: str) -> None:
    expected = pipe("abc", num_inference_steps=4, num_return_sequences=2, generator=seeds(0, 1)).texts
    for model in (folder, Path(folder), pipe):
        write = pipeline(TEXT, model=model, device="cpu")
        assert isinstance(write, MaskedDiffusionTextGenerationPipeline)
        made = write("abc", num_inference_steps=4, num_return_sequences=2, generator=seeds(0, 1))
        assert made == [{"generated_text": text} for text in expected]
    assert repr(write) == "MaskedDiffusionTextGenerationPipeline(MDLMPipeline, MomentScheduler)"


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_batches_change_nothing(pipe: MDLMPipeline, batch_size: int) -> None:
    write, prompts = pipeline(TEXT, model=pipe, num_inference_steps=3), ["a", "bcd.", "ef", "a b", "j"]
    alone = [
        write(prompt, generator=seeds(2 * i, 2 * i + 1), num_return_sequences=2) for i, prompt in enumerate(prompts)
    ]

    class Prompts(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(prompts)

        def __getitem__(self, i: int) -> str:
            return prompts[i]

    def stream() -> Iterator[str]:
        yield from prompts

    for inputs in (prompts, Prompts(), stream()):
        made = write(inputs, batch_size=batch_size, generator=seeds(*range(10)), num_return_sequences=2)
        assert list(made) == alone


def test_arguments_of_the_pipeline_and_of_the_call(pipe: MDLMPipeline) -> None:
    write = pipeline(TEXT, model=pipe, max_new_tokens=5, num_inference_steps=2)
    (text,) = write("abc", generator=seeds(0))
    assert len(text["generated_text"]) == 3 + 5
    assert write("abc", generator=seeds(0), return_full_text=False) == [{"generated_text": text["generated_text"][3:]}]
    assert len(write("abc", max_new_tokens=7)[0]["generated_text"]) == 3 + 7
    filled = write("ab[MASK:3]cd", max_new_tokens=None)[0]["generated_text"]
    assert (len(filled), filled[:2], filled[5:]) == (7, "ab", "cd")


def test_without_a_prompt(pipe: MDLMPipeline) -> None:
    write = pipeline(TEXT, model=pipe, num_inference_steps=3)
    expected = pipe(num_inference_steps=3, num_return_sequences=4, generator=seeds(0, 1, 2, 3)).texts
    assert write(generator=seeds(0)) == write(None, generator=seeds(0)) == [{"generated_text": expected[0]}]
    made = write([None, None], batch_size=2, num_return_sequences=2, generator=seeds(0, 1, 2, 3))
    assert [text["generated_text"] for texts in made for text in texts] == expected


def test_the_prompt_is_left_out_as_the_tokenizer_reads_it(pipe: MDLMPipeline) -> None:
    """A prompt need not come back as it was given."""
    pipe.tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    write = pipeline(TEXT, model=pipe, num_inference_steps=3, max_new_tokens=4)
    (full,), (rest,) = (write("ABC", generator=seeds(0), return_full_text=full) for full in (True, False))
    assert full["generated_text"] == "abc" + rest["generated_text"]
    assert len(rest["generated_text"]) == 4
    (filled,) = write("AB[MASK:2]C", max_new_tokens=None, return_full_text=False)
    assert (len(filled["generated_text"]), filled["generated_text"][:2]) == (5, "ab")  # nothing is continued


def test_a_column_of_a_data_set(pipe: MDLMPipeline) -> None:
    write = pipeline(TEXT, model=pipe, num_inference_steps=2, batch_size=2)
    rows = [{"text": "ab", "label": 0}, {"text": "cde", "label": 1}, {"text": "f", "label": 0}]
    made = write(KeyDataset(rows, "text"))
    assert [texts[0]["generated_text"][: len(row["text"])] for texts, row in zip(made, rows, strict=True)] == [
        "ab",
        "cde",
        "f",
    ]


def test_how_a_folder_is_loaded(pipe: MDLMPipeline, folder: str, tmp_path: Path) -> None:
    assert pipeline(TEXT, model=folder, dtype="bfloat16").model.transformer.dtype == torch.bfloat16
    pipe.to(torch.float16).save_pretrained(tmp_path / "half", variant="fp16")
    assert pipeline(TEXT, model=folder, device_map="cpu").device.type == "cpu"
    with pytest.raises(OSError, match=r"diffusion_pytorch_model\.(bin|safetensors)"):
        pipeline(TEXT, model=str(tmp_path / "half"))
    half = pipeline(TEXT, model=str(tmp_path / "half"), model_kwargs={"variant": "fp16"})
    assert half.dtype == torch.float32  # what diffusers makes of it
    assert len(half("abc", num_inference_steps=2)[0]["generated_text"]) == LENGTH


def test_schedulers(pipe: MDLMPipeline, folder: str, tmp_path: Path) -> None:
    config = {"mask_token_id": MASK, "codebook_size": MASK}
    # A preset that was made for another model.
    another = UniformScheduler(mask_token_id=5, codebook_size=5, masking_schedule="square")
    another.save_pretrained(tmp_path / "uniform")
    given = {
        HybridScheduler: HybridScheduler(**config),
        FirstHittingScheduler: FirstHittingScheduler,
        UniformScheduler: str(tmp_path / "uniform"),
        AncestralScheduler: "AncestralScheduler",
    }
    for scheduler_class, scheduler in given.items():
        for model in (pipe, folder):
            write = pipeline(TEXT, model=model, scheduler=scheduler)
            assert type(write.model.scheduler) is scheduler_class
            assert len(write("abc", num_inference_steps=2)[0]["generated_text"]) == LENGTH
    assert (
        pipeline(TEXT, model=pipe, scheduler=given[UniformScheduler]).model.scheduler.config.masking_schedule
        == "square"
    )
    assert type(pipe.scheduler) is MomentScheduler  # what was given stays as it was
    DDIMScheduler().save_pretrained(tmp_path / "stock")
    for wrong in (DDIMScheduler(), DDIMScheduler, str(tmp_path / "stock"), "StepContext", 3):
        with pytest.raises(ValueError, match="`scheduler` must be a MaskedDiffusionScheduler, the class or name"):
            pipeline(TEXT, model=pipe, scheduler=wrong)


def test_models_with_a_tokenizer(pipe: MDLMPipeline, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    for given in (tokenizer, str(tmp_path / "tokenizer")):
        write = pipeline(TEXT, model=pipe.transformer, tokenizer=given)
        assert type(write.model.scheduler) is AncestralScheduler
        assert len(write("abc", num_inference_steps=2)[0]["generated_text"]) == LENGTH
    with pytest.raises(ValueError, match="`tokenizer` must be given with a model that is loaded, got None"):
        pipeline(TEXT, model=pipe.transformer)


def test_the_published_layout(golden_folder: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    folder = shutil.copytree(golden_folder / "mdlm", tmp_path / "mdlm", copy_function=shutil.copyfile)
    config = json.loads((folder / "config.json").read_text())
    names = {"AutoConfig": "configuration_mdlm.MDLMConfig", "AutoModelForMaskedLM": "modeling_mdlm.MDLM"}
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": names, "architectures": ["MDLM"]}))
    model = AutoModelForMaskedLM.from_pretrained(folder)
    made = []
    for given in (str(folder), model, model.backbone):
        write = pipeline(TEXT, model=given, tokenizer=tokenizer)
        made.append(write("abc", num_inference_steps=4, generator=seeds(0)))
    assert made[0] == made[1] == made[2]


def test_fill_mask(pipe: MDLMPipeline, tokenizer: PreTrainedTokenizerFast) -> None:
    """The task of transformers itself."""
    tokenizer.add_special_tokens({"mask_token": "[MASK]"})
    assert tokenizer.mask_token_id == MASK
    model = MDLMForMaskedLM.from_transformer(pipe.transformer)
    found = pipeline("fill-mask", model=model, tokenizer=tokenizer, top_k=3)("ab[MASK]cd")
    logits = pipe.transformer(torch.tensor([[0, 1, MASK, 2, 3]])).logits[0, 2]
    assert [row["token"] for row in found] == logits.topk(3).indices.tolist()


# --- images ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def image_pipe(make_pipeline: Callable[..., MaskGITPipeline]) -> MaskGITPipeline:
    pipe = make_pipeline()
    pipe.vqvae.quantize.embedding.weight.data.normal_()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_images(image_pipe: MaskGITPipeline, tmp_path: Path) -> None:
    image_pipe.save_pretrained(tmp_path)
    expected = image_pipe(class_labels=[0, 2, 1], num_inference_steps=3, generator=seeds(0, 1, 2)).images
    for model in (image_pipe, str(tmp_path)):
        draw = pipeline(IMAGE, model=model, scheduler=image_pipe.scheduler, num_inference_steps=3)
        one = draw(2, generator=seeds(1))
        assert isinstance(one, Image.Image)
        assert one.tobytes() == expected[1].tobytes()
        many = draw([0, 2, 1], batch_size=2, generator=seeds(0, 1, 2))
        assert [image.tobytes() for image in many] == [image.tobytes() for image in expected]
        pairs = draw([0, 2], num_images_per_prompt=2, guidance_scale=2.0)
        assert [len(pair) for pair in pairs] == [2, 2]
        assert isinstance(draw(0, num_images_per_prompt=None), Image.Image)


def test_images_of_no_class_and_from_an_image(image_pipe: MaskGITPipeline) -> None:
    draw = pipeline(IMAGE, model=image_pipe, num_inference_steps=3)
    (expected,) = image_pipe(num_inference_steps=3, generator=seeds(0)).images
    assert draw(generator=seeds(0)).tobytes() == draw(None, generator=seeds(0)).tobytes() == expected.tobytes()
    assert len(draw([None, None, None], batch_size=3)) == 3
    assert len(draw([0, 1, "owl"], batch_size=2, image=expected, strength=0.5)) == 3
    with pytest.raises(ValueError, match="must be one for all inputs, got enough for 2 outputs where 1 are due"):
        draw(0, image=[expected, expected], strength=0.5)


# --- there and back --------------------------------------------------------------------------------------------------

ANOTHER_PROCESS = """
import sys
import hf_maskdiff
import torch
from transformers import pipeline

task, repo, prompt = sys.argv[1:]
made = pipeline(task, model=repo)(int(prompt) if prompt.isdigit() else prompt, num_inference_steps=3,
                                  generator=[torch.Generator().manual_seed(0)])
print(made[0]["generated_text"] if isinstance(made, list) else made.tobytes().hex())
"""


def in_another_process(*arguments: str) -> str:
    done = fresh.run(ANOTHER_PROCESS, *arguments, environment=os.environ | {"PYTHONPATH": str(SOURCE)})
    assert done.returncode == 0, done.stderr
    return done.stdout.removesuffix("\n")


def test_pushed_and_opened_by_id_in_another_process(
    hub: LoopbackHub, pipe: MDLMPipeline, image_pipe: MaskGITPipeline
) -> None:
    write, draw = pipeline(TEXT, model=pipe), pipeline(IMAGE, model=image_pipe)
    write.push_to_hub("me/text")
    draw.push_to_hub("me/image")
    written = write("abc", num_inference_steps=3, generator=seeds(0))[0]["generated_text"]
    drawn = draw(1, num_inference_steps=3, generator=seeds(0)).tobytes().hex()
    assert in_another_process(TEXT, "me/text", "abc") == written
    assert in_another_process(IMAGE, "me/image", "1") == drawn
    assert "pipeline_tag: text-generation" in hub.main["me/text"]["README.md"].decode()


def test_saved_and_opened_again(pipe: MDLMPipeline, tmp_path: Path) -> None:
    pipeline(TEXT, model=pipe, scheduler=UniformScheduler).save_pretrained(tmp_path)
    again = pipeline(TEXT, model=str(tmp_path))
    assert type(again.model.scheduler) is UniformScheduler
    assert MDLMPipeline.from_pretrained(tmp_path).transformer.config.vocab_size == MASK + 1


# --- bad input -------------------------------------------------------------------------------------------------------


def test_bad_input_is_one_clear_error(
    pipe: MDLMPipeline, image_pipe: MaskGITPipeline, folder: str, tmp_path: Path
) -> None:
    image_pipe.save_pretrained(tmp_path / "image")
    bert = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=30)
    BertForMaskedLM(bert).save_pretrained(tmp_path / "bert")
    MDLMForMaskedLM.from_transformer(pipe.transformer).save_pretrained(tmp_path / "published")
    for task, name, kind in (
        (TEXT, "image", "MaskGITPipeline"),
        (IMAGE, "text", "MDLMPipeline"),
        (IMAGE, "published", "MDLMPipeline"),
        (IMAGE, "bert", "MaskedDiffusionTextPipeline"),
    ):
        with pytest.raises(ValueError, match=rf"must be a repository of type M\w+ for this task.*is of type {kind}"):
            pipeline(task, model=str(tmp_path / name))
    with pytest.raises(ValueError, match=r"`model` must be a text model.*got HaltonMaskGIT"):
        pipeline(TEXT, model=image_pipe.transformer)
    with pytest.raises(ValueError, match=r"`model` must be a text model.*got MaskGITPipeline"):
        pipeline(TEXT, model=image_pipe)
    with pytest.raises(ValueError, match=r"`model` must be an image model.*got MDLMPipeline"):
        pipeline(IMAGE, model=pipe)
    with pytest.raises(ValueError, match=r"arguments must be among.*got \['num_steps'\]"):
        pipeline(TEXT, model=pipe, num_steps=3)
    with pytest.raises(ValueError, match=r"got \['class_labels'\]\. Pass class_labels first, and without a name\."):
        pipeline(IMAGE, model=image_pipe)(class_labels=1)
    with pytest.raises(ValueError, match=r"got \['output_type'\]\. Check their spelling\."):
        pipeline(IMAGE, model=image_pipe)(output_type="pt")
    write = pipeline(TEXT, model=pipe)
    with pytest.raises(ValueError, match="one per row, got 2 for a batch of 3"):
        write(["a", "b", "c"], generator=seeds(0, 1))
    with pytest.raises(ValueError, match="at least one token"):
        write("")
    with pytest.raises(OSError, match="nowhere"):
        pipeline(TEXT, model=str(tmp_path / "nowhere"))
