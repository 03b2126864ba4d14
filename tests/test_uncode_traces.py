"""PC-Sampler, later called Uncode, as its authors run it: scores and tokens. Each run in the golden folder is a case.

Not replayed: the runs at a temperature, in which the original orders positions by the probability of drawn tokens, and
its variant in which certainty and place are added.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from golden_data import later_cases, read, settings_of
from torch import Tensor

from hf_maskdiff import ConfidenceScheduler
from hf_maskdiff.orders import log_calibrated


def is_greedy(path: Path) -> bool:
    settings = settings_of(path)
    return settings["function"] == "generate_with_pc_sampler" and not float(settings.get("temperature", 0))


def model(folder: Path, mask: int, guidance: float, prompt_length: int) -> object:
    """The table that stands for a model; guidance compares it with the prompt masked."""
    tables = {name.removeprefix("toy."): table for name, table in read(folder / "toy.safetensors")[0].items()}

    def logits(sample: Tensor) -> Tensor:
        padded = torch.nn.functional.pad(sample, (1, 1), value=mask)
        return tables["base"] + tables["left"][padded[:, :-2]] + tables["right"][padded[:, 2:]]

    def guided(sample: Tensor) -> Tensor:
        with_prompt = logits(sample)
        if not guidance:
            return with_prompt
        hidden = sample.clone()
        hidden[:, :prompt_length] = mask
        without = logits(hidden)
        return without + (guidance + 1) * (with_prompt - without)

    return guided


@pytest.mark.parametrize("path", later_cases("uncode/trace_*", is_greedy))
def test_runs(path: Path) -> None:
    trace, settings = read(path)
    prior = read(path.parent / "baseline.safetensors")[0]["frequency"]
    mask, block, length = (int(settings[name]) for name in ("mask_id", "block_length", "gen_length"))
    start, blocks = trace["prompt"].shape[1], length // block
    logits_of = model(path.parent, mask, float(settings.get("cfg_scale", 0)), start)
    scheduler = ConfidenceScheduler(
        mask_token_id=mask,
        masking_schedule="linear",
        rounding="even",
        token_temperature=0,
        token_prior=prior,
        prior_limit=float(settings["alpha"]),
        position_decay=float(settings["lambd"]),
    )
    scheduler.set_timesteps(int(settings["steps"]) // blocks)
    states = [*trace["x_in"].long()[:, None], trace["final"].long()]
    step = 0
    for first in range(start, start + length, block):
        for t in scheduler.timesteps:
            whole = slice(first, first + block)
            logits, tokens, recorded = logits_of(states[step])[:, whole], states[step][:, whole], states[step + 1]
            marginals, context = scheduler.start_step(logits, t, tokens, 1.0, None)
            masked = tokens == mask
            scores = scheduler.score_positions(marginals, context).exp().double()
            torch.testing.assert_close(scores[masked], trace["score"][step][None][masked].double(), rtol=1e-5, atol=0)
            taken = scheduler.step(logits, t, tokens).prev_sample
            same = taken == recorded[:, whole]
            if not same.all():  # a tie, which the original breaks in no fixed way and ours by the place
                assert settings["lambd"] == "0.0"
                assert (scores[~same] == float(settings["alpha"])).all()
                chosen = torch.where(recorded[:, whole] == mask, taken, recorded[:, whole])  # by either
                assert torch.equal(chosen[~same], logits.argmax(-1)[~same])
            step += 1
    assert step == len(states) - 1


@pytest.mark.parametrize("path", later_cases("uncode/baseline.safetensors"))
def test_the_order_is_another_without_the_prior(path: Path) -> None:
    """So that the runs above could tell."""
    prior = read(path)[0]["frequency"]
    block = 3 * torch.randn(200, len(prior), generator=torch.Generator().manual_seed(0))
    surprisal = (prior + 1e-9).log().neg()
    calibrated = log_calibrated(block.clone(), surprisal, 10.0)
    plain = block.log_softmax(-1).amax(-1)
    assert (calibrated.argsort() != plain.argsort()).float().mean() > 0.5
