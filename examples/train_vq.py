"""Train a small image tokenizer: a diffusers `VQModel` that turns 28x28 grey images into 7x7 codes and back.

    accelerate launch examples/train_vq.py --dataset ylecun/mnist --output_dir runs/mnist-vq --mixed_precision bf16

`--data_dir FOLDER` reads local files instead; add `--resume_from_checkpoint latest` to continue after a stop. Plain
diffusers loads the folder with `VQModel.from_pretrained("runs/mnist-vq")`. Inputs and outputs are images in [0, 1];
clip the images that `decode` returns.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from accelerate.utils import set_seed
from codebook_updater import CodebookUpdater
from diffusers import VQModel
from diffusers.training_utils import EMAModel
from torch import Tensor
from training_utils import (
    Clock,
    add_training_arguments,
    errors_in_one_line,
    load_checkpoint,
    make_accelerator,
    make_optimizer,
    training_batches,
)

from hf_maskdiff.evaluation.image_data import load_labelled_images


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_training_arguments(parser)
    parser.add_argument("--image_size", type=int, help="resize images to this side; default: keep their size")
    parser.add_argument("--num_channels", type=int, help="1: grey, 3: colour; default: as the images are")
    parser.add_argument(
        "--block_out_channels", type=int, nargs="+", default=[16, 32, 32], help="all but the last halve"
    )
    parser.add_argument("--latent_channels", type=int, default=16, help="width of a code vector")
    parser.add_argument("--codebook_size", type=int, default=128)
    parser.add_argument("--commitment_weight", type=float, default=0.25)
    parser.add_argument("--codebook_decay", type=float, default=0.99, help="of the running means, which are the codes")
    parser.add_argument("--max_train_steps", type=int, default=2500)
    parser.add_argument("--learning_rate", type=float, default=2e-3)
    parser.add_argument("--ema_decay", type=float, default=0.998, help="decay of the averaged weights, which are saved")
    return parser.parse_args(argv)


def follow(model: VQModel, decay: float) -> CodebookUpdater:
    """What updates the codes of a tokenizer from each of its forward passes."""
    codebook = CodebookUpdater(model.quantize.embedding, decay)
    # Distances between latents and codes need float32, whatever the precision around them.
    model.quantize.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))
    model.quantize.register_forward_hook(
        lambda _, inputs, outputs: codebook.remember(inputs[0].movedim(1, -1).flatten(0, -2), outputs[2][2])
    )
    return codebook


@torch.no_grad()
def evaluate(model: VQModel, images: Tensor, device: torch.device) -> tuple[float, float, int]:
    """Mean squared error of clipped reconstructions, perplexity of the codes, and number of codes used."""
    model.eval()
    squared_error, counts = 0.0, torch.zeros(model.config.num_vq_embeddings, dtype=torch.float64)
    for batch in images.split(500):
        batch = batch.to(device).float() / 255
        latents = model.encode(batch).latents
        indices = model.quantize(latents)[2][2]
        reconstruction = model.decode(latents).sample.clamp(0, 1)
        squared_error += F.mse_loss(reconstruction, batch, reduction="sum").item()
        counts += indices.flatten().bincount(minlength=len(counts)).cpu()
    perplexity = torch.distributions.Categorical(counts).entropy().exp().item()
    return squared_error / images.numel(), perplexity, int((counts > 0).sum())


def main(argv: Sequence[str] | None = None) -> tuple[float, float, int]:
    """Trains, saves, and returns the error, the perplexity and the number of codes used on the test split."""
    args = parse_args(argv)
    accelerator = make_accelerator(args)
    set_seed(args.seed)
    clock = Clock(args)
    source = (args.dataset, args.data_dir, args.image_size)
    with accelerator.main_process_first(), errors_in_one_line():
        images = load_labelled_images("train", *source, args.num_channels).images.to(accelerator.device)
        num_channels = images.shape[1]
        test_images = load_labelled_images("test", *source, num_channels).images
    levels = len(args.block_out_channels)
    model = VQModel(
        in_channels=num_channels,
        out_channels=num_channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=tuple(args.block_out_channels),
        layers_per_block=1,
        latent_channels=args.latent_channels,
        sample_size=images.shape[-1],
        num_vq_embeddings=args.codebook_size,
        norm_num_groups=8,
        mid_block_add_attention=False,
        lookup_from_codebook=True,
    ).to(accelerator.device)
    codebook = follow(model, args.codebook_decay).to(accelerator.device)
    ema = EMAModel(model.parameters(), decay=args.ema_decay, foreach=True)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer, schedule = make_optimizer(weights, args, clock, betas=(0.9, 0.99))
    model, optimizer = accelerator.prepare(model, optimizer)
    accelerator.register_for_checkpointing(codebook, ema, schedule)
    start = load_checkpoint(accelerator, args.output_dir, args.resume_from_checkpoint)
    ema.to(accelerator.device)

    model.train()
    progress = training_batches("tokenizer", len(images), start, args, accelerator, clock)
    for step, indices, generator in progress:
        batch = images[indices].float() / 255
        output = model(batch)
        error = F.mse_loss(output.sample, batch)
        # The quantizer's loss pulls latents to their codes; the codes themselves take no gradient.
        accelerator.backward(error + args.commitment_weight * output.commit_loss)
        accelerator.clip_grad_norm_(weights, args.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        codebook.step(accelerator, generator)
        ema.step(accelerator.unwrap_model(model).parameters())
        if step % 50 == 0:
            progress.set_postfix(mse=f"{error.item():.4f}")

    trained = accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    ema.copy_to(trained.parameters())
    result = evaluate(trained, test_images, accelerator.device)
    if accelerator.is_main_process:
        trained.save_pretrained(args.output_dir)
    accelerator.print(
        f"test split: mean squared error {result[0]:.5f}, {result[2]} of {args.codebook_size} codes used, "
        f"perplexity {result[1]:.1f}; {trained.num_parameters():,} parameters, saved in {args.output_dir}"
    )
    return result


if __name__ == "__main__":
    main()
