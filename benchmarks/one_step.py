"""Compares the cost of an image in one pass, as Di[M]O makes it, with that of its teacher's eight guided steps.

    python benchmarks/one_step.py
    python benchmarks/one_step.py --batch_size 16 --device cuda

The model has the released sizes of Maskgit-pytorch v1.0, which both have, and random weights; what a pass costs
depends on sizes alone. Images are drawn as codes: decoding costs the same for both. The samplers take turns, and a time
is the median over repeats, on a CPU of processor time, which leaves out what others do on the machine.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from statistics import median
from typing import Any

import torch
from arguments import add_machine_arguments, new_parser
from tables import print_table
from timing import now, take_turns

from hf_maskdiff import MaskedDiffusionScheduler, MaskGITPipeline, MaskGITTransformer2DModel, MaskGITVQModel
from hf_maskdiff.conversion.dimo import dimo
from hf_maskdiff.conversion.maskgit_pytorch_v1 import valeoai_v1


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = new_parser(__doc__)
    parser.add_argument("--sample_size", type=int, default=16)
    parser.add_argument("--codebook_size", type=int, default=1024)
    parser.add_argument("--hidden_size", type=int, default=768)
    parser.add_argument("--num_layers", type=int, default=24)
    parser.add_argument("--num_attention_heads", type=int, default=16)
    parser.add_argument("--intermediate_size", type=int, default=3072)
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    add_machine_arguments(parser)
    return parser.parse_args(argv)


def untrained(args: argparse.Namespace) -> MaskGITPipeline:
    """Random weights, and a tokenizer that nothing is decoded with."""
    names = ("sample_size", "codebook_size", "hidden_size", "num_layers", "num_attention_heads", "intermediate_size")
    sizes = {name: getattr(args, name) for name in names}
    model = MaskGITTransformer2DModel(**sizes, num_classes=1000, project_embeddings=True, position_bias=True)
    vqvae = MaskGITVQModel(
        block_out_channels=(4,), latent_channels=4, num_vq_embeddings=args.codebook_size, norm_num_groups=2
    )
    pipe = MaskGITPipeline(vqvae.eval(), model.to(args.device).eval(), dimo(args.codebook_size).scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def main(argv: Sequence[str] | None = None) -> dict[str, dict[str, float]]:
    args = parse_args(argv)
    torch.set_num_threads(args.num_threads)
    torch.manual_seed(0)
    pipe, passes = untrained(args), []
    pipe.transformer.register_forward_hook(lambda *_: passes.append(1))
    teacher = valeoai_v1(args.codebook_size, args.sample_size**2)
    samplers: dict[str, tuple[MaskedDiffusionScheduler, dict[str, Any]]] = {
        "one step": (pipe.scheduler, {"num_inference_steps": 1}),
        "eight steps": (teacher.scheduler, {"num_inference_steps": 8}),
        "eight steps, guided": (
            teacher.scheduler,
            {"num_inference_steps": 8, "guidance_scale": teacher.guidance_scale},
        ),
    }

    def draw(name: str) -> None:
        pipe.scheduler, call = samplers[name]
        pipe(list(range(args.batch_size)), output_type="latent", **call)

    clock = time.process_time if args.device == "cpu" else now
    times = take_turns({name: lambda name=name: draw(name) for name in samplers}, args.repeats, clock=clock)
    results = {}
    for name in samplers:
        passes.clear()
        draw(name)
        results[name] = {"passes": len(passes), "seconds": median(times[name]) / args.batch_size}
    fastest = results["one step"]["seconds"]
    print(f"{args.sample_size**2} codes, batch {args.batch_size}, {args.device}\n")
    print_table(
        ["sampler", "passes", "seconds an image", "times one step"],
        [
            (name, row["passes"], f"{row['seconds']:.3f}", f"{row['seconds'] / fastest:.1f}")
            for name, row in results.items()
        ],
    )
    return results


if __name__ == "__main__":
    main()
