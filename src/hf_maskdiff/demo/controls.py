"""The controls that both kinds of tabs share, and what becomes of errors."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from hf_maskdiff_cli.errors import USER_ERRORS, one_line

from .captions import empty_panel, told
from .opening import Opened
from .requests import MOST_GUIDANCE, number, whole
from .samplers import Choice, samplers

MOST_SUBSTEPS, MOST_CHOICE_TEMPERATURE = 8, 16
_SECOND, _ELSE = "Halton + choice temperature", "Moment"
_TEMPERATURE = "Low is sharp, high is varied."
_SUBSTEPS = "Groups of a step, by partial caching; 1 is off."
_logger = logging.getLogger(__name__)


def steps_and_guidance(most: int, steps: int, guidance: float, prefix: str, unused: str = "") -> tuple[Any, Any]:
    """A row of the two sliders: the number of steps, and the guidance scale.

    Args:
        most: the largest number of steps.
        steps, guidance: what they begin with.
        prefix: of the elements' ids.
        unused: why the model is not guided, which switches the slider off; empty if it is.
    """
    with gr.Row():
        number_of_steps = gr.Slider(1, most, steps, step=1, label="Steps", min_width=200, elem_id=f"{prefix}-steps")
        scale = gr.Slider(
            1,
            MOST_GUIDANCE,
            guidance,
            step=0.25,
            label="Guidance",
            min_width=200,
            interactive=not unused,
            info=unused or "1 is off; above it, a step takes two passes.",
            elem_id=f"{prefix}-guidance",
        )
    return number_of_steps, scale


class SamplerControls:
    """A list of samplers, with the two settings that not every sampler has: those it lacks are switched off and say so.

    Args:
        title: "A" or "B".
        first: name of the sampler that it begins with.
        choice_temperature: what the slider begins with.
        prefix: of the elements' ids.
    """

    def __init__(self, title: str, first: str, choice_temperature: float, prefix: str) -> None:
        with gr.Group():
            self.sampler = gr.Dropdown(
                list(samplers()), value=first, label=f"Sampler {title}", elem_id=f"{prefix}-sampler"
            )
            with gr.Row():
                self.choice_temperature = gr.Slider(
                    0,
                    MOST_CHOICE_TEMPERATURE,
                    choice_temperature,
                    step=0.5,
                    label="Choice temperature",
                    min_width=200,
                    elem_id=f"{prefix}-temperature",
                )
                self.num_substeps = gr.Slider(
                    1, MOST_SUBSTEPS, 1, step=1, label="R", min_width=200, elem_id=f"{prefix}-substeps"
                )
        settings = [self.choice_temperature, self.num_substeps]
        for slider, update in zip(settings, which_are_used(first), strict=True):
            slider.interactive, slider.info = update["interactive"], update["info"]
        self.sampler.change(which_are_used, self.sampler, settings, show_progress="hidden")

    @property
    def inputs(self) -> list[Any]:
        """What `choice_of` reads."""
        return [self.sampler, self.choice_temperature, self.num_substeps]


class Comparison:
    """The buttons that start and stop, and below them two samplers side by side, each with a panel for its result.

    Args:
        opened: the pipeline.
        label: what the button that starts says.
        prefix: of the elements' ids.
    """

    def __init__(self, opened: Opened, label: str, prefix: str) -> None:
        with gr.Row():
            self.start = gr.Button(label, variant="primary", scale=3, elem_id=f"{prefix}-run")
            self.stop = gr.Button("Stop", scale=1, min_width=100, elem_id=f"{prefix}-stop")
        self.message = gr.HTML(elem_id=f"{prefix}-message", elem_classes="md-message", padding=False)
        self.panels, self.inputs = [], []
        with gr.Row(elem_classes="md-side-by-side"):
            for title, first in zip("AB", first_samplers(opened), strict=True):
                with gr.Column(min_width=320):
                    name = f"{prefix}-{title.lower()}"
                    self.inputs += SamplerControls(title, first, opened.choice_temperature, name).inputs
                    self.panels.append(gr.HTML(empty_panel(f"Press “{label}”."), elem_id=name, padding=False))


def choice_of(sampler: Any, choice_temperature: Any, num_substeps: Any) -> Choice:
    """The choice that the controls hold.

    Raises:
        ValueError: no such sampler, or a number out of range.
    """
    temperature = number("Choice temperature", choice_temperature, 0, MOST_CHOICE_TEMPERATURE)
    choice = Choice(str(sampler), temperature, whole("R", num_substeps, 1, MOST_SUBSTEPS))
    _ = choice.of
    return choice


def which_are_used(sampler: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Updates of the sliders of choice temperature and R: switched off where the sampler does not have them."""
    chosen = samplers()[sampler]
    no_temperature, no_substeps = f"{chosen.name} has none: not used.", f"Not with {chosen.name}: not used."
    return (
        gr.update(
            interactive=chosen.has_choice_temperature,
            info=_TEMPERATURE if chosen.has_choice_temperature else no_temperature,
        ),
        gr.update(interactive=chosen.has_substeps, info=_SUBSTEPS if chosen.has_substeps else no_substeps),
    )


def first_samplers(opened: Opened) -> tuple[str, str]:
    """The samplers that the two panels begin with: the pipeline's own, and one in another order."""
    own, has_temperature = type(opened.pipe.scheduler), opened.pipe.scheduler.choice_temperature is not None
    of_class = [one for one in samplers().values() if one.scheduler is own]
    matching = [one.name for one in of_class if one.has_choice_temperature == has_temperature]
    first = next(iter(matching or [one.name for one in of_class]), _ELSE)
    return first, _ELSE if first == _SECOND else _SECOND


def shown(states: Callable[[], Iterator[list[Any]]], num_outputs: int) -> Iterator[list[Any]]:
    """What a tab's message and its other outputs show: the states as they come, or in one line what went wrong.

    Args:
        states: makes the runs, and yields a value for each of the other outputs after every step; what it raises is
            told, and leaves the others as they are.
        num_outputs: how many others there are.
    """
    unchanged = [gr.update()] * num_outputs
    running = states()
    try:
        for state in running:
            yield ["", *state]
    except USER_ERRORS as error:
        yield [told(one_line(error)), *unchanged]
    except Exception as error:
        _logger.exception("a run of the page has failed")
        yield [told(f"{type(error).__name__}: {one_line(error)} (Not foreseen.)"), *unchanged]
    finally:
        running.close()  # type: ignore[attr-defined]
