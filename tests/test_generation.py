"""Settings of a scheduler from the command line."""

from __future__ import annotations

import pytest

from hf_maskdiff import HybridScheduler, MomentScheduler
from hf_maskdiff.generation import scheduler_settings


def test_settings_are_json_or_words() -> None:
    pairs = ["choice_temperature=4", "masking_schedule=linear", "top_p=null", "exploration_ratio=[1.0, 0.0]"]
    expected = {"choice_temperature": 4, "masking_schedule": "linear", "top_p": None, "exploration_ratio": [1.0, 0.0]}
    assert scheduler_settings(pairs, HybridScheduler) == expected


@pytest.mark.parametrize("pair", ["exploration_ratio=0.5", "choice_temperature", "=3"])
def test_settings_that_the_scheduler_does_not_have(pair: str) -> None:
    with pytest.raises(ValueError, match="key=value pairs with the keys of MomentScheduler"):
        scheduler_settings([pair], MomentScheduler)
