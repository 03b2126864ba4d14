"""What the processes of a split model agree on before a call: played by threads, which is faster than processes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from hf_maskdiff import MaskedDiffusionScheduler, MomentScheduler
from hf_maskdiff.pipelines.split_models import generator_of_all

NUM_PROCESSES = 3
GROUP = "those that share the model"


def model(num_processes: int = NUM_PROCESSES) -> nn.Module:
    """One weight, which knows over how many processes it is split."""
    made = nn.Linear(1, 1)
    made.weight.device_mesh = SimpleNamespace(size=lambda: num_processes, ndim=1, get_group=lambda: GROUP)
    return made


@pytest.fixture
def in_each_process(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int], Any]], list[Any]]:
    """Calls a function with the numbers of all processes at once; returns what each of them returns."""
    everyone, handed, own = threading.Barrier(NUM_PROCESSES, timeout=60), {}, threading.local()

    def all_gather(of_all: list[Any], one: Any, group: Any) -> None:
        assert group == GROUP
        handed[own.process] = one
        everyone.wait()
        of_all[:] = [handed[process] for process in range(NUM_PROCESSES)]
        everyone.wait()

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda group: NUM_PROCESSES)
    monkeypatch.setattr(torch.distributed, "all_gather_object", all_gather)

    def call(function: Callable[[int], Any]) -> list[Any]:
        def named(process: int) -> Any:
            own.process = process
            return function(process)

        with ThreadPoolExecutor(NUM_PROCESSES) as pool:
            return list(pool.map(named, range(NUM_PROCESSES)))

    return call


def scheduler(**settings: Any) -> MaskedDiffusionScheduler:
    return MomentScheduler(mask_token_id=9, **settings)


def seeded(*numbers: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(number) for number in numbers]


def test_without_a_generator_all_draw_the_same_which_is_new_in_every_call(in_each_process: Callable) -> None:
    seeds = []
    for _ in range(2):
        made = in_each_process(lambda process: generator_of_all(model(), None, scheduler(), [1, 2]))
        assert len({one.initial_seed() for one in made}) == 1
        assert len({id(one) for one in made}) == NUM_PROCESSES
        seeds.append(made[0].initial_seed())
    assert seeds[0] != seeds[1]


@pytest.mark.parametrize("generators", [seeded(3)[0], seeded(3, 4)])
def test_generators_in_one_state_are_used_as_they_are(in_each_process: Callable, generators: Any) -> None:
    made = in_each_process(lambda process: generator_of_all(model(), generators, scheduler(), "w7"))
    assert all(one is generators for one in made)


OTHERS: dict[str, Callable[[bool], tuple[Any, ...]]] = {
    "prompt": lambda other: (None, scheduler(), [1, 2, 3 + other]),
    "seed": lambda other: (seeded(3 + other)[0], scheduler(), [1, 2]),
    "seed of a row": lambda other: (seeded(3, 4 + other), scheduler(), [1, 2]),
    "no generator": lambda other: (None if other else seeded(3), scheduler(), [1, 2]),
    "setting": lambda other: (None, scheduler(temperature=1.0 + other), [1, 2]),
}


@pytest.mark.parametrize("what", OTHERS)
@pytest.mark.parametrize(("which", "named"), [((1,), "process 1 than"), ((1, 2), "processes 1, 2 than")])
def test_another_call_is_refused_in_all(in_each_process: Callable, what: str, which: tuple, named: str) -> None:
    def refused(process: int) -> str:
        with pytest.raises(ValueError, match="must all make the same call") as caught:
            generator_of_all(model(), *OTHERS[what](process in which))
        return str(caught.value)

    assert all(named in message for message in in_each_process(refused))


@pytest.mark.parametrize("weights", [nn.Linear(1, 1), model(num_processes=1)])
def test_a_whole_model_asks_nobody(weights: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    assert generator_of_all(weights, None, scheduler(), "w7") is None
    monkeypatch.undo()
    own = seeded(3)
    assert generator_of_all(model(), own, scheduler(), "w7") is own  # no processes have been started
