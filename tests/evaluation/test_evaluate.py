"""`hf-maskdiff evaluate` as a user runs it: folders and pipelines, one set or several, and bad input."""

from __future__ import annotations

import math
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertLMHeadModel, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from hf_maskdiff.cli import main
from hf_maskdiff.evaluation.digit_classifier import DigitClassifier
from hf_maskdiff.evaluation.frechet import feature_statistics, frechet_distance
from hf_maskdiff.evaluation.image_metrics import inception_score
from hf_maskdiff.evaluation.report import Report, Row, SetResult, rows_of
from hf_maskdiff.evaluation.samples import ImageSamples, TextSamples, load_samples
from hf_maskdiff_cli.results import Record, Results, combined, read_results

ROOT = Path(__file__).parents[2]
WORDS = ["the", "king", "lord", "sword", "speaks", "and", "no", "more"]


def images_in(folder: Path, count: int, seed: int = 0, side: int = 8) -> Path:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for i in range(count):
        pixels = rng.integers(0, 256, (side, side), dtype=np.uint8) // (1 + i % 3)
        Image.fromarray(pixels).save(folder / f"{i:03}.png")
    return folder


def texts_in(folder: Path, count: int, seed: int = 0, length: int = 9) -> Path:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for i in range(count):
        (folder / f"{i:03}.txt").write_text(" ".join(rng.choice(WORDS, length)))
    return folder


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("classifier")
    network = DigitClassifier(sample_size=8, feature_size=12, block_out_channels=(4, 8)).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    network.save_pretrained(folder)
    return folder


