"""A set is one run description's, of one model's weights, and every byte of it is what was written."""

from __future__ import annotations

import argparse
import errno
import io
import json
import multiprocessing
import os
import random
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import accelerate
import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Features, Value

from hf_maskdiff import MaskGITPipeline, parallel
from hf_maskdiff.cli import main
from hf_maskdiff.evaluation.samples import load_samples
from hf_maskdiff.generation import ImageSource, add_arguments, load_pipeline
from hf_maskdiff.parallel import SampleSet, cost_of, seed_of, start_processes, write_atomically
from hf_maskdiff.sets import claims, files, fingerprints
from hf_maskdiff.sets.claims import Claim
from hf_maskdiff.sets.fingerprints import fingerprint, require_one_model, weights_hash
from hf_maskdiff.sets.seals import is_sealed, is_whole, read_rows, sealed_parquet

PLAYS = Path(__file__).parents[1] / "pipelines" / "mdlm-shakespeare"
FULL = OSError(errno.ENOSPC, "No space left on device")
SMALL = {"num_samples": 16, "shard_size": 16, "block_size": 8}
FEATURES = Features(index=Value("int64"), seed=Value("int64"))


@pytest.fixture
def pipeline(make_pipeline: Callable[..., MaskGITPipeline], tmp_path: Path) -> Path:
    """The folder of a tiny pipeline, which a test may spoil."""
    pipe = make_pipeline()
    pipe.vqvae.quantize.embedding.weight.data.normal_()
    pipe.save_pretrained(tmp_path / "pipeline")
    return tmp_path / "pipeline"


def arguments(pipeline: Path, folder: Path, *more: str, num_samples: int = 40) -> list[str]:
    required = ["--pipeline", str(pipeline), "--num_samples", str(num_samples), "--output_dir", str(folder)]
    return ["generate", *required, "--num_inference_steps", "2", "--shard_size", "16", "--block_size", "8", *more]


def make(pipeline: Path, folder: Path, *more: str, num_samples: int = 40) -> Path:
    assert main(arguments(pipeline, folder, *more, num_samples=num_samples)) == 0
    return folder


