"""The cost of a partial pass relative to a full one, and of a generation with two groups per step to plain ones.

    python benchmarks/partial_caching_cost.py --output_dir out/partial_caching_cost

Two models of this package with random weights in float32; by default they have width 768, 12 heads and 4 layers, and
run with a batch of one on one thread. Everything that is compared takes turns, in an order that changes with each
repeat; a ratio is the median over repeats of the ratio within a repeat. The table shows the time of a partial pass over
k of L positions relative to a full pass, and the time of `--num_inference_steps` steps with R = 2 relative to as many
plain steps and to twice as many. Then the program counts the tensors that exist after 2 and after 50 generations.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from statistics import median
from typing import Any

import torch
from arguments import add_machine_arguments, new_parser
from diffusers import VQModel
from models import halton, mdlm, mdlm_pipeline
from passes import partial_caching
from tables import print_table, write_json
from timing import median_ratio, take_turns
from torch import Tensor
from tqdm.auto import tqdm

from hf_maskdiff import MaskGITPipeline, MomentScheduler

SHARES = [Fraction(share) for share in ("1/16", "1/8", "1/4", "1/2", "3/4", "1")]
MODELS = ("HaltonMaskGITTransformer2DModel", "MDLMTransformer")


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = new_parser(__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=[256, 1024], help="L, square numbers")
    parser.add_argument("--hidden_dim", type=int, default=768)
    parser.add_argument("--num_layers", type=int, default=4)
    parser.add_argument("--num_heads", type=int, default=12)
    parser.add_argument("--codebook_size", type=int, default=1024)
    parser.add_argument("--num_inference_steps", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=7, help="of the passes")
    parser.add_argument("--generation_repeats", type=int, default=3)
    add_machine_arguments(parser)
    parser.add_argument("--output_dir", type=Path)
    return parser.parse_args(argv)


def make(name: str, length: int, args: argparse.Namespace) -> tuple[Any, Callable[..., Any], Callable[[int], Any]]:
    """A pipeline, its model as a function of tokens and positions, and a function that generates in given steps."""
    size, mask = args.hidden_dim, args.codebook_size
    scheduler = MomentScheduler(mask_token_id=mask, codebook_size=mask, choice_temperature=4.0)
    if name == "MDLMTransformer":
        sizes = {"hidden_dim": size, "n_blocks": args.num_layers, "n_heads": args.num_heads}
        pipe: Any = mdlm_pipeline(mdlm(vocab_size=mask + 1, model_length=length, **sizes), args.device)
        pipe.scheduler = MomentScheduler.from_config(scheduler.config, masking_schedule="linear")
        inputs: tuple[Any, ...] = ()
        options: dict[str, Any] = {"output_type": "ids"}
    else:
        shape = (round(length**0.5), size, args.num_layers, args.num_heads, size * 8 // 3)
        model = halton(*shape, codebook_size=mask, num_classes=10)
        vqvae = VQModel(block_out_channels=(32,), num_vq_embeddings=mask, norm_num_groups=8)
        pipe = MaskGITPipeline(vqvae, model.to(args.device).eval(), scheduler)
        pipe.set_progress_bar_config(disable=True)
        inputs = (torch.zeros(1, dtype=torch.int64, device=args.device),)
        options = {"class_labels": 0, "output_type": "latent"}
    for weight in pipe.transformer.parameters():  # a new model's blocks are the identity
        torch.nn.init.normal_(weight, std=0.02)

    def apply(tokens: Tensor, **positions: Tensor) -> Any:
        with pipe.transformer.cache_context("cond"):
            return pipe.transformer(tokens, *inputs, return_dict=False, **positions)

    def generate(steps: int) -> Any:
        generator = torch.Generator().manual_seed(0)
        return pipe(num_inference_steps=steps, generator=generator, **options)

    return pipe, apply, generate


@torch.no_grad()
def measure(name: str, length: int, args: argparse.Namespace) -> dict[str, Any]:
    pipe, apply, generate = make(name, length, args)
    steps, mask = args.num_inference_steps, args.codebook_size
    tokens = torch.full((1, length), mask, device=args.device)
    works: dict[str, Callable[[], Any]] = {"full": lambda: apply(tokens)}
    for share in SHARES:
        positions = torch.randperm(length, device=args.device)[None, : int(share * length)]
        works[str(share)] = lambda at=positions: apply(tokens[:, : at.shape[1]], positions=at)
    with partial_caching(pipe.transformer, 2):
        apply(tokens)  # the full pass that a partial pass needs before it
        passes = take_turns(works, args.repeats)

    def in_groups() -> None:
        with partial_caching(pipe.transformer, 2):
            generate(steps)

    works = {"plain": lambda: generate(steps), "groups": in_groups, "twice": lambda: generate(2 * steps)}
    runs = take_turns(works, args.generation_repeats)
    return {
        "model": name,
        "length": length,
        "full pass": median(passes["full"]),
        **{str(share): median_ratio(passes, str(share), "full") for share in SHARES},
        "over plain": median_ratio(runs, "groups", "plain"),
        "over twice": median_ratio(runs, "groups", "twice"),
        "times": {"passes": passes, "runs": runs},
    }


def live_tensors() -> tuple[int, int]:
    """The number of existing tensors, and the bytes of their storages."""
    gc.collect()
    tensors = [thing for thing in gc.get_objects() if type(thing) in (Tensor, torch.nn.Parameter)]  # no fake ones
    storages = {storage.data_ptr(): storage.nbytes() for storage in (tensor.untyped_storage() for tensor in tensors)}
    return len(tensors), sum(storages.values())


def leaks(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """The tensors that exist after 2 and after 50 generations with two groups, for a small model."""
    small = argparse.Namespace(**{**vars(args), "hidden_dim": 48, "num_layers": 2, "num_heads": 4})
    pipe, _, generate = make(name, 64, small)
    alive = {}
    with partial_caching(pipe.transformer, 2):
        for call in range(1, 51):
            generate(4)
            if call in (2, 50):
                alive[call] = live_tensors()
    return {"model": name, "alive": alive}


def print_tables(rows: list[dict[str, Any]], alive: list[dict[str, Any]], args: argparse.Namespace) -> None:
    steps, shares = args.num_inference_steps, [str(share) for share in SHARES]
    print(f"{args.hidden_dim} wide, {args.num_layers} layers, float32, {args.device}, {args.num_threads} thread(s)\n")
    ratios = [*(f"k / L = {share}" for share in shares), f"R = 2 over plain, {steps} steps", f"over {2 * steps} steps"]
    costs = []
    for row in rows:
        values = [f"{row[key]:.2f}" for key in (*shares, "over plain", "over twice")]
        costs.append((row["model"], row["length"], f"{1000 * row['full pass']:.0f}", *values))
    print_table(["model", "L", "full pass, ms", *ratios], costs)
    print()
    counts = []
    for row in alive:
        (tensors, size), (tensors_later, size_later) = row["alive"].values()
        counts.append((row["model"], tensors, tensors_later, size, size_later))
    print_table(["model", "tensors after 2 calls", "after 50", "bytes after 2 calls", "after 50"], counts)


def main(argv: Sequence[str] | None = None) -> dict[str, list[dict[str, Any]]]:
    args = parse_args(argv)
    torch.set_num_threads(args.num_threads)
    torch.manual_seed(0)
    wanted = [(name, length) for length in args.lengths for name in MODELS]
    rows = [measure(name, length, args) for name, length in tqdm(wanted, desc="models")]
    alive = [leaks(name, args) for name in MODELS]
    print_tables(rows, alive, args)
    results = {"costs": rows, "leaks": alive}
    if args.output_dir is not None:
        write_json(results, args.output_dir / "partial_caching_cost.json")
    return results


if __name__ == "__main__":
    main()
