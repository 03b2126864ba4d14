"""The card of a finished set, and its upload to the Hub."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCard, create_repo, upload_folder

from hf_maskdiff import __version__
from hf_maskdiff_cli.set_folder import HIDDEN

from .files import write_atomically

CARD = """\
---
tags:
- synthetic
- masked-diffusion
configs:
- config_name: default
  data_files: "*.parquet"
---

# Samples of a masked diffusion model

Made by hf-maskdiff {version}. Sample `index` was drawn with `torch.Generator().manual_seed(seed)`; `tokens` are what
the model wrote: the codes of an image or of a sound, codebook by codebook, or the ids of a text.

```json
{configuration}
```
"""


def finish(folder: Path, configuration: dict[str, Any], repo_id: str | None) -> None:
    """Give a finished set its card, unless somebody wrote one, and upload it if there is a repository to upload it to.

    Raises:
        OSError: the card could not be written, or the set not be uploaded; both are kept.
    """
    card = folder / "README.md"
    if not card.exists():
        content = CARD.format(version=__version__, configuration=json.dumps(configuration, indent=2))
        write_atomically(card, content.encode())
    print(f"{folder}: open it with `datasets.load_dataset({str(folder)!r})`, read {card}")
    if repo_id is not None:
        with _one_error_of_the_hub(repo_id):
            DatasetCard.load(card).validate(repo_type="dataset")
            upload_folder(repo_id=repo_id, repo_type="dataset", folder_path=folder, ignore_patterns=[f"{HIDDEN}/*"])
        print(f"{folder}: uploaded to the data set {repo_id} of the Hub")


def make_repository(repo_id: str, private: bool) -> None:
    """Make a data set of the Hub, unless it is there; `OSError` for one that may not be written to."""
    with _one_error_of_the_hub(repo_id):
        create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)


@contextmanager
def _one_error_of_the_hub(repo_id: str) -> Iterator[None]:
    """Turn the many kinds of errors that the network, the Hub and its client raise into one."""
    try:
        yield
    except Exception as error:
        raise OSError(
            f"`push_to_hub` must name a data set of the Hub that you may write to, got {repo_id!r}: {error}. Sign in "
            "with `hf auth login`, and run the same command again: what is finished is kept."
        ) from error
