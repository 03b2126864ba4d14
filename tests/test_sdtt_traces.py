"""SDTT's published runs, replayed to the token with their stored draws through our model.

The loops stand here, in the tests alone, as those of MDLM do: draws of float32 for every position and token.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from golden_data import later_cases, read
from test_mdlm_traces import Upstream, by_schedule, largest
from torch import Tensor

from hf_maskdiff.evaluation.likelihood import subs_log_probs


def recorded(path: Path) -> tuple[dict[str, Tensor], dict[str, str], Upstream, Tensor]:
    """A run, the model that it is of, and the tokens that it began with."""
    trace, arguments = read(path)
    upstream = Upstream.of(path.parent)
    start = trace["x_in"][0]
    known = torch.zeros_like(start, dtype=torch.bool)
    known[:, : len(trace.get("prompt", []))] = True
    known[:, 0] |= arguments.get("add_bos") == "True"
    known[:, -1] |= arguments.get("add_eos") == "True"
    assert torch.equal(start != upstream.mask, known)
    return trace, arguments, upstream, start


def noise_at(t: Tensor) -> Tensor:
    return -torch.log1p(-by_schedule(t))


def is_of(sampler: str) -> object:
    return lambda path: read(path)[1].get("sampler", "ancestral") == sampler


@pytest.mark.parametrize("path", later_cases("sdtt/*/trace_*", is_of("ancestral")))
def test_ancestral_runs(path: Path) -> None:
    """A pass in every step; a step puts back what the draw has made of the prompt."""
    trace, arguments, upstream, sample = recorded(path)
    times = torch.linspace(1, float(arguments["sampling_eps"]), int(arguments["num_steps"]) + 1)
    for n, (t, s) in enumerate(pairwise(times)):
        assert torch.equal(sample, trace["x_in"][n])
        before, after = (1 - (-noise_at(time)).exp() for time in (t, s))  # by_schedule, but for rounding
        masses = upstream.probabilities(sample) * (before - after)
        masses[..., upstream.mask] = after
        masked = sample == upstream.mask
        torch.testing.assert_close(masses[..., upstream.mask], trace["q_mask"][n], rtol=1e-5, atol=0)
        torch.testing.assert_close(masses[..., :-1].amax(-1)[masked], trace["q_max"][n][masked], rtol=1e-4, atol=1e-8)
        sample = torch.where(masked, largest(masses, trace["u"][n]), sample)
    if bool((sample == upstream.mask).any()):
        sample = upstream.finish(sample)
    assert torch.equal(sample, trace["final"])
    assert len(upstream.inputs) == int(trace["nfe"])
    assert torch.equal(torch.stack(upstream.inputs), trace["x_in"])


@pytest.mark.parametrize("path", later_cases("sdtt/*/trace_*", is_of("analytic")))
def test_runs_by_the_score(path: Path) -> None:
    """How much likelier each token is than the mask, carried back over a step of the noise."""
    trace, arguments, upstream, sample = recorded(path)
    times = torch.linspace(1, float(arguments["sampling_eps"]), int(arguments["num_steps"]) + 1)
    mask = upstream.mask
    for n, (t, s) in enumerate(pairwise(times)):
        assert torch.equal(sample, trace["x_in"][n])
        sigma, change = noise_at(t), noise_at(t) - noise_at(s)
        upstream.inputs.append(sample)
        with torch.no_grad():
            probs = subs_log_probs(upstream.model(sample), sample, mask).exp()
        masked = (sample == mask)[..., None]
        score = torch.where(masked, probs / sigma.expm1(), probs)
        score[..., mask] = torch.where(masked[..., 0], 1.0, sigma.expm1())
        back = score * change.exp()
        back[..., mask] += (1 - change.exp()) * score.sum(-1)
        stays = torch.nn.functional.one_hot(sample, mask + 1) * (-change).exp()
        masses = back * (stays + masked * (1 - (-change).exp()))
        rows = masked[..., 0]
        torch.testing.assert_close(masses[..., mask][rows], trace["q_mask"][n][rows], rtol=1e-5, atol=1e-6)
        sample = largest(masses, trace["u"][n])
    assert torch.equal(sample, trace["final"])
    assert len(upstream.inputs) == int(trace["nfe"])
