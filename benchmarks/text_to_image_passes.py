"""What a partial pass of aMUSEd's transformer costs, as a share of a full one, in multiplications and in seconds.

    python benchmarks/text_to_image_passes.py --output_dir out/text_to_image_passes
    python benchmarks/text_to_image_passes.py --device cuda --dtype float16 --batch_size 4 --output_dir out/passes

The sizes are those of amused-256 and amused-512; the weights are random, on which neither depends. A pass that fills
the cache is compared with one without, and partial passes of several shares of the codes with both. Seconds are
medians of ratios within a repeat, in turns. Then whole calls of `MaskedDiffusionTextToImagePipeline`, 12 guided steps
from encoded prompts without decoding, are timed: at once, in two groups from partial passes, and with twice the steps.
Writes `passes.json`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from arguments import add_machine_arguments, new_parser
from diffusers import UVit2DModel, VQModel
from tables import print_table, write_json
from timing import median_ratio, now, take_turns
from torch.utils.flop_counter import FlopCounterMode

from hf_maskdiff import MaskedDiffusionTextToImagePipeline, MomentScheduler, PartialCacheConfig
from hf_maskdiff.denoisers import UVit2DDenoiser

SHARES = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2)
NUM_TEXT = 77


def transformer(pixels: int, device: str, dtype: torch.dtype, changes: dict[str, Any]) -> UVit2DModel:
    """aMUSEd's, for images of so many pixels a side; its defaults are those of diffusers' class."""
    halved = pixels > 256
    with torch.device("meta"):
        model = UVit2DModel(sample_size=pixels // 16, downsample=halved, upsample=halved, **changes)
    model = model.to(dtype).to_empty(device=device).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    return model


def prompts(model: UVit2DModel, batch_size: int) -> dict[str, torch.Tensor]:
    config, options = model.config, {"device": model.device, "dtype": model.dtype}
    return {
        "encoder_hidden_states": torch.randn(batch_size, NUM_TEXT, config.encoder_hidden_size, **options),
        "pooled_projections": torch.randn(batch_size, config.cond_embed_dim, **options),
    }


def multiplications(work: Any) -> int:
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


@torch.no_grad()
def passes(model: UVit2DModel, batch_size: int, repeats: int) -> dict[str, dict[str, float]]:
    """Of each kind of pass: its share of a full pass without a cache."""
    denoiser, side = UVit2DDenoiser(model), model.config.sample_size
    cache, told = denoiser.new_cache(), prompts(model, batch_size)
    told["micro_conds"] = torch.ones(batch_size, 5, device=model.device)
    sample = torch.randint(0, model.config.codebook_size, (batch_size, side, side), device=model.device)
    works: dict[str, Any] = {
        "full": lambda: denoiser(sample, **told),
        "filling": lambda: denoiser(sample, **told, cache=cache),
    }
    for share in SHARES:
        count = max(1, round(share * side**2))
        positions = torch.stack([torch.randperm(side**2)[:count] for _ in range(batch_size)]).to(model.device)
        some = {"positions": positions, "cache": cache}
        tokens = sample.flatten(1).gather(1, positions)
        works[f"{share:.3g} of the codes"] = lambda tokens=tokens, some=some: denoiser(tokens, **told, **some)
    works["filling"]()
    counts = {name: multiplications(work) for name, work in works.items()}
    times = take_turns(works, repeats)
    return {
        name: {
            "multiplications": counts[name] / counts["full"],
            "seconds": median_ratio(times, name, "full"),
            "milliseconds": 1000 * sorted(times[name])[repeats // 2],
        }
        for name in works
    }


def calls(model: UVit2DModel, batch_size: int, repeats: int, steps: int) -> dict[str, dict[str, float]]:
    """Seconds of whole calls, and their share of the plain one."""
    vqvae = VQModel(
        num_vq_embeddings=model.config.codebook_size,
        block_out_channels=(32,) * 5,
        down_block_types=("DownEncoderBlock2D",) * 5,
        up_block_types=("UpDecoderBlock2D",) * 5,
    )
    mask = model.config.vocab_size - 1
    scheduler = MomentScheduler(mask_token_id=mask, codebook_size=model.config.codebook_size)
    pipe = MaskedDiffusionTextToImagePipeline(vqvae.to(model.device), None, None, model, scheduler)
    pipe.set_progress_bar_config(disable=True)
    told = prompts(model, batch_size)
    given = {"prompt_embeds": told["pooled_projections"], "encoder_hidden_states": told["encoder_hidden_states"]}
    given |= {f"negative_{name}": values[:1] for name, values in given.items()}

    def run(num_steps: int, num_substeps: int) -> None:
        pipe.enable_cache(PartialCacheConfig(num_substeps=num_substeps))
        pipe(**given, num_inference_steps=num_steps, output_type="latent")
        pipe.disable_cache()

    works = {
        f"{steps} steps": lambda: run(steps, 1),
        f"{steps} steps in 2 groups": lambda: run(steps, 2),
        f"{2 * steps} steps": lambda: run(2 * steps, 1),
    }
    times, base = take_turns(works, repeats), f"{steps} steps"
    return {
        name: {"seconds": sorted(times[name])[repeats // 2], "share": median_ratio(times, name, base)} for name in works
    }


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = new_parser(__doc__)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--pixels", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], default="float32")
    parser.add_argument("--layers", type=int, default=22, help="in the middle; fewer to try the program")
    parser.add_argument("--width", type=int, default=1024, help="of the middle; less to try the program")
    add_machine_arguments(parser)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.num_threads)
    torch.manual_seed(0)
    results: dict[str, Any] = {"dtype": args.dtype, "batch_size": args.batch_size, "device": args.device}
    if torch.device(args.device).type == "cuda":
        results["device"] = torch.cuda.get_device_name()
    changes = {"num_hidden_layers": args.layers, "hidden_size": args.width}
    for pixels in args.pixels:
        begun = now()
        model = transformer(pixels, args.device, getattr(torch, args.dtype), changes)
        found = passes(model, args.batch_size, args.repeats)
        whole = calls(model, args.batch_size, args.repeats, args.steps)
        results[f"amused-{pixels}"] = {"passes": found, "calls": whole}
        print(
            f"\namused-{pixels}, {results['device']}, {args.dtype}, {args.batch_size} images, {now() - begun:.0f} s\n"
        )
        rows = [
            (name, f"{row['multiplications']:.2f}", f"{row['seconds']:.2f}", f"{row['milliseconds']:.1f}")
            for name, row in found.items()
        ]
        print_table(["pass", "multiplications", "seconds", "milliseconds"], rows)
        print()
        print_table(
            ["call", "seconds", "share"], [(n, f"{r['seconds']:.2f}", f"{r['share']:.2f}") for n, r in whole.items()]
        )
        write_json(results, args.output_dir / "passes.json")
    return results


if __name__ == "__main__":
    main()
