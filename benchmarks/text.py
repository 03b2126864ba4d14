"""Likelihood and diversity of text samplers against the number of steps, with error bars over seeds.

    python benchmarks/text.py --dataset karpathy/tiny_shakespeare --output_dir out/text
    python benchmarks/text.py --dataset karpathy/tiny_shakespeare --output_dir out/text --resume   # after a stop
    python benchmarks/text.py --dataset karpathy/tiny_shakespeare --output_dir out/text --resume \\
        --tempered hybrid-0.25 hybrid-0.5 "hybrid-1>0" hybrid-uniform --steps 8 16

The judge is a character 6-gram model with Witten-Bell smoothing, fitted on the training split only. "nats" is minus the
log-probability per character that it gives to the generated text; the row "held-out text" scores as many real texts of
the same length. Repetition lowers "nats", so the entropy of a sequence and the distinct n-grams of a set are shown too:
a good sampler is close to the held-out text in all of them. The distinct shares are of `--num_sequences` sequences.

"maskgit 4" means choice temperature 4; "moment 4, 2 groups" means partial caching with `--num_substeps 2`, whose
partial passes are not counted in the column "passes". Sequence i of seed s comes from its own generator, seeded with
`s * num_sequences + i`, so the batch size does not matter. Prints a table, and writes `results.json` (after every cell)
and `text.png`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from arguments import add_cell_arguments, new_parser
from cells import Row, Summary, run_cells, seed_by_seed, summarise
from looks import choice_temperature
from passes import NeededPasses, draw_ids, draw_set, generators_from, open_pipeline, partial_caching
from plots import draw_over_steps, draw_references, figure, label_ends
from samplers import (
    AHEAD,
    APART,
    HYBRIDS,
    ORDERS,
    SECOND_ORDER,
    Samplers,
    all_in_groups,
    described,
    parts,
    shared_config,
)
from tables import print_cells, with_error
from torch import Tensor

from hf_maskdiff import HaltonScheduler, MaskGITScheduler, MDLMPipeline, MomentScheduler, UniformScheduler
from hf_maskdiff.evaluation.ngram import CharacterNGram
from hf_maskdiff.evaluation.text_data import load_documents
from hf_maskdiff.evaluation.text_metrics import distinct_n, sentence_entropy

# Made from the shared settings (mask, codebook, schedule, rounding); tempered ones also take a choice temperature.
PLAIN: Samplers = {
    "uniform": UniformScheduler,
    "halton": HaltonScheduler,  # the bit-reversed order on a sequence
}
TEMPERED: Samplers = {
    "uniform": UniformScheduler,
    "maskgit": MaskGITScheduler,
    "moment": MomentScheduler,
    "hybrid": HYBRIDS["halton 0.75"],
    "halton": HaltonScheduler,
}
# Further samplers: mixtures of the bit-reversed and the moment order, and another exploration.
MIXTURES: Samplers = {
    **{f"hybrid-{ratio}": HYBRIDS[f"halton {ratio}"] for ratio in ("0.25", "0.5", "1>0")},
    "hybrid-uniform": HYBRIDS["uniform 0.75"],
}
REFERENCE = "held-out text"
SETTINGS = ("pipeline", "dataset", "data_dir", "order", "num_sequences")
DISTINCT = (1, 2, 4)
MEASURES = ("nats", "entropy", *(f"distinct-{n}" for n in DISTINCT))
COLUMNS: dict[str, Callable[[Row], str]] = {
    **{name: lambda row, name=name: with_error(row[name], 3) for name in MEASURES},
    "passes": lambda row: f"{row['passes'][0]:.1f}",
    "seconds": lambda row: f"{row['seconds'][0]:.1f}",
}


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = new_parser(__doc__)
    parser.add_argument("--pipeline", default="pipelines/mdlm-shakespeare", help="folder or Hub name of the pipeline")
    parser.add_argument("--dataset", help="data set on the Hub, such as karpathy/tiny_shakespeare")
    parser.add_argument("--data_dir", help="instead: folder of .txt files")
    parser.add_argument("--order", type=int, default=6, help="of the judge's n-grams")
    parser.add_argument("--steps", type=int, nargs="+", default=[8, 16, 32, 64])
    parser.add_argument("--choice_temperatures", type=float, nargs="+", default=[4, 16])
    parser.add_argument(
        "--plain", nargs="*", choices=PLAIN | SECOND_ORDER, default=list(PLAIN), help="without choice temperature"
    )
    parser.add_argument(
        "--tempered",
        nargs="*",
        choices=TEMPERED | MIXTURES | APART | ORDERS | AHEAD,
        default=list(TEMPERED),
        help="at the others",
    )
    parser.add_argument("--num_substeps", type=int, nargs="+", default=[1], help="groups per step (partial caching)")
    parser.add_argument("--num_sequences", type=int, default=64, help="sequences per seed, of the model's length")
    parser.add_argument("--num_seeds", type=int, default=4)
    parser.add_argument("--batch_size", type=int, default=64)
    add_cell_arguments(parser)
    return parser.parse_args(argv)


class Bench:
    """The pipeline, judge and real text that all cells use."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.pipeline = open_pipeline(MDLMPipeline, args.pipeline).to(device)
        self.shared = shared_config(self.pipeline.scheduler)
        source = {"dataset": args.dataset, "data_dir": args.data_dir}
        self.needed = NeededPasses(self.pipeline.transformer, self.shared["mask_token_id"])
        self.judge = CharacterNGram(load_documents("train", **source), args.order)
        text = "\n".join(load_documents("test", **source))
        self.held_out = torch.tensor(self.pipeline.tokenizer(text, add_special_tokens=False, verbose=False).input_ids)

    def measure(self, sampler: str, steps: int, seed: int) -> dict[str, Any]:
        if not steps:
            return {**self.score(self.real(seed)), "passes": 0, "seconds": 0}
        sequences, cost = self.write(sampler, steps, seed)
        return {**self.score(sequences), **cost, "scheduler": described(self.pipeline.scheduler)}

    def score(self, sequences: list[Tensor]) -> dict[str, float]:
        nats = [-fmean(self.judge.log_probs(text)) for text in self.pipeline.decode_sequences(sequences)]
        distinct = {f"distinct-{n}": distinct_n(sequences, n) for n in DISTINCT}
        return {"nats": fmean(nats), "entropy": sentence_entropy(sequences).mean().item(), **distinct}

    def real(self, seed: int) -> list[Tensor]:
        """Pieces of the held-out text, of the model's length, from random places that depend on the seed."""
        length, generator = self.pipeline.transformer.config.model_length, torch.Generator().manual_seed(seed)
        starts = torch.randint(len(self.held_out) - length, (self.args.num_sequences,), generator=generator)
        return [self.held_out[start : start + length] for start in starts.tolist()]

    def write(self, sampler: str, steps: int, seed: int) -> tuple[list[Tensor], dict[str, float]]:
        """The seed's sequences, and their cost."""
        name, num_substeps = parts(sampler)
        name, _, alpha = name.partition(" ")
        tempered = {"choice_temperature": float(alpha)} if alpha else {}
        made = (TEMPERED | MIXTURES | APART | ORDERS | AHEAD if alpha else PLAIN | SECOND_ORDER)[name]
        self.pipeline.scheduler = made(**self.shared, **tempered)
        generators = generators_from(seed * self.args.num_sequences, self.args.num_sequences)
        draw = partial(draw_ids, self.pipeline, num_inference_steps=steps)
        with partial_caching(self.pipeline.transformer, num_substeps):
            return draw_set(draw, self.args.batch_size, self.needed, generators)


