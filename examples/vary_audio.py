r"""Vary a clip, draw a part of it anew, or make a new one, and write a WAV file.

    python examples/vary_audio.py --pipeline vampnet --input loop.wav --output variation.wav --every 7 --codebooks 3
    python examples/vary_audio.py --pipeline vampnet --input loop.wav --output repaired.wav --fill 2.0 3.5
    python examples/vary_audio.py --pipeline vampnet --output new.wav --seconds 8

`vampnet` is what `hf-maskdiff convert hugggof/vampnet vampnet` has written, with its codec; any folder or Hub id of a
`MaskedDiffusionAudioPipeline` will do. The input is a WAV file of 16 bits at the codec's sampling rate; of several
channels it takes the mean.
"""

from __future__ import annotations

import argparse
import wave
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from hf_maskdiff import MaskedDiffusionAudioPipeline
from hf_maskdiff.audio_masks import keep_codebooks, keep_every, keep_outside
from hf_maskdiff.wav_files import write_wav


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipeline", required=True, help="folder or Hub id")
    parser.add_argument("--output", type=Path, required=True)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--input", type=Path, help="the clip to vary")
    source.add_argument("--seconds", type=float, help="how long a new clip is")
    parser.add_argument("--every", type=int, help="keep every so many frames")
    parser.add_argument("--fill", type=float, nargs=2, metavar=("START", "END"), help="draw these seconds anew")
    parser.add_argument("--codebooks", type=int, help="of what is kept, keep the first so many codebooks alone")
    parser.add_argument("--num_inference_steps", type=int)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    if args.input is not None and args.every is None and args.fill is None:
        parser.error("--input needs --every or --fill, which say what of it is kept")
    return args


def read_wav(path: Path) -> tuple[Tensor, int]:
    """A clip `(num_samples,)` in [-1, 1], and its sampling rate."""
    with wave.open(str(path)) as file:
        if file.getsampwidth() != 2:
            raise SystemExit(
                f"`--input` must be a WAV file of 16 bits, got {8 * file.getsampwidth()}. Convert it first."
            )
        data = torch.frombuffer(bytearray(file.readframes(file.getnframes())), dtype=torch.int16)
        return data.view(-1, file.getnchannels()).float().mean(1) / 32768, file.getframerate()


def kept(args: argparse.Namespace, num_frames: int, pipe: MaskedDiffusionAudioPipeline) -> Tensor:
    """Which codes stay."""
    keep = torch.zeros(1, num_frames, dtype=torch.bool)
    if args.every is not None:
        keep = keep | keep_every(args.every, num_frames)
    if args.fill is not None:
        keep = keep | keep_outside(*args.fill, num_frames, pipe.frame_rate)
    return keep if args.codebooks is None else keep & keep_codebooks(args.codebooks, pipe.num_codebooks)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    pipe = MaskedDiffusionAudioPipeline.from_pretrained(args.pipeline, trust_remote_code=False)
    pipe.to("cuda" if torch.cuda.is_available() else "cpu")
    call = {"num_inference_steps": args.num_inference_steps, "generator": torch.Generator().manual_seed(args.seed)}
    if args.input is None:
        audio = pipe(audio_length_in_s=args.seconds, **call).audios[0]
    else:
        codes = pipe.encode_audio(*read_wav(args.input))
        audio = pipe(codes=codes, keep=kept(args, codes.shape[-1], pipe), **call).audios[0]
    write_wav(args.output, audio.cpu(), pipe.sampling_rate)
    print(f"{audio.shape[-1] / pipe.sampling_rate:.2f} seconds in {args.output}")


if __name__ == "__main__":
    main()
