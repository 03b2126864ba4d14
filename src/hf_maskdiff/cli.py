"""The program `hf-maskdiff`, under the name it is imported by; it is defined in `hf_maskdiff_cli`.

Importing this module imports all of `hf_maskdiff` first; `hf_maskdiff_cli` answers a wrong argument before that.
"""

from hf_maskdiff_cli import main

__all__ = ["main"]
