"""The names of `hf_maskdiff.generation` and `.parallel`, and settings of a scheduler from the command line."""

from __future__ import annotations

import pytest

from hf_maskdiff import HybridScheduler, MomentScheduler, cli, generation, parallel
from hf_maskdiff.generation import scheduler_settings


def test_what_is_imported_from_these_modules_stays_there() -> None:
    """They are defined elsewhere; programs of others import them from here."""
    parts = {"add_arguments", "add_sampling_arguments", "check_arguments", "read_prompts", "load_pipeline", "run"}
    parts |= {"scheduler_settings", "PassCounter", "ImageSource", "TextSource", "source_of", "configuration_of"}
    assert parts | {"finish", "make_repository", "CARD", "CPU_BLOCK_SIZE", "DTYPES"} == set(generation.__all__)
    pure = {"seed_of", "plan_batches", "blocks_of", "cover"}
    files = {"HIDDEN", "ROW_GROUP", "SampleSet", "write_atomically", "cost_of"}
    assert pure | files | {"Source", "start_processes", "on_main_process", "generate"} == set(parallel.__all__)
    assert all(hasattr(module, name) for module in (generation, parallel, cli) for name in module.__all__)


def test_settings_are_json_or_words() -> None:
    pairs = ["choice_temperature=4", "masking_schedule=linear", "top_p=null", "exploration_ratio=[1.0, 0.0]"]
    expected = {"choice_temperature": 4, "masking_schedule": "linear", "top_p": None, "exploration_ratio": [1.0, 0.0]}
    assert scheduler_settings(pairs, HybridScheduler) == expected


@pytest.mark.parametrize("pair", ["exploration_ratio=0.5", "choice_temperature", "=3"])
def test_settings_that_the_scheduler_does_not_have(pair: str) -> None:
    with pytest.raises(ValueError, match="key=value pairs with the keys of MomentScheduler"):
        scheduler_settings([pair], MomentScheduler)
