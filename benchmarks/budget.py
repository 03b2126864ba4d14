r"""What the runs of docs/reproduce.md cost: parameters, operations of a pass and of a run, GPU hours, disk.

    python benchmarks/budget.py
    python benchmarks/budget.py --teraflops 150   # what a GPU sustains of its peak

Models of the released sizes are built without memory, on torch's meta device, and torch counts the operations of one
pass of each. GPU hours are operations over `--teraflops`, an assumption and not a measurement: 100 is a quarter of an
A100's peak in bfloat16. Partial passes over k of L positions count as k / L of a pass. Needs no weights and no GPU.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import VQModel
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPT2Config, GPT2LMHeadModel

from hf_maskdiff import HaltonMaskGITTransformer2DModel, MaskGITTransformer2DModel, MaskGITVQModel, MDLMTransformer

PNG_BYTES = {256: 110e3, 384: 230e3}  # of an image, roughly
FLOAT32_BYTES = 4


@dataclass(frozen=True)
class Run:
    """A run of docs/reproduce.md.

    Args:
        denoiser, decoder: built on the meta device; a text has no decoder.
        call, decode: one pass, and decoding, of one sample.
        passes_a_step: 2 with guidance.
    """

    name: str
    denoiser: Callable[[], nn.Module]
    call: Callable[[Any], Any]
    num_samples: int
    steps: Sequence[int]
    passes_a_step: int = 1
    decoder: Callable[[], nn.Module] | None = None
    decode: Callable[[Any], Any] | None = None
    sample_bytes: float = 0.0


def image_tokens(side: int) -> torch.Tensor:
    return torch.zeros(1, side, side, dtype=torch.long, device="meta")


def mage() -> nn.Module:
    heads = {"num_attention_heads": 12, "num_decoder_attention_heads": 16}
    sizes = {"sample_size": 16, "codebook_size": 1024, "num_classes": 0, "hidden_size": 768, "num_layers": 12}
    decoder = {"num_decoder_layers": 8, "decoder_hidden_size": 768, "decoder_intermediate_size": 3072}
    tokens = {"mask_token_id": 2024, "class_token_offset": 1100, "vocab_size": 2025}
    return MaskGITTransformer2DModel(**sizes, **heads, **decoder, **tokens, intermediate_size=3072)


def halton(sample_size: int, hidden_size: int, num_layers: int, num_heads: int, inner: int) -> nn.Module:
    tokens = {"sample_size": sample_size, "codebook_size": 16384, "num_classes": 1000}
    sizes = {"hidden_size": hidden_size, "num_layers": num_layers, "num_attention_heads": num_heads}
    return HaltonMaskGITTransformer2DModel(**tokens, **sizes, intermediate_size=inner)


def llamagen_vq() -> nn.Module:
    attention = [False] * 4 + [True]
    return VQModel(
        down_block_types=["AttnDownEncoderBlock2D" if there else "DownEncoderBlock2D" for there in attention],
        up_block_types=["AttnUpDecoderBlock2D" if there else "UpDecoderBlock2D" for there in attention[::-1]],
        block_out_channels=[128, 128, 256, 256, 512],
        layers_per_block=2,
        latent_channels=256,
        num_vq_embeddings=16384,
        vq_embed_dim=8,
        lookup_from_codebook=True,
    )


def mdlm() -> nn.Module:
    sizes = {"hidden_dim": 768, "cond_dim": 128, "n_blocks": 12, "n_heads": 12}
    return MDLMTransformer(vocab_size=50258, model_length=1024, **sizes)


def gpt2_large() -> nn.Module:
    return GPT2LMHeadModel(GPT2Config(n_embd=1280, n_layer=36, n_head=20))


TEXT = torch.zeros(1, 1024, dtype=torch.long, device="meta")
LABEL = torch.zeros(1, dtype=torch.long, device="meta")


def halton_run(name: str, pixels: int, *sizes: int) -> Run:
    """Class-conditional, with guidance: two passes a step."""
    side = pixels // 16
    return Run(
        name,
        lambda: halton(side, *sizes),
        lambda model: model(image_tokens(side), LABEL),
        50_000,
        (8, 16, 32),
        2,
        llamagen_vq,
        lambda vq: vq.decode(image_tokens(side), force_not_quantize=True, shape=(1, side, side, 8)),
        PNG_BYTES[pixels],
    )


RUNS = [
    Run(
        "MAGE ViT-B",
        mage,
        lambda model: model(image_tokens(16), LABEL * 0),
        50_000,
        (4, 8, 16, 20),
        decoder=MaskGITVQModel,
        decode=lambda vq: vq.decoder(torch.zeros(1, 256, 16, 16, device="meta")),
        sample_bytes=PNG_BYTES[256],
    ),
    Run("mdlm-owt", mdlm, lambda model: model(TEXT), 1024, (8, 16, 32, 64, 128), sample_bytes=10e3),
    halton_run("Halton-MaskGIT base, 256", 256, 768, 12, 12, 2048),
    halton_run("Halton-MaskGIT large, 384", 384, 1024, 24, 16, 2816),
]


def measure(build: Callable[[], nn.Module], call: Callable[[Any], Any]) -> tuple[int, int]:
    """Parameters of a model, and floating-point operations of a call."""
    with torch.device("meta"):
        model = build().eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        call(model)
    return sum(parameter.numel() for parameter in model.parameters()), counter.get_total_flops()


def cost(run: Run, num_substeps: int) -> dict[str, Any]:
    """Of each number of steps, plain and in groups: the operations of all samples; and the bytes on the disk."""
    size, a_pass = measure(run.denoiser, run.call)
    decoder_size, decoding = measure(run.decoder, run.decode) if run.decoder and run.decode else (0, 0)

    def operations(steps: int, groups: int) -> int:
        return run.num_samples * (run.passes_a_step * (steps + groups - 1) * a_pass + decoding)

    return {
        "name": run.name,
        "parameters": size,
        "decoder": decoder_size,
        "pass": a_pass,
        "decoding": decoding,
        "operations": {steps: (operations(steps, 1), operations(steps, num_substeps)) for steps in run.steps},
        "bytes": FLOAT32_BYTES * (size + decoder_size) + run.num_samples * run.sample_bytes,
    }


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teraflops", type=float, default=100.0, help="that a GPU sustains")
    parser.add_argument("--num_substeps", type=int, default=2, help="R, of the runs with partial caching")
    args = parser.parse_args(argv)
    per_hour = args.teraflops * 1e12 * 3600
    results = [cost(run, args.num_substeps) for run in RUNS]
    hours = f"GPU hours by steps; R = {args.num_substeps}"
    print(f"| run | parameters, decoder | GFLOP a pass, decoding | {hours} | disk |")
    print("| --- | ---: | ---: | --- | ---: |")
    for row in results:
        hours = ", ".join(
            f"{steps}: {plain / per_hour:.2f}; {groups / per_hour:.2f}"
            for steps, (plain, groups) in row["operations"].items()
        )
        sizes = f"{row['parameters'] / 1e6:.1f} M, {row['decoder'] / 1e6:.1f} M"
        work = f"{row['pass'] / 1e9:.0f}, {row['decoding'] / 1e9:.0f}"
        print(f"| {row['name']} | {sizes} | {work} | {hours} | {row['bytes'] / 1e9:.1f} GB |")
    _, reading = measure(gpt2_large, lambda model: model(TEXT))
    print(f"\ngpt2-large reads 1024 texts of 1024 tokens in {1024 * reading / per_hour:.3f} GPU hours")
    return results


if __name__ == "__main__":
    main()
