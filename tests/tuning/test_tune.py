"""`hf-maskdiff tune` from the command to the presets, on the shipped models; what was stopped goes on to the same."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import antiberty_wheel as upstream
import numpy as np
import pytest
import torch
from PIL import Image

from hf_maskdiff import MaskedDiffusionScheduler, MaskedDiffusionTextPipeline, MDLMPipeline, MomentScheduler
from hf_maskdiff.conversion.convert import convert
from hf_maskdiff.evaluation.samples import TextSamples
from hf_maskdiff.evaluation.text_metrics import sentence_entropy
from hf_maskdiff.likelihood import Stratified
from hf_maskdiff.tuning.front import Score
from hf_maskdiff.tuning.judging import OwnLikelihood
from hf_maskdiff.tuning.results import Found
from hf_maskdiff.tuning.space import AS_SHIPPED, candidates
from hf_maskdiff_cli import main
from hf_maskdiff_cli.tune import add_arguments

PLAYS, DIGITS = "pipelines/mdlm-shakespeare", "pipelines/maskgit-mnist"


def command(folder: Path, *more: str) -> list[str]:
    own = ["--pipeline", PLAYS, "--output_dir", str(folder), "--passes", "2", "--samplers", "HaltonScheduler"]
    sizes = ["--choice_temperatures", "none", "4", "--num_seeds", "2", "--block_size", "2", "--batch_size", "8"]
    return ["tune", *own, *sizes, "--own_likelihood", "2", "--max_passes", "400", *more]


def test_the_space_holds_each_candidate_once() -> None:
    shipped = MomentScheduler(mask_token_id=16, codebook_size=16, choice_temperature=4.0, masking_schedule="linear")
    names = ["MomentScheduler", "MaskGITScheduler", "ThresholdScheduler", "UniformScheduler"]
    found = candidates(shipped, [1, 8], names, [None, 4.0, 16.0], [1, 2], [0.9])
    at_8 = [one.name for one in found if one.level == 8]
    moment = ["Moment 4, R = 2", "Moment 16", "Moment 16, R = 2"]  # Moment 4 is the pipeline's own
    uniform = [f"Uniform{one}{groups}" for one in ("", " 4", " 16") for groups in ("", ", R = 2")]
    others = ["MaskGIT 4", "MaskGIT 16", "Threshold 0.9", "Threshold 0.9, R = 2"]
    assert sorted(at_8) == sorted([AS_SHIPPED, *moment, *uniform, *others])
    assert not any("R = 2" in one.name for one in found if one.level == 1)
    assert len({one.key for one in found}) == len(found)
    for one in found:
        assert one.num_inference_steps == one.level - one.num_substeps + 1
        assert one.scheduler.config.masking_schedule == "linear"
        assert (one.scheduler.config.mask_token_id, one.scheduler.config.codebook_size) == (16, 16)
    revising = candidates(shipped, [8], ["PathPlanningScheduler", "FreeCorrectionScheduler"], [4.0], [1, 2], [])
    assert not any("R = 2" in one.name for one in revising)
    threshold = next(one.scheduler for one in found if one.name == "Threshold 0.9")
    assert (threshold.config.threshold, threshold.config.follow_schedule) == (0.9, True)
    assert next(one.scheduler for one in found if one.name == "Uniform").config.choice_temperature is None


def test_further_settings_are_tried_of_the_samplers_that_have_them() -> None:
    shipped = MomentScheduler(mask_token_id=16, codebook_size=16, choice_temperature=4.0, min_distance=2)
    names = ["MomentScheduler", "MaskGITScheduler", "PathPlanningScheduler"]
    variations = [("min_distance", [2, 3]), ("measure", ["moment", "drawn"]), ("eta", [-1.0, 1.0])]
    found = {one.name: one for one in candidates(shipped, [8], names, [4.0], [1], [], variations[:2])}
    moment = ["Moment 4, min_distance 3"]  # at 2 it is the pipeline's own
    planned = ["PathPlanning 4, measure moment", "PathPlanning 4"]
    assert sorted(found) == sorted([AS_SHIPPED, "Uniform", "MaskGIT 4", *moment, *planned])
    assert [found[name].scheduler.config.measure for name in planned] == ["moment", "drawn"]
    config = found["Moment 4, min_distance 3"].scheduler.config
    assert (config.min_distance, config.choice_temperature) == (3, 4.0)
    temperatures = candidates(shipped, [8], names, [4.0], [1], [], [("temperature", [0.5, 1.0])])
    assert len({one.key for one in temperatures}) == len(temperatures) == 2 + 2 * 3 - 1
    with pytest.raises(ValueError, match=r"-1\.0"):
        candidates(shipped, [8], names, [4.0], [1], [], variations)


def test_further_settings_in_the_shell(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    words = command(tmp_path)[1:]
    assert parser.parse_args(words).vary is None
    found = parser.parse_args([*words, "--vary", "min_distance=1,3", "measure=drawn,moment", "standing=true"]).vary
    assert found == [("min_distance", [1, 3]), ("measure", ["drawn", "moment"]), ("standing", [True])]
    for wrong in ("min_distance", "min_distance=", "choice_temperature=3"):
        with pytest.raises(SystemExit):
            parser.parse_args([*words, "--vary", wrong])
        assert "without an option of its own" in capsys.readouterr().err
    assert main(command(tmp_path / "out", "--vary", "min_distanc=3")) == 1
    assert "`vary` must name settings of the samplers that are searched, got 'min_distanc'" in capsys.readouterr().err


def test_a_row_that_new_seeds_belie_is_marked() -> None:
    own = candidates(MomentScheduler(mask_token_id=16), [8], [], [], [1], [])[0]

    def found(searched: Score | None, again: float) -> bool:
        return Found(own, searched, Score(again, 0.3, 1.0), 8.0, 0.1, 0.0, True).is_overfitted

    assert found(Score(1.0, 0.4, 1.0), 2.1)  # by more than twice the common error, 0.5
    assert not found(Score(1.0, 0.4, 1.0), 1.9)
    assert not found(Score(3.2, 0.4, 1.0), 2.1)  # better than it seemed
    assert not found(None, 2.1)


def test_a_search_chooses_what_is_diverse_and_writes_presets(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(command(tmp_path / "one", "--max_passes", "3")) == 1
    assert "Raise it, or search less" in capsys.readouterr().err
    assert main(command(tmp_path / "one")) == 0  # a budget that was refused may be raised in the same folder
    told = capsys.readouterr().out
    found = json.loads((tmp_path / "one" / "results.json").read_text())
    trials = json.loads((tmp_path / "one" / "tune.json").read_text())["trials"]
    cost = sum(one["num_samples"] * (2 + one["passes"]) for one in trials)
    assert cost == pytest.approx(found["settings"]["plan"]["passes"], rel=0.05)
    assert cost <= 400 * 1.05
    assert all(one["passes"] == pytest.approx(2, abs=0.05) for one in trials)  # also in groups
    held_out = [one for one in trials if one["seed"] >= 1000]
    assert {one["seed"] for one in held_out} == {1000, 1001}
    chosen = [row for row in found["records"] if any(word in row["sampler"] for word in ("Halton", "Uniform"))]
    assert len(chosen) == 1
    sampler = found["samplers"][chosen[0]["sampler"]]
    assert sampler["made_with"]["is_chosen"]  # the pipeline's own repeats itself at two steps
    quality = next(iter(found["measures"]))
    assert chosen[0]["measures"][quality]["value"] == pytest.approx(
        np.mean([one["score"]["value"] for one in held_out if "as-it-is" not in one["candidate"]])
    )
    preset = tmp_path / "one" / "presets" / "2-passes"
    assert type(MaskedDiffusionScheduler.from_pretrained(preset)).__name__ == sampler["scheduler"]["_class_name"]
    card = (preset / "README.md").read_text()
    assert "## How it was found" in card
    assert "new seeds" in card
    assert (tmp_path / "one" / "tune.png").stat().st_size > 5000
    assert (tmp_path / "one" / "tune.md").read_text().strip() in told
    _goes_on(tmp_path / "one", capsys)


def _goes_on(folder: Path, capsys: pytest.CaptureFixture) -> None:
    """The same command after a stop makes what is missing, and finds the same; with other settings it refuses."""
    before, path = json.loads((folder / "tune.json").read_text()), folder / "tune.json"
    path.write_text(json.dumps(before | {"trials": before["trials"][:3]}))
    assert main(command(folder)) == 0
    after = json.loads(path.read_text())
    for one, other in zip(before["trials"], after["trials"], strict=True):
        assert one["score"]["value"] == pytest.approx(other["score"]["value"], abs=1e-5)
        assert (one["candidate"], one["seed"]) == (other["candidate"], other["seed"])
    capsys.readouterr()
    assert main(command(folder, "--seed", "1")) == 1
    assert "must be new, or hold a search of the same settings, got other seed" in capsys.readouterr().err


def test_the_model_s_own_likelihood_is_that_of_the_pipeline() -> None:
    pipe = MDLMPipeline.from_pretrained(PLAYS)
    pipe.set_progress_bar_config(disable=True)
    texts = ["ROMEO:\nWhat light", "to be or not to be", "KING"]
    tokens = [torch.tensor(pipe.tokenizer(text).input_ids) for text in texts]
    score = OwnLikelihood(pipe, 512, 64)(TextSamples("three", texts, tokens))
    expected = pipe.log_likelihood(None, texts, 512, Stratified(512))
    nats = -(expected.log_likelihoods / expected.num_tokens)
    assert score.value == pytest.approx(nats.mean().item(), rel=0.05)
    assert score.error == pytest.approx(nats.std().item() / 3**0.5, rel=0.2)
    assert score.diversity == pytest.approx(sentence_entropy(tokens).mean().item())


def test_what_a_tokenizer_adds_around_a_prompt_is_not_scored(tmp_path: Path) -> None:
    """A set that was drawn from prompts has it among its tokens, one without prompts has not."""
    convert(upstream.write_wheel(tmp_path / "antiberty.whl", upstream.contents()), tmp_path / "antiberty")
    pipe = MaskedDiffusionTextPipeline.from_pretrained(tmp_path / "antiberty")
    pipe.set_progress_bar_config(disable=True)
    texts = ["EVQLVESGG", "QVQLQQW"]
    whole = [torch.tensor(pipe.tokenizer(text).input_ids) for text in texts]
    bare = [torch.tensor(pipe.tokenizer(text, add_special_tokens=False).input_ids) for text in texts]
    assert [len(one) - len(other) for one, other in zip(whole, bare, strict=True)] == [2, 2]
    judge = OwnLikelihood(pipe, 4, 8)
    found = judge(TextSamples("with", texts, whole))
    assert found == judge(TextSamples("without", texts, bare))
    assert found.diversity == pytest.approx(sentence_entropy(bare).mean().item())


@pytest.mark.exhaustive
def test_images_are_searched_too(tmp_path: Path) -> None:
    rng, real = np.random.default_rng(0), tmp_path / "real"
    real.mkdir()
    for number in range(100):
        Image.fromarray(rng.integers(0, 256, (28, 28), dtype=np.uint8)).save(real / f"{number}.png")
    judge = ["--reference", str(real), "--network", f"{DIGITS}/digit_classifier"]
    space = ["--passes", "2", "--samplers", "UniformScheduler", "--choice_temperatures", "4", "--num_substeps", "1"]
    sizes = ["--max_passes", "2500", "--num_seeds", "1", "--min_diversity", "0"]
    words = ["tune", "--pipeline", DIGITS, "--output_dir", str(tmp_path / "out"), *judge, *space, *sizes]
    assert main(words) == 0
    found: dict[str, Any] = json.loads((tmp_path / "out" / "results.json").read_text())
    assert all(one["value"] > 0 for row in found["records"] for one in row["measures"].values())
    assert sum(one["made_with"]["is_chosen"] for one in found["samplers"].values()) == 1
    trials = json.loads((tmp_path / "out" / "tune.json").read_text())["trials"]
    assert found["settings"]["budget"] == 2500 >= sum(one["num_samples"] * one["passes"] for one in trials)


@pytest.mark.exhaustive
def test_a_budget_in_seconds_is_converted_once(tmp_path: Path) -> None:
    words = command(tmp_path / "out")
    at = words.index("--max_passes")
    words[at : at + 2] = ["--max_seconds", "8"]
    assert main(words) == 0
    budget = json.loads((tmp_path / "out" / "tune.json").read_text())["budget"]
    assert budget > 50
    assert main(words) == 0
    assert json.loads((tmp_path / "out" / "tune.json").read_text())["budget"] == budget
