"""The sections of `gpu.py`, in the order in which they run. To add one, add a module here and an entry below.

A section's module has a function `cases(bench)`, a generator of pairs: the name of a case, and a function without
arguments that yields its rows. Rows are dictionaries whose keys are the columns of the report; rows with the same keys
form one table. If a case raises an error, only its own remaining rows are lost.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Section:
    """One section of the report.

    Args:
        module: the module with its `cases`; only the process that runs them imports it.
        seconds: time after which that process is killed. Rows that it has written by then are kept.
        title, reading: its heading in the report, and how to read its tables.
    """

    module: str
    seconds: float
    title: str
    reading: str


def _section(module: str, seconds: float, title: str, reading: str) -> Section:
    return Section(f"{__name__}.{module}", seconds, title, " ".join(reading.split()))


SECTIONS = {
    "laws": _section(
        "laws",
        80,
        "The exact laws hold, and the devices agree",
        """
        Two rounds of each scheduler through `step`, by chi-square against the exact law of the first round's outcome
        and of the finished row (4 positions, 3 tokens, logits that depend on what was drawn). A right sampler fails a
        test with the stated false-alarm rate; the last tests hold a sampler against the law of another, and pass when
        it is rejected. Then steps from the same logits and generators on the CPU and on the device: the share of the
        revealed positions that got the same token on both. All of it by torch alone, and by the package's kernels.
        """,
    ),
    "syncs": _section(
        "syncs",
        50,
        "The host does not wait in the loop",
        """
        Whole runs of the pipelines with `torch.cuda.set_sync_debug_mode` on from the first model call to the end of
        the last step. The goal is none. Where one waits, `places` names the lines that do.
        """,
    ),
    "step_time": _section(
        "step_time",
        75,
        "A step against reading the logits once",
        """
        A whole 8-step cosine run on fixed logits, divided by 8, against `logits.amax(-1)`; the goal is 1.5 reads.
        `ms to issue` is what the host needs for a step: where it is as long as the step, the step waits for the host
        and not for memory. `by` says whether the package's kernels compute it, or torch alone
        (`HF_MASKDIFF_KERNELS=0`). The last column is the time of diffusers' `AmusedScheduler` over ours.
        """,
    ),
    "partial_passes": _section(
        "partial_passes",
        55,
        "When partial caching pays",
        """
        Random weights in bfloat16, guidance off. A partial pass over k of L positions against a full one, and n steps
        with two groups against n and 2n plain steps: it pays where the last column is below 1 and the result as good.
        The last column of the first table is the median over repeats of the ratio in each, not the ratio of the two
        medians beside it.
        """,
    ),
    "cached_decoding": _section(
        "cached_decoding",
        60,
        "Caches across steps",
        """
        Random weights in bfloat16, greedy tokens, the surest first: a prompt of 512 tokens and 256 new ones in blocks
        of 32, 4 steps each. Every cache makes the same number of model calls; `positions of a row` is what they
        compute. A cache pays where the time over that without a cache is below 1; its texts differ from those without.
        """,
    ),
    "throughput": _section(
        "throughput",
        60,
        "Throughput, time outside the model, memory",
        """
        Whole calls of the pipelines, moment sampler, random weights in bfloat16. `outside the model` is the share of
        a call, decoding left out, that is not spent in the denoiser; the goal is 0.02.
        """,
    ),
    "compilation": _section(
        "compilation",
        90,
        "torch.compile and CUDA graphs",
        """
        Milliseconds of a pass, and of a whole call of the pipeline after `pipe.transformer.compile(mode=...)`, and what
        they were before. `reduce-overhead` is CUDA graphs; `graphs skipped` counts how often torch could not make one.
        A compiled model rounds differently in bfloat16, so that some of the random tokens differ. A step is the same
        with and without `torch.compile`, which leaves it as it is.
        """,
    ),
    "generation": _section(
        "generation",
        40,
        "`generate` twice, with other batch sizes",
        """
        The shipped models, one generator per sample. Matrix products of other sizes round differently, so that a rare
        token may differ: the share of equal tokens.
        """,
    ),
}
