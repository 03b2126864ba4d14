"""What a mutant is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Mutant:
    """A bug.

    Args:
        name: what `--only` calls it.
        bug: what is wrong with it.
        file: the file that it is in, under `src`.
        before: text that stands in the file exactly once.
        after: what stands there instead.
        tests: ids of tests as pytest writes them, of which the first that fails kills it.
    """

    name: str
    bug: str
    file: str
    before: str
    after: str
    tests: tuple[str, ...]

    def changed(self, source: Path) -> str:
        """The file with the bug in it, `source` being the folder of the sources.

        Raises:
            ValueError: the text to be replaced does not stand in the file exactly once.
        """
        path = source / self.file
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        times = text.count(self.before)
        if times != 1:
            raise ValueError(
                f"the mutant {self.name} is stale: its text must stand in {self.file} once, got {times} times. Write "
                "it as the file has it now."
            )
        return text.replace(self.before, self.after)
