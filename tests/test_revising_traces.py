"""ReMDM, path planning and FreeCorrection as their authors run them: recorded runs, to the token.

Only draws are replaced. ReMDM draws a token or the mask from V + 1 weights by exponential noise: token v or the mask
whose `E / q` is smallest. Whether that is the mask is decided by one number per position that is uniform on (0, 1) and
does not depend on the weights of mask and tokens, `min_v E_v / p_v` over itself plus `E_mask`: that is fed to our
scheduler, whose own probabilities then must decide alike. Its grid ends at 1e-5 and not at 0, so the last step, which
here leaves no mask, is compared where it revealed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from golden_data import later_cases, read, settings_of
from safetensors.torch import load_file
from torch import Tensor

from hf_maskdiff import (
    FreeCorrectionScheduler,
    MDLMTransformer,
    PathPlanningScheduler,
    ReMDMScheduler,
    StepContext,
    revising,
)
from hf_maskdiff.sampling import Marginals, Purpose
from hf_maskdiff.schedulers.run_memory import LifeMemory
from hf_maskdiff.schedulers.scheduling_remdm import remasking_of

STRATEGIES = {"mdlm": None, "remdm-cap": "cap", "remdm-rescale": "rescale", "remdm-conf": "conf", "remdm-loop": "loop"}
STRATEGIES |= {"forward-backward": "forward_backward", "dfm": "dfm"}


def toy_logits(path: Path, sample: Tensor, mask: int, which: str = "toy") -> Tensor:
    toy = load_file(path.parent / f"{which}.safetensors")
    around = torch.nn.functional.pad(sample, (1, 1), value=mask)
    base, left, right = (next(toy[name] for name in toy if name.endswith(part)) for part in ("base", "left", "right"))
    return (base + left[around[:, :-2]]) + right[around[:, 2:]]


# --- ReMDM ------------------------------------------------------------------------------------------------------------


def sampler_of(settings: dict[str, str]) -> str:
    return "dfm" if settings.get("dfm") == "True" else settings["sampler"]


def is_run_of_remdm(path: Path) -> bool:
    return sampler_of(settings_of(path)) in STRATEGIES


def steps_of(trace: dict[str, Tensor], settings: dict[str, str]) -> list[float]:
    """By how much time goes back in each update: evenly, but for the flow's corrector, which slows down where it would
    mask or reveal with a probability above 1."""
    even = (1 - float(settings["eps"])) / int(settings["steps"])
    if sampler_of(settings) != "dfm":
        return [even] * len(trace["t"])
    rates = [(time, 10 * (time * (1 - time)) ** 0.25) for time in trace["t"].tolist()]
    return [min(even, 1 / ((1 + b) / t + b / (1 - t))) if t < 1 else even for t, b in rates]


class OnTheirGrid(ReMDMScheduler):
    """At times that are not evenly apart."""

    shares: list[tuple[float, float]]

    def probabilities(self, step_index: int) -> tuple[float, float]:
        if step_index == len(self.shares) - 1:
            return super().probabilities(step_index)
        sigma = remasking_of(self.config.remasking, *self.shares[step_index], self.config.eta)
        return revising.reveal_probability(*self.shares[step_index], sigma), sigma


@cache
def transformer_of(folder: Path) -> MDLMTransformer:
    return MDLMTransformer.from_pretrained(folder).eval()


@torch.no_grad()
def logits_of(path: Path, sample: Tensor, mask: int) -> Tensor:
    """Of the toy, or of the transformer of the same folder."""
    if path.name.startswith("trace_toy"):
        return toy_logits(path, sample, mask)
    return transformer_of(path.parent)(sample).logits.clone()


def nucleus(probs: Tensor, p: float) -> Tensor:
    """Theirs: the token with which the total reaches p is dropped, unless it is the first."""
    if p >= 1:
        return probs
    ordered, order = probs.sort(-1, descending=True)
    keep = ordered.cumsum(-1) <= p
    keep[..., 0] = True
    kept = torch.zeros_like(probs).scatter(-1, order, torch.where(keep, ordered, 0.0))
    return kept / kept.sum(-1, keepdim=True)


def draws_of(trace: dict[str, Tensor], settings: dict[str, str]) -> Iterator[Tensor]:
    """Uniform draws of each update: recorded, or those of the seed."""
    if "u" in trace:
        yield from trace["u"]
        return
    generator = torch.Generator().manual_seed(int(settings["seed"]))
    shape = (*trace["x_in"].shape[1:], int(settings["mask_id"]) + 1)
    for _ in trace["t"]:
        yield torch.rand(shape, dtype=torch.float64, generator=generator)


def marginals_of(path: Path, sample: Tensor, settings: dict[str, str]) -> Tensor:
    mask = int(settings["mask_id"])
    logits = logits_of(path, sample, mask)
    logits[..., mask] = -torch.inf
    return nucleus(logits.softmax(-1), float(settings["nucleus_p"]))


class Draws:
    """Feeds the draws of one step to a scheduler."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.noise, self.tokens = torch.empty(0), torch.empty(0)
        uniform = StepContext.uniform
        monkeypatch.setattr(
            StepContext, "uniform", lambda c, purpose: self.noise if purpose == Purpose.CHOICE else uniform(c, purpose)
        )
        monkeypatch.setattr(Marginals, "draw", lambda m, rows, uniform, beta: self.tokens.flatten()[rows])

    def take(self, u: Tensor, probs: Tensor, sample: Tensor, mask: int) -> None:
        exponential = 1e-10 - (u + 1e-10).log()
        times = exponential / probs.double()
        masked = sample == mask
        standing = exponential.gather(-1, sample[..., None])[..., 0]
        first, of_mask = times[..., :mask].amin(-1), exponential[..., mask]
        self.tokens = times[..., :mask].argmin(-1)
        self.noise = torch.where(masked, first / (first + of_mask), of_mask / (of_mask + standing))


