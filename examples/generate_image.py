"""The same classes from six samplers in one picture: one row per sampler, with its steps, passes and seconds.

    python examples/generate_image.py
    python examples/generate_image.py --schedulers moment hybrid --steps 2 4 8 --labels 3 8 --output few_steps.png

It needs a pipeline folder, by default `pipelines/maskgit-mnist` of this repository. The images in a column have the
same seed. With few steps the samplers differ visibly; with many steps they look alike.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont

import hf_maskdiff as hf

# name -> a function that makes this sampler with the mask, codebook and masking schedule of a configuration
SAMPLERS: dict[str, Callable[[dict[str, Any]], hf.MaskedDiffusionScheduler]] = {
    "uniform": lambda config: hf.UniformScheduler.from_config(config, choice_temperature=None),
    "halton": lambda config: hf.HaltonScheduler.from_config(config, choice_temperature=None),
    "confidence": lambda config: hf.ConfidenceScheduler.from_config(config, choice_temperature=None),
    "maskgit": lambda config: hf.MaskGITScheduler.from_config(config),
    "moment": lambda config: hf.MomentScheduler.from_config(config),
    "hybrid": lambda config: hf.HybridScheduler.from_config(config),
}
MARGIN, LEFT, TOP, GAP, SIDE = 16, 224, 40, 6, 56  # pixels


def make_parser(description: str | None, output: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    folder = Path(__file__).resolve().parents[1] / "pipelines" / "maskgit-mnist"
    parser.add_argument("--pipeline", default=str(folder), help="folder or Hub name of the pipeline")
    parser.add_argument("--labels", nargs="+", help="class ids or names; default: the first ten classes")
    parser.add_argument("--schedulers", nargs="+", choices=SAMPLERS, default=list(SAMPLERS))
    parser.add_argument("--guidance_scale", type=float, default=1.0, help="above 1, a step costs two model passes")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first image; later images count up")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=Path(output))
    return parser


def load(args: argparse.Namespace) -> tuple[hf.MaskGITPipeline, dict[str, Any], dict[str, Any], list[str]]:
    """The pipeline, its scheduler's configuration, the arguments that all calls share, and the classes' names."""
    try:
        pipe = hf.MaskGITPipeline.from_pretrained(args.pipeline).to(args.device)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"`pipeline` must be a pipeline folder or a Hub name, got {args.pipeline!r}. Train one with "
            f"examples/train_maskgit.py, or pass --pipeline FOLDER. ({error})"
        ) from error
    pipe.set_progress_bar_config(disable=True)
    config = dict(pipe.scheduler.config)
    config["choice_temperature"] = config.get("choice_temperature") or 6.0  # the preset of a plain sampler has none
    labels = args.labels or range(min(10, pipe.transformer.config.num_classes))
    ids = pipe.get_label_ids([int(x) if str(x).lstrip("-").isdigit() else x for x in labels])
    names = {int(i): str(name) for i, name in (pipe.transformer.config.get("id2label") or {}).items()}
    call = {"class_labels": ids, "guidance_scale": args.guidance_scale}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    return pipe, config, call, [names.get(i, str(i)).split(",")[0] for i in ids]


def generators(args: argparse.Namespace, num_images: int) -> list[torch.Generator]:
    """One generator per image, so that an image does not depend on the other images."""
    return [torch.Generator().manual_seed(args.seed + i) for i in range(num_images)]


Row = tuple[str, str, list[Image.Image]]  # name, remark, images


def draw_sheet(rows: list[Row], class_names: list[str], corner: str = "") -> Image.Image:
    """A picture with the rows below the classes' names, and the images enlarged to at least `SIDE`."""
    first = rows[0][2][0]
    width, height = (side * -(-SIDE // first.width) for side in first.size)
    lefts = [LEFT + column * (width + GAP) for column in range(len(class_names))]
    tops = [TOP + row * (height + GAP) for row in range(len(rows))]
    sheet = Image.new(first.mode, (lefts[-1] + width + MARGIN, tops[-1] + height + MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    large, small = ImageFont.load_default(size=20), ImageFont.load_default(size=14)
    longest = max(draw.textlength(name, font=large) for name in class_names)
    fitting = ImageFont.load_default(size=min(20, 20 * (width - 2) / longest))
    draw.text((MARGIN, TOP / 2), corner, "dimgray", small, anchor="lm")
    for left, class_name in zip(lefts, class_names, strict=True):
        draw.text((left + width / 2, TOP / 2), class_name, "black", fitting, anchor="mm")
    for top, (name, remark, images) in zip(tops, rows, strict=True):
        middle = top + height / 2
        draw.text((MARGIN, middle - 11 if remark else middle), name, "black", large, anchor="lm")
        draw.text((MARGIN, middle + 12), remark, "dimgray", small, anchor="lm")
        for left, image in zip(lefts, images, strict=True):
            sheet.paste(image.resize((width, height), Image.Resampling.NEAREST), (left, top))
    return sheet


def run(args: argparse.Namespace) -> None:
    pipe, config, call, class_names = load(args)
    pipe(**call, num_inference_steps=1)  # warm up, so that the table does not include it
    rows = []
    print(f"{'sampler':12}{'steps':>6}{'passes':>8}{'seconds':>9}")
    for sampler, steps in product(args.schedulers, args.steps):
        pipe.scheduler = SAMPLERS[sampler](config)
        start = time.perf_counter()
        images = pipe(**call, num_inference_steps=steps, generator=generators(args, len(class_names))).images
        seconds = time.perf_counter() - start
        passes = pipe.num_timesteps * (2 if pipe.do_classifier_free_guidance else 1)
        rows.append((sampler, f"{steps} steps, {passes} passes, {seconds:.2f} s", images))
        print(f"{sampler:12}{steps:6}{passes:8}{seconds:9.2f}", flush=True)
    draw_sheet(rows, class_names).save(args.output)
    print(f"The picture is {args.output}: {len(rows)} rows of {len(class_names)} images.")


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser(__doc__, "samples.png")
    parser.add_argument("--steps", type=int, nargs="+", default=[4], help="a row for each sampler and number")
    args = parser.parse_args(argv)
    try:
        run(args)
    except ValueError as error:  # the package's errors state rule, value and remedy
        parser.error(str(error))


if __name__ == "__main__":
    main()
