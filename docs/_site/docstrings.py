"""Docstrings in diffusers' style as mkdocstrings reads them: cross references, types in backticks, formulas, examples.

[`~diffusers.VQModel`], `MomentScheduler`      a link where the name is in this documentation, else code
size (`int`, *optional*): ...                  a type without its backticks and stars
image_size, num_channels: ...                  each argument on a line of its own
Returns:                                       a type in backticks before a colon, or a sentence
Example: / Examples:                           indented code in a fence
{{"latents": codes}}                           braces that a template of diffusers halves
"""

from __future__ import annotations

import re
import textwrap
from typing import Any

import griffe

REFERENCE = re.compile(r"\[`~?([\w.]+)`\](?!\()|(?<![`\[\w])`([A-Z]\w+)(?:\.(\w+))?`(?!`)")
REFERENCE_MADE = re.compile(r"^ *\[`\w+`\]\[[\w.]+\]")
ARGUMENT = re.compile(
    r"^(?P<indent> +)(?P<names>\*{0,2}\w+(?:, \*{0,2}\w+)*) ?(?:\((?P<type>[^()]*(?:\([^()]*\)[^()]*)*)\))?: "
)


class DiffusersStyle(griffe.Extension):
    """Rewrites every docstring of the package when it is loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.names: dict[str, str] = {}

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        self.names = _public_names(pkg)
        seen: set[int] = set()
        _visit(pkg, self.rewrite, seen)

    def rewrite(self, docstring: griffe.Docstring) -> None:
        docstring.value = rewritten(docstring.value, self.names)


def rewritten(text: str, names: dict[str, str] | None = None) -> str:
    """One docstring.

    Args:
        text: as it stands in the source.
        names: the short names of the package and their full ones.
    """
    text = text.replace("{{", "{").replace("}}", "}")
    text = REFERENCE.sub(lambda found: _reference(found, names or {}), text)
    return "\n".join(_returns(_arguments(_examples(text.split("\n")))))


def _reference(found: re.Match[str], names: dict[str, str]) -> str:
    if found[1]:
        return _link(found[1], names)
    return found[0] if found[2] not in names or found[3] else _link(found[2], names)


def _link(name: str, names: dict[str, str]) -> str:
    short = name.rsplit(".", 1)[-1]
    full = names.get(short)
    return f"[`{short}`][{full}]" if full else f"`{short}`"


def _examples(lines: list[str]) -> list[str]:
    """What is indented behind `Example:` or `Examples:`, as a fence of Python under a bold word."""
    out: list[str] = []
    i = 0
    while i < len(lines):
        title = re.fullmatch(r"( *)Examples?:", lines[i])
        if not title:
            out.append(lines[i])
            i += 1
            continue
        end = i + 1
        while end < len(lines) and (not lines[end].strip() or lines[end].startswith(title[1] + "    ")):
            end += 1
        code = textwrap.dedent("\n".join(lines[i + 1 : end])).strip("\n")
        fenced = code if "```" in code or not code else f"```python\n{code}\n```"
        out += [f"{title[1]}**Example**", "", *fenced.split("\n"), ""] if code else []
        i = end
    return out


def _arguments(lines: list[str]) -> list[str]:
    """The lines of `Args:`, one argument each, types without their backticks."""
    out: list[str] = []
    inside: str | None = None
    for i, line in enumerate(lines):
        if re.fullmatch(r" *(Args|Attributes|Raises|Returns|Yields):", line):
            inside = line if line.strip() == "Args:" else None
        elif (
            line.strip() and inside is not None and len(line) - len(line.lstrip()) <= len(inside) - len(inside.lstrip())
        ):
            inside = None
        found = ARGUMENT.match(line) if inside is not None else None
        if not found or len(found["indent"]) != len(inside or "") - len((inside or "").lstrip()) + 4:
            out.append(line)
            continue
        rest = line[found.end() :]
        kind = f" ({_type(found['type'])})" if found["type"] else ""
        names = found["names"].split(", ")
        if len(names) == 1:
            out.append(f"{found['indent']}{names[0]}{kind}: {rest}")
        else:
            more = _continuation(lines[i + 1 :], len(found["indent"]))
            for name in names[:-1]:
                out += [f"{found['indent']}{name}{kind}: {rest}", *more]
            out.append(f"{found['indent']}{names[-1]}{kind}: {rest}")
    return out


def _returns(lines: list[str]) -> list[str]:
    """What stands before a colon under `Returns:` is a type where it is in backticks; else it is part of a sentence."""
    out = list(lines)
    for i, line in enumerate(lines[:-1]):
        if line.strip() == "Returns:":
            before, colon, after = lines[i + 1].partition(": ")
            is_type = re.fullmatch(r" *`[^`]+`(?: or `[^`]+`)?", before) or REFERENCE_MADE.search(before)
            out[i + 1] = f"{_type(before)}: {after}" if colon and is_type else lines[i + 1].replace(": ", "&#58; ")
    return out


def _continuation(lines: list[str], indent: int) -> list[str]:
    more: list[str] = []
    for line in lines:
        if not line.strip() or len(line) - len(line.lstrip()) <= indent:
            break
        more.append(line)
    return more


def _type(text: str) -> str:
    plain = re.sub(r"\[(`[^`]+`)\]\[[^\]]+\]", r"\1", text).replace("`", "")
    return plain.replace("*optional*", "optional")


def _public_names(pkg: griffe.Module) -> dict[str, str]:
    """The package's own names among those that it exports, to the places where the reference shows them."""
    ours = (str(name) for name in pkg.exports or ())
    return {name: f"{pkg.path}.{name}" for name in ours if pkg[name].target_path.startswith(f"{pkg.path}.")}


def _visit(found: Any, rewrite: Any, seen: set[int]) -> None:
    if found.is_alias or id(found) in seen:
        return
    seen.add(id(found))
    if found.docstring:
        rewrite(found.docstring)
    for member in getattr(found, "members", {}).values():
        _visit(member, rewrite, seen)
