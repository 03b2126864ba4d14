"""`python -m hf_maskdiff_cli` is `hf-maskdiff`."""

import sys

from .program import main

sys.exit(main())
