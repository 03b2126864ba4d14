r"""Make a set of spoken words from a speech synthesizer: real sounds of many voices, without a download site.

    python examples/render_speech.py --output_dir data/speech

Writes `train.npz` and `test.npz` with `audios`, int16 `(num_clips, num_samples)` of one second, `labels`, `class_names`
(the words) and `sampling_rate`. Each word is spoken by every voice of eSpeak NG at several pitches and speeds, and lies
somewhere in its second. No voice is in both splits, and voices that sound like another are left out.

Needs the program `espeak-ng` (Debian: `apt-get install espeak-ng`). It and its data are under GPL-3.0-or-later; here it
is called as a program, and none of its files is copied. Say that you used it, and look at its licence before you
publish what it spoke.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import subprocess
import tempfile
import wave
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PITCHES, SPEEDS = (30, 50, 70), (140, 175)  # of 0 to 99, and words a minute
LOUDEST = 0.5  # of the range of int16, in each clip


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--words", nargs="+", default=list(DIGITS), help="the classes")
    parser.add_argument("--language", default="en-us", help="of the words, a name of `espeak-ng --voices`")
    parser.add_argument("--sampling_rate", type=int, default=16000)
    parser.add_argument("--max_voices", type=int, help="take the first ones alone")
    parser.add_argument("--command", default="espeak-ng", help="the synthesizer")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


def voices_of(command: str) -> list[str]:
    """The names of the voices that a language can be spoken by."""
    listed = subprocess.run([command, "--voices=variant"], capture_output=True, text=True, check=True).stdout
    return sorted(re.findall(r"!v/(\S+(?: \S+)*)", listed))


def speak(command: str, word: str, voice: str, pitch: int, speed: int) -> tuple[Tensor, int]:
    """The word in floats `(num_samples,)`, without the silence around it, and its sampling rate."""
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "word.wav")
        options = ["-v", voice, "-p", str(pitch), "-s", str(speed), "-w", file, "--", word]
        subprocess.run([command, *options], capture_output=True, check=True)
        with wave.open(file) as sound:
            data, rate = np.frombuffer(sound.readframes(sound.getnframes()), "<i2"), sound.getframerate()
    loud = np.flatnonzero(np.abs(data.astype(np.int32)) > 100)
    kept = data[loud[0] : loud[-1] + 1] if len(loud) else data[:0]
    return torch.from_numpy(kept.astype(np.float32)) / 32768, rate


def resample(sound: Tensor, rate: int, wanted: int) -> Tensor:
    """The same sound at another sampling rate, its frequencies above half of the lower rate left out."""
    length = round(len(sound) * wanted / rate)
    spectrum = torch.fft.rfft(sound)[: length // 2 + 1]
    return torch.fft.irfft(spectrum, n=length) * (length / len(sound)) if length else sound[:0]


def in_a_second(sound: Tensor, rate: int, generator: torch.Generator) -> Tensor:
    """The sound somewhere in a second of silence, int16 `(rate,)`; what is longer is cut."""
    sound = sound[:rate] * (LOUDEST * 32767 / sound.abs().max().clamp(min=1e-6))
    start = int(torch.randint(rate - len(sound) + 1, (1,), generator=generator))
    second = torch.zeros(rate, dtype=torch.int16)
    second[start : start + len(sound)] = sound.round().to(torch.int16)
    return second


def is_test(voice: str) -> bool:
    """Whether a voice belongs to the test split: a fixed eighth of all names."""
    return hashlib.sha256(voice.encode()).digest()[0] < 32


def render(args: argparse.Namespace) -> dict[str, list[tuple[NDArray[np.int16], int]]]:
    """Clips with their labels for each split; of voices with the same sounds, one."""
    generator = torch.Generator().manual_seed(args.seed)
    made: dict[str, list[tuple[NDArray[np.int16], int]]] = {"train": [], "test": []}
    heard: set[bytes] = set()
    for voice in tqdm(voices_of(args.command)[: args.max_voices], desc="voices"):
        name = f"{args.language}+{voice}"
        first, _ = speak(args.command, args.words[0], name, PITCHES[0], SPEEDS[0])
        if len(first) == 0 or (sound := first.numpy().tobytes()) in heard:
            continue
        heard.add(sound)
        for (label, word), pitch, speed in product(enumerate(args.words), PITCHES, SPEEDS):
            spoken, rate = speak(args.command, word, name, pitch, speed)
            clip = in_a_second(resample(spoken, rate, args.sampling_rate), args.sampling_rate, generator)
            made["test" if is_test(voice) else "train"].append((clip.numpy(), label))
    return made


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    try:
        made = render(args)
    except FileNotFoundError as error:
        raise SystemExit(
            f"`{args.command}` must be installed, it is not. On Debian: apt-get install espeak-ng."
        ) from error
    args.output_dir.mkdir(parents=True, exist_ok=True)
    about = {"class_names": np.array(args.words), "sampling_rate": np.array(args.sampling_rate)}
    for split, clips in made.items():
        audios = np.stack([clip for clip, _ in clips]) if clips else np.zeros((0, args.sampling_rate), np.int16)
        labels = np.array([label for _, label in clips], np.int64)
        np.savez_compressed(args.output_dir / f"{split}.npz", audios=audios, labels=labels, **about)
        print(f"{split}: {len(clips)} clips of {args.sampling_rate} samples")


if __name__ == "__main__":
    main()
