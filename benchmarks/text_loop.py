"""Compares our ancestral text loop with the published one on the same model: time and memory outside the model.

    python benchmarks/text_loop.py
    python benchmarks/text_loop.py --n_blocks 12 --device cuda --num_inference_steps 256

The model has the released sizes, except that it has only two blocks, and random weights. The reference
(`published_loop`) is MDLM's sampler with its cache; each step computes probabilities and Gumbel noise for every
position and token. Ours is `MDLMPipeline` with `AncestralScheduler`. The two take turns, and a ratio is the median over
repeats. Time in the model is measured separately. Memory is the peak that a loop allocates in addition to model and
logits, counted in a run with constant logits.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import median

import torch
from arguments import add_machine_arguments, new_parser
from memory import extra_memory
from models import mdlm, mdlm_pipeline
from tables import print_table
from timing import Clock, now
from torch import Tensor
from tqdm.auto import tqdm

Model = Callable[[Tensor], Tensor]


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = new_parser(__doc__)
    parser.add_argument("--vocab_size", type=int, default=50258)
    parser.add_argument("--model_length", type=int, default=1024)
    parser.add_argument("--hidden_dim", type=int, default=768)
    parser.add_argument("--cond_dim", type=int, default=128)
    parser.add_argument("--n_blocks", type=int, default=2)
    parser.add_argument("--n_heads", type=int, default=12)
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--num_inference_steps", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    add_machine_arguments(parser)
    return parser.parse_args(argv)


def published_loop(model: Model, sample: Tensor, mask_token_id: int, num_steps: int) -> Tensor:
    """Sahoo et al., arXiv 2406.07524: log-linear noise; the model runs again only after a change."""
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


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> dict[str, dict[str, float]]:
    args = parse_args(argv)
    torch.set_num_threads(args.num_threads)
    torch.manual_seed(0)
    sizes = ("vocab_size", "model_length", "hidden_dim", "cond_dim", "n_blocks", "n_heads")
    pipe = mdlm_pipeline(mdlm(**{name: getattr(args, name) for name in sizes}), args.device)
    mask, steps = args.vocab_size - 1, args.num_inference_steps
    forward = pipe.transformer.forward

    def reference(model: Model) -> None:
        published_loop(model, torch.full((args.batch_size, args.model_length), mask, device=args.device), mask, steps)

    def ours(model: Model) -> None:
        pipe.transformer.forward = lambda sample, *_, logits_at=None, **__: (model(sample, logits_at),)
        pipe(num_inference_steps=steps, num_return_sequences=args.batch_size, output_type="ids")

    loops = {"published loop": reference, "hf_maskdiff": ours}
    times: dict[str, list[tuple[float, float, int]]] = {name: [] for name in loops}
    for repeat in tqdm(range(args.repeats + 1), desc="repeats"):
        for name, loop in loops.items():
            clock, started = Clock(), now()
            loop(clock.timed(lambda sample, logits_at=None: forward(sample, logits_at=logits_at).logits))
            if repeat:  # the first one warms up
                times[name].append((now() - started - clock.seconds, clock.seconds, clock.calls))
    logits = torch.randn(args.batch_size, args.model_length, args.vocab_size, device=args.device)

    def free(sample: Tensor, logits_at: Tensor | None = None) -> Tensor:
        """A model whose logits cost nothing: as many as are asked for."""
        return logits if logits_at is None else logits[:, : logits_at.shape[1]]

    results = {}
    for name, loop in loops.items():
        outside, inside, calls = (median(column) for column in zip(*times[name], strict=True))
        memory = extra_memory(lambda loop=loop: loop(free), torch.device(args.device))
        results[name] = {"outside": outside, "inside": inside, "calls": calls, "memory": memory}
    print_results(args, results)
    return results


def print_results(args: argparse.Namespace, results: dict[str, dict[str, float]]) -> None:
    sizes = f"L = {args.model_length}, V = {args.vocab_size}, batch {args.batch_size}"
    print(f"{sizes}, {args.num_inference_steps} steps, {args.device}\n")
    rows = []
    for name, row in results.items():
        memory = f"{row['memory'] / 2**20:.1f} MiB"
        rows.append((name, f"{row['outside']:.3f}", f"{row['inside']:.2f}", f"{row['calls']:.0f}", memory))
    print_table(["loop", "seconds beside the model", "in the model", "model calls", "memory beside logits"], rows)
    published, ours = results.values()
    ratios = (ours[key] / published[key] for key in ("outside", "memory"))
    print("\nours over the published: {:.4f} of the time beside the model, {:.4f} of the memory".format(*ratios))


if __name__ == "__main__":
    main()
