"""One sampler's run, as a panel of the page shows it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from .captions import caption, panel, remarks
from .heat_map import legend
from .history import Record
from .opening import Opened
from .samplers import Choice
from .stepwise import Frame, StepwiseCall, in_turns


class Run(ABC):
    """A run, and what is seen of it.

    Args:
        title: of the panel.
        opened: the pipeline.
        choice: the sampler and its settings.
        steps: as the user has set them.
        start: tokens before the first step.
        said: what must be said of the settings of the call, beside the sampler's own remarks.

    Raises:
        ValueError: no such sampler, or settings that it refuses.
    """

    tensor: str  # what the pipeline's callback calls the tokens

    def __init__(
        self, title: str, opened: Opened, choice: Choice, steps: int, start: Tensor, said: Sequence[str] = ()
    ) -> None:
        self.title, self.choice, self.steps, self.start = title, choice, steps, start
        self.pipe = opened.for_one_run(choice)
        self.record = Record(start.cpu(), opened.mask_token_id)
        self.remarks = [*choice.of.remarks(), *said]
        self.stepwise = StepwiseCall(self.call, self.tensor, start.cpu())

    @abstractmethod
    def call(self, callback_on_step_end: Any) -> Any:
        """Call the pipeline."""

    @abstractmethod
    def view(self) -> str:
        """HTML of the tokens as they are now."""

    @abstractmethod
    def heat_map(self, num_steps: int) -> str:
        """HTML of which position was revealed when."""

    def panel(self, frame: Frame | None) -> str:
        """HTML of all there is to see after a step; before the first one without a frame."""
        last = 0
        if frame is not None:
            self.record.add(frame.tokens, frame.step)
            last = frame.step
        num_steps = last if frame is not None and frame.finished else max(last, self._expected_steps())
        return panel(
            caption(self.title, self.choice.described(self.steps), frame),
            remarks(self.remarks),
            self.view(),
            f"{self.heat_map(num_steps)}{legend(num_steps)}",
        )

    def _expected_steps(self) -> int:
        if self.choice.of.has_steps:
            return self.steps
        return max(1, int((self.record.history.flatten(1) != 0).sum(-1).max()))


def panels_of(runs: Sequence[Run]) -> Iterator[list[str]]:
    """The panels before the first step and after every one, the runs in turn; errors are those of the pipelines."""
    yield [run.panel(None) for run in runs]
    for frames in in_turns([run.stepwise for run in runs]):
        yield [run.panel(frame) for run, frame in zip(runs, frames, strict=True)]