def shards(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.parquet")}


def stop_after(num_samples: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fills up once the set holds so many samples."""
    write = SampleSet.write_part

    def fill_up(samples: SampleSet, batch: range, *rest: Any) -> None:
        if batch.start >= num_samples:
            raise FULL
        write(samples, batch, *rest)

    monkeypatch.setattr(SampleSet, "write_part", fill_up)


# --- one description --------------------------------------------------------------------------------------------------


def _launch(barrier: Any, words: list[str], error: Path) -> None:
    open_ = SampleSet.open

    def together(samples: SampleSet, *rest: Any) -> Any:
        barrier.wait()
        return open_(samples, *rest)

    SampleSet.open = together  # of this process alone
    with open(error, "w", buffering=1) as os.sys.stderr:
        os._exit(main(words))


def test_of_two_launches_at_the_same_time_one_is_refused(pipeline: Path, tmp_path: Path) -> None:
    """Each is past all that is checked before the folder, and then they begin."""
    expected = {seed: shards(make(pipeline, tmp_path / f"whole-{seed}", "--seed", seed)) for seed in "01"}
    context = multiprocessing.get_context("fork")
    for turn in range(3):
        folder, barrier = tmp_path / f"set-{turn}", context.Barrier(2)
        launches = [
            context.Process(
                target=_launch,
                args=(barrier, arguments(pipeline, folder, "--seed", seed, "--batch_size", "8"), tmp_path / seed),
            )
            for seed in "01"
        ]
        for launch in launches:
            launch.start()
        for launch in launches:
            launch.join(120)
        assert sorted(launch.exitcode for launch in launches) == [0, 1]
        winner, loser = ("0", "1") if launches[0].exitcode == 0 else ("1", "0")
        assert shards(folder) == expected[winner]
        assert f"where `seed` is {winner} and not {loser}" in (tmp_path / loser).read_text()


@pytest.mark.parametrize("links", [True, False])
def test_of_many_that_claim_a_folder_at_the_same_time_one_gets_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    """Also on a file system that has no links."""

    def no_links(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    if not links:
        monkeypatch.setattr(os, "link", no_links)
    for turn in range(10):
        barrier = Barrier(8)

        def take(seed: int, folder: Path = tmp_path / str(turn), barrier: Barrier = barrier) -> str:
            claim = Claim(folder, {**SMALL, "seed": seed})
            barrier.wait()
            try:
                return "free" if claim.take() else "mine"
            except ValueError as error:
                return "refused" if "where `seed` is" in str(error) else str(error)

        with ThreadPoolExecutor(8) as threads:
            assert sorted(threads.map(take, range(8))) == ["free"] + ["refused"] * 7
        assert [path.name for path in (tmp_path / str(turn) / parallel.HIDDEN).iterdir()] == ["configuration.json"]


def test_a_folder_is_refused_to_others_before_anything_is_made_in_it(tmp_path: Path) -> None:
    """The first launch runs, or was killed: nobody can tell. The same arguments go on."""
    SampleSet(tmp_path / "set", {**SMALL, "seed": 0}).open()
    with pytest.raises(ValueError, match=r"where `seed` is 0 and not 1.*pass another folder, or delete this one first"):
        SampleSet(tmp_path / "set", {**SMALL, "seed": 1}).open()
    assert SampleSet(tmp_path / "set", {**SMALL, "seed": 0}).open() == []
    shutil.rmtree(tmp_path / "set")
    assert SampleSet(tmp_path / "set", {**SMALL, "seed": 1}).open() == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError("of the model"), ValueError("of the scheduler")])
def test_a_mistaken_first_try_may_be_corrected_where_it_ended_with_nothing(
    pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Any
) -> None:
    def fail(*_: object) -> None:
        raise error

    with monkeypatch.context() as context:
        context.setattr(ImageSource, "sample", fail)
        assert main(arguments(pipeline, tmp_path / "set", "--seed", "7")) != 0
    assert shards(make(pipeline, tmp_path / "set")) == shards(make(pipeline, tmp_path / "whole"))
    assert cost_of(tmp_path / "set")[0] == pytest.approx(2)


def test_what_was_made_keeps_a_folder_whatever_ended_the_run(
    pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as context:
        stop_after(8, context)
        assert main(arguments(pipeline, tmp_path / "set", "--batch_size", "8")) == 1
    assert main(arguments(pipeline, tmp_path / "set", "--seed", "7")) == 1
    assert "where `seed` is 0 and not 7" in capsys.readouterr().err


def test_a_run_whose_folder_has_become_another_s_writes_nothing_more(tmp_path: Path) -> None:
    """Its folder was deleted while it ran, or given back by a run of the same arguments that failed."""
    first, second = (SampleSet(tmp_path / "set", {**SMALL, "seed": seed}) for seed in (0, 1))
    first.open()
    first.claim.path.unlink()
    columns = {"index": list(range(8)), "seed": [seed_of(0, i) for i in range(8)]}
    first.write_part(range(8), columns, FEATURES)  # nobody else was there: the folder is claimed again
    shutil.rmtree(tmp_path / "set")
    assert second.open() == []
    with pytest.raises(ValueError, match="where `seed` is 1 and not 0"):
        first.write_part(range(8), columns, FEATURES)
    assert second.ranges() == []


def test_parts_of_another_description_become_no_shard(tmp_path: Path) -> None:
    first, second = (SampleSet(tmp_path / name, {**SMALL, "guidance": name}) for name in "ab")
    for samples in (first, second):
        samples.open()
        for start in (0, 8):
            indices = range(start, start + 8)
            columns = {"index": list(indices), "seed": [seed_of(0, i) for i in indices]}
            samples.write_part(indices, columns, FEATURES)
    name = "part-000000008-000000016.parquet"
    shutil.copy(first.hidden / name, second.hidden / name)
    assert not second.finish_shards()
    assert first.finish_shards()


def test_a_run_that_begins_does_not_stop_another_one_from_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It removes partial files, which a killed run may have left, or one that runs is writing."""
    samples, replace = SampleSet(tmp_path / "set", {**SMALL, "seed": 0}), os.replace
    samples.open()
    opened: list[int] = []

    def open_before(partial: Path, path: Path) -> None:
        if not opened:
            opened.append(1)
            SampleSet(tmp_path / "set", {**SMALL, "seed": 0}).open()
        replace(partial, path)

    monkeypatch.setattr(os, "replace", open_before)
    write_atomically(samples.hidden / "part", b"whole")
    assert (samples.hidden / "part").read_bytes() == b"whole"
    names = {files._partial_file(samples.hidden / "part", b"") for _ in range(2)}
    with names.pop() as one, names.pop() as other:  # also of two machines whose processes have one number
        assert one != other


def test_a_damaged_description_is_named_with_the_remedy(
    pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(claims, "_PATIENCE", 0.1)
    folder = make(pipeline, tmp_path / "set")
    description = folder / parallel.HIDDEN / "configuration.json"
    description.write_bytes(description.read_bytes()[:50])
    assert main(arguments(pipeline, folder)) == 1
    assert "got a damaged" in (said := capsys.readouterr().err)
    assert f"Delete the folder '{folder}', or pass another one." in said
    with pytest.raises(ValueError, match="got a damaged"):
        load_samples(folder)


def test_a_description_that_is_being_written_is_waited_for(tmp_path: Path) -> None:
    """Where a file system has no links, writing it is not one act."""
    claim = Claim(tmp_path / "set", {**SMALL, "seed": 0})
    claim.take()
    content = claim.path.read_bytes()
    claim.path.write_bytes(content[:20])
    with ThreadPoolExecutor(1) as threads:
        other = threads.submit(Claim(tmp_path / "set", {**SMALL, "seed": 0}).take)
        claim.path.write_bytes(content)
        assert other.result() is False


# --- one model --------------------------------------------------------------------------------------------------------


def spoil(path: Path, at: float = 0.7, length: int = 100) -> None:
    """Write zeros into a file, in place: its name and size stay."""
    with open(path, "r+b") as file:
        file.seek(int(path.stat().st_size * at))
        file.write(bytes(length))


def test_weights_that_changed_between_kill_and_resume(
    pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = shards(make(pipeline, tmp_path / "whole"))
    with monkeypatch.context() as context:
        stop_after(16, context)
        assert main(arguments(pipeline, tmp_path / "set", "--batch_size", "8")) == 1
    for part in ("transformer", "vqvae"):
        weights = pipeline / part / "diffusion_pytorch_model.safetensors"
        before = weights.read_bytes()
        spoil(weights)
        capsys.readouterr()
        assert main(arguments(pipeline, tmp_path / "set")) == 1
        said = capsys.readouterr().err
        assert f"whose samples were made with another `components.{part}.weights`" in said
        assert "pass another folder, or delete this one first" in said
        weights.write_bytes(before)
    assert shards(make(pipeline, tmp_path / "set")) == expected


def test_a_finished_set_is_not_that_of_other_weights(
    pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make(pipeline, tmp_path / "set")
    before = shards(folder)
    spoil(pipeline / "transformer" / "diffusion_pytorch_model.safetensors")
    assert main(arguments(pipeline, folder)) == 1
    assert "another `components.transformer.weights`" in capsys.readouterr().err
    assert shards(folder) == before


def test_other_settings_words_and_versions_are_another_model_s(
    pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(PLAYS, tmp_path / "plays")
    images, texts = make(pipeline, tmp_path / "images"), make(tmp_path / "plays", tmp_path / "texts", num_samples=8)

    def refused(where: Path, folder: Path, num_samples: int) -> str:
        capsys.readouterr()
        assert main(arguments(where, folder, num_samples=num_samples)) == 1
        return capsys.readouterr().err.partition("made with another `")[2].partition("`")[0]

    config = pipeline / "transformer" / "config.json"
    before = config.read_text()
    config.write_text(json.dumps(json.loads(before) | {"num_attention_heads": 4}))
    assert refused(pipeline, images, 40) == "components.transformer.settings"
    config.write_text(before)
    words = tmp_path / "plays" / "tokenizer" / "tokenizer.json"
    found = json.loads(words.read_text())
    vocabulary = found["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    words.write_text(json.dumps(found))
    assert refused(tmp_path / "plays", texts, 8) == "components.tokenizer.words"
    monkeypatch.setattr(fingerprints, "version", lambda package: "99" if package == "torch" else "0")
    assert refused(pipeline, images, 40).startswith("versions.")


def test_the_hash_of_weights_knows_every_byte_name_and_shape() -> None:
    state = {"a": torch.zeros(3, 2), "b": torch.ones(4, dtype=torch.bfloat16), "c": torch.tensor(5)}
    found = weights_hash(state)
    assert weights_hash({name: tensor.clone() for name, tensor in reversed(state.items())}) == found
    assert weights_hash({**state, "a": torch.zeros(2, 3).T}) == found  # however it is strided
    others: list[dict[str, Any]] = [{**state, "a": torch.zeros(2, 3)}, {**state, "a": torch.zeros(3, 2).int()}]
    others.append({"d": state["a"], "b": state["b"], "c": state["c"]})
    for name, tensor in state.items():
        for byte in range(tensor.numel() * tensor.element_size()):
            other = tensor.clone().reshape(-1)
            other.view(torch.uint8)[byte] ^= 1
            others.append({**state, name: other.reshape(tensor.shape)})
    assert len({found, *map(weights_hash, others)}) == 1 + len(others)


def test_a_model_is_the_same_wherever_its_weights_are(pipeline: Path) -> None:
    def load(*placement: str) -> Any:
        parser = argparse.ArgumentParser()
        add_arguments(parser)
        words = arguments(pipeline, Path("-"), *placement)[1:]
        return load_pipeline(parser.parse_args(words), start_processes())

    expected = fingerprint(load())
    assert json.loads(json.dumps(expected)) == expected
    placements = ["--device_map cpu", "--model_cpu_offload", "--group_offload", "--compile", "--num_substeps 2"]
    for placement in placements:
        assert fingerprint(load(*placement.split())) == expected, placement
    pipe = load()
    accelerate.cpu_offload(pipe.transformer, torch.device("cpu"))
    assert next(pipe.transformer.parameters()).is_meta  # put aside, as where a device map finds no room
    assert fingerprint(pipe) == expected
    assert fingerprint(load("--dtype", "bfloat16")) != expected


def test_processes_with_different_models_refuse_to_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where two machines have fetched two states of one repository."""
    one, other = {"components": {"transformer": "1"}}, {"components": {"transformer": "2"}}
    monkeypatch.setattr(fingerprints, "gather_object", lambda own: [one, *own])
    require_one_model({"made_by": one})
    with pytest.raises(ValueError, match="all processes must have loaded one model, got another one in process 1"):
        require_one_model({"made_by": other})


# --- every byte -------------------------------------------------------------------------------------------------------


def test_no_byte_of_a_file_changes_unnoticed() -> None:
    """Whether it is data, a header, a statistic, or the checksum itself."""
    words = ["king", "hf_maskdiff.sha256=" + "0" * 64, ""] * 4
    table = pa.table({"index": list(range(12)), "text": words}).replace_schema_metadata({"huggingface": "{}"})
    content = sealed_parquet(table)
    assert is_whole(content)
    assert read_rows(content).equals(table, check_metadata=True)
    assert pq.read_table(io.BytesIO(content)).to_pydict() == table.to_pydict()
    assert sealed_parquet(pa.concat_tables([table.slice(0, 5), table.slice(5)])) == content
    for at in range(len(content)):
        assert not is_whole(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        assert not is_whole(content[:at])
    assert not is_whole(content + b"\0")
    assert is_sealed(content)


@pytest.mark.parametrize("option", [(), ("--verify",)])
def test_a_shard_with_zeros_in_it_is_made_again(
    pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: tuple[str, ...]
) -> None:
    folder, chance = make(pipeline, tmp_path / "set"), random.Random(0)
    expected = shards(folder)
    for _ in range(6):
        path = sorted(folder.glob("*.parquet"))[chance.randrange(3)]
        before = path.read_bytes()
        while path.read_bytes() == before:
            spoil(path, chance.uniform(0, 0.98))
        capsys.readouterr()
        make(pipeline, folder, *option)
        found = capsys.readouterr()
        assert f"{path}: was damaged" in found.err
        assert ("2 of 3 files are as they were written" in found.out) == bool(option)
        assert shards(folder) == expected
    found = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"), split="train")
    assert list(found["index"]) == list(range(40))


def test_a_batch_with_zeros_in_it_is_made_again(
    pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = shards(make(pipeline, tmp_path / "whole"))
    with monkeypatch.context() as context:
        stop_after(8, context)
        assert main(arguments(pipeline, tmp_path / "set", "--batch_size", "8")) == 1
    (part,) = (tmp_path / "set" / parallel.HIDDEN).glob("part-*")
    spoil(part, 0.3)
    capsys.readouterr()
    assert shards(make(pipeline, tmp_path / "set")) == expected
    assert f"{part}: was damaged" in capsys.readouterr().err


def test_a_batch_that_is_damaged_during_the_run_becomes_no_shard(
    pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write = SampleSet.write_part

    def damage(samples: SampleSet, batch: range, *rest: Any) -> None:
        write(samples, batch, *rest)
        if batch.start == 8:
            spoil(samples.hidden / "part-000000008-000000016.parquet", 0.3)

    with monkeypatch.context() as context:
        context.setattr(SampleSet, "write_part", damage)
        assert main(arguments(pipeline, tmp_path / "set", "--batch_size", "8")) == 1
    assert "lacks samples" in capsys.readouterr().err
    assert shards(make(pipeline, tmp_path / "set")) == shards(make(pipeline, tmp_path / "whole"))


def test_a_damaged_set_is_not_judged(pipeline: Path, tmp_path: Path) -> None:
    folder = make(pipeline, tmp_path / "set")
    assert load_samples(folder).count == 40
    path = sorted(folder.glob("*.parquet"))[1]
    content = path.read_bytes()
    for place in (content.index(b"IHDR"), content.rindex(b"hf_maskdiff.sha256=")):
        path.write_bytes(content[:place] + bytes(30) + content[place + 30 :])
        with pytest.raises(ValueError, match=f"must be whole, got {path.name}, whose checksum does not fit"):
            load_samples(folder)


def test_a_damaged_log_of_costs_does_not_spoil_the_set(pipeline: Path, tmp_path: Path) -> None:
    folder = make(pipeline, tmp_path / "set", "--batch_size", "8")
    log = folder / parallel.HIDDEN / "cost-0.jsonl"
    spoil(log, 0.5, 20)
    assert cost_of(folder)[0] == pytest.approx(2)
    log.write_bytes(b'\xff\xfe{"num_samples": 8}\n[1]\n' + log.read_bytes())
    assert cost_of(folder)[0] == pytest.approx(2)


# --- sets of earlier versions -----------------------------------------------------------------------------------------


def make_old(folder: Path, seed_of_last: int = 0) -> None:
    """As before checksums: nothing in the files, and a description that says less."""
    description = folder / parallel.HIDDEN / "configuration.json"
    found = json.loads(description.read_text())
    description.write_text(json.dumps({k: v for k, v in found.items() if k not in ("made_by", "checksums")}))
    for path in sorted(folder.glob("*.parquet")):
        rows = read_rows(path.read_bytes())
        if path.name.startswith("train-000000032"):
            seeds = pa.array([seed_of(seed_of_last, i) for i in range(32, 40)])
            rows = rows.set_column(rows.schema.get_field_index("seed"), rows.schema.field("seed"), seeds)
        pq.write_table(rows, path)


def test_a_set_of_an_earlier_version_is_completed_with_a_warning(
    pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make(pipeline, tmp_path / "set")
    expected = shards(folder)
    make_old(folder)
    first, second, _ = sorted(folder.glob("*.parquet"))
    kept = first.read_bytes()
    second.unlink()
    capsys.readouterr()
    make(pipeline, folder)
    assert "was begun by an earlier version" in capsys.readouterr().err
    assert first.read_bytes() == kept != expected[first.name]
    assert second.read_bytes() == expected[second.name]
    assert load_samples(folder).count == 40
    assert main(arguments(pipeline, folder, "--seed", "1")) == 1
    assert "where `seed` is 0 and not 1" in capsys.readouterr().err
    make(pipeline, folder, "--verify")
    found = capsys.readouterr()
    assert f"{first}: has no checksum" in found.err
    assert "1 of 3 files are as they were written" in found.out
    assert shards(folder) == expected


def test_rows_of_another_seed_in_a_set_of_an_earlier_version_are_found(
    pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As two launches at the same time left them."""
    folder = make(pipeline, tmp_path / "set")
    expected = shards(folder)
    make_old(folder, seed_of_last=1)
    last = sorted(folder.glob("*.parquet"))[-1]
    make(pipeline, folder)
    assert f"{last}: holds samples of another seed than 0" in capsys.readouterr().err
    assert last.read_bytes() == expected[last.name]
