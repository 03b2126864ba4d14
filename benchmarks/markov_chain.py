r"""Judges samplers without model error: on a Markov chain whose conditionals are known for every mask pattern.

    python benchmarks/markov_chain.py --output_dir out/chain
    python benchmarks/markov_chain.py --output_dir out/chain --resume   # after a stop, or with more cells
    python benchmarks/markov_chain.py --length 256 --num_samples 500 --num_substeps 1 --steps 4 8 16 32 --samplers \
        "moment 16" "halton 16" "hybrid 16, halton 0.25" "hybrid 16, halton 0.5" "hybrid 16, halton 0.75" \
        "hybrid 16, halton 1>0" "hybrid 16, uniform 0.5" --output_dir out/chain256

The default is 64 positions and 8 tokens. The measures, for every sampler, number of steps and number of groups R:

nats: minus the log-probability of the samples under the chain, per token; a value below the chain's own entropy rate
    means that the samples are too likely.
entropy: entropy of the tokens within a sequence; a lower temperature reduces it.
pairs: KL divergence of the samples' adjacent pairs from the chain's, in nats, averaged over the positions. The value of
    the chain's own samples shows the bias due to the number of samples.
tempering, dependence: the two terms of the path's KL, in nats per token (docs/theory.md): the cost of drawing at a
    lower temperature, and that of drawing several tokens at once from their marginals. Their sum bounds the KL of the
    sequences. Not available for MaskGIT, whose choice of positions depends on the tokens, nor for those of
    second order and ancestral sampling.

"moment, 1" has choice temperature 1, constant over the run; in "moment 4" and the like it falls linearly to 0. Errors
are over seeds. Writes `results.json` after every cell, and `chain.png`.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from arguments import add_cell_arguments, new_parser
from cells import Row, Summary, run_cells, seed_by_seed, summarise
from plots import draw_over_steps, draw_references, figure, label_ends, set_ticks
from samplers import APART, HYBRIDS, SECOND_ORDER, Samplers, all_in_groups, described, parts
from tables import print_cells, with_error
from tqdm.auto import tqdm

from hf_maskdiff import (
    ConfidenceScheduler,
    HaltonScheduler,
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
SAMPLERS: Samplers = {
    "uniform": UniformScheduler,
    "uniform 4": partial(UniformScheduler, choice_temperature=4.0),
    "halton": HaltonScheduler,
    "confidence": ConfidenceScheduler,
    "maskgit 4": partial(MaskGITScheduler, choice_temperature=4.0),
    "moment 4": partial(MomentScheduler, choice_temperature=4.0),
    "moment 16": partial(MomentScheduler, choice_temperature=16.0),
    "moment, 1": partial(MomentScheduler, choice_temperature=1.0, choice_temperature_schedule="constant"),
    "hybrid 4": partial(HYBRIDS["halton 0.75"], choice_temperature=4.0),
    "hybrid 16": partial(HYBRIDS["halton 0.75"], choice_temperature=16.0),
}
# Those whose tokens are not drawn from the marginals of their pass, or whose rows may be finished before others.
NO_PATH = ("maskgit", *SECOND_ORDER)
# Further samplers: positions of a step apart, mixtures of two orders, other explorations, and second order.
MIXTURES: Samplers = {
    "halton 16": partial(HaltonScheduler, choice_temperature=16.0),
    "uniform 16": partial(UniformScheduler, choice_temperature=16.0),
    **SECOND_ORDER,
    **{f"{name} 16": partial(apart, choice_temperature=16.0) for name, apart in APART.items()},
    "uniform-apart-3": partial(UniformScheduler, min_distance=3),
    "confidence-apart-3": partial(ConfidenceScheduler, min_distance=3),
    **{f"hybrid 16, {name}": partial(hybrid, choice_temperature=16.0) for name, hybrid in HYBRIDS.items()},
}
COLUMNS: dict[str, Callable[[Row], str]] = {
    name: lambda row, name=name, digits=digits: with_error(row[name], digits) if name in row else ""
    for name, digits in {"nats": 4, "entropy": 3, "pairs": 4, "tempering": 4, "dependence": 4}.items()
}


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = new_parser(__doc__)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--num_states", type=int, default=8)
    parser.add_argument("--sharpness", type=float, default=2.0)
    parser.add_argument("--samplers", nargs="+", choices=[*SAMPLERS, *MIXTURES], default=list(SAMPLERS))
    parser.add_argument("--steps", type=int, nargs="+", default=[2, 4, 8, 16, 32, 64])
    parser.add_argument("--num_substeps", type=int, nargs="+", default=[1, 2, 4], help="groups per step")
    parser.add_argument("--num_samples", type=int, default=2000, help="per seed")
    parser.add_argument("--num_seeds", type=int, default=4)
    add_cell_arguments(parser)
    return parser.parse_args(argv)


class Bench:
    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.chain = MarkovChain.random(args.length, args.num_states, args.sharpness)

    @torch.inference_mode()
    def measure(self, sampler: str, steps: int, seed: int) -> dict[str, Any]:
        if not steps:
            return self.judge(self.chain.draw(self.args.num_samples, seed))
        name, num_substeps = parts(sampler)
        scheduler = (SAMPLERS | MIXTURES)[name](mask_token_id=self.chain.mask_token_id, masking_schedule="linear")
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
        if not name.startswith(NO_PATH):
            betas = [sharpness(scheduler, step).expand(len(samples)) for step in denoiser.steps]
            found = path_divergence(self.chain, [*denoiser.path, samples], betas)
            terms = {
                term: getattr(found, term).mean().item() / self.args.length for term in ("tempering", "dependence")
            }
        return {**self.judge(samples), **terms, "scheduler": described(scheduler)}

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


def plot(summary: Summary, path: Path, title: str = "Errors of samplers on a chain without model error") -> None:
    """Plot pairs and path KL against steps, without caching; the dotted line shows the chain's own samples."""
    shown = {key: row for key, row in summary.items() if parts(key[0])[1] == 1}
    with figure(path, title=title, figsize=(10.5, 5.2)) as page:
        left, right = page.subplots(1, 2)
        ends = {
            left: draw_over_steps(left, shown, lambda row: row["pairs"], yscale="log", ylabel="nats"),
            right: draw_over_steps(right, shown, path_kl, ylabel="nats per token"),
        }
        ends[left] += draw_references(left, shown, "pairs")
        left.set_title("Neighbouring tokens: KL from the chain's")
        right.set_title("Whole run: path KL (numbers: choice temperature)")
        right.set_ylim(bottom=0)
        set_ticks(left.yaxis, (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1))
        label_ends(page, ends)


def path_kl(row: Row) -> tuple[float, float] | None:
    return (row["tempering"][0] + row["dependence"][0], math.nan) if "tempering" in row else None


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    args = parse_args(argv)
    samplers = all_in_groups(args.samplers, args.num_substeps)
    pairs = [(REFERENCE, 0), *((name, steps) for name in samplers for steps in args.steps if steps <= args.length)]
    results = run_cells(args, SETTINGS, seed_by_seed(pairs, args.num_seeds), lambda: Bench(args).measure)
    print_cells(results["cells"], COLUMNS)
    plot(summarise(results["cells"]), args.output_dir / "chain.png")
    return results


if __name__ == "__main__":
    main()
