"""Likelihoods of a file of prompts and continuations, line by line; what was stopped is completed."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from hf_maskdiff.devices import require_device, telling_of_memory
from hf_maskdiff.likelihood.named import estimator_of
from hf_maskdiff.sets.loading import open_pipeline

_TOGETHER = 32  # lines between two writes
_SETTINGS = ("pipeline", "estimator", "num_samples", "group_size", "guidance_scale", "mask_counts", "seed", "dtype")


def score_file(args: argparse.Namespace, lines: list[dict[str, Any]]) -> Path:
    """Write each line with its likelihood to `args.output`, from the first that is not there yet.

    A line's estimate depends on the seed and on its number alone, so that a file that was stopped becomes the same.

    Args:
        args: arguments of `hf-maskdiff score`.
        lines: `hf_maskdiff_cli.score.read_lines(args.input)`.

    Returns:
        The file.

    Raises:
        ValueError: a pipeline that cannot be loaded, texts that cannot be scored, or a file of other settings.
    """
    estimator = estimator_of(args.estimator, args.group_size)
    if not estimator.is_exact:
        estimator.check(args.num_samples)
    done = _claimed(args, lines)
    if done < len(lines):
        device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
        require_device("--device", device)
        pipe = open_pipeline(args.pipeline, {"dtype": getattr(torch, args.dtype)}).to(device)
        pipe.set_progress_bar_config(disable=True)
        bar = tqdm(total=len(lines), initial=done, desc="lines", unit="line")
        with bar, args.output.open("a", encoding="utf-8") as file, telling_of_memory("Pass a smaller --batch_size."):
            for start in range(done, len(lines), _TOGETHER):
                some = lines[start : start + _TOGETHER]
                found = pipe.log_likelihood(
                    [line.get("prompt") for line in some],
                    [line["continuation"] for line in some],
                    args.num_samples,
                    estimator,
                    args.guidance_scale,
                    args.batch_size,
                    [_generator(args.seed, start + k) for k in range(len(some))],
                    mask_counts=args.mask_counts,
                )
                for k, line in enumerate(some):
                    file.write(json.dumps(line | _result(found, k), ensure_ascii=False) + "\n")
                file.flush()
                bar.update(len(some))
    print(f"{len(lines)} lines in {args.output}")
    return args.output


def _result(found: Any, row: int) -> dict[str, float | int | None]:
    error = float(found.standard_errors[row])
    return {
        "log_likelihood": float(found.log_likelihoods[row]),
        "standard_error": None if error != error else error,  # JSON has no NaN
        "num_tokens": int(found.num_tokens[row]),
        "num_model_passes": found.num_model_passes[row],
    }


def _generator(seed: int, number: int) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}/{number}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def _claimed(args: argparse.Namespace, lines: list[dict[str, Any]]) -> int:
    """How many lines the output holds already; it, and what it was made with, are there from now on.

    Raises:
        ValueError: it was made with other settings, or of other lines.
    """
    settings = {name: getattr(args, name) for name in _SETTINGS}
    settings["lines"] = hashlib.sha256(json.dumps(lines).encode()).hexdigest()
    beside = args.output.with_name(args.output.name + ".settings.json")
    if not args.output.exists():
        args.output.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(json.dumps(settings, indent=1), encoding="utf-8")
        args.output.touch()
        return 0
    try:
        before = json.loads(beside.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        before = {}
    others = sorted(name for name in settings if before.get(name) != settings[name])
    if others:
        raise ValueError(
            f"`output` must be new, or made with the same settings and lines, got other {', '.join(others)} in "
            f"{str(args.output)!r}. Pass another name."
        )
    whole = args.output.read_bytes()
    end = whole.rfind(b"\n") + 1  # a line that was being written is written anew
    if end < len(whole):
        os.truncate(args.output, end)
    return whole[:end].count(b"\n")
