"""What the benchmarks measure: what each name means, and with how many digits it is written."""

from __future__ import annotations

from collections.abc import Mapping

from hf_maskdiff_cli.results import Measure

MEASURES: Mapping[str, Measure] = {
    "nats": Measure(meaning="minus the log-probability per token or character, by a judge", digits=3, better="less"),
    "entropy": Measure(meaning="entropy of the tokens of a sample, in nats", digits=3),
    "distinct-1": Measure(meaning="share of different tokens", digits=3),
    "distinct-2": Measure(meaning="share of different pairs of tokens", digits=3),
    "distinct-4": Measure(meaning="share of different sequences of four tokens", digits=3),
    "frechet": Measure("Frechet distance", "of a classifier's features from those of real images", 2, "less"),
    "accuracy": Measure(meaning="images that the classifier takes for the class asked for", digits=1, percent=True),
    "within-class variance": Measure("variance", "within a class, relative to that of real images", 2),
    "pairs": Measure(meaning="KL divergence of adjacent pairs from the true ones, in nats", digits=4, better="less"),
    "marginals": Measure(meaning="total variation of single tokens from the true ones", digits=3, better="less"),
    "tempering": Measure(meaning="term of the path KL, nats per token", digits=4, better="less"),
    "dependence": Measure(meaning="term of the path KL, nats per token", digits=4, better="less"),
    "apart": Measure(meaning="share of places at which two samples differ", digits=3),
    "variance": Measure(meaning="of the nats, over samples", digits=3),
    "pass equivalents": Measure(meaning="passes, a partial one as the share of positions that it computes", digits=1),
    "positions": Measure(meaning="positions that the passes computed, in whole samples", digits=1, better="less"),
    "calls": Measure(meaning="times that a batch went through the model", digits=1),
}


def measure_of(name: str) -> Measure:
    """What is known of a measure; another one is written with four digits in all."""
    return MEASURES.get(name, Measure())
