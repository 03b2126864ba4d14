"""Weights for tiny models whose answer depends on every token that they read."""

from __future__ import annotations

from torch import nn


def draw_weights(model: nn.Module, bias: float = 1.0) -> None:
    """Fill in the weights of a new model, whose blocks may be the identity, so that one token more or less is noticed.

    All weights at one small scale, those of the norms and gates too, would leave a position's logits all but the same
    whatever stands around it: nearly the same tokens would be drawn from a stale cache or beside padding that is seen.

    Args:
        model: of any package.
        bias: standard deviation of the biases. 1 opens the gates of this package's models. In a model of transformers
            that normalises behind its blocks (BERT) so much, being the same at all positions, would hide the rest: 0.1.
    """
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.3)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            nn.init.ones_(parameter) if name.endswith("weight") else nn.init.normal_(parameter, std=bias)
