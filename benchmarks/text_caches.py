r"""Caches and samplers that reveal as much as is sure, judged on a shipped text model: quality against passes and time.

    python benchmarks/text_caches.py --dataset karpathy/tiny_shakespeare --output_dir out/text_caches
    python benchmarks/text_caches.py --data_dir texts --output_dir out/text_caches --resume --num_seeds 6

Every text has the model's length and is written in blocks from left to right. The first group of lines draws with one
sampler, `MomentScheduler` as the pipeline has it, with as many steps a block as in the column "steps", under each
cache. The second draws with samplers that need as many steps as the text needs, at most as many as a block has
positions: `ThresholdScheduler`, `KLASSScheduler`, `EntropyBoundedScheduler`.

The judge and the measures are those of `text.py`. "passes" are model calls a text, "positions" the positions computed
in them, in texts: 10 means as many as 10 passes over the whole text. "seconds" are those that the process computes, a
text. Sequence i of seed s has a generator of its own. Prints a table, and writes `results.json` after every cell, and
`text_decoding.png`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from time import process_time
from typing import Any

from arguments import add_cell_arguments, new_parser
from cells import Row, Summary, run_cells, seed_by_seed, summarise
from looks import BLACK, BLUE, BROWN, GREEN, ORANGE, PURPLE, VERMILLION
from passes import draw_ids, draw_set, generators_from
from plots import End, draw_curve, draw_references, figure, label_ends, set_ticks
from samplers import described
from tables import print_cells, with_error
from text import MEASURES, REFERENCE
from text import Bench as TextBench
from torch import Tensor

from hf_maskdiff import (
    DelayedCacheConfig,
    DualCacheConfig,
    EntropyBoundedScheduler,
    KLASSScheduler,
    PartialCacheConfig,
    PrefixCacheConfig,
    ThresholdScheduler,
)

# How the lines of the table are named, and the caches that make them; None is no cache.
CACHES: dict[str, Any] = {
    "no cache": None,
    "prefix": PrefixCacheConfig(),
    "dual": DualCacheConfig(),
    "dual, afresh every 4": DualCacheConfig(refresh_every=4),
    "delayed": DelayedCacheConfig(refresh_every=4),
    "partial": PartialCacheConfig(num_substeps=2),
    "dual + partial": DualCacheConfig(partial=PartialCacheConfig(num_substeps=2)),
}
ADAPTIVE: dict[str, Callable[..., Any]] = {
    "threshold 0.8": partial(ThresholdScheduler, threshold=0.8),
    "threshold 0.9": partial(ThresholdScheduler, threshold=0.9),
    "threshold 0.95": partial(ThresholdScheduler, threshold=0.95),
    "factor 1": partial(ThresholdScheduler, threshold=None, factor=1.0),
    "KLASS": KLASSScheduler,
    "entropy-bounded": EntropyBoundedScheduler,
}
ADAPTIVE_CACHES = ("no cache", "dual")
COLOURS = {
    "no cache": BLACK,
    "prefix": BLUE,
    "dual": VERMILLION,
    "dual, afresh every 4": ORANGE,
    "delayed": GREEN,
    "partial": PURPLE,
    "dual + partial": BROWN,
}
SETTINGS = ("pipeline", "dataset", "data_dir", "order", "num_sequences", "block_length")
COLUMNS: dict[str, Callable[[Row], str]] = {
    **{name: lambda row, name=name: with_error(row[name], 3) for name in MEASURES[:3]},
    "passes": lambda row: f"{row['passes'][0]:.1f}",
    "positions": lambda row: f"{row['positions'][0]:.1f}",
    "seconds": lambda row: with_error(row["seconds"], 2),
}


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = new_parser(__doc__)
    parser.add_argument("--pipeline", default="pipelines/mdlm-shakespeare-long", help="folder or Hub name")
    parser.add_argument("--dataset", help="data set on the Hub, such as karpathy/tiny_shakespeare")
    parser.add_argument("--data_dir", help="instead: folder of .txt files")
    parser.add_argument("--order", type=int, default=6, help="of the judge's n-grams")
    parser.add_argument("--block_length", type=int, default=32)
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 8, 16], help="a block")
    parser.add_argument("--caches", nargs="*", choices=CACHES, default=list(CACHES))
    parser.add_argument("--adaptive", nargs="*", choices=ADAPTIVE, default=list(ADAPTIVE))
    parser.add_argument("--adaptive_caches", nargs="*", choices=CACHES, default=list(ADAPTIVE_CACHES))
    parser.add_argument("--num_sequences", type=int, default=16, help="texts a seed, of the model's length")
    parser.add_argument("--num_seeds", type=int, default=3)
    parser.add_argument("--batch_size", type=int, default=8)
    add_cell_arguments(parser)
    return parser.parse_args(argv)


class Bench(TextBench):
    """The pipeline, judge and real text that all cells use."""

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(args)
        self.moment = self.pipeline.scheduler
        self.counted = CountedPositions(self.pipeline)

    def measure(self, sampler: str, steps: int, seed: int) -> dict[str, Any]:
        if not steps:
            return {**self.score(self.real(seed)), "seconds": 0.0, "passes": 0.0, "positions": 0.0}
        texts, cost = self.write(sampler, steps, seed)
        return {**self.score(texts), **cost, "scheduler": described(self.pipeline.scheduler)}

    def write(self, sampler: str, steps: int, seed: int) -> tuple[list[Tensor], dict[str, float]]:
        """The seed's texts, and their cost."""
        kind, _, cache = sampler.rpartition("; ")
        self.pipeline.scheduler = ADAPTIVE[kind](**self.shared) if kind else self.moment
        number = self.args.num_sequences
        generators = generators_from(seed * number, number)
        draw = partial(draw_ids, self.pipeline, num_inference_steps=steps, block_length=self.args.block_length)
        if CACHES[cache] is not None:
            self.pipeline.enable_cache(CACHES[cache])
        self.counted.reset()
        started = process_time()
        try:
            texts, _ = draw_set(draw, self.args.batch_size, self.needed, generators)
        finally:
            if CACHES[cache] is not None:
                self.pipeline.disable_cache()
        return texts, {"seconds": (process_time() - started) / number, **self.counted.cost(number)}


