"""Di[M]O: its published file, converted, gives its logits; its recorded runs are replayed to the token."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_data import GOLDEN, Model, image_tokenizer, later_cases, read
from replay import replace
from torch import Tensor

from hf_maskdiff import MaskGITPipeline, OneStepScheduler
from hf_maskdiff.conversion.convert import convert
from hf_maskdiff.sampling import Marginals, Purpose

CLOSE = {"atol": 5e-5, "rtol": 5e-5}


def tokenizer_with(codes: int, folder: Path) -> Path:
    """The golden image tokenizer of Maskgit-pytorch v1.0, which Di[M]O shares, with as many codes."""
    if GOLDEN is None:
        pytest.skip("HF_MASKDIFF_GOLDEN is not set: it names the folder with the image tokenizer")
    source = image_tokenizer(GOLDEN / "maskgit_pytorch_v1").checkpoint
    weights = dict(torch.load(source, map_location="cpu", weights_only=False)["state_dict"])
    table = weights["quantize.embedding.weight"]
    weights["quantize.embedding.weight"] = table.repeat(-(-codes // len(table)), 1)[:codes].clone()
    torch.save({"state_dict": weights}, folder / "last.ckpt")
    return folder / "last.ckpt"


@pytest.fixture(scope="module")
def pipe(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> MaskGITPipeline:
    """The converted pipeline of a golden folder, which is that of the test's path."""
    folder, place = request.param.parent, tmp_path_factory.mktemp("dimo")
    config = Model(folder).config
    tokenizer = tokenizer_with(config["codebook_size"], place)
    (source,) = folder.rglob("pytorch_model.bin")
    convert(source, place / "out", tokenizer, num_attention_heads=[config["heads"]])
    made = MaskGITPipeline.from_pretrained(place / "out")
    made.set_progress_bar_config(disable=True)
    return made


@torch.no_grad()
@pytest.mark.parametrize("pipe", later_cases("dimo/manifest.json"), indirect=True)
def test_logits(pipe: MaskGITPipeline, request: pytest.FixtureRequest) -> None:
    golden = Model(request.node.callspec.params["pipe"].parent)
    inputs, config = golden.inputs, golden.config
    dropped = inputs["labels"].where(~inputs["drop_label"], config["nclass"])
    for labels, name in ((inputs["labels"], "logits"), (dropped, "logits_drop")):
        torch.testing.assert_close(pipe.transformer(inputs["codes"], labels).sample, golden.expected[name], **CLOSE)
    scheduler = pipe.scheduler
    assert isinstance(scheduler, OneStepScheduler)
    assert scheduler.config.mask_token_id == scheduler.config.codebook_size == config["codebook_size"]
    assert (scheduler.config.initial_mask_ratio, scheduler.config.embedding_noise) == (0.6, 0.1)
    assert pipe.config.call_defaults == {"num_inference_steps": 1, "guidance_scale": 1.0}


class Draws:
    """Feeds a run's stored draws to the scheduler, and keeps the distributions that it draws from."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, trace: dict[str, Tensor]) -> None:
        self.trace, self.probs = trace, torch.empty(0)
        size = trace["logits"].shape[-1] - 1
        ranks = trace["u_mask"].argsort(-1)
        stored = {
            Purpose.CHOICE: ranks.double() / ranks.shape[1],
            Purpose.TOKEN: (trace["initial_codes"].flatten(1) + 0.5).double() / size,
        }
        module = "hf_maskdiff.schedulers."
        monkeypatch.setattr(f"{module}scheduling_one_step.position_noise", lambda keys, length, one: stored[one][None])
        noise = lambda keys, length, width, purpose: trace["embedding_noise"][:, :length].double()  # noqa: E731
        monkeypatch.setattr(f"{module}run_start.normal_noise", noise)
        monkeypatch.setattr(Marginals, "draw_all", lambda *given: self.draw_all(*given))

    def draw_all(self, marginals: Marginals, wanted: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """The original's draw: the mask is among the tokens, and the last code is taken in its place."""
        assert wanted.all()
        whole = dataclasses.replace(marginals, mask_token_id=-1, codebook_size=None)
        self.probs = whole._block(torch.arange(wanted.numel())).softmax(-1).view(*wanted.shape, -1)
        drawn = (self.probs / self.trace["exponential"]).argmax(-1)
        assert torch.equal(drawn, self.trace["tokens"].flatten(1))
        return drawn.clamp(max=marginals.num_tokens - 1), torch.zeros(wanted.shape)


def trace_of(pattern: str) -> list[Any]:
    return [pytest.param(case.values[0], case.values[0], id=case.id, marks=case.marks) for case in later_cases(pattern)]


@pytest.mark.parametrize(("pipe", "path"), trace_of("dimo/trace_*"), indirect=["pipe"])
def test_runs(pipe: MaskGITPipeline, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace, settings = read(path)
    draws, seen = Draws(monkeypatch, trace), []
    hook = pipe.transformer.register_forward_hook(lambda module, given, output: seen.append((given, output[0])))
    before = pipe.scheduler
    pipe.scheduler = replace(
        before,
        initial_mask_ratio=float(settings["fixed_ratio"]),
        embedding_noise=float(settings["noise_emb_perturb"]),
        temperature=float(settings["gen_temp"]),
        top_k=int(settings["top_k"]) or None,
        top_p=float(settings["top_p"]) or None,
    )
    try:
        codes = pipe(class_labels=trace["labels"], output_type="latent").images
    finally:
        hook.remove()
        pipe.scheduler = before
    (((sample, labels), logits),) = seen
    assert torch.equal(sample, trace["masked_input"])
    assert torch.equal(labels, trace["labels"])
    torch.testing.assert_close(logits, trace["logits"], **CLOSE)
    torch.testing.assert_close(draws.probs, trace["probs"], **CLOSE)
    assert torch.equal(codes, trace["codes_for_decoder"])
