"""Likelihood and diversity of text samplers against the number of steps, with error bars over seeds.

    python benchmarks/text.py --dataset karpathy/tiny_shakespeare --output_dir out/text
    python benchmarks/text.py --dataset karpathy/tiny_shakespeare --output_dir out/text --resume   # after a stop
    python benchmarks/text.py --dataset karpathy/tiny_shakespeare --output_dir out/text --resume \\
        --tempered halton hybrid-0.25 hybrid-0.5 "hybrid-1>0" hybrid-uniform --steps 8 16

The judge is a Witten-Bell 6-gram of characters, fitted on the training split only. "nats" is minus its log-probability
of what was written, per character; the row "held-out text" says what real text of the same number and length scores.
A sampler that repeats itself lowers it, so the entropy of a sequence and the distinct n-grams of a set stand beside it:
a good sampler is near the held-out text in all of them. The distinct shares are of `--num_sequences` sequences.

"maskgit 4" is at choice temperature 4; "moment 4, 2 groups" with partial caching (`--num_substeps 2`), whose partial
passes the column "passes" does not count. Sequence i of seed s comes from its own generator, seeded
`s * num_sequences + i`: batches do not matter. Prints a table, writes `results.json` (after every cell) and `text.png`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from cells import Cell, run_cells, summarise, with_error
from passes import PassCounter, in_groups, partial_caching, parts
from torch import Tensor

from hf_maskdiff import (
    HaltonScheduler,
    HybridScheduler,
    MaskedDiffusionScheduler,
    MaskGITScheduler,
    MDLMPipeline,
    MomentScheduler,
    UniformScheduler,
)
from hf_maskdiff.evaluation.ngram import CharacterNGram
from hf_maskdiff.evaluation.text_data import load_documents
from hf_maskdiff.evaluation.text_metrics import distinct_n, sentence_entropy

# From what all share (mask, codebook, schedule, rounding); the second ones also from a choice temperature.
PLAIN: dict[str, Callable[..., MaskedDiffusionScheduler]] = {
    "uniform": UniformScheduler,
    "halton": HaltonScheduler,  # bit-reversed, on a sequence
}
TEMPERED: dict[str, Callable[..., MaskedDiffusionScheduler]] = {
    "uniform": UniformScheduler,
    "maskgit": MaskGITScheduler,
    "moment": MomentScheduler,
    "hybrid": lambda **config: HybridScheduler(**config, exploration_ratio=0.75),
}
# Beside those of the table: what lies between the bit-reversed and the moment order, and another exploration.
MIXTURES: dict[str, Callable[..., MaskedDiffusionScheduler]] = {
    "halton": HaltonScheduler,
    "hybrid-0.25": lambda **config: HybridScheduler(**config, exploration_ratio=0.25),
    "hybrid-0.5": lambda **config: HybridScheduler(**config, exploration_ratio=0.5),
    "hybrid-1>0": lambda **config: HybridScheduler(**config, exploration_ratio=(1.0, 0.0)),
    "hybrid-uniform": lambda **config: HybridScheduler(**config, exploration="uniform", exploration_ratio=0.75),
}
SHARED_KEYS = ("mask_token_id", "codebook_size", "masking_schedule", "rounding")
REFERENCE = "held-out text"
SETTINGS = ("pipeline", "dataset", "data_dir", "order", "num_sequences")
DISTINCT = (1, 2, 4)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipeline", default="pipelines/mdlm-shakespeare", help="folder or Hub name of the pipeline")
    parser.add_argument("--dataset", help="data set on the Hub, such as karpathy/tiny_shakespeare")
    parser.add_argument("--data_dir", help="instead: folder of .txt files")
    parser.add_argument("--order", type=int, default=6, help="of the judge's n-grams")
    parser.add_argument("--steps", type=int, nargs="+", default=[8, 16, 32, 64])
    parser.add_argument("--choice_temperatures", type=float, nargs="+", default=[4, 16])
    parser.add_argument("--plain", nargs="*", choices=PLAIN, default=list(PLAIN), help="at the model's temperature")
    parser.add_argument(
        "--tempered", nargs="*", choices=TEMPERED | MIXTURES, default=list(TEMPERED), help="at the others"
    )
    parser.add_argument("--num_substeps", type=int, nargs="+", default=[1], help="groups of partial caching, 1: none")
    parser.add_argument("--num_sequences", type=int, default=64, help="a cell and seed, of the model's length")
    parser.add_argument("--num_seeds", type=int, default=4)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--resume", action="store_true", help="keep the cells already in OUTPUT_DIR/results.json")
    return parser.parse_args(argv)


class Bench:
    """A pipeline, a judge and real text: what every cell needs."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.pipeline = MDLMPipeline.from_pretrained(args.pipeline).to("cuda" if torch.cuda.is_available() else "cpu")
        self.pipeline.set_progress_bar_config(disable=True)
        self.shared = {key: self.pipeline.scheduler.config[key] for key in SHARED_KEYS}
        source = {"dataset": args.dataset, "data_dir": args.data_dir}
        self.counter = PassCounter(self.pipeline.transformer, self.shared["mask_token_id"])
        self.judge = CharacterNGram(load_documents("train", **source), args.order)
        text = "\n".join(load_documents("test", **source))
        self.held_out = torch.tensor(self.pipeline.tokenizer(text, add_special_tokens=False, verbose=False).input_ids)

    def measure(self, sampler: str, steps: int, seed: int) -> dict[str, float]:
        sequences, cost = self.write(sampler, steps, seed) if steps else (self.real(seed), {"passes": 0, "seconds": 0})
        return {**self.score(sequences), **cost}

    def score(self, sequences: list[Tensor]) -> dict[str, float]:
        nats = [-fmean(self.judge.log_probs(text)) for text in self.pipeline.decode_sequences(sequences)]
        distinct = {f"distinct-{n}": distinct_n(sequences, n) for n in DISTINCT}
        return {"nats": fmean(nats), "entropy": sentence_entropy(sequences).mean().item(), **distinct}

    def real(self, seed: int) -> list[Tensor]:
        """Pieces of the held-out text, of the model's length, from places drawn by the seed."""
        length, generator = self.pipeline.transformer.config.model_length, torch.Generator().manual_seed(seed)
        starts = torch.randint(len(self.held_out) - length, (self.args.num_sequences,), generator=generator)
        return [self.held_out[start : start + length] for start in starts.tolist()]

    def write(self, sampler: str, steps: int, seed: int) -> tuple[list[Tensor], dict[str, float]]:
        """The seed's sequences, and what they cost."""
        name, num_substeps = parts(sampler)
        name, _, alpha = name.partition(" ")
        tempered = {"choice_temperature": float(alpha)} if alpha else {}
        self.pipeline.scheduler = (TEMPERED | MIXTURES if alpha else PLAIN)[name](**self.shared, **tempered)
        first, number = seed * self.args.num_sequences, self.args.num_sequences
        generators = [torch.Generator().manual_seed(first + i) for i in range(number)]
        self.counter.reset()
        sequences, started = [], time.perf_counter()
        with partial_caching(self.pipeline.transformer, num_substeps):
            for start in range(0, number, self.args.batch_size):
                batch = generators[start : start + self.args.batch_size]
                output = self.pipeline(
                    num_inference_steps=steps, num_return_sequences=len(batch), generator=batch, output_type="ids"
                )
                sequences += [sequence.cpu() for sequence in output.sequences]
        return sequences, {"seconds": time.perf_counter() - started, **self.counter.cost(number)}


