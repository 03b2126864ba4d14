"""Does it pay to give each row and step a number of groups of its own? Quality against partial passes, with errors.

    python benchmarks/adaptive_groups.py --text_dir FOLDER_OF_TXT --image_dir FOLDER_OF_MNIST --output_dir out/adaptive

Partial caching draws a step's positions in R groups, with a partial pass before each but the first. Here some rules
decide R for every row and step, from what the model says of the positions that the step reveals:

constant R: the same for all, as `PartialCacheConfig(num_substeps=R)` has it.
entropy b: before the first group, one group for every b nats of `sum H - max H`, which bounds what is lost when all are
    drawn at once.
change b: after the first of R groups and the partial pass behind it, one more group for every b tokens that this has
    changed: b is compared with the sum, over positions not drawn yet, of the total variation between the marginals
    before and after.
stop b: as long as the last partial pass has changed more than b of a token for each position that is not drawn yet.

`--most` bounds R. Full passes are the same for all, one a step, so a rule is worth something if it lies below the line
through the constant R at as many partial passes: the column "below the line", paired by seed. The sampler is the moment
sampler at choice temperature 4 for text, `--choice_temperature` for images; seeds, data and measures are those of
`text.py` and `images.py`. Prints a table for each model, and writes `text/results.json`, `images/results.json` (after
every cell) and `adaptive_groups.png`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import images
import numpy as np
import text
import torch
from arguments import new_parser
from beds import most_rows
from cells import Cells, run_cells, seed_by_seed, summarise
from looks import BLACK, BLUE, GREEN, VERMILLION
from passes import draw_set, generators_from
from plots import End, draw_curve, figure, label_ends
from tables import print_table, with_error
from torch import Tensor

from hf_maskdiff import ChooseThenSampleScheduler, MomentScheduler
from hf_maskdiff.evaluation.report import mean_and_error

CONSTANT = "constant"
COLOURS = {CONSTANT: BLACK, "entropy": BLUE, "change": GREEN, "stop": VERMILLION}
MEASURES = {"text": ("nats", "entropy"), "images": ("frechet", "within-class variance")}
# Bounds of each rule, for the two models.
BOUNDS = {
    "text": {CONSTANT: [1, 2, 3, 4, 8], "entropy": [8, 14], "change": [0.4, 0.8], "stop": [0.05, 0.1]},
    "images": {CONSTANT: [1, 2, 4, 8], "entropy": [8, 14], "change": [0.4], "stop": [0.05]},
}


@dataclass(frozen=True)
class Rule:
    """In how many groups the rest of a step is drawn, `left`, int64 `(batch_size,)`; here in as many as bound says.

    Marginals are `(batch_size, K, V)`, of the step's K ranks; `open_ranks`, bool `(batch_size, K)`, are not drawn yet.
    """

    bound: float
    most: int

    def at_first(self, now: Tensor, open_ranks: Tensor) -> Tensor:
        return torch.full((len(now),), int(self.bound), device=now.device)

    def after_a_pass(self, group: int, now: Tensor, before: Tensor, open_ranks: Tensor, left: Tensor) -> Tensor:
        return left


class ByEntropy(Rule):
    def at_first(self, now: Tensor, open_ranks: Tensor) -> Tensor:
        entropies = torch.special.entr(now).sum(-1).masked_fill(~open_ranks, 0)
        return ((entropies.sum(-1) - entropies.amax(-1)) / self.bound).round().long()


class ByChange(Rule):
    def at_first(self, now: Tensor, open_ranks: Tensor) -> Tensor:
        return torch.full((len(now),), self.most, device=now.device)

    def after_a_pass(self, group: int, now: Tensor, before: Tensor, open_ranks: Tensor, left: Tensor) -> Tensor:
        return (changed(now, before, open_ranks) / self.bound).round().long() if group == 1 else left


class UntilCalm(ByChange):
    def after_a_pass(self, group: int, now: Tensor, before: Tensor, open_ranks: Tensor, left: Tensor) -> Tensor:
        calm = changed(now, before, open_ranks) <= self.bound * open_ranks.sum(-1)
        return left.masked_fill(calm, 1)


RULES: dict[str, type[Rule]] = {CONSTANT: Rule, "entropy": ByEntropy, "change": ByChange, "stop": UntilCalm}


def changed(now: Tensor, before: Tensor, open_ranks: Tensor) -> Tensor:
    """The expected number of tokens that would be drawn otherwise than before, `(batch_size,)`."""
    return 0.5 * (now - before).abs().sum(-1).masked_fill(~open_ranks, 0).sum(-1)


@torch.no_grad()
def fill(
    model: Callable[..., Tensor],
    new_cache: Callable[[], Any],
    scheduler: ChooseThenSampleScheduler,
    sample: Tensor,
    generators: list[torch.Generator],
    rule: Rule,
) -> Tensor:
    """Fill in rows that are all masks, `(batch_size, L)`, with groups as the rule has them.

    Args:
        model: (tokens, time, cache=, positions=) -> logits; positions as `KeyValueCache` takes them.
    """
    memory, counts = scheduler.new_memory(), scheduler.planned_counts(torch.tensor([sample.shape[1]]))
    assert counts is not None
    for t, count in zip(scheduler.timesteps, counts[:, 0].tolist(), strict=True):
        cache = new_cache()
        logits = model(sample, t, cache=cache)
        choice = scheduler.choose(logits, t, sample, 1.0, generators, count, memory=memory)
        logits = logits.gather(1, choice.positions[..., None].expand(-1, -1, logits.shape[-1]))
        tokens, open_ranks, group = choice.tokens, choice.valid, 0
        now, ranks = marginals_of(scheduler, logits), torch.arange(count, device=sample.device)
        left = rule.at_first(now, open_ranks)
        while bool(open_ranks.any()):
            if group:
                drawing = open_ranks.any(-1, keepdim=True)
                logits = model(
                    tokens, t, cache=cache, positions=torch.where(drawing, choice.positions, ~choice.positions)
                )
                before, now = now, marginals_of(scheduler, logits)
                left = rule.after_a_pass(group, now, before, open_ranks, left)
            left = left.clamp(1, rule.most)
            num_drawn = count - open_ranks.sum(-1)
            size = -(-(count - num_drawn) // left)  # larger groups first, as in partial caching
            wanted = open_ranks & (ranks < (num_drawn + size)[:, None])
            tokens = torch.where(wanted, scheduler.sample_tokens(logits, choice, wanted), tokens)
            open_ranks, left, group = open_ranks & ~wanted, left - 1, group + 1
        sample = sample.scatter(1, choice.positions, tokens)
    return sample


def marginals_of(scheduler: ChooseThenSampleScheduler, logits: Tensor) -> Tensor:
    """The probabilities of the tokens that the scheduler may draw."""
    return logits[..., : scheduler.marginals(logits).num_tokens].float().softmax(-1)


def rule_of(name: str, most: int) -> Rule:
    kind, bound = name.split(" ")
    return RULES[kind](float(bound), most)


class TextBench(text.Bench):
    """Texts of the model's length, from nothing."""

    def write(self, sampler: str, steps: int, seed: int) -> tuple[list[Tensor], dict[str, float]]:
        model, number = self.pipeline.transformer, self.args.num_sequences
        scheduler = self.pipeline.scheduler = MomentScheduler(**self.shared, choice_temperature=4.0)
        scheduler.set_timesteps(steps)
        rule = rule_of(sampler, self.args.most)

        def call(tokens: Tensor, t: Tensor, **arguments: Any) -> Tensor:
            return model(tokens, t, return_dict=False, **arguments)[0]

        def draw(generators: list[torch.Generator]) -> list[Tensor]:
            shape = (len(generators), model.config.model_length)
            sample = torch.full(shape, self.shared["mask_token_id"], device=model.device)
            return list(fill(call, model.new_cache, scheduler, sample, generators, rule).cpu())

        return draw_set(draw, self.args.batch_size, self.needed, generators_from(seed * number, number))


