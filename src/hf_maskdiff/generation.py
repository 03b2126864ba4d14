"""The parts of `hf-maskdiff generate`, under the names they are imported by.

The arguments and their checks are defined in `hf_maskdiff_cli.generate`, which imports nothing heavy, the rest in
`sets`.
"""

import torch

from hf_maskdiff_cli.generate import (
    CPU_BLOCK_SIZE,
    add_arguments,
    add_sampling_arguments,
    check_arguments,
    read_prompts,
    run,
)
from hf_maskdiff_cli.generate import DTYPES as _NAMES

from .sets.loading import load_pipeline, scheduler_settings
from .sets.making import configuration_of
from .sets.publishing import CARD, finish, make_repository
from .sets.sources import ImageSource, PassCounter, TextSource, source_of

DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in _NAMES}

__all__ = [
    "CARD",
    "CPU_BLOCK_SIZE",
    "DTYPES",
    "ImageSource",
    "PassCounter",
    "TextSource",
    "add_arguments",
    "add_sampling_arguments",
    "check_arguments",
    "configuration_of",
    "finish",
    "load_pipeline",
    "make_repository",
    "read_prompts",
    "run",
    "scheduler_settings",
    "source_of",
]
