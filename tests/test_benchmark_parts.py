"""What the benchmarks share: turns are fair, tables are Markdown, panels agree in their colours."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hf_maskdiff.generation import PassCounter

Part = Callable[[str], Any]


@pytest.fixture
def part(monkeypatch: pytest.MonkeyPatch) -> Part:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    return importlib.import_module


def test_works_take_turns_after_one_that_warms_up(part: Part) -> None:
    calls: list[str] = []
    times = part("timing").take_turns({name: lambda name=name: calls.append(name) for name in "abc"}, repeats=4)
    assert {name: len(column) for name, column in times.items()} == {"a": 4, "b": 4, "c": 4}
    turns = [calls[first : first + 3] for first in range(0, 15, 3)]
    assert all(sorted(turn) == ["a", "b", "c"] for turn in turns)
    assert len({tuple(turn) for turn in turns}) > 1
    assert part("timing").median_ratio({"a": [2.0, 9.0, 4.0], "b": [1.0, 3.0, 1.0]}, "a", "b") == 3


def test_a_clock_counts_what_it_times(part: Part) -> None:
    clock = part("timing").Clock()
    double = clock.timed(lambda x: 2 * x)
    assert [double(1), double(x=3)] == [2, 6]
    assert clock.calls == 2
    assert clock.seconds > 0


def test_a_table(part: Part, capsys: pytest.CaptureFixture[str]) -> None:
    tables = part("tables")
    tables.print_table(["name", "steps", "x"], [("a", 2, tables.with_error((1.0, 0.25))), ("b", "", "")], left=(0, 2))
    lines = ["| name | steps | x |", "| --- | ---: | --- |", "| a | 2 | 1.00 +- 0.25 |", "| b |  |  |"]
    assert capsys.readouterr().out.splitlines() == lines
    assert tables.with_error((1.0, float("nan")), 1) == "1.0"


def test_a_sampler_looks_the_same_in_every_panel(part: Part, tmp_path: Path) -> None:
    """Its colour is its own: it does not depend on which others are drawn, or in which order."""
    plots, looks = part("plots"), part("looks")
    summary = {(name, steps): {"x": (steps, 0.1)} for name in ("moment 4", "maskgit 4", "halton") for steps in (2, 4)}
    summary["maskgit 4", 2], summary["maskgit 4", 4] = {}, {}
    summary["real", 0] = {"x": (3.0, 0.1)}
    with plots.figure(tmp_path / "plot.png", title="A title") as figure:
        left, right = figure.subplots(1, 2)
        ends = {left: plots.draw_over_steps(left, summary, lambda row: row.get("x", (1.0, 0.1)), yscale="log")}
        ends[left] += plots.draw_references(left, summary, "x")
        ends[right] = plots.draw_over_steps(right, summary, lambda row: row.get("x"))
        limits = [axis.get_xlim() + axis.get_ylim() for axis in ends]
        plots.label_ends(figure, ends)
        assert [axis.get_xlim() + axis.get_ylim() for axis in ends] == limits
    colours = [{bars.get_label(): bars[0].get_color() for bars in panel.containers} for panel in ends]
    assert colours[0] == {name: looks.look(name)["color"] for name in ("moment 4", "maskgit 4", "halton")}
    assert colours[1] == {name: colours[0][name] for name in ("moment 4", "halton")}
    assert {text.get_text() for text in left.texts} == {"moment 4", "MaskGIT 4", "Halton", "real"}
    for text in left.texts:  # a name has the colour of its line
        assert text.get_color() in {*colours[0].values(), looks.GREY}
    places = sorted(text.get_window_extent().y0 for text in left.texts)
    height = min(text.get_window_extent().height for text in left.texts)
    assert min(later - earlier for earlier, later in pairwise(places)) >= 0.7 * height
    assert (tmp_path / "plot.png").stat().st_size > 5_000


def test_looks_of_samplers(part: Part) -> None:
    looks = part("looks")
    colours = [colour for colour, _ in looks.KINDS.values()]
    assert len(set(colours)) == len(colours) - 1  # confidence and entropy are one order's two measures
    assert looks.GREY not in colours
    temperatures = {
        "moment": None,
        "moment 4": 4,
        "moment, 1": 1,
        "moment, 2 groups": None,
        "hybrid 16, halton 0.5": 16,
    }
    assert {name: looks.choice_temperature(name) for name in temperatures} == temperatures
    assert looks.look("moment 4")["color"] == looks.look("moment, 2 groups")["color"]
    assert len({str(looks.look(name)["linestyle"]) for name in ("moment", "moment 4", "moment, 1", "moment 16")}) == 4
    assert looks.title_of("maskgit 4") == "MaskGIT 4"
    assert looks.title_of("something else") == "something else"


def test_names_are_moved_apart_as_little_as_it_takes(part: Part) -> None:
    apart = part("plots").apart
    assert apart([0.1, 0.9, 0.5], 0.1) == pytest.approx([0.1, 0.9, 0.5])
    assert apart([0.5, 0.5], 0.1) == pytest.approx([0.45, 0.55])
    assert apart([0.52, 0.5, 0.9], 0.1) == pytest.approx([0.56, 0.46, 0.9])
    assert apart([0.3, 0.3, 0.35], 0.1) == pytest.approx([0.21667, 0.31667, 0.41667], abs=1e-4)
    assert apart([], 0.1) == []


def test_what_samples_need_is_less_than_what_a_batch_takes(part: Part) -> None:
    """A row without a mask is done; it goes through the model all the same."""
    model = nn.Identity()
    needed, all_work = part("passes").NeededPasses(model, mask_token_id=9), PassCounter(model)
    model(torch.tensor([[9, 9], [0, 9]]))
    model(torch.tensor([[0, 9], [0, 1]]))
    assert needed.cost(2) == {"passes": 1.5, "partial passes": 0, "pass equivalents": 1.5}
    assert needed.calls == 2
    assert all_work.take() == 4


def test_memory_at_an_address_that_was_an_inputs_is_counted(part: Part) -> None:
    held, made = [torch.zeros(1000) for _ in range(50)], []

    def work() -> None:
        while held:
            held.pop().add_(1)  # freed here, so that what is made next may lie where it lay
            made.append(torch.ones(1000))

    assert 50 * 4000 <= part("memory").extra_memory(work, torch.device("cpu")) <= 52 * 4000
