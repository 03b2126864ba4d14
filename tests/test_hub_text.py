"""The text model over HTTP: MDLM's own repositories by id, with the tokenizer they name, and what we push ourselves."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import fresh
import pytest
import torch
from hub_server import LoopbackHub
from huggingface_hub import create_repo, upload_folder
from tiny_weights import draw_weights
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from hf_maskdiff import AncestralScheduler, MDLMPipeline, MDLMTransformer

SOURCE = Path(__file__).parents[1] / "src"
PUBLISHED, TOKENIZER = "kuleshov-group/mdlm-owt", "openai-community/gpt2"

BY_ID = """
import sys
import hf_maskdiff, torch
from transformers import AutoModelForMaskedLM, pipeline

repo, generators = sys.argv[1], lambda: [torch.Generator().manual_seed(0)]
pipe = hf_maskdiff.MDLMPipeline.from_pretrained(repo)
pipe.set_progress_bar_config(disable=True)
print(pipe("ab", num_inference_steps=6, generator=generators()).texts[0])
write = pipeline("masked-diffusion-text-generation", model=repo)
print(write("ab", num_inference_steps=6, generator=generators())[0]["generated_text"])
if "mdlm-owt" in repo:
    print(AutoModelForMaskedLM.from_pretrained(repo)(torch.tensor([[0, 1]])).logits.shape[-1])
"""


def tokenizer_of(num_tokens: int) -> PreTrainedTokenizerFast:
    tokens = Tokenizer(BPE({chr(ord("a") + i): i for i in range(num_tokens)}, merges=[]))
    tokens.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokens, clean_up_tokenization_spaces=False)


def another_process(*arguments: str) -> list[str]:
    done = fresh.run(BY_ID, *arguments, environment=os.environ | {"PYTHONPATH": str(SOURCE)})
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture
def published(hub: LoopbackHub, golden_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The authors' repository: a model, its code, no tokenizer; and, beside it, the tokenizer of another one."""
    folder = tmp_path / "mdlm"
    folder.mkdir()
    shutil.copyfile(golden_folder / "mdlm" / "model.safetensors", folder / "model.safetensors")
    config = json.loads((golden_folder / "mdlm" / "config.json").read_text())
    names = {"AutoConfig": "configuration_mdlm.MDLMConfig", "AutoModelForMaskedLM": "modeling_mdlm.MDLM"}
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": names, "architectures": ["MDLM"]}))
    for name in ("configuration_mdlm.py", "modeling_mdlm.py"):
        (folder / name).write_text("raise SystemExit('remote code was run')")
    tokenizer_of(config["vocab_size"] - 1).save_pretrained(tmp_path / "tokenizer")
    for repo_id, files in ((PUBLISHED, folder), (TOKENIZER, tmp_path / "tokenizer")):
        hub.users["uploader"] = repo_id.split("/")[0]
        create_repo(repo_id, token="uploader")
        upload_folder(repo_id=repo_id, folder_path=files, token="uploader")
    del hub.users["uploader"]
    return folder


def test_the_published_model_by_its_id(published: Path, hub: LoopbackHub, tmp_path: Path) -> None:
    pipe = MDLMPipeline.from_pretrained(published, tokenizer=str(tmp_path / "tokenizer"))
    pipe.set_progress_bar_config(disable=True)
    assert isinstance(pipe.scheduler, AncestralScheduler)
    expected = pipe("ab", num_inference_steps=6, generator=[torch.Generator().manual_seed(0)]).texts[0]
    assert another_process(PUBLISHED) == [expected, expected, str(pipe.transformer.config.vocab_size)]
    fetched = " ".join(hub.requests)
    assert f"{TOKENIZER}/resolve" in fetched
    assert "modeling_mdlm.py" not in fetched


def test_a_pushed_text_pipeline(hub: LoopbackHub) -> None:
    torch.manual_seed(0)
    transformer = MDLMTransformer(9, 12, hidden_dim=16, cond_dim=8, n_blocks=1, n_heads=2).eval()
    draw_weights(transformer)
    pipe = MDLMPipeline(tokenizer_of(8), transformer, AncestralScheduler(mask_token_id=8, codebook_size=8))
    pipe.set_progress_bar_config(disable=True)
    pipe.push_to_hub("me/pushed-words")
    expected = pipe("ab", num_inference_steps=6, generator=[torch.Generator().manual_seed(0)]).texts[0]
    assert another_process("me/pushed-words") == [expected, expected]
