"""Sets of samples on any number of processes, under the names they are imported by; they are defined in `sets`."""

from hf_maskdiff_cli.set_folder import HIDDEN

from .sets.batches import blocks_of, cover, plan_batches, seed_of
from .sets.costs import cost_of
from .sets.files import write_atomically
from .sets.generate import generate
from .sets.processes import on_main_process, start_processes
from .sets.sample_set import SampleSet
from .sets.seals import ROW_GROUP
from .sets.sources import Source

__all__ = [
    "HIDDEN",
    "ROW_GROUP",
    "SampleSet",
    "Source",
    "blocks_of",
    "cost_of",
    "cover",
    "generate",
    "on_main_process",
    "plan_batches",
    "seed_of",
    "start_processes",
    "write_atomically",
]
