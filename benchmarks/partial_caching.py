"""What partial caching is worth on the two shipped models: quality against passes and wall time, with error bars.

    python benchmarks/partial_caching.py --image_dir FOLDER_OF_MNIST --text_dir FOLDER_OF_TXT --output_dir out/partial
    python benchmarks/partial_caching.py ... --resume   # after a stop, or with other samplers, steps or groups

Cells and measures are those of `images.py` (Frechet distance, class accuracy) and `text.py` (nats and entropy, distinct
n-grams), uncached and with R = `--num_substeps` groups. "moment, 2 groups" draws each step's tokens in two groups, with
a partial pass before the second; one over k of L positions counts as k / L of a pass in "pass equivalents". To them
come measures of what a step of independent draws loses:

marginals: total variation between the token distributions of generated and real data, at each place of the grid and
    averaged over the places; on text, where all places are alike, in each quarter of the sequence against all
    held-out text.
pairs: KL divergence of the real from the generated distribution of neighbouring pairs, in nats, with 0.1 added to
    every count; on images of codes, the mean of left-right and top-bottom; on text, where pairs of tokens are too many
    to count, of the last character of a token and the first of the next.
within-class variance: trace of the covariance of the classifier's features within a class, over that of real images;
    on text, which has no classes, the entropy and the distinct n-grams stand for it.

The first two are of empirical distributions and do not reach 0: the rows of real data say what they can reach.
Differences are taken seed by seed, at the same number of steps; "nothing" are gains within two standard errors. Wall
time is that of the fastest seed, without decoding.
Writes `results.json` (after every cell) in `images/` and `text/`, and the plots `partial_caching.png` (one sampler) and
`samplers.png` (the others).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import images
import text
import torch
from cells import Cell, differences, run_cells, summarise, with_error
from passes import in_groups, parts
from torch import Tensor

PSEUDO_COUNT = 0.1
QUARTERS = 4
# measure -> heading, factor, digits; the first is the one that verdicts and plots are of
Measures = dict[str, tuple[str, float, int]]
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for kind, pipeline in (("image", "pipelines/maskgit-mnist"), ("text", "pipelines/mdlm-shakespeare")):
        parser.add_argument(f"--{kind}_pipeline", default=pipeline, help="folder or Hub name of the pipeline")
        parser.add_argument(f"--{kind}_dataset", help="data set on the Hub; without data this kind is left out")
        parser.add_argument(f"--{kind}_dir", help=f"instead: a folder, see {kind}{'s' * (kind == 'image')}.py")
    parser.add_argument("--image_samplers", nargs="*", default=["uniform", "halton", "hybrid"], help="beside moment")
    parser.add_argument("--text_samplers", nargs="*", default=["hybrid 4", "uniform", "halton"], help="beside moment 4")
    parser.add_argument("--image_steps", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--text_steps", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--image_more_steps", type=int, nargs="*", default=[3, 5, 16], help="uncached moment, MaskGIT")
    parser.add_argument("--text_more_steps", type=int, nargs="*", default=[12, 64], help="uncached moment, MaskGIT")
    parser.add_argument("--num_substeps", type=int, nargs="+", default=[1, 2, 4, 3, 8], help="R")
    parser.add_argument("--num_images", type=int, default=1000, help="a cell and seed")
    parser.add_argument("--num_sequences", type=int, default=64, help="a cell and seed")
    parser.add_argument("--image_seeds", type=int, default=3)
    parser.add_argument("--text_seeds", type=int, default=4)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--resume", action="store_true", help="keep the cells already in OUTPUT_DIR")
    return parser.parse_args(argv)


# --- measures --------------------------------------------------------------------------------------------------------


def marginals(tokens: Tensor, num_tokens: int, num_places: int) -> Tensor:
    """Token distributions of neighbouring positions together, float64 `(num_places, num_tokens)`."""
    place = torch.arange(tokens.shape[1]) * num_places // tokens.shape[1]
    counts = (place * num_tokens + tokens).flatten().bincount(minlength=num_places * num_tokens)
    counts = counts.view(num_places, num_tokens).double()
    return counts / counts.sum(-1, keepdim=True)


def total_variation(p: Tensor, q: Tensor) -> float:
    return 0.5 * (p - q).abs().sum(-1).mean().item()


def pair_divergence(num_symbols: int, real: tuple[Tensor, Tensor], generated: tuple[Tensor, Tensor]) -> float:
    """KL divergence of pairs (first, second) from real to generated ones, with smoothed counts."""

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
    """References, then moment with MaskGIT (uncached also at more steps), then the others."""
    steps, more_steps = getattr(args, f"{kind}_steps"), getattr(args, f"{kind}_more_steps")
    seeds = range(getattr(args, f"{kind}_seeds"))
    cells = [(name, 0, seed) for seed in seeds for name in reference]
    for names in (main, others):
        for num in args.num_substeps:
            more = more_steps if names is main and num == 1 else []
            groups = [in_groups(name, num) for name in names if num == 1 or not name.startswith("maskgit")]
            cells += [(name, number, seed) for number in (*steps, *more) for seed in seeds for name in groups]
    return cells


def measure_images(args: argparse.Namespace) -> list[dict[str, Any]]:
    options = ["--pipeline", args.image_pipeline, "--output_dir", str(args.output_dir / "images")]
    options += ["--num_images", str(args.num_images), *source(args, "image")]
    own = images.make_parser(None).parse_args(options)

    def prepare() -> Callable[[str, int, int], dict[str, float]]:
        bench = ImageBench(own)
        bench.pipeline(class_labels=0, num_inference_steps=1, output_type="pt")  # warms up
        return lambda name, steps, seed: (bench.generate if steps else bench.reference)(
            *((name, steps, seed) if steps else (name, seed))
        )

    wanted = grid(images.REFERENCES, ["moment", "maskgit"], args.image_samplers, args, "image")
    return run_cells(own, images.SETTINGS, wanted, prepare)["cells"]


def measure_text(args: argparse.Namespace) -> list[dict[str, Any]]:
    options = ["--pipeline", args.text_pipeline, "--output_dir", str(args.output_dir / "text")]
    options += ["--num_sequences", str(args.num_sequences), *source(args, "text")]
    own = text.parse_args(options)
    wanted = grid([text.REFERENCE], ["moment 4", "maskgit 4"], args.text_samplers, args, "text")
    return run_cells(own, text.SETTINGS, wanted, lambda: TextBench(own).measure)["cells"]


def source(args: argparse.Namespace, kind: str) -> list[str]:
    folder, dataset = getattr(args, f"{kind}_dir"), getattr(args, f"{kind}_dataset")
    return [*(["--data_dir", folder] if folder else ["--dataset", dataset]), *(["--resume"] if args.resume else [])]


# --- tables ----------------------------------------------------------------------------------------------------------


def print_tables(cells: list[dict[str, Any]], measures: Measures, moment: str, maskgit: str, number: int) -> None:
    """Values with costs and the gain over the same sampler uncached, then all differences from the two baselines."""
    names = list(dict.fromkeys(cell["sampler"] for cell in cells))
    uncached = {name: parts(name)[0] for name in names if parts(name)[1] > 1}
    gains, first = summarise(differences(cells, uncached)), next(iter(measures))
    headings = [heading for heading, _, _ in measures.values()]
    costs = ["ms a sample", "full + partial passes", "pass equivalents", f"{measures[first][0]} against R = 1"]
    print_row(["sampler", "steps", *headings, *costs])
    print_row(["---", *["---:"] * (len(headings) + 5)])
    for (name, steps), row in summarise(cells).items():
        values = [scaled(row[key], measures[key]) for key in measures]
        cost = [""] * 3
        if steps:
            passes, partial, equivalents = (row[key][0] for key in ("passes", "partial passes", "pass equivalents"))
            milliseconds = fastest(cells, name, steps) / number
            cost = [f"{milliseconds:.1f}", f"{passes:.0f} + {partial:.0f}", f"{equivalents:.2f}"]
        gain = gains.get((name, steps))
        print_row([name, str(steps or ""), *values, *cost, verdict(gain[first], measures[first]) if gain else ""])
    nothing = [f"{name} at {steps}" for (name, steps), row in gains.items() if not clear(row[first])]
    print(f"\nNo gain in {measures[first][0]} beyond two standard errors: {', '.join(nothing) or 'none'}.\n")

    bases = moment, maskgit
    against = [summarise(differences(cells, dict.fromkeys(names, base))) for base in bases]
    print(f"Differences from {moment} without groups / from {maskgit}, at the same steps:\n")
    print_row(["sampler", "steps", *headings])
    print_row(["---", *["---:"] * (len(headings) + 1)])
    for name, steps in against[0]:
        if steps and name != moment:
            rows = [table[name, steps] for base, table in zip(bases, against, strict=True) if base != name]
            values = [" / ".join(scaled(row[key], measures[key]) for row in rows) for key in measures]
            print_row([name, str(steps), *values])
    print()


def fastest(cells: list[dict[str, Any]], name: str, steps: int) -> float:
    """Milliseconds of the seed that the machine was least busy with."""
    return 1000 * min(cell["seconds"] for cell in cells if (cell["sampler"], cell["steps"]) == (name, steps))


def print_row(values: Sequence[str]) -> None:
    print(f"| {' | '.join(values)} |")


def scaled(value: tuple[float, float], measure: tuple[str, float, int]) -> str:
    return with_error(tuple(measure[1] * number for number in value), measure[2])


def clear(gain: tuple[float, float]) -> bool:
    """A lower value by more than two standard errors."""
    return gain[0] + 2 * gain[1] < 0


def verdict(gain: tuple[float, float], measure: tuple[str, float, int]) -> str:
    return scaled(gain, measure) if clear(gain) else f"nothing ({scaled(gain, measure)})"


# --- plots -----------------------------------------------------------------------------------------------------------


# cells, measures, moment, MaskGIT, the other samplers, samples of a cell
Kind = tuple[list[dict[str, Any]], Measures, str, str, Sequence[str], int]
# R -> colour and where the step count stands, in points from its mark
STYLES = {1: ("black", (-7, -11)), 2: ("tab:blue", (4, 3)), 3: ("tab:green", (4, 3)), 4: ("tab:orange", (4, 3))}
MORE_STYLES = ("tab:purple", "tab:brown", "tab:pink", "tab:olive")
TICKS = {
    "pass equivalents": ("passes, a partial one as k / L", (1, 2, 4, 8, 16, 32, 64, 128)),
    "seconds": ("milliseconds a sample", (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)),
    "frechet": ("Frechet distance", (2, 5, 10, 20, 40, 80, 160)),
}


def curve(axis: Any, kind: Kind, name: str, x: str, colour: str, offset: tuple[int, int], **style: Any) -> None:
    """Quality against cost, the step count beside each point."""
    cells, measures, *_, number = kind
    y = next(iter(measures))
    rows = [(steps, row) for (sampler, steps), row in summarise(cells).items() if sampler == name and steps]
    points = sorted(
        (steps, fastest(cells, name, steps) / number if x == "seconds" else row[x][0], *row[y]) for steps, row in rows
    )
    if not points:
        return
    steps, costs, values, errors = zip(*points, strict=True)
    axis.errorbar(costs, values, errors, marker="o", markersize=4, capsize=2, linewidth=1.2, color=colour, **style)
    for place in zip(steps, costs, values, strict=True):
        label = {"xytext": offset, "textcoords": "offset points", "fontsize": 8, "color": colour}
        axis.annotate(str(place[0]), place[1:], **label)


def curves(axis: Any, kind: Kind, sampler: str, x: str, num_substeps: Sequence[int]) -> None:
    """A sampler by R."""
    more = iter(MORE_STYLES)
    for num in sorted(num_substeps):
        colour, offset = STYLES[num] if num in STYLES else (next(more), (4, 3))
        curve(axis, kind, in_groups(sampler, num), x, colour, offset, label=f"R = {num}")
    for scale, measure in ((axis.xaxis, x), (axis.yaxis, next(iter(kind[1])))):
        label, ticks = TICKS.get(measure, (f"{measure} a character", ()))
        scale.set_label_text(label)
        if ticks:
            getattr(axis, f"set_{scale.axis_name}scale")("log")
            low, high = scale.get_view_interval()
            scale.set_ticks([tick for tick in ticks if low <= tick <= high])
            scale.set_major_formatter("{x:g}")
            scale.set_ticks([], minor=True)


def plot(kinds: list[Kind], num_substeps: Sequence[int], folder: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, len(kinds), figsize=(8, 6.6), layout="constrained", squeeze=False)
    for column, kind in enumerate(kinds):
        *_, moment, maskgit, _, _ = kind
        for axis, x in zip(axes[:, column], ("pass equivalents", "seconds"), strict=True):
            style = {"linestyle": "--", "label": maskgit.replace("maskgit", "MaskGIT")}
            curve(axis, kind, maskgit, x, "tab:red", (3, 4), **style)
            curves(axis, kind, moment, x, num_substeps)
        axes[0, column].set_title(f"{'text' if 'nats' in kind[1] else 'images'}: {moment}")
    legend = {"loc": "outside lower center", "title": "numbers: steps"}
    handles = axes[0, 0].get_legend_handles_labels()
    figure.legend(*handles, ncols=len(handles[0]), **legend)
    figure.savefig(folder / "partial_caching.png", dpi=200)

    width = max(len(kind[4]) for kind in kinds)
    figure, axes = plt.subplots(len(kinds), width, figsize=(8, 5.4), layout="constrained", squeeze=False, sharey="row")
    for row, kind in zip(axes, kinds, strict=True):
        for axis, name in zip(row, kind[4], strict=False):
            curves(axis, kind, name, "pass equivalents", num_substeps)
            axis.set_title(name)
            axis.label_outer()
    handles = axes[0, 0].get_legend_handles_labels()
    figure.legend(*handles, ncols=len(handles[0]), **legend)
    figure.savefig(folder / "samplers.png", dpi=200)
    plt.close("all")


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
    plot(kinds, args.num_substeps, args.output_dir)
    return kinds


if __name__ == "__main__":
    main()
