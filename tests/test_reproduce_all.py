"""benchmarks/reproduce.py: the plan fits its hours and says what it leaves out; small models go through to the end."""

from __future__ import annotations

import importlib
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from golden_data import GOLDEN, GOLDEN2, Model
from test_report import results
from test_reproduce import BLOCKS, PAGE, ROOT, stand_ins, text

from hf_maskdiff.cli import main as program
from hf_maskdiff.evaluation.digit_classifier import DigitClassifier
from hf_maskdiff_cli.results import read_results, write_results

__all__ = ["stand_ins", "text"]  # fixtures


@pytest.fixture
def reproduce(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("reproduce")


def never(words: Sequence[str], is_launched: bool) -> None:
    raise AssertionError(f"was run: {words}")


def harness(score: float) -> dict[str, Any]:
    found = {"exact_match,flexible-extract": score, "exact_match_stderr,flexible-extract": 0.01}
    return {"results": {"gsm8k": found}, "configs": {}, "config": {"model": "hf_maskdiff", "model_args": {}}}


# --- the plan ---------------------------------------------------------------------------------------------------------


def test_the_plan_says_everything_before_it_starts(
    reproduce: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    planned = reproduce.main(["--hours", "2", "--output_dir", str(tmp_path), "--plan"], never)
    said = capsys.readouterr().out
    assert {one.entry.family for one in planned} == {"mage", "halton", "mdlm", "sdtt", "llada"}
    assert 0 < sum(one.hours for one in planned if one.runs) <= 2
    by_name = {one.entry.name: one for one in planned}
    assert by_name["mage-maskgit-20"].obstacle == "needs --mage and --imagenet_val"
    assert by_name["halton-published-32"].obstacle == "needs --adm_statistics"
    assert by_name["llada-gsm8k"].obstacle.startswith("does not fit: ")
    assert by_name["llada-gsm8k"].hours > 100
    assert by_name["sdtt-ancestral-16"].runs
    assert "| llada-gsm8k | 1" in said
    for words in ("Apache-2.0", "none stated", "gpt2-large | 3.1 | MIT", "perplexity 51.3"):
        assert words in said
    listed = said.partition("Downloaded, ")[2].splitlines()[4:]
    total = sum(float(line.split(" | ")[1]) for line in listed if line.startswith("| "))
    assert f"about {total:.1f} GB in all" in said
    assert "openwebtext" not in said  # nobody asked for MAUVE
    assert list(tmp_path.iterdir()) == []


def test_a_plan_needs_no_folder(
    reproduce: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    reproduce.main(["--hours", "2", "--plan"], never)
    said = capsys.readouterr().out
    reproduce.main(["--hours", "2", "--plan", "--output_dir", "new"], never)
    assert said == capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(SystemExit):
        reproduce.main(["--hours", "2"], never)
    assert "--output_dir must be given for all but --plan" in capsys.readouterr().err


def test_what_is_done_corrects_the_estimates(reproduce: ModuleType) -> None:
    """An entry that took ten times as long as assumed makes the others longer, and what no longer fits is left out."""
    args = reproduce.parse_args(["--hours", "1", "--output_dir", "x"])
    entries = [entry for entry in reproduce.ENTRIES if entry.family == "sdtt"]
    first = reproduce.plan(entries, args, {})
    assert all(one.runs for one in first)
    args.hours = 5 * first[1].hours
    slow = reproduce.plan(entries, args, {entries[0].name: 10 * first[0].hours})
    assert slow[0].is_done
    assert slow[1].hours == pytest.approx(10 * first[1].hours)
    assert [one.runs for one in slow] == [False, False, 10 * first[2].hours <= args.hours]
    with pytest.raises(ValueError, match="`hours` must be above 0, got 0"):
        reproduce.parse_args(["--hours", "0", "--output_dir", "x"])


def test_what_fits_only_later_is_not_downloaded_in_silence(
    reproduce: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first entry takes no time, so that there is some for LLaDA, of which nothing had been said."""

    def command(words: Sequence[str], is_launched: bool) -> None:
        if words[0] == "evaluate":
            write_results(results(), Path(words[words.index("--output_dir") + 1]) / "report.json")
        if words[0] == "lm_eval":
            folder = Path(words[words.index("--output_path") + 1])
            folder.mkdir(parents=True)
            (folder / "results_1.json").write_text(json.dumps(harness(0.7)))

    model = str(ROOT / "pipelines" / "mdlm-shakespeare")
    options = ["--hours", "0.5", "--teraflops", "10", "--output_dir", str(tmp_path), "--sdtt", model]
    reproduce.main([*options, "--entries", "sdtt-ancestral-16", "llada-piqa"], command)
    before, _, after = capsys.readouterr().out.partition("\nllada-piqa: about")
    assert "| llada-piqa | 20." in before
    assert "GSAI-ML" not in before
    assert "GSAI-ML/LLaDA-8B-Base | 16 | MIT |" in after


def test_operations_are_those_of_the_page(reproduce: ModuleType) -> None:
    """The table of docs/reproduce.md, which `budget.py` prints."""
    entries = importlib.import_module("reproduce_entries")
    for family, name in {"mage": "MAGE ViT-B", "mdlm": "mdlm-owt", "halton": "Halton-MaskGIT base, 256"}.items():
        (row,) = (line for line in PAGE.splitlines() if line.startswith(f"| {name} |") and " M," in line)
        a_pass, decoding = entries.GFLOP[family]
        assert f"| {a_pass}, {decoding} |" in row
    names = [entry.name for entry in reproduce.ENTRIES]
    assert len(set(names)) == len(names)
    published = importlib.import_module("published_numbers")
    assert set(published.PUBLISHED) <= set(names)


def test_the_page_s_command(reproduce: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As the page has it; and the page's published numbers are the program's."""
    (line,) = (line for block in BLOCKS for line in block.splitlines() if "benchmarks/reproduce.py" in line)
    words = line.partition("#")[0].replace('"${HOURS:=8}"', "8").replace("out/", f"{tmp_path}/").split()
    reproduce.main(words[2:], never)
    assert "| mdlm-moment-32 |" in capsys.readouterr().out
    (table,) = (part for part in PAGE.split("\n\n") if part.startswith("| published |"))
    published = importlib.import_module("published_numbers").PUBLISHED
    for numbers in published.values():
        for one in numbers:
            shown = f"{100 * one.value:.1f} %" if ", " in one.measure else f"{one.value:g}"
            (row,) = (row for row in table.splitlines() if shown in row)
            assert row.endswith("| yes |" if one.was_seen else "| no |")


# --- a run ------------------------------------------------------------------------------------------------------------


def test_it_goes_on_where_it_was_stopped_and_a_failure_costs_itself_alone(
    reproduce: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tried: list[str] = []

    def command(words: Sequence[str], is_launched: bool) -> None:
        folder = Path(words[words.index("--output_path") + 1])
        tried.append(folder.name)
        if folder.name == "llada-piqa" and tried.count("llada-piqa") == 1:
            raise RuntimeError("out of\nmemory")
        if folder.name == "llada-gsm8k" and tried.count("llada-gsm8k") == 1:
            raise KeyboardInterrupt
        (folder / "model").mkdir(parents=True)
        (folder / "model" / "results_1.json").write_text(json.dumps(harness(0.7)))

    names = ["llada-gsm8k-dual", "llada-piqa", "llada-gsm8k"]
    options = ["--hours", "1000", "--output_dir", str(tmp_path), "--entries", *names]
    with pytest.raises(KeyboardInterrupt):
        reproduce.main(options, command)
    text = (tmp_path / "report.md").read_text()
    assert "| llada-piqa | failed after 0.00 hours: out of memory; the same command tries again |" in text
    assert "| llada-gsm8k | not begun; the same command goes on |" in text
    assert "llada-piqa failed: out of memory" in capsys.readouterr().out
    planned = reproduce.main(options, command)
    assert tried == [*names, *names[1:]]  # the first was done
    assert all(one.is_done for one in planned)
    text = (tmp_path / "report.md").read_text()
    row = "| llada-gsm8k | gsm8k, exact_match (flexible-extract) | 0.700 +- 0.010 | 0.703 | -0.003 | EVAL.md"
    assert row in text
    assert "## What is not there" not in text
    assert "was run" not in capsys.readouterr().out
    assert all(one.is_done for one in reproduce.main(options, never))
    with pytest.raises(ValueError, match=r"got others for images\. Pass the same ones"):
        reproduce.main([*options, "--images", "8"], never)


def test_a_command_is_a_process_whose_last_words_are_its_error(reproduce: ModuleType, tmp_path: Path) -> None:
    lines = [
        "import sys",
        "print('step 1', file=sys.stderr)",
        "sys.exit(None if sys.argv[1] == 'ok' else 'no such word')",
    ]
    launch = shlex.join([sys.executable, "-c", "; ".join(lines)])
    run = reproduce.as_program(reproduce.parse_args(["--hours", "1", f"--output_dir={tmp_path}", "--launch", launch]))
    run(["ok"], True)
    with pytest.raises(RuntimeError, match=r"^no such word$"):
        run(["generate"], True)
    assert (tmp_path / "log.txt").read_text() == "step 1\nstep 1\nno such word\n"


def test_what_was_cut_short_is_no_product(reproduce: ModuleType, tmp_path: Path) -> None:
    step = reproduce.Step(["convert", "source", str(tmp_path / "model")], tmp_path / "model")

    def cut(words: Sequence[str], is_launched: bool) -> None:
        Path(words[-1]).mkdir()
        (Path(words[-1]) / "half").touch()
        raise RuntimeError("cut")

    def whole(words: Sequence[str], is_launched: bool) -> None:
        assert not Path(words[-1]).exists()
        Path(words[-1]).mkdir()

    with pytest.raises(RuntimeError, match="cut"):
        reproduce.run_step(step, cut)
    assert not (tmp_path / "model").exists()
    reproduce.run_step(step, whole)
    assert list((tmp_path / "model").iterdir()) == []
    reproduce.run_step(step, never)


def command(words: Sequence[str], is_launched: bool) -> None:
    """In this process, which imports everything only once."""
    if program(list(words)):
        raise RuntimeError("it ended with an error")


def test_a_pipeline_to_the_end(reproduce: ModuleType, make_pipeline: Callable[..., Any], tmp_path: Path) -> None:
    """Of random weights, without what golden folders hold; it was converted already."""
    make_pipeline().save_pretrained(tmp_path / "pipe")
    network = DigitClassifier(sample_size=8, feature_size=6, block_out_channels=(4, 8))
    torch.manual_seed(0)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    network.save_pretrained(tmp_path / "network")
    rng = np.random.default_rng(1).normal(size=(20, 6))
    np.savez(tmp_path / "statistics.npz", mu=rng.mean(0), sigma=np.cov(rng, rowvar=False))
    named = {"halton": "pipe", "network": "network", "adm_statistics": "statistics.npz"}
    options = ["--hours", "1", "--output_dir", str(tmp_path / "out"), "--entries", "halton-hybrid-16", "--images", "12"]
    options += ["--dtype", "float32", *(f"--{name}={tmp_path / path}" for name, path in named.items())]
    (planned,) = reproduce.main(options, command)
    assert planned.is_done
    report = (tmp_path / "out" / "report.md").read_text()
    assert "| halton-hybrid-16 | Frechet distance | " in report
    assert "| Hybrid 6 | 16 |" in report
    assert "arXiv 2503.17076" in report


@pytest.mark.skipif(GOLDEN is None or GOLDEN2 is None, reason="HF_MASKDIFF_GOLDEN, HF_MASKDIFF_GOLDEN2 are not set")
def test_small_models_to_the_end(reproduce: ModuleType, stand_ins: dict[str, str], tmp_path: Path) -> None:
    """An image model and two text models, and one whose file is missing."""
    assert GOLDEN is not None
    assert GOLDEN2 is not None
    mage = Model(GOLDEN / "mage")
    heads = f"{mage.config['num_heads']} {mage.config['decoder_num_heads']}"
    distilled = sorted(path.parent for path in GOLDEN2.glob("sdtt/*/config.json"))[0]

    names = ["mage-hybrid-r2-8", "mdlm-moment-32", "sdtt-ancestral-16", "halton-moment-16"]
    sources = {
        "mage": f"--num_attention_heads {heads} -- {mage.checkpoint}",
        "mdlm": f"--tokenizer {stand_ins['TOKENIZER']} -- {GOLDEN / 'mdlm'}",
        "sdtt": f"--tokenizer {stand_ins['TOKENIZER']} -- {distilled}",
        "halton": str(tmp_path / "missing.pth"),
    }
    judges = {"network": stand_ins["NETWORK"], "judge": stand_ins["JUDGE"], "imagenet_val": stand_ins["IMAGENET_VAL"]}
    judges["adm_statistics"] = "missing.npz"
    sizes = {"images": "12", "texts": "4", "batch_size": "8", "dtype": "float32"}
    named = [f"--{name}={value}" for name, value in (sources | judges | sizes).items()]
    options = ["--hours", "50", "--output_dir", str(tmp_path / "out"), "--entries", *names, *named]
    planned = reproduce.main(options, command)
    report = (tmp_path / "out" / "report.md").read_text()
    assert [one.entry.name for one in planned if one.is_done] == names[:3], report
    assert "**With 12 images, 4 texts" in report
    for name in names[:3]:
        found = read_results(tmp_path / "out" / "reports" / name / "report.json")
        assert all(value.value is not None for record in found.records for value in record.measures.values())
    assert "| mage-hybrid-r2-8 | Frechet distance | " in report
    assert "| halton-moment-16 | failed after" in report
