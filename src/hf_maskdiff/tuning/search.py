"""What `hf-maskdiff tune` does after checking its arguments: the search, the finalists on new seeds, the results."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from datasets import disable_progress_bars

from hf_maskdiff.devices import require_device, telling_of_memory
from hf_maskdiff.evaluation.report import mean_and_error
from hf_maskdiff.parallel import cost_of, on_main_process, start_processes
from hf_maskdiff.sets.loading import load_pipeline
from hf_maskdiff.sets.making import settled
from hf_maskdiff_cli.generate import add_arguments as add_generate_arguments
from hf_maskdiff_cli.names import IMAGES, PIPELINES
from hf_maskdiff_cli.samples import require_judged
from hf_maskdiff_cli.tune import DECIDING

from .front import Score, ranked
from .halving import Plan, plan_search, run_rounds
from .judging import Judge, judge_of
from .results import Found, Results
from .space import AS_SHIPPED, Candidate, candidates
from .trials import Bench, Ledger, Trial

HELD_OUT = 1000  # the first of the new seeds, counted from the search's


@dataclass
class _Search:
    """A search that is under way; all processes hold the same.

    Args:
        args: checked arguments of `hf-maskdiff tune`.
        bench: makes and judges samples.
        ledger: what is there already; of the first process.
        judge: gives the judge, in the first process.
        candidates: all of them, by key.
    """

    args: argparse.Namespace
    bench: Bench
    ledger: Ledger
    judge: Any
    candidates: dict[str, Candidate]

    def trial(self, key: str, seed: int, num_samples: int) -> Trial:
        """A trial, from the file where it is there."""
        state = self.bench.state
        known = on_main_process(lambda: self.ledger.find(key, seed), state)
        if known is not None:
            return known
        found = self.bench.trial(self.candidates[key], seed, num_samples, self.judge)
        on_main_process(lambda: self.ledger.add(found), state)
        return found

    def plan(self) -> Plan:
        """The plan, by the budget in passes; one in seconds is converted by what a first small set took."""
        is_new = "budget" not in self.ledger.content
        if is_new:
            budget = float(self.args.max_passes) if self.args.max_passes else self._passes_in(self.args.max_seconds)
            self.ledger.content["budget"] = on_main_process(lambda: budget, self.bench.state)

        def planned() -> Plan:
            judge: Judge = self.judge()
            levels = Counter(one.level for one in self.candidates.values())
            costs = {level: float(level + judge.passes) for level in levels}
            numbers = self.args.finalists, self.args.num_seeds, judge.fewest_samples
            block = self.bench.making.block_size
            return plan_search(levels, costs, self.ledger.content["budget"], *numbers, self.args.factor, block)

        plan = on_main_process(planned, self.bench.state)
        if is_new and self.bench.state.is_main_process:
            self.ledger.save()  # not before: a budget that was refused is raised in the same folder
        return plan

    def _passes_in(self, seconds: float) -> float:
        """Model passes that so many seconds of all processes together hold."""
        anchor, number = self.candidates[self.anchor], 4 * self.bench.making.block_size
        folder = self.bench.make(anchor, self.args.seed - 1, number)
        passes, taken = cost_of(folder)
        return seconds * number * (passes or 1) / (taken or 1)

    @property
    def anchor(self) -> str:
        """Uniform order at the model's own temperature and the most passes: its diversity is what others keep."""
        last = max(one.level for one in self.candidates.values())
        at_last = {one.name: key for key, one in self.candidates.items() if one.level == last}
        return at_last.get("Uniform") or at_last[AS_SHIPPED]


def tune(args: argparse.Namespace) -> Results | None:
    """Search, judge the finalists on new seeds, write the results to `args.output_dir`, and return them.

    On several processes all of them make samples, and the first one judges; the others return None.

    Args:
        args: checked arguments of `hf_maskdiff_cli.tune`, and `prompts`.

    Raises:
        ValueError: a pipeline, judge, reference or budget that does not fit.
        OSError: a file cannot be read or written; what is finished is kept.
        ImportError: a package that a measure needs is not installed.
        MemoryError: model and batch do not fit into the memory.
    """
    if args.device is not None:
        require_device("--device", args.device)
    with telling_of_memory("Pass a smaller --batch_size or --eval_batch_size; what is finished is kept."):
        return _tune(args)


