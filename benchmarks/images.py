"""Frechet distance and class accuracy of samplers against the number of steps, with error bars over seeds.

    python benchmarks/images.py --dataset ylecun/mnist --output_dir out/images
    python benchmarks/images.py --dataset ylecun/mnist --output_dir out/images --resume   # after a stop

Prints a table, and writes `results.json` (after every cell) and `frechet.png`. The labels asked for are those of the
real images on the other side, so that the class mix costs nothing; both sides have `--num_images` images. Two rows
say what could be reached: "real images" (as many others of the same set) and "tokenizer" (those others, encoded and
decoded). Image i of seed s comes from its own generator, seeded `s * num_images + i`: batches do not matter.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from cells import Cell, run_cells, summarise, with_error
from passes import PassCounter, partial_caching, parts
from torch import Tensor

from hf_maskdiff import (
    ConfidenceScheduler,
    HaltonScheduler,
    HybridScheduler,
    MaskedDiffusionScheduler,
    MaskGITPipeline,
    MaskGITScheduler,
    MomentScheduler,
    UniformScheduler,
)
from hf_maskdiff.evaluation.digit_classifier import DigitClassifier
from hf_maskdiff.evaluation.frechet import feature_statistics, frechet_distance
from hf_maskdiff.evaluation.image_data import load_labelled_images

# name -> scheduler from what all share (mask, codebook, schedule, rounding) and a choice temperature
SAMPLERS: dict[str, Callable[[dict[str, Any], float], MaskedDiffusionScheduler]] = {
    "uniform": lambda shared, alpha: UniformScheduler(**shared),
    "uniform-tempered": lambda shared, alpha: UniformScheduler(**shared, choice_temperature=alpha),
    "halton": lambda shared, alpha: HaltonScheduler(**shared),
    "confidence": lambda shared, alpha: ConfidenceScheduler(**shared),
    "maskgit": lambda shared, alpha: MaskGITScheduler(**shared, choice_temperature=alpha),
    "moment": lambda shared, alpha: MomentScheduler(**shared, choice_temperature=alpha),
    "hybrid": lambda shared, alpha: HybridScheduler(**shared, choice_temperature=alpha),
}
SHARED_KEYS = ("mask_token_id", "codebook_size", "masking_schedule", "rounding")
REFERENCES = ("real images", "tokenizer")
# What cells must share to stand in one table.
SETTINGS = (
    "pipeline",
    "classifier",
    "dataset",
    "data_dir",
    "split",
    "choice_temperature",
    "guidance_scale",
    "num_images",
)
Samplers = Mapping[str, Callable[[dict[str, Any], float], MaskedDiffusionScheduler]]


def make_parser(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipeline", default="pipelines/maskgit-mnist", help="folder or Hub name of the pipeline")
    parser.add_argument("--classifier", help="folder of a DigitClassifier; default: PIPELINE/digit_classifier")
    parser.add_argument("--dataset", help="data set on the Hub, such as ylecun/mnist")
    parser.add_argument("--data_dir", help="instead: folder with IDX files, or with one sub-folder of images a class")
    parser.add_argument("--split", choices=("train", "test"), default="test", help="where the real images come from")
    parser.add_argument("--choice_temperature", type=float, default=6.0)
    parser.add_argument("--guidance_scale", type=float, default=1.0)
    parser.add_argument("--num_images", type=int, default=1000, help="a cell and seed")
    parser.add_argument("--num_seeds", type=int, default=3)
    parser.add_argument("--batch_size", type=int, default=250)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--resume", action="store_true", help="keep the cells already in OUTPUT_DIR/results.json")
    return parser


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--samplers", nargs="+", choices=SAMPLERS, default=list(SAMPLERS))
    parser.add_argument("--steps", type=int, nargs="+", default=[2, 4, 8, 16])
    return parser.parse_args(argv)


class Bench:
    """A pipeline, a classifier and real images: what every cell needs."""

    def __init__(self, args: argparse.Namespace, samplers: Samplers) -> None:
        self.args, self.samplers = args, samplers
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.pipeline = MaskGITPipeline.from_pretrained(args.pipeline).to(device)
        self.pipeline.set_progress_bar_config(disable=True)
        if args.classifier:
            self.classifier = DigitClassifier.from_pretrained(args.classifier, use_safetensors=True)
        else:
            self.classifier = DigitClassifier.from_pretrained(
                args.pipeline, subfolder="digit_classifier", use_safetensors=True
            )
        self.classifier.to(device).eval()
        self.shared = {key: self.pipeline.scheduler.config[key] for key in SHARED_KEYS}
        images, labels, _ = load_labelled_images(args.split, args.dataset, args.data_dir)
        if len(images) < 2 * args.num_images:
            raise ValueError(
                f"`num_images` must be at most {len(images) // 2}, half of the real images, got {args.num_images}. "
                "Ask for fewer, or pass --split train."
            )
        self.images, self.labels = images, labels
        self.counter = PassCounter(self.pipeline.transformer, self.shared["mask_token_id"])

    def real(self, seed: int) -> tuple[Tensor, Tensor]:
        """Two disjoint sets of real images for a seed: rows of the data set, `num_images` each."""
        order = torch.randperm(len(self.images), generator=torch.Generator().manual_seed(seed))
        return order[: self.args.num_images], order[self.args.num_images : 2 * self.args.num_images]

    def judge(self, images: Tensor, labels: Tensor, seed: int) -> dict[str, float]:
        """Frechet distance to the seed's real images, share of images read as their label, variance within a class."""
        real = self.real(seed)[0]
        _, real_features = self.classifier.read(self.images[real])
        classes, features = self.classifier.read(images)
        distance = frechet_distance(*feature_statistics(real_features), *feature_statistics(features))
        real_variance = variance_within(real_features, self.labels[real]) or 1.0  # dead features do not vary
        variance = variance_within(features, labels) / real_variance
        accuracy = (classes == labels).double().mean().item()
        return {"frechet": distance, "accuracy": accuracy, "within-class variance": variance}

    @torch.no_grad()
    def reference(self, name: str, seed: int) -> dict[str, float]:
        """What real images, or the tokenizer's reconstructions of them, score."""
        others = self.real(seed)[1]
        images, started = self.images[others], time.perf_counter()
        if name == "tokenizer":
            vqvae = self.pipeline.vqvae
            batches = (batch.to(vqvae.device, vqvae.dtype) / 255 for batch in images.split(self.args.batch_size))
            images = torch.cat([vqvae(batch).sample.clip(0, 1).cpu() for batch in batches])
        seconds = time.perf_counter() - started
        return {**self.judge(images, self.labels[others], seed), "seconds": seconds, "passes": 0.0, "calls": 0.0}

    def generate(self, sampler: str, steps: int, seed: int) -> dict[str, float]:
        """What one sampler scores with one number of steps, "name, R groups" with partial caching."""
        codes, cost = self.draw(sampler, steps, seed)
        return {**self.judge_codes(codes, self.labels[self.real(seed)[0]], seed), **cost}

    def judge_codes(self, codes: Tensor, labels: Tensor, seed: int) -> dict[str, float]:
        batches = codes.to(self.pipeline.device).split(self.args.batch_size)
        images = torch.cat([self.pipeline.decode_latents(batch).float().cpu() for batch in batches])
        return self.judge(images, labels, seed)

    def draw(self, sampler: str, steps: int, seed: int) -> tuple[Tensor, dict[str, float]]:
        """Codes of the seed's images, and what they cost."""
        args = self.args
        name, num_substeps = parts(sampler)
        self.pipeline.scheduler = self.samplers[name](self.shared, args.choice_temperature)
        labels = self.labels[self.real(seed)[0]]
        generators = [torch.Generator().manual_seed(seed * args.num_images + i) for i in range(args.num_images)]
        self.counter.reset()
        codes, starts, started = [], range(0, args.num_images, args.batch_size), time.perf_counter()
        with partial_caching(self.pipeline.transformer, num_substeps):
            for first in starts:
                batch = slice(first, first + args.batch_size)
                output = self.pipeline(
                    class_labels=labels[batch].tolist(),
                    num_inference_steps=steps,
                    guidance_scale=args.guidance_scale,
                    generator=generators[batch],
                    output_type="latent",
                )
                codes.append(output.images.cpu())
        seconds = time.perf_counter() - started
        cost = {"seconds": seconds, **self.counter.cost(args.num_images), "calls": self.counter.calls / len(starts)}
        return torch.cat(codes), cost