def scheduler_of(settings: dict[str, str], kind: type[ReMDMScheduler] = ReMDMScheduler) -> ReMDMScheduler:
    strategy = STRATEGIES[sampler_of(settings)]
    names = {"eta": "eta", "loop_start": "t_on", "loop_end": "t_off", "loop_share": "alpha_on"}
    config = {name: float(settings[theirs]) for name, theirs in names.items() if theirs in settings}
    if strategy is None:
        strategy, config = "cap", {"eta": 0.0}
    return kind(int(settings["mask_id"]), remasking=strategy, **config)


def running_scheduler(trace: dict[str, Tensor], settings: dict[str, str]) -> ReMDMScheduler:
    if sampler_of(settings) != "dfm":
        scheduler = scheduler_of(settings)
        scheduler.set_timesteps(int(settings["steps"]))
        return scheduler
    scheduler = scheduler_of(settings, OnTheirGrid)
    steps = zip(trace["t"].tolist(), steps_of(trace, settings), strict=True)
    scheduler.shares = [(1 - time, 1 - time + step) for time, step in steps]
    scheduler.set_timesteps(len(scheduler.shares))
    return scheduler


@pytest.mark.parametrize("path", later_cases("remdm/trace_*", is_run_of_remdm))
def test_remdm_runs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace, settings = read(path)
    mask, scheduler, draws = int(settings["mask_id"]), running_scheduler(trace, settings), Draws(monkeypatch)
    assert len(trace["t"]) == scheduler.num_inference_steps
    memory, sample, taken_back = scheduler.new_memory(), trace["x_in"][0], 0
    for n, (t, u) in enumerate(zip(scheduler.timesteps, draws_of(trace, settings), strict=True)):
        share, next_share = n / len(scheduler.timesteps), (n + 1) / len(scheduler.timesteps)
        if sampler_of(settings) == "forward-backward" and exceeds(share, next_share):
            break  # theirs masks more than the schedule allows, and reveals with a probability above 1
        if "conf_in" in trace:  # what they remember of each revealed token
            remembered = memory.drawn_with(sample.shape, sample.device)
            known = trace["conf_in"][n].isfinite()
            assert torch.equal(known, sample != mask)
            torch.testing.assert_close(-remembered[known], trace["conf_in"][n][known], rtol=1e-5, atol=1e-6)
        probs = marginals_of(path, sample, settings)
        draws.take(u, probs, sample, mask)
        before, sample = sample, scheduler.step(probs.log(), t, sample, memory=memory).prev_sample
        taken_back += int(((before != mask) & (sample == mask)).sum())
        known = trace["x_out"][n] != mask
        assert torch.equal(sample[known], trace["x_out"][n][known])
        assert n == len(trace["t"]) - 1 or torch.equal(sample, trace["x_out"][n])
    assert (taken_back > 0) == (sampler_of(settings) != "mdlm")
    assert n > 2


def exceeds(share: float, next_share: float) -> bool:
    return revising.forward_backward(share, next_share) > revising.largest_remasking(share, next_share) + 1e-9


