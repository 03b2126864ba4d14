"""Edits real images and shows them in one picture: halves drawn anew, and the class changed at several strengths.

    python examples/edit_image.py
    python examples/edit_image.py --data_dir FOLDER_OF_MNIST --schedulers moment halton --strengths 0.3 0.9

The images are the first of each class in a test set, by default MNIST from the Hub; `--data_dir` names a local folder
instead. Each masked row, with masked codes in grey, is followed by the pipeline's result. "Changed" is the share of
codes that differ from the image's.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
from generate_image import SAMPLERS, Row, draw_sheet, generators, load, make_parser
from PIL import Image
from torch import Tensor

from hf_maskdiff import MaskGITPipeline
from hf_maskdiff.evaluation.image_data import load_labelled_images

# White areas are drawn anew. Masks may have any size: these have two pixels, side by side or one above the other.
MASKS = {
    "right half": Image.fromarray(np.array([[0, 255]], dtype=np.uint8)),
    "lower half": Image.fromarray(np.array([[0], [255]], dtype=np.uint8)),
}


def load_images(args: argparse.Namespace, pipe: MaskGITPipeline, labels: list[int]) -> Tensor:
    """The first image of each class, as the pipeline's tokenizer reads it."""
    channels = pipe.vqvae.config.in_channels
    dataset = None if args.data_dir else args.dataset
    data = load_labelled_images("test", dataset=dataset, data_dir=args.data_dir, num_channels=channels)
    first = {int(label): index for index, label in reversed(list(enumerate(data.labels)))}
    missing = sorted(set(labels) - set(first))
    if missing:
        raise ValueError(f"The images must hold every class in `labels`, got none of {missing}. Choose other labels.")
    return pipe.preprocess_image(data.images[[first[label] for label in labels]].float() / 255)


def run(args: argparse.Namespace) -> None:
    pipe, config, call, class_names = load(args)
    labels = call["class_labels"]
    images = load_images(args, pipe, labels)
    codes = pipe.encode_image(images)
    rows: list[Row] = [("image", "", pipe.image_processor.postprocess(images, "pil"))]

    def add_row(name: str, remark: str, latents: Tensor) -> None:
        rows.append((name, remark, pipe.image_processor.postprocess(pipe.decode_latents(latents), "pil")))

    def edit(name: str, **arguments: Any) -> None:
        generator = generators(args, len(labels))
        arguments = call | {"image": images, "num_inference_steps": args.steps, "generator": generator} | arguments
        latents = pipe(**arguments, output_type="latent").images
        changed = float((latents != codes).double().mean())
        print(f"{name:20}{sampler:12}{pipe.num_timesteps:6}{changed:10.0%}", flush=True)
        add_row(name, f"{sampler}, {pipe.num_timesteps} steps, {changed:.0%} changed", latents)

    add_row("its codes", "what the tokenizer keeps", codes)
    print(f"{'edit':20}{'sampler':12}{'steps':>6}{'changed':>10}")
    for name, mask_image in MASKS.items():
        add_row(
            name,
            "masked",
            codes.masked_fill(pipe.preprocess_mask(mask_image).to(codes.device), config["mask_token_id"]),
        )
        for sampler in args.schedulers:
            pipe.scheduler = SAMPLERS[sampler](config)
            edit(f"{name}, anew", mask_image=mask_image)
    next_labels = labels[1:] + labels[:1]
    for strength, sampler in product(args.strengths, args.schedulers):
        pipe.scheduler = SAMPLERS[sampler](config)
        edit(f"next class, {strength:g}", class_labels=next_labels, strength=strength)
    draw_sheet(rows, class_names).save(args.output)
    print(f"The picture is {args.output}: {len(rows)} rows of {len(labels)} images.")


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser(__doc__, "edits.png")
    parser.set_defaults(schedulers=["moment"])
    parser.add_argument("--dataset", default="ylecun/mnist", help="name of a data set on the Hub")
    parser.add_argument("--data_dir", help="a local folder instead: MNIST's own files, or test/CLASS/IMAGE")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--strengths", type=float, nargs="+", default=[0.25, 0.5, 0.75, 1.0])
    args = parser.parse_args(argv)
    try:
        run(args)
    except ValueError as error:  # the package's errors state rule, value and remedy
        parser.error(str(error))


if __name__ == "__main__":
    main()
