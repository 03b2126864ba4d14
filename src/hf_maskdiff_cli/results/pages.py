"""Pages with blocks that are made from files of results, between two comments, and prose around them.

    <!-- results: text.json; columns: nats, entropy; across: steps -->
    (the table)
    <!-- end of results -->

The first comment says which files, from the page's own folder of results, and which table; several files, columns,
samplers are separated by commas. What is between the comments is never edited.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .reading import read_results
from .tables import Layout, table

_BLOCK = re.compile(
    r"^<!-- results: (?P<told>[^\n]+) -->\n(?P<made>.*?)^<!-- end of results -->$", re.MULTILINE | re.DOTALL
)
_BEGIN = "<!-- results: "
_KEYS = ("columns", "across", "samplers", "steps", "num_substeps", "title")


@dataclass(frozen=True)
class Block:
    """What the first comment of a block says."""

    files: Sequence[str]
    layout: Layout


def rendered(page: str, folder: Path) -> str:
    """The page with its blocks made anew.

    Args:
        page: text of the page.
        folder: where the files of results are.

    Raises:
        ValueError: a block has no end or does not say which table, or a file is none of results.
        OSError: a file is missing.
    """
    found = _BLOCK.findall(page)
    if page.count(_BEGIN) != len(found):
        raise ValueError(
            f'a block of results must begin with "{_BEGIN}... -->" and end with "<!-- end of results -->", each in '
            f"a line of its own, got {page.count(_BEGIN)} beginnings and {len(found)} whole ones. Write what lacks."
        )
    return _BLOCK.sub(lambda block: _made(block, folder), page)


def _made(block: re.Match[str], folder: Path) -> str:
    told = block_of(block["told"])
    results = [read_results(folder / name) for name in told.files]
    return f"<!-- results: {block['told']} -->\n\n{table(results, told.layout)}\n\n<!-- end of results -->"


def block_of(told: str) -> Block:
    """What a block's first comment asks for."""
    files, *pairs = (part.strip() for part in told.split(";"))
    found = {key.strip(): value.strip() for key, _, value in (pair.partition(":") for pair in pairs)}
    unknown = sorted(set(found) - set(_KEYS))
    if unknown or "columns" not in found:
        raise ValueError(
            f"a block of results must name its files and `columns`, and may say {', '.join(_KEYS[1:])}, got {told!r}. "
            "Write `text.json; columns: nats, entropy; across: steps`, say."
        )
    return Block(
        _words(files),
        Layout(
            columns=_words(found["columns"]),
            across=_words(found.get("across", "")),
            samplers=_words(found.get("samplers", "")),
            steps=_counts("steps", found.get("steps", "")),
            num_substeps=_counts("num_substeps", found.get("num_substeps", "")),
            title=found.get("title", "sampler"),
        ),
    )


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _counts(key: str, text: str) -> list[int]:
    words = _words(text)
    wrong = [word for word in words if not word.isdigit()]
    if wrong:
        raise ValueError(f"`{key}` of a block of results must be whole numbers, got {wrong}. Write `{key}: 4, 8`, say.")
    return [int(word) for word in words]
