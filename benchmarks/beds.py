"""What samplers are compared on: each bed draws all seeds of a cell in one batch, and judges them seed by seed."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol

import antibodies
import images
import markov_chain
import text
import torch
import words
from families import scheduler_of
from passes import draw_codes, draw_ids, generators_from, partial_caching
from samplers import guidance_of, parts
from torch import Tensor, nn
from tqdm.auto import tqdm

from hf_maskdiff.evaluation.markov_chain import ChainDenoiser, MarkovChain
from hf_maskdiff.pipelines import denoise

FULL, REAL = "one a pass", "real"  # rows to compare with: the uniform order at its slowest, and data
TOKENIZER = "tokenizer"  # and data after encoding and decoding
PLANNER = "p2-planner"


class Bed(Protocol):
    def measure(self, sampler: str, steps: int, seeds: Sequence[int]) -> list[dict[str, float]]:
        """The measures of each seed."""


class Calls:
    """Counts a model's calls."""

    def __init__(self, model: nn.Module) -> None:
        self.number = 0
        model.register_forward_pre_hook(self._count)

    def _count(self, *_: Any) -> None:
        self.number += 1

    def since(self) -> float:
        """Those since the last question."""
        found, self.number = self.number, 0
        return float(found)


def batches(generators: list[torch.Generator], batch_size: int) -> list[list[torch.Generator]]:
    return [generators[i : i + batch_size] for i in range(0, len(generators), batch_size)]


def of_seeds(seeds: Sequence[int], number: int) -> list[torch.Generator]:
    return [one for seed in seeds for one in generators_from(seed * number, number)]


class Images:
    """A shipped image model: Frechet distance, accuracy and the variance within a class, as `images.py` has them.

    With groups, as in "moment 6, 2 groups", a step is drawn by partial caching; "moment 6, guidance 1 to 3" is guided,
    here by a scale that rises with the steps. A guided step computes every image twice.
    """

    def __init__(
        self, args: argparse.Namespace, number: int, pipeline: str, folder: str, dtype: str = "float32"
    ) -> None:
        self.number = number
        options: dict[str, Any] = {"pipeline": pipeline, "classifier": None, "dataset": None, "split": "test"}
        options |= {"num_images": number, "batch_size": args.batch_size or most_rows(250)}
        self.bench = images.Bench(argparse.Namespace(**options, data_dir=getattr(args, folder)), {})
        self.pipe = self.bench.pipeline.to(getattr(torch, dtype))
        self.calls = Calls(self.pipe.transformer)

    def measure(self, sampler: str, steps: int, seeds: Sequence[int]) -> list[dict[str, float]]:
        if sampler in (REAL, TOKENIZER):
            return [self.bench.reference(sampler, seed) for seed in seeds]
        name, num_substeps = parts("uniform" if sampler == FULL else sampler)
        name, guidance_scale = guidance_of(name)
        options = {"num_inference_steps": steps, "guidance_scale": guidance_scale}
        self.pipe.scheduler = scheduler_of(name, **self.bench.shared)
        labels = torch.cat([self.bench.labels[self.bench.real(seed)[0]] for seed in seeds])
        rows, codes = batches(of_seeds(seeds, self.number), self.bench.args.batch_size), []
        self.calls.since()
        with partial_caching(self.pipe.transformer, num_substeps):
            for own, some in zip(rows, labels.split(self.bench.args.batch_size), strict=True):
                codes.append(draw_codes(self.pipe, own, some.tolist(), **options))
        calls = self.calls.since() / len(rows)
        sets = zip(torch.cat(codes).split(self.number), labels.split(self.number), seeds, strict=True)
        return [self.bench.judge_codes(own, some, seed) | {"calls": calls} for own, some, seed in sets]


