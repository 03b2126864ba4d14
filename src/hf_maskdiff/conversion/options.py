"""What a conversion lacks, all of it at once."""

from __future__ import annotations

from collections.abc import Mapping


class MissingOptions(ValueError):
    """Arguments that `convert` needs for a source and did not get: one error names all of them.

    Args:
        options: names, as of the function's arguments, and why they are needed and what to pass.
    """

    def __init__(self, options: Mapping[str, str]) -> None:
        self.options = dict(options)
        reasons = " ".join(f"`--{name}`: {reason}" for name, reason in self.options.items())
        function = ", ".join(f"`{name}=`" for name in self.options)
        super().__init__(f"{len(self.options)} missing. {reasons} (In Python {function}.)")