def plot(summary: Summary, path: Path, title: str = "Likelihood and diversity of text") -> None:
    """Plot nats and entropy against steps, a column for each choice temperature, beside the plain samplers."""
    labels = {"nats": "nats per character\n(6-gram judge)", "entropy": "entropy of a text, nats"}
    alphas = sorted({alpha for name, _ in summary if (alpha := choice_temperature(name)) is not None}) or [None]
    with figure(path, title=title, figsize=(4.6 * max(len(alphas), 2), 7)) as page:
        panels = page.subplots(2, len(alphas), squeeze=False, sharex=True, sharey="row")
        ends = {}
        for alpha, column in zip(alphas, panels.T, strict=True):
            shown = {key: row for key, row in summary.items() if choice_temperature(key[0]) in (None, alpha)}
            for (name, label), axis in zip(labels.items(), column, strict=True):
                ends[axis] = draw_over_steps(axis, shown, lambda row, name=name: row[name], ylabel=label)
                ends[axis] += draw_references(axis, shown, name)
            for axis in column[:-1]:
                axis.set_xlabel("")
            column[0].set_title("plain" if alpha is None else f"choice temperature {alpha:g}; dotted: without")
        for axis in panels[:, 1:].flat:
            axis.set_ylabel("")
        label_ends(page, ends)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    args = parse_args(argv)
    plain = [*args.plain, *(f"{name} {alpha:g}" for name in args.tempered for alpha in args.choice_temperatures)]
    samplers = all_in_groups(plain, args.num_substeps)
    pairs = [(REFERENCE, 0), *((name, steps) for name in samplers for steps in args.steps)]
    results = run_cells(args, SETTINGS, seed_by_seed(pairs, args.num_seeds), lambda: Bench(args).measure)
    print_cells(results["cells"], COLUMNS)
    plot(summarise(results["cells"]), args.output_dir / "text.png")
    return results


if __name__ == "__main__":
    main()
