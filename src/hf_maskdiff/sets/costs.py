"""What making a set took: a log that every process keeps of its batches, and the sum over all of them."""

from __future__ import annotations

import json
from pathlib import Path

from hf_maskdiff_cli.set_folder import HIDDEN

from .files import telling_what_to_do


def log_cost(folder: Path, process_index: int, num_samples: int, seconds: float, passes: float) -> None:
    """Note what a batch cost. It is a log, so that a kill loses its last line at most.

    Args:
        folder: that of the set.
        process_index: of the process that made the batch; each writes a log of its own.
        num_samples: of the batch.
        seconds: that it took.
        passes: of the model, over all samples of the batch.
    """
    line = {"num_samples": num_samples, "seconds": round(seconds, 3), "passes": round(passes, 3)}
    path = folder / HIDDEN / f"cost-{process_index}.jsonl"
    with telling_what_to_do(path), open(path, "a") as log:
        log.write("\n" + json.dumps(line))  # a line that was cut does not spoil the next one


def forget_costs(folder: Path) -> None:
    """Remove the logs of a set."""
    for log in (folder / HIDDEN).glob("cost-*.jsonl"):
        log.unlink()


def cost_of(folder: Path) -> tuple[float | None, float | None]:
    """What making a set took, batches that a kill lost included: they were paid for.

    Returns:
        model passes a sample, and seconds, those of all processes together; None and None where nothing was noted.
    """
    logs = sorted((folder / HIDDEN).glob("cost-*.jsonl"))
    lines = [line for log in logs for line in log.read_text(errors="replace").splitlines()]
    batches = [batch for batch in map(_batch_of, lines) if batch is not None]
    if not batches:
        return None, None
    made = sum(batch["num_samples"] for batch in batches)
    return sum(batch["passes"] for batch in batches) / made, sum(batch["seconds"] for batch in batches)


def _batch_of(line: str) -> dict[str, float] | None:
    """What a line says; None for one that a kill cut, or that was damaged."""
    try:
        batch = json.loads(line)
        return {name: float(batch[name]) for name in ("num_samples", "seconds", "passes")}
    except (ValueError, TypeError, KeyError):
        return None
