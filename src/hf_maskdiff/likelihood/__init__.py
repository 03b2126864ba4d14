"""How likely a masked model finds a text: what is masked, what is read, and how it adds up.

An estimator says which tokens each pass masks and how their log-probabilities add up; `score` runs the passes. Neither
knows the other, and neither knows pipelines: `MaskedDiffusionTextPipeline.log_likelihood` puts them together.
"""

from hf_maskdiff.likelihood.blocks import ScoredTokens, parts_of
from hf_maskdiff.likelihood.estimators import (
    AllMasks,
    Antithetic,
    Chain,
    Estimator,
    Independent,
    LLaDACounts,
    Nelbo,
    PseudoLikelihood,
    RandomOrders,
    Sobol,
    Stratified,
)
from hf_maskdiff.likelihood.patterns import Passes, Patterns, published_counts
from hf_maskdiff.likelihood.scoring import Scoring, log_probs_of

__all__ = [
    "AllMasks",
    "Antithetic",
    "Chain",
    "Estimator",
    "Independent",
    "LLaDACounts",
    "Nelbo",
    "Passes",
    "Patterns",
    "PseudoLikelihood",
    "RandomOrders",
    "ScoredTokens",
    "Scoring",
    "Sobol",
    "Stratified",
    "log_probs_of",
    "parts_of",
    "published_counts",
]
