"""Continues the same prompt with nine samplers: one text each, with its steps, model passes and seconds.

    python examples/generate_text.py
    python examples/generate_text.py --prompt "To be, or [MASK:12] question." --schedulers moment      # infilling
    python examples/generate_text.py --max_new_tokens 200 --stride 32 --schedulers hybrid --steps 16   # long: by blocks
    python examples/generate_text.py --stream --schedulers halton moment                # watch it being filled in

It needs a pipeline folder, by default `pipelines/mdlm-shakespeare` of this repository, or a Hub name:
`--pipeline kuleshov-group/mdlm-owt`. All texts come from the same seed.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from generate_image import SAMPLERS as IMAGE_SAMPLERS

from hf_maskdiff import (
    AncestralScheduler,
    EntropyBoundedScheduler,
    FirstHittingScheduler,
    MaskedDiffusionScheduler,
    MDLMPipeline,
)

# name -> a function that makes this sampler with the mask, codebook and masking schedule of a configuration
SAMPLERS: dict[str, Callable[[dict[str, Any]], MaskedDiffusionScheduler]] = {
    "ancestral": lambda config: AncestralScheduler.from_config(config, choice_temperature=None),
    "first-hitting": lambda config: FirstHittingScheduler.from_config(config, choice_temperature=None),
    "entropy-bounded": lambda config: EntropyBoundedScheduler.from_config(config, follow_schedule=True),
    **IMAGE_SAMPLERS,
}


def parse_args(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    folder = Path(__file__).resolve().parents[1] / "pipelines" / "mdlm-shakespeare"
    parser.add_argument("--pipeline", default=str(folder), help="folder or Hub name of the pipeline")
    parser.add_argument("--prompt", default="First Citizen:\n", help="[MASK:5] stands for five tokens to fill in")
    parser.add_argument("--schedulers", nargs="+", choices=SAMPLERS, default=list(SAMPLERS))
    parser.add_argument("--steps", type=int, nargs="+", default=[16], help="one or more; a text for each")
    parser.add_argument("--choice_temperature", type=float, help="default: the pipeline's, or 4")
    parser.add_argument("--max_new_tokens", type=int, help="default: as many as the model's length allows")
    parser.add_argument("--stride", type=int, help="new tokens per block, for texts longer than the model")
    parser.add_argument("--stream", action="store_true", help="show the text after each step, _ for a masked token")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args(argv)


def show_step(pipe: MDLMPipeline, step: int, timestep: torch.Tensor, tensors: dict[str, torch.Tensor]) -> dict:
    """A callback that prints the current block on one line."""
    (text,) = pipe.decode_sequences(tensors["sequences"])
    print(f"{step + 1:4} {text!r}", flush=True)
    return tensors


def run(args: argparse.Namespace) -> None:
    try:
        pipe = MDLMPipeline.from_pretrained(args.pipeline).to(args.device)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"`pipeline` must be a pipeline folder or a Hub name, got {args.pipeline!r}. Train one with "
            f"examples/train_mdlm.py, or pass --pipeline FOLDER. ({error})"
        ) from error
    pipe.set_progress_bar_config(disable=True)
    config = dict(pipe.scheduler.config)
    config["choice_temperature"] = args.choice_temperature or config.get("choice_temperature") or 4.0
    pipe(args.prompt, 1, args.max_new_tokens, stride=args.stride)  # warm up, before timing
    for sampler, steps in product(args.schedulers, args.steps):
        pipe.scheduler = SAMPLERS[sampler](config)
        start = time.perf_counter()
        output = pipe(
            args.prompt,
            num_inference_steps=steps,
            max_new_tokens=args.max_new_tokens,
            stride=args.stride,
            generator=torch.Generator().manual_seed(args.seed),
            callback_on_step_end=show_step if args.stream else None,
        )
        seconds = time.perf_counter() - start
        print(f"{sampler}: {steps} steps, {output.num_model_passes[0]} passes, {seconds:.2f} s")
        print(textwrap.indent(output.texts[0], "    "), flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    sys.stdout.reconfigure(errors="replace")  # a model may write characters that a terminal cannot show
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args = parse_args(parser, argv)
    try:
        run(args)
    except ValueError as error:  # the package's errors state rule, value and remedy
        parser.error(str(error))


if __name__ == "__main__":
    main()
