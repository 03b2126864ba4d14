"""Samplers on released weights: whole antibody chains from nothing, at equal numbers of passes.

    hf-maskdiff convert antiberty-0.1.3-py3-none-any.whl antiberty
    python benchmarks/antibodies.py --pipeline antiberty --output_dir out/antibodies
    python benchmarks/antibodies.py --pipeline antiberty --output_dir out/antibodies --resume   # after a stop

AntiBERTy writes chains of `--length` residues. Measures, with standard errors over all chains of all seeds:

nats: minus the any-order log-likelihood per residue under the model, by `--num_masks` random masks of each chain: the
    law that one residue a pass ("one at a time") draws from, so a sampler that comes near it comes near that row.
apart: the share of places at which two chains of a seed differ, for their diversity. The file of results also has the
    entropy of a chain's residues.

All samplers draw at the model's own temperature; a number after the name is a choice temperature, which lowers it.
Chain i of seed s comes from its own generator. Prints a table, and writes `results.json` after every cell.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from arguments import add_cell_arguments, new_parser
from cells import Cells, run_cells, seed_by_seed
from passes import generators_from
from samplers import described
from tables import print_table

from hf_maskdiff import (
    AncestralScheduler,
    ExtrapolatingScheduler,
    HaltonScheduler,
    MaskedDiffusionScheduler,
    MaskedDiffusionTextPipeline,
    MomentScheduler,
    TrapezoidalScheduler,
    UniformScheduler,
)
from hf_maskdiff.evaluation.any_order_likelihood import any_order_log_likelihood
from hf_maskdiff.evaluation.text_metrics import sentence_entropy

SAMPLERS: Mapping[str, Callable[..., MaskedDiffusionScheduler]] = {
    "ancestral": AncestralScheduler,
    "uniform": UniformScheduler,
    "trapezoidal": TrapezoidalScheduler,
    "extrapolating": ExtrapolatingScheduler,
    "halton": HaltonScheduler,
    "extrapolating, halton": partial(ExtrapolatingScheduler, position_order="halton"),
    "moment 16": partial(MomentScheduler, choice_temperature=16.0),
    "extrapolating, moment 16": partial(ExtrapolatingScheduler, position_order="moment", choice_temperature=16.0),
}
ONE_AT_A_TIME = "one at a time"
SETTINGS = ("pipeline", "length", "num_chains", "num_masks", "dtype")


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = new_parser(__doc__)
    parser.add_argument("--pipeline", default="antiberty", help="folder or Hub name of the pipeline")
    parser.add_argument("--length", type=int, default=118)
    parser.add_argument("--samplers", nargs="+", choices=SAMPLERS, default=list(SAMPLERS)[:4])
    parser.add_argument("--steps", type=int, nargs="+", default=[8, 24])
    parser.add_argument("--num_chains", type=int, default=64, help="of each seed")
    parser.add_argument("--num_masks", type=int, default=8, help="of each chain, for its likelihood")
    parser.add_argument("--num_seeds", type=int, default=3)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", default="cpu")
    add_cell_arguments(parser)
    return parser.parse_args(argv)


class Bench:
    """The pipeline that all cells use; its own scheduler says which tokens may be drawn."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        pipe = MaskedDiffusionTextPipeline.from_pretrained(args.pipeline)
        self.pipe = pipe.to(args.device, getattr(torch, args.dtype))
        self.pipe.set_progress_bar_config(disable=True)
        names = ("mask_token_id", "codebook_size", "top_k")
        self.shared = {name: pipe.scheduler.config[name] for name in names}

    def measure(self, sampler: str, steps: int, seed: int) -> dict[str, Any]:
        make = UniformScheduler if sampler == ONE_AT_A_TIME else SAMPLERS[sampler]
        self.pipe.scheduler = make(**self.shared, masking_schedule="linear")
        chains: list[str] = []
        generators = generators_from(seed * self.args.num_chains, self.args.num_chains)
        for start in range(0, self.args.num_chains, self.args.batch_size):
            own = generators[start : start + self.args.batch_size]
            call = {"num_inference_steps": steps, "num_return_sequences": len(own), "generator": own}
            chains += self.pipe(f"[MASK:{self.args.length}]", **call).texts
        return {**self.judge(chains, seed), "scheduler": described(self.pipe.scheduler)}

    def judge(self, chains: Sequence[str], seed: int) -> dict[str, float]:
        encoded = self.pipe.tokenizer(list(chains), return_special_tokens_mask=True)
        ids = torch.tensor(encoded.input_ids, device=self.pipe.device)
        places = (torch.tensor(encoded.special_tokens_mask[0]) == 0).nonzero()[:, 0]
        generator = torch.Generator().manual_seed(seed)
        nats = -any_order_log_likelihood(
            self.pipe.denoiser,
            ids,
            places,
            self.pipe.mask_token_id,
            self.args.num_masks,
            generator,
            self.args.batch_size,
        )
        residues = ids[:, places]
        apart = (residues[:, None] != residues).double().mean(-1).sum() / (len(ids) * (len(ids) - 1))
        entropy = sentence_entropy(list(residues.cpu())).mean().item()
        return {"nats": nats.mean().item(), "variance": nats.var().item(), "apart": apart.item(), "entropy": entropy}


def rows_of(cells: Cells) -> list[dict[str, Any]]:
    """A row for each sampler and number of passes: means over seeds, and the standard error over all chains."""
    found: dict[tuple[str, int], Cells] = {}
    for cell in cells:
        found.setdefault((cell["sampler"], cell["steps"]), []).append(cell)
    rows = []
    for (sampler, steps), own in found.items():
        nats, variance, apart = (sum(cell[name] for cell in own) / len(own) for name in ("nats", "variance", "apart"))
        rows.append(
            {"sampler": sampler, "passes": steps, "nats": nats, "variance": variance, "apart": apart, "seeds": len(own)}
        )
    return sorted(rows, key=lambda row: row["passes"])


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    args = parse_args(argv)
    pairs = [(name, steps) for steps in args.steps for name in args.samplers] + [(ONE_AT_A_TIME, args.length)]
    results = run_cells(args, SETTINGS, seed_by_seed(pairs, args.num_seeds), lambda: Bench(args).measure)
    table = [
        (
            row["sampler"],
            row["passes"],
            f"{row['nats']:.3f} +- {(row['variance'] / (row['seeds'] * args.num_chains)) ** 0.5:.3f}",
            f"{row['apart']:.3f}",
        )
        for row in rows_of(results["cells"])
    ]
    print_table(["sampler", "passes", "nats a residue", "apart"], table)
    return results


if __name__ == "__main__":
    main()
