"""Whether a repository can be had at all: without a network the Hub's client tries half a minute for each file."""

from __future__ import annotations

import os
from pathlib import Path

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

_SECONDS = 10


class HubOutOfReach(OSError):
    """A repository is not on this machine, and the Hub was not reached."""

    def __init__(self, name: str, reason: object) -> None:
        super().__init__(
            f"{name!r} is not on this machine, and the Hub was not reached: {str(reason).rstrip('.')}. Check the "
            "connection, or pass a folder."
        )


def require_hub(name: str | os.PathLike) -> None:
    """Ask the Hub once whether it is there; not for a path, or a repository of which something was fetched before.

    For programs, which say in a line what is wrong. A library leaves this to the Hub's client, and to its patience.

    Raises:
        HubOutOfReach: no answer. An answer of any kind is none of this function's business.
    """
    if _is_here(name):
        return
    try:
        get_hf_file_metadata(hf_hub_url(str(name), ".gitattributes"), timeout=_SECONDS)
    except (HfHubHTTPError, ValueError):  # it answers, or would not be asked: the name cannot be one of the Hub
        return
    except Exception as error:  # of the library that the client connects with, which is another one in each version
        raise HubOutOfReach(str(name), error) from error


def stop_out_of_reach(error: OSError, name: str | os.PathLike, cache_dir: str | os.PathLike | None = None) -> None:
    """Let an error for a file that is not there pass, if another file may be.

    Raises:
        HubOutOfReach: the Hub was not reached, and nothing of the repository was fetched before: no file will be there.
    """
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, LocalEntryNotFoundError):
        cause = cause.__cause__ or cause.__context__
    if cause is not None and not _is_here(name, cache_dir):
        raise HubOutOfReach(str(name), cause.__cause__ or cause) from error


def _is_here(name: str | os.PathLike, cache_dir: str | os.PathLike | None = None) -> bool:
    fetched = Path(cache_dir or constants.HF_HUB_CACHE, "--".join(["models", *str(name).split("/")]))
    return Path(name).exists() or fetched.exists()