class ImageBench(images.Bench):
    """Images of all classes, from nothing."""

    def draw(self, sampler: str, steps: int, seed: int) -> tuple[Tensor, dict[str, float]]:
        model, number = self.pipeline.transformer, self.args.num_images
        alpha = self.args.choice_temperature
        scheduler = self.pipeline.scheduler = MomentScheduler(**self.shared, choice_temperature=alpha)
        scheduler.set_timesteps(steps)
        rule, side = rule_of(sampler, self.args.most), model.config.sample_size

        def draw(generators: list[torch.Generator], labels: list[int]) -> list[Tensor]:
            sample = torch.full((len(generators), side * side), self.shared["mask_token_id"], device=model.device)
            classes = torch.tensor(labels, device=model.device)

            def call(tokens: Tensor, t: Tensor, **arguments: Any) -> Tensor:
                return model(tokens, classes, return_dict=False, **arguments)[0]

            codes = fill(call, model.new_cache, scheduler, sample, generators, rule)
            return list(codes.view(-1, side, side).cpu())

        columns = (generators_from(seed * number, number), self.labels[self.real(seed)[0]].tolist())
        codes, cost = draw_set(draw, self.args.batch_size, self.needed, *columns)
        return torch.stack(codes), cost


# --- the comparison with constant R -----------------------------------------------------------------------------------


