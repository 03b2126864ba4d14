"""How samplers fill in an image, as an animated GIF: a row each, and grey where the tokens are still masked.

    python examples/animate_unmasking.py
    python examples/animate_unmasking.py --schedulers halton confidence --steps 16 --labels 0 8 --output two_orders.gif

It needs a pipeline folder, by default `pipelines/maskgit-mnist` of this repository. The pictures are taken by
`callback_on_step_end`, which diffusers' pipelines call after every step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from generate_image import SAMPLERS, draw_sheet, generators, load, make_parser
from PIL import Image
from torch import Tensor

from hf_maskdiff import MaskGITPipeline

FRAME_MS, LAST_FRAME_MS = 500, 3000


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser(__doc__, "unmasking.gif")
    parser.add_argument("--steps", type=int, default=8)
    args = parser.parse_args(argv)
    if args.steps < 1:
        parser.error(f"--steps must be at least 1, got {args.steps}. Pass the number of model passes you want.")
    pipe, config, ids, class_names = load(parser, args)

    histories: dict[str, list[list[Image.Image]]] = {}
    for sampler in args.schedulers:
        pipe.scheduler = SAMPLERS[sampler](config)
        history = histories[sampler] = [decode(pipe, pipe.prepare_latents(len(ids), None, pipe.device))]

        def keep(pipe: MaskGITPipeline, step: int, timestep: Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
            history.append(decode(pipe, tensors["latents"]))  # noqa: B023 - called within this turn of the loop
            return tensors

        pipe(
            class_labels=ids,
            num_inference_steps=args.steps,
            guidance_scale=args.guidance_scale,
            generator=generators(args, len(ids)),
            output_type="latent",
            callback_on_step_end=keep,
        )
        print(f"{sampler}: {len(history) - 1} steps", flush=True)

    num_frames = len(history)
    frames = []
    for n in range(num_frames):
        rows = [(sampler, "", history[n]) for sampler, history in histories.items()]
        frames.append(draw_sheet(rows, class_names, corner=f"step {n} of {num_frames - 1}"))
    durations = [FRAME_MS] * (num_frames - 1) + [LAST_FRAME_MS]
    frames[0].save(args.output, save_all=True, append_images=frames[1:], duration=durations, loop=0)
    print(f"The animation is {args.output}: {num_frames} frames, {args.output.stat().st_size / 1e6:.2f} MB.")


def decode(pipe: MaskGITPipeline, latents: Tensor) -> list[Image.Image]:
    """Images of codes, those still masked in grey."""
    return pipe.image_processor.postprocess(pipe.decode_latents(latents), "pil")


if __name__ == "__main__":
    main()
