"""The published sampling loops of MDLM, replayed to the token with their stored draws through our model.

The loops stand here, in the tests alone: their draws are float32 Gumbel noise for every position and token, which is
what this package does without. What they share with it is under test: the model, its log-probabilities, the schedule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from hf_maskdiff import MDLMTransformer
from hf_maskdiff.evaluation.likelihood import subs_log_probs
from hf_maskdiff.masking import mask_ratio

Trace = dict[str, Tensor]


class Upstream:
    """The original's updates, with a count of model calls and a record of what the model was given."""

    def __init__(self, folder: Path) -> None:
        self.model = MDLMTransformer.from_pretrained(folder)
        self.mask = self.model.config.vocab_size - 1
        self.inputs: list[Tensor] = []

    @torch.no_grad()
    def probabilities(self, sample: Tensor) -> Tensor:
        self.inputs.append(sample)
        return subs_log_probs(self.model(sample).logits, sample, self.mask).exp()

    def draw(self, probs: Tensor, before: Tensor, after: Tensor, sample: Tensor, uniform: Tensor) -> Tensor:
        """One update from a share `before` of masks to a share `after`."""
        masses = probs * (before - after)
        masses[..., self.mask] = after
        drawn = (masses / (1e-10 - (uniform + 1e-10).log())).argmax(-1)
        return torch.where(sample == self.mask, drawn, sample)

    def finish(self, sample: Tensor) -> Tensor:
        return self.probabilities(sample).argmax(-1)


def load(path: Path) -> tuple[Trace, dict[str, str]]:
    with safe_open(path, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118


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


@pytest.mark.parametrize(
    ("name", "share", "reuses"),
    [("ddpm", by_schedule, False), ("ddpm_cache", by_time, True), ("ddpm_cache_60", by_time, True)],
)
def test_ancestral_updates(golden_folder: Path, name: str, share: Callable[[Tensor], Tensor], reuses: bool) -> None:
    trace, arguments = load(golden_folder / "mdlm" / f"trace_{name}.safetensors")
    upstream, steps = Upstream(golden_folder / "mdlm"), int(arguments["steps"])
    step = (1 - float(arguments["eps"])) / steps
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


def test_windows_from_left_to_right(golden_folder: Path) -> None:
    trace, arguments = load(golden_folder / "mdlm" / "trace_semi_ar.safetensors")
    upstream, step = Upstream(golden_folder / "mdlm"), float(arguments["dt"])
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
