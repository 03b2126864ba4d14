"""Runs of MDLM's own samplers, token by token: our model and pure functions under the original loops, with their draws.

Every test follows a whole run of the original from the first mask to the text: each state, each model call. Only the
loops are here; the numbers in them come from the package.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from hf_maskdiff import MDLMTransformer
from hf_maskdiff.evaluation.likelihood import subs_log_probs
from hf_maskdiff.masking import mask_ratio
from hf_maskdiff.models.transformer_mdlm import log_linear_noise
from hf_maskdiff.sampling import gumbel

# How much is masked at a time, as each sampler computes it.
MASKED_SHARE: dict[str, Callable[[Tensor], Tensor]] = {
    "ddpm": lambda t: -torch.expm1(-log_linear_noise(t)),
    "ddpm_cache": lambda t: mask_ratio("linear", t),
}


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


class Run:
    """What a run of the original does, with every model input and every state it passed through."""

    def __init__(self, model: Callable[[Tensor], Tensor], mask_token_id: int, draws: Sequence[Tensor]) -> None:
        self.model, self.mask_token_id, self.draws = model, mask_token_id, iter(draws)
        self.model_inputs: list[Tensor] = []
        self.states: list[Tensor] = []
        self.changed: list[bool] = []

    def log_probs(self, sample: Tensor) -> Tensor:
        self.model_inputs.append(sample)
        return subs_log_probs(self.model(sample), sample, self.mask_token_id)

    def fill_in(self, sample: Tensor, before: Tensor, after: Tensor, reuse: bool) -> Tensor:
        """Step by step from the masked shares `before` to those `after`, float64 `(steps,)`, and all that is left.

        A masked position stays so with weight `after`, and takes token v with weight `(before - after) p(v)`.
        """
        log_probs = None
        for revealed, kept in zip(before - after, after, strict=True):
            if log_probs is None:
                log_probs = self.log_probs(sample)
            weights = log_probs.double() + revealed.log()
            weights[..., self.mask_token_id] = kept.clamp(min=0).log()
            drawn = (weights + gumbel(next(self.draws).double().clamp(min=1e-10))).argmax(-1)
            self.states.append(torch.where(sample == self.mask_token_id, drawn, sample))
            self.changed.append(not torch.equal(self.states[-1], sample))
            sample = self.states[-1]
            if self.changed[-1] or not reuse:
                log_probs = None
        return self.log_probs(sample).argmax(-1)


@pytest.fixture(scope="module")
def model(golden_folder: Path) -> MDLMTransformer:
    return MDLMTransformer.from_pretrained(golden_folder / "mdlm")


@torch.no_grad()
@pytest.mark.parametrize(
    ("trace", "sampler"),
    [
        ("mdlm/trace_ddpm", "ddpm"),
        ("mdlm/trace_ddpm_cache", "ddpm_cache"),
        ("mdlm/trace_ddpm_cache_60", "ddpm_cache"),
        ("samplers/mdlm_ddpm_fixed_logits", "ddpm"),
        ("samplers/mdlm_ddpm_cache_fixed_logits", "ddpm_cache"),
    ],
)
def test_a_run_is_the_original_s(golden_folder: Path, model: MDLMTransformer, trace: str, sampler: str) -> None:
    golden, arguments = read(golden_folder / f"{trace}.safetensors")
    steps, eps = int(arguments["steps"]), float(arguments["eps"])
    times = torch.linspace(1, eps, steps + 1)[:-1].double()
    torch.testing.assert_close(times.float(), golden["t"])
    mask_token_id = int(arguments.get("mask_index", model.config.vocab_size - 1))
    fixed = golden.get("logits")
    denoiser = (lambda ids: model(ids).logits) if fixed is None else (lambda ids: fixed)
    if "u" in golden:
        draws = golden["u"]
    else:  # the same generator, in the same order
        torch.manual_seed(int(arguments["seed"]))
        draws = torch.stack([torch.rand(*golden["final"].shape, mask_token_id + 1) for _ in range(steps)])

    run, share = Run(denoiser, mask_token_id, draws), MASKED_SHARE[sampler]
    start = torch.full_like(golden["final"], mask_token_id)
    final = run.fill_in(start, share(times), share(times - (1 - eps) / steps), reuse=sampler == "ddpm_cache")

    assert torch.equal(torch.stack([start, *run.states[:-1]]), golden["x_in"])
    assert torch.equal(torch.stack(run.states), golden["x_out"])
    assert torch.equal(final, golden["final"])
    assert not (final == mask_token_id).any()
    assert len(run.model_inputs) == golden["nfe"]
    # A call is spared where the step before changed nothing in any row.
    assert len(run.model_inputs) == steps + 1 - int(golden["cache_hit"].sum())
    if sampler == "ddpm_cache":
        assert [not changed for changed in run.changed[:-1]] == golden["cache_hit"][1:].tolist()


@torch.no_grad()
def test_a_run_of_sliding_windows_is_the_original_s(golden_folder: Path, model: MDLMTransformer) -> None:
    golden, arguments = read(golden_folder / "mdlm" / "trace_semi_ar.safetensors")
    stride, num_strides = int(arguments["stride_length"]), int(arguments["num_strides"])
    mask_token_id, length = model.config.vocab_size - 1, golden["backbone_inputs"].shape[-1]
    dt = torch.tensor(float(arguments["dt"]), dtype=torch.float64)
    # The last update of a window starts at time 0 and goes below it.
    times = 1 - dt * torch.arange(int(1 / dt) + 1)
    before, after = (MASKED_SHARE["ddpm_cache"](t) for t in (times, times - dt))

    run = Run(lambda ids: model(ids).logits, mask_token_id, golden["u"])
    known = torch.empty(int(arguments["n_samples"]), 0, dtype=torch.int64)
    written = [known]
    for _ in range(num_strides + 1):
        window = torch.nn.functional.pad(known, (0, length - known.shape[1]), value=mask_token_id)
        filled = run.fill_in(window, before, after, reuse=True)
        written.append(filled[:, :stride])
        known = filled[:, stride:]
    assert torch.equal(torch.cat([*written, known], 1), golden["tokens"])
    assert torch.equal(torch.stack(run.model_inputs), golden["backbone_inputs"])
    assert len(run.model_inputs) == golden["nfe"]
    assert sum(run.changed) == golden["sampling_steps"]
