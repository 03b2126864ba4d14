"""How samplers fill in an image, as an animated GIF: one row per sampler, with masked tokens in grey.

    python examples/animate_unmasking.py
    python examples/animate_unmasking.py --schedulers halton confidence --steps 16 --labels 0 8 --output two_orders.gif

It needs a pipeline folder, by default `pipelines/maskgit-mnist` of this repository. The images are recorded in
`callback_on_step_end`, which the pipeline calls after every step, as all pipelines of diffusers do.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from typing import Any

from generate_image import SAMPLERS, draw_sheet, generators, load, make_parser
from PIL import Image
from torch import Tensor

from hf_maskdiff import MaskGITPipeline

FRAME_MS, LAST_FRAME_MS = 500, 3000
History = list[list[Image.Image]]  # the images after each step


def record(
    history: History, pipe: MaskGITPipeline, step: int, timestep: Tensor | None, tensors: dict[str, Any]
) -> dict[str, Any]:
    """A callback that decodes the current tokens, with masked parts in grey, and changes nothing."""
    history.append(pipe.image_processor.postprocess(pipe.decode_latents(tensors["latents"]), "pil"))
    return tensors


def run(args: argparse.Namespace) -> None:
    pipe, config, call, class_names = load(args)
    histories: dict[str, History] = {}
    for sampler in args.schedulers:
        pipe.scheduler = SAMPLERS[sampler](config)
        history: History = []
        record(history, pipe, -1, None, {"latents": pipe.prepare_latents(len(class_names), None, pipe.device)})
        pipe(
            **call,
            num_inference_steps=args.steps,
            generator=generators(args, len(class_names)),
            output_type="latent",
            callback_on_step_end=partial(record, history),
        )
        histories[sampler] = history
        print(f"{sampler}: {len(history) - 1} steps", flush=True)

    last = len(history) - 1
    frames = [
        draw_sheet([(name, "", h[n]) for name, h in histories.items()], class_names, f"step {n} of {last}")
        for n in range(last + 1)
    ]
    durations = [FRAME_MS] * last + [LAST_FRAME_MS]
    frames[0].save(args.output, save_all=True, append_images=frames[1:], duration=durations, loop=0)
    print(f"The animation is {args.output}: {len(frames)} frames, {args.output.stat().st_size / 1e6:.2f} MB.")


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser(__doc__, "unmasking.gif")
    parser.add_argument("--steps", type=int, default=8)
    args = parser.parse_args(argv)
    try:
        run(args)
    except ValueError as error:  # the package's errors state rule, value and remedy
        parser.error(str(error))


if __name__ == "__main__":
    main()
