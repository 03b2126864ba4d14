"""Frechet distance and class accuracy of samplers against the number of steps, with error bars over seeds.

    python benchmarks/images.py --dataset ylecun/mnist --output_dir out/images
    python benchmarks/images.py --dataset ylecun/mnist --output_dir out/images --resume   # after a stop

Prints a table, and writes `results.json` (after every cell) and `frechet.png`. `--num_images` generated images are
compared with as many real ones. They are generated with the labels of these, so that both sides have the same classes.
Two rows show the best possible scores: "real images" compares equally many other images of the same set, and
"tokenizer" compares these after encoding and decoding. Image i of seed s comes from its own generator, seeded with
`s * num_images + i`, so the batch size does not matter.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from arguments import add_cell_arguments, new_parser
from cells import Row, Summary, run_cells, seed_by_seed, summarise
from passes import NeededPasses, draw_codes, draw_set, generators_from, open_pipeline, partial_caching
from plots import draw_over_steps, draw_references, figure, label_ends
from samplers import (
    AHEAD,
    APART,
    HYBRIDS,
    SECOND_ORDER,
    Samplers,
    all_in_groups,
    described,
    parts,
    plain,
    shared_config,
)
from tables import print_cells, with_error
from torch import Tensor

from hf_maskdiff import (
    ConfidenceScheduler,
    HaltonScheduler,
    HybridScheduler,
    MaskGITPipeline,
    MaskGITScheduler,
    MomentScheduler,
    UniformScheduler,
)
from hf_maskdiff.evaluation.digit_classifier import DigitClassifier
from hf_maskdiff.evaluation.frechet import feature_statistics, frechet_distance
from hf_maskdiff.evaluation.image_data import load_labelled_images

SAMPLERS: Samplers = {
    "uniform": plain(UniformScheduler),
    "uniform-tempered": UniformScheduler,
    "halton": plain(HaltonScheduler),
    "confidence": plain(ConfidenceScheduler),
    "maskgit": MaskGITScheduler,
    "moment": MomentScheduler,
    "hybrid": HybridScheduler,
}
# Further samplers, which are not run by default.
MORE: Samplers = {"halton-tempered": HaltonScheduler} | HYBRIDS | APART | AHEAD
MORE |= {name: plain(scheduler) for name, scheduler in SECOND_ORDER.items()}
REFERENCES = ("real images", "tokenizer")
QUALITY: dict[str, Callable[[Row], str]] = {
    "Frechet distance": lambda row: with_error(row["frechet"]),
    "class accuracy": lambda row: f"{with_error(tuple(100 * value for value in row['accuracy']))} %",
}
COLUMNS = QUALITY | {
    "seconds": lambda row: f"{row['seconds'][0]:.1f}",
    "model passes": lambda row: f"{row['passes'][0]:.1f}",
}
# Arguments that must be equal for all cells of a table.
SETTINGS = ("pipeline", "classifier", "dataset", "data_dir", "split")
SETTINGS += ("choice_temperature", "guidance_scale", "num_images")


def make_parser(description: str | None) -> argparse.ArgumentParser:
    parser = new_parser(description)
    parser.add_argument("--pipeline", default="pipelines/maskgit-mnist", help="folder or Hub name of the pipeline")
    parser.add_argument("--classifier", help="folder of a DigitClassifier; default: PIPELINE/digit_classifier")
    parser.add_argument("--dataset", help="data set on the Hub, such as ylecun/mnist")
    parser.add_argument("--data_dir", help="instead: folder with IDX files, or with one sub-folder of images per class")
    parser.add_argument("--split", choices=("train", "test"), default="test", help="split of the real images")
    parser.add_argument("--choice_temperature", type=float, default=6.0)
    parser.add_argument("--guidance_scale", type=float, default=1.0)
    parser.add_argument("--num_images", type=int, default=1000, help="per seed")
    parser.add_argument("--num_seeds", type=int, default=3)
    parser.add_argument("--batch_size", type=int, default=250)
    add_cell_arguments(parser)
    return parser


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--samplers", nargs="+", choices=SAMPLERS | MORE, default=list(SAMPLERS))
    parser.add_argument("--steps", type=int, nargs="+", default=[2, 4, 8, 16])
    parser.add_argument("--num_substeps", type=int, nargs="+", default=[1], help="groups per step, of partial caching")
    return parser.parse_args(argv)


class Bench:
    """The pipeline, classifier and real images that all cells use."""

    def __init__(self, args: argparse.Namespace, samplers: Samplers) -> None:
        self.args, self.samplers = args, samplers
        self.features_of_seed: dict[int, Tensor] = {}
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.pipeline = open_pipeline(MaskGITPipeline, args.pipeline).to(device)
        if args.classifier:
            self.classifier = DigitClassifier.from_pretrained(args.classifier, use_safetensors=True)
        else:
            self.classifier = DigitClassifier.from_pretrained(
                args.pipeline, subfolder="digit_classifier", use_safetensors=True
            )
        self.classifier.to(device).eval()
        self.shared = shared_config(self.pipeline.scheduler)
        channels = self.classifier.config.in_channels
        images, labels, _ = load_labelled_images(args.split, args.dataset, args.data_dir, num_channels=channels)
        if len(images) < 2 * args.num_images:
            raise ValueError(
                f"`num_images` must be at most {len(images) // 2}, half of the real images, got {args.num_images}. "
                "Ask for fewer, or pass --split train."
            )
        self.images, self.labels = images, labels
        # The first call warms up; leave its time out of the table.
        self.pipeline(class_labels=0, num_inference_steps=1, output_type="pt")
        self.needed = NeededPasses(self.pipeline.transformer, self.shared["mask_token_id"])

    def measure(self, name: str, steps: int, seed: int) -> dict[str, Any]:
        if not steps:
            return self.reference(name, seed)
        return {**self.generate(name, steps, seed), "scheduler": described(self.pipeline.scheduler)}

    def real(self, seed: int) -> tuple[Tensor, Tensor]:
        """Two disjoint random sets of real images for a seed: indices into the data set, `num_images` each."""
        order = torch.randperm(len(self.images), generator=torch.Generator().manual_seed(seed))
        return order[: self.args.num_images], order[self.args.num_images : 2 * self.args.num_images]

    def real_features(self, seed: int) -> Tensor:
        """The features of the first of these sets, which all samplers are compared with."""
        if seed not in self.features_of_seed:
            self.features_of_seed[seed] = self.classifier.read(self.images[self.real(seed)[0]])[1]
        return self.features_of_seed[seed]

    def judge(self, images: Tensor, labels: Tensor, seed: int) -> dict[str, float]:
        """Frechet distance to the seed's real images, share of images read as their label, within-class variance."""
        real, real_features = self.real(seed)[0], self.real_features(seed)
        classes, features = self.classifier.read(images)
        distance = frechet_distance(*feature_statistics(real_features), *feature_statistics(features))
        real_variance = variance_within(real_features, self.labels[real]) or 1.0  # constant features have variance 0
        variance = variance_within(features, labels) / real_variance
        accuracy = (classes == labels).double().mean().item()
        return {"frechet": distance, "accuracy": accuracy, "within-class variance": variance}

    @torch.no_grad()
    def reference(self, name: str, seed: int) -> dict[str, float]:
        """Measures of real images, or of the tokenizer's reconstructions of them."""
        others = self.real(seed)[1]
        images, started = self.images[others], time.perf_counter()
        if name == "tokenizer":
            vqvae = self.pipeline.vqvae
            batches = (batch.to(vqvae.device, vqvae.dtype) / 255 for batch in images.split(self.args.batch_size))
            images = torch.cat([vqvae(batch).sample.clip(0, 1).cpu() for batch in batches])
        seconds = time.perf_counter() - started
        return {**self.judge(images, self.labels[others], seed), "seconds": seconds, "passes": 0.0, "calls": 0.0}

    def generate(self, sampler: str, steps: int, seed: int) -> dict[str, float]:
        """Measures of a sampler with a number of steps; with partial caching it is named "name, R groups"."""
        codes, cost = self.draw(sampler, steps, seed)
        return {**self.judge_codes(codes, self.labels[self.real(seed)[0]], seed), **cost}

    def judge_codes(self, codes: Tensor, labels: Tensor, seed: int) -> dict[str, float]:
        batches = codes.to(self.pipeline.device).split(self.args.batch_size)
        images = torch.cat([self.pipeline.decode_latents(batch).float().cpu() for batch in batches])
        return self.judge(images, labels, seed)

    def draw(self, sampler: str, steps: int, seed: int) -> tuple[Tensor, dict[str, float]]:
        """Codes of the seed's images, and their cost."""
        args, (name, num_substeps) = self.args, parts(sampler)
        self.pipeline.scheduler = self.samplers[name](**self.shared, choice_temperature=args.choice_temperature)
        labels = self.labels[self.real(seed)[0]].tolist()
        generators = generators_from(seed * args.num_images, args.num_images)
        options = {"num_inference_steps": steps, "guidance_scale": args.guidance_scale}
        draw = partial(draw_codes, self.pipeline, **options)
        with partial_caching(self.pipeline.transformer, num_substeps):
            codes, cost = draw_set(draw, args.batch_size, self.needed, generators, labels)
        return torch.stack(codes), cost | {"calls": self.needed.calls / -(-args.num_images // args.batch_size)}


def variance_within(features: Tensor, labels: Tensor) -> float:
    """How much images of a class differ: trace of the features' covariance in a class, averaged over the images."""
    classes = [features[labels == label].double() for label in labels.unique()]
    return sum(((own - own.mean(0)) ** 2).sum().item() for own in classes) / len(features)


def plot(summary: Summary, path: Path, title: str = "Images: distance from real digits") -> None:
    with figure(path, title=title, figsize=(8, 5)) as page:
        axes = page.subplots()
        labels = {"yscale": "log", "ylabel": "Frechet distance, lower is better"}
        ends = draw_over_steps(axes, summary, lambda row: row["frechet"], **labels)
        label_ends(page, {axes: ends + draw_references(axes, summary, "frechet")})


def run(args: argparse.Namespace, samplers: Samplers, pairs: Sequence[tuple[str, int]]) -> dict[str, Any]:
    """Measures the missing cells of these samplers and steps; returns the contents of `results.json`."""
    wanted = seed_by_seed([*((name, 0) for name in REFERENCES), *pairs], args.num_seeds)
    return run_cells(args, SETTINGS, wanted, lambda: Bench(args, samplers).measure)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    args = parse_args(argv)
    pairs = [(name, steps) for name in all_in_groups(args.samplers, args.num_substeps) for steps in args.steps]
    results = run(args, SAMPLERS | MORE, pairs)
    print_cells(results["cells"], COLUMNS)
    plot(summarise(results["cells"]), args.output_dir / "frechet.png")
    return results


if __name__ == "__main__":
    main()
