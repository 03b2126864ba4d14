"""Times our ancestral text loop against the published one, on the same model in one run: what they cost beside it.

    python benchmarks/text_loop.py
    python benchmarks/text_loop.py --n_blocks 12 --device cuda --num_inference_steps 256

The model has the released sizes but two blocks, and random weights. The reference (`published_loop`) is MDLM's sampler
with its cache, written with whole tensors: probabilities and Gumbel noise for every position and token in each step.
Ours is `MDLMPipeline` with `AncestralScheduler`. They take turns; time in the model is taken apart, and a ratio is the
median over repeats. Memory is the peak that a loop allocates beside model and logits, counted on a run with constant
logits.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import median

import torch
from scheduler_step import extra_memory
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerFast

from hf_maskdiff import AncestralScheduler, MDLMPipeline, MDLMTransformer

Model = Callable[[Tensor], Tensor]


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab_size", type=int, default=50258)
    parser.add_argument("--model_length", type=int, default=1024)
    parser.add_argument("--hidden_dim", type=int, default=768)
    parser.add_argument("--cond_dim", type=int, default=128)
    parser.add_argument("--n_blocks", type=int, default=2)
    parser.add_argument("--n_heads", type=int, default=12)
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--num_inference_steps", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--num_threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    return parser.parse_args(argv)


def published_loop(model: Model, sample: Tensor, mask_token_id: int, num_steps: int) -> Tensor:
    """Sahoo et al., arXiv 2406.07524: log-linear noise, the model asked again only after a change."""
    probs, times = None, torch.linspace(1, 1e-5, num_steps + 1).tolist()
    for t, s in pairwise(times):
        if probs is None:
            logits = model(sample)
            logits[..., mask_token_id] = -torch.inf
            probs = logits.softmax(-1)
        masses = probs * (t - s)
        masses[..., mask_token_id] = s
        noise = 1e-10 - (torch.rand_like(masses) + 1e-10).log()
        drawn = (masses / noise).argmax(-1)
        before, sample = sample, torch.where(sample == mask_token_id, drawn, sample)
        if not torch.equal(before, sample):
            probs = None
    logits = model(sample)
    logits[..., mask_token_id] = -torch.inf
    return torch.where(sample == mask_token_id, logits.argmax(-1), sample)


class Clock:
    """A model whose time is taken apart from that of the loop around it."""

    def __init__(self, model: Model) -> None:
        self.model, self.seconds, self.calls = model, 0.0, 0

    def __call__(self, sample: Tensor) -> Tensor:
        started = now()
        logits = self.model(sample)
        self.seconds, self.calls = self.seconds + now() - started, self.calls + 1
        return logits


def now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def make_pipeline(args: argparse.Namespace) -> MDLMPipeline:
    names = ("vocab_size", "model_length", "hidden_dim", "cond_dim", "n_blocks", "n_heads")
    transformer = MDLMTransformer(**{name: getattr(args, name) for name in names}).to(args.device).eval()
    torch.nn.init.normal_(transformer.output_layer.linear.weight, std=0.05)  # a new model's logits are all the same
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 0}, unk_token="a")))
    mask = args.vocab_size - 1
    pipe = MDLMPipeline(tokenizer, transformer, AncestralScheduler(mask_token_id=mask, codebook_size=mask))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> dict[str, dict[str, float]]:
    args = parse_args(argv)
    torch.set_num_threads(args.num_threads)
    torch.manual_seed(0)
    pipe, mask, steps = make_pipeline(args), args.vocab_size - 1, args.num_inference_steps
    forward = pipe.transformer.forward

    def reference(model: Model) -> None:
        published_loop(model, torch.full((args.batch_size, args.model_length), mask, device=args.device), mask, steps)

    def ours(model: Model) -> None:
        pipe.transformer.forward = lambda sample, *_, **__: (model(sample),)
        pipe(num_inference_steps=steps, num_return_sequences=args.batch_size, output_type="ids")

    loops = {"published loop": reference, "hf_maskdiff": ours}
    times: dict[str, list[tuple[float, float, int]]] = {name: [] for name in loops}
    for repeat in tqdm(range(args.repeats + 1), desc="repeats"):
        for name, loop in loops.items():
            clock = Clock(lambda sample: forward(sample).logits)
            started = now()
            loop(clock)
            if repeat:  # the first one warms up
                times[name].append((now() - started - clock.seconds, clock.seconds, clock.calls))
    logits = torch.randn(args.batch_size, args.model_length, args.vocab_size, device=args.device)
    results = {}
    for name, loop in loops.items():
        outside, inside, calls = (median(column) for column in zip(*times[name], strict=True))
        memory = extra_memory(lambda loop=loop: loop(lambda _: logits), torch.device(args.device))
        results[name] = {"outside": outside, "inside": inside, "calls": calls, "memory": memory}
    print_table(args, results)
    return results


def print_table(args: argparse.Namespace, results: dict[str, dict[str, float]]) -> None:
    sizes = f"L = {args.model_length}, V = {args.vocab_size}, batch {args.batch_size}"
    print(f"{sizes}, {args.num_inference_steps} steps, {args.device}\n")
    print("| loop | seconds beside the model | in the model | model calls | memory beside logits |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name, row in results.items():
        memory = f"{row['memory'] / 2**20:.1f} MiB"
        print(f"| {name} | {row['outside']:.3f} | {row['inside']:.2f} | {row['calls']:.0f} | {memory} |")
    published, ours = results.values()
    ratios = (ours[key] / published[key] for key in ("outside", "memory"))
    print("\nours over the published: {:.4f} of the time beside the model, {:.4f} of the memory".format(*ratios))


if __name__ == "__main__":
    main()
