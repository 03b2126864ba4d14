"""The published samplers of the image models, replayed to the token: our pipelines fed with their stored draws.

Only the draws are replaced. Logits, guidance, counts, order and what is written are those of the converted pipelines.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AmusedImg2ImgPipeline, AmusedInpaintPipeline, AmusedPipeline
from safetensors import safe_open
from torch import Tensor

from hf_maskdiff import MaskedDiffusionScheduler, MaskGITPipeline, StepContext
from hf_maskdiff.conversion.amused import amused
from hf_maskdiff.conversion.halton_maskgit import confidence_counts, valeoai_confidence, valeoai_halton
from hf_maskdiff.conversion.mage import mage
from hf_maskdiff.conversion.maskgit_jax import google_maskgit
from hf_maskdiff.conversion.maskgit_pytorch_v1 import cumulative_counts, valeoai_v1
from hf_maskdiff.sampling import Marginals
from hf_maskdiff.schedulers import position_orders

pytestmark = pytest.mark.skipif(
    torch.__version__ < (2, 13), reason="torch.multinomial draws other codes from a seed before torch 2.13"
)

CLOSE = {"atol": 1e-4, "rtol": 1e-4}
Trace = dict[str, Tensor]
Converted = Callable[[str], Path]


def load(path: Path) -> tuple[Trace, dict[str, str]]:
    with safe_open(path, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118


def pipeline(folder: Path, scheduler: MaskedDiffusionScheduler | None = None) -> MaskGITPipeline:
    pipe = MaskGITPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = scheduler or pipe.scheduler
    return pipe


class Replay:
    """Feeds the draws of a trace to `MaskGITScheduler`, one step after the other, and keeps what it saw."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, drawn: Tensor, gumbel: Tensor, all_columns: bool) -> None:
        self.step, self.log_probs = -1, []

        def draw_all(marginals: Marginals, wanted: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
            self.step += 1
            columns = marginals.logits.shape[-1] if all_columns else marginals.num_tokens
            log_probs = (marginals.logits[..., :columns] / marginals.temperature).log_softmax(-1)
            tokens = drawn[self.step].flatten(1).long()
            self.log_probs.append(log_probs.gather(-1, tokens[..., None])[..., 0])
            return tokens, self.log_probs[-1].double()

        def noise(context: StepContext, purpose: object) -> Tensor:
            return gumbel[min(self.step, len(gumbel) - 1)].flatten(1).double()

        monkeypatch.setattr(Marginals, "draw_all", draw_all)
        monkeypatch.setattr(StepContext, "gumbel", noise)


def run(pipe: MaskGITPipeline, **call: Any) -> tuple[Tensor, Tensor]:
    """The codes before each step, and the last ones: (T, B, h, w) and (B, h, w)."""
    before = []

    def keep(pipe: object, step: int, timestep: object, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        before.append(tensors["latents"])
        return tensors

    codes = pipe(output_type="latent", callback_on_step_end=keep, **call).images
    masked = torch.full_like(codes, pipe.scheduler.config.mask_token_id)
    return torch.stack([call.get("latents", masked), *before[:-1]]), codes


def replace(scheduler: MaskedDiffusionScheduler, **config: object) -> MaskedDiffusionScheduler:
    return type(scheduler).from_config(scheduler.config, **config)


# --- google-research/maskgit ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "schedule"), [("cosine8", "cosine"), ("partial_pow", "square")])
def test_maskgit(
    name: str, schedule: str, golden_folder: Path, converted: Converted, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace, arguments = load(golden_folder / "maskgit_jax" / f"trace_{name}.safetensors")
    preset = google_maskgit(32, 37).scheduler
    temperature = float(arguments["temp"])
    pipe = pipeline(
        converted("maskgit_jax"), replace(preset, masking_schedule=schedule, choice_temperature=temperature)
    )
    replay = Replay(monkeypatch, trace["categorical"][..., 1:], trace["gumbel"][..., 1:], all_columns=False)

    def codes(ids: Tensor) -> Tensor:
        return ids[..., 1:].long().where(ids[..., 1:] >= 0, 37).unflatten(-1, (6, 6))

    start, labels = codes(trace["inputs"]), trace["inputs"][:, 0].long() - 32
    inputs, final = run(pipe, class_labels=labels, latents=start, num_inference_steps=int(arguments["T"]))
    assert torch.equal(inputs, codes(trace["cur_ids"]))
    assert torch.equal(final, codes(trace["final_seqs"][:, -1]))
    for n, log_probs in enumerate(replay.log_probs):
        unknown = (inputs[n] == 37).flatten(1)
        torch.testing.assert_close(log_probs.exp()[unknown], trace["selected_probs"][n][:, 1:][unknown], **CLOSE)
    left = trace["mask_len"][:-1, :, 0].long()
    assert torch.equal((inputs[1:] == 37).flatten(2).sum(-1), left)


def test_maskgit_on_fixed_logits(golden_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace, arguments = load(golden_folder / "maskgit_jax" / "trace_fixed_logits.safetensors")
    scheduler = google_maskgit(32, 32).scheduler
    assert scheduler.config.choice_temperature == float(arguments["choice_temperature"])
    Replay(monkeypatch, trace["categorical"], trace["gumbel"], all_columns=False)
    scheduler.set_timesteps(int(arguments["T"]))
    sample = trace["inputs"].long().where(trace["inputs"] != -1, 32)
    known = sample >= 32
    known &= trace["inputs"] != -1  # the class slot, whose id is no code's
    start = sample.where(~known, 0)
    sample = start
    for n, t in enumerate(scheduler.timesteps):
        ids = trace["cur_ids"][n]
        assert torch.equal(sample, ids.long().where(ids != -1, 32).where(~known, 0))
        sample = scheduler.step(trace["fixed_logits"], t, sample, (start == 32).float().mean(-1)).prev_sample
    assert torch.equal(sample, trace["final_seqs"][:, -1].long().where(~known, 0))


# --- LTH14/mage -------------------------------------------------------------------------------------------------------


def test_mage(golden_folder: Path, converted: Converted, monkeypatch: pytest.MonkeyPatch) -> None:
    trace, arguments = load(golden_folder / "mage" / "trace_gen.safetensors")
    scheduler = replace(mage().scheduler, choice_temperature=float(arguments["choice_temperature"]))
    pipe = pipeline(converted("mage"), scheduler)
    Replay(monkeypatch, trace["categorical_samples"], trace["gumbel_f64"], all_columns=False)
    inputs, final = run(pipe, num_inference_steps=int(arguments["num_iter"]), num_images_per_prompt=2)
    assert torch.equal(inputs.flatten(2), trace["token_indices"][..., 1:])
    torch.testing.assert_close(pipe.decode_latents(final), trace["image"].clip(0, 1), **CLOSE)


# --- valeoai/Maskgit-pytorch v1.0 -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["arccos_linear", "cosine_w0"])
def test_maskgit_pytorch_v1(
    name: str, golden_folder: Path, converted: Converted, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace, arguments = load(golden_folder / "maskgit_pytorch_v1" / f"trace_sample_{name}.safetensors")
    steps, mode = int(arguments["step"]), arguments["sched_mode"]
    assert cumulative_counts(36, steps, mode) == trace["schedule"].cumsum(0).tolist()
    preset = valeoai_v1(32, 36, steps, float(arguments["r_temp"]), float(arguments["w"]))
    table = cumulative_counts(36, steps, mode)
    scheduler = replace(preset.scheduler, masking_schedule=table, temperature=1 / float(arguments["sm_temp"]))
    pipe = pipeline(converted("maskgit_pytorch_v1"), scheduler)
    Replay(monkeypatch, trace["sampled_codes"], trace["gumbel_f64"], all_columns=True)
    inputs, final = run(
        pipe, class_labels=trace["labels"], num_inference_steps=steps, guidance_scale=preset.guidance_scale
    )
    assert torch.equal(inputs, trace["model_inputs"])
    assert torch.equal(final, trace["final_code"])
    torch.testing.assert_close(pipe.decode_latents(final), trace["image"].clip(-1, 1) / 2 + 0.5, **CLOSE)


# --- valeoai/Halton-MaskGIT -------------------------------------------------------------------------------------------


class ReplayHalton:
    """Feeds the stored codes to a choose-then-sample scheduler, and keeps logits and inverse temperatures."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, drawn: Tensor) -> None:
        self.betas: list[float] = []
        self.logits: list[Tensor] = []

        def draw(marginals: Marginals, rows: Tensor, uniform: Tensor, beta: Tensor) -> Tensor:
            (value,) = set(beta.tolist())
            self.betas.append(value)
            self.logits.append(marginals.logits.clone())
            return drawn[len(self.betas) - 1].flatten()[rows]

        monkeypatch.setattr(Marginals, "draw", draw)


def drawn_again(logits: Tensor, factor: float, top_k: int) -> Tensor:
    """The original's draw from torch's global generator: of every position, with a column for the mask."""
    probs = (logits * factor).softmax(-1)
    if top_k > 0:
        probs, columns = probs.topk(top_k, dim=-1)
        probs = probs / probs.sum(-1, keepdim=True)
        drawn = torch.multinomial(probs.flatten(0, 1), 1).view(*probs.shape[:-1], 1)
        return columns.gather(-1, drawn)[..., 0]
    return torch.multinomial(probs.flatten(0, 1), 1, True).view(probs.shape[:-1])


@pytest.mark.parametrize("name", ["w2", "w0", "rand_topk"])
def test_halton(name: str, golden_folder: Path, converted: Converted, monkeypatch: pytest.MonkeyPatch) -> None:
    trace, arguments = load(golden_folder / "halton_maskgit" / f"trace_halton_{name}.safetensors")
    ends = [float(arguments[key]) for key in ("sm_temp_min", "sm_temp_max")]
    randomize, steps, warmup = arguments["randomize"] == "True", int(arguments["step"]), int(arguments["temp_warmup"])
    scheduler = replace(valeoai_halton(48).scheduler, inverse_temperature=ends, randomize=randomize)
    torch.manual_seed(int(arguments["seed"]))
    if randomize:  # where each row begins in the order
        start = (torch.randint(0, 64, (3,)) + 0.5) / 64
        monkeypatch.setattr(position_orders, "position_noise", lambda keys, length, purpose: start[None, :, None])
    state = torch.get_rng_state()
    pipe = pipeline(converted("halton_maskgit"), scheduler)
    replay = ReplayHalton(monkeypatch, trace["sampled_codes"])
    scale = 1 + float(arguments["w"])
    inputs, final = run(pipe, class_labels=trace["labels"], num_inference_steps=steps, guidance_scale=scale)
    assert torch.equal(inputs, trace["model_inputs"])
    assert torch.equal(final, trace["final_code"])
    assert torch.equal((inputs == 48) & (torch.cat([inputs[1:], final[None]]) != 48), trace["step_masks"])
    torch.testing.assert_close(pipe.decode_latents(final), trace["image"] / 2 + 0.5, **CLOSE)

    factors = torch.linspace(*ends, steps) ** float(arguments["temp_pow"])
    factors[:warmup] /= 2
    if arguments["temp_pow"] == "1":
        torch.testing.assert_close(torch.tensor(replay.betas)[warmup:], factors[warmup:])
    torch.set_rng_state(state)
    for logits, factor, expected in zip(replay.logits, factors.tolist(), trace["sampled_codes"], strict=True):
        drawn = drawn_again(logits, factor, int(arguments["top_k"]))
        assert torch.equal(drawn.view(expected.shape), expected)


def test_the_older_halton_sampler_draws_anew_what_it_knows(
    golden_folder: Path, converted: Converted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of Maskgit-pytorch's main branch: the same order and counts, and the same first step, but no token stays."""
    trace, arguments = load(golden_folder / "halton_maskgit" / "trace_halton_oldmain_w2.safetensors")
    scheduler = replace(valeoai_halton(48).scheduler, randomize=False)
    pipe = pipeline(converted("halton_maskgit"), scheduler)
    ReplayHalton(monkeypatch, trace["sampled_codes"])
    steps = int(arguments["step"])
    inputs, _ = run(
        pipe, class_labels=trace["labels"], num_inference_steps=steps, guidance_scale=1 + float(arguments["w"])
    )
    assert torch.equal(inputs[:2], trace["model_inputs"][:2])
    assert torch.equal(inputs == 48, trace["model_inputs"] == 48)
    assert not torch.equal(inputs, trace["model_inputs"])


@pytest.mark.parametrize("name", ["linear", "none_cosine"])
def test_the_confidence_sampler(
    name: str, golden_folder: Path, converted: Converted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The original draws known tokens anew, which ours does not mean to: the first step, counts and logits agree."""
    trace, arguments = load(golden_folder / "halton_maskgit" / f"trace_confidence_{name}.safetensors")
    steps, factor, weight = int(arguments["step"]), float(arguments["sm_temp"]), float(arguments["w"])
    table = confidence_counts(64, steps, arguments["sched_mode"])
    noisy = arguments["randomize"] == "linear"
    preset = valeoai_confidence(48, 64, steps)
    assert preset.guidance_scale == (1.0, 4.0)
    scheduler = replace(
        preset.scheduler,
        masking_schedule=table,
        temperature=1 / factor,
        choice_temperature=[float(arguments["r_temp"]), 0.0] if noisy else 0.0,
    )
    pipe = pipeline(converted("halton_maskgit"), scheduler)
    gumbel = trace["gumbel_f64"] if noisy else torch.zeros(1, 3, 64)
    Replay(monkeypatch, trace["sampled_codes"], gumbel, all_columns=True)
    scale = (1.0, 1.0 + weight)
    inputs, _ = run(pipe, class_labels=trace["labels"], num_inference_steps=steps, guidance_scale=scale)
    assert torch.equal(inputs[:2], trace["model_inputs"][:2])
    assert [64 - int(count) for count in (inputs == 48).flatten(2).sum(-1)[:, 0]] == [0, *table[:-1]]
    assert torch.equal((inputs == 48).flatten(2).sum(-1), (trace["model_inputs"] == 48).flatten(2).sum(-1))

    torch.manual_seed(int(arguments["seed"]))
    for n, expected in enumerate(trace["sampled_codes"]):
        with torch.no_grad():
            cond, uncond = (
                pipe.transformer(trace["model_inputs"][n], labels).sample
                for labels in (trace["labels"], torch.full((3,), 7))
            )
        logits = uncond + (1 + weight * n / (steps - 1)) * (cond - uncond)
        assert torch.equal(drawn_again(logits, factor, 0).view(expected.shape), expected)


# --- aMUSEd -----------------------------------------------------------------------------------------------------------


class DrawAsAmused:
    """Draws as `AmusedScheduler` does: a multinomial of every position, then uniforms, of one generator."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, generator: torch.Generator) -> None:
        def draw_all(marginals: Marginals, wanted: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
            probs = marginals.logits[..., : marginals.num_tokens].softmax(-1)
            tokens = torch.multinomial(probs.flatten(0, 1), 1, generator=generator).view(probs.shape[:-1])
            return tokens, probs.gather(-1, tokens[..., None])[..., 0].clamp(min=1e-20).log().double()

        def noise(context: StepContext, purpose: object) -> Tensor:
            if context.is_last:  # the stock scheduler draws nothing more, and all is revealed
                return torch.zeros(context.tokens.shape, dtype=torch.float64)
            uniform = torch.zeros(context.tokens.shape).uniform_(generator=generator)
            return -(-uniform.clamp(min=1e-20).log()).clamp(min=1e-20).log().double()

        monkeypatch.setattr(Marginals, "draw_all", draw_all)
        monkeypatch.setattr(StepContext, "gumbel", noise)


@pytest.fixture
def amused_pipeline(converted: Converted) -> AmusedPipeline:
    pipe = AmusedPipeline.from_pretrained(converted("amused"))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("name", ["nocfg", "cfg", "scalar_temp"])
@pytest.mark.parametrize("ours", [False, True])
def test_amused(
    name: str, ours: bool, golden_folder: Path, amused_pipeline: AmusedPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its own scheduler the copied pipeline does what it did; with ours it does so fed with the same draws."""
    expected, _ = load(golden_folder / "amused" / "expected.safetensors")
    runs = json.loads((golden_folder / "amused" / "runs.json").read_text())
    call = {"negative_prompt": [runs["negative_prompt"]] * 2, **runs["runs"][name]}
    generator = torch.Generator().manual_seed(call.pop("seed"))
    if ours:
        preset = amused(40, amused_pipeline.scheduler.config.mask_token_id)
        amused_pipeline.scheduler = preset.scheduler
        assert (preset.num_inference_steps, preset.guidance_scale) == (12, 10.0)  # diffusers' defaults
        if name == "cfg":  # after 4 of 6 steps 64 cos(pi / 3) masks stay: 32, or in the original's float32 31
            counts = [3, 9, 19, 32, 48, 64]
            amused_pipeline.scheduler.set_timesteps(6)
            planned = amused_pipeline.scheduler.planned_counts(torch.tensor([64])).flatten().cumsum(0)
            assert planned.tolist() == counts
            counts[3] += 1
            amused_pipeline.scheduler = replace(preset.scheduler, masking_schedule=counts)
        DrawAsAmused(monkeypatch, generator)
        call["generator"] = torch.Generator()
    latents = []
    arguments = {"generator": generator, "temperature": (2, 0), "output_type": "pt", **call}
    images = amused_pipeline(runs["prompts"], callback=lambda i, t, codes: latents.append(codes), **arguments).images
    assert torch.equal(torch.stack(latents), expected[f"run_{name}_latents"])
    torch.testing.assert_close(images, expected[f"run_{name}_image"].permute(0, 3, 1, 2), **CLOSE)


@pytest.mark.parametrize(
    ("name", "pipeline_class"), [("img2img", AmusedImg2ImgPipeline), ("inpaint", AmusedInpaintPipeline)]
)
def test_amused_edits(name: str, pipeline_class: type, golden_folder: Path, amused_pipeline: AmusedPipeline) -> None:
    """The copied folder serves diffusers' two other pipelines too."""
    given, expected = (load(golden_folder / "amused" / f"{kind}.safetensors")[0] for kind in ("input", "expected"))
    runs = json.loads((golden_folder / "amused" / "runs.json").read_text())
    pipe, call = pipeline_class(**amused_pipeline.components), dict(runs["runs"][name])
    pipe.set_progress_bar_config(disable=True)
    assert pipe.scheduler.config.masking_schedule == call.pop("masking_schedule")
    generator = torch.Generator().manual_seed(call.pop("seed"))
    call |= {"mask_image": given["mask_image"]} if name == "inpaint" else {}
    call |= {"negative_prompt": [runs["negative_prompt"]] * 2, "generator": generator, "output_type": "pt"}
    latents = []
    images = pipe(
        runs["prompts"], given["init_image"], callback=lambda i, t, codes: latents.append(codes), **call
    ).images
    assert torch.equal(torch.stack(latents), expected[f"run_{name}_latents"])
    torch.testing.assert_close(images, expected[f"run_{name}_image"].permute(0, 3, 1, 2), **CLOSE)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_the_scheduler_of_amused_on_fixed_logits(
    schedule: str, golden_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace, arguments = load(golden_folder / "samplers" / f"amused_scheduler_{schedule}.safetensors")
    mask, size, steps = int(arguments["mask_token_id"]), trace["logits"].shape[2], int(arguments["T"])
    scheduler = replace(amused(size, mask).scheduler, masking_schedule=schedule)
    temperature = None if schedule == "cosine" else float(arguments["temperature"])  # the preset's own is (2, 0)
    assert temperature is not None or arguments["temperature"] == "(2, 0)"
    uniform = torch.cat([trace["uniform"], torch.full_like(trace["uniform"][:1], 0.5)])
    gumbel = -(-uniform.clamp(min=1e-20).log()).clamp(min=1e-20).log()
    Replay(monkeypatch, trace["multinomial"].unflatten(1, (2, -1)), gumbel, all_columns=False)
    scheduler.set_timesteps(steps, temperature)
    sample = trace["initial"]
    for n, t in enumerate(scheduler.timesteps):
        output = scheduler.step(trace["logits"][n], t, sample, float(arguments["starting_mask_ratio"]))
        assert torch.equal(output.prev_sample, trace["prev_sample"][n])
        assert torch.equal(output.pred_original_sample, trace["pred_original"][n])
        sample = output.prev_sample
