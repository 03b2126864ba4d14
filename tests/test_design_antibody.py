"""The example that designs an antibody's third loop: its numbers, its picture, and what it says when it cannot."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import antiberty_wheel as upstream
import numpy as np
import pytest
import torch
from PIL import Image
from tiny_esm2 import write_esm2

from hf_maskdiff import MaskedDiffusionTextPipeline, UniformScheduler
from hf_maskdiff.conversion.convert import convert
from hf_maskdiff.evaluation.pseudo_likelihood import pseudo_log_likelihood

EXAMPLES = Path(__file__).parents[1] / "examples"
Run = Callable[..., str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place to work in, with the pipeline of a small wheel in `antiberty`."""
    folder = tmp_path_factory.mktemp("designs")
    convert(upstream.write_wheel(folder / "antiberty.whl", upstream.contents()), folder / "antiberty")
    return folder


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch, folder: Path) -> ModuleType:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.chdir(folder)
    return importlib.import_module("design_antibody")


@pytest.fixture
def run(example: ModuleType, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: str) -> str:
        capsys.readouterr()
        example.main(arguments)
        return capsys.readouterr().out

    return run


def lines_of(printed: str) -> dict[str, tuple[float, int, dict[str, float]]]:
    """Sampler -> mean, share of distinct designs in percent, and the designs with their numbers."""
    header = r"^([\w-]+): \d+ passes, ([\d.]+)(?: \+- [\d.]+)? nats per residue, (\d+)% distinct\n"
    blocks = re.split(header, printed, flags=re.M)
    result = {}
    for name, mean, share, designs in zip(*(blocks[i::4] for i in (1, 2, 3, 4)), strict=True):
        found = {text: float(nats) for text, nats in re.findall(r"^    ([A-Z]+)  ([\d.]+)$", designs, re.M)}
        result[name] = (float(mean), int(share), found)
    return result


def test_designs_have_their_own_pseudo_likelihood(example: ModuleType, run: Run) -> None:
    pytest.importorskip("logomaker", reason="logomaker is not installed: pip install -e '.[logo]'")
    printed = run("--schedulers", "uniform", "greedy", "--num_designs", "3", "--steps", "2", "--output", "new/two.png")
    natural, rest = printed.split("\n", 1)
    assert re.fullmatch(r"natural: SRWGGDGFYAMDY  [\d.]+ nats per residue", natural)
    found = lines_of(rest)
    assert list(found) == ["uniform", "greedy"]
    assert (found["greedy"][1], len(found["greedy"][2])) == (33, 1)
    assert "3 rows of 13 residues" in printed

    pipe = MaskedDiffusionTextPipeline.from_pretrained("antiberty")
    pipe.set_progress_bar_config(disable=True)
    config = dict(pipe.scheduler.config)
    pipe.scheduler = UniformScheduler.from_config(config, choice_temperature=None)
    generators = [torch.Generator().manual_seed(i) for i in range(3)]
    prompt = f"{example.BEFORE}[MASK:13]{example.AFTER}"
    chains = pipe(prompt, num_inference_steps=2, num_return_sequences=3, generator=generators).texts
    mean, share, designs = found["uniform"]
    assert {chain[96:109] for chain in chains} == set(designs)
    assert share == round(100 * len(set(chains)) / 3)
    ids = pipe.tokenizer(chains, return_tensors="pt").input_ids
    nats = -pseudo_log_likelihood(pipe.denoiser, ids, torch.arange(97, 110), 4).mean(1)
    for chain, expected in zip(chains, nats.tolist(), strict=True):
        assert designs[chain[96:109]] == pytest.approx(expected, abs=0.006)
    assert mean == pytest.approx(float(nats.mean()), abs=0.006)
    assert f"{mean:.2f} +- {float(nats.std()) / 3**0.5:.2f} nats per residue" in printed


