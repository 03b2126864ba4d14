r"""Turn a set of short clips into pictures, log-mel spectrograms, so that the programs for images learn sounds.

    python examples/render_spectrograms.py --data_dir data/speech --output_dir data/spectrograms
    accelerate launch examples/train_vq.py --data_dir data/spectrograms --block_out_channels 16 32 64 \
        --codebook_size 256 --output_dir runs/spectrogram-vq
    accelerate launch examples/train_maskgit.py --data_dir data/spectrograms --tokenizer runs/spectrogram-vq \
        --dropout 0.1 --output_dir runs/spectrograms

`--data_dir` is a folder that examples/render_speech.py wrote; the new one has the same clips and labels as grey images
of 64 bands and 64 columns. A code of the tokenizer then stands for a patch of 4 bands and 4 columns, as in SpecMaskGIT
(arXiv 2406.17672). examples/fill_spectrogram.py makes sounds with what was trained.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from mel_images import images_of
from training_utils import errors_in_one_line

from hf_maskdiff.evaluation.audio_data import load_labelled_clips


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", required=True, help="folder with train.npz and test.npz")
    parser.add_argument("--output_dir", type=Path, required=True)
    args = parser.parse_args(argv)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        with errors_in_one_line():
            audios, labels, class_names, rate = load_labelled_clips(split, args.data_dir)
            made = [images_of(batch.float() / 32768, rate) for batch in audios.split(500)]
        pixels = (torch.cat(made)[:, 0] * 255).round().to(torch.uint8)
        arrays = {"images": pixels.numpy(), "labels": labels.numpy(), "class_names": np.array(class_names)}
        np.savez_compressed(args.output_dir / f"{split}.npz", **arrays)
        print(f"{split}: {len(pixels)} pictures of {pixels.shape[1]} bands and {pixels.shape[2]} columns")


if __name__ == "__main__":
    main()
