"""What `antibodies.py` measured as files of results (docs/reporting.md): each sampler, and samplers two by two."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from antibody_measures import Value as Pair
from cells import Summary
from samplers import parts

from hf_maskdiff_cli.results import Measure, Record, Results, Sampler, Value, provenance

MEASURES: Mapping[str, Measure] = {
    "nats": Measure(meaning="minus the any-order log-likelihood per residue, by random masks", digits=3, better="less"),
    "apart": Measure(meaning="share of places at which two designs differ", digits=3),
    "distinct": Measure(meaning="different designs, as a share of all", digits=2),
    "pairs": Measure(meaning="squared distance of the law of two places from one residue a pass", digits=3),
    "framework": Measure(meaning="share of FR1 to FR3 in common with the nearest germline gene", digits=3),
    "mixed": Measure(
        meaning="share of chains that begin as a heavy chain and go on as a light one, or the reverse", digits=2
    ),
    "beyond": Measure(meaning="nats minus those of the uniform order with as much apart", digits=3, better="less"),
}
COMPARED: Mapping[str, Measure] = {
    "difference": Measure("nats", "of the first less those of the second, design by design", 3),
    "law": Measure("pairs", "squared distance of their laws of two places, relative to the second's", 3),
}


def results_of(
    summary: Summary, settings: Mapping[str, Any], seeds: Mapping[tuple[str, int], Sequence[int]]
) -> Results:
    """A record for each sampler and number of steps, which has the seeds of `seeds`."""
    records = [_record(*key, row, seeds[key]) for key, row in summary.items()]
    about = f"designs of {settings['length']} residues; errors over designs"
    return _file(records, MEASURES, settings, about)


def compared_of(contrasts: Iterable[tuple[str, str, int, Pair, Pair]], settings: Mapping[str, Any]) -> Results:
    """A record for each two samplers that were compared."""
    records = [
        Record(f"{first} less {second}", steps, {"difference": _value(nats), "law": _value(law)})
        for first, second, steps, nats, law in contrasts
    ]
    return _file(records, COMPARED, settings, "design i of both is drawn from the same noise; errors over designs")


def with_records(first: Results, others: Sequence[Results]) -> Results:
    """A file with the records of several."""
    files = [first, *others]
    return replace(
        first,
        samplers={name: one for file in files for name, one in file.samplers.items()},
        records=[record for file in files for record in file.records],
    )


def _record(name: str, steps: int, row: Mapping[str, Pair], seeds: Sequence[int]) -> Record:
    sampler, num_substeps = parts(name)
    measures = {name: _value(row[name]) for name in MEASURES if name in row}
    return Record(
        sampler, steps, measures, num_substeps, num_samples=round(row["number"][0] / len(seeds)), seeds=tuple(seeds)
    )


def _value(pair: Pair) -> Value:
    value, error = pair
    return Value(round(value, 4), None if math.isnan(error) else round(error, 4))


def _file(
    records: Sequence[Record], measures: Mapping[str, Measure], settings: Mapping[str, Any], about: str
) -> Results:
    found = {name for record in records for name in record.measures}
    return Results(
        command=provenance.command(),
        measures={name: one for name, one in measures.items() if name in found},
        samplers={record.sampler: Sampler() for record in records},
        records=records,
        about=about,
        model="antiberty",
        machine=provenance.machine(),
        versions=provenance.versions(),
        settings=settings,
    )