def test_the_picture_has_a_row_for_each_sampler(example: ModuleType, folder: Path) -> None:
    """Full columns, in the colours of the residues; where designs differ there are letters of several colours."""
    pytest.importorskip("logomaker", reason="logomaker is not installed: pip install -e '.[logo]'")
    example.draw_logos([("all K", ["KKK"] * 4), ("mixed", ["KDW", "KDW", "DKW", "DKW"])], [4, 5, 6], folder / "p.png")
    image = np.asarray(Image.open(folder / "p.png").convert("RGB")).astype(int)
    height = image.shape[0]
    upper, lower = image[height * 3 // 20 : height * 9 // 20], image[height * 11 // 20 :]  # below the legend

    def share(colour: str, part: np.ndarray) -> float:
        wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
        return float((np.abs(part - wanted).max(-1) < 8).mean())

    blue, red, purple = (example.CLASSES[name][1] for name in ("positive", "negative", "aromatic"))
    assert share(blue, upper) > 0.1
    assert share(red, upper) == share(purple, upper) == 0
    assert min(share(colour, lower) for colour in (blue, red, purple)) > 0.02


def test_chains_from_nothing(run: Run) -> None:
    pytest.importorskip("logomaker", reason="logomaker is not installed: pip install -e '.[logo]'")
    printed = run("--prompt", "[MASK:70]", "--schedulers", "moment", "--num_designs", "1", "--steps", "3")
    assert "natural" not in printed
    ((_, share, designs),) = lines_of(printed).values()
    assert (share, [len(design) for design in designs]) == (100, [70])
    assert "no picture: more than 60 residues" in printed
    assert not Path("designs.png").exists()


def test_another_model_of_proteins(run: Run, tmp_path: Path) -> None:
    """ESM-2, whose tokenizer puts spaces between residues and knows letters that are none of the twenty."""
    pytest.importorskip("logomaker", reason="logomaker is not installed: pip install -e '.[logo]'")
    arguments = ("--prompt", "MKT[MASK:6]LLV", "--natural", "AYIAKQ", "--num_designs", "2", "--steps", "2")
    picture = str(tmp_path / "esm2.png")
    printed = run("--pipeline", str(write_esm2(tmp_path)), *arguments, "--schedulers", "moment", "--output", picture)
    natural, rest = printed.split("\n", 1)
    assert natural.startswith("natural: AYIAKQ  ")
    ((_, _, designs),) = lines_of(rest).values()
    assert {len(design) for design in designs} == {6}
    assert "2 rows of 6 residues" in printed


def test_score(run: Run, example: ModuleType) -> None:
    _, with_special, without = run("--score").splitlines()
    chain = example.BEFORE + example.LOOP + example.AFTER
    assert len(chain) == 120
    pipe = MaskedDiffusionTextPipeline.from_pretrained("antiberty")
    for line, special, name in ((with_special, True, "with"), (without, False, "without")):
        ids = pipe.tokenizer(chain, return_tensors="pt", add_special_tokens=special).input_ids
        nats = -pseudo_log_likelihood(pipe.denoiser, ids, torch.arange(120) + int(special), 4)[0]
        expected = f"chain {nats.mean():.3f}, third loop {nats[96:109].mean():.3f}"
        assert line.split(maxsplit=1) == [name, f"special tokens: {expected}"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pipeline", "nowhere"], r"`pipeline` must be a pipeline folder .*'nowhere'.*pip download.*hf-maskdiff con"),
        (
            ["--prompt", "EVXQb[MASK:3]"],
            r"must be a chain of the amino acids' letters ACDEF.*got 'Xb'\. Write a residue",
        ),
        (["--prompt", "EVQ"], r"`prompt` must say what is to be drawn, got 'EVQ'\. Write \[MASK:13\]"),
        (["--prompt", "EV[MASK:3]", "--natural", "AB"], r"`natural` must be 3 residues, .* got 'AB'"),
        (["--steps", "0"], r"`num_inference_steps` must be an integer of at least 1, got 0"),
    ],
)
def test_errors_are_clear(
    arguments: list[str],
    message: str,
    example: ModuleType,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(example, "require_logomaker", lambda: None)
    with pytest.raises(SystemExit) as exit_info:
        example.main(arguments)
    assert exit_info.value.code == 2
    assert re.search(message, capsys.readouterr().err)


def test_without_logomaker_it_says_so_at_the_door(
    example: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "logomaker", None)
    with pytest.raises(SystemExit):
        example.main(["--pipeline", "nowhere"])
    assert re.search(r"the picture needs logomaker .* Run `pip install -e '\.\[logo\]'`", capsys.readouterr().err)