def variance_within(features: Tensor, labels: Tensor) -> float:
    """Trace of the features' covariance in a class, averaged over the images: how much images of a class differ."""
    classes = [features[labels == label].double() for label in labels.unique()]
    return sum(((own - own.mean(0)) ** 2).sum().item() for own in classes) / len(features)


def print_table(cells: list[dict[str, Any]]) -> None:
    print("| sampler | steps | Frechet distance | class accuracy | seconds | model passes |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for (sampler, steps), row in summarise(cells).items():
        accuracy = tuple(100 * value for value in row["accuracy"])
        print(
            f"| {sampler} | {steps or ''} | {with_error(row['frechet'])} | {with_error(accuracy)} % "
            f"| {row['seconds'][0]:.1f} | {row['passes'][0]:.1f} |"
        )


def plot(cells: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    summary = summarise(cells)
    for name, style in zip(REFERENCES, (":", "--"), strict=True):
        axes.axhline(summary[name, 0]["frechet"][0], color="grey", linestyle=style, linewidth=1, label=name)
    ticks = sorted({steps for _, steps in summary if steps})
    for sampler in dict.fromkeys(sampler for sampler, steps in summary if steps):
        points = sorted((steps, row["frechet"]) for (name, steps), row in summary.items() if name == sampler)
        x = [steps for steps, _ in points]
        y, error = zip(*(value for _, value in points), strict=True)
        axes.errorbar(x, y, error, marker="o", markersize=3, capsize=3, label=sampler)
    axes.set(xscale="log", yscale="log", xlabel="steps", ylabel="Frechet distance, mean and standard error")
    axes.set_xticks(ticks, labels=ticks)
    axes.set_xticks([], minor=True)
    figure.legend(fontsize="small", loc="outside right upper")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def run(args: argparse.Namespace, samplers: Samplers, wanted: Sequence[Cell]) -> dict[str, Any]:
    """Runs the cells that are missing, and returns what `results.json` holds."""

    def prepare() -> Callable[[str, int, int], dict[str, float]]:
        bench = Bench(args, samplers)
        # The first call pays for warming up; it shall not stand in the table.
        bench.pipeline(class_labels=0, num_inference_steps=1, output_type="pt")
        return lambda sampler, steps, seed: (
            bench.generate(sampler, steps, seed) if steps else bench.reference(sampler, seed)
        )

    return run_cells(args, SETTINGS, wanted, prepare)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    args = parse_args(argv)
    seeds = range(args.num_seeds)
    wanted = [(name, 0, seed) for name in REFERENCES for seed in seeds]
    wanted += [(name, steps, seed) for name in args.samplers for steps in args.steps for seed in seeds]
    results = run(args, SAMPLERS, wanted)
    print_table(results["cells"])
    plot(results["cells"], args.output_dir / "frechet.png")
    return results


if __name__ == "__main__":
    main()
