r"""What the runs of docs/reproduce.md cost: parameters, operations per pass and per run, GPU hours, disk space.

    python benchmarks/budget.py
    python benchmarks/budget.py --teraflops 150   # the speed that your GPU sustains

Models of the released sizes are built without memory, on torch's meta device, and torch counts the operations in one
pass of each. GPU hours are the operations divided by `--teraflops`, which is an assumption, not a measurement: the
default 100 is about a third of an A100's peak in bfloat16. A partial pass over k of L positions counts as k / L of a
pass. Needs no weights and no GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from arguments import new_parser
from models import gpt2_large, halton, llamagen_vq, mage, mdlm
from tables import print_table
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hf_maskdiff import MaskGITVQModel

PNG_BYTES = {256: 110e3, 384: 230e3}  # rough size of an image, by its side in pixels
FLOAT32_BYTES = 4


@dataclass(frozen=True)
class Run:
    """A run of docs/reproduce.md.

    Args:
        denoiser, decoder: build the models on the meta device; there is no decoder for text.
        call, decode: one pass, and the decoding, of one sample.
        passes_a_step: model passes per step, 2 with guidance.
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


TEXT = torch.zeros(1, 1024, dtype=torch.long, device="meta")
LABEL = torch.zeros(1, dtype=torch.long, device="meta")


def halton_run(name: str, pixels: int, *sizes: int) -> Run:
    """A class-conditional run with guidance, which takes two passes per step."""
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
    """Number of parameters of a model, and of floating-point operations in a call."""
    with torch.device("meta"):
        model = build().eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        call(model)
    return sum(parameter.numel() for parameter in model.parameters()), counter.get_total_flops()


def cost(run: Run, num_substeps: int) -> dict[str, Any]:
    """Operations for all samples, for each number of steps, plain and in groups; and the bytes on disk."""
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


def table_row(row: dict[str, Any], per_hour: float) -> list[str]:
    hours = ", ".join(
        f"{steps}: {plain / per_hour:.2f}; {groups / per_hour:.2f}"
        for steps, (plain, groups) in row["operations"].items()
    )
    sizes = f"{row['parameters'] / 1e6:.1f} M, {row['decoder'] / 1e6:.1f} M"
    work = f"{row['pass'] / 1e9:.0f}, {row['decoding'] / 1e9:.0f}"
    return [row["name"], sizes, work, hours, f"{row['bytes'] / 1e9:.1f} GB"]


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    parser = new_parser(__doc__)
    parser.add_argument("--teraflops", type=float, default=100.0, help="speed that a GPU sustains")
    parser.add_argument("--num_substeps", type=int, default=2, help="R, groups per step with partial caching")
    args = parser.parse_args(argv)
    per_hour = args.teraflops * 1e12 * 3600
    results = [cost(run, args.num_substeps) for run in RUNS]
    hours = f"GPU hours by steps; R = {args.num_substeps}"
    headings = ["run", "parameters, decoder", "GFLOP a pass, decoding", hours, "disk"]
    print_table(headings, [table_row(row, per_hour) for row in results], left=(0, 3))
    _, reading = measure(gpt2_large, lambda model: model(TEXT))
    print(f"\ngpt2-large reads 1024 texts of 1024 tokens in {1024 * reading / per_hour:.3f} GPU hours")
    return results


if __name__ == "__main__":
    main()
