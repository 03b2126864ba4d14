r"""Samplers judged without any model's error: on a Markov chain whose conditionals are known for every mask pattern.

    python benchmarks/markov_chain.py --output_dir out/chain
    python benchmarks/markov_chain.py --output_dir out/chain --resume   # after a stop, or with more cells
    python benchmarks/markov_chain.py --length 256 --num_samples 500 --num_substeps 1 --steps 4 8 16 32 --samplers \
        "moment 16" "halton 16" "hybrid 16, halton 0.25" "hybrid 16, halton 0.5" "hybrid 16, halton 0.75" \
        "hybrid 16, halton 1>0" "hybrid 16, uniform 0.5" --output_dir out/chain256

64 positions, 8 tokens unless told otherwise. For every sampler, number of steps and number of groups R:

nats: minus the log-probability a token that the chain gives to what was drawn; below the chain's own entropy rate the
    samples are too likely.
entropy: of the tokens within a sequence; its fall is what a lowered temperature costs.
pairs: KL of the samples' neighbouring pairs from the chain's, in nats, averaged over the places. The chain's own
    samples show what their number adds.
tempering, dependence: the two terms of the path's KL, in nats a token (docs/theory.md): what drawing at a lower
    temperature costs, and what drawing several tokens at once from their marginals costs. Their sum bounds the KL of
    the sequences. Not for MaskGIT, whose choice of positions reads the tokens.

"moment, 1" is at choice temperature 1, constant over the run; "moment 4" and the others anneal linearly. Errors are
over seeds. Writes `results.json` after every cell, and `chain.png`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from cells import Cell, run_cells, summarise, with_error
from passes import in_groups, parts
from tqdm.auto import tqdm

from hf_maskdiff import (
    ConfidenceScheduler,
    HaltonScheduler,
    HybridScheduler,
    MaskedDiffusionScheduler,
    MaskGITScheduler,
    MomentScheduler,
    PartialCacheConfig,
    UniformScheduler,
)
from hf_maskdiff.evaluation.markov_chain import ChainDenoiser, MarkovChain, bigram_divergence, path_divergence
from hf_maskdiff.evaluation.text_metrics import sentence_entropy
from hf_maskdiff.pipelines import denoise

REFERENCE = "the chain itself"
SETTINGS = ("length", "num_states", "sharpness", "num_samples")
SAMPLERS: dict[str, Callable[[dict[str, Any]], MaskedDiffusionScheduler]] = {
    "uniform": lambda shared: UniformScheduler(**shared),
    "uniform 4": lambda shared: UniformScheduler(**shared, choice_temperature=4.0),
    "halton": lambda shared: HaltonScheduler(**shared),
    "confidence": lambda shared: ConfidenceScheduler(**shared),
    "maskgit 4": lambda shared: MaskGITScheduler(**shared, choice_temperature=4.0),
    "moment 4": lambda shared: MomentScheduler(**shared, choice_temperature=4.0),
    "moment 16": lambda shared: MomentScheduler(**shared, choice_temperature=16.0),
    "moment, 1": lambda shared: MomentScheduler(
        **shared, choice_temperature=1.0, choice_temperature_schedule="constant"
    ),
    "hybrid 4": lambda shared: HybridScheduler(**shared, exploration_ratio=0.75, choice_temperature=4.0),
    "hybrid 16": lambda shared: HybridScheduler(**shared, exploration_ratio=0.75, choice_temperature=16.0),
}
# Beside those of the table: what lies between the bit-reversed and the moment order, and other explorations.
MIXTURES: dict[str, Callable[[dict[str, Any]], MaskedDiffusionScheduler]] = {
    "halton 16": lambda shared: HaltonScheduler(**shared, choice_temperature=16.0),
    "uniform 16": lambda shared: UniformScheduler(**shared, choice_temperature=16.0),
    **{
        f"hybrid 16, {order} {name}": lambda shared, order=order, ratio=ratio: HybridScheduler(
            **shared, exploration=order, exploration_ratio=ratio, choice_temperature=16.0
        )
        for order in ("halton", "uniform")
        for name, ratio in {"0.25": 0.25, "0.5": 0.5, "0.75": 0.75, "1>0": (1.0, 0.0)}.items()
    },
}
MEASURES = {"nats": 4, "entropy": 3, "pairs": 4, "tempering": 4, "dependence": 4}


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--num_states", type=int, default=8)
    parser.add_argument("--sharpness", type=float, default=2.0)
    parser.add_argument("--samplers", nargs="+", choices=[*SAMPLERS, *MIXTURES], default=list(SAMPLERS))
    parser.add_argument("--steps", type=int, nargs="+", default=[2, 4, 8, 16, 32, 64])
    parser.add_argument("--num_substeps", type=int, nargs="+", default=[1, 2, 4], help="R")
    parser.add_argument("--num_samples", type=int, default=2000, help="a cell and seed")
    parser.add_argument("--num_seeds", type=int, default=4)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--resume", action="store_true", help="keep the cells already in OUTPUT_DIR")
    return parser.parse_args(argv)


class Bench:
    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.chain = MarkovChain.random(args.length, args.num_states, args.sharpness)

    @torch.inference_mode()
    def measure(self, sampler: str, steps: int, seed: int) -> dict[str, float]:
        if not steps:
            return self.judge(self.chain.draw(self.args.num_samples, seed))
        name, num_substeps = parts(sampler)
        scheduler = (SAMPLERS | MIXTURES)[name](
            {"mask_token_id": self.chain.mask_token_id, "masking_schedule": "linear"}
        )
        scheduler.set_timesteps(steps)
        denoiser = ChainDenoiser(self.chain)
        samples = denoise(
            denoiser,
            scheduler,
            denoiser.start(self.args.num_samples),
            torch.Generator().manual_seed(seed),
            partial_cache=PartialCacheConfig(num_substeps, full_pass_threshold=1.0),
            progress_bar=partial(tqdm, disable=True),
            on_step_end=lambda i, t, sample: sample,
        )
        terms = {}
        if not name.startswith("maskgit"):
            betas = [sharpness(scheduler, step).expand(len(samples)) for step in denoiser.steps]
            found = path_divergence(self.chain, [*denoiser.path, samples], betas)
            terms = {
                term: getattr(found, term).mean().item() / self.args.length for term in ("tempering", "dependence")
            }
        return self.judge(samples) | terms

    def judge(self, samples: torch.Tensor) -> dict[str, float]:
        return {
            "nats": -self.chain.log_evidence(samples).mean().item() / self.args.length,
            "entropy": sentence_entropy(list(samples)).mean().item(),
            "pairs": bigram_divergence(samples, self.chain).item(),
        }


def sharpness(scheduler: MaskedDiffusionScheduler, step: int) -> torch.Tensor:
    """Inverse temperature of a step's draws, float64 scalar: 1 without a choice temperature, and in the last step."""
    alpha, steps = scheduler.config.get("choice_temperature"), scheduler.num_inference_steps
    if alpha is None or step == steps - 1:
        return torch.ones((), dtype=torch.float64)
    if scheduler.config.choice_temperature_schedule == "linear":
        alpha *= 1 - (step + 1) / steps
    return torch.tensor(1 + 1 / alpha, dtype=torch.float64)


