"""The README as the site's first page, links to files that are not pages of it, and formulas.

On the site a link to a program or a folder of the repository would lead nowhere: it becomes the name alone, unless
`repo_url` and `edit_uri` say where the repository is. Formulas become MathML, which browsers show without a script.
"""

from __future__ import annotations

import html
import posixpath
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?!https?:|#|mailto:)([^)\s#]+)(#[^)\s]*)?\)")
PICTURE = re.compile(r"(!\[[^\]]*\])\(docs/")
FORMULA = re.compile(r'<(div|span) class="arithmatex">\\(?:\[|\()(.*?)\\(?:\]|\))</\1>', re.DOTALL)
SIZES = re.compile(r"\\[bB]igg?[lr]?(?![a-z])")  # of brackets, which MathML stretches by itself
SIMILAR = ("<mi>&#x0007E;</mi>", "<mo>&#x0223C;</mo>")


def on_files(files: Files, config: Any) -> Files:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    files.append(File.generated(config, "index.md", content=for_the_site(readme)))
    return files


def for_the_site(readme: str) -> str:
    """The README with links and pictures as a page in `docs` has them."""
    readme = PICTURE.sub(r"\1(", readme)

    def link(found: re.Match[str]) -> str:
        words, target, anchor = found[1], found[2], found[3] or ""
        inside = target.removeprefix("docs/")
        return f"[{_title(words, inside)}]({inside}{anchor})" if inside != target else f"[{words}](../{target}{anchor})"

    return LINK.sub(link, readme)


def _title(words: str, page: str) -> str:
    """The page's own title where the link shows nothing but its path."""
    if words != f"docs/{page}":
        return words
    return (ROOT / "docs" / page).read_text(encoding="utf-8").split("\n", 1)[0].removeprefix("# ")


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    folder = posixpath.dirname(page.file.src_uri)

    def link(found: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, found[2]))
        if not target.startswith("../"):
            return found[0]
        target = target.removeprefix("../")
        if not (ROOT / target).exists():
            return found[0]  # the build says that it leads nowhere
        if config.repo_url and config.edit_uri is not None:
            return f"[{found[1]}]({config.repo_url.rstrip('/')}/blob/main/{target})"
        return found[1] if "`" in found[1] else f"`{found[1]}`"

    return LINK.sub(link, markdown)


def on_page_content(html_: str, page: Any, config: Any, files: Files) -> str:
    def as_mathml(found: re.Match[str]) -> str:
        display = "block" if found[1] == "div" else "inline"
        formula = SIZES.sub("", html.unescape(found[2]).strip())
        return convert(formula, display=display).replace(*SIMILAR)

    return FORMULA.sub(as_mathml, html_)
