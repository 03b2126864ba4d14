r"""Train a class-conditional VampNet on the codes of a small audio codec, and write the whole pipeline folder.

    accelerate launch examples/train_vampnet.py --data_dir data/speech --codec runs/speech-codec \
        --output_dir runs/speech --mixed_precision bf16

`--codec` is a folder of a `DacModel` (examples/train_audio_codec.py makes one), `--data_dir` one that
examples/render_speech.py wrote; add `--resume_from_checkpoint latest` to continue after a stop. One transformer draws
all codebooks. Then:

    pipe = MaskedDiffusionAudioPipeline.from_pretrained("runs/speech")
    audio = pipe(class_labels="seven", audio_length_in_s=1.0, num_inference_steps=16).audios[0]
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence

import torch
from accelerate.utils import set_seed
from denoiser_training import add_denoiser_arguments, evaluate, train_denoiser
from torch import Tensor
from tqdm.auto import tqdm
from training_utils import Clock, add_training_arguments, errors_in_one_line, make_accelerator
from transformers import DacModel

from hf_maskdiff import MaskedDiffusionAudioPipeline, MaskGITScheduler, MomentScheduler, VampNetTransformer
from hf_maskdiff.evaluation.audio_data import load_labelled_clips


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_training_arguments(parser)
    parser.add_argument("--codec", required=True, help="folder or Hub name of a DacModel")
    add_denoiser_arguments(parser)
    parser.add_argument("--placements", type=int, default=1, help="places in its silence that each clip is heard at")
    args = parser.parse_args(argv)
    if args.placements < 1:
        parser.error(f"--placements must be at least 1, got {args.placements}")
    return args


def placements(audios: Tensor, number: int, seed: int) -> Iterator[Tensor]:
    """Clips `(num_clips, num_samples)` as they are, and then, up to this number, moved in the silence around them.

    What is moved by less than a frame has other codes, so that few recordings make many examples. A clip is between its
    first and last sample that is not 0.
    """
    yield audios
    length, generator = audios.shape[1], torch.Generator().manual_seed(seed)
    heard = (audios != 0).int()
    first, last = heard.argmax(1), length - 1 - heard.flip(1).argmax(1)
    for _ in range(number - 1):
        starts = (torch.rand(len(audios), generator=generator) * (length - (last - first))).long()
        places = (torch.arange(length) - (starts - first)[:, None]) % length  # silence goes round, nothing else
        yield audios.gather(1, places)


def encode(pipeline: MaskedDiffusionAudioPipeline, audios: Tensor, rate: int) -> Tensor:
    """Codes of int16 clips `(num_clips, num_samples)`: int64 `(num_clips, num_codebooks, num_frames)` on the device."""
    batches = tqdm(audios.split(100), desc="encoding", leave=False)
    return torch.cat([pipeline.encode_audio(batch[:, None].float() / 32768, rate) for batch in batches])


@torch.no_grad()
def enter_as_vectors(model: VampNetTransformer, codec: DacModel) -> None:
    """Let each code enter the transformer as the codec's own vector of it; the mask's stays as it is."""
    vectors = torch.stack([quantizer.codebook.weight for quantizer in codec.quantizer.quantizers])
    num_codebooks, codebook_size, width = vectors.shape
    model.latent_embedding.weight.view(num_codebooks, codebook_size + 1, width)[:, :-1] = vectors


def main(argv: Sequence[str] | None = None) -> float:
    """Trains, saves the pipeline, and returns the loss on the test split."""
    args = parse_args(argv)
    accelerator = make_accelerator(args)
    device = accelerator.device
    set_seed(args.seed)
    clock = Clock(args)
    codec = DacModel.from_pretrained(args.codec, trust_remote_code=False).to(device).requires_grad_(False).eval()
    with accelerator.main_process_first(), errors_in_one_line():
        audios, labels, class_names, rate = load_labelled_clips("train", args.data_dir)
        test_audios, test_labels, _, _ = load_labelled_clips("test", args.data_dir)

    codebook_size = codec.config.codebook_size
    scheduler_config = {
        "mask_token_id": codebook_size,
        "codebook_size": codebook_size,
        "masking_schedule": args.masking_schedule,
    }
    model = VampNetTransformer(
        num_codebooks=codec.config.n_codebooks,
        codebook_size=codebook_size,
        latent_dim=codec.config.codebook_dim,
        hidden_size=args.hidden_size,
        num_layers=args.num_layers,
        num_attention_heads=args.num_attention_heads,
        dropout=args.dropout,
        num_classes=len(class_names),
    ).to(device)
    model.register_to_config(id2label=dict(enumerate(class_names)))
    enter_as_vectors(model, codec)
    hop = codec.config.hop_length
    seconds = math.ceil(audios.shape[1] / hop) * hop / rate  # what the model sees at a time
    pipeline = MaskedDiffusionAudioPipeline(
        codec, model, MomentScheduler(**scheduler_config), call_defaults={"chunk_length_s": seconds}
    )
    with errors_in_one_line():
        placed = placements(audios, args.placements, args.seed)
        codes = torch.cat([encode(pipeline, moved, rate) for moved in placed])
        test_codes = encode(pipeline, test_audios, rate)
    labels = labels.repeat(args.placements)
    scheduler = MaskGITScheduler(**scheduler_config)
    trained = train_denoiser("vampnet", model, scheduler, codes, labels.to(device), args, accelerator, clock)
    test_loss = evaluate(trained, scheduler, test_codes, test_labels.to(device), args.seed)
    if accelerator.is_main_process:
        pipeline.save_pretrained(args.output_dir)
    accelerator.print(
        f"test split: {test_loss:.4f} nats per masked code; {trained.num_parameters():,} parameters, "
        f"saved in {args.output_dir}"
    )
    return test_loss


if __name__ == "__main__":
    main()
