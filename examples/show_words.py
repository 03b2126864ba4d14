r"""Words as samplers draw them: the sound, its spectrogram, and which step revealed which code.

    python examples/show_words.py --output words.png
    python examples/show_words.py --schedulers moment halton --steps 8 --words three nine --wav_dir words

It needs a pipeline of sounds with classes, by default `pipelines/vampnet-digits` of this repository. In the coloured
maps a row is a codebook, the coarsest first, and a column a frame; dark blue came first, yellow last. `--wav_dir` keeps
each sound as a WAV file.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from generate_image import SAMPLERS
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from hf_maskdiff import MaskedDiffusionAudioPipeline
from hf_maskdiff.demo.heat_map import grid_picture
from hf_maskdiff.demo.history import Record
from hf_maskdiff.demo.sound_runs import spectrogram
from hf_maskdiff.wav_files import write_wav

WIDTH, GAP, TITLE = 504, 10, 24  # pixels


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipeline", default="pipelines/vampnet-digits", help="folder or Hub id")
    parser.add_argument("--schedulers", nargs="+", choices=SAMPLERS, default=["moment", "halton"])
    parser.add_argument("--words", nargs="+", default=["three", "seven"])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--guidance_scale", type=float, help="default: the pipeline's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("words.png"))
    parser.add_argument("--wav_dir", type=Path)
    return parser.parse_args(argv)


def cell(title: str, audio: Tensor, history: Tensor, num_steps: int, sampling_rate: int) -> Image.Image:
    """A word's title, spectrogram and map, one above the other."""
    picture = spectrogram(audio, sampling_rate).convert("RGB").resize((WIDTH, WIDTH // 3))
    grid = grid_picture(history, num_steps, WIDTH)
    grid = grid.resize((WIDTH, 2 * grid.height * WIDTH // grid.width), Image.Resampling.NEAREST)
    paper = Image.new("RGB", (WIDTH, TITLE + picture.height + GAP // 2 + grid.height), "white")
    ImageDraw.Draw(paper).text((0, 2), title, "black", ImageFont.load_default(size=16))
    paper.paste(picture, (0, TITLE))
    paper.paste(grid, (0, TITLE + picture.height + GAP // 2))
    return paper


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    pipe = MaskedDiffusionAudioPipeline.from_pretrained(args.pipeline, trust_remote_code=False)
    pipe.set_progress_bar_config(disable=True)
    config, mask = dict(pipe.scheduler.config), pipe.scheduler.config.mask_token_id
    num_frames, rows = round(pipe.chunk_length_s * pipe.frame_rate), []
    for name in args.schedulers:
        pipe.scheduler = SAMPLERS[name](config)
        start = torch.full((len(args.words), pipe.num_codebooks, num_frames), mask)
        record = Record(start, mask)

        def keep(
            _: object, step: int, __: object, tensors: dict[str, Tensor], record: Record = record
        ) -> dict[str, Tensor]:
            record.add(tensors["codes"].cpu(), step + 1)
            return tensors

        call = {"num_inference_steps": args.steps, "guidance_scale": args.guidance_scale}
        generators = [torch.Generator().manual_seed(args.seed + i) for i in range(len(args.words))]
        made = pipe(args.words, codes=start, generator=generators, callback_on_step_end=keep, **call).audios
        titles = [f"{word}, {name}, {args.steps} steps" for word in args.words]
        drawn = zip(titles, made, record.history, strict=True)
        rows.append([cell(*one, args.steps, pipe.sampling_rate) for one in drawn])
        if args.wav_dir is not None:
            for word, audio in zip(args.words, made, strict=True):
                write_wav(args.wav_dir / f"{word}_{name}.wav", audio, pipe.sampling_rate)
    height = rows[0][0].height
    sheet = Image.new("RGB", (len(args.words) * (WIDTH + GAP) - GAP, len(rows) * (height + GAP) - GAP), "white")
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            sheet.paste(picture, (x * (WIDTH + GAP), y * (height + GAP)))
    args.output.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(args.output)
    print(f"The picture is {args.output}: {len(rows)} rows of {len(args.words)} words.")


if __name__ == "__main__":
    main()
