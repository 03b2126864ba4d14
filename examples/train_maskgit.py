r"""Train a class-conditional MaskGIT on the codes of an image tokenizer, and write the whole pipeline folder.

    accelerate launch examples/train_maskgit.py --dataset ylecun/mnist --tokenizer runs/mnist-vq \
        --output_dir runs/mnist-maskgit --mixed_precision bf16

`--tokenizer` is any diffusers `VQModel` with a codebook (examples/train_vq.py makes one). `--data_dir FOLDER` reads
local files instead; add `--resume_from_checkpoint latest` to continue after a stop. Then:

    pipe = MaskGITPipeline.from_pretrained("runs/mnist-maskgit")
    pipe(class_labels=[0, 1, 2, 3], num_inference_steps=8).images[0].save("zero.png")
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from accelerate.utils import set_seed
from diffusers import VQModel
from diffusers.training_utils import EMAModel
from torch import Tensor
from tqdm.auto import tqdm
from training_utils import (
    Clock,
    add_training_arguments,
    errors_in_one_line,
    load_checkpoint,
    make_accelerator,
    make_optimizer,
    save_checkpoint,
    training_batches,
)

from hf_maskdiff import HaltonMaskGITTransformer2DModel, MaskGITPipeline, MaskGITScheduler, MomentScheduler
from hf_maskdiff.evaluation.image_data import load_labelled_images


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_training_arguments(parser)
    parser.add_argument("--image_size", type=int, help="resize images to this side; default: keep their size")
    parser.add_argument("--tokenizer", required=True, help="folder or Hub name of a VQModel")
    parser.add_argument("--hidden_size", type=int, default=128)
    parser.add_argument("--num_layers", type=int, default=6)
    parser.add_argument("--num_attention_heads", type=int, default=4)
    parser.add_argument("--intermediate_size", type=int, default=256)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--label_dropout", type=float, default=0.1, help="share of rows trained without their class")
    parser.add_argument("--masking_schedule", default="cosine")
    parser.add_argument("--compile", action="store_true", help="compile the blocks: nearly twice as fast on a CPU")
    parser.add_argument("--max_train_steps", type=int, default=4000)
    parser.add_argument("--learning_rate", type=float, default=2e-3)
    parser.add_argument("--ema_decay", type=float, default=0.999, help="decay of the averaged weights, which are saved")
    return parser.parse_args(argv)


@torch.no_grad()
def encode(tokenizer: VQModel, images: Tensor, device: torch.device) -> Tensor:
    """Codes of uint8 images `(num_images, channels, height, width)`: int64 `(num_images, side, side)` on `device`."""
    codes = []
    for batch in tqdm(images.split(500), desc="encoding", leave=False):
        latents = tokenizer.encode(batch.to(device).float() / 255).latents
        codes.append(tokenizer.quantize(latents)[2][2].view(len(latents), *latents.shape[2:]))
    return torch.cat(codes)


def masked_loss(logits: Tensor, codes: Tensor, masked: Tensor) -> Tensor:
    """Mean cross entropy of the masked positions, in nats; the mask token itself is never predicted."""
    mask_token_id = logits.shape[-1] - 1
    targets = codes.masked_fill(~masked, -100).flatten()
    total = F.cross_entropy(logits[..., :mask_token_id].flatten(0, 1).float(), targets, reduction="sum")
    return total / masked.sum().clamp(min=1)


@torch.no_grad()
def evaluate(
    model: HaltonMaskGITTransformer2DModel, scheduler: MaskGITScheduler, codes: Tensor, labels: Tensor, seed: int
) -> float:
    """Mean loss over evenly spaced times in (0, 1), with the same masks in every evaluation."""
    model.eval()
    generator = torch.Generator(codes.device).manual_seed(seed)
    times = (torch.randperm(len(codes), generator=generator, device=codes.device) + 0.5) / len(codes)
    total, count = 0.0, 0
    for rows, classes, t in zip(codes.split(500), labels.split(500), times.split(500), strict=True):
        sample = scheduler.add_noise(rows, t, generator)
        masked = sample == scheduler.config.mask_token_id
        num_masked = int(masked.sum())
        total += masked_loss(model(sample, classes).sample, rows, masked).item() * num_masked
        count += num_masked
    return total / count


def main(argv: Sequence[str] | None = None) -> float:
    """Trains, saves the pipeline, and returns the loss on the test split."""
    args = parse_args(argv)
    accelerator = make_accelerator(args)
    device = accelerator.device
    set_seed(args.seed)
    clock = Clock(args)
    tokenizer = VQModel.from_pretrained(args.tokenizer, use_safetensors=True).to(device).requires_grad_(False).eval()
    source = (args.dataset, args.data_dir, args.image_size, tokenizer.config.in_channels)
    with accelerator.main_process_first(), errors_in_one_line():
        (images, labels, class_names), (test_images, test_labels, _) = (
            load_labelled_images(split, *source) for split in ("train", "test")
        )
    codes, labels = encode(tokenizer, images, device), labels.to(device)

    codebook_size = tokenizer.config.num_vq_embeddings
    scheduler_config = {
        "mask_token_id": codebook_size,
        "codebook_size": codebook_size,
        "masking_schedule": args.masking_schedule,
    }
    scheduler = MaskGITScheduler(**scheduler_config)
    model = HaltonMaskGITTransformer2DModel(
        sample_size=codes.shape[-1],
        codebook_size=codebook_size,
        num_classes=len(class_names),
        hidden_size=args.hidden_size,
        num_layers=args.num_layers,
        num_attention_heads=args.num_attention_heads,
        intermediate_size=args.intermediate_size,
        dropout=args.dropout,
    ).to(device)
    model.register_to_config(id2label=dict(enumerate(class_names)))
    if device.type == "cpu":
        # With so few tokens, plain matrix products are faster there than the fused kernel: by 1.4 times per step.
        model.set_attention_backend("_native_math")
    if args.compile:
        model.compile_repeated_blocks()
    ema = EMAModel(model.parameters(), decay=args.ema_decay, foreach=True)
    optimizer, schedule = make_optimizer(model.parameters(), args, clock)
    model, optimizer = accelerator.prepare(model, optimizer)
    accelerator.register_for_checkpointing(ema, schedule)
    start = done = load_checkpoint(accelerator, args.output_dir, args.resume_from_checkpoint)
    ema.to(device)

    model.train()
    progress = training_batches("maskgit", len(codes), start, args, accelerator, clock)
    for step, indices, generator in progress:
        rows, classes = codes[indices], labels[indices]
        times, drop = torch.rand(2, len(rows), generator=generator, device=device)
        classes = torch.where(drop < args.label_dropout, len(class_names), classes)
        # Training uses the same scheduler as sampling.
        sample = scheduler.add_noise(rows, times, generator)
        loss = masked_loss(model(sample, classes).sample, rows, sample == codebook_size)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), args.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        ema.step(accelerator.unwrap_model(model).parameters())
        if step % 50 == 0:
            progress.set_postfix(loss=f"{loss.item():.3f}")
        done = step + 1
        if done % args.checkpointing_steps == 0:
            save_checkpoint(accelerator, args.output_dir, done)
    if done > start and done % args.checkpointing_steps:
        save_checkpoint(accelerator, args.output_dir, done)

    trained = accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    ema.copy_to(trained.parameters())
    test_codes = encode(tokenizer, test_images, device)
    test_loss = evaluate(trained, scheduler, test_codes, test_labels.to(device), args.seed)
    if accelerator.is_main_process:
        pipeline = MaskGITPipeline(tokenizer, trained, MomentScheduler(**scheduler_config))
        pipeline.save_pretrained(args.output_dir)
    accelerator.print(
        f"test split: {test_loss:.4f} nats per masked token; {trained.num_parameters():,} parameters, "
        f"saved in {args.output_dir}"
    )
    return test_loss


if __name__ == "__main__":
    main()
