"""What partial caching gains on the two shipped models: quality against passes and wall time, with error bars.

    python benchmarks/partial_caching.py --image_dir FOLDER_OF_MNIST --text_dir FOLDER_OF_TXT --output_dir out/partial
    python benchmarks/partial_caching.py ... --resume   # after a stop, or with other samplers, steps or groups

Cells and measures are those of `images.py` (Frechet distance, class accuracy) and `text.py` (nats and entropy, distinct
n-grams), without caching and with R = `--num_substeps` groups. "moment, 2 groups" draws each step's tokens in two
groups, with a partial pass before the second; in "pass equivalents" a partial pass over k of L positions counts as
k / L. Three more measures show what independent draws within a step lose:

marginals: total variation between the token distributions of generated and real data, at each position of the grid,
    averaged over the positions; on text, where all positions are alike, each quarter of the sequence is compared with
    all held-out text.
pairs: KL divergence of the real from the generated distribution of adjacent pairs, in nats, with 0.1 added to every
    count. For images it is the mean over left-right and top-bottom pairs of codes; for text, where there are too many
    pairs of tokens, it is that of a token's last character and the next token's first.
within-class variance: trace of the covariance of the classifier's features within a class, relative to real images;
    text has no classes, and uses entropy and distinct n-grams instead.

Marginals and pairs compare empirical distributions, so they do not reach 0: the rows of real data show the best
possible values. Differences are paired by seed. They are taken at the same number of steps, or "at equal passes": from
the curve of the same sampler without caching, interpolated at as many passes. "Nothing" means within two standard
errors. Wall time is that of the fastest seed, without decoding.

Writes `results.json` (after every cell) in `images/` and `text/`, and the plots `partial_caching.png` (one sampler) and
`samplers.png` (the others).
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from typing import Any

import images
import numpy as np
import text
import torch
from arguments import add_cell_arguments, add_pipeline_arguments, new_parser
from cell_files import KEY
from cells import Cell, Cells, differences, run_cells, summarise
from partial_caching_plot import Kind, Measures, fastest, plot, plot_others
from samplers import all_in_groups, parts
from tables import print_table, with_error
from torch import Tensor

PSEUDO_COUNT = 0.1
QUARTERS = 4
# The first measure of each kind is the one for verdicts and plots
IMAGE_MEASURES: Measures = {
    "frechet": ("Frechet distance", 1, 2),
    "accuracy": ("accuracy, %", 100, 2),
    "marginals": ("marginals, TV", 1, 4),
    "pairs": ("pairs, KL", 1, 3),
    "within-class variance": ("within-class variance", 1, 3),
}
TEXT_MEASURES: Measures = {
    "nats": ("nats", 1, 3),
    "entropy": ("entropy", 1, 3),
    **{f"distinct-{n}": (f"distinct-{n}", 1, 3) for n in text.DISTINCT},
    "marginals": ("marginals, TV", 1, 3),
    "pairs": ("pairs, KL", 1, 3),
}


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = new_parser(__doc__)
    add_pipeline_arguments(parser)
    for kind in ("image", "text"):
        parser.add_argument(f"--{kind}_dataset", help="data set on the Hub; without data, this kind is skipped")
        parser.add_argument(f"--{kind}_dir", help=f"instead: a folder, see {kind}{'s' * (kind == 'image')}.py")
    parser.add_argument("--image_samplers", nargs="*", default=["uniform", "halton", "hybrid"], help="samplers added")
    parser.add_argument("--text_samplers", nargs="*", default=["hybrid 4", "uniform", "halton"], help="samplers added")
    parser.add_argument("--image_steps", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--text_steps", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--image_more_steps", type=int, nargs="*", default=[3, 5, 16], help="plain moment, MaskGIT")
    parser.add_argument("--text_more_steps", type=int, nargs="*", default=[12, 64], help="plain moment, MaskGIT")
    parser.add_argument("--num_substeps", type=int, nargs="+", default=[1, 2, 4, 3, 8], help="groups per step")
    parser.add_argument("--num_images", type=int, default=1000, help="per seed")
    parser.add_argument("--num_sequences", type=int, default=64, help="per seed")
    parser.add_argument("--image_seeds", type=int, default=3)
    parser.add_argument("--text_seeds", type=int, default=4)
    add_cell_arguments(parser)
    args = parser.parse_args(argv)
    if not any((args.image_dir, args.image_dataset, args.text_dir, args.text_dataset)):
        parser.error("pass images or texts, for example --image_dataset ylecun/mnist")
    return args


# --- measures --------------------------------------------------------------------------------------------------------


def marginals(tokens: Tensor, num_tokens: int, num_places: int) -> Tensor:
    """Token distributions in `num_places` groups of neighbouring positions, float64 `(num_places, num_tokens)`."""
    place = torch.arange(tokens.shape[1]) * num_places // tokens.shape[1]
    counts = (place * num_tokens + tokens).flatten().bincount(minlength=num_places * num_tokens)
    counts = counts.view(num_places, num_tokens).double()
    return counts / counts.sum(-1, keepdim=True)


def total_variation(p: Tensor, q: Tensor) -> float:
    return 0.5 * (p - q).abs().sum(-1).mean().item()


def pair_divergence(num_symbols: int, real: tuple[Tensor, Tensor], generated: tuple[Tensor, Tensor]) -> float:
    """KL divergence of the real from the generated distribution of pairs (first, second), with smoothed counts."""

    def log_shares(pairs: tuple[Tensor, Tensor]) -> Tensor:
        index = (pairs[0] * num_symbols + pairs[1]).flatten()
        counts = index.bincount(minlength=num_symbols**2).double() + PSEUDO_COUNT
        return (counts / counts.sum()).log()

    p, q = log_shares(real), log_shares(generated)
    return (p.exp() * (p - q)).sum().item()


class ImageBench(images.Bench):
    """Adds the measures of codes."""

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(args, images.SAMPLERS)
        batches = (batch.to(self.pipeline.device) / 255 for batch in self.images.split(args.batch_size))
        self.codes = torch.cat([self.pipeline.encode_image(batch).cpu() for batch in batches])

    def judge_codes(self, codes: Tensor, labels: Tensor, seed: int) -> dict[str, float]:
        return {**super().judge_codes(codes, labels, seed), **self.measure_codes(codes, seed)}

    def reference(self, name: str, seed: int) -> dict[str, float]:
        return {**super().reference(name, seed), **self.measure_codes(self.codes[self.real(seed)[1]], seed)}

    def measure_codes(self, codes: Tensor, seed: int) -> dict[str, float]:
        real, size = self.codes[self.real(seed)[0]], self.shared["codebook_size"]
        num_places = real[0].numel()
        distance = total_variation(*(marginals(side.flatten(1), size, num_places) for side in (real, codes)))
        across = pair_divergence(size, *((side[:, :, :-1], side[:, :, 1:]) for side in (real, codes)))
        down = pair_divergence(size, *((side[:, :-1], side[:, 1:]) for side in (real, codes)))
        return {"marginals": distance, "pairs": (across + down) / 2}


class TextBench(text.Bench):
    """Adds the measures of tokens."""

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(args)
        tokenizer, self.num_tokens = self.pipeline.tokenizer, self.shared["mask_token_id"]
        written = [tokenizer.decode([token]) or "\0" for token in range(self.num_tokens)]
        number = {character: i for i, character in enumerate(sorted({text[i] for text in written for i in (0, -1)}))}
        self.num_characters = len(number)
        self.first = torch.tensor([number[text[0]] for text in written])
        self.last = torch.tensor([number[text[-1]] for text in written])
        self.real_marginals = marginals(self.held_out[None], self.num_tokens, 1)

    def score(self, sequences: list[Tensor]) -> dict[str, float]:
        tokens = torch.stack(sequences)
        distance = total_variation(self.real_marginals, marginals(tokens, self.num_tokens, QUARTERS))
        sides = [(self.last[side[:, :-1]], self.first[side[:, 1:]]) for side in (self.held_out[None], tokens)]
        pairs = pair_divergence(self.num_characters, *sides)
        return {**super().score(sequences), "marginals": distance, "pairs": pairs}


# --- cells -----------------------------------------------------------------------------------------------------------


def grid(reference: Sequence[str], main: Sequence[str], others: Sequence[str], args: Any, kind: str) -> list[Cell]:
    """The cells: references, then moment and MaskGIT (without caching also at more steps), then all other samplers."""
    steps, more_steps = getattr(args, f"{kind}_steps"), getattr(args, f"{kind}_more_steps")
    seeds = range(getattr(args, f"{kind}_seeds"))
    cells = [(name, 0, seed) for seed in seeds for name in reference]
    for names in (main, others):
        for num in args.num_substeps:
            more = more_steps if names is main and num == 1 else []
            numbers = [(number, seed) for number in (*steps, *more) for seed in seeds]
            cells += [(name, *number) for number in numbers for name in all_in_groups(names, [num])]
    return cells


def measure_images(args: argparse.Namespace) -> Cells:
    options = ["--pipeline", args.image_pipeline, "--output_dir", str(args.output_dir / "images")]
    options += ["--num_images", str(args.num_images), *source(args, "image")]
    own = images.make_parser(None).parse_args(options)
    wanted = grid(images.REFERENCES, ["moment", "maskgit"], args.image_samplers, args, "image")
    return run_cells(own, images.SETTINGS, wanted, lambda: ImageBench(own).measure)["cells"]


def measure_text(args: argparse.Namespace) -> Cells:
    options = ["--pipeline", args.text_pipeline, "--output_dir", str(args.output_dir / "text")]
    options += ["--num_sequences", str(args.num_sequences), *source(args, "text")]
    own = text.parse_args(options)
    wanted = grid([text.REFERENCE], ["moment 4", "maskgit 4"], args.text_samplers, args, "text")
    return run_cells(own, text.SETTINGS, wanted, lambda: TextBench(own).measure)["cells"]


def source(args: argparse.Namespace, kind: str) -> list[str]:
    folder, dataset = getattr(args, f"{kind}_dir"), getattr(args, f"{kind}_dataset")
    return [*(["--data_dir", folder] if folder else ["--dataset", dataset]), *(["--resume"] if args.resume else [])]


def at_equal_passes(cells: Cells, uncached: dict[str, str], measure: str) -> Cells:
    """The difference of each sampler with groups from the same sampler without caching, at equal passes, by seed.

    The values without caching are interpolated linearly in log(measure) and log(passes); outside the measured range
    there is no cell.
    """
    gains = []
    for cell in cells:
        base = uncached.get(cell["sampler"])
        others = [other for other in cells if (other["sampler"], other["seed"]) == (base, cell["seed"])]
        curve = sorted((other["pass equivalents"], other[measure]) for other in others)
        if curve and curve[0][0] <= cell["pass equivalents"] <= curve[-1][0]:
            expected = np.exp(np.interp(np.log(cell["pass equivalents"]), *np.log(curve).T))
            gains.append({**{name: cell[name] for name in KEY}, measure: cell[measure] - float(expected)})
    return gains


# --- tables ----------------------------------------------------------------------------------------------------------


def print_tables(cells: Cells, measures: Measures, moment: str, maskgit: str, number: int) -> None:
    """Print values with costs and gains over the same sampler without caching; then differences from both baselines."""
    names = list(dict.fromkeys(cell["sampler"] for cell in cells))
    uncached = {name: parts(name)[0] for name in names if parts(name)[1] > 1}
    first = next(iter(measures))
    gains = summarise(differences(cells, uncached)), summarise(at_equal_passes(cells, uncached, first))
    headings = [heading for heading, _, _ in measures.values()]
    costs = ["ms a sample", "full + partial passes", "pass equivalents", "gain on R = 1", "at equal passes"]
    rows = []
    for (name, steps), row in sorted(summarise(cells).items(), key=lambda item: (names.index(item[0][0]), item[0][1])):
        values = [scaled(row[key], measures[key]) for key in measures]
        cost = [""] * 3
        if steps:
            passes, partial, equivalents = (row[key][0] for key in ("passes", "partial passes", "pass equivalents"))
            milliseconds = fastest(cells, name, steps) / number
            cost = [f"{milliseconds:.1f}", f"{passes:.0f} + {partial:.0f}", f"{equivalents:.2f}"]
        own = [table.get((name, steps), {}) for table in gains]
        verdicts = [verdict(gain[first], measures[first]) if gain else "" for gain in own]
        rows.append((name, steps or "", *values, *cost, *verdicts))
    print_table(["sampler", "steps", *headings, *costs], rows)
    for table, what in zip(gains, ("R = 1 at the same steps", "R = 1 at as many passes"), strict=True):
        said = {f"{name} at {steps}": verdict(row[first], measures[first]) for (name, steps), row in table.items()}
        nothing = [key for key, words in said.items() if "(" in words]
        print(f"\nNo gain in {measures[first][0]} on {what}: {', '.join(nothing) or 'none'}.")
    print()

    bases = moment, maskgit
    against = [summarise(differences(cells, dict.fromkeys(names, base))) for base in bases]
    print(f"Differences from {moment} without groups / from {maskgit}, at the same steps:\n")
    rows = []
    for name, steps in against[0]:
        if steps and name != moment:
            own = [table[name, steps] for base, table in zip(bases, against, strict=True) if base != name]
            values = [" / ".join(scaled(row[key], measures[key]) for row in own) for key in measures]
            rows.append((name, steps, *values))
    print_table(["sampler", "steps", *headings], rows)
    print()


def scaled(value: tuple[float, float], measure: tuple[str, float, int]) -> str:
    return with_error(tuple(measure[1] * number for number in value), measure[2])


def clear(gain: tuple[float, float]) -> bool:
    """Whether a value is lower by more than two standard errors."""
    return gain[0] + 2 * gain[1] < 0


def verdict(gain: tuple[float, float], measure: tuple[str, float, int]) -> str:
    """Describes a difference as a gain, a loss or nothing, given its standard error."""
    said = scaled(gain, measure)
    if math.isnan(gain[1]):
        return said
    return said if clear(gain) else f"a loss ({said})" if clear((-gain[0], gain[1])) else f"nothing ({said})"


def main(argv: Sequence[str] | None = None) -> list[Kind]:
    args = parse_args(argv)
    kinds: list[Kind] = []
    if args.image_dir or args.image_dataset:
        cells = measure_images(args)
        kinds.append((cells, IMAGE_MEASURES, "moment", "maskgit", args.image_samplers, args.num_images))
    if args.text_dir or args.text_dataset:
        cells = measure_text(args)
        kinds.append((cells, TEXT_MEASURES, "moment 4", "maskgit 4", args.text_samplers, args.num_sequences))
    for cells, measures, moment, maskgit, _, number in kinds:
        print_tables(cells, measures, moment, maskgit, number)
    plot(kinds, args.num_substeps, args.output_dir / "partial_caching.png")
    if args.image_samplers or args.text_samplers:
        plot_others(kinds, args.num_substeps, args.output_dir / "samplers.png")
    return kinds


if __name__ == "__main__":
    main()
