r"""All samplers at equal numbers of passes, quality beside diversity, on seven beds.

    hf-maskdiff convert antiberty-0.1.3-py3-none-any.whl antiberty
    python benchmarks/samplers_at_equal_passes.py --image_dir FOLDER_OF_MNIST --text_dir FOLDER_OF_TXT \
        --antibody_pipeline antiberty --output_dir out/equal_passes --jobs 3
    python benchmarks/samplers_at_equal_passes.py --beds chain --output_dir out/equal_passes --resume  # after a stop
    python benchmarks/samplers_at_equal_passes.py --report benchmarks/results/runs/samplers_at_equal_passes \
        --output_dir out/report

A lower temperature makes any sampler look better, and less diverse. So each bed also has a curve: the uniform order at
several choice temperatures. What lies below the curve, at as many passes and as much diversity, is a better sampler;
what lies on it could be had by a temperature. `families.py` has the samplers, `beds.py` what they are compared on:

antibodies: AntiBERTy's chains of 118 residues. Nats a residue in any order; the share of places at which two differ.
antibodies, float32: four of them with more chains, in float32.
digits: `pipelines/maskgit-mnist`. Frechet distance, and variance within a class relative to real images.
letters: `pipelines/maskgit-letters`, a finer grid, in bfloat16; each sampler at several temperatures, those that choose
positions first also in two and four groups to a step, and two of them guided.
words: `pipelines/vampnet-digits`, spoken words of four codebooks; also in two groups to a step, and guided.
text, long text: `pipelines/mdlm-shakespeare`, and `-long`. Nats a character by a judge; entropy of a text.
chain: 64 tokens with exact conditionals. KL of adjacent pairs; nats a token, which are too few where it is too likely.

Only samplers with the same number of passes are compared; a step is a pass, and `calls` in the files counts the model's
calls. All seeds of a cell are drawn in one batch, each sample by its own generator. `--jobs` processes for each bed
draw at the same time. Writes a file for each bed after every cell, prints tables, and writes their numbers and
`samplers_at_equal_passes.png`; with `--report` from the files of a folder, where nothing is measured.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import beds
import torch
from arguments import new_parser
from beds import FULL, PLANNER, REAL
from cell_files import KEY, read_cells, write_cells
from cells import load_results, missing_cells, seed_by_seed
from equal_passes_report import plot, print_tables, summary_of, write_summary
from families import PLAIN, REMDM, TEMPERED, nucleus, tempered
from tqdm.auto import tqdm

OPTIONS = (
    "image_dir",
    "letter_dir",
    "speech_dir",
    "text_dir",
    "antibody_pipeline",
    "batch_size",
)  # what a bed is opened with
Group = tuple[str, str, int, tuple[int, ...]]  # bed, sampler, steps and seeds: cells that are drawn in one batch


@dataclass(frozen=True)
class Plan:
    """The cells of a bed.

    Args:
        make: opens the bed, given the program's arguments and the number of samples of a seed.
        number: of samples of a seed.
        pairs: samplers and steps; references first, then by steps, so that a run that is stopped lacks the longest.
    """

    make: Callable[[argparse.Namespace, int], beds.Bed]
    number: int
    pairs: Sequence[tuple[str, int]]


def pairs_of(samplers: Sequence[str], steps: Sequence[int], *more: tuple[str, int]) -> list[tuple[str, int]]:
    return [*more, *((name, number) for number in steps for name in samplers)]


SECOND = ("ancestral", "trapezoidal", "uniform", "extrapolating")
# More passes than positions are of use to these alone: their counts are random.
UNPLANNED = ("ancestral", "trapezoidal", *REMDM, "remdm-strong")
MORE_16 = ("moment 16", "p2-moment 16", "freecorrection 16")
DIGITS = [*PLAIN, *tempered(6, (16, 3, 1, 0.5), apart=2), *nucleus()]
TEXT = [*PLAIN, *tempered(4, (16, 8, 2, 1, 0.5)), "moment 16", "halton 16", *nucleus()]
ALPHAS = (0.5, 1, 3, 6, 12, 24)  # choice temperatures
ORDERS = [f"{name} {alpha}" for name in TEMPERED for alpha in ALPHAS]
CHOSEN_FIRST = ("moment", "hybrid-0.5", "hybrid", "hybrid-1>0", "halton", "uniform")  # they may draw in groups
IN_GROUPS = [f"{name} {alpha}, {groups} groups" for groups in (2, 4) for name in CHOSEN_FIRST for alpha in ALPHAS]
SCALES = ("1.5", "2", "3", "5", "1 to 2", "1 to 3", "1 to 5", "1 to 9")
GUIDED = [f"{name} {alpha}, guidance {scale}" for name in ("moment", "halton") for alpha in ALPHAS for scale in SCALES]
BY_WORDS = ["uniform", "confidence", "halton", "uniform 6", "halton 6", "maskgit 6", "hybrid 6", "moment 6", "moment 3"]
WORDS = [
    *BY_WORDS,
    *(f"{name}, 2 groups" for name in ("halton", "hybrid 6", "moment 6")),
    "moment 6, guidance 2",
    "moment 6, guidance 3",
]
PLANS: Mapping[str, Plan] = {
    "antibodies": Plan(
        partial(beds.Antibodies, dtype="bfloat16"),
        128,
        [
            *pairs_of([*PLAIN, *tempered(6, (16, 3, 1, 0.5)), *MORE_16, *nucleus()], (4, 8, 16, 32, 64), (FULL, 118)),
            *pairs_of(SECOND, (24,)),
            *pairs_of(UNPLANNED, (128,)),
        ],
    ),
    "antibodies, float32": Plan(partial(beds.Antibodies, dtype="float32"), 256, pairs_of(SECOND, (24,))),
    "digits": Plan(
        partial(beds.Images, pipeline="pipelines/maskgit-mnist", folder="image_dir"),
        1000,
        [
            *pairs_of(DIGITS, (4, 8, 16, 32, 49), (REAL, 0), (beds.TOKENIZER, 0), (FULL, 49)),
            *pairs_of(UNPLANNED, (128,)),
        ],
    ),
    "letters": Plan(
        partial(beds.Images, pipeline="pipelines/maskgit-letters", folder="letter_dir", dtype="bfloat16"),
        1000,
        [
            *pairs_of([*PLAIN, *ORDERS, *IN_GROUPS], (4, 8, 16, 32), (REAL, 0), (beds.TOKENIZER, 0)),
            *pairs_of(GUIDED, (4, 8, 16)),
        ],
    ),
    "words": Plan(
        partial(beds.Words, pipeline="pipelines/vampnet-digits"),
        200,
        pairs_of(WORDS, (4, 8, 16, 32), (REAL, 0), (beds.TOKENIZER, 0)),
    ),
    "text": Plan(
        partial(beds.Texts, pipeline="pipelines/mdlm-shakespeare"),
        128,
        [
            *pairs_of(TEXT, (4, 8, 16, 32, 64), (REAL, 0), (FULL, 64)),
            *pairs_of([*UNPLANNED, *nucleus()[1:]], (128,)),
        ],
    ),
    "long text": Plan(
        partial(beds.Texts, pipeline="pipelines/mdlm-shakespeare-long"),
        32,
        pairs_of(TEXT, (4, 8, 16, 32, 64, 128), (REAL, 0), (FULL, 256)),
    ),
    "chain": Plan(
        beds.Chain,
        1000,
        [
            *pairs_of([*PLAIN, PLANNER, *tempered(16, (64, 4))], (4, 8, 16, 32, 64), (REAL, 0), (FULL, 64)),
            *pairs_of(UNPLANNED, (128,)),
        ],
    ),
}


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = new_parser(__doc__)
    parser.add_argument("--beds", nargs="+", choices=PLANS, default=list(PLANS))
    parser.add_argument("--image_dir", help="folder with IDX files")
    parser.add_argument("--letter_dir", help="what `examples/render_letters.py` wrote")
    parser.add_argument("--speech_dir", help="what `examples/render_speech.py` wrote")
    parser.add_argument("--text_dir", help="folder of .txt files")
    parser.add_argument("--antibody_pipeline", default="antiberty", help="folder or Hub name")
    parser.add_argument("--samplers", nargs="+", help="only these; default: those of each bed")
    parser.add_argument("--steps", type=int, nargs="+", help="only these; 0 is real data; default: those of each bed")
    parser.add_argument("--number", type=int, help="samples of each seed; default: that of each bed")
    parser.add_argument("--num_seeds", type=int, default=3)
    parser.add_argument("--batch_size", type=int, help="default: all seeds at once, where a bed has no other")
    parser.add_argument("--jobs", type=int, default=0, help="processes for each bed; 0: none but this one")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="after so many, no further cell begins")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--resume", action="store_true", help="keep the cells already in OUTPUT_DIR")
    parser.add_argument("--report", type=Path, metavar="FOLDER", help="measure nothing, show the files of this folder")
    return parser.parse_args(argv)


# --- drawing ----------------------------------------------------------------------------------------------------------


@cache
def open_bed(name: str, options: tuple[tuple[str, Any], ...], number: int) -> beds.Bed:
    """Each process opens its bed once."""
    return PLANS[name].make(argparse.Namespace(**dict(options)), number)


def measure(options: tuple[tuple[str, Any], ...], number: int, deadline: float, group: Group) -> list[dict[str, float]]:
    """The measures of each seed; of none after the deadline."""
    bed, sampler, steps, seeds = group
    return open_bed(bed, options, number).measure(sampler, steps, seeds) if time.time() < deadline else []


def groups_of(bed: str, missing: Sequence[tuple[str, int, int]]) -> list[Group]:
    seeds: dict[tuple[str, int], list[int]] = {}
    for sampler, steps, seed in missing:
        seeds.setdefault((sampler, steps), []).append(seed)
    return [(bed, *pair, tuple(own)) for pair, own in seeds.items()]


def run_groups(
    args: argparse.Namespace, groups: Mapping[str, Sequence[Group]]
) -> Iterator[tuple[Group, list[dict[str, float]]]]:
    """Measures groups of cells, in as many processes for each bed as were asked for."""
    options = tuple((name, getattr(args, name)) for name in OPTIONS)
    deadline = time.time() + args.seconds
    work = {bed: partial(measure, options, args.number or PLANS[bed].number, deadline) for bed in groups if groups[bed]}
    if not args.jobs:
        yield from ((group, work[bed](group)) for bed in work for group in groups[bed])
        return
    pools = [ProcessPoolExecutor(args.jobs, get_context("spawn"), torch.set_num_threads, (1,)) for _ in work]
    futures: dict[Future[list[dict[str, float]]], Group] = {
        pool.submit(work[bed], group): group for pool, bed in zip(pools, work, strict=True) for group in groups[bed]
    }
    for future in as_completed(futures):
        try:
            yield futures[future], future.result()
        except Exception as error:  # costs the rows of this group only; a later run tries them again
            print(f"{futures[future]}: {type(error).__name__}: {error}", file=sys.stderr)
    for pool in pools:
        pool.shutdown()


def run(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Measures the missing cells, and returns the contents of each bed's file."""
    results, groups = {}, {}
    for bed in args.beds:
        settings = {"number": args.number or PLANS[bed].number}
        results[bed] = load_results(file_of(args.output_dir, bed), settings, args.resume)
        pairs = [
            (name, steps)
            for name, steps in PLANS[bed].pairs
            if (not args.samplers or name in args.samplers) and (not args.steps or steps in args.steps)
        ]
        groups[bed] = groups_of(bed, missing_cells(results[bed], seed_by_seed(pairs, args.num_seeds)))
    with tqdm(total=sum(map(len, groups.values())), desc="cells", mininterval=5) as bar:
        for (bed, sampler, steps, seeds), found in run_groups(args, groups):
            bar.set_postfix_str(f"{bed}: {sampler}, {steps} passes")
            for seed, row in zip(seeds, found, strict=False):
                results[bed]["cells"].append(dict(zip(KEY, (sampler, steps, seed), strict=True)) | row)
            write_cells(results[bed], file_of(args.output_dir, bed))
            bar.update()
    return results


def read(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """The contents of the files that are there."""
    files = {bed: file_of(args.report, bed) for bed in args.beds}
    return {bed: read_cells(path) for bed, path in files.items() if path.exists()}


def file_of(folder: Path, bed: str) -> Path:
    return folder / f"{bed.replace(', ', '_').replace(' ', '_')}.json"


def main(argv: Sequence[str] | None = None) -> dict[str, dict[str, Any]]:
    args = parse_args(argv)
    results = read(args) if args.report else run(args)
    print_tables(results)
    write_summary(results, args.output_dir / "summary" / "samplers_at_equal_passes.json")
    plot(
        {bed: summary_of(bed, found) for bed, found in results.items()},
        args.output_dir / "samplers_at_equal_passes.png",
    )
    return results


if __name__ == "__main__":
    main()
