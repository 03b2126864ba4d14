"""Results of samplers as files of one form: what they hold, how they are read, and the tables and pictures of them.

`hf-maskdiff evaluate`, `tune` and the programs in `benchmarks/` write such files, and `hf-maskdiff report` reads them.
Like the rest of the command line it needs only the standard library, and matplotlib for pictures: a table is there in
a moment, on a machine without torch. docs/reporting.md describes the form.
"""

from . import provenance
from .combining import combined
from .reading import read_results
from .schema import SCHEMA, Measure, Record, Results, Sampler, Value
from .writing import write_results

__all__ = [
    "SCHEMA",
    "Measure",
    "Record",
    "Results",
    "Sampler",
    "Value",
    "combined",
    "provenance",
    "read_results",
    "write_results",
]
