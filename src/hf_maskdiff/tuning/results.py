"""What a search found: a table, a picture, a file, and presets with cards that say how they were found."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from hf_maskdiff_cli.results import write_results
from hf_maskdiff_cli.results.numbers import with_error

from .front import Score, differ, pareto_front
from .halving import Plan
from .judging import Judge
from .results_file import results_of
from .space import AS_SHIPPED, Candidate
from .trials import Trial

_CARD = """\
---
library_name: hf-maskdiff
---

# {name}

{words}

## How it was found

{found}
"""


@dataclass(frozen=True)
class Found:
    """A finalist, or the pipeline's own scheduler.

    Args:
        candidate: what it is.
        searched: its score in the last round of the search; None if it did not come so far.
        held_out: its score on new seeds, which decided nothing; errors are over sets if there are several.
        passes: of the model, for each sample.
        seconds: for each sample, summed over processes.
        seconds_error: standard error over the sets of new seeds; NaN for one.
        is_chosen: whether it was the best of its level in the search, and diverse enough.
    """

    candidate: Candidate
    searched: Score | None
    held_out: Score
    passes: float
    seconds: float
    seconds_error: float
    is_chosen: bool

    @property
    def name(self) -> str:
        """The sampler, its settings and its steps."""
        return f"{self.candidate.name}, {self.candidate.num_inference_steps} steps"

    @property
    def is_overfitted(self) -> bool:
        """Whether the new seeds say something worse than the search did, by more than twice the common error."""
        if self.searched is None or self.held_out.value <= self.searched.value:
            return False
        return differ(self.held_out.value, self.held_out.error, self.searched.value, self.searched.error)


@dataclass(frozen=True)
class Results:
    """All that a search found.

    Args:
        found: finalists and the pipeline's own scheduler, level by level.
        first: all trials of the first round.
        plan: what was done.
        floor: the least diversity that a choice may have.
        own_diversity: that of uniform order at the most passes, without a choice temperature.
        args: of the command.
        judge: what the numbers mean; None where another process judged.
        budget: in model passes.
    """

    found: Sequence[Found]
    first: Sequence[Trial]
    plan: Plan
    floor: float
    own_diversity: float
    args: argparse.Namespace
    judge: Judge | None
    budget: float

    @property
    def chosen(self) -> list[Found]:
        """The best of each level, where one is diverse enough."""
        return [one for one in self.found if one.is_chosen]

    def shipped(self, level: int) -> Found:
        """The pipeline's own scheduler at a level."""
        return next(one for one in self.found if (one.candidate.level, one.candidate.name) == (level, AS_SHIPPED))

    def fronts(self) -> tuple[list[int], list[int]]:
        """Which of `found` no other beats in quality and passes, and in quality and seconds."""
        values = [one.held_out.value for one in self.found]
        costs = [round(one.passes, 6) for one in self.found], [one.seconds for one in self.found]
        return pareto_front(costs[0], values), pareto_front(costs[1], values)

    def table(self) -> str:
        """The table in Markdown, with what its words mean."""
        quality, diversity = (self.judge.quality, self.judge.diversity) if self.judge else ("value", "diversity")
        head = ("sampler", "passes", "ms a sample", f"{quality}, search", f"{quality}, new seeds", diversity, "")
        by_passes, by_seconds = self.fronts()
        lines = [_line(head), _line(["---", *["---:"] * 5, "---"])]
        for index, one in enumerate(self.found):
            notes = ["**chosen**"] if one.is_chosen else []
            notes += ["front"] if index in by_passes else []
            notes += ["front in time"] if index in by_seconds else []
            notes += ["too little diversity"] if one.held_out.lacks(self.floor) else []
            notes += ["overfitted"] if one.is_overfitted else []
            searched = "" if one.searched is None else with_error(one.searched.value, one.searched.error)
            again = with_error(one.held_out.value, one.held_out.error)
            spread = with_error(one.held_out.diversity, one.held_out.diversity_error)
            milliseconds = with_error(1000 * one.seconds, 1000 * one.seconds_error)
            cells = [one.name, f"{one.passes:.2f}", milliseconds, searched, again, spread, ", ".join(notes)]
            lines.append(_line(cells))
        return "\n".join([*lines, "", *(f"- {note}" for note in self._notes())])

    def _notes(self) -> list[str]:
        samples = self.plan.rounds[-1].num_samples
        return [
            f"less is better; search: one set of {samples} samples, on which the choice was made; new seeds: "
            f"{self.plan.num_held_out} sets of {samples} that decided nothing, error over sets",
            f"chosen: the best of its level in the search whose diversity is not below {self.floor:.4g}, which is "
            f"{self.args.min_diversity:g} of what uniform order without a choice temperature has at the most passes, "
            f"{self.own_diversity:.4g}",
            "front: no other row has less of both, value on new seeds and passes (or seconds)",
            "overfitted: worse on new seeds than in the search, by more than twice the common error",
            f"searched at {self.budget:.0f} model passes of a sample, {100 * self.plan.share:.1f} % of what it would "
            "cost to judge every candidate as the finalists are",
        ]

    def save(self, folder: Path) -> None:
        """Write `tune.md`, `tune.png`, `results.json` and the presets."""
        (folder / "tune.md").write_text(self.table() + "\n", encoding="utf-8")
        write_results(results_of(self), folder / "results.json")
        for one in self.chosen:
            self._save_preset(one, folder / "presets" / f"{one.candidate.level}-passes")
        self.plot(folder / "tune.png")

    def _save_preset(self, one: Found, folder: Path) -> None:
        """The scheduler, with a card."""
        scheduler, quality = one.candidate.scheduler, self.judge.quality if self.judge else "value"
        scheduler.save_pretrained(folder)
        groups = one.candidate.num_substeps
        cache = f" and `enable_cache(PartialCacheConfig(num_substeps={groups}))`" if groups > 1 else ""
        words = (
            f"For `{self.args.pipeline}` at {one.candidate.level} passes: call it with "
            f"`num_inference_steps={one.candidate.num_inference_steps}`{cache}."
        )
        shipped = self.shipped(one.candidate.level)
        is_other = shipped.candidate != one.candidate
        differs = differ(*_pair(one.held_out), *_pair(shipped.held_out))
        size = "more" if differs else "no more"
        verdict = f" The difference is {size} than twice its error." if is_other else ""
        own = f"; the pipeline's own has {with_error(*_pair(shipped.held_out))}" if is_other else ""
        found = (
            f"By `hf-maskdiff tune`, the best of {self.plan.rounds[0].num_kept[one.candidate.level]} candidates at "
            f"{one.candidate.level} passes by {quality}. On {self.plan.num_held_out} sets of "
            f"{self.plan.rounds[-1].num_samples} samples with new seeds: {with_error(*_pair(one.held_out))}{own}."
            f"{verdict} Diversity: {with_error(one.held_out.diversity, one.held_out.diversity_error)}, where "
            f"{self.floor:.4g} was asked for.\n\n{self.table()}"
        )
        written = ModelCard(_CARD.format(name=folder.name, words=words, found=found))
        scheduler.generate_model_card(folder.as_posix(), written).save(folder / "README.md")

    def plot(self, path: Path) -> None:
        """Quality against passes and against seconds; colours show the diversity, lines the fronts."""
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt

        quality, diversity = (self.judge.quality, self.judge.diversity) if self.judge else ("value", "diversity")
        figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), sharey=True, layout="constrained")
        by_passes, by_seconds = self.fronts()
        both: list[Found | Trial] = [*self.found, *self.first]
        sides = (
            (axes[0], [one.passes for one in both], by_passes, "model passes"),
            (axes[1], [1000 * one.seconds for one in both], by_seconds, "milliseconds a sample"),
        )
        values = [one.held_out.value for one in self.found]
        spread = [one.held_out.diversity for one in self.found] + [one.score.diversity for one in self.first]
        colours: dict[str, Any] = {"vmin": min(spread), "vmax": max(spread), "cmap": "viridis"}
        for axis, costs, front, label in sides:
            of_first = list(zip(costs[len(values) :], (one.score for one in self.first), strict=True))
            for lacks, style in ((False, "o"), (True, "x")):
                some = [(cost, one.value, one.diversity) for cost, one in of_first if one.lacks(self.floor) == lacks]
                x, y, colour = zip(*some, strict=True) if some else ((), (), ())
                name = f"first round{', too little diversity' if lacks else ''}"
                axis.scatter(x, y, s=14, c=colour, marker=style, alpha=0.5, label=name, **colours)
            own = costs[: len(values)]
            axis.errorbar(own, values, [_or_zero(one.held_out.error) for one in self.found], fmt="none", color="0.5")
            dots = axis.scatter(own, values, c=spread[: len(values)], s=60, zorder=3, label="on new seeds", **colours)
            axis.plot([own[i] for i in front], [values[i] for i in front], color="C3", lw=1, label="front")
            shipped = [(own[i], values[i]) for i, one in enumerate(self.found) if one.candidate.name == AS_SHIPPED]
            square = {"marker": "s", "s": 130, "facecolors": "none", "edgecolors": "k"}
            axis.scatter(*zip(*shipped, strict=True), label="the pipeline's own", **square)
            axis.set(xlabel=label, xscale="log")
            axis.grid(alpha=0.3)
        levels = sorted({one.candidate.level for one in self.found})
        axes[0].set_xticks(levels, [str(level) for level in levels])
        axes[0].minorticks_off()
        axes[0].set_ylabel(f"{quality} (less is better)")
        axes[0].legend(fontsize=7)
        figure.colorbar(dots, ax=axes, label=diversity)
        figure.savefig(path, dpi=110)
        plt.close(figure)


def _pair(score: Score) -> tuple[float, float]:
    return score.value, score.error


def _or_zero(error: float) -> float:
    return 0.0 if math.isnan(error) else error


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
