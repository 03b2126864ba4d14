"""The page of `hf-maskdiff demo`, with a tab for each pipeline in the folder `pipelines` beside this file.

To show repositories of the Hub instead: `main(["demo", "--pipeline", "me/digits", "me/plays"])`.
"""

from hf_maskdiff_cli import main

raise SystemExit(main(["demo"]))