@pytest.mark.parametrize("path", later_cases("remdm/trace_*", is_run_of_remdm))
def test_remdm_weights(path: Path) -> None:
    """Of the mask and of the likeliest token, at every position and step, at the times of theirs."""
    trace, settings = read(path)
    mask, config = int(settings["mask_id"]), scheduler_of(settings).config
    for n, (time, step) in enumerate(zip(trace["t"].tolist(), steps_of(trace, settings), strict=True)):
        sample, shares = trace["x_in"][n], (1 - time, 1 - time + step)
        masked = sample == mask
        if config.remasking == "loop":
            loop = (config.loop_start, config.loop_end, config.loop_share)
            *shares, stays = revising.loop_shares(time, time - step, *loop)
            sigma = torch.full(sample.shape, config.eta if stays else 0.0)
        else:
            sigma = torch.full(sample.shape, remasking_of(config.remasking, *shares, config.eta))
        if config.remasking == "forward_backward" and exceeds(*shares):
            continue
        used = float(sigma.max())
        if config.remasking == "conf":
            drawn_with = -trace["conf_in"][n].nan_to_num(neginf=torch.nan)
            sigma, used = sigma * revising.doubt_shares(drawn_with, ~masked), 0.0
        reveal = revising.reveal_probability(*shares, used)
        likeliest = marginals_of(path, sample, settings).amax(-1)
        expected_mask = torch.where(masked, torch.tensor(1 - reveal), sigma)
        expected_max = torch.where(masked, reveal * likeliest, 1 - sigma)
        plain = sampler_of(settings) == "mdlm" or (config.remasking == "loop" and not stays)
        told = masked if plain else torch.ones_like(masked)  # a plain update's weights of known positions are not used
        scale = 1 - shares[0] if plain else 1.0  # and are not divided by the share of masks
        # Theirs subtract float32 numbers near 1, and the flow's corrector has the difference times up to 7.
        atol = 1.4e-5 if config.remasking == "dfm" else 2e-6
        torch.testing.assert_close(trace["q_mask"][n][told], expected_mask[told].float() * scale, rtol=2e-5, atol=atol)
        torch.testing.assert_close(trace["q_max"][n][told], expected_max[told].float() * scale, rtol=2e-5, atol=atol)


# --- path planning ----------------------------------------------------------------------------------------------------

CURVES = {"linear": "linear", "cosine": "mdlm_cosine"}


@pytest.mark.parametrize("path", later_cases("p2/trace_*"))
def test_path_planning_decisions(path: Path) -> None:
    """What is kept, revealed and masked again, from the recorded scores: every run, with a planner or not."""
    trace, settings = read(path)
    mask, given = int(settings["mask_id"]), trace["start"] != int(settings["mask_id"])
    taken_back = 0
    for n, (before, after) in enumerate(pairwise([*trace["x_in"], trace["final"]])):
        masked, num_masks = before == mask, trace["num_to_mask"][n]
        scores = trace["score"][n].masked_fill(given, 0.0)
        ranked, count, put_back = revising.keep_best(scores, masked, ~masked & ~given, num_masks)
        fresh = torch.zeros_like(masked).scatter_(1, ranked, torch.arange(ranked.shape[1]) < count[:, None])
        ours = torch.where(fresh, trace["x0"][n], before).masked_fill(put_back, mask)
        exact = (after == mask).sum(-1) == num_masks  # where scores tie at the cut, theirs masks fewer
        assert torch.equal(ours[exact], after[exact])
        assert exact.all() or float(settings["eta"]) == 0
        taken_back += int(put_back[exact].sum())
    assert (taken_back > 0) == (int(trace["remasked"].sum()) > 0)


def is_ours(path: Path) -> bool:
    """Self-planning by a probability or at random, on a schedule of ours, with a position revealed in every step.

    Their margins are of probabilities and turn eta round; their planner sees other tokens than those that are given.
    """
    settings = settings_of(path)
    if settings["planner"] != "False" or settings["score"] == "diff_top2" or settings["kappa"] not in CURVES:
        return False
    trace, _ = read(path)
    free = (trace["start"] == int(settings["mask_id"])).sum(-1)
    return bool((torch.cat([free[None], trace["num_to_mask"]]).diff(dim=0) < 0).all())


