"""The harness itself, on task files of this machine and small models: scores, seeds, batches, its cache, chats."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_llada
import torch

from hf_maskdiff import ConfidenceScheduler, MaskedDiffusionTextPipeline, MDLMPipeline
from hf_maskdiff_cli import main

lm_eval = pytest.importorskip("lm_eval", reason='lm-evaluation-harness is not installed: pip install -e ".[lm-eval]"')

from hf_maskdiff.harness import HarnessModel  # noqa: E402
from hf_maskdiff.likelihood import AllMasks  # noqa: E402

PLAYS = "pipelines/mdlm-shakespeare"
QUESTIONS = [
    {"question": "ROMEO:\nWhat", "choices": ["light", "zebra quark", "xylophone"], "answer": 0},
    {"question": "O Romeo, Romeo! wherefore art thou", "choices": ["quark zz", "Romeo", "42"], "answer": 1},
    {"question": "KING", "choices": ["bb77", "RICHARD"], "answer": 0},
]
LONG = "{{question}} and so it was that every man went home again, for night had come, and all was still. " * 3
TASKS = {
    "choice": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc"}],
    },
    "write": {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": " light",
        "generation_kwargs": {"until": ["\n", "."], "max_gen_toks": 8},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    },
    "roll": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": LONG,
        "metric_list": [{"metric": "word_perplexity", "aggregation": "weighted_perplexity", "higher_is_better": False}],
    },
}


@pytest.fixture(scope="module", autouse=True)
def _offline(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_DATASETS_OFFLINE", "1")
        patch.setenv("HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("datasets")))
        yield


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    data = folder / "questions.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in QUESTIONS))
    for name, task in TASKS.items():
        where = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}, "test_split": "test"}
        (folder / f"{name}.yaml").write_text(json.dumps({"task": f"tiny_{name}"} | where | task))  # JSON is YAML too
    return folder


@pytest.fixture(scope="module")
def evaluate(tasks: Path) -> Callable[..., dict[str, Any]]:
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(tasks), include_defaults=False)

    def run(names: str, model: Any = "hf_maskdiff", args: str | None = None, **more: Any) -> dict[str, Any]:
        return lm_eval.simple_evaluate(
            model,
            args if isinstance(model, str) else None,
            tasks=[f"tiny_{name}" for name in names.split()],
            task_manager=manager,
            bootstrap_iters=0,
            **more,
        )

    return run


def answers(results: dict[str, Any], name: str) -> list[Any]:
    return [sample["resps"] for sample in sorted(results["samples"][f"tiny_{name}"], key=lambda one: one["doc_id"])]


ARGUMENTS = f"pretrained={PLAYS},num_samples=16,scheduler=MomentScheduler,scheduler.choice_temperature=2,block_length=4"


def test_scores_are_those_of_the_pipeline(evaluate: Callable[..., dict[str, Any]]) -> None:
    found = evaluate("choice", args=f"pretrained={PLAYS},estimator=all_masks", batch_size="auto")
    pipe = MDLMPipeline.from_pretrained(PLAYS)
    pipe.set_progress_bar_config(disable=True)
    right = 0
    for line, given in zip(QUESTIONS, answers(found, "choice"), strict=True):
        texts = [f" {choice}" for choice in line["choices"]]
        expected = pipe.log_likelihood(line["question"], texts, estimator=AllMasks()).log_likelihoods
        assert [float(value) for ((value, _),) in given] == pytest.approx(expected.tolist(), abs=1e-4)
        right += int(expected.argmax()) == line["answer"]
    assert found["results"]["tiny_choice"]["acc,none"] == pytest.approx(right / len(QUESTIONS)) == pytest.approx(2 / 3)
    assert found["config"]["scheduler"] == type(pipe.scheduler).__name__


def test_a_seed_says_all_and_batches_nothing(evaluate: Callable[..., dict[str, Any]]) -> None:
    runs = [
        evaluate("choice write roll", args=args, batch_size=size)
        for args, size in ((ARGUMENTS, "auto"), (ARGUMENTS, 1), (f"{ARGUMENTS},seed=1,sampling_temperature=1", 2))
    ]
    for name in ("choice", "roll"):
        first, second, other = (json.dumps(answers(run, name)) for run in runs)
        numbers = [[float(x) for x in _numbers(json.loads(one))] for one in (first, second, other)]
        assert numbers[0] == pytest.approx(numbers[1], rel=1e-4)
        assert numbers[0] != pytest.approx(numbers[2], rel=1e-4)
    assert answers(runs[0], "write") == answers(runs[1], "write")
    assert answers(runs[0], "write") != answers(runs[2], "write")
    texts = [text for ((text,),) in answers(runs[0], "write")]
    assert not any(stop in text for text in texts for stop in "\n.")
    assert any(texts)


def _numbers(value: Any) -> list[Any]:
    if isinstance(value, list):
        return [one for item in value for one in _numbers(item)]
    return [] if isinstance(value, bool) or value in ("True", "False") else [value]


def test_answers_are_those_of_a_call(evaluate: Callable[..., dict[str, Any]]) -> None:
    pipe = MDLMPipeline.from_pretrained(PLAYS)
    pipe.set_progress_bar_config(disable=True)
    greedy = {"token_temperature": 0, "choice_temperature": 0, "masking_schedule": "linear"}
    pipe.scheduler = ConfidenceScheduler.from_config(pipe.scheduler.config, **greedy)
    found = evaluate("write", HarnessModel(pipe, block_length=4, batch_size=2))
    for line, ((text,),) in zip(QUESTIONS, answers(found, "write"), strict=True):
        call = {"max_new_tokens": 8, "block_length": 4, "num_inference_steps": 4, "sampling_temperature": 0}
        whole = pipe(line["question"], **call).texts[0]
        assert text == whole.removeprefix(line["question"]).split("\n")[0].split(".")[0]


def test_a_whole_text_is_the_sum_of_its_pieces(evaluate: Callable[..., dict[str, Any]]) -> None:
    model = HarnessModel(PLAYS, estimator="left_to_right", batch_size=64)
    (first, *_) = answers(evaluate("roll", model), "roll")
    ids = model.pipe.tokenizer(LONG.replace("{{question}}", QUESTIONS[0]["question"])).input_ids
    size, total = model.pipe.denoiser.model_length - 1, 0.0
    assert len(ids) > size
    for start in range(0, len(ids), size):
        known = ids[max(start - 1, 0) : start]
        row = known + ids[start : start + size]
        given = {"input_ids": [row], "mask": [[k >= len(known) for k in range(len(row))]]}
        total += model.pipe.log_likelihood(**given, estimator=model.estimator).log_likelihoods.item()
    assert float(first[0][0] if isinstance(first[0], list | tuple) else first[0]) == pytest.approx(total, abs=1e-2)


def test_an_interrupted_run_goes_on_from_the_harness_s_cache(
    evaluate: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = {"use_cache": str(tmp_path / "cache")}
    model = HarnessModel(PLAYS, num_samples=16, batch_size=1)
    whole = evaluate("choice write", model)
    passes = 0
    call = type(model.pipe).__call__

    def count(pipe: Any, *args: Any, **given: Any) -> Any:
        nonlocal passes
        passes += 1
        if passes == 3:
            raise KeyboardInterrupt
        return call(pipe, *args, **given)

    monkeypatch.setattr(type(model.pipe), "__call__", count)
    with pytest.raises(KeyboardInterrupt):
        evaluate("choice write", model, **cache)
    assert passes == 3
    again = evaluate("choice write", model, **cache)
    assert passes == 4  # only the text that was missing
    assert again["results"] == whole["results"]
    assert all(answers(again, name) == answers(whole, name) for name in ("choice", "write"))


@pytest.fixture(scope="module")
def llada(tmp_path_factory: pytest.TempPathFactory) -> MaskedDiffusionTextPipeline:
    pipe = MaskedDiffusionTextPipeline.from_pretrained(tiny_llada.write(tmp_path_factory.mktemp("llada")))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_chats_and_greedy_continuations(
    evaluate: Callable[..., dict[str, Any]], llada: MaskedDiffusionTextPipeline
) -> None:
    model = HarnessModel(llada, batch_size=4, check_greedy=True, num_samples=16)
    found = evaluate("write choice", model, apply_chat_template=True, limit=2)
    for line, ((text,),) in zip(QUESTIONS, answers(found, "write"), strict=False):
        chat = [{"role": "user", "content": line["question"]}]
        call = {"max_new_tokens": 8, "num_inference_steps": 8, "sampling_temperature": 0}
        expected = llada(chat, **call).texts[0]
        assert text == expected.split("\n")[0].split(".")[0]
    assert all(greedy in (False, "False") for given in answers(found, "choice") for ((_, greedy),) in given)
    # What the pipeline writes is greedy, and nothing else.
    ids = llada.tokenizer("Why").input_ids
    written = llada(input_ids=[ids], max_new_tokens=3, num_inference_steps=3, sampling_temperature=0).sequences[0]
    row = model.texts.pair("Why", "abc")
    same = type(row)(written, slice(len(ids), len(written)))
    one = [torch.Generator().manual_seed(0)]
    assert model._are_written([same], one) == [True]
    other = written.clone()
    other[-1] = (other[-1] + 1) % 100
    assert model._are_written([type(row)(other, same.own)], one) == [False]


def test_a_cache_serves_answers_alone(
    evaluate: Callable[..., dict[str, Any]], llada: MaskedDiffusionTextPipeline
) -> None:
    model = HarnessModel(llada, cache="dual", batch_size=4, num_samples=16)
    evaluate("write choice", model, limit=1)
    assert llada.denoiser.plan is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cache": "all"}, "`cache` must be one of prefix, dual, delayed, partial, got 'all'"),
        ({"estimator": "best"}, "`estimator` must be one of sobol, .* got 'best'"),
        ({"estimator": "pseudo", "group_size": 4}, "`group_size` must be left out for the estimator 'pseudo'"),
        ({"num_samples": 20}, "`num_samples` must be a multiple of 16"),
        ({"scheduler": "MomentSheduler"}, "Did you mean 'MomentScheduler'"),
        ({"scheduler.choice_temprature": 2}, "Did you mean"),
        ({"block_lenght": 4}, "got 'block_lenght'. Did you mean 'block_length'"),
        ({"batch_size": "many"}, "`batch_size` must be at least 1"),
        ({"dtype": "float31"}, "`dtype` must be .* got 'float31'"),
    ],
)
def test_errors(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HarnessModel(PLAYS, **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"num_sample": 3}, "got 'num_sample'. Did you mean 'num_samples'"), ({"dtype": "float16"}, "got 'dtype'")],
)
def test_an_open_pipeline_takes_nothing_that_opens_one(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HarnessModel(MDLMPipeline.from_pretrained(PLAYS), **arguments)


def test_a_chat_template_is_needed_for_chats(evaluate: Callable[..., dict[str, Any]]) -> None:
    with pytest.raises(ValueError, match="--apply_chat_template needs a tokenizer with a `chat_template`"):
        evaluate("choice", args=f"pretrained={PLAYS}", apply_chat_template=True)


@pytest.mark.exhaustive  # the program reads all of the harness's own task files first
def test_the_program(tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "lm_eval",
        "--model_args",
        f"{ARGUMENTS},estimator=llada,group_size=8,mask_counts=True",
        "--tasks",
        "tiny_choice",
    ]
    assert main([*words, "--include_path", str(tasks), "--output_path", str(tmp_path / "out"), "--limit", "2"]) == 0
    said = capsys.readouterr().out
    assert "hf_maskdiff" in said
    assert "tiny_choice" in said
    (report,) = (tmp_path / "out").rglob("results_*.json")
    found = json.loads(report.read_text())
    assert found["config"]["model"] == "hf_maskdiff"
    assert found["config"]["estimator"] == "LLaDACounts(group_size=8)"
    assert found["config"]["scheduler_config"]["choice_temperature"] == 2
