"""The published samplers of the image models, replayed to the token: our pipelines fed with their stored draws.

Only the draws are replaced. Logits, guidance, counts, order and what is written are those of the converted pipelines.
Every run in the golden folder is a case; names, sizes and settings are its own.
"""

from __future__ import annotations

import json
from ast import literal_eval
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AmusedImg2ImgPipeline, AmusedInpaintPipeline, AmusedPipeline
from golden_data import GOLDEN, Model, cases, holds, read, rows_left, settings_of
from replay import (
    METHODS,
    DrawAsAmused,
    Replay,
    ReplayHalton,
    drawn_again,
    factors_of,
    pipeline,
    replace,
    round_as_recorded,
    run,
    valeoai_counts,
)
from torch import Tensor

from hf_maskdiff.conversion.amused import amused
from hf_maskdiff.conversion.halton_maskgit import confidence_counts, valeoai_confidence, valeoai_halton
from hf_maskdiff.conversion.mage import mage
from hf_maskdiff.conversion.maskgit_jax import google_maskgit
from hf_maskdiff.conversion.maskgit_pytorch_v1 import cumulative_counts, valeoai_v1
from hf_maskdiff.schedulers import position_orders

pytestmark = pytest.mark.skipif(
    torch.__version__ < (2, 13), reason="torch.multinomial draws other codes from a seed before torch 2.13"
)

CLOSE = {"atol": 1e-4, "rtol": 1e-4}
Converted = Callable[[str], Path]


# --- google-research/maskgit ------------------------------------------------------------------------------------------

IS_FIXED = holds("fixed_logits")


def masking_schedule(settings: dict[str, str]) -> str:
    if settings["method"] not in METHODS:
        pytest.skip(f"no masking schedule of ours is the original's {settings['method']!r}")
    return METHODS[settings["method"]]


@pytest.mark.parametrize("path", cases("maskgit_jax/trace_*", lambda path: not IS_FIXED(path)))
def test_maskgit(path: Path, converted: Converted, monkeypatch: pytest.MonkeyPatch) -> None:
    trace, settings = read(path)
    pipe = pipeline(converted("maskgit_jax"))
    size, mask = pipe.transformer.config.codebook_size, pipe.transformer.mask_token_id
    preset, temperature = google_maskgit(size, mask).scheduler, float(settings["temp"])
    pipe.scheduler = replace(preset, masking_schedule=masking_schedule(settings), choice_temperature=temperature)
    replay = Replay(monkeypatch, trace["categorical"][..., 1:], trace["gumbel"][..., 1:], all_columns=False)

    def codes(ids: Tensor) -> Tensor:
        side = pipe.transformer.config.sample_size
        return ids[..., 1:].long().where(ids[..., 1:] >= 0, mask).unflatten(-1, (side, side))

    recorded = codes(trace["cur_ids"])
    round_as_recorded(monkeypatch, rows_left(recorded, mask))
    start, labels = codes(trace["inputs"]), trace["inputs"][:, 0].long() - size
    inputs, final = run(pipe, class_labels=labels, latents=start, num_inference_steps=int(settings["T"]))
    assert torch.equal(inputs, recorded)
    assert torch.equal(final, codes(trace["final_seqs"][:, -1]))
    for n, log_probs in enumerate(replay.log_probs):
        unknown = (inputs[n] == mask).flatten(1)
        torch.testing.assert_close(log_probs.exp()[unknown], trace["selected_probs"][n][:, 1:][unknown], **CLOSE)
    assert torch.equal(rows_left(inputs[1:], mask), trace["mask_len"][:-1, :, 0].long())