def print_table(cells: list[dict[str, Any]]) -> None:
    print(f"| sampler | steps | {' | '.join(MEASURES)} |")
    print(f"| --- | ---: |{' ---: |' * len(MEASURES)}")
    for (sampler, steps), row in summarise(cells).items():
        values = [with_error(row[name], digits) if name in row else "" for name, digits in MEASURES.items()]
        print(f"| {sampler} | {steps or ''} | {' | '.join(values)} |")


def plot(cells: list[dict[str, Any]], path: Path) -> None:
    """Pairs and path KL against steps, uncached; the dotted line is the chain's own samples."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    summary = summarise(cells)
    names = dict.fromkeys(sampler for sampler, steps in summary if steps and parts(sampler)[1] == 1)
    ticks = sorted({steps for _, steps in summary if steps})
    axes[0].axhline(summary[REFERENCE, 0]["pairs"][0], color="grey", linestyle=":", label=REFERENCE)
    for name in names:
        rows = sorted((steps, row) for (sampler, steps), row in summary.items() if sampler == name)
        x = [steps for steps, _ in rows]
        for axis, measures in zip(axes, (("pairs",), ("tempering", "dependence")), strict=True):
            if all(measure in row for _, row in rows for measure in measures):
                y = [sum(row[measure][0] for measure in measures) for _, row in rows]
                axis.plot(x, y, marker="o", markersize=3, label=name)
    for axis, label in zip(axes, ("KL of neighbouring pairs, nats", "path KL, nats a token"), strict=True):
        axis.set(xscale="log", yscale="log", xlabel="steps", ylabel=label)
        axis.set_xticks(ticks, labels=ticks)
        axis.set_xticks([], minor=True)
    figure.legend(*axes[0].get_legend_handles_labels(), fontsize="small", loc="outside right upper")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    args = parse_args(argv)
    samplers = [
        in_groups(sampler, num)
        for num in args.num_substeps
        for sampler in args.samplers
        if num == 1 or not sampler.startswith("maskgit")
    ]
    pairs = [(REFERENCE, 0), *((name, steps) for name in samplers for steps in args.steps if steps <= args.length)]
    wanted: list[Cell] = [(name, steps, seed) for seed in range(args.num_seeds) for name, steps in pairs]
    results = run_cells(args, SETTINGS, wanted, lambda: Bench(args).measure)
    print_table(results["cells"])
    plot(results["cells"], args.output_dir / "chain.png")
    return results


if __name__ == "__main__":
    main()
