"""docs/errors.md: wrong inputs and the message that each gets. What the page says is what is really raised.

`HF_MASKDIFF_WRITE_DOCS=1 python -m pytest tests/test_errors_page.py` writes the page anew.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_audio
import tiny_text_to_image
import torch
from PIL import Image
from tokenizers import Tokenizer, processors
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import AutoConfig, AutoModelForMaskedLM, NoRepeatNGramLogitsProcessor, PreTrainedTokenizerFast

import hf_maskdiff
from hf_maskdiff import MaskedDiffusionTextPipeline, MomentScheduler, PartialCacheConfig, audio_masks
from hf_maskdiff_cli import main

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "errors.md"

HEADER = """\
# Errors

What goes wrong, and what is said then: the rule, the value that broke it, and a remedy. Every line below is run by
`tests/test_errors_page.py`, which compares the message with this page. Nothing here ends in a traceback of ours on the
command line, and no work is lost: arguments are looked at before anything is computed.

`pipe` is a `MaskGITPipeline` of three classes with 4 x 4 codes, `text` a `MaskedDiffusionTextPipeline` whose model
holds 128 tokens, `draw` a `MaskedDiffusionTextToImagePipeline` of 4 x 4 codes without a text encoder, `prompt` what
`encode_prompt` of one with one returns, `play` a `MaskedDiffusionAudioPipeline` of 4 codebooks and 10 frames a second,
`clip` twelve frames of sound, `keep` every third of them, `scheduler` a `MomentScheduler`, `logits` and `sample` fit
each other, `image` has 8 x 8 pixels.
"""

IMAGES = """
pipe(class_labels=3)
pipe(class_labels="cot")
pipe(class_labels=[])
pipe(class_labels=[0, 1], image=[image] * 3)
pipe(class_labels=0, num_inference_steps=0)
pipe(class_labels=0, num_inference_steps=2.5)
pipe(class_labels=0, num_images_per_prompt=0)
pipe(class_labels=0, guidance_scale=-1)
pipe(class_labels=0, guidance_scale=(1, 2, 3, 4, 5))
pipe(class_labels=0, guidance_scale=float("nan"))
pipe(class_labels=0, temperature=(1.0, -2.0))
pipe(class_labels=0, sampling_temperature=-1)
pipe(class_labels=0, strength=0.5)
pipe(class_labels=0, image=image, strength=1.5)
pipe(class_labels=0, image=image, strength=0.01)
pipe(class_labels=0, mask_image=image)
pipe(class_labels=0, image="photo.png")
pipe(class_labels=0, image=np.full((8, 8, 1), 200.0))
pipe(class_labels=0, image=image, latents=torch.zeros(1, 4, 4, dtype=torch.int64))
pipe(class_labels=0, latents=torch.zeros(1, 5, 5, dtype=torch.int64))
pipe(class_labels=0, latents=torch.full((1, 4, 4), 99))
pipe(class_labels=0, output_type="jpg")
pipe(class_labels=0, generator=[torch.Generator()] * 2)
pipe(class_labels=0, generator=0)
pipe(class_labels=0, callback_on_step_end_tensor_inputs=["logits"])
pipe(class_labels=0, callback_on_step_end=True)
"""

TEXT_TO_IMAGE = """
draw()
draw([])
draw(["a house", 3])
draw("a house")
draw("a house", **prompt)
draw(prompt_embeds=torch.zeros(1, 6))
draw(prompt_embeds=torch.zeros(1, 5), encoder_hidden_states=torch.zeros(1, 3, 8))
draw(prompt_embeds=torch.zeros(2, 6), encoder_hidden_states=torch.zeros(1, 3, 8))
draw(**prompt, negative_prompt=["a drawing"])
draw(**prompt, height=9)
draw(**prompt, micro_conditioning_crop_coord=3)
draw(**prompt, micro_conditioning_aesthetic_score="high")
draw(**prompt, num_images_per_prompt=0)
draw(**prompt, latents=torch.zeros(1, 2, 2, dtype=torch.int64))
draw.load_lora_weights({"unet.layer.lora_A.weight": torch.zeros(2, 2)})
draw.enable_cache("FirstBlockCache")
"""

AUDIO = """
play()
play(audio_length_in_s=-1)
play(audio_length_in_s=1.2, keep=keep)
play(audio_length_in_s=1.2, num_inference_steps=0)
play(audio_length_in_s=1.2, num_fine_inference_steps=0)
play(audio_length_in_s=1.2, chunk_length_s=0)
play(audio_length_in_s=1.2, chunk_overlap_s=10)
play(audio_length_in_s=1.2, class_labels=3)
play(audio_length_in_s=1.2, guidance_scale=3)
play(audio_length_in_s=1.2, output_type="wav")
play(audio_length_in_s=1.2, generator=[torch.Generator()] * 2)
play(audio=clip, sampling_rate=80)
play(audio=clip, sampling_rate=44100, keep=keep)
play(audio=torch.zeros(2, 96), sampling_rate=80, keep=keep)
play(audio=np.zeros(96, np.int16), sampling_rate=80, keep=keep)
play(audio=clip * 32768, sampling_rate=80, keep=keep)
play(audio=[clip, clip[:40]], sampling_rate=80, keep=keep)
play(audio=clip[:7], sampling_rate=80, keep=keep)
play(audio=clip, sampling_rate=80, keep=keep[:, :5])
play(audio=clip, sampling_rate=80, keep=keep.float())
play(codes=torch.zeros(1, 9, 12, dtype=torch.int64))
play(codes=torch.full((1, 4, 12), 99))
play.decode_codes(torch.zeros(1, 9, 12, dtype=torch.int64))
play(codes=torch.full((2, 4, 12), 16), keep=torch.stack([keep] * 3))
keep_every(0, 12)
keep_every(7, 12, width=9)
keep_codebooks(9, 4)
keep_outside(1.0, 0.5, 12, 10.0)
keep_around([480.0], 12, 10.0)
"""

TEXTS = """
text(5)
text("")
text("ACD [MASK:0]")
text("ACD [MASK:five]")
text([{"role": "user", "content": "Why?"}])
text("ACD", num_inference_steps=-1)
text("ACD", max_new_tokens=1.5)
text("ACD", max_new_tokens=500)
text("ACD", max_new_tokens=200, stride=300)
text("ACD", block_length=0)
text("ACD", num_return_sequences=0)
text("ACD", stop_at_eos=True)
text("ACD", guidance_scale=-2.0)
text("ACD", sampling_temperature="hot")
text("ACD", logits_processor=[NoRepeatNGramLogitsProcessor(2)])
text("ACD", repetition_penalty=0)
text("ACD", suppress_tokens=[999])
text("ACD", bad_words_ids=[[5, 6]])
text("ACD", output_type="json")
text("ACD", input_ids=torch.tensor([[5, 6]]))
text("ACD", mask=torch.tensor([[True]]))
text(input_ids=torch.tensor([5, 6]))
text(input_ids=[[5, 999]])
text(input_ids=[[5, 6]], mask=[[1, 0]])
text(input_ids=[[5, 6]], attention_mask=[[1]])
text(input_ids=[[5, 6]], attention_mask=[[0, 0]])
text("ACD", generator=[torch.Generator()] * 2)
text("ACD", generator=7)
text.log_likelihood("ACD")
text.log_likelihood("ACD", ["EF", ""])
text.log_likelihood(["ACD"] * 2, ["EF"] * 3)
text.log_likelihood("ACD", "E[MASK]")
text.log_likelihood("ACD", "EF", num_samples=20)
text.log_likelihood("ACD", "EF", estimator="chain")
text.log_likelihood("ACD", "EF", guidance_scale=(1, 2))
text.log_likelihood("ACD", "A" * 200)
text.log_likelihood(input_ids=[[5, 6]])
text.log_likelihood(input_ids=[[5, 6]], mask=[[False, False]])
"""

SCHEDULERS = """
MomentScheduler(mask_token_id=-1)
MomentScheduler(mask_token_id=16, masking_schedule="cosinus")
MomentScheduler(mask_token_id=16, masking_schedule=[3, 3, 2])
MomentScheduler(mask_token_id=16, rounding="up")
MomentScheduler(mask_token_id=16, temperature=0)
MomentScheduler(mask_token_id=16, top_p=1.5)
MomentScheduler(mask_token_id=16, top_k=0)
MomentScheduler(mask_token_id=16, typical_p=0)
MomentScheduler(mask_token_id=16, min_distance=0)
MomentScheduler(mask_token_id=16, num_candidates=0)
MomentScheduler(mask_token_id=16, candidate_cost=-1)
MomentScheduler(mask_token_id=16, choice_temperature=-1.0)
HybridScheduler(mask_token_id=16, exploration="spiral")
HybridScheduler(mask_token_id=16, exploration_ratio=1.5)
ConfidenceScheduler(mask_token_id=16, measure="surprise")
ConfidenceScheduler(mask_token_id=16, unsure_token_ids=3)
ConfidenceScheduler(mask_token_id=16, token_prior=[2.0, 1.0])
ConfidenceScheduler(mask_token_id=16, measure="entropy", position_decay=0.25)
EntropyBoundedScheduler(mask_token_id=16, entropy_bound=-1)
ThresholdScheduler(mask_token_id=16, threshold=-1)
ThresholdScheduler(mask_token_id=16, follow_schedule="no")
ThresholdScheduler(mask_token_id=16, factor=1.0)
KLASSScheduler(mask_token_id=16, history_length=0)
EditingScheduler(mask_token_id=16, doubt="improbable")
OneStepScheduler(mask_token_id=16, initial_mask_ratio=0)
OneStepScheduler(mask_token_id=16).set_timesteps(8)
OneStepScheduler(mask_token_id=16, codebook_size=16).start_run(sample[:, :1] * 0)
MomentScheduler(mask_token_id=16).step(logits, 1.0, sample)
scheduler.set_timesteps(0)
scheduler.step(logits, 2.0, sample)
scheduler.step(logits[:, :3], 1.0, sample)
scheduler.step(logits.long(), 1.0, sample)
scheduler.step(logits, 1.0, sample.int())
scheduler.step(logits * float("nan"), 1.0, sample)
scheduler.step(logits, 1.0, sample, starting_mask_ratio=torch.ones(3))
scheduler.add_noise(sample.float(), 0.5)
scheduler.add_noise(sample, 1.5)
PartialCacheConfig(num_substeps=0)
PartialCacheConfig(first_group_fraction=1.0)
"""

COMMANDS = """
hf-maskdiff generate --pipeline nowhere/at/all --num_samples 4 --output_dir new
hf-maskdiff generate --pipeline digits --num_samples 0 --output_dir new
hf-maskdiff generate --pipeline digits --num_samples 4 --output_dir full
hf-maskdiff generate --pipeline digits --num_samples 4 --output_dir new --batch_size -1
hf-maskdiff generate --pipeline digits --num_samples 4 --output_dir new --max_new_tokens 5
hf-maskdiff generate --pipeline plays --num_samples 4 --output_dir new --class_labels 3
hf-maskdiff generate --pipeline plays --num_samples 4 --output_dir new --prompt_file blank.txt
hf-maskdiff generate --pipeline digits --num_samples 4 --output_dir new --scheduler_config top_k
hf-maskdiff generate --pipeline digits --num_samples 4 --output_dir new --dtype int8
hf-maskdiff evaluate
hf-maskdiff evaluate empty
hf-maskdiff evaluate pictures --num_samples 5
hf-maskdiff evaluate pictures pictures
hf-maskdiff evaluate pictures --image_size 5000000
hf-maskdiff convert ./model.pth new
hf-maskdiff convert weights.safetensors full
hf-maskdiff convert notes.txt new
hf-maskdiff compare digits
hf-maskdiff score --pipeline digits --input pairs.jsonl --output new.jsonl
hf-maskdiff score --pipeline plays --input pairs.jsonl --output new.jsonl --num_samples 0
hf-maskdiff score --pipeline plays --input pairs.jsonl --output pairs.jsonl
hf-maskdiff tune --pipeline plays --output_dir new
hf-maskdiff tune --pipeline plays --output_dir new --max_passes 1000
hf-maskdiff tune --pipeline digits --output_dir new --max_passes 1000 --own_likelihood 8
hf-maskdiff tune --pipeline plays --output_dir new --max_passes 1000 --own_likelihood 8 --samplers MomentSheduler
hf-maskdiff tune --pipeline plays --output_dir new --max_passes 1000 --own_likelihood 8 --passes 4 4
hf-maskdiff tune --pipeline plays --output_dir new --max_passes 1000 --own_likelihood 8 --passes 4 --min_diversity 2
"""


def lines(block: str) -> list[str]:
    return block.strip().splitlines()


def protein_pipeline() -> MaskedDiffusionTextPipeline:
    words = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"ACDEFGHIKLMNPQRSTVWY"])}
    core = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    core.pre_tokenizer = Split("", "isolated")
    around = [("[CLS]", 2), ("[SEP]", 3)]
    core.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=around)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, mask_token="[MASK]", unk_token="[UNK]")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    special = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": None, "mask_token_id": 4}
    config = AutoConfig.for_model("bert", vocab_size=len(words), max_position_embeddings=128, **sizes, **special)
    scheduler = MomentScheduler(mask_token_id=4)
    pipe = MaskedDiffusionTextPipeline.from_model(AutoModelForMaskedLM.from_config(config).eval(), tokenizer, scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def names(make_pipeline: Callable[..., Any]) -> dict[str, Any]:
    scheduler = MomentScheduler(mask_token_id=16, codebook_size=16)
    scheduler.set_timesteps(4)
    public = {name: getattr(hf_maskdiff, name) for name in hf_maskdiff.__all__}
    return public | {
        "pipe": make_pipeline(),
        "draw": (draw := tiny_text_to_image.pipeline()),
        "prompt": tiny_text_to_image.prompts(draw, 1),
        "play": tiny_audio.pipeline(),
        "clip": tiny_audio.clips()[0, 0],
        "keep": audio_masks.keep_every(3, 12),
        **{name: getattr(audio_masks, name) for name in dir(audio_masks) if name.startswith("keep_")},
        "text": protein_pipeline(),
        "scheduler": scheduler,
        "logits": torch.zeros(2, 6, 16),
        "sample": torch.full((2, 6), 16),
        "image": Image.new("L", (8, 8)),
        "torch": torch,
        "np": np,
        "PartialCacheConfig": PartialCacheConfig,
        "NoRepeatNGramLogitsProcessor": NoRepeatNGramLogitsProcessor,
    }


def message_of_call(code: str, names: dict[str, Any]) -> str:
    with pytest.raises(ValueError) as caught:
        eval(code, dict(names))
    return str(caught.value)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(ROOT / "pipelines" / "maskgit-mnist", tmp_path / "digits")
    shutil.copytree(ROOT / "pipelines" / "mdlm-shakespeare", tmp_path / "plays")
    for name in ("full", "empty", "pictures"):
        (tmp_path / name).mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("Chapter 1")
    (tmp_path / "blank.txt").write_text("a king\n\n")
    (tmp_path / "notes.txt").write_text("to do")
    (tmp_path / "weights.safetensors").write_bytes(b"")
    for number in range(3):
        Image.new("L", (8, 8), number).save(tmp_path / "pictures" / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def message_of_command(command: str) -> str:
    told = io.StringIO()
    with contextlib.redirect_stderr(told), contextlib.redirect_stdout(io.StringIO()):
        try:
            status = main(shlex.split(command)[1:])
        except SystemExit as stopped:  # of the parser
            status = int(stopped.code or 0)
    assert status in (1, 2)
    return re.sub(r"^usage:.*?\n(?=hf-maskdiff)", "", told.getvalue(), flags=re.DOTALL).strip()


def cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def table(rows: list[tuple[str, str]]) -> str:
    body = "".join(f"| `{cell(code)}` | {cell(message)} |\n" for code, message in rows)
    return f"| call | message |\n| --- | --- |\n{body}"


def test_the_page_is_what_is_raised(names: dict[str, Any], folder: Path) -> None:
    calls = {"Images": IMAGES, "Text to image": TEXT_TO_IMAGE, "Audio": AUDIO, "Texts": TEXTS}
    calls |= {"Schedulers and caches": SCHEDULERS}
    told = {title: [(code, message_of_call(code, names)) for code in lines(block)] for title, block in calls.items()}
    told["Command line"] = [(command, message_of_command(command)) for command in lines(COMMANDS)]
    messages = [message for rows in told.values() for _, message in rows]
    assert len(messages) >= 60
    assert not [message for message in messages if "Traceback" in message or len(message) > 700]
    page = HEADER + "".join(f"\n## {title}\n\n{table(rows)}" for title, rows in told.items())
    if os.environ.get("HF_MASKDIFF_WRITE_DOCS"):
        PAGE.write_text(page)
    assert PAGE.read_text() == page


def test_every_message_of_a_call_names_rule_value_and_remedy(names: dict[str, Any]) -> None:
    """The rule, what was given after "got", and what to do instead."""
    unclear = []
    for code in [line for block in (IMAGES, TEXT_TO_IMAGE, AUDIO, TEXTS, SCHEDULERS) for line in lines(block)]:
        message = message_of_call(code, names)
        rule, got, rest = message.partition("got ")
        has_remedy = re.search(r"[.?] [A-Z][^.]+", rest) or re.search(r"\. [A-Z]", message)
        if not (rule and got and has_remedy):
            unclear.append((code, message))
    assert unclear == []
