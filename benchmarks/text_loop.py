"""Times ancestral sampling through `MDLMPipeline` against a plain loop that follows MDLM's, with the same weights.

    python benchmarks/text_loop.py --output_dir out/text_loop
    python benchmarks/text_loop.py --num_inference_steps 128 --device cuda --dtype bfloat16

Two layers of the released width (768, 12 heads, 1024 tokens, a vocabulary of 50,258), random weights. The time spent in
the model is taken apart; what is left is the sampler, and for ours the pipeline around it. The two take turns, in an
order that changes with each repeat; a ratio is the median over repeats of the plain loop's over ours. Memory is the
peak of what is allocated outside the model, its output counted once left out.

Prints a table, writes `text_loop.json`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from scheduler_step import CountMemory
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerFast

from hf_maskdiff import AncestralScheduler, MDLMPipeline, MDLMTransformer

# --- the plain loop ---------------------------------------------------------------------------------------------------


def subs_log_probs_(logits: Tensor, sample: Tensor, mask_token_id: int) -> Tensor:
    """Log-probabilities in the logits' place: a mask is never predicted, a known token is kept."""
    logits[..., mask_token_id] -= 1e6
    logits -= logits.logsumexp(-1, keepdim=True)
    known = sample != mask_token_id
    logits[known] = -1e6
    logits[known, sample[known]] = 0
    return logits


@torch.no_grad()
def plain_loop(model: nn.Module, sample: Tensor, num_steps: int, mask_token_id: int, eps: float = 1e-5) -> Tensor:
    """MDLM's `ddpm_cache` (arXiv 2406.07524): a weight and a noise for every position and token in every step.

    Vectorised, and in place where the formulas allow it. A step that changed no row needs no new model call.
    """
    times, dt, probs = torch.linspace(1, eps, num_steps + 1), (1 - eps) / num_steps, None
    for t in times[:-1].tolist():
        if probs is None:
            probs = subs_log_probs_(model(sample).logits, sample, mask_token_id).exp_()
        weights = probs * dt
        weights[..., mask_token_id] = t - dt
        noise = torch.rand_like(weights).add_(1e-10).log_().neg_().add_(1e-10)
        drawn = weights.div_(noise).argmax(-1)
        del weights, noise
        before, sample = sample, torch.where(sample == mask_token_id, drawn, sample)
        if not torch.equal(before, sample):
            probs = None
    return subs_log_probs_(model(sample).logits, sample, mask_token_id).argmax(-1)


# --- measuring --------------------------------------------------------------------------------------------------------


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_inference_steps", type=int, default=16)
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--vocab_size", type=int, default=50258)
    parser.add_argument("--n_blocks", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--num_threads", type=int, default=1)
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output_dir", type=Path)
    return parser.parse_args(argv)


class ModelClock:
    """Seconds spent in a model, and how often it was called."""

    def __init__(self, model: nn.Module) -> None:
        self.seconds, self.calls, self.started = 0.0, 0, 0.0
        model.register_forward_pre_hook(self._start)
        model.register_forward_hook(self._stop)

    def now(self) -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()

    def _start(self, *_: Any) -> None:
        self.started = self.now()

    def _stop(self, *_: Any) -> None:
        self.seconds += self.now() - self.started
        self.calls += 1

    def measure(self, work: Callable[[], object]) -> dict[str, float]:
        self.seconds, self.calls, started = 0.0, 0, self.now()
        work()
        return {"outside": self.now() - started - self.seconds, "model": self.seconds, "calls": self.calls}


class MemoryOutside(CountMemory):
    """Counts no storage that is allocated within a model, its output excepted."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.inside = False
        self.hooks = [model.register_forward_pre_hook(self._enter), model.register_forward_hook(self._leave)]

    def _enter(self, *_: Any) -> None:
        self.inside = True

    def _leave(self, model: nn.Module, inputs: Any, output: Any) -> None:
        self.inside = False
        self._count(output[0].untyped_storage())

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.inside:
            return function(*args, **(kwargs or {}))
        return super().__torch_dispatch__(function, types, args, kwargs)

    def measure(self, work: Callable[[], object]) -> int:
        with self:
            work()
        for hook in self.hooks:
            hook.remove()
        return self.peak


def make_pipeline(args: argparse.Namespace) -> MDLMPipeline:
    torch.manual_seed(0)
    sizes = {"vocab_size": args.vocab_size, "model_length": args.length, "n_blocks": args.n_blocks}
    model = MDLMTransformer(**sizes, hidden_dim=768, cond_dim=128, n_heads=12).eval()
    mask_token_id = args.vocab_size - 1
    words = Tokenizer(WordLevel({str(i): i for i in range(mask_token_id)}, unk_token="0"))
    scheduler = AncestralScheduler(mask_token_id=mask_token_id, codebook_size=mask_token_id)
    pipe = MDLMPipeline(PreTrainedTokenizerFast(tokenizer_object=words), model, scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(args.device, getattr(torch, args.dtype))


def main(argv: Sequence[str] | None = None) -> dict[str, dict[str, float]]:
    args = parse_args(argv)
    torch.set_num_threads(args.num_threads)
    pipe = make_pipeline(args)
    model, mask_token_id = pipe.transformer, args.vocab_size - 1
    start = torch.full((args.batch_size, args.length), mask_token_id, device=args.device)
    works: dict[str, Callable[[int], object]] = {
        "plain loop": lambda steps: plain_loop(model, start, steps, mask_token_id),
        "MDLMPipeline": lambda steps: pipe(num_inference_steps=steps, num_return_sequences=args.batch_size),
    }
    for work in works.values():  # the first call pays for warming up
        work(1)
    clock, runs = ModelClock(model), {name: [] for name in works}
    for repeat in tqdm(range(args.repeats), desc="repeats"):
        for name in list(works)[:: 1 if repeat % 2 else -1]:
            runs[name].append(clock.measure(lambda name=name: works[name](args.num_inference_steps)))
    output_bytes = start.numel() * args.vocab_size * model.dtype.itemsize
    rows = {}
    for name, work in works.items():
        row = {key: median(run[key] for run in runs[name]) for key in runs[name][0]}
        peak = MemoryOutside(model).measure(lambda work=work: work(args.num_inference_steps))
        rows[name] = row | {"bytes": peak - output_bytes}

    theirs, ours = rows.values()
    pairs = zip(*runs.values(), strict=True)
    rows["ratio"] = {"outside": median(a["outside"] / b["outside"] for a, b in pairs)}
    rows["ratio"]["bytes"] = theirs["bytes"] / ours["bytes"]
    sizes = f"B = {args.batch_size}, L = {args.length}, V = {args.vocab_size}, {args.num_inference_steps} steps"
    print(f"{sizes}, {args.dtype}, {args.device}, {args.num_threads} thread(s), {args.repeats} repeats\n")
    print("| loop | seconds outside the model | seconds in the model | model calls | memory outside the model |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name in works:
        row = rows[name]
        print(
            f"| {name} | {row['outside']:.3f} | {row['model']:.2f} | {row['calls']:.0f} "
            f"| {row['bytes'] / 2**20:.1f} MiB |"
        )
    print(f"| ratio | {rows['ratio']['outside']:.1f} | | | {rows['ratio']['bytes']:.1f} |")
    if args.output_dir is not None:
        args.output_dir.mkdir(parents=True, exist_ok=True)
        (args.output_dir / "text_loop.json").write_text(json.dumps(rows, indent=1))
    return rows


if __name__ == "__main__":
    main()
