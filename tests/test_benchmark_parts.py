"""What the benchmarks share: turns are fair, tables are Markdown, panels agree in their colours."""

from __future__ import annotations

import importlib
from collections.abc import Callable
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


def test_a_sampler_has_one_colour_though_a_panel_lacks_another(part: Part, tmp_path: Path) -> None:
    plots = part("plots")
    summary = {(name, steps): {"x": (steps, 0.1)} for name in ("one", "two", "three") for steps in (2, 4)}
    summary["two", 2], summary["two", 4] = {}, {}
    summary["real", 0] = {"x": (3.0, 0.1)}
    with plots.figure(tmp_path / "plot.png") as figure:
        panels = figure.subplots(1, 2)
        plots.draw_references(panels[0], summary, "x")
        plots.draw_over_steps(panels[0], summary, lambda row: row.get("x", (1.0, 0.1)), yscale="log")
        plots.draw_over_steps(panels[1], summary, lambda row: row.get("x"))
        plots.add_legend(figure)
    colours = [{bars.get_label(): bars[0].get_color() for bars in panel.containers} for panel in panels]
    assert colours[0].keys() == {"one", "two", "three"}
    assert colours[1] == {name: colours[0][name] for name in ("one", "three")}
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["real", "one", "two", "three"]
    assert (tmp_path / "plot.png").stat().st_size > 5_000


def test_what_samples_need_is_less_than_what_a_batch_takes(part: Part) -> None:
    """A row without a mask is done; it goes through the model all the same."""
    model = nn.Identity()
    needed, all_work = part("passes").NeededPasses(model, mask_token_id=9), PassCounter(model)
    model(torch.tensor([[9, 9], [0, 9]]))
    model(torch.tensor([[0, 9], [0, 1]]))
    assert needed.cost(2) == {"passes": 1.5, "partial passes": 0, "pass equivalents": 1.5}
    assert needed.calls == 2
    assert all_work.take() == 4
