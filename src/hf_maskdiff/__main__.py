"""`python -m hf_maskdiff` is `hf-maskdiff`."""

import sys

from hf_maskdiff.cli import main

sys.exit(main())
