"""How samplers look in every picture: colours, lines for choice temperatures, and readable names."""

from __future__ import annotations

import re
from typing import Any

from samplers import parts

# Okabe and Ito's colours, which people with any kind of colour vision tell apart.
BLACK, ORANGE, GREEN, BLUE, VERMILLION, PURPLE = "#000000", "#E69F00", "#009E73", "#0072B2", "#D55E00", "#CC79A7"
BROWN = "#7A4B00"  # as dark as orange is light
GREY = "#767676"  # for references, such as real data
# The first word of a sampler's name -> its colour, and what a reader calls it.
KINDS = {
    "uniform": (BLACK, "uniform"),
    "halton": (GREEN, "Halton"),
    "confidence": (ORANGE, "confidence"),
    "entropy": (ORANGE, "entropy"),
    "maskgit": (VERMILLION, "MaskGIT"),
    "moment": (BLUE, "moment"),
    "hybrid": (PURPLE, "hybrid"),
    "bounded": (BROWN, "bounded"),
}
# A low choice temperature sharpens: the fuller the line, the sharper. Plain draws are dotted.
PLAIN_LINE = (0, (1.2, 1.6))
LINES = {1.0: (0, (6, 1.5, 1.2, 1.5)), 4.0: "-", 6.0: "-", 16.0: (0, (4.5, 1.8))}
# "moment 4", "moment, 1", "hybrid 16, halton 0.25", "uniform-tempered"
NAME = re.compile(r"(?P<kind>[a-z]+)(?P<more>[ ,-]*(?P<alpha>[0-9.]+)?.*)")


def choice_temperature(sampler: str) -> float | None:
    """The choice temperature in a sampler's name, if there is one."""
    match = NAME.match(parts(sampler)[0])
    return float(match["alpha"]) if match and match["alpha"] else None


def look(sampler: str) -> dict[str, Any]:
    """Colour and line of a sampler."""
    match = NAME.match(sampler)
    colour, _ = KINDS.get(match["kind"] if match else "", (GREY, ""))
    alpha = choice_temperature(sampler)
    return {"color": colour, "linestyle": PLAIN_LINE if alpha is None else LINES.get(alpha, "-")}


def title_of(sampler: str) -> str:
    """A sampler's name as a reader knows it: "maskgit 4" is "MaskGIT 4"."""
    match = NAME.match(sampler)
    return KINDS[match["kind"]][1] + match["more"] if match and match["kind"] in KINDS else sampler