def _tune(args: argparse.Namespace) -> Results | None:
    state = start_processes()
    disable_progress_bars()  # one for each set that is read
    making = settled(_making(args), state.device.type)
    threads = torch.get_num_threads()
    if making.device == "cpu":
        torch.set_num_threads(making.num_threads)
    pipe = load_pipeline(making, state)
    pipe.set_progress_bar_config(disable=True)
    kind = next(PIPELINES[base.__name__] for base in type(pipe).__mro__ if base.__name__ in PIPELINES)
    _require_judge(args, kind)
    bench = Bench(pipe, making, args.output_dir, state)
    space = args.samplers, args.choice_temperatures, args.num_substeps, args.thresholds, args.vary or ()
    found = candidates(pipe.scheduler, args.passes, *space)
    samples = {name: value for name, value in bench.configuration.items() if name not in (*DECIDING, "num_samples")}
    settings = {name: getattr(args, name) for name in DECIDING} | {"samples": samples}
    ledger = on_main_process(lambda: Ledger(args.output_dir, settings), state)
    search = _Search(args, bench, ledger, cache(lambda: judge_of(args, kind, pipe)), {one.key: one for one in found})
    results = _searched(search)
    torch.set_num_threads(threads)
    if not state.is_main_process:
        return None
    results.save(args.output_dir)
    print(results.table())
    print(f"\n{args.output_dir / 'tune.md'}, tune.png, and presets in {args.output_dir / 'presets'}")
    return results


def _searched(search: _Search) -> Results:
    """The rounds, then the finalists on new seeds."""
    args, plan, is_main = search.args, search.plan(), search.bench.state.is_main_process
    if is_main:
        print(_told(plan, len(search.candidates)), flush=True)
    trials: dict[tuple[str, int], Trial] = {}

    def judge(key: str, number: int, num_samples: int) -> Score:
        found = trials[key, number] = search.trial(key, args.seed + number, num_samples)
        return found.score

    def floor_of(scores: Mapping[str, Score]) -> float:
        return float(args.min_diversity * scores[search.anchor].diversity)

    levels = {key: one.level for key, one in search.candidates.items()}
    scores, floor = run_rounds(plan, levels, judge, floor_of)
    found = []
    for level in dict.fromkeys(levels.values()):
        order = ranked({key: score for key, score in scores.items() if levels[key] == level}, floor)
        shipped = next(k for k, one in search.candidates.items() if (one.level, one.name) == (level, AS_SHIPPED))
        for key in dict.fromkeys([*order[: args.finalists], shipped]):
            seeds = [args.seed + HELD_OUT + j for j in range(plan.num_held_out)]
            again = [search.trial(key, seed, plan.rounds[-1].num_samples) for seed in seeds]
            is_chosen = key == order[0] and not scores[key].lacks(floor)
            found.append(_found(search.candidates[key], scores.get(key), again, is_chosen))
    first = [one for (_, number), one in trials.items() if number == 0]
    named = search.judge() if is_main else None
    anchor = trials[search.anchor, 0].score.diversity
    return Results(found, first, plan, floor, anchor, args, named, search.ledger.content["budget"])


def _found(candidate: Candidate, searched: Score | None, again: list[Trial], is_chosen: bool) -> Found:
    value, error = mean_and_error([one.score.value for one in again])
    diversity, diversity_error = mean_and_error([one.score.diversity for one in again])
    if len(again) == 1:
        error, diversity_error = again[0].score.error, again[0].score.diversity_error
    return Found(
        candidate,
        searched,
        Score(value, error, diversity, diversity_error),
        fmean(one.passes for one in again),
        *mean_and_error([one.seconds for one in again]),
        is_chosen,
    )


def _told(plan: Plan, number: int) -> str:
    rounds = ", then ".join(f"{sum(one.num_kept.values())} x {one.num_samples}" for one in plan.rounds)
    return (
        f"{number} candidates; samples of each round: {rounds}; finalists again on {plan.num_held_out} new seeds. "
        f"In all at most {plan.passes:.0f} model passes of a sample, {100 * plan.share:.1f} % of what it would cost to "
        "judge every candidate as the finalists are."
    )


def _require_judge(args: argparse.Namespace, kind: str) -> None:
    require_judged(kind)
    if kind == IMAGES and args.own_likelihood is not None:
        raise ValueError(
            f"--own_likelihood is for texts, got {args.own_likelihood} with images. Pass --reference and --network."
        )
    asked = (args.reference,) if kind == IMAGES else (args.judge, args.ngram, args.own_likelihood)
    if sum(one is not None for one in asked) != 1:
        rule = "--reference" if kind == IMAGES else "one of --judge, --ngram and --own_likelihood"
        given = [one for one in asked if one is not None]
        raise ValueError(f"a search needs one judge, for {kind} {rule}, got {given}. Pass it.")


def _making(args: argparse.Namespace) -> argparse.Namespace:
    """Arguments of `hf-maskdiff generate`, its defaults where `tune` has none of the name."""
    parser = argparse.ArgumentParser()
    add_generate_arguments(parser)
    defaults = vars(parser.parse_args(["--pipeline", args.pipeline, "--num_samples", "1", "--output_dir", ""]))
    own = {name: getattr(args, name, value) for name, value in defaults.items()}
    fixed = {"num_substeps": 1, "num_inference_steps": None, "output_dir": str(Path(args.output_dir))}
    return argparse.Namespace(**own | fixed | {"prompts": args.prompts})
