r"""Train a small audio codec: a `DacModel` of transformers that turns a second of speech into some 60 frames of codes.

    accelerate launch examples/train_audio_codec.py --data_dir data/speech --output_dir runs/speech-codec

`--data_dir` is a folder that examples/render_speech.py wrote; add `--resume_from_checkpoint latest` to continue after a
stop. Plain transformers loads the folder with `DacModel.from_pretrained("runs/speech-codec")`.

The loss compares log-mel spectrograms with several windows, and the waveforms; there is no adversary, so that it trains
in hours on a CPU and sounds a little rough.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from accelerate.utils import set_seed
from codebook_updater import CodebookUpdater
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from training_utils import (
    Clock,
    add_training_arguments,
    errors_in_one_line,
    load_checkpoint,
    make_accelerator,
    make_optimizer,
    training_batches,
)
from transformers import DacConfig, DacModel

from hf_maskdiff.evaluation.audio_data import load_labelled_clips
from hf_maskdiff.evaluation.mel import log_mel

WINDOWS = (128, 256, 512, 1024)  # of the spectrograms that are compared; each has a sixteenth as many bands


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_training_arguments(parser)
    parser.add_argument("--start_from", help="go on from a DacModel's weights, folder or Hub name: its sizes hold")
    parser.add_argument("--downsampling_ratios", type=int, nargs="+", default=[4, 4, 8], help="even: a frame's samples")
    parser.add_argument("--encoder_hidden_size", type=int, default=16, help="doubles with each ratio")
    parser.add_argument("--decoder_hidden_size", type=int, default=128, help="halves with each ratio")
    parser.add_argument("--num_codebooks", type=int, default=4)
    parser.add_argument("--codebook_size", type=int, default=128, help="a power of 2")
    parser.add_argument("--codebook_dim", type=int, default=8, help="width of a code vector")
    parser.add_argument("--quantizer_dropout", type=float, default=0.25, help="share of rows with fewer codebooks")
    parser.add_argument("--crop_length", type=int, default=4096, help="samples of a clip that a step sees")
    parser.add_argument("--waveform_weight", type=float, default=5.0, help="of the mean absolute error of samples")
    parser.add_argument("--commitment_weight", type=float, default=0.25)
    parser.add_argument("--codebook_decay", type=float, default=0.99, help="of the running means, which are the codes")
    parser.add_argument("--max_train_steps", type=int, default=10000)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--ema_decay", type=float, default=0.998, help="decay of the averaged weights, which are saved")
    parser.set_defaults(batch_size=16)
    args = parser.parse_args(argv)
    if any(ratio < 2 or ratio % 2 for ratio in args.downsampling_ratios):
        parser.error(f"--downsampling_ratios must be even, got {args.downsampling_ratios}. An odd one loses samples.")
    return args


def make_codec(args: argparse.Namespace, sampling_rate: int) -> DacModel:
    """A new codec; its codes are learned by running means, so that only the commitment is a loss."""
    config = DacConfig(
        sampling_rate=sampling_rate,
        downsampling_ratios=args.downsampling_ratios,
        encoder_hidden_size=args.encoder_hidden_size,
        decoder_hidden_size=args.decoder_hidden_size,
        n_codebooks=args.num_codebooks,
        codebook_size=args.codebook_size,
        codebook_dim=args.codebook_dim,
        quantizer_dropout=args.quantizer_dropout,
        commitment_loss_weight=args.commitment_weight,
        codebook_loss_weight=0.0,
    )
    model = DacModel(config)
    # The published codecs' first weights are small, for very wide layers: in narrow ones a sound would fade away.
    for module in model.modules():
        if isinstance(module, nn.Conv1d | nn.ConvTranspose1d):
            module.reset_parameters()
    return model


def open_codec(args: argparse.Namespace, sampling_rate: int) -> DacModel:
    """A trained codec to go on from, of this sampling rate."""
    changes = {"quantizer_dropout": args.quantizer_dropout, "commitment_loss_weight": args.commitment_weight}
    model = DacModel.from_pretrained(
        args.start_from, codebook_loss_weight=0.0, **changes, dtype=torch.float32, trust_remote_code=False
    )
    if model.config.sampling_rate != sampling_rate:
        raise ValueError(
            f"`--start_from` must be a codec of the clips' sampling rate {sampling_rate}, got one of "
            f"{model.config.sampling_rate}. Render the clips at its rate, or leave it out."
        )
    return model


def follow(model: DacModel, decay: float) -> nn.ModuleList:
    """What updates the codes of each codebook from each forward pass of the codec."""
    updaters = nn.ModuleList()
    for quantizer in model.quantizer.quantizers:
        updater = CodebookUpdater(quantizer.codebook, decay)

        def remember(_: nn.Module, __: object, outputs: tuple[Tensor, ...], updater: CodebookUpdater = updater) -> None:
            updater.remember(outputs[4].movedim(1, -1).flatten(0, 1), outputs[3].flatten())

        quantizer.register_forward_hook(remember)
        updaters.append(updater)
    return updaters


def spectral_distance(made: Tensor, real: Tensor, sampling_rate: int) -> Tensor:
    """Mean absolute difference of log-mel spectrograms `(batch_size, num_samples)`, in powers of ten."""
    windows = [window for window in WINDOWS if window <= real.shape[1]]
    distances = [
        F.l1_loss(*(log_mel(audio, sampling_rate, window, window // 16) for audio in (made, real)))
        for window in windows
    ]
    return torch.stack(distances).mean()


def crops(audios: Tensor, indices: Tensor, length: int, generator: torch.Generator) -> Tensor:
    """A stretch of each clip, somewhere in it: floats `(batch_size, length)` of int16 `(num_clips, num_samples)`."""
    starts = torch.randint(audios.shape[1] - length + 1, (len(indices), 1), generator=generator, device=audios.device)
    places = starts + torch.arange(length, device=audios.device)
    return audios[indices].gather(1, places).float() / 32768


@torch.no_grad()
def evaluate(model: DacModel, audios: Tensor, device: torch.device) -> tuple[float, float, list[float]]:
    """Of decoded clips: spectral distance, signal-to-noise ratio in decibel, and the perplexity of each codebook."""
    model.eval()
    hop, rate, size = model.config.hop_length, model.config.sampling_rate, model.config.codebook_size
    distance, power, error = 0.0, 0.0, 0.0
    counts = torch.zeros(model.config.n_codebooks, size, dtype=torch.float64)
    for batch in audios.split(50):
        batch = F.pad(batch.to(device).float() / 32768, (0, -batch.shape[1] % hop))
        output = model(batch[:, None])
        distance += spectral_distance(output.audio_values, batch, rate).item() * len(batch)
        power += batch.square().sum().item()
        error += (output.audio_values - batch).square().sum().item()
        for count, codes in zip(counts, output.audio_codes.cpu().unbind(1), strict=True):
            count += codes.flatten().bincount(minlength=size)
    perplexities = torch.distributions.Categorical(counts).entropy().exp().tolist()
    return distance / len(audios), 10 * math.log10(power / error), perplexities


def main(argv: Sequence[str] | None = None) -> tuple[float, float, list[float]]:
    """Trains, saves, and returns what `evaluate` measures on the test split."""
    args = parse_args(argv)
    accelerator = make_accelerator(args)
    device = accelerator.device
    set_seed(args.seed)
    clock = Clock(args)
    with accelerator.main_process_first(), errors_in_one_line():
        audios, _, _, rate = load_labelled_clips("train", args.data_dir)
        test_audios = load_labelled_clips("test", args.data_dir).audios
        model = open_codec(args, rate) if args.start_from else make_codec(args, rate)
    audios, length = audios.to(device), min(args.crop_length, audios.shape[1])
    model = model.to(device)
    length -= length % model.config.hop_length
    codebooks = follow(model, args.codebook_decay).to(device)
    if args.start_from:
        for codebook in codebooks:
            codebook.go_on(args.batch_size * length // model.config.hop_length * accelerator.num_processes)
    # Distances between latents and codes need float32, whatever the precision around them.
    model.quantizer.forward = torch.autocast(device.type, enabled=False)(model.quantizer.forward)
    model.quantizer.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(), *inputs[1:]))
    ema = EMAModel(model.parameters(), decay=args.ema_decay, foreach=True)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer, schedule = make_optimizer(weights, args, clock, betas=(0.9, 0.99))
    model, optimizer = accelerator.prepare(model, optimizer)
    accelerator.register_for_checkpointing(codebooks, ema, schedule)
    start = load_checkpoint(accelerator, args.output_dir, args.resume_from_checkpoint)
    ema.to(device)

    model.train()
    progress = training_batches("codec", len(audios), start, args, accelerator, clock)
    for step, indices, generator in progress:
        batch = crops(audios, indices, length, generator)
        output = model(batch[:, None])
        made = output.audio_values.float()
        spectral = spectral_distance(made, batch, rate)
        loss = spectral + args.waveform_weight * F.l1_loss(made, batch) + output.loss.mean()
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(weights, args.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        for codebook in codebooks:
            codebook.step(accelerator, generator)
        ema.step(accelerator.unwrap_model(model).parameters())
        if step % 50 == 0:
            used = [int((codebook.counts > 1).sum()) for codebook in codebooks]
            progress.set_postfix(spectral=f"{spectral.item():.3f}", used=used)

    trained = accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    ema.copy_to(trained.parameters())
    result = evaluate(trained, test_audios, device)
    if accelerator.is_main_process:
        trained.save_pretrained(args.output_dir)
    accelerator.print(
        f"test split: spectral distance {result[0]:.4f}, signal to noise {result[1]:.2f} dB, perplexities of the "
        f"codebooks {', '.join(f'{value:.0f}' for value in result[2])} of {args.codebook_size}; "
        f"{trained.num_parameters():,} parameters, saved in {args.output_dir}"
    )
    return result


if __name__ == "__main__":
    main()
