"""A report of an evaluation as a file of results, which `hf-maskdiff report` reads: a record for each set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hf_maskdiff_cli.results import Measure, Record, Results, Sampler, Value, provenance

if TYPE_CHECKING:
    from .report import Report, Row, SetResult

_BETTER = {
    "Frechet distance": "less",
    "Inception score": "more",
    "perplexity": "less",
    "nats per character": "less",
    "MAUVE": "more",
}


def results_of(report: Report) -> Results:
    """What the report holds; sets that differ in their seed alone have one sampler, a record each."""
    samplers: dict[str, Sampler] = {}
    records: list[Record] = []
    for row in report.rows:
        name = _new_name(row, samplers)
        samplers[name] = _sampler(row.sets)
        records += [_record(name, one) for one in row.sets]
    models = {record.model for record in records}
    if len(models) == 1:  # then it is the file's, and files of different models can be compared
        records = [replace(record, model=None) for record in records]
    return Results(
        command=provenance.command(),
        measures={name: Measure(meaning=words, better=_BETTER.get(name, "")) for name, words in report.legend.items()},
        samplers=samplers,
        records=records,
        model=models.pop() if len(models) == 1 else None,
        about="seconds to make a set, over all processes; a partial pass counts as the share of positions it computes",
        machine=provenance.machine(),
        versions=provenance.versions(),
        settings={name: value for name, value in report.settings.items() if name != "versions"},
    )


def _new_name(row: Row, taken: dict[str, Sampler]) -> str:
    """The sampler alone where that is enough, else the row's name: with steps, groups and folder."""
    if "scheduler" not in row.sets[0].configuration:
        return row.name
    short = row.name.partition(", ")[0].partition(" (")[0]
    known = taken.get(short)
    return short if known is None or known == _sampler(row.sets) else row.name


def _sampler(sets: Sequence[SetResult]) -> Sampler:
    """What all steps and groups of a sampler share."""
    own = ("seed", "scheduler", "num_inference_steps", "num_substeps")
    configuration = sets[0].configuration
    made_with = {name: value for name, value in configuration.items() if name not in own}
    return Sampler("", configuration.get("scheduler"), made_with)


def _record(sampler: str, one: SetResult) -> Record:
    configuration: dict[str, Any] = one.configuration
    steps = configuration.get("num_inference_steps")
    return Record(
        sampler,
        steps if steps is not None else round(one.passes or 0),
        {name: Value(*pair) for name, pair in one.measures.items()},
        configuration.get("num_substeps") or 1,
        model=configuration.get("pipeline"),
        passes=one.passes,
        seconds=one.seconds,
        num_samples=one.num_samples,
        seeds=() if one.seed is None else (one.seed,),
        source=one.name,
    )
