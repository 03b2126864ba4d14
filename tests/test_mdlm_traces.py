"""The published sampling loops of MDLM, replayed to the token with their stored draws through our model.

The loops stand here, in the tests alone: their draws are float32 Gumbel noise for every position and token, which is
what this package does without. What they share with it is under test: the model, its log-probabilities, the schedule.
Every run in the golden folder is a case; names, sizes and settings are its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from golden_data import cases, holds, read
from torch import Tensor

from hf_maskdiff import MDLMTransformer
from hf_maskdiff.evaluation.likelihood import subs_log_probs
from hf_maskdiff.masking import mask_ratio

Trace = dict[str, Tensor]


class Upstream:
    """The original's updates, with a count of model calls and a record of what the model was given."""

    def __init__(self, model: Callable[[Tensor], Tensor], mask: int) -> None:
        self.model, self.mask = model, mask
        self.inputs: list[Tensor] = []

    @classmethod
    def of(cls, folder: Path) -> Upstream:
        model = MDLMTransformer.from_pretrained(folder)
        return cls(lambda sample: model(sample).logits, model.config.vocab_size - 1)

    @torch.no_grad()
    def log_probabilities(self, sample: Tensor) -> Tensor:
        self.inputs.append(sample)
        return subs_log_probs(self.model(sample), sample, self.mask)

    def probabilities(self, sample: Tensor) -> Tensor:
        return self.log_probabilities(sample).exp()

    def draw(self, probs: Tensor, before: Tensor, after: Tensor, sample: Tensor, uniform: Tensor) -> Tensor:
        """One update from a share `before` of masks to a share `after`."""
        masses = probs * (before - after)
        masses[..., self.mask] = after
        return torch.where(sample == self.mask, largest(masses, uniform), sample)

    def finish(self, sample: Tensor) -> Tensor:
        return self.probabilities(sample).argmax(-1)


def largest(masses: Tensor, uniform: Tensor) -> Tensor:
    return (masses / (1e-10 - (uniform + 1e-10).log())).argmax(-1)


def noise(trace: Trace, arguments: dict[str, str], shape: tuple[int, ...]) -> Iterator[Tensor]:
    """The stored draws, or those of the seed, in their order."""
    if "u" in trace:
        yield from trace["u"]
    generator = torch.Generator().manual_seed(int(arguments["seed"]))
    while True:
        yield torch.rand(shape, generator=generator)


def by_schedule(t: Tensor) -> Tensor:
    return mask_ratio("linear", t) * (1 - 1e-3)  # the log-linear noise ends a little above none


def by_time(t: Tensor) -> Tensor:
    return mask_ratio("linear", t)


def is_update(path: Path) -> bool:
    """A run of plain updates: neither by the score, which has a draw for its last step, nor of windows."""
    return not holds("u_denoise")(path) and not holds("backbone_inputs")(path)


@pytest.mark.parametrize("path", cases("mdlm/trace_*", is_update))
def test_ancestral_updates(path: Path) -> None:
    trace, arguments = read(path)
    replay_updates(Upstream.of(path.parent), trace, arguments, reuses="_cache" in path.stem)


@pytest.mark.parametrize("path", cases("samplers/mdlm_*"))
def test_ancestral_updates_on_fixed_logits(path: Path) -> None:
    trace, arguments = read(path)
    upstream = Upstream(lambda sample: trace["logits"], int(arguments["mask_index"]))
    replay_updates(upstream, trace, arguments, reuses="_cache" in path.stem)


def replay_updates(upstream: Upstream, trace: Trace, arguments: dict[str, str], reuses: bool) -> None:
    """The update that reuses what the model said while no token changes counts by the time, the other by its noise."""
    share = by_time if reuses else by_schedule
    step = (1 - float(arguments["eps"])) / int(arguments["steps"])
    sample = torch.full_like(trace["final"], upstream.mask)
    draws = noise(trace, arguments, (*sample.shape, upstream.mask + 1))
    probs, hits = None, []
    for n, t in enumerate(trace["t"]):
        assert torch.equal(sample, trace["x_in"][n])
        hits.append(reuses and probs is not None)
        probs = upstream.probabilities(sample) if probs is None or not reuses else probs
        before, sample = sample, upstream.draw(probs, share(t), share(t - step), sample, next(draws))
        assert torch.equal(sample, trace["x_out"][n])
        probs = probs if torch.equal(sample, before) else None
    assert torch.equal(upstream.finish(sample), trace["final"])
    assert len(upstream.inputs) == int(trace["nfe"])
    assert hits == trace["cache_hit"].tolist()


@pytest.mark.parametrize("path", cases("mdlm/trace_*", holds("u_denoise")))
def test_updates_by_the_score(path: Path) -> None:
    """The "analytic" sampler: how much likelier each token is than the mask, carried back over a step of the noise."""
    trace, arguments = read(path)
    upstream, step = Upstream.of(path.parent), (1 - float(arguments["eps"])) / int(arguments["steps"])
    mask, sample = upstream.mask, torch.full_like(trace["final"], upstream.mask)

    def noise_at(t: Tensor) -> Tensor:
        return -torch.log1p(-by_schedule(t))

    def masses(sample: Tensor, sigma: Tensor, change: Tensor) -> Tensor:
        masked = (sample == mask)[..., None]
        probs = upstream.probabilities(sample)  # of known tokens: 1 at their own
        score = torch.where(masked, probs / sigma.expm1(), probs)
        score[..., mask] = torch.where(masked[..., 0], 1.0, sigma.expm1())
        back = score * change.exp()
        back[..., mask] += (1 - change.exp()) * score.sum(-1)
        stays = F.one_hot(sample, mask + 1) * (-change).exp()
        return back * (stays + masked * (1 - (-change).exp()))

    for n, t in enumerate(trace["t"]):
        assert torch.equal(sample, trace["x_in"][n])
        sigma = noise_at(t)
        sample = largest(masses(sample, sigma, sigma - noise_at(t - step)), trace["u"][n])
        assert torch.equal(sample, trace["x_out"][n])
    sigma = noise_at(torch.tensor(float(arguments["eps"])))
    last = masses(sample, sigma, sigma)
    last[..., mask] = 0
    assert torch.equal(largest(last, trace["u_denoise"]), trace["final"])
    assert len(upstream.inputs) == int(trace["nfe"])


@pytest.mark.parametrize("path", cases("mdlm/trace_*", holds("backbone_inputs")))
def test_windows_from_left_to_right(path: Path) -> None:
    trace, arguments = read(path)
    upstream, step = Upstream.of(path.parent), float(arguments["dt"])
    stride, draws, pieces, known, changes = int(arguments["stride_length"]), iter(trace["u"]), [], None, 0
    num_rows, length = trace["backbone_inputs"].shape[1:]
    for _ in range(int(arguments["num_strides"]) + 1):
        sample, probs = torch.full((num_rows, length), upstream.mask), None
        if known is not None:
            sample[:, : length - stride] = known
        for i in range(int(1 / step) + 1):
            t = torch.tensor(1 - i * step)
            probs = upstream.probabilities(sample) if probs is None else probs
            before, sample = sample, upstream.draw(probs, t, t - step, sample, next(draws))
            changed = not torch.equal(sample, before)
            changes, probs = changes + changed, None if changed else probs
        sample = upstream.finish(sample)
        pieces, known = [*pieces, sample[:, :stride]], sample[:, stride:]
    assert torch.equal(torch.cat([*pieces, known], -1), trace["tokens"])
    assert torch.equal(torch.stack(upstream.inputs), trace["backbone_inputs"])
    assert changes == int(trace["sampling_steps"])
