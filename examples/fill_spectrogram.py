r"""Say a word, fill a gap in a clip, or give it the high frequencies that it lacks: a sound drawn as a picture.

    python examples/fill_spectrogram.py --pipeline runs/spectrograms --word seven --output seven.wav
    python examples/fill_spectrogram.py --pipeline runs/spectrograms --input seven.wav --fill 0.3 0.5 --output b.wav
    python examples/fill_spectrogram.py --pipeline runs/spectrograms --input low.wav --above 1500 --output wide.wav

The pipeline is a plain `MaskGITPipeline` of grey log-mel spectrograms: examples/render_spectrograms.py
says how to train one. Masks say what of it is drawn anew, a stretch of time or the bands above a frequency in
Hz, or both; the rest of it stays that of the clip. Phases are made up by the Griffin-Lim algorithm. The input is a WAV
file of 16 bits, at the sampling rate of the clips that were trained on. `--picture` shows the spectrogram before, and
after.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from mel_images import SIDE, WINDOW, images_of, rows_above, sounds_of
from PIL import Image
from torch import Tensor
from training_utils import errors_in_one_line
from vary_audio import read_wav

from hf_maskdiff import MaskGITPipeline
from hf_maskdiff.wav_files import write_wav


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipeline", required=True, help="folder or Hub id")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--word", help="a class of the pipeline; default: none")
    parser.add_argument("--input", type=Path, help="the clip to fill in; default: a new one")
    parser.add_argument("--fill", type=float, nargs=2, metavar=("START", "END"), help="draw these seconds anew")
    parser.add_argument("--above", type=float, metavar="HERTZ", help="draw the bands above this frequency anew")
    parser.add_argument("--sampling_rate", type=int, default=8000, help="of a new clip")
    parser.add_argument("--num_inference_steps", type=int, default=12)
    parser.add_argument("--guidance_scale", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--picture", type=Path, help="a PNG file: before, and after")
    args = parser.parse_args(argv)
    if (args.input is not None) != (args.fill is not None or args.above is not None):
        parser.error("--input needs --fill or --above, which say what is drawn anew, and they need it")
    return args


def mask_of(args: argparse.Namespace, sampling_rate: int) -> Tensor:
    """What is drawn anew, bool `(SIDE, SIDE)`: the seconds of `--fill`, the bands of `--above`."""
    mask = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    if args.fill is not None:
        start, end = (round(second * sampling_rate / (WINDOW // 4)) for second in args.fill)
        mask[:, max(start, 0) : max(end, 0)] = True
    if args.above is not None:
        mask[: rows_above(args.above, sampling_rate)] = True
    if not mask.any():
        raise ValueError(
            f"`--fill` and `--above` must hold a part of the clip, got {args.fill} and {args.above}. Pass seconds "
            "within it, or a frequency below half the sampling rate."
        )
    return mask


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    pipe = MaskGITPipeline.from_pretrained(args.pipeline, trust_remote_code=False)
    pipe.to("cuda" if torch.cuda.is_available() else "cpu")
    call = {"class_labels": args.word, "num_inference_steps": args.num_inference_steps, "output_type": "pt"}
    call |= {"guidance_scale": args.guidance_scale, "generator": torch.Generator().manual_seed(args.seed)}
    with errors_in_one_line():
        if args.input is None:
            rate, length, before = args.sampling_rate, args.sampling_rate, torch.zeros(1, 1, SIDE, SIDE)
            made = pipe(**call).images.cpu()
        else:
            clip, rate = read_wav(args.input)
            length, before, mask = len(clip), images_of(clip[None], rate), mask_of(args, rate)
            drawn = pipe(**call, image=before, mask_image=mask[None, None].float()).images.cpu()
            made, before = drawn.where(mask, before), before.masked_fill(mask, 0.5)
    sound = sounds_of(made, rate, args.seed)[:, :length]
    write_wav(args.output, sound, rate)
    if args.picture is not None:
        sheet = (torch.cat([before, made], 3)[0, 0] * 255).round().to(torch.uint8)
        Image.fromarray(sheet.numpy()).resize((8 * SIDE, 4 * SIDE), Image.Resampling.NEAREST).save(args.picture)
    print(f"{sound.shape[-1] / rate:.2f} seconds in {args.output}")


if __name__ == "__main__":
    main()
