"""How much of the dependence within a step partial caching captures, on the two shipped models.

    python benchmarks/partial_caching_divergence.py

Each step has two groups, of which the first is drawn from the step's full pass. Three predictions at the positions of
the second group are compared: p_fresh comes from a full pass over the sample with the first group filled in; p_partial
comes from the partial pass; and p_stale comes from the step's full pass, from which a sampler without groups would draw
both groups. The ratio KL(p_fresh || p_partial) / KL(p_fresh || p_stale), each KL a mean over positions in nats, is the
share of the dependence that is missed: 0 for exact partial passes. Prints it for each number of steps, and for each
step that has two groups, counted from 0, with standard errors over seeds. Needs no data.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from arguments import add_pipeline_arguments, new_parser
from images import SAMPLERS
from passes import draw_codes, draw_ids, everywhere, generators_from, open_pipeline, partial_caching
from samplers import shared_config
from tables import print_table, with_error, write_json
from text import TEMPERED
from torch import Tensor, nn
from tqdm.auto import tqdm

from hf_maskdiff import MaskGITPipeline, MDLMPipeline
from hf_maskdiff.evaluation.report import mean_and_error


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = new_parser(__doc__)
    add_pipeline_arguments(parser)
    parser.add_argument("--image_steps", type=int, nargs="*", default=[2, 4, 8])
    parser.add_argument("--text_steps", type=int, nargs="*", default=[8, 16, 32])
    parser.add_argument("--image_temperature", type=float, default=6.0)
    parser.add_argument("--text_temperature", type=float, default=4.0)
    parser.add_argument("--samplers", nargs="+", default=["moment", "hybrid"])
    parser.add_argument("--num_samples", type=int, default=64, help="per seed")
    parser.add_argument("--num_seeds", type=int, default=4)
    parser.add_argument("--output_dir", type=Path)
    return parser.parse_args(argv)


class Divergences:
    """Wraps a denoiser, and compares each partial pass with a fresh full pass."""

    def __init__(self, model: Any, codebook_size: int, mask_token_id: int) -> None:
        self.model, self.codebook_size, self.mask_token_id = model, codebook_size, mask_token_id
        self.looking, self.step = True, -1
        self.steps: list[dict[str, float]] = []
        self.handle = model.register_forward_hook(self._see, with_kwargs=True)

    def _see(self, _: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any], output: tuple[Tensor]) -> None:
        if not self.looking:
            return
        positions = options.get("positions")
        if positions is None:
            self.sample, self.step = inputs[0].flatten(1), self.step + 1
            self.stale = everywhere(output[0], options.get("logits_at"), self.sample.shape[1])
            return
        self.looking = False
        drawn = inputs[0] != self.mask_token_id
        open_ = (positions >= 0) & ~drawn
        places = torch.where(positions < 0, ~positions, positions)
        written = self.sample.scatter(1, places, inputs[0])
        of_the_pass = ("positions", "cache", "logits_at", "length")
        full = {name: value for name, value in options.items() if name not in of_the_pass}
        with self.model.cache_context("fresh"):
            fresh = self.model(written, *inputs[1:], **full)[0]
        self.looking = True

        def log_probs(logits: Tensor) -> Tensor:
            return logits[open_][:, : self.codebook_size].double().log_softmax(-1)

        def at(logits: Tensor) -> Tensor:
            return logits.gather(1, places[..., None].expand(-1, -1, logits.shape[-1]))

        p = log_probs(at(fresh))
        partial, stale = (
            (p.exp() * (p - log_probs(other))).sum(-1).mean().item() for other in (output[0], at(self.stale))
        )
        self.steps.append({"step": self.step, "partial": partial, "stale": stale, "positions": len(p) / len(written)})


def measure(kind: str, pipe: Any, scheduler: Any, steps: int, args: argparse.Namespace) -> list[list[dict[str, float]]]:
    """Divergences of every step, for each seed."""
    pipe.scheduler = scheduler
    seen = Divergences(pipe.transformer, scheduler.config.codebook_size, scheduler.config.mask_token_id)
    seeds, number = [], args.num_samples
    with partial_caching(pipe.transformer, 2, full_pass_threshold=1.0):
        for seed in range(args.num_seeds):
            seen.steps, seen.step = [], -1
            draw = draw_codes if kind == "image" else draw_ids
            draw(pipe, generators_from(seed * number, number), num_inference_steps=steps)
            seeds.append(seen.steps)
    seen.handle.remove()
    return seeds


def ratio(steps: Sequence[dict[str, float]]) -> float:
    """The ratio of the mean divergences over all positions of some steps."""
    partial, stale = (sum(step[name] * step["positions"] for step in steps) for name in ("partial", "stale"))
    return partial / stale


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    args = parse_args(argv)
    pipes = {
        "image": open_pipeline(MaskGITPipeline, args.image_pipeline),
        "text": open_pipeline(MDLMPipeline, args.text_pipeline),
    }
    samplers = {"image": SAMPLERS, "text": TEMPERED}
    wanted = [
        (kind, name, steps) for kind in pipes for name in args.samplers for steps in getattr(args, f"{kind}_steps")
    ]
    results = []
    for kind, name, steps in tqdm(wanted, desc="runs"):
        pipe = pipes[kind]
        alpha = getattr(args, f"{kind}_temperature")
        scheduler = samplers[kind][name](**shared_config(pipe.scheduler), choice_temperature=alpha)
        seeds = measure(kind, pipe, scheduler, steps, args)
        results.append({"model": kind, "sampler": name, "steps": steps, "seeds": seeds})
    headings = ["KL of stale, nats", "KL of partial, nats", "ratio", "ratio by step"]
    print_table(["model", "sampler", "steps", *headings], map(table_row, results), left=(0, 1, 6))
    if args.output_dir is not None:
        write_json(results, args.output_dir / "divergence.json")
    return results


def table_row(row: dict[str, Any]) -> list[Any]:
    seeds, values = row["seeds"], []
    for name in ("stale", "partial"):
        totals = [sum(step[name] * step["positions"] for step in steps) for steps in seeds]
        positions = [sum(step["positions"] for step in steps) for steps in seeds]
        values.append(mean_and_error([total / n for total, n in zip(totals, positions, strict=True)]))
    values.append(mean_and_error([ratio(steps) for steps in seeds]))
    by_step = [
        f"{own[0]['step']}: {with_error(mean_and_error([ratio([step]) for step in own]), 2)}"
        for own in zip(*seeds, strict=True)
    ]
    numbers = [with_error(value, 3) for value in values]
    return [row["model"], row["sampler"], row["steps"], *numbers, ", ".join(by_step)]


if __name__ == "__main__":
    main()
