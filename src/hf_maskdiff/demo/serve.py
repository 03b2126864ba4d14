"""What `hf-maskdiff demo` does once its arguments are checked."""

from __future__ import annotations

import argparse

from .opening import open_all
from .page import build_page


def serve(args: argparse.Namespace) -> None:
    """Open the pipelines, and serve the page until it is stopped.

    Args:
        args: of `hf-maskdiff demo`.

    Raises:
        ValueError: a pipeline cannot be loaded, or the machine has no such device.
        OSError: the port is taken.
    """
    page, look = build_page(open_all(args.pipeline, args.device, args.dtype))
    page.launch(server_name=args.host, server_port=args.port, **look)