class Words:
    """A shipped model of spoken words: Frechet distance, accuracy and the variance within a word, as in `words.py`.

    With groups, as in "moment 6, 2 groups", a step is drawn by partial caching; "moment 6, guidance 2" is guided.
    """

    def __init__(self, args: argparse.Namespace, number: int, pipeline: str) -> None:
        self.bench = words.Bench(pipeline, args.speech_dir, number, args.batch_size or most_rows(100))
        self.calls = Calls(self.bench.pipe.transformer)

    def measure(self, sampler: str, steps: int, seeds: Sequence[int]) -> list[dict[str, float]]:
        if sampler in (REAL, TOKENIZER):
            return [self.bench.reference(seed, sampler == TOKENIZER) for seed in seeds]
        name, num_substeps = parts("uniform" if sampler == FULL else sampler)
        name, scale = guidance_of(name)
        scheduler, found = scheduler_of(name, **self.bench.shared), []
        for seed in seeds:
            self.calls.since()
            drawn = self.bench.drawn(scheduler, num_substeps, steps, seed, guidance_scale=scale)
            calls = self.calls.since() / -(-self.bench.number // self.bench.batch_size)
            found.append(self.bench.judged(*drawn, seed) | {"calls": calls})
        return found


class Texts:
    """A shipped text model: nats per character by a judge, entropy of a text and distinct n-grams, as in `text.py`."""

    def __init__(self, args: argparse.Namespace, number: int, pipeline: str) -> None:
        self.number, self.batch_size = number, args.batch_size or most_rows(64)
        options = {"pipeline": pipeline, "dataset": None, "data_dir": args.text_dir, "order": 6}
        self.bench = text.Bench(argparse.Namespace(**options, num_sequences=number, batch_size=self.batch_size))
        self.pipe = self.bench.pipeline
        self.calls = Calls(self.pipe.transformer)

    def measure(self, sampler: str, steps: int, seeds: Sequence[int]) -> list[dict[str, float]]:
        if sampler == REAL:
            return [self.bench.score(self.bench.real(seed)) for seed in seeds]
        self.pipe.scheduler = scheduler_of("uniform" if sampler == FULL else sampler, **self.bench.shared)
        self.calls.since()
        parts, texts = batches(of_seeds(seeds, self.number), self.batch_size), []
        for own in parts:
            texts += draw_ids(self.pipe, own, num_inference_steps=steps)
        calls = {"calls": self.calls.since() / len(parts)}
        return [self.bench.score(texts[i : i + self.number]) | calls for i in range(0, len(texts), self.number)]


class Antibodies:
    """AntiBERTy: nats per residue in any order, and how far apart chains are, as in `antibodies.py`."""

    def __init__(self, args: argparse.Namespace, number: int, dtype: str = "bfloat16") -> None:
        self.number, self.batch_size = number, args.batch_size or most_rows(32)
        options = {"pipeline": args.antibody_pipeline, "dtype": dtype, "device": device()}
        options |= {"design": "chain", "length": 118, "num_chains": number, "num_masks": 8}
        options |= {"batch_size": self.batch_size}
        self.bench = antibodies.Bench(argparse.Namespace(**options))
        self.pipe = self.bench.pipe
        self.pipe("[MASK:4]", num_inference_steps=1)  # the first call tries out how the model takes its arguments
        self.calls = Calls(self.pipe.transformer)

    def measure(self, sampler: str, steps: int, seeds: Sequence[int]) -> list[dict[str, float]]:
        name = "uniform" if sampler == FULL else sampler
        self.pipe.scheduler = scheduler_of(name, **self.bench.shared, masking_schedule="linear")
        self.calls.since()
        parts, chains = batches(of_seeds(seeds, self.number), self.batch_size), list[str]()
        for own in parts:
            call = {"num_inference_steps": steps, "num_return_sequences": len(own), "generator": own}
            chains += self.pipe(f"[MASK:{self.bench.args.length}]", **call).texts
        calls = {"calls": self.calls.since() / len(parts)}
        sets = [chains[i : i + self.number] for i in range(0, len(chains), self.number)]
        return [self.bench.judge(some, seed) | calls for some, seed in zip(sets, seeds, strict=True)]


class Chain:
    """A Markov chain whose conditionals are exact: measures of `markov_chain.py`, on the CPU.

    Its logits are sure of known tokens, so that P2 has nothing to doubt; "p2-planner" asks the exact law of each token
    given all others.
    """

    def __init__(self, args: argparse.Namespace, number: int) -> None:
        self.number = number
        options = {"length": 64, "num_states": 8, "sharpness": 2.0, "num_samples": number}
        self.bench = markov_chain.Bench(argparse.Namespace(**options))

    @torch.inference_mode()
    def measure(self, sampler: str, steps: int, seeds: Sequence[int]) -> list[dict[str, float]]:
        return [self.measure_seed(sampler, steps, seed) for seed in seeds]

    def measure_seed(self, sampler: str, steps: int, seed: int) -> dict[str, float]:
        chain = self.bench.chain
        if sampler == REAL:
            return self.bench.judge(chain.draw(self.number, seed))
        plans, name = sampler == PLANNER, {PLANNER: "p2-standing", FULL: "uniform"}.get(sampler, sampler)
        scheduler = scheduler_of(name, mask_token_id=chain.mask_token_id, masking_schedule="linear")
        if plans:
            scheduler = scheduler.with_planner(partial(given_all_others, chain))
        scheduler.set_timesteps(steps)
        denoiser = ChainDenoiser(chain)
        samples = denoise(
            denoiser,
            scheduler,
            denoiser.start(self.number),
            torch.Generator().manual_seed(seed),
            progress_bar=partial(tqdm, disable=True),
            on_step_end=lambda i, t, sample: sample,
        )
        return self.bench.judge(samples) | {"calls": float(len(denoiser.steps))}


def given_all_others(chain: MarkovChain, tokens: Tensor) -> Tensor:
    """`log p(x_i | all other tokens)`, float64 `(batch_size, L, V)`, of tokens without masks."""
    into = chain.transitions.log()[torch.arange(chain.length - 1), tokens[:, :-1]]  # from the token before
    from_here = chain.transitions.log().transpose(1, 2)[torch.arange(chain.length - 1), tokens[:, 1:]]
    first = chain.initial.log().expand(len(tokens), 1, -1)
    last = torch.zeros_like(first)
    return (torch.cat([first, into], 1) + torch.cat([from_here, last], 1)).log_softmax(-1)


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def most_rows(on_cpu: int) -> int:
    """Of a batch, which is best large on an accelerator: a pass of these models takes the host longer than it."""
    return 4096 if torch.cuda.is_available() else on_cpu