@pytest.mark.parametrize("path", later_cases("p2/trace_*", is_ours))
def test_path_planning_runs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole run of our scheduler, with their draws and their noisy scores of them."""
    trace, settings = read(path)
    mask, tau = int(settings["mask_id"]), float(settings["tau"])
    measure: dict[str, object] = {"measure": "uniform"} if settings["score"] == "random" else {"standing": False}
    scheduler = PathPlanningScheduler(
        mask, masking_schedule=CURVES[settings["kappa"]], eta=float(settings["eta"]), **measure
    )
    scheduler.set_timesteps(int(settings["num_steps"]))
    now: dict[str, Tensor] = {}
    monkeypatch.setattr(Marginals, "draw_all", lambda m, wanted, uniform: (now["x0"], now["score"]))
    monkeypatch.setattr(Marginals, "draw", lambda m, rows, uniform, beta: now["x0"].flatten()[rows])
    uniform: Callable = StepContext.uniform
    monkeypatch.setattr(
        StepContext, "uniform", lambda c, purpose: now["u"] if purpose == Purpose.CHOICE else uniform(c, purpose)
    )
    sample, memory = trace["start"], scheduler.new_memory()
    ratio = (sample == mask).double().mean(-1)
    for n, t in enumerate(scheduler.timesteps):
        assert torch.equal(sample, trace["x_in"][n])
        logits = toy_logits(path, sample, mask).double()
        noisy = logits / tau - (-(trace["u"][n] + 1e-8).log() + 1e-8).log() if tau else logits
        now["x0"] = noisy.argmax(-1)
        now["score"] = noisy.log_softmax(-1).gather(-1, now["x0"][..., None])[..., 0]
        now["u"] = trace["u_score"][n] if "u_score" in trace else torch.full(sample.shape, 0.5, dtype=torch.float64)
        assert torch.equal(now["x0"], trace["x0"][n])
        sample = scheduler.step(logits, t, sample, ratio, memory=memory).prev_sample
    assert torch.equal(sample, trace["final"])


# --- FreeCorrection ---------------------------------------------------------------------------------------------------


def corrects(path: Path) -> bool:
    return "remask" in settings_of(path)["function"]


def code_logits(path: Path, x: Tensor, settings: dict[str, str], places: Tensor) -> Tensor:
    """Of the codes alone, guided as theirs: `(1 + w) cond - w uncond`."""
    mask, guidance = int(settings["mask_token_id"]), float(settings.get("cfg_scale", 0))
    logits = toy_logits(path, x, mask, "toy_cond")
    if guidance:
        unconditional = load_file(path.parent / "input.safetensors")["uncon_ids"]
        rest = x[:, int(settings["code_start"]) - 2 :]
        without = toy_logits(path, torch.cat([unconditional, rest], 1), mask, "toy_uncond")
        without = torch.nn.functional.pad(without[:, unconditional.shape[1] :], (0, 0, x.shape[1] - rest.shape[1], 0))
        logits = (1 + guidance) * logits - guidance * without
    logits = logits[:, places]
    logits[..., : int(settings["text_vocab_size"])] = -torch.inf
    return logits


@pytest.mark.parametrize("path", later_cases("freecorrection/trace_*", corrects))
def test_free_correction(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Means over a token's life, and what each step takes back and how much it reveals, from what theirs saw.

    Which masks are revealed is fed from the record. Where theirs leaves its schedule (it counts on a step's corrections
    and makes none at exactly 0.4 of the run) ours stays on it, so these two steps are not compared.
    """
    trace, settings = read(path)
    mask, num_steps = int(settings["mask_token_id"]), int(settings["timesteps"])
    places = (load_file(path.parent / "input.safetensors")["prompt"][0] == mask).nonzero()[:, 0]
    scheduler = FreeCorrectionScheduler(
        mask, corrected_shares=[n / len(places) for n in (16, 8, 4)], order="drawn", choice_temperature=0.0
    )
    scheduler.set_timesteps(num_steps)
    now: dict[str, Tensor] = {}
    monkeypatch.setattr(Marginals, "draw_all", lambda m, wanted, uniform: (now["tokens"], now["scores"]))
    monkeypatch.setattr(Marginals, "draw", lambda m, rows, uniform, beta: now["tokens"].flatten()[rows])
    means: list[Tensor] = []
    mean_with = LifeMemory.mean_with
    monkeypatch.setattr(LifeMemory, "mean_with", lambda *given: means.append(mean_with(*given)) or means[-1])
    states = [*trace["x_in"], trace["x_final"][0]]
    planned = scheduler.planned_counts(torch.tensor([len(places)]))[:, 0].cumsum(0)
    left = [len(places), *(len(places) - planned).tolist()]
    memory, none, compared, taken_back = scheduler.new_memory(), torch.zeros(1, len(places), dtype=torch.bool), 0, 0
    for n, (x, following) in enumerate(pairwise(states)):
        sample, after = x[None, places], following[None, places]
        now["tokens"], now["scores"] = after, torch.where(after == mask, -9.0, 0.0).double()
        logits = code_logits(path, x[None], settings, places)
        ours = scheduler.step(logits, scheduler.timesteps[n], sample, memory=memory, given=none).prev_sample
        if f"mean_confidence.{n:03d}" in trace:
            found = means[-1][sample != mask]
            torch.testing.assert_close(found, trace[f"mean_confidence.{n:03d}"], rtol=1e-5, atol=1e-6)
        if [int((state[places] == mask).sum()) for state in (x, following)] == left[n : n + 2]:
            assert torch.equal(ours, after)
            compared += 1
            taken_back += int(((sample != mask) & (after == mask)).sum())
    assert compared >= num_steps - 2
    assert taken_back > 0
