"""Trials of a search: a candidate, a seed and a number of samples, made as a set, judged, and kept in a file."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from accelerate import PartialState

from hf_maskdiff.caching import PartialCacheConfig
from hf_maskdiff.evaluation.samples import load_samples
from hf_maskdiff.parallel import cost_of, generate, on_main_process
from hf_maskdiff.sets.files import write_atomically
from hf_maskdiff.sets.making import configuration_of
from hf_maskdiff.sets.sources import source_of
from hf_maskdiff_cli.set_folder import HIDDEN

from .front import Score
from .judging import Judge
from .space import Candidate


@dataclass(frozen=True)
class Trial:
    """What was found of a candidate with one seed.

    Args:
        candidate: its `key`.
        seed: the base seed of the samples.
        num_samples: how many were judged.
        score: what the judge said.
        passes: of the model, for each sample; a partial pass counts as the share of positions that it computes.
        seconds: for each sample, summed over processes.
    """

    candidate: str
    seed: int
    num_samples: int
    score: Score
    passes: float
    seconds: float


class Ledger:
    """The file `tune.json`: what was asked, the budget in passes, and every trial; a search that was stopped reads it.

    Args:
        folder: of the search.
        settings: what decides the trials.

    Raises:
        ValueError: the file is of other settings.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.path = folder / "tune.json"
        (folder / HIDDEN).mkdir(parents=True, exist_ok=True)  # of partial files
        self.content: dict[str, Any] = {"settings": json.loads(json.dumps(settings, default=str)), "trials": []}
        if not self.path.exists():
            return
        before = json.loads(self.path.read_text(encoding="utf-8"))
        others = sorted(
            name for name, value in self.content["settings"].items() if before["settings"].get(name) != value
        )
        if others:
            raise ValueError(
                f"`output_dir` must be new, or hold a search of the same settings, got other {', '.join(others)} in "
                f"{str(self.path)!r}. Pass another folder."
            )
        self.content = before

    def find(self, candidate: str, seed: int) -> Trial | None:
        """A trial that is there already."""
        for one in self.content["trials"]:
            if (one["candidate"], one["seed"]) == (candidate, seed):
                return Trial(**one | {"score": Score(**one["score"])})
        return None

    def add(self, trial: Trial) -> None:
        """Keep a trial."""
        self.content["trials"].append(asdict(trial))
        self.save()

    def save(self) -> None:
        """Write the file, whole or not at all."""
        write_atomically(self.path, json.dumps(self.content, indent=1).encode())


class Bench:
    """Makes and judges the samples of candidates with one pipeline, which is loaded once.

    Args:
        pipe: the pipeline, whose scheduler and partial caching are changed.
        making: arguments of `hf-maskdiff generate`, settled.
        folder: of the search.
        state: of `start_processes`.
    """

    def __init__(self, pipe: Any, making: argparse.Namespace, folder: Path, state: PartialState) -> None:
        self.pipe, self.making, self.folder, self.state = pipe, making, folder, state
        self.source = cast(Any, source_of(pipe, making))
        self.configuration = configuration_of(making, pipe)
        self.call = dict(self.source.call)

    def make(self, candidate: Candidate, seed: int, num_samples: int) -> Path:
        """The set of a candidate and a seed, or what is missing of it, on all processes together."""
        self.pipe.register_modules(scheduler=candidate.scheduler)
        self.source.counter.take()  # passes of a judge that is the model itself
        self.source.call = self.call | {"num_inference_steps": candidate.num_inference_steps}
        config = {name: one for name, one in candidate.scheduler.config.items() if not name.startswith("_")}
        own = {
            "num_samples": num_samples,
            "seed": seed,
            "num_inference_steps": candidate.num_inference_steps,
            "num_substeps": candidate.num_substeps,
            "scheduler": {"_class_name": type(candidate.scheduler).__name__, **config},
        }
        cached = self.pipe if hasattr(self.pipe, "enable_cache") else self.pipe.transformer
        if candidate.num_substeps > 1:
            cached.enable_cache(PartialCacheConfig(num_substeps=candidate.num_substeps))
        try:
            return generate(
                self.source,
                self.folder / "sets" / f"{candidate.key}-seed-{seed}",
                self.configuration | own,
                base_seed=seed,
                batch_size=self.making.batch_size,
                state=self.state,
            )
        finally:
            if candidate.num_substeps > 1:
                cached.disable_cache()

    def trial(self, candidate: Candidate, seed: int, num_samples: int, judge: Callable[[], Judge]) -> Trial:
        """Make and judge a set.

        Args:
            judge: called in the first process alone.
        """
        folder = self.make(candidate, seed, num_samples)

        def judged() -> Trial:
            passes, seconds = cost_of(folder)
            if passes is None or seconds is None:
                raise ValueError(f"a set must say what it cost, got none in {str(folder)!r}. Remove the folder.")
            score = judge()(load_samples(folder))
            return Trial(candidate.key, seed, num_samples, score, passes, seconds / num_samples)

        return on_main_process(judged, self.state)
