"""The same classes from six samplers, side by side in one picture: a row each, with its steps, time and model passes.

    python examples/generate_image.py
    python examples/generate_image.py --schedulers moment hybrid --steps 2 4 8 --labels 3 8 --output few_steps.png

It needs a pipeline folder, by default `pipelines/maskgit-mnist` of this repository. Pictures in one column come from the
same seed. With few steps samplers differ visibly; with many they come to look alike.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont

from hf_maskdiff import (
    ConfidenceScheduler,
    HaltonScheduler,
    HybridScheduler,
    MaskedDiffusionScheduler,
    MaskGITPipeline,
    MaskGITScheduler,
    MomentScheduler,
    UniformScheduler,
)

# name -> the same mask, codebook and schedule under another sampler
SAMPLERS: dict[str, Callable[[dict[str, Any]], MaskedDiffusionScheduler]] = {
    "uniform": lambda config: UniformScheduler.from_config(config, choice_temperature=None),
    "halton": lambda config: HaltonScheduler.from_config(config, choice_temperature=None),
    "confidence": lambda config: ConfidenceScheduler.from_config(config, choice_temperature=None),
    "maskgit": lambda config: MaskGITScheduler.from_config(config),
    "moment": lambda config: MomentScheduler.from_config(config),
    "hybrid": lambda config: HybridScheduler.from_config(config),
}
MARGIN, LEFT, TOP, GAP, CELL = 16, 208, 36, 6, 56  # pixels


def make_parser(description: str | None, output: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    folder = Path(__file__).resolve().parents[1] / "pipelines" / "maskgit-mnist"
    parser.add_argument("--pipeline", default=str(folder), help="folder or Hub name of the pipeline")
    parser.add_argument("--labels", nargs="+", help="class ids or names; default: the first ten classes")
    parser.add_argument("--schedulers", nargs="+", choices=SAMPLERS, default=list(SAMPLERS))
    parser.add_argument("--guidance_scale", type=float, default=1.0, help="above 1 a step costs two model passes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=Path(output))
    return parser


def load(
    parser: argparse.ArgumentParser, args: argparse.Namespace
) -> tuple[MaskGITPipeline, dict[str, Any], list[int], list[str]]:
    """The pipeline, its scheduler's configuration, and ids and names of the classes; says what is wrong and exits."""
    if not args.output.resolve().parent.is_dir():
        parser.error(f"--output must lie in a folder that exists, got {args.output}. Create the folder first.")
    try:
        pipe = MaskGITPipeline.from_pretrained(args.pipeline).to(args.device)
    except (OSError, ValueError) as error:
        parser.error(
            f"--pipeline must be a pipeline folder or a Hub name, got {args.pipeline!r}. Train one with "
            f"examples/train_maskgit.py, or pass the folder of yours. ({str(error).splitlines()[0]})"
        )
    pipe.set_progress_bar_config(disable=True)
    labels = args.labels or range(min(10, pipe.transformer.config.num_classes))
    try:
        ids = pipe.get_label_ids([int(x) if str(x).lstrip("-").isdigit() else x for x in labels])
    except ValueError as error:
        parser.error(str(error))
    names = {int(key): str(value) for key, value in (pipe.transformer.config.get("id2label") or {}).items()}
    config = dict(pipe.scheduler.config)
    config["choice_temperature"] = config.get("choice_temperature") or 6.0  # a plain sampler's preset has none
    return pipe, config, ids, [names.get(i, str(i)).split(",")[0] for i in ids]


def generators(args: argparse.Namespace, num_images: int) -> list[torch.Generator]:
    """One per image: a picture does not depend on its batch, nor on the device."""
    return [torch.Generator().manual_seed(args.seed + i) for i in range(num_images)]


def draw_sheet(rows: list[tuple[str, str, list[Image.Image]]], class_names: list[str], corner: str = "") -> Image.Image:
    """A picture of rows `(name, remark, images)` under a line of class names."""
    width, height = (side * -(-CELL // rows[0][2][0].width) for side in rows[0][2][0].size)  # enlarged to at least CELL
    size = (LEFT + len(class_names) * (width + GAP) - GAP + MARGIN, TOP + len(rows) * (height + GAP) - GAP + MARGIN)
    mode = "L" if rows[0][2][0].mode == "L" else "RGB"
    sheet = Image.new(mode, size, "white")
    draw = ImageDraw.Draw(sheet)
    large, small = ImageFont.load_default(size=20), ImageFont.load_default(size=14)
    longest = max(draw.textlength(name, font=large) for name in class_names)
    header = ImageFont.load_default(size=min(20, 20 * width / longest))
    draw.text((MARGIN, TOP // 2), corner, font=small, fill="dimgray", anchor="lm")
    for column, class_name in enumerate(class_names):
        x = LEFT + column * (width + GAP)
        draw.text((x + width // 2, TOP // 2), class_name, font=header, fill="black", anchor="mm")
        for row, (_, _, images) in enumerate(rows):
            sheet.paste(images[column].resize((width, height), Image.Resampling.NEAREST), (x, TOP + row * (height + GAP)))
    for row, (name, remark, _) in enumerate(rows):
        middle = TOP + row * (height + GAP) + height // 2
        draw.text((MARGIN, middle - 10), name, font=large, fill="black", anchor="lm")
        draw.text((MARGIN, middle + 12), remark, font=small, fill="dimgray", anchor="lm")
    return sheet


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser(__doc__, "samples.png")
    parser.add_argument("--steps", type=int, nargs="+", default=[4], help="several: a row for each sampler and number")
    args = parser.parse_args(argv)
    if min(args.steps) < 1:
        parser.error(f"--steps must be at least 1, got {min(args.steps)}. Pass the number of model passes you want.")
    pipe, config, ids, class_names = load(parser, args)
    pipe(ids, num_inference_steps=1)  # the first call pays for warming up; it shall not stand in the table

    rows = []
    print(f"{'sampler':12}{'steps':>6}{'passes':>8}{'seconds':>9}")
    for sampler in args.schedulers:
        for steps in args.steps:
            pipe.scheduler = SAMPLERS[sampler](config)
            start = time.perf_counter()
            images = pipe(ids, steps, args.guidance_scale, generator=generators(args, len(ids))).images
            seconds = time.perf_counter() - start
            passes = pipe.num_timesteps * (2 if pipe.do_classifier_free_guidance else 1)
            rows.append((sampler, f"{steps} steps, {passes} passes, {seconds:.2f} s", images))
            print(f"{sampler:12}{steps:6}{passes:8}{seconds:9.2f}", flush=True)
    draw_sheet(rows, class_names).save(args.output)
    print(f"The picture is {args.output}: {len(rows)} rows of {len(ids)} images.")


if __name__ == "__main__":
    main()
