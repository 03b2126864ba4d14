"""What only a machine's own devices can tell: whether one is there, and whether it has room."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def require_device(argument: str, device: str) -> None:
    """Raise `ValueError` for a device that torch does not know, or that this machine does not have.

    Args:
        argument: what the message calls it.
        device: such as "cpu" or "cuda:0".
    """
    try:
        torch.zeros(1, device=torch.device(device)).tolist()  # what is said of a device may be wrong; this is not
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200].rstrip(".!")
        raise ValueError(
            f"{argument} must be a device of this machine, such as {' or '.join(_present())}, got {device!r}: "
            f"{reason}. Pass one that is there, or leave it out."
        ) from error


def _present() -> list[str]:
    if not torch.accelerator.is_available():
        return ["cpu"]
    return ["cpu", f"{torch.accelerator.current_accelerator()}:0"]


@contextmanager
def telling_of_memory(remedy: str) -> Iterator[None]:
    """Turn what torch raises where memory runs out into `MemoryError`, with the remedy."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise MemoryError(
            f"the memory must hold model and batch, got: {str(error).splitlines()[0]} {remedy}"
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device, or the CPU, has no room."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
