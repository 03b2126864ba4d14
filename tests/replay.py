"""Feeds the stored draws of published runs to our pipelines: only draws are replaced, all else is under test."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_maskdiff import MaskedDiffusionScheduler, MaskGITPipeline, StepContext
from hf_maskdiff.masking import ROUNDINGS
from hf_maskdiff.sampling import Marginals

METHODS = {"cosine": "cosine", "uniform": "linear", "pow2": "square"}  # MaskGIT's schedules, those that ours have
# How valeoai's samplers reveal, rising from 0 to 1.
CURVES: dict[str, Callable[[Tensor], Tensor]] = {
    "root": lambda r: r.sqrt(),
    "linear": lambda r: r,
    "square": lambda r: r**2,
    "cosine": lambda r: 1 - (r * torch.pi / 2).cos(),
    "arccos": lambda r: 1 - r.arccos() * 2 / torch.pi,
}


def valeoai_counts(mode: str, num_tokens: int, num_points: int) -> Tensor:
    """Positions revealed at as many times from start to end, before rounding, float64."""
    return num_tokens * CURVES[mode](torch.linspace(0, 1, num_points, dtype=torch.float64))


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


def round_as_recorded(
    monkeypatch: pytest.MonkeyPatch, masks: Tensor, rounding: str = "floor_masked", start: float | None = None
) -> None:
    """Counts that are whole numbers come out as they are recorded: there the float32 of an original may fall below.

    Args:
        masks: in each row before each step, int64 `(num_inference_steps, batch_size)`.
        rounding: of the scheduler; the next whole number is one mask less, with `"floor_revealed"` one more.
        start: masks that an original begins to count from, where it takes no whole number; else those of each row.
    """
    exact, off = ROUNDINGS[rounding], {"floor_masked": -1, "floor_revealed": 1}[rounding]
    recorded = {row[0]: [*row, None] for row in masks.T.tolist()}  # the last step leaves none

    def of_row(initial: float, ratio: float, done: int, num_steps: int) -> float:
        counted = initial if start is None else start
        left = exact(counted, ratio, done, num_steps)
        whole = abs(counted * ratio - round(counted * ratio)) < 1e-5
        return left + off * (whole and recorded.get(initial, {done: None})[done] == left + off)

    def rounded(initial: Any, ratio: Any, done: Any, num_steps: int) -> Any:
        if isinstance(ratio, Tensor):  # the whole plan: each step's count of each row
            steps = zip(ratio.flatten().tolist(), done.flatten().tolist(), strict=True)
            return torch.stack([rounded(initial, *step, num_steps) for step in steps])
        if not isinstance(initial, Tensor):
            return of_row(initial, ratio, done, num_steps)
        return initial.new_tensor([of_row(row, ratio, done, num_steps) for row in initial.tolist()])

    monkeypatch.setitem(ROUNDINGS, rounding, rounded)


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
        # The originals draw at every position, so the logits of all are wanted.
        monkeypatch.setattr("hf_maskdiff.pipelines.substeps._chooses_ahead", lambda scheduler: False)


def factors_of(settings: dict[str, str]) -> Tensor:
    """What a sampler of Halton-MaskGIT multiplies the logits by in each step."""
    steps = int(settings["step"])
    if "sm_temp" in settings:
        return torch.full((steps,), float(settings["sm_temp"]))
    ends = float(settings["sm_temp_min"]), float(settings["sm_temp_max"])
    factors = torch.linspace(*ends, steps) ** float(settings["temp_pow"])
    factors[: int(settings["temp_warmup"])] /= 2
    return factors


def drawn_again(logits: Tensor, factor: float, top_k: int) -> Tensor:
    """The original's draw from torch's global generator: of every position, with a column for the mask."""
    probs = (logits * factor).softmax(-1)
    if top_k > 0:
        probs, columns = probs.topk(top_k, dim=-1)
        probs = probs / probs.sum(-1, keepdim=True)
        drawn = torch.multinomial(probs.flatten(0, 1), 1).view(*probs.shape[:-1], 1)
        return columns.gather(-1, drawn)[..., 0]
    return torch.multinomial(probs.flatten(0, 1), 1, True).view(probs.shape[:-1])


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


def as_recorded(replay: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """A replay of a text model's run that must go as recorded, whichever way the mask is looked at.

    The originals count the mask among the tokens that a position may become, ours leave it out of how sure a position
    is. Where that changes the order of two positions that are as good as equally sure, the run must be the original's
    with the mask counted in.
    """
    try:
        replay()
    except AssertionError:
        score = Marginals.score

        def score_all(marginals: Marginals, function: Callable[[Tensor], Tensor], wanted: Tensor) -> Tensor:
            return score(dataclasses.replace(marginals, mask_token_id=-1, codebook_size=None), function, wanted)

        monkeypatch.setattr(Marginals, "score", score_all)
        replay()
