"""The command line of hf_maskdiff: what `hf-maskdiff` says, which arguments it takes, and what it refuses at once.

Importing `hf_maskdiff` imports torch, diffusers and transformers, which takes seconds. This package imports nothing but
the standard library. So a wrong argument is answered before anything heavy is loaded, and `hf_maskdiff` is imported by
the function that needs it. The rules stand here once: `hf_maskdiff` calls the same functions.
"""

from .errors import USER_ERRORS, one_line
from .program import main

__all__ = ["USER_ERRORS", "main", "one_line"]
