"""What a search found as a file of results, which `hf-maskdiff report` reads: a record for each finalist."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from hf_maskdiff_cli.results import Measure, Record, Sampler, Value, provenance
from hf_maskdiff_cli.results import Results as ResultsFile

if TYPE_CHECKING:
    from .results import Found, Results


def results_of(found: Results) -> ResultsFile:
    """Finalists, and the pipeline's own scheduler, on new seeds; beside it what the search had said of them."""
    quality, diversity = (found.judge.quality, found.judge.diversity) if found.judge else ("value", "diversity")
    searched = f"{quality}, search"
    return ResultsFile(
        command=provenance.command(),
        measures={
            quality: Measure(meaning="on new seeds, which decided nothing", better="less"),
            searched: Measure(meaning="on the samples on which the choice was made", better="less"),
            diversity: Measure(meaning="on new seeds", better="more"),
        },
        samplers={one.name: _sampler(one) for one in found.found},
        records=[_record(found, one, (quality, searched, diversity)) for one in found.found],
        about="seconds of a sample, summed over processes",
        model=found.args.pipeline,
        data=found.args.reference,
        machine=provenance.machine(),
        versions=provenance.versions(),
        settings={"floor": found.floor, "budget": found.budget, "plan": asdict(found.plan)},
    )


def _sampler(one: Found) -> Sampler:
    scheduler = one.candidate.scheduler
    config = {name: value for name, value in scheduler.config.items() if not name.startswith("_")}
    return Sampler(
        "",
        {"_class_name": type(scheduler).__name__, **config},
        {"level": one.candidate.level, "is_chosen": one.is_chosen, "is_overfitted": one.is_overfitted},
    )


def _record(found: Results, one: Found, names: tuple[str, str, str]) -> Record:
    quality, searched, diversity = names
    measures: dict[str, Any] = {
        quality: Value(one.held_out.value, one.held_out.error),
        diversity: Value(one.held_out.diversity, one.held_out.diversity_error),
    }
    if one.searched is not None:
        measures[searched] = Value(one.searched.value, one.searched.error)
    return Record(
        one.name,
        one.candidate.num_inference_steps,
        measures,
        one.candidate.num_substeps,
        passes=one.passes,
        seconds=one.seconds,
        num_samples=found.plan.rounds[-1].num_samples,
    )