@pytest.mark.parametrize("path", cases("maskgit_jax/trace_*", IS_FIXED))
def test_maskgit_on_fixed_logits(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace, settings = read(path)
    size = mask = trace["fixed_logits"].shape[-1]
    temperature = float(settings["choice_temperature"])
    scheduler = google_maskgit(size, mask).scheduler
    scheduler = replace(scheduler, masking_schedule=masking_schedule(settings), choice_temperature=temperature)
    Replay(monkeypatch, trace["categorical"], trace["gumbel"], all_columns=False)
    round_as_recorded(monkeypatch, rows_left(trace["cur_ids"], -1))
    scheduler.set_timesteps(int(settings["T"]))
    is_class = trace["inputs"] >= size  # the class slot, whose id is no code's

    def tokens(ids: Tensor) -> Tensor:
        return ids.long().where(ids != -1, mask).where(~is_class, 0)

    start = sample = tokens(trace["inputs"])
    for n, t in enumerate(scheduler.timesteps):
        assert torch.equal(sample, tokens(trace["cur_ids"][n]))
        sample = scheduler.step(trace["fixed_logits"], t, sample, (start == mask).float().mean(-1)).prev_sample
    assert torch.equal(sample, tokens(trace["final_seqs"][:, -1]))


# --- LTH14/mage -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", cases("mage/trace_*"))
def test_mage(path: Path, converted: Converted, monkeypatch: pytest.MonkeyPatch) -> None:
    trace, settings = read(path)
    config = Model(path.parent).config
    preset = mage(config["codebook_size"], config["mask_token_label"]).scheduler
    scheduler = replace(preset, choice_temperature=float(settings["choice_temperature"]))
    pipe = pipeline(converted("mage"), scheduler)
    Replay(monkeypatch, trace["categorical_samples"], trace["gumbel_f64"], all_columns=False)
    recorded = trace["token_indices"][..., 1:]
    round_as_recorded(monkeypatch, rows_left(recorded, config["mask_token_label"]))
    steps, count = int(settings["num_iter"]), recorded.shape[1]
    inputs, final = run(pipe, num_inference_steps=steps, num_images_per_prompt=count)
    assert torch.equal(inputs.flatten(2), recorded)
    torch.testing.assert_close(pipe.decode_latents(final), trace["image"].clip(0, 1), **CLOSE)


# --- valeoai/Maskgit-pytorch v1.0 -------------------------------------------------------------------------------------


def noise_of(trace: dict[str, Tensor], settings: dict[str, str]) -> Tensor:
    """The stored Gumbel noise of the order, none where the original was told to add none."""
    if settings["randomize"] not in ("linear", "no", "none"):
        pytest.skip(f"no scheduler of ours adds noise as `randomize={settings['randomize']!r}` does")
    return trace["gumbel_f64"] if "gumbel_f64" in trace else torch.zeros(1, *trace["labels"].shape, 1)


@pytest.mark.parametrize("path", cases("maskgit_pytorch_v1/trace_*"))
def test_maskgit_pytorch_v1(path: Path, converted: Converted, monkeypatch: pytest.MonkeyPatch) -> None:
    trace, settings = read(path)
    config, steps = Model(path.parent).config, int(settings["step"])
    num_tokens = config["f_factor"] ** 2
    table = cumulative_counts(num_tokens, steps, settings["sched_mode"])
    assert table == trace["schedule"].cumsum(0).tolist()
    weight, temperature = float(settings["w"]), float(settings["r_temp"])
    preset = valeoai_v1(config["codebook_size"], num_tokens, steps, temperature, weight)
    scheduler = replace(preset.scheduler, masking_schedule=table, temperature=1 / float(settings["sm_temp"]))
    pipe = pipeline(converted("maskgit_pytorch_v1"), scheduler)
    Replay(monkeypatch, trace["sampled_codes"], noise_of(trace, settings), all_columns=True)
    inputs, final = run(
        pipe, class_labels=trace["labels"], num_inference_steps=steps, guidance_scale=preset.guidance_scale
    )
    assert torch.equal(inputs, trace["model_inputs"])
    assert torch.equal(final, trace["final_code"])
    torch.testing.assert_close(pipe.decode_latents(final), trace["image"].clip(-1, 1) / 2 + 0.5, **CLOSE)


# --- valeoai/Halton-MaskGIT -------------------------------------------------------------------------------------------


def is_current(path: Path) -> bool:
    """Not of the older sampler, that of Maskgit-pytorch's main branch."""
    return settings_of(path)["cls"].startswith("Halton-MaskGIT")


def halton_run(
    path: Path, converted: Converted, monkeypatch: pytest.MonkeyPatch
) -> tuple[dict[str, Tensor], ReplayHalton, Tensor, Tensor, Any]:
    """A run of ours with the stored codes: the record, what was seen, inputs, outcome, and the pipeline."""
    trace, settings = read(path)
    pipe, recorded = pipeline(converted("halton_maskgit")), trace["model_inputs"]
    codes, ends = pipe.transformer.config.codebook_size, [float(settings[f"sm_temp_{end}"]) for end in ("min", "max")]
    randomize, num_tokens = settings["randomize"] == "True", recorded[0, 0].numel()
    pipe.scheduler = replace(valeoai_halton(codes).scheduler, inverse_temperature=ends, randomize=randomize)
    torch.manual_seed(int(settings["seed"]))
    if randomize:  # where each row begins in the order
        start = (torch.randint(0, num_tokens, (recorded.shape[1],)) + 0.5) / num_tokens
        monkeypatch.setattr(position_orders, "position_noise", lambda keys, length, purpose: start[None, :, None])
    state = torch.get_rng_state()
    replay = ReplayHalton(monkeypatch, trace["sampled_codes"])
    round_as_recorded(monkeypatch, rows_left(recorded, codes), "floor_revealed")
    call = {"num_inference_steps": int(settings["step"]), "guidance_scale": 1 + float(settings["w"])}
    inputs, final = run(pipe, class_labels=trace["labels"], **call)
    torch.set_rng_state(state)
    return trace, replay, inputs, final, pipe


@pytest.mark.parametrize("path", cases("halton_maskgit/trace_halton_*", is_current))
def test_halton(path: Path, converted: Converted, monkeypatch: pytest.MonkeyPatch) -> None:
    trace, replay, inputs, final, pipe = halton_run(path, converted, monkeypatch)
    mask, settings = pipe.transformer.config.codebook_size, settings_of(path)
    assert torch.equal(inputs, trace["model_inputs"])
    assert torch.equal(final, trace["final_code"])
    assert torch.equal((inputs == mask) & (torch.cat([inputs[1:], final[None]]) != mask), trace["step_masks"])
    torch.testing.assert_close(pipe.decode_latents(final), trace["image"] / 2 + 0.5, **CLOSE)

    factors, warmup = factors_of(settings), int(settings["temp_warmup"])
    if float(settings["temp_pow"]) == 1:
        torch.testing.assert_close(torch.tensor(replay.betas)[warmup:], factors[warmup:])
    for logits, factor, expected in zip(replay.logits, factors.tolist(), trace["sampled_codes"], strict=True):
        drawn = drawn_again(logits, factor, int(settings["top_k"]))
        assert torch.equal(drawn.view(expected.shape), expected)


@pytest.mark.parametrize("path", cases("halton_maskgit/trace_halton_*", lambda path: not is_current(path)))
def test_the_older_halton_sampler_draws_anew_what_it_knows(
    path: Path, converted: Converted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of Maskgit-pytorch's main branch: the same order and counts, and the same first step, but no token stays."""
    trace, _, inputs, _, pipe = halton_run(path, converted, monkeypatch)
    mask = pipe.transformer.config.codebook_size
    assert torch.equal(inputs[:2], trace["model_inputs"][:2])
    assert torch.equal(inputs == mask, trace["model_inputs"] == mask)
    assert not torch.equal(inputs, trace["model_inputs"])


def confidence_table(recorded: Tensor, mask: int, mode: str) -> list[int]:
    """Positions revealed after each step, as recorded: what ours are, but for whole numbers, as float32 has them."""
    steps, num_tokens = len(recorded), recorded[0, 0].numel()
    masks = rows_left(recorded, mask)
    assert torch.equal(masks, masks[:, :1].expand_as(masks))
    table = [*(num_tokens - masks[1:, 0]).tolist(), num_tokens]
    exact = valeoai_counts(mode, num_tokens, steps)
    for ours, theirs, count in zip(confidence_counts(num_tokens, steps, mode), table, exact.tolist(), strict=True):
        assert ours == theirs or (ours == theirs + 1 and count == pytest.approx(ours, abs=1e-4))
    return table


@pytest.mark.parametrize("path", cases("halton_maskgit/trace_confidence_*"))
def test_the_confidence_sampler(path: Path, converted: Converted, monkeypatch: pytest.MonkeyPatch) -> None:
    """The original draws known tokens anew, which ours does not mean to: the first step, counts and logits agree."""
    trace, settings = read(path)
    pipe, recorded = pipeline(converted("halton_maskgit")), trace["model_inputs"]
    config, num_tokens = pipe.transformer.config, recorded[0, 0].numel()
    steps, factor, weight = (kind(settings[key]) for kind, key in ((int, "step"), (float, "sm_temp"), (float, "w")))
    table = confidence_table(recorded, config.codebook_size, settings["sched_mode"])
    preset = valeoai_confidence(config.codebook_size, num_tokens, steps)
    assert preset.guidance_scale == (1.0, 4.0)
    noise = noise_of(trace, settings)
    temperature = [float(settings["r_temp"]), 0.0] if noise.any() else 0.0
    pipe.scheduler = replace(
        preset.scheduler, masking_schedule=table, temperature=1 / factor, choice_temperature=temperature
    )
    Replay(monkeypatch, trace["sampled_codes"], noise.expand(-1, -1, num_tokens), all_columns=True)
    scale = (1.0, 1.0 + weight)
    inputs, _ = run(pipe, class_labels=trace["labels"], num_inference_steps=steps, guidance_scale=scale)
    assert torch.equal(inputs[:2], recorded[:2])
    assert torch.equal(rows_left(inputs, config.codebook_size), rows_left(recorded, config.codebook_size))

    torch.manual_seed(int(settings["seed"]))
    none = torch.full_like(trace["labels"], config.num_classes)
    for n, expected in enumerate(trace["sampled_codes"]):
        with torch.no_grad():
            cond, uncond = (pipe.transformer(recorded[n], labels).sample for labels in (trace["labels"], none))
        logits = uncond + (1 + weight * n / max(steps - 1, 1)) * (cond - uncond)
        assert torch.equal(drawn_again(logits, factor, 0).view(expected.shape), expected)


# --- aMUSEd -----------------------------------------------------------------------------------------------------------


def amused_runs(edits: bool) -> list[Any]:
    """Names of the runs that `runs.json` lists: from text alone, or from an image, which have a strength."""
    file = None if GOLDEN is None else GOLDEN / "amused" / "runs.json"
    if file is None or not file.is_file():
        return cases("amused/runs.json")
    runs = json.loads(file.read_text())["runs"]
    return [name for name, run in runs.items() if ("strength" in run) == edits]


@pytest.fixture
def amused_pipeline(converted: Converted) -> AmusedPipeline:
    pipe = AmusedPipeline.from_pretrained(converted("amused"))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def amused_call(folder: Path, name: str) -> tuple[list[str], dict[str, Any]]:
    runs = json.loads((folder / "runs.json").read_text())
    prompts = runs["prompts"]
    call = {"negative_prompt": [runs["negative_prompt"]] * len(prompts), "output_type": "pt", **runs["runs"][name]}
    return prompts, call | {"generator": torch.Generator().manual_seed(call.pop("seed"))}


@pytest.mark.parametrize("name", amused_runs(edits=False))
@pytest.mark.parametrize("ours", [False, True])
def test_amused(
    name: str, ours: bool, golden_folder: Path, amused_pipeline: AmusedPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its own scheduler the copied pipeline does what it did; with ours it does so fed with the same draws."""
    expected = Model(golden_folder / "amused").expected
    recorded = expected[f"run_{name}_latents"]
    prompts, call = amused_call(golden_folder / "amused", name)
    if ours:
        mask = amused_pipeline.scheduler.config.mask_token_id
        preset = amused(amused_pipeline.transformer.config.codebook_size, mask)
        amused_pipeline.scheduler = preset.scheduler
        assert (preset.num_inference_steps, preset.guidance_scale) == (12, 10.0)  # diffusers' defaults
        states = torch.cat([torch.full_like(recorded[:1], mask), recorded])
        round_as_recorded(monkeypatch, rows_left(states, mask)[:-1])
        DrawAsAmused(monkeypatch, call["generator"])
        call["generator"] = torch.Generator()
    latents = []
    arguments = {"temperature": (2, 0), **call, "callback": lambda i, t, codes: latents.append(codes)}
    images = amused_pipeline(prompts, **arguments).images
    assert torch.equal(torch.stack(latents), recorded)
    torch.testing.assert_close(images, expected[f"run_{name}_image"].permute(0, 3, 1, 2), **CLOSE)


@pytest.mark.parametrize("name", amused_runs(edits=True))
def test_amused_edits(name: str, golden_folder: Path, amused_pipeline: AmusedPipeline) -> None:
    """The copied folder serves diffusers' two other pipelines too, which a run is named after."""
    model = Model(golden_folder / "amused")
    given, expected = model.inputs, model.expected
    inpaints = "inpaint" in name
    pipe = (AmusedInpaintPipeline if inpaints else AmusedImg2ImgPipeline)(**amused_pipeline.components)
    pipe.set_progress_bar_config(disable=True)
    prompts, call = amused_call(model.folder, name)
    assert pipe.scheduler.config.masking_schedule == call.pop("masking_schedule")
    call |= {"mask_image": given["mask_image"]} if inpaints else {}
    latents = []
    images = pipe(prompts, given["init_image"], callback=lambda i, t, codes: latents.append(codes), **call).images
    assert torch.equal(torch.stack(latents), expected[f"run_{name}_latents"])
    torch.testing.assert_close(images, expected[f"run_{name}_image"].permute(0, 3, 1, 2), **CLOSE)


@pytest.mark.parametrize("path", cases("samplers/amused_scheduler_*"))
def test_the_scheduler_of_amused_on_fixed_logits(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace, settings = read(path)
    mask, size, start = int(settings["mask_token_id"]), trace["logits"].shape[2], trace["initial"]
    scheduler = replace(amused(size, mask).scheduler, masking_schedule=settings["masking_schedule"])
    temperature = literal_eval(settings["temperature"])
    uniform = torch.cat([trace["uniform"], torch.full_like(trace["uniform"][:1], 0.5)])
    gumbel = -(-uniform.clamp(min=1e-20).log()).clamp(min=1e-20).log()
    Replay(monkeypatch, trace["multinomial"].unflatten(1, (len(start), -1)), gumbel, all_columns=False)
    share, masks = (
        float(settings["starting_mask_ratio"]),
        rows_left(torch.cat([start[None], trace["prev_sample"]]), mask),
    )
    round_as_recorded(monkeypatch, masks[:-1], start=share * start[0].numel())
    # The pair is the preset's own: a call need not name it.
    scheduler.set_timesteps(int(settings["T"]), None if temperature == (2, 0) else temperature)
    sample = start
    for n, t in enumerate(scheduler.timesteps):
        output = scheduler.step(trace["logits"][n], t, sample, share)
        assert torch.equal(output.prev_sample, trace["prev_sample"][n])
        assert torch.equal(output.pred_original_sample, trace["pred_original"][n])
        sample = output.prev_sample