def save_tokenizer(folder: Path, words: list[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=words[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    fast.save_pretrained(folder)
    return fast


def randomise(model: torch.nn.Module) -> None:
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("judge")
    config = GPT2Config(vocab_size=8, n_positions=32, n_embd=16, n_layer=2, n_head=2, eos_token_id=None)
    model = GPT2LMHeadModel(config)
    randomise(model)
    model.save_pretrained(folder)
    save_tokenizer(folder, WORDS)
    return folder


def evaluate(*arguments: str | Path) -> None:
    assert main(["evaluate", *map(str, arguments)]) == 0


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    capsys.readouterr()
    assert main(["evaluate", *map(str, arguments)]) == 1
    return capsys.readouterr().err


def report_of(folder: Path) -> dict[str, Any]:
    assert {path.name for path in folder.glob("report.*")} == {"report.md", "report.json", "report.png"}
    assert (folder / "report.png").stat().st_size > 5_000
    results = read_results(folder / "report.json")
    rows = [
        {
            "name": row.sampler,
            "num_substeps": row.num_substeps,
            "measures": measures_of(row),
            "sets": sets_of(results, row),
        }
        for row in combined(results.records)
    ]
    return {"rows": rows, "settings": results.settings, "legend": results.measures}


def measures_of(record: Record) -> dict[str, Any]:
    return {name: {"value": one.value, "error": one.error} for name, one in record.measures.items()}


def sets_of(results: Results, row: Record) -> list[dict[str, Any]]:
    made = results.samplers[row.sampler]
    same = [one for one in results.records if (one.sampler, one.steps) == (row.sampler, row.steps)]
    return [
        {
            "num_samples": one.num_samples,
            "passes": one.passes,
            "seconds": one.seconds,
            "measures": measures_of(one),
            "configuration": {**made.made_with, "scheduler": made.scheduler, "seed": (*one.seeds, None)[0]},
        }
        for one in same
    ]


# --- images -----------------------------------------------------------------------------------------------------------


def test_images_of_a_folder(classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    real, made = images_in(tmp_path / "real", 40), images_in(tmp_path / "made" / "class", 30, seed=1)
    evaluate(tmp_path / "made", "--reference", real, "--network", classifier, "--output_dir", tmp_path / "out")

    def features(folder: Path) -> np.ndarray:
        pixels = np.stack([np.asarray(Image.open(path)) for path in sorted(folder.glob("*.png"))])
        return DigitClassifier.from_pretrained(classifier).read(torch.tensor(pixels)[:, None])[1].numpy()

    expected = frechet_distance(*feature_statistics(features(made)), *feature_statistics(features(real)))
    (row,) = report_of(tmp_path / "out")["rows"]
    assert row["measures"]["Frechet distance"]["value"] == pytest.approx(expected, rel=1e-5)
    assert 0 < row["measures"]["Frechet distance"]["error"] < expected
    pixels = torch.tensor(np.stack([np.asarray(Image.open(path)) for path in sorted(made.glob("*.png"))]))[:, None]
    logits = DigitClassifier.from_pretrained(classifier).eval()(pixels / 255, return_dict=False)[0]
    assert row["measures"]["Inception score"]["value"] == pytest.approx(inception_score(logits)[0], rel=1e-5)
    assert row["sets"][0]["num_samples"] == 30
    assert f"| {tmp_path / 'made'} | 1 x 30 |" in capsys.readouterr().out


def test_statistics_are_a_reference(classifier: Path, tmp_path: Path) -> None:
    real, made = images_in(tmp_path / "real", 40), images_in(tmp_path / "made", 30, seed=1)
    statistics = tmp_path / "real.npz"
    evaluate(real, "--network", classifier, "--save_statistics", statistics)
    for reference, folder in ((real, "a"), (statistics, "b")):
        evaluate(made, "--reference", reference, "--network", classifier, "--output_dir", tmp_path / folder)
    first, second = (report_of(tmp_path / name)["rows"][0]["measures"] for name in "ab")
    assert first["Frechet distance"]["value"] == pytest.approx(second["Frechet distance"]["value"], rel=1e-9)
    with np.load(statistics) as arrays:
        assert arrays["count"] == 40


def test_a_pipeline_s_seeds_are_one_row(
    make_pipeline: Callable[..., Any], classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe = make_pipeline()
    pipe.vqvae.quantize.embedding.weight.data.normal_()
    pipe.save_pretrained(tmp_path / "pipe")
    real = images_in(tmp_path / "real", 40)
    command = ["--pipeline", tmp_path / "pipe", "--num_samples", "16", "--num_inference_steps", "3", "--num_seeds", "2"]
    command += ["--scheduler_config", "choice_temperature=6", "masking_schedule=linear"]
    command += ["--network", classifier, "--reference", real, "--output_dir", tmp_path / "out"]
    evaluate(*command)
    report = report_of(tmp_path / "out")
    (row,) = report["rows"]
    assert [one["configuration"]["seed"] for one in row["sets"]] == [0, 1]
    assert all(one["passes"] == 3 and one["seconds"] > 0 for one in row["sets"])
    assert row["sets"][0]["configuration"]["scheduler"]["_class_name"] == "MomentScheduler"
    assert row["sets"][0]["configuration"]["scheduler"]["masking_schedule"] == "linear"
    values = [one["measures"]["Frechet distance"]["value"] for one in row["sets"]]
    assert row["measures"]["Frechet distance"]["value"] == pytest.approx(sum(values) / 2)
    assert row["measures"]["Frechet distance"]["error"] == pytest.approx(abs(values[0] - values[1]) / 2)
    # Nothing is made again, and the sets judged as folders are the same row.
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.parquet")}
    evaluate(*command)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.parquet")} == before
    assert "which holds seed-0, seed-1" in refused(capsys, tmp_path / "out", "--network", classifier)
    folders = sorted((tmp_path / "out").glob("seed-*"))
    shutil.copytree(folders[0], tmp_path / "copy")
    error = refused(capsys, *folders, tmp_path / "copy", "--network", classifier)
    assert "must have different seeds, got the seeds [0, 1, 0]" in error
    evaluate(*folders, "--network", classifier, "--reference", real, "--output_dir", tmp_path / "again")
    assert report_of(tmp_path / "again")["rows"] == report["rows"]
    printed = capsys.readouterr().out
    assert f"| Moment 6, 3 steps ({tmp_path / 'out'}) | 2 x 16 | 0, 1 |" in printed
    assert '"masking_schedule": "linear"' in printed


def test_partial_passes_count_as_the_part_they_are(
    make_pipeline: Callable[..., Any], classifier: Path, tmp_path: Path
) -> None:
    make_pipeline().save_pretrained(tmp_path / "pipe")
    command = ["--pipeline", tmp_path / "pipe", "--num_samples", "13", "--num_inference_steps", "4", "--num_seeds", "1"]
    command += ["--scheduler_config", "choice_temperature=6.0"]
    evaluate(*command, "--num_substeps", "2", "--network", classifier, "--output_dir", tmp_path / "out")
    (row,) = report_of(tmp_path / "out")["rows"]
    # Four full passes; the partial ones go over all 16 positions once, or over padding where a step reveals one.
    assert 4 < row["sets"][0]["passes"] <= 6
    assert (row["name"], row["num_substeps"]) == ("Moment 6", 2)


# --- texts ------------------------------------------------------------------------------------------------------------


def test_texts_of_a_folder(judge: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made, real = texts_in(tmp_path / "made", 25), texts_in(tmp_path / "real", 30, seed=1)
    out = tmp_path / "out"
    evaluate(made, "--judge", judge, "--reference", real, "--ngram", real, "--output_dir", out)
    (row,) = report_of(out)["rows"]
    assert list(row["measures"]) == [
        *("perplexity", "nats per character", "entropy", "distinct-1", "distinct-2", "distinct-4", "MAUVE")
    ]
    model, tokenizer = GPT2LMHeadModel.from_pretrained(judge), PreTrainedTokenizerFast.from_pretrained(judge)
    total = count = 0
    entropies = []
    for path in sorted(made.glob("*.txt")):  # text by text, by the model's own loss
        ids = torch.tensor([tokenizer(path.read_text()).input_ids])
        total += model(ids, labels=ids).loss.item() * (ids.shape[1] - 1)
        count += ids.shape[1] - 1
        shares = np.bincount(ids[0].numpy()) / ids.shape[1]
        entropies.append(-sum(p * math.log(p) for p in shares if p > 0))
    assert row["measures"]["perplexity"]["value"] == pytest.approx(math.exp(total / count), rel=1e-4)
    assert row["measures"]["entropy"]["value"] == pytest.approx(sum(entropies) / 25)
    assert row["measures"]["entropy"]["error"] == pytest.approx(np.std(entropies, ddof=1) / 5)
    assert "tokens of entropy: the judge's" in capsys.readouterr().out


def test_a_judge_that_is_not_there_is_known_before_samples_are_made(
    make_pipeline: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_pipeline().save_pretrained(tmp_path / "pipe")
    command = ["--pipeline", tmp_path / "pipe", "--num_samples", "8", "--output_dir", tmp_path / "out"]
    assert "Error no file named config.json" in refused(capsys, *command, "--network", tmp_path)
    assert not (tmp_path / "out").exists()


def test_texts_too_short_for_an_n_gram_are_left_out_of_it(tmp_path: Path) -> None:
    made = texts_in(tmp_path / "made", 3)
    (made / "short.txt").write_text("ab")
    evaluate(made, "--output_dir", tmp_path / "out")
    (row,) = report_of(tmp_path / "out")["rows"]
    texts = [path.read_text() for path in sorted(made.glob("*.txt"))]
    grams = [text[i : i + 4] for text in texts for i in range(len(text) - 3)]
    assert row["measures"]["distinct-4"]["value"] == pytest.approx(len(set(grams)) / len(grams))
    assert row["sets"][0]["num_samples"] == 4


def test_likelihood_comes_with_entropy_and_without_a_judge_there_is_no_likelihood(tmp_path: Path) -> None:
    made = texts_in(tmp_path / "made", 4)
    evaluate(made, "--output_dir", tmp_path / "out")
    report = report_of(tmp_path / "out")
    assert list(report["legend"]) == ["entropy", "distinct-1", "distinct-2", "distinct-4"]
    assert report["settings"]["tokens of entropy"] == "characters"


def test_the_set_s_own_tokens_are_counted(tmp_path: Path) -> None:
    command = ["--pipeline", ROOT / "pipelines" / "mdlm-shakespeare", "--num_samples", "3", "--num_seeds", "2"]
    evaluate(*command, "--num_inference_steps", "2", "--output_dir", tmp_path / "out", "--num_substeps", "2")
    report = report_of(tmp_path / "out")
    assert report["settings"]["tokens of entropy"] == "the set's"
    samples = load_samples(tmp_path / "out" / "seed-1")
    assert [len(ids) for ids in samples.tokens] == [64] * 3
    assert 2.5 < report["rows"][0]["sets"][0]["passes"] <= 3.1


# --- what cannot be judged --------------------------------------------------------------------------------------------


def test_folders_that_hold_nothing_or_the_wrong_thing(
    classifier: Path, judge: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, texts = images_in(tmp_path / "images", 20), texts_in(tmp_path / "texts", 20)
    (tmp_path / "empty").mkdir()
    assert "holds none. Check the path" in refused(capsys, tmp_path / "empty", "--network", classifier)
    assert "either folders of samples or --pipeline" in refused(capsys, "--network", classifier)
    assert "must be all images or all texts" in refused(capsys, images, texts, "--network", classifier)
    assert "must be images, got texts" in refused(capsys, images, "--network", classifier, "--reference", texts)
    assert "texts are compared with texts" in refused(capsys, texts, "--judge", judge, "--reference", images)
    assert "which needs --judge" in refused(capsys, texts, "--reference", texts)
    assert "needs --num_samples and --output_dir" in refused(capsys, "--pipeline", "p", "--num_samples", "3")
    assert "must be a folder, or a data set of the Hub" in refused(capsys, tmp_path / "missing")
    for name in ("--eval_batch_size", "--image_size", "--num_seeds"):
        assert "at least 1, got 0" in refused(capsys, images, name, "0")
    error = refused(capsys, images, "--network", classifier, "--image_size", "5000000")
    assert "got 32 images of 5000000 x 5000000" in error
    assert "a smaller --image_size" in error
    assert "268435456 pixels" in refused(capsys, images, "--image_size", "4097", "--eval_batch_size", "16")
    assert "pixels" not in refused(capsys, images, "--image_size", "4096", "--eval_batch_size", "16", "--judge", "x")
    assert "--judge is not for images, got 'x'" in refused(capsys, images, "--network", classifier, "--judge", "x")
    assert "--image_size is not for texts, got 8" in refused(capsys, texts, "--image_size", "8")
    assert "--num_samples is for --pipeline" in refused(capsys, images, "--num_samples", "8")
    assert "--device must be a device of this machine, such as cpu" in refused(capsys, images, "--device", "gpu")
    assert "a set counts once" in refused(capsys, texts, texts)
    assert "must name a file that ends in .npz" in refused(capsys, images, "--save_statistics", tmp_path / "x")
    assert "must not lie among the samples" in refused(capsys, images, "--output_dir", images / "report")
    assert "keeps those of one set" in refused(capsys, images, images, "--save_statistics", tmp_path / "x.npz")
    with pytest.raises(SystemExit):
        main(["evaluate", str(images), "--nonsense", "3"])
    assert "unrecognized arguments: --nonsense 3" in capsys.readouterr().err


def test_without_torch_fidelity_faiss_or_matplotlib(
    judge: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    images = images_in(tmp_path / "images", 20)
    with monkeypatch.context() as context:
        context.setattr("hf_maskdiff_cli.evaluate.find_spec", lambda _: None)
        assert 'pip install "hf-maskdiff[evaluation]"' in refused(capsys, images, "--output_dir", tmp_path / "out")
    for name in ("torch_fidelity", "faiss"):
        monkeypatch.setitem(sys.modules, name, None)
    assert 'pip install "hf-maskdiff[fid]"' in refused(capsys, images)
    texts = texts_in(tmp_path / "texts", 20)
    error = refused(capsys, texts, "--judge", judge, "--reference", texts)
    assert 'pip install "hf-maskdiff[mauve]"' in error


def test_a_broken_image(classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = images_in(tmp_path / "images", 20)
    whole = (folder / "007.png").read_bytes()
    for broken in (whole[:60], b"no image", b""):
        (folder / "007.png").write_bytes(broken)
        error = refused(capsys, folder, "--network", classifier)
        assert "must be an image that can be read" in error
        assert "number 7" in error
    (folder / "007.png").write_bytes(whole)
    Image.new("L", (9, 8)).save(folder / "011.png")
    assert "8 x 8 and, at number 11" in refused(capsys, folder, "--network", classifier)


def test_a_broken_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = texts_in(tmp_path / "texts", 3)
    (folder / "001.txt").write_bytes(b"\xff\xfe\xfa")
    assert "001.txt" in refused(capsys, folder)
    (folder / "001.txt").write_text("")
    assert "at least 1 token(s), got one of 0" in refused(capsys, folder)


def test_broken_and_unfinished_sets(
    make_pipeline: Callable[..., Any], classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_pipeline().save_pretrained(tmp_path / "pipe")
    command = ["generate", "--pipeline", tmp_path / "pipe", "--num_samples", 12, "--output_dir", tmp_path / "set"]
    assert main([*map(str, command), "--num_inference_steps", "2", "--shard_size", "8", "--block_size", "4"]) == 0
    evaluate(tmp_path / "set", "--network", classifier)
    last = sorted((tmp_path / "set").glob("*.parquet"))[-1]
    content = last.read_bytes()
    last.write_bytes(content[: len(content) // 2])
    assert "must be whole" in refused(capsys, tmp_path / "set", "--network", classifier)
    last.unlink()
    assert "got 8 of 12 samples" in refused(capsys, tmp_path / "set", "--network", classifier)


def test_fewer_samples_than_features(classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    real, few = images_in(tmp_path / "real", 20), images_in(tmp_path / "few", 12, seed=1)
    error = refused(capsys, few, "--network", classifier, "--reference", real)
    assert "in 12 features needs more samples than that, got 12" in error
    one = images_in(tmp_path / "one", 1)
    assert "at least one sample per split, 10, got 1" in refused(capsys, one, "--network", classifier)


def test_references_of_another_network(classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = images_in(tmp_path / "images", 20)
    np.savez(tmp_path / "other.npz", mu=np.zeros(3), sigma=np.eye(3))
    np.savez(tmp_path / "wrong.npz", mean=np.zeros(12))
    for name, said in (("other.npz", "got 3 features"), ("wrong.npz", "`mu` and `sigma`"), ("none.npz", "none.npz")):
        assert said in refused(capsys, images, "--network", classifier, "--reference", tmp_path / name)


def test_judges_that_are_none(judge: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = texts_in(tmp_path / "texts", 3)
    bert = BertConfig(vocab_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    model = BertLMHeadModel(bert)
    randomise(model)
    model.save_pretrained(tmp_path / "bert")
    save_tokenizer(tmp_path / "bert", WORDS)
    assert "must be a causal language model, got a BertLMHeadModel" in refused(
        capsys, texts, "--judge", tmp_path / "bert"
    )
    save_tokenizer(tmp_path / "larger", [*WORDS, "purred"])
    error = refused(capsys, texts, "--judge", judge, "--judge_tokenizer", tmp_path / "larger")
    assert "must be that of the judge, got one of 9 tokens" in error
    assert "must name a causal language model" in refused(capsys, texts, "--judge", tmp_path / "texts")
    long = texts_in(tmp_path / "long", 2, length=40)
    assert "at most 32 tokens" in refused(capsys, long, "--judge", judge)
    evaluate(long, "--judge", judge, "--max_length", "32")
    assert "at least 20 samples on each side" in refused(capsys, texts, "--judge", judge, "--reference", texts)


def test_sets_that_count_other_tokens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["generate", "--pipeline", ROOT / "pipelines" / "mdlm-shakespeare", "--num_samples", 2, "--output_dir"]
    assert main([*map(str, command), str(tmp_path / "set"), "--num_inference_steps", "2"]) == 0
    error = refused(capsys, tmp_path / "set", texts_in(tmp_path / "texts", 2))
    assert "must count the same tokens, got the set's and" in error


# --- the report and the sets ------------------------------------------------------------------------------------------


def test_rows_group_what_differs_in_the_seed_alone() -> None:
    results = [
        SetResult("a", 10, {"m": (1.0, 0.5)}, {"seed": 0, "num_inference_steps": 4}, 4.0, 2.0),
        SetResult("b", 10, {"m": (3.0, 0.5)}, {"seed": 1, "num_inference_steps": 8}, 8.0, 2.0),
        SetResult("c", 10, {"m": (2.0, 0.5)}, {"seed": 1, "num_inference_steps": 4}, 4.0, None),
        SetResult("d", 10, {"m": (5.0, math.nan)}),
    ]
    rows = rows_of(results)
    assert [[one.name for one in row.sets] for row in rows] == [["a", "c"], ["b"], ["d"]]
    assert rows[0].measures["m"] == pytest.approx((1.5, 0.5))
    assert rows[1].measures["m"] == (3.0, 0.5)
    assert (rows[0].mean("passes"), rows[0].mean("seconds")) == (4.0, None)
    table = Report(rows, {"m": "what it is"}, {"network": "n"}).table().splitlines()
    assert table[2] == "| a | 2 x 10 | 0, 1 | 1.50 +- 0.50 | 4 |  |"
    assert table[4] == "| d | 1 x 10 |  | 5 |  |  |"
    assert isinstance(rows[0], Row)


def test_samples_are_found_out(tmp_path: Path) -> None:
    images = load_samples(images_in(tmp_path / "images", 5))
    assert isinstance(images, ImageSamples)
    wide = ImageSamples("wide", 1, lambda _: Image.fromarray(np.arange(800, dtype=np.uint8).reshape(20, 40) // 4))
    (square,) = wide.batches("L", 1, image_size=20)  # nothing to resize: the middle as it is
    assert square[0, 0, 0].tolist() == [value // 4 for value in range(10, 30)]
    (small,) = wide.batches("L", 1, image_size=7)
    assert small.shape == (1, 1, 7, 7)
    batches = list(images.batches("RGB", 2))
    assert [tuple(batch.shape) for batch in batches] == [(2, 3, 8, 8), (2, 3, 8, 8), (1, 3, 8, 8)]
    assert batches[0].dtype == torch.uint8
    some = load_samples(tmp_path / "images", limit=3)
    assert some.count == 3
    whole = [batch.tolist() for batch in images.batches("L", 1)]
    assert all(batch.tolist() in whole for batch in some.batches("L", 1))
    texts = load_samples(texts_in(tmp_path / "texts", 5))
    assert isinstance(texts, TextSamples)
    assert texts.count == 5
    with pytest.raises(ValueError, match="got the file"):
        load_samples(tmp_path / "texts" / "000.txt")


def test_the_example_says_the_same(
    classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = images_in(tmp_path / "images", 20)
    evaluate(folder, "--network", classifier)
    expected = capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["evaluate.py", str(folder), "--network", str(classifier)])
    runpy.run_path(str(ROOT / "examples" / "evaluate.py"), run_name="__main__")
    assert capsys.readouterr().out == expected