class CountedPositions:
    """Counts the model's passes, and the positions computed in them, those that only pad a batch left out."""

    def __init__(self, pipe: Any) -> None:
        self.length = pipe.transformer.config.model_length
        self.reset()
        pipe.transformer.register_forward_pre_hook(self._count, with_kwargs=True)

    def reset(self) -> None:
        self.rows = self.positions = 0

    def _count(self, model: Any, inputs: tuple[Tensor, ...], options: dict[str, Any]) -> None:
        ids, positions = inputs[0], options.get("positions")
        self.rows += len(ids)
        self.positions += ids.numel() if positions is None else int((positions >= 0).sum())

    def cost(self, number: int) -> dict[str, float]:
        """Of a text: passes, and positions in texts."""
        return {"passes": self.rows / number, "positions": self.positions / number / self.length}


def plot(summary: Summary, path: Path) -> None:
    """Draws nats and entropy against positions computed: a line a cache, a point a sampler that adapts."""
    labels = {"nats": "nats per character (6-gram judge)", "entropy": "entropy of a text, nats"}
    title = "Quality of text against the positions computed"
    with figure(path, title=title, figsize=(12, 5)) as page:
        ends: dict[Any, list[End]] = {}
        for (measure, label), axis in zip(labels.items(), page.subplots(1, 2), strict=True):
            ends[axis] = draw_references(axis, summary, measure)
            for cache, colour in COLOURS.items():
                points = points_of(summary, cache, measure)
                if points:
                    draw_curve(axis, points, cache, color=colour)
                    ends[axis].append(End(cache, *sorted(points)[-1][:2], colour))
            for kind, marker in zip(ADAPTIVE, "^vD*sP", strict=False):
                for cache in ADAPTIVE_CACHES:
                    points = points_of(summary, f"{kind}; {cache}", measure)
                    if points:
                        style = {"marker": marker, "markersize": 8, "linestyle": "none", "color": COLOURS[cache]}
                        draw_curve(axis, points, kind, **style)
            axis.set(xscale="log", xlabel="positions computed, in whole texts", ylabel=label)
            set_ticks(axis.xaxis, (4, 8, 16, 32, 64, 128, 256))
        handles, names = page.axes[0].get_legend_handles_labels()
        shown = {name: handle for handle, name in zip(handles, names, strict=True) if name in ADAPTIVE}
        page.legend(
            shown.values(), shown, title="with the dual cache, as it is coloured", loc="outside lower left", ncols=6
        )
        label_ends(page, ends)


def points_of(summary: Summary, sampler: str, measure: str) -> list[tuple[float, float, float]]:
    """Positions, mean and error for each number of steps."""
    return [(row["positions"][0], *row[measure]) for (name, steps), row in summary.items() if name == sampler and steps]


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    args = parse_args(argv)
    pairs = [(REFERENCE, 0), *((name, steps) for name in args.caches for steps in args.steps)]
    kinds = [f"{kind}; {cache}" for kind in args.adaptive for cache in args.adaptive_caches]
    pairs += [(name, args.block_length) for name in kinds]
    results = run_cells(args, SETTINGS, seed_by_seed(pairs, args.num_seeds), lambda: Bench(args).measure)
    print_cells(results["cells"], COLUMNS, most="steps a block")
    plot(summarise(results["cells"]), args.output_dir / "text_decoding.png")
    return results


if __name__ == "__main__":
    main()
