"""AntiBERTy's wheel as a pipeline folder: the same logits, the original's ids, nothing run, one clear error or all."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import warnings
import zipfile
from pathlib import Path
from typing import Any

import antiberty_wheel as upstream
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import AutoTokenizer, BertTokenizer

from hf_maskdiff import MaskedDiffusionTextPipeline
from hf_maskdiff.cli import main
from hf_maskdiff.conversion.antiberty import residue_tokenizer
from hf_maskdiff.conversion.convert import convert
from hf_maskdiff.evaluation.pseudo_likelihood import pseudo_log_likelihood

HEAVY = (
    "EVQLVESGGGLVQPGGSLRLSCAASGFNIKDTYIHWVRQAPGKGLEWVARIYPTNGYTRYADSVKGRFTISADTSKNTAYLQMNSLRAEDTAVYYC"
    "SRWGGDGFYAMDYWGQGTLVTVSS"
)
RELEASED = os.environ.get("HF_MASKDIFF_ANTIBERTY")
WHEELS = [
    "small",
    pytest.param(
        "released",
        marks=pytest.mark.skipif(
            RELEASED is None, reason="HF_MASKDIFF_ANTIBERTY is not set: it names antiberty's wheel, 97 MB"
        ),
    ),
]


@pytest.fixture(scope="module")
def wheel(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "released":
        return Path(RELEASED)
    path = tmp_path_factory.mktemp("wheel") / "antiberty-0.1.3-py3-none-any.whl"
    return upstream.write_wheel(path, upstream.contents())


@pytest.fixture(scope="module")
def folder(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(wheel, tmp_path_factory.mktemp("converted") / "antiberty")


def opened(folder: Path) -> MaskedDiffusionTextPipeline:
    pipe = MaskedDiffusionTextPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


both = pytest.mark.parametrize("wheel", WHEELS, indirect=True)
small = pytest.mark.parametrize("wheel", ["small"], indirect=True)
released = pytest.mark.parametrize("wheel", WHEELS[1:], indirect=True)


# --- what comes out ---------------------------------------------------------------------------------------------------


@both
def test_logits_are_those_of_the_checkpoint(wheel: Path, folder: Path) -> None:
    pipe, raw = opened(folder), upstream.raw_model(wheel)
    ids = pipe.tokenizer([HEAVY, HEAVY[::-1]], return_tensors="pt").input_ids
    ids[0, 20:60] = ids[1, ::2] = pipe.mask_token_id
    with torch.no_grad():
        expected = raw(input_ids=ids).logits
        torch.testing.assert_close(pipe.denoiser(ids), expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(pipe.transformer(input_ids=ids).logits, expected, atol=1e-5, rtol=0)
    assert expected.std() > 0.1


@both
def test_a_folder_is_a_repository(wheel: Path, folder: Path) -> None:
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files == {
        *("README.md", "LICENSE", "config.json", "model_index.json", "pipeline.py"),
        *("scheduler/scheduler_config.json", "transformer/config.json", "transformer/model.safetensors"),
        *("tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json", "tokenizer.json", "tokenizer_config.json"),
    }
    names = set(load_file(folder / "transformer" / "model.safetensors"))
    assert not [name for name in names if "pooler" in name or re.match(r"cls\.(species|chain|graft)", name)]
    assert "_name_or_path" not in json.loads((folder / "transformer" / "config.json").read_text())
    card = ModelCard.load(folder / "README.md")
    assert (card.data.license, card.data.pipeline_tag) == ("mit", "fill-mask")
    assert {"antibody", "masked-diffusion", "arxiv:2112.07782"} <= set(card.data.tags)
    for said in ("jeffreyruffolo/AntiBERTy", "arXiv 2112.07782", "558 million", "cls.species", wheel.name):
        assert said in card.text
    with zipfile.ZipFile(wheel) as archive:
        assert (folder / "LICENSE").read_bytes() == archive.read(upstream.LICENCE)


@small
def test_the_card_s_snippet_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    snippet = re.search(r"```python\n(.*?)```", ModelCard.load(folder / "README.md").text, re.DOTALL)[1]
    assert f'from_pretrained("{folder.as_posix()}")' in snippet
    exec(snippet, {})
    *designs, chain = capsys.readouterr().out.splitlines()
    assert [len(text) for text in (*designs, chain)] == [120] * 5


@small
def test_an_unpacked_folder_gives_the_same(wheel: Path, folder: Path, tmp_path: Path) -> None:
    unpacked = upstream.unpack(wheel, tmp_path / "unpacked")
    assert main(["convert", str(unpacked), str(tmp_path / "out")]) == 0
    for name in ("transformer/model.safetensors", "tokenizer/tokenizer.json", "LICENSE", "model_index.json"):
        assert (tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes()


@small
def test_the_command_says_how_to_open_it(wheel: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(wheel), str(tmp_path / "out")]) == 0
    assert "open it with `MaskedDiffusionTextPipeline.from_pretrained(" in capsys.readouterr().out


# --- the tokenizer ----------------------------------------------------------------------------------------------------


@small
def test_a_residue_is_a_token(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder, subfolder="tokenizer")
    ids = tokenizer("EVQLV").input_ids
    assert tokenizer.convert_ids_to_tokens(ids) == ["[CLS]", *"EVQLV", "[SEP]"]
    assert ids == [2, 8, 22, 18, 14, 22, 3]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "EVQLV"
    assert tokenizer("EV[MASK]LV").input_ids == [2, 8, 22, 4, 14, 22, 3]
    assert tokenizer("XEzB").input_ids == [2, 1, 8, 1, 1, 3]
    assert (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.model_max_length) == (0, 1, 160)
    assert tokenizer(["EV", "E"], padding=True).input_ids == [[2, 8, 22, 3], [2, 8, 3, 0]]


@both
def test_ids_are_the_original_s(wheel: Path, folder: Path, tmp_path: Path) -> None:
    """It puts spaces between the letters, `[MASK]` for `_`, and calls a `BertTokenizer`."""
    with zipfile.ZipFile(wheel) as archive:
        (tmp_path / "vocab.txt").write_bytes(archive.read(upstream.VOCABULARY))
    original = BertTokenizer.from_pretrained(tmp_path, do_lower_case=False)
    tokenizer = AutoTokenizer.from_pretrained(folder, subfolder="tokenizer")
    for chain in (HEAVY, upstream.RESIDUES, "_EVQ__L", "EVXBZO", "ev", "M"):
        letters = [letter.replace("_", "[MASK]") for letter in chain]
        assert tokenizer("".join(letters)).input_ids == original(" ".join(letters)).input_ids
        assert tokenizer(" ".join(letters)).input_ids == original(" ".join(letters)).input_ids


def test_a_vocabulary_must_be_special_tokens_and_letters() -> None:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    for tokens in ([*special, "A", "AC"], [*special[::-1], "A"], [*special, "A", "A"], special):
        with pytest.raises(ValueError, match=r"the vocabulary must"):
            residue_tokenizer(tokens, 8)


# --- writing ----------------------------------------------------------------------------------------------------------


@both
def test_a_loop_is_written_between_special_tokens(folder: Path) -> None:
    """The rest of the chain stays, and no special token is drawn."""
    pipe = opened(folder)
    output = pipe(
        f"{HEAVY[:96]}[MASK:13]{HEAVY[109:]}",
        num_inference_steps=4,
        num_return_sequences=6,
        generator=[torch.Generator().manual_seed(i) for i in range(6)],
    )
    for ids, text in zip(output.sequences, output.texts, strict=True):
        assert (int(ids[0]), int(ids[-1]), len(ids)) == (2, 3, len(HEAVY) + 2)
        assert int(ids[1:-1].min()) >= 5
        assert (text[:96], text[109:], len(text)) == (HEAVY[:96], HEAVY[109:], len(HEAVY))
    assert len(set(output.texts)) > 1
    assert output.num_model_passes == [4] * 6


@both
def test_chains_are_written_from_nothing(folder: Path) -> None:
    pipe = opened(folder)
    for arguments in ({"prompt": "[MASK:110]"}, {"max_new_tokens": 110}):
        (text,) = pipe(**arguments, num_inference_steps=8, generator=torch.Generator().manual_seed(0)).texts
        assert len(text) == 110
        assert set(text) <= set(upstream.RESIDUES)


@released
def test_released_pseudo_likelihoods(folder: Path) -> None:
    pipe = opened(folder)
    for special, expected in ((True, 0.645), (False, 0.692)):
        ids = pipe.tokenizer(HEAVY, return_tensors="pt", add_special_tokens=special).input_ids
        positions = torch.arange(len(HEAVY)) + int(special)
        nats = -pseudo_log_likelihood(pipe.denoiser, ids, positions, pipe.mask_token_id).mean()
        assert float(nats) == pytest.approx(expected, abs=0.005)


@released
def test_released_weights_prefer_every_residue_to_special_tokens(folder: Path) -> None:
    """So `top_k`, the number of residues, leaves out exactly the special tokens."""
    pipe = opened(folder)
    ids = pipe.tokenizer([HEAVY] * 6, return_tensors="pt").input_ids
    shares = torch.tensor([0.01, 0.1, 0.4, 0.7, 0.95, 1.0])[:, None]
    masked = torch.rand(ids.shape, generator=torch.Generator().manual_seed(0)) < shares
    masked[:, [0, -1]] = False
    with torch.no_grad():
        logits = pipe.denoiser(ids.masked_fill(masked, pipe.mask_token_id))[masked]
    assert pipe.scheduler.config.top_k == 20
    assert bool((logits[:, 5:].amin(-1) > logits[:, :4].amax(-1)).all())
    assert 0 < float(logits.softmax(-1)[:, :5].sum(-1).max()) < 1e-5


# --- what is refused --------------------------------------------------------------------------------------------------


def refused(files: dict[str, bytes], tmp_path: Path) -> str:
    wheel = upstream.write_wheel(tmp_path / "antiberty-0.1.3-py3-none-any.whl", files)
    before = set(tmp_path.iterdir())
    with pytest.raises(ValueError) as error:
        convert(wheel, tmp_path / "out")
    assert set(tmp_path.iterdir()) == before
    return str(error.value)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("was_run",)


def test_nothing_in_a_pickle_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    weights = upstream.tensors()
    assert "must hold tensors, 'cls.chain.bias' is not one" in refused(
        upstream.contents({**weights, "cls.chain.bias": Evil()}), tmp_path
    )
    pickled = upstream.contents() | {upstream.WEIGHTS: pickle.dumps({**weights, "x": Evil()})}
    assert "must be a checkpoint written by `torch.save`" in refused(pickled, tmp_path)
    assert "must hold a dictionary" in refused(upstream.contents(Evil()), tmp_path)
    assert not (tmp_path / "was_run").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (upstream.WEIGHTS, r"must be the wheel of antiberty .* lacks .*pytorch_model\.bin\. Fetch it with `pip"),
        (upstream.CONFIG, r"lacks .*config\.json"),
        (upstream.VOCABULARY, r"lacks .*vocab\.txt"),
        (upstream.LICENCE, r"lacks antiberty-0\.1\.3\.dist-info/LICENSE\.MD"),
    ],
)
def test_a_wheel_must_hold_all(name: str, message: str, tmp_path: Path) -> None:
    files = upstream.contents()
    del files[name]
    assert re.search(message, refused(files, tmp_path))


def test_other_wheels(tmp_path: Path) -> None:
    said = refused({"numpy/__init__.py": b"", "numpy-2.0.dist-info/METADATA": b""}, tmp_path)
    assert re.search(r"must be the wheel of antiberty or its unpacked folder, 'antiberty-.*' lacks ", said)


@pytest.mark.parametrize("name", ["../evil.txt", "/evil.txt", "antiberty/../../evil.txt", "..\\evil.txt", "C:evil.txt"])
def test_names_that_lead_out_of_a_wheel(name: str, tmp_path: Path) -> None:
    said = refused(upstream.contents() | {name: b"x"}, tmp_path)
    assert "whose files stay in their folder" in said
    assert "Do not use this file" in said


def test_a_wheel_must_be_whole(tmp_path: Path) -> None:
    data = upstream.write_wheel(tmp_path / "whole", upstream.contents()).read_bytes()
    start = data.index(b"PK\x03\x04", 100) + 2000  # within the weights
    damaged = {"cut": data[: len(data) // 2], "changed": data[:start] + bytes(64) + data[start + 64 :], "empty": b""}
    for name, content in damaged.items():
        path = tmp_path / f"{name}.whl"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"`source` must be a whole wheel, '{name}\.whl' is not: .* Fetch it"):
            convert(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_unpacks_to_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_maskdiff.conversion.antiberty._LARGEST", 1000)
    assert "must hold at most 1 GiB in 'antiberty/trained_models" in refused(upstream.contents(), tmp_path)


def test_weights_must_be_those_of_the_model(tmp_path: Path) -> None:
    weights = upstream.tensors()
    bias, layer = "cls.predictions.bias", "bert.encoder.layer.1.output.dense.weight"
    for changed, message in (
        ({**weights, "bert.decoder.weight": torch.ones(2)}, "got 1 unknown: 'bert.decoder.weight'"),
        (
            {**weights, "bert.encoder.layer.2.x": torch.ones(2)},
            'must be those of the BertForMaskedLM of its config.json, .*"bert.encoder.layer.2.x"',
        ),
        ({name: tensor for name, tensor in weights.items() if name != layer}, f'Missing key.*"{layer}"'),
        ({**weights, layer: torch.ones(3, 3)}, f"size mismatch for {layer}"),
        ({**weights, bias: torch.ones(25)}, r"'cls\.predictions\.decoder\.bias' must equal 'cls\.predictions\.bias'"),
    ):
        assert re.search(message, refused(upstream.contents(changed), tmp_path), re.DOTALL)


def test_configurations_that_do_not_fit(tmp_path: Path) -> None:
    def config(**changes: object) -> dict[str, bytes]:
        return upstream.contents() | {upstream.CONFIG: json.dumps({**upstream.SETTINGS, **changes}).encode()}

    assert "must be a BERT with absolute positions, got 'gpt2'" in refused(config(model_type="gpt2"), tmp_path)
    assert "got 'bert', 'relative_key'" in refused(config(position_embedding_type="relative_key"), tmp_path)
    assert "as many tokens in vocab.txt as in config.json, got 25 and 30" in refused(config(vocab_size=30), tmp_path)
    for changes in ({"hidden_size": "wide"}, {"hidden_size": 10**9}, {"hidden_act": "x"}, {"num_hidden_layers": 3}):
        assert "must be those of the BertForMaskedLM of its config.json, they are not" in refused(
            config(**changes), tmp_path
        )
    no_settings = upstream.contents() | {upstream.CONFIG: b"[]"}
    assert "must hold settings by name" in refused(no_settings, tmp_path)
    broken = upstream.contents() | {upstream.CONFIG: b"{"}
    assert "must be readable, it is not" in refused(broken, tmp_path)


def test_a_tokenizer_is_not_taken(tmp_path: Path) -> None:
    wheel = upstream.write_wheel(tmp_path / "antiberty.whl", upstream.contents())
    with pytest.raises(ValueError, match=r"`--tokenizer` must be left out for AntiBERTy"):
        convert(wheel, tmp_path / "out", "openai-community/gpt2")


def test_no_file_is_left_in_the_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = upstream.write_wheel(tmp_path / "antiberty.whl", upstream.contents())
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        convert(wheel, tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    assert not list((tmp_path / "temporary").iterdir())
