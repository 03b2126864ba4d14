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
from accelerate.utils import set_seed
from denoiser_training import add_denoiser_arguments, evaluate, train_denoiser
from diffusers import VQModel
from torch import Tensor
from tqdm.auto import tqdm
from training_utils import Clock, add_training_arguments, errors_in_one_line, make_accelerator

from hf_maskdiff import HaltonMaskGITTransformer2DModel, MaskGITPipeline, MaskGITScheduler, MomentScheduler
from hf_maskdiff.evaluation.image_data import load_labelled_images


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_training_arguments(parser)
    parser.add_argument("--image_size", type=int, help="resize images to this side; default: keep their size")
    parser.add_argument("--tokenizer", required=True, help="folder or Hub name of a VQModel")
    parser.add_argument("--intermediate_size", type=int, default=256)
    add_denoiser_arguments(parser)
    return parser.parse_args(argv)


@torch.no_grad()
def encode(tokenizer: VQModel, images: Tensor, device: torch.device) -> Tensor:
    """Codes of uint8 images `(num_images, channels, height, width)`: int64 `(num_images, side, side)` on `device`."""
    codes = []
    for batch in tqdm(images.split(500), desc="encoding", leave=False):
        latents = tokenizer.encode(batch.to(device).float() / 255).latents
        codes.append(tokenizer.quantize(latents)[2][2].view(len(latents), *latents.shape[2:]))
    return torch.cat(codes)


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
    trained = train_denoiser("maskgit", model, scheduler, codes, labels, args, accelerator, clock)
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
