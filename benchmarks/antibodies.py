r"""Samplers on released weights: antibodies by AntiBERTy, whole chains from nothing and loops within a chain.

    hf-maskdiff convert antiberty-0.1.3-py3-none-any.whl antiberty
    run="python benchmarks/antibodies.py --pipeline antiberty --dtype bfloat16 --resume"
    $run --output_dir out/antibodies/chain
    $run --output_dir out/antibodies/loop --design loop --steps 2 4

A cell is a sampler, a number of steps and a seed: `--num_chains` designs, each from its own generator. It is drawn and
scored once; `results.json` keeps designs and scores after each cell, and the tables are made of these. All cells of a
seed come before those of the next, so a run may be stopped at any time; the same command goes on. Samplers are those
of `families.py`: "uniform", "moment 6" at choice temperature 6, "moment 6, 2 groups" with partial caching.

design: "chain" is 118 residues from nothing, "loop" the third loop of trastuzumab's heavy chain within the rest.
nats: minus the any-order log-likelihood per residue under the model, from `--num_masks` random masks of each design.
    The uniform order with one residue a pass draws from that law; it is the last row, and the reference.
apart: the share of places at which two designs differ; distinct: different designs, as a share of all; entropy: of a
    design's residues.
places, pairs: squared distance of the laws of the residues at a place, and at two places, from the reference's, as a
    share of its sum of squares, without bias: 0 is the same law.
framework: the share of the framework's residues that a chain has in common with the nearest of eleven human germline
    genes; heavy: the share of chains for which that is a heavy chain's gene, as the model writes light chains as well;
    mixed: the share of chains that begin (FR1) as one of the two and go on (FR3) as the other.
beyond: nats minus those of the uniform order at the choice temperature with as much "apart", which needs the uniform
    order at several temperatures. Below 0 is what no temperature does.

Standard errors are over designs. The last table compares samplers two by two in nats and in law, design by design,
since design i of both comes from the same noise. Beside the designs are written, in the form of docs/reporting.md,
`antibodies_chain.json`, the same of each seed (`_seeds`), what is compared two by two (`_compared`), and a picture.
`--table FOLDER/results.json` makes all of these of designs that are there.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from antibody_report import by_pair, contrasts, plot, print_report, summary_of
from antibody_results import compared_of, results_of, with_records
from arguments import add_cell_arguments, new_parser
from cell_files import KEY
from cells import Cells, Summary, load_results, missing_cells, seed_by_seed
from design_files import read_designs, write_designs
from families import scheduler_of
from passes import generators_from, partial_caching
from samplers import parts
from tqdm.auto import tqdm

from hf_maskdiff import MaskedDiffusionTextPipeline
from hf_maskdiff.evaluation.any_order_likelihood import any_order_log_likelihood
from hf_maskdiff.evaluation.text_metrics import sentence_entropy
from hf_maskdiff_cli.results import write_results

# Trastuzumab's heavy chain around its third loop, and how long that is.
BEFORE = "EVQLVESGGGLVQPGGSLRLSCAASGFNIKDTYIHWVRQAPGKGLEWVARIYPTNGYTRYADSVKGRFTISADTSKNTAYLQMNSLRAEDTAVYYC"
AFTER = "WGQGTLVTVSS"
DESIGNS = {"chain": ("", 118, ""), "loop": (BEFORE, 13, AFTER)}
SAMPLERS = [
    *(f"{name} 6" for name in ("uniform", "moment", "maskgit", "halton", "hybrid", "p2-moment", "freecorrection")),
    *("uniform", "uniform 1", "halton", "moment 1", "maskgit 1", "moment 16", "maskgit 16", "uniform 16", "uniform 3"),
    *("extrapolating", "trapezoidal", "ancestral", "remdm-rescale"),
    *("confidence", "moment-apart-3 6", "remdm-moment 6"),
    *("uniform, 2 groups", "moment 6, 2 groups", "moment 6, 4 groups"),
]
SETTINGS = ("design", "length", "num_chains", "num_masks", "dtype")


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = new_parser(__doc__)
    parser.add_argument("--pipeline", default="antiberty", help="folder or Hub name of the pipeline")
    parser.add_argument("--design", choices=DESIGNS, default="chain")
    parser.add_argument("--length", type=int, help="residues that are drawn; default: 118, or 13 of a loop")
    parser.add_argument("--samplers", nargs="*", default=SAMPLERS)
    parser.add_argument("--steps", type=int, nargs="*", default=[8, 16])
    parser.add_argument("--num_chains", type=int, default=64, help="designs of each seed")
    parser.add_argument("--num_masks", type=int, default=8, help="of each design, for its likelihood")
    parser.add_argument("--num_seeds", type=int, default=3)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--table", type=Path, help="a file of results to report on, measuring nothing")
    add_cell_arguments(parser)
    args = parser.parse_args(argv)
    args.length = DESIGNS[args.design][1] if args.length is None else args.length
    return args


class Bench:
    """The pipeline that all cells use; its own scheduler says which tokens may be drawn."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        pipe = MaskedDiffusionTextPipeline.from_pretrained(args.pipeline)
        self.pipe = pipe.to(args.device, getattr(torch, args.dtype))
        self.pipe.set_progress_bar_config(disable=True)
        names = ("mask_token_id", "codebook_size", "top_k")
        self.shared = {name: pipe.scheduler.config[name] for name in names}
        self.before, _, self.after = DESIGNS[args.design]

    def measure(self, sampler: str, steps: int, seed: int) -> dict[str, Any]:
        """The designs of a cell, their nats, and what a design took: passes, and seconds of the process."""
        name, num_substeps = parts(sampler)
        self.pipe.scheduler = scheduler_of(name, **self.shared, masking_schedule="linear")
        generators = generators_from(seed * self.args.num_chains, self.args.num_chains)
        designs, passes, started = list[str](), list[list[int]](), time.process_time()
        with partial_caching(self.pipe, num_substeps):
            for start in range(0, self.args.num_chains, self.args.batch_size):
                own = generators[start : start + self.args.batch_size]
                call = {"num_inference_steps": steps, "num_return_sequences": len(own), "generator": own}
                output = self.pipe(f"{self.before}[MASK:{self.args.length}]{self.after}", **call)
                designs += output.texts
                passes.append([max(output.num_model_passes), max(output.num_partial_passes)])
        seconds = (time.process_time() - started) / len(designs)
        nats = self.nats(designs, seed)
        end = len(self.before) + self.args.length
        return {
            "designs": [design[len(self.before) : end] for design in designs],
            "nats": [round(value, 4) for value in nats.tolist()],
            "passes": max(passes),
            "seconds": round(seconds, 4),
        }

    def nats(self, chains: Sequence[str], seed: int) -> torch.Tensor:
        """Minus the any-order log-likelihood of each chain's drawn residues, in nats per residue."""
        ids, places = self.residues(chains)
        generator = torch.Generator().manual_seed(seed)
        shared = (self.pipe.mask_token_id, self.args.num_masks, generator, self.args.batch_size)
        return -any_order_log_likelihood(self.pipe.denoiser, ids, places, *shared)

    def residues(self, chains: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids of whole chains, and where the residues that were drawn stand in them."""
        encoded = self.pipe.tokenizer(list(chains), return_special_tokens_mask=True)
        residues = (torch.tensor(encoded.special_tokens_mask[0]) == 0).nonzero()[:, 0]
        end = len(self.before) + self.args.length
        return torch.tensor(encoded.input_ids, device=self.pipe.device), residues[len(self.before) : end]

    def judge(self, chains: Sequence[str], seed: int) -> dict[str, float]:
        """Measures of a set of chains for `beds.py`."""
        ids, places = self.residues(chains)
        nats, residues = self.nats(chains, seed), ids[:, places]
        apart = (residues[:, None] != residues).double().mean(-1).sum() / (len(ids) * (len(ids) - 1))
        entropy = sentence_entropy(list(residues.cpu())).mean().item()
        return {"nats": nats.mean().item(), "variance": nats.var().item(), "apart": apart.item(), "entropy": entropy}


def run(args: argparse.Namespace) -> dict[str, Any]:
    """All cells, of which those that are missing are measured."""
    path = args.output_dir / "results.json"
    results = load_results(path, {name: getattr(args, name) for name in SETTINGS}, args.resume, read_designs)
    pairs = [(name, steps) for steps in sorted(args.steps) for name in args.samplers]
    missing = missing_cells(results, seed_by_seed([*pairs, ("uniform", args.length)], args.num_seeds))
    if missing:
        bench = Bench(args)
        for key in (progress := tqdm(missing, desc="cells")):
            progress.set_postfix_str("{}, {} steps, seed {}".format(*key))
            results["cells"].append(dict(zip(KEY, key, strict=True)) | bench.measure(*key))
            write_designs(results, path)
    return results


def main(argv: Sequence[str] | None = None) -> Cells:
    args = parse_args(argv)
    results = read_designs(args.table) if args.table else run(args)
    design, length = results["settings"]["design"], results["settings"]["length"]
    summary = print_report(results["cells"], design, length)
    write_files(summary, results, args.output_dir / f"antibodies_{design}.json")
    plot(summary, length, args.output_dir / f"antibodies_{design}.png")
    return results["cells"]


def write_files(summary: Summary, found: dict[str, Any], path: Path) -> None:
    """Files of results of all seeds together, of each by itself, and of samplers two by two."""
    settings, cells = found["settings"], found["cells"]
    size = settings["design"], settings["length"]
    write_results(results_of(summary, settings, seeds_of(cells)), path)
    write_results(compared_of(contrasts(cells), settings), path.with_name(f"{path.stem}_compared.json"))
    each = []
    for seed in sorted({cell["seed"] for cell in cells}):
        own = [cell for cell in cells if cell["seed"] == seed]
        each.append(results_of(summary_of(own, *size), settings, seeds_of(own)))
    write_results(with_records(each[0], each[1:]), path.with_name(f"{path.stem}_seeds.json"))


def seeds_of(cells: Cells) -> dict[tuple[str, int], list[int]]:
    return {key: sorted(own) for key, own in by_pair(cells).items()}


if __name__ == "__main__":
    main()