def below_the_line(cells: Cells, measure: str) -> dict[str, tuple[float, float]]:
    """How far each rule is below the line through the constant R at as many partial passes, paired by seed."""
    gains: dict[str, list[float]] = {}
    for seed in sorted({cell["seed"] for cell in cells}):
        own = [cell for cell in cells if cell["seed"] == seed and cell["steps"]]
        line = sorted((c["partial passes"], c[measure]) for c in own if c["sampler"].startswith(CONSTANT))
        for cell in own:
            if not cell["sampler"].startswith(CONSTANT):
                expected = float(np.interp(cell["partial passes"], *zip(*line, strict=True)))
                gains.setdefault(cell["sampler"], []).append(expected - cell[measure])
    return {name: mean_and_error(values) for name, values in gains.items()}


def print_rows(cells: Cells, kind: str) -> None:
    first, second = MEASURES[kind]
    gains, rows = below_the_line(cells, first), []
    for (name, steps), row in summarise(cells).items():
        if steps:
            gain = with_error(gains[name], 3) if name in gains else ""
            cost = (f"{row['passes'][0]:.1f}", f"{row['partial passes'][0]:.1f}")
            rows.append((name, *cost, with_error(row[first], 3), gain, with_error(row[second], 3)))
    print_table(["rule", "full passes", "partial passes", first, "below the line", second], rows)
    print()


def plot(results: dict[str, Cells], path: Path, title: str = "Groups by row and step, and the same for all") -> None:
    with figure(path, title=title, figsize=(max(8, 5.5 * len(results)), 4.8)) as page:
        panels, ends = page.subplots(1, len(results), squeeze=False)[0], {}
        for axis, (kind, cells) in zip(panels, results.items(), strict=True):
            measure, summary, ends[axis] = MEASURES[kind][0], summarise(cells), []
            for rule, colour in COLOURS.items():
                rows = [row for (name, steps), row in summary.items() if steps and name.startswith(rule)]
                points = sorted((row["partial passes"][0], *row[measure]) for row in rows)
                draw_curve(axis, points, rule, color=colour)
                ends[axis].append(End(rule, *points[-1][:2], colour))
            axis.set(xlabel="partial passes a sample", ylabel=measure, title=kind)
            axis.autoscale_view()  # before names are written beside it
        label_ends(page, ends)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = new_parser(__doc__)
    parser.add_argument("--text_dir", help="folder of .txt files")
    parser.add_argument("--image_dir", help="folder with IDX files, or what `examples/render_letters.py` wrote")
    parser.add_argument("--image_pipeline", default="pipelines/maskgit-mnist", help="folder or Hub name")
    parser.add_argument("--choice_temperature", type=float, default=6.0, help="of images")
    parser.add_argument("--text_steps", type=int, default=8)
    parser.add_argument("--image_steps", type=int, default=4)
    parser.add_argument("--most", type=int, default=8, help="groups of a step at most")
    parser.add_argument("--num_seeds", type=int, default=3)
    parser.add_argument("--num_samples", type=int, help="per seed; by default 64 texts and 1000 images")
    parser.add_argument("--output_dir", type=Path, required=True)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> dict[str, Cells]:
    args, results = parse_args(argv), {}
    shared = ["--resume", "--num_seeds", str(args.num_seeds), "--output_dir"]
    text_options, image_options = ([*shared, str(args.output_dir / kind)] for kind in ("text", "images"))
    if args.text_dir:
        text_options += ["--data_dir", args.text_dir, "--num_sequences", str(args.num_samples or 64)]
        results["text"] = measure(
            args, text.parse_args(text_options), "text", args.text_steps, TextBench, text.SETTINGS
        )
    if args.image_dir:
        image_options += ["--data_dir", args.image_dir, "--num_images", str(args.num_samples or 1000)]
        image_options += ["--pipeline", args.image_pipeline, "--choice_temperature", str(args.choice_temperature)]
        image_options += ["--batch_size", str(most_rows(250))]
        bench = lambda options: ImageBench(options, {})  # noqa: E731
        options = images.parse_args(image_options)
        results["images"] = measure(args, options, "images", args.image_steps, bench, images.SETTINGS)
    for kind, cells in results.items():
        print_rows(cells, kind)
    plot(results, args.output_dir / "adaptive_groups.png")
    return results


def measure(
    args: argparse.Namespace,
    options: argparse.Namespace,
    kind: str,
    steps: int,
    bench: Callable[[argparse.Namespace], Any],
    settings: Sequence[str],
) -> Cells:
    options.most = args.most
    names = [f"{rule} {bound}" for rule, bounds in BOUNDS[kind].items() for bound in bounds]
    wanted = seed_by_seed([(name, steps) for name in names], args.num_seeds)
    return run_cells(options, (*settings, "most"), wanted, lambda: bench(options).measure)["cells"]


if __name__ == "__main__":
    main()