def print_table(cells: list[dict[str, Any]]) -> None:
    names = [f"distinct-{n}" for n in DISTINCT]
    print(f"| sampler | steps | nats | entropy | {' | '.join(names)} | passes | seconds |")
    print(f"| --- | ---: | ---: | ---: |{' ---: |' * len(names)} ---: | ---: |")
    for (sampler, steps), row in summarise(cells).items():
        values = [with_error(row[name], 3) for name in ("nats", "entropy", *names)]
        print(
            f"| {sampler} | {steps or ''} | {' | '.join(values)} | {row['passes'][0]:.1f} | {row['seconds'][0]:.1f} |"
        )


def plot(cells: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    summary = summarise(cells)
    samplers = dict.fromkeys(sampler for sampler, steps in summary if steps)
    ticks = sorted({steps for _, steps in summary if steps})
    for name, axis in zip(("nats", "entropy"), axes, strict=True):
        axis.axhline(summary[REFERENCE, 0][name][0], color="grey", linestyle=":", label=REFERENCE)
        for sampler in samplers:
            points = [(steps, *row[name]) for (key, steps), row in summary.items() if key == sampler]
            x, y, error = zip(*sorted(points), strict=True)
            axis.errorbar(x, y, error, marker="o", markersize=3, capsize=3, label=sampler)
        axis.set(xscale="log", xlabel="steps")
        axis.set_xticks(ticks, labels=ticks)
        axis.set_xticks([], minor=True)
    axes[0].set_ylabel("nats a character under the n-gram judge")
    axes[1].set_ylabel("entropy of a sequence, nats")
    figure.legend(*axes[0].get_legend_handles_labels(), fontsize="small", loc="outside right upper")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    args = parse_args(argv)
    plain = [*args.plain, *(f"{name} {alpha:g}" for name in args.tempered for alpha in args.choice_temperatures)]
    samplers = [
        in_groups(sampler, num)
        for num in args.num_substeps
        for sampler in plain
        if num == 1 or not sampler.startswith("maskgit")
    ]
    # Seed by seed, so that a run that was stopped has a table with one seed less, not one with fewer rows.
    pairs = [(REFERENCE, 0), *((name, steps) for name in samplers for steps in args.steps)]
    wanted: list[Cell] = [(name, steps, seed) for seed in range(args.num_seeds) for name, steps in pairs]
    results = run_cells(args, SETTINGS, wanted, lambda: Bench(args).measure)
    print_table(results["cells"])
    plot(results["cells"], args.output_dir / "text.png")
    return results


if __name__ == "__main__":
    main()
