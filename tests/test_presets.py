"""The presets of published samplers: what the folders hold is what converted pipelines take, with upstream's counts."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from replay import METHODS, valeoai_counts
from safetensors.torch import load_file

import hf_maskdiff
from hf_maskdiff import (
    HaltonMaskGITTransformer2DModel,
    HaltonScheduler,
    MaskGITPipeline,
    MaskGITScheduler,
    MaskGITTransformer2DModel,
    MaskGITVQModel,
)
from hf_maskdiff.conversion import dimo, halton_maskgit, mage, maskgit_jax, maskgit_pytorch_v1, text_presets, vampnet
from hf_maskdiff.conversion.amused import amused
from hf_maskdiff.conversion.halton_maskgit import confidence_counts, valeoai_confidence, valeoai_halton
from hf_maskdiff.conversion.maskgit_jax import google_maskgit
from hf_maskdiff.conversion.maskgit_pytorch_v1 import cumulative_counts, valeoai_v1
from hf_maskdiff.conversion.mdlm import mdlm
from hf_maskdiff.conversion.text_models import dream, dream_counts, llada
from hf_maskdiff.conversion.upstream import Preset
from hf_maskdiff.masking import mask_ratio, planned_counts
from hf_maskdiff.sampling import Marginals

FOLDER = Path(__file__).parents[1] / "schedulers"
PRESETS: dict[str, Callable[[], Preset]] = {
    "google-maskgit": google_maskgit,
    "mage": mage.mage,
    "amused": amused,
    "valeoai-v1": valeoai_v1,
    "valeoai-halton": valeoai_halton,
    "valeoai-confidence": valeoai_confidence,
    "mdlm": mdlm,
    "llada": llada,
    "dream": dream,
    "fast-dllm": text_presets.fast_dllm,
    "sdar": text_presets.sdar,
    "llada2": text_presets.llada2,
    "llada2-editing": text_presets.llada2_editing,
    "remdm": text_presets.remdm,
    "klass": text_presets.klass,
    "pc-sampler": text_presets.pc_sampler,
    "dimo": dimo.dimo,
    "vampnet": vampnet.vampnet,
}


@pytest.mark.parametrize("name", PRESETS)
def test_a_folder_holds_what_converted_pipelines_take(name: str) -> None:
    preset = PRESETS[name]()
    saved = type(preset.scheduler).from_pretrained(FOLDER / name)
    public = {key: value for key, value in saved.config.items() if not key.startswith("_")}
    assert public == {key: value for key, value in preset.scheduler.config.items() if not key.startswith("_")}
    preset.scheduler.set_timesteps(preset.num_inference_steps)


def counts(name: str, num_tokens: int) -> list[int]:
    preset = PRESETS[name]()
    preset.scheduler.set_timesteps(preset.num_inference_steps)
    return preset.scheduler.planned_counts(torch.tensor([num_tokens])).flatten().cumsum(0).tolist()


@pytest.mark.parametrize("name", ["google-maskgit", "mage", "amused", "vampnet"])
def test_counts_of_the_cosine_dialects(name: str) -> None:
    """`max(1, min(masked - 1, floor(N cos)))` stay masked, in float32 as upstream computes it."""
    steps, masked, expected, whole = PRESETS[name]().num_inference_steps, 256, [], []
    for n in range(steps - 1):
        exact = 256 * math.cos((n + 1) / steps * math.pi / 2)
        ratio = torch.cos(torch.tensor((n + 1) / steps, dtype=torch.float32) * torch.pi / 2)
        masked = max(1, min(masked - 1, int((256 * ratio).floor())))
        whole.append(abs(exact - round(exact)) < 1e-9)  # where float32 may come out below it
        expected.append(256 - masked)
    ours = counts(name, 256)
    assert [there - here for here, there, is_whole in zip(ours, expected, whole, strict=False) if not is_whole] == [
        0
    ] * whole.count(False)
    assert all(there - here in (0, 1) for here, there in zip(ours, expected, strict=False))
    assert ours[-1] == 256


def test_the_schedules_of_maskgit(golden_folder: Path) -> None:
    """The original does not let a ratio fall below 1e-6, and has powers and logarithms that no preset takes."""
    golden = load_file(golden_folder / "maskgit_jax" / "mask_schedule.safetensors")
    compared = set()
    for key in golden.keys() - {"ratio"}:
        method, _ = key.rsplit("_", 1)  # of as many tokens, on which only its logarithms depend
        if method in METHODS:
            ratio = mask_ratio(METHODS[method], 1 - golden["ratio"].double()).clamp(1e-6, 1).float()
            torch.testing.assert_close(ratio, golden[key], atol=1e-7, rtol=1e-6)
            compared.add(method)
    assert compared


def test_counts_of_valeoai(golden_folder: Path) -> None:
    """Where the exact count is a whole number, the original's float32 may come out below it."""
    golden = load_file(golden_folder / "samplers" / "valeoai_schedules.safetensors")
    assert golden
    for key, expected in golden.items():
        *name, side, steps = key.split("_")
        num_tokens, num_steps = int(side) ** 2, int(steps)
        if name == ["halton", "cum"]:
            ours = planned_counts(torch.tensor([num_tokens]), num_steps, "arccos", "floor_revealed").cumsum(0).flatten()
            exact = valeoai_counts("arccos", num_tokens, num_steps + 1)[1:]
            if num_steps == valeoai_halton().num_inference_steps:
                assert counts("valeoai-halton", num_tokens) == ours.tolist()
        else:
            ours = torch.tensor(confidence_counts(num_tokens, num_steps, name[-1]))
            expected = expected.maximum(torch.arange(1, num_steps + 1))
            exact = valeoai_counts(name[-1], num_tokens, num_steps)
        differ = ours != expected
        assert torch.equal(ours[differ], expected[differ] + 1)
        torch.testing.assert_close(exact[differ], ours[differ].double(), atol=1e-4, rtol=0)


