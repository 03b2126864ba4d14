"""How somebody gets this package who does not have it: what cards and the `pipeline.py` of a repository say.

An extra of the installed package needs no such words: `pip install "hf-maskdiff[fid]"` takes the package that is there,
from wherever it came, and fetches what the extra adds.
"""

DISTRIBUTION = "hf-maskdiff"

# True from the release that is the first on PyPI. Then `python examples/push_to_hub.py --refresh_cards` writes every
# card and `pipeline.py` anew; docs/release.md says when.
PUBLISHED = False


def how_to_install() -> str:
    """What to run to have the package: a sentence in Markdown, without its full stop."""
    if PUBLISHED:
        return f"Run `pip install {DISTRIBUTION}`"
    package = DISTRIBUTION.replace("-", "_")
    return f"Run `pip install .` in {package}'s repository, or `pip install {package}-*.whl` if you have its wheel"
