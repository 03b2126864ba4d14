"""The processes that share the work, as `accelerate launch` starts them: one, or several."""

from __future__ import annotations

import atexit
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, parse_flag_from_env

_Result = TypeVar("_Result")


def start_processes() -> PartialState:
    """Join the processes of `accelerate launch`; without it this process is the only one.

    Several processes talk to each other over their GPUs, or on CPUs by gloo; see `leave_at_exit`.
    """
    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.cuda.is_available()
    # The slowest process may be hours behind the others where GPUs differ.
    state = PartialState(cpu=on_cpu, timeout=timedelta(days=7))
    leave_at_exit()
    return state


def leave_at_exit() -> None:
    """Let this process leave its group when the program ends, however it ends.

    Threads of a group that still exists when Python itself ends can abort a process whose work is done.
    """
    atexit.unregister(_leave_group)  # so that it runs once, however often this is called
    atexit.register(_leave_group)


def _leave_group() -> None:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def on_main_process(deed: Callable[[], _Result], state: PartialState) -> _Result:
    """Call `deed` in one process, and return or raise in all of them what it returned or raised.

    Args:
        deed: may raise `ValueError` or `OSError`; its result must be picklable.
    """
    news: list[Any] = [None, None]
    if state.is_main_process:
        try:
            news = [deed(), None]
        except (ValueError, OSError) as error:
            news = [None, error]
    broadcast_object_list(news)
    if news[1] is not None:
        raise news[1]
    return news[0]