def test_tables_of_other_sizes_are_whole_runs() -> None:
    for make in (cumulative_counts, confidence_counts):
        for num_tokens, steps in ((256, 8), (256, 15), (576, 12), (1024, 15), (36, 5), (9, 1)):
            for schedule in ("root", "linear", "square", "cosine", "arccos"):
                table = make(num_tokens, steps, schedule)
                assert (len(table), table[-1]) == (steps, num_tokens)
                scheduler = MaskGITScheduler(mask_token_id=8, masking_schedule=table)
                scheduler.set_timesteps(steps)
                assert scheduler.planned_counts(torch.tensor([num_tokens])).flatten().cumsum(0).tolist() == table


def test_counts_of_dream() -> None:
    """`int(masked (1 - s / t))` a step; one token a step is what the preset does, but for the first and the last."""
    preset = dream()
    assert dream_counts(12, 5) == [2, 4, 6, 8, 12]
    published = dream_counts(512, preset.num_inference_steps)
    assert published == [*range(1, 511), 512]
    preset.scheduler.set_timesteps(512)
    assert preset.scheduler.planned_counts(torch.tensor([512])).flatten().cumsum(0).tolist() == list(range(1, 513))
    for num_tokens, steps in ((128, 32), (128, 64), (256, 60), (512, 128)):
        table = dream_counts(num_tokens, steps)
        scheduler = preset.scheduler.from_config(
            preset.scheduler.config, masking_schedule=table, rounding="floor_masked"
        )
        scheduler.set_timesteps(steps)
        planned = scheduler.planned_counts(torch.tensor([num_tokens])).flatten().cumsum(0).tolist()
        assert planned == table
        even = [num_tokens * (n + 1) // steps for n in range(steps)]
        assert max(abs(a - b) for a, b in zip(table, even, strict=True)) <= num_tokens // steps + steps // 2


def test_guidance_and_temperatures() -> None:
    assert valeoai_v1().guidance_scale == (1.0, 4.0)
    assert valeoai_halton().guidance_scale == 3.0
    assert google_maskgit().scheduler.config.choice_temperature == 4.5
    scheduler = valeoai_v1().scheduler
    scheduler.set_timesteps(8)
    noise = [scheduler._choice_temperatures[n] for n in (0, 7)]
    assert noise == [4.5, 0.0]


SMALL = {"codebook_size": 16, "hidden_size": 16, "num_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
GOOGLE = {"num_classes": 3, "mask_token_id": 19, "class_token_offset": 16, "vocab_size": 20}
MAGE = {"num_classes": 0, "mask_token_id": 21, "class_token_offset": 20, "vocab_size": 22, "num_decoder_layers": 1}
MAGE |= {"decoder_hidden_size": 16, "num_decoder_attention_heads": 2}


@pytest.mark.parametrize(
    ("upstream", "model_class", "pixels", "config", "steps", "scale"),
    [
        (halton_maskgit, HaltonMaskGITTransformer2DModel, 256, {"num_classes": 3}, 32, 3.0),
        (halton_maskgit, HaltonMaskGITTransformer2DModel, 384, {"num_classes": 3}, 32, 3.0),
        (maskgit_pytorch_v1, MaskGITTransformer2DModel, 256, {"num_classes": 3}, 8, (1.0, 4.0)),
        (maskgit_pytorch_v1, MaskGITTransformer2DModel, 512, {"num_classes": 3}, 15, (1.0, 3.8)),
        (maskgit_jax, MaskGITTransformer2DModel, 256, GOOGLE, 16, 1.0),
        (maskgit_jax, MaskGITTransformer2DModel, 512, GOOGLE, 16, 1.0),
        (mage, MaskGITTransformer2DModel, 256, MAGE, 20, 1.0),
    ],
)
def test_every_published_size_goes_through_the_pipeline(
    upstream: ModuleType, model_class: type, pixels: int, config: dict, steps: int, scale: object
) -> None:
    """With classes and without, at as many tokens as published, by narrow models: a call takes the preset by itself."""
    model = model_class(**SMALL, **config, sample_size=pixels // 16).eval()
    preset = upstream.UPSTREAM.preset(model)
    vqvae = MaskGITVQModel(block_out_channels=(4,) * 5, latent_channels=4, num_vq_embeddings=16, norm_num_groups=2)
    defaults = {"num_inference_steps": preset.num_inference_steps, "guidance_scale": preset.guidance_scale}
    pipe = MaskGITPipeline(vqvae.eval(), model, preset.scheduler, upstream.UPSTREAM.do_normalize, defaults)
    pipe.set_progress_bar_config(disable=True)
    seen: list[int] = []
    model.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    classes = [2] if config["num_classes"] else None
    assert pipe(classes, output_type="pt").images.shape == (1, 3, pixels, pixels)
    assert (pipe.scheduler.num_inference_steps, pipe.guidance_scale) == (steps, scale)
    guided = {1.0: 0, 3.0: steps}.get(scale, steps - 1)  # a ramp begins without guidance
    assert sum(seen) == steps + guided
    if upstream is maskgit_pytorch_v1:
        assert preset.scheduler.config.choice_temperature == [7.0 if pixels == 512 else 4.5, 0.0]
        assert preset.scheduler.config.masking_schedule[-1] == (pixels // 16) ** 2


@pytest.mark.parametrize("value", [1.3, [1.0, 1.2]])
def test_inverse_temperature_multiplies_the_logits_of_the_draws(value: object, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = HaltonScheduler(mask_token_id=8, masking_schedule="linear", inverse_temperature=value)
    seen, draw = [], Marginals.draw

    def look(self: Marginals, rows: torch.Tensor, uniform: torch.Tensor, beta: torch.Tensor) -> torch.Tensor:
        seen.append(beta.double().unique())
        return draw(self, rows, uniform, beta)

    monkeypatch.setattr(Marginals, "draw", look)
    scheduler.set_timesteps(5)
    sample = torch.full((2, 4, 5), 8)
    for t in scheduler.timesteps:
        sample = scheduler.step(torch.randn(2, 20, 9), t, sample).prev_sample
    expected = torch.linspace(*value, 5) if isinstance(value, list) else torch.full((5,), value)
    torch.testing.assert_close(torch.cat(seen).float(), expected)


@pytest.mark.parametrize("value", [0, -1.0, [1.0], [1.0, 0.0], [1.0, 1.0, 1.0]])
def test_inverse_temperatures_that_cannot_be(value: object) -> None:
    with pytest.raises(ValueError, match=r"`inverse_temperature` must be above 0, or a pair .*, got .*\. Pass 1\.0"):
        hf_maskdiff.HaltonScheduler(mask_token_id=8, inverse_temperature=value)
