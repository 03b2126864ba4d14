"""The training programs, run for real on tiny data: they learn, save what loads, and resume as if never stopped."""

from __future__ import annotations

import gzip
import importlib
import itertools
import math
import os
import re
import shlex
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace

import datasets
import launched
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from diffusers import DiffusionPipeline, VQModel
from PIL import Image
from transformers import AutoTokenizer

from hf_maskdiff import MaskGITPipeline, MDLMTransformer, MomentScheduler
from hf_maskdiff.evaluation.digit_classifier import DigitClassifier
from hf_maskdiff.evaluation.image_data import load_labelled_images, read_idx

EXAMPLES = Path(__file__).parents[1] / "examples"
NUM_CLASSES, SIDE = 3, 8

VQ_ARGUMENTS = ["--block_out_channels", "8", "8", "8", "--latent_channels", "4", "--codebook_size", "16"]
VQ_ARGUMENTS += ["--batch_size", "16", "--warmup_steps", "2"]
MASKGIT_ARGUMENTS = ["--hidden_size", "32", "--num_layers", "2", "--num_attention_heads", "2"]
MASKGIT_ARGUMENTS += ["--intermediate_size", "32", "--batch_size", "16", "--warmup_steps", "2", "--dropout", "0.1"]
MDLM_ARGUMENTS = ["--model_length", "16", "--hidden_dim", "32", "--cond_dim", "8", "--n_blocks", "2", "--n_heads", "2"]
MDLM_ARGUMENTS += ["--batch_size", "16", "--warmup_steps", "2"]
ALPHABET = "abcdefghijkl"


@contextmanager
def fresh_programs_in(folder: Path) -> Iterator[None]:
    """The examples are importable, and no run inherits accelerate's process-wide state or the attention backend."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "datasets-cache")
        yield
    from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

    _AttentionBackendRegistry.set_active_backend(AttentionBackendName.NATIVE)
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


@pytest.fixture(autouse=True)
def fresh_programs(tmp_path: Path) -> Iterator[None]:
    with fresh_programs_in(tmp_path):
        yield


def program(name: str) -> ModuleType:
    return importlib.import_module(name)


def draw_images(num: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Grey images that show their class: a bright bar at the left, in the middle or at the right, with some noise."""
    rng = np.random.default_rng(seed)
    labels = np.arange(num) % NUM_CLASSES
    images = rng.integers(0, 40, (num, SIDE, SIDE))
    for image, label in zip(images, labels, strict=True):
        image[:, 3 * label : 3 * label + 2] += 200
    return images.astype(np.uint8), labels.astype(np.uint8)


def write_idx(path: Path, array: np.ndarray) -> None:
    data = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def write_digits(folder: Path) -> Path:
    folder.mkdir()
    for prefix, num, seed, suffix in (("train", 96, 0, ".gz"), ("t10k", 30, 1, "")):
        images, labels = draw_images(num, seed)
        write_idx(folder / f"{prefix}-images-idx3-ubyte{suffix}", images)
        write_idx(folder / f"{prefix}-labels-idx1-ubyte{suffix}", labels)
    return folder


@pytest.fixture
def idx_folder(tmp_path: Path) -> Path:
    return write_digits(tmp_path / "idx")


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained once, on what `idx_folder` holds."""
    folder = tmp_path_factory.mktemp("trained")
    with fresh_programs_in(folder):
        arguments = ["--data_dir", str(write_digits(folder / "idx")), "--output_dir", str(folder / "tokenizer")]
        program("train_vq").main([*arguments, "--max_train_steps", "60", *VQ_ARGUMENTS])
    return folder / "tokenizer"


@pytest.fixture
def text_folder(tmp_path: Path) -> Path:
    """The alphabet again and again: a letter known, all letters are known."""
    folder = tmp_path / "text"
    folder.mkdir()
    (folder / "alphabet.txt").write_text(ALPHABET * 60)
    return folder


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    if (folder / "model_index.json").exists():
        return DiffusionPipeline.from_pretrained(folder).transformer.state_dict()
    return VQModel.from_pretrained(folder).state_dict()


# --- data ------------------------------------------------------------------------------------------------------------


def test_idx_files_gzipped_or_not(idx_folder: Path) -> None:
    for split, num, seed in (("train", 96, 0), ("test", 30, 1)):
        images, labels = draw_images(num, seed)
        read = load_labelled_images(split, data_dir=idx_folder)
        assert read.images.dtype == torch.uint8
        assert read.labels.dtype == torch.int64
        np.testing.assert_array_equal(read.images[:, 0].numpy(), images)
        np.testing.assert_array_equal(read.labels.numpy(), labels)
        assert read.class_names == ("0", "1", "2")


def test_the_real_mnist() -> None:
    root = os.environ.get("HF_MASKDIFF_DATA")
    if root is None:
        pytest.skip("HF_MASKDIFF_DATA is not set: no MNIST files to read")
    images, labels, class_names = load_labelled_images("test", data_dir=Path(root) / "mnist")
    assert images.shape == (10_000, 1, 28, 28)
    assert labels[:5].tolist() == [7, 2, 1, 0, 4]
    assert class_names == tuple("0123456789")


def test_broken_idx_files(tmp_path: Path) -> None:
    path = tmp_path / "broken"
    path.write_bytes(b"\0\0\x0d\x01" + bytes(8))
    with pytest.raises(ValueError, match="must start with 00 00 08"):
        read_idx(path)
    write_idx(path, np.zeros((2, 3), np.uint8))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"must hold \(2, 3\) bytes after its header, got 5"):
        read_idx(path)


def write_image_folder(folder: Path, splits: dict[str, int]) -> None:
    for split, num in splits.items():
        for i, (pixels, label) in enumerate(zip(*draw_images(num, 0), strict=True)):
            path = folder / split / f"bar{label}" / f"{i:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)


def test_image_folder(tmp_path: Path) -> None:
    write_image_folder(tmp_path / "images", {"train": 12, "test": 6})
    images, labels, class_names = load_labelled_images("test", data_dir=tmp_path / "images")
    expected, expected_labels = draw_images(6, 0)
    order = np.argsort(expected_labels, kind="stable")
    np.testing.assert_array_equal(images[labels.argsort(stable=True), 0].numpy(), expected[order])
    assert labels.bincount().tolist() == [2, 2, 2]
    assert class_names == ("bar0", "bar1", "bar2")
    resized = load_labelled_images("train", data_dir=tmp_path / "images", image_size=4, num_channels=3)
    assert resized.images.shape == (12, 3, 4, 4)


def test_without_a_test_split_a_fixed_tenth_is_held_out(tmp_path: Path) -> None:
    write_image_folder(tmp_path / "images", {"train": 30})
    train, test = (load_labelled_images(split, data_dir=tmp_path / "images").images for split in ("train", "test"))
    assert (len(train), len(test)) == (27, 3)
    seen = {image.numpy().tobytes() for image in train}
    assert not any(image.numpy().tobytes() in seen for image in test)


def test_a_data_set_by_name(tmp_path: Path) -> None:
    pixels, labels = draw_images(6, 0)
    features = datasets.Features(
        {"picture": datasets.Image(), "kind": datasets.ClassLabel(names=["left", "middle", "right"])}
    )
    rows = {"picture": [Image.fromarray(image) for image in pixels], "kind": labels.tolist()}
    (tmp_path / "set").mkdir()
    for split in ("train", "validation"):
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "set" / f"{split}.parquet")
    read = load_labelled_images("test", dataset=str(tmp_path / "set"))
    np.testing.assert_array_equal(read.images[:, 0].numpy(), pixels)
    assert read.labels.tolist() == labels.tolist()
    assert read.class_names == ("left", "middle", "right")


def test_data_errors_say_what_to_pass(idx_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="exactly one of `dataset` and `data_dir`"):
        load_labelled_images("train")
    with pytest.raises(ValueError, match="`split` must be 'train' or 'test', got 'dev'"):
        load_labelled_images("dev", data_dir=idx_folder)
    with pytest.raises(ValueError, match="`data_dir` must be a folder"):
        load_labelled_images("train", data_dir=tmp_path / "nowhere")
    with pytest.raises(ValueError, match="read as they are: grey, 8 pixels a side"):
        load_labelled_images("train", data_dir=idx_folder, image_size=16)
    (idx_folder / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(ValueError, match="must hold a file t10k-labels"):
        load_labelled_images("test", data_dir=idx_folder)
    write_image_folder(tmp_path / "mixed", {"train": 3, "test": 3})
    Image.new("L", (5, 5)).save(tmp_path / "mixed" / "test" / "bar0" / "small.png")
    with pytest.raises(ValueError, match="all images must have one size"):
        load_labelled_images("test", data_dir=tmp_path / "mixed")


# --- batches and checkpoints -----------------------------------------------------------------------------------------


def test_batches_cover_an_epoch_once_over_all_processes_and_do_not_depend_on_the_start() -> None:
    def batches(process: int, start: int) -> list[tuple[int, list[int], int]]:
        accelerator = SimpleNamespace(num_processes=2, process_index=process, device=torch.device("cpu"))
        found = program("training_utils").index_batches(13, 3, start, 6, seed=5, accelerator=accelerator)
        return [(step, indices.tolist(), generator.initial_seed()) for step, indices, generator in found]

    first, second = batches(0, 0), batches(1, 0)
    for epoch in range(3):
        seen = [i for run in (first, second) for _, indices, _ in run[2 * epoch : 2 * epoch + 2] for i in indices]
        assert len(seen) == len(set(seen)) == 12
    assert first[0][1] != first[2][1]
    seeds = [seed for run in (first, second) for _, _, seed in run]
    assert len(set(seeds)) == len(seeds)
    assert batches(1, 3) == second[3:]


def test_a_batch_larger_than_the_data_is_refused() -> None:
    accelerator = SimpleNamespace(num_processes=2, process_index=0, device=torch.device("cpu"))
    with pytest.raises(ValueError, match="`batch_size` must be at most 5, the examples per process, got 6"):
        next(program("training_utils").index_batches(10, 6, 0, 1, 0, accelerator))


@pytest.mark.parametrize("name", ["train_vq", "train_maskgit", "train_mdlm"])
def test_a_killed_run_resumes_as_if_never_stopped(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    data = request.getfixturevalue("text_folder" if name == "train_mdlm" else "idx_folder")
    arguments = ["--data_dir", str(data), "--max_train_steps", "8", "--checkpointing_steps", "2"]
    arguments += {"train_vq": VQ_ARGUMENTS, "train_maskgit": MASKGIT_ARGUMENTS, "train_mdlm": MDLM_ARGUMENTS}[name]
    if name == "train_maskgit":
        arguments += ["--tokenizer", str(request.getfixturevalue("tokenizer_folder"))]
    main = program(name).main
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    main([*arguments, "--output_dir", str(whole)])

    save_state = Accelerator.save_state

    def killed_while_saving(self: Accelerator, folder: str) -> None:
        save_state(self, folder)
        if folder.endswith("-6"):
            (Path(folder) / "model.safetensors").write_bytes(b"cut sho")
            raise KeyboardInterrupt

    monkeypatch.setattr(Accelerator, "save_state", killed_while_saving)
    with pytest.raises(KeyboardInterrupt):
        main([*arguments, "--output_dir", str(broken)])
    monkeypatch.setattr(Accelerator, "save_state", save_state)
    assert [path.name for path in program("training_utils").checkpoints(broken)] == ["checkpoint-2", "checkpoint-4"]
    with pytest.raises(ValueError, match="must hold no checkpoints of an earlier run"):
        main([*arguments, "--output_dir", str(broken)])

    main([*arguments, "--output_dir", str(broken), "--resume_from_checkpoint", "latest"])
    assert [path.name for path in program("training_utils").checkpoints(broken)] == ["checkpoint-6", "checkpoint-8"]
    assert not list(broken.glob("partial-*"))
    expected, resumed = weights_of(whole), weights_of(broken)
    assert expected.keys() == resumed.keys()
    for key, weight in expected.items():
        assert torch.equal(weight, resumed[key]), key


def test_resuming_from_what_is_no_checkpoint(idx_folder: Path, tmp_path: Path) -> None:
    arguments = ["--data_dir", str(idx_folder), "--output_dir", str(tmp_path / "out"), *VQ_ARGUMENTS]
    with pytest.raises(ValueError, match="`resume_from_checkpoint` must be 'latest' or a folder checkpoint-STEP"):
        program("train_vq").main([*arguments, "--resume_from_checkpoint", str(tmp_path)])


# --- the tokenizer ---------------------------------------------------------------------------------------------------


def test_the_codebook_finds_all_clusters_and_no_code_stays_dead() -> None:
    torch.manual_seed(0)
    centres = torch.randn(8, 4) * 5
    model = VQModel(num_vq_embeddings=12, latent_channels=4, block_out_channels=(32,))
    quantizer, updater = model.quantize, program("train_vq").follow(model, decay=0.9)
    accelerator = Accelerator(cpu=True)
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        cluster = torch.randint(8, (16, 10, 10), generator=generator)
        noise = 0.05 * torch.randn(16, 10, 10, 4, generator=generator)
        quantizer((centres[cluster] + noise).movedim(-1, 1))
        updater.step(accelerator, generator)
    nearest = torch.cdist(centres, quantizer.embedding.weight)
    assert nearest.min(1).values.max() < 0.2
    # Every code sits at a cluster, though there are more codes than clusters.
    assert nearest.min(0).values.max() < 0.2
    assert quantizer.embedding.weight.grad is None
    assert not quantizer.embedding.weight.requires_grad


def test_the_tokenizer_learns_and_loads_with_plain_diffusers(tokenizer_folder: Path, idx_folder: Path) -> None:
    vqvae = VQModel.from_pretrained(tokenizer_folder)
    assert vqvae.config.lookup_from_codebook
    images = load_labelled_images("test", data_dir=idx_folder).images.float() / 255
    with torch.no_grad():
        codes = vqvae.quantize(vqvae.encode(images).latents)[2][2].view(-1, 2, 2)
        decoded = vqvae.decode(codes, force_not_quantize=True, shape=(*codes.shape, 4)).sample.clamp(0, 1)
    error = F.mse_loss(decoded, images)
    # The best constant image is the yardstick.
    assert error < 0.3 * F.mse_loss(images.mean(0, keepdim=True).expand_as(images), images)
    assert codes.unique().numel() > 3


def test_bf16_saves_full_precision(idx_folder: Path, tmp_path: Path) -> None:
    arguments = ["--data_dir", str(idx_folder), "--output_dir", str(tmp_path / "half"), *VQ_ARGUMENTS]
    program("train_vq").main([*arguments, "--max_train_steps", "3", "--mixed_precision", "bf16"])
    assert all(weight.dtype == torch.float32 for weight in weights_of(tmp_path / "half").values())


# --- the denoiser ----------------------------------------------------------------------------------------------------


def test_the_loss_counts_masked_positions_and_real_tokens_only() -> None:
    torch.manual_seed(0)
    logits, codes = torch.randn(2, 4, 6), torch.randint(5, (2, 2, 2))
    masked = torch.tensor([[[True, False], [True, True]], [[False, False], [False, True]]])
    loss = program("denoiser_training").masked_loss(logits, codes, masked, 5)
    log_probabilities = logits[..., :5].log_softmax(-1)[masked.flatten(1)]
    expected = -log_probabilities.gather(1, codes[masked][:, None]).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    changed = logits.clone()
    changed[..., 5] = 100
    changed[~masked.flatten(1)] = -3
    assert program("denoiser_training").masked_loss(changed, codes, masked, 5) == loss
    assert program("denoiser_training").masked_loss(logits, codes, torch.zeros_like(masked), 5) == 0


def test_training_writes_a_whole_pipeline_that_draws_its_classes(
    idx_folder: Path, tokenizer_folder: Path, tmp_path: Path
) -> None:
    arguments = ["--data_dir", str(idx_folder), "--tokenizer", str(tokenizer_folder), *MASKGIT_ARGUMENTS]
    main = program("train_maskgit").main
    untrained = main([*arguments, "--output_dir", str(tmp_path / "short"), "--max_train_steps", "1"])
    trained = main([*arguments, "--output_dir", str(tmp_path / "long"), "--max_train_steps", "250"])
    assert untrained == pytest.approx(np.log(16), abs=0.3)
    assert trained < untrained - 0.7

    pipe = MaskGITPipeline.from_pretrained(tmp_path / "long")
    assert isinstance(pipe.scheduler, MomentScheduler)
    assert pipe.scheduler.config.mask_token_id == pipe.transformer.config.codebook_size == 16
    assert {int(key): value for key, value in pipe.transformer.config.id2label.items()} == {0: "0", 1: "1", 2: "2"}
    pipe.set_progress_bar_config(disable=True)
    labels = torch.arange(30) % NUM_CLASSES
    generators = [torch.Generator().manual_seed(i) for i in range(30)]
    images = pipe(labels, num_inference_steps=4, generator=generators, output_type="pt").images
    # The bar of class c is at columns 3c and 3c + 1.
    brightness = torch.stack([images[..., 3 * c : 3 * c + 2].mean((1, 2, 3)) for c in range(NUM_CLASSES)], -1)
    assert (brightness.argmax(-1) == labels).double().mean() > 0.8


# --- the language model ----------------------------------------------------------------------------------------------


def test_a_language_model_learns_its_text_and_writes_it(text_folder: Path, tmp_path: Path) -> None:
    arguments = ["--data_dir", str(text_folder), *MDLM_ARGUMENTS, "--ema_decay", "0.99"]
    main = program("train_mdlm").main
    untrained = main([*arguments, "--output_dir", str(tmp_path / "short"), "--max_train_steps", "1"])
    trained = main([*arguments, "--output_dir", str(tmp_path / "long"), "--max_train_steps", "300"])
    # 12 letters, a line break, a token for the unknown and one for padding; then one letter in 16 to be guessed.
    assert untrained == pytest.approx(np.log(15), abs=0.4)
    assert trained < 0.35 * untrained

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "long", subfolder="tokenizer")
    model = MDLMTransformer.from_pretrained(tmp_path / "long", subfolder="transformer")
    scheduler = MomentScheduler.from_pretrained(tmp_path / "long", subfolder="scheduler")
    mask = model.config.vocab_size - 1
    assert mask == tokenizer.mask_token_id == scheduler.config.mask_token_id == len(tokenizer) - 1
    # One letter alone tells where the others are only to a model that trained for long; four do to this one.
    right = (ALPHABET * 2)[2:18]
    prompt = "".join(letter if i % 4 == 0 else "[MASK]" for i, letter in enumerate(right))
    sample = tokenizer([prompt] * 20, return_tensors="pt").input_ids
    assert sample.shape == (20, 16)
    scheduler.set_timesteps(6)
    generator = torch.Generator().manual_seed(0)
    for t in scheduler.timesteps:
        sample = scheduler.step(model(sample, t).logits, t, sample, 12 / 16, generator).prev_sample
    hits = [a == b for text in tokenizer.batch_decode(sample) for a, b in zip(text, right, strict=True)]
    assert np.mean(hits) > 0.8


def test_a_character_tokenizer_gives_every_text_back(tmp_path: Path) -> None:
    module, text = program("train_mdlm"), "Zwei  Wörter ,\n\t'tis [x]!"
    tokenizer = module.load_tokenizer(None, None, [text])
    assert module.codebook_size(tokenizer) == len(set(text) | {"\n"})
    tokenizer.save_pretrained(tmp_path)
    for loaded in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        ids = loaded(text).input_ids
        assert len(ids) == len(text)
        assert loaded.decode(ids) == text
        assert loaded("q").input_ids == [loaded.unk_token_id]
        assert loaded("x[MASK]").input_ids[1] == loaded.mask_token_id == len(loaded) - 1
        assert loaded(["x", "xx"], padding=True).attention_mask == [[1, 0], [1, 1]]
    assert module.encode(tokenizer, ["x", ""]).tolist() == [*tokenizer("x\n").input_ids, *tokenizer("\n").input_ids]


def test_a_tokenizer_by_name_gets_its_mask_last(tmp_path: Path) -> None:
    module = program("train_mdlm")
    other = module.character_tokenizer(["abc"])
    other.add_special_tokens({"mask_token": "a", "eos_token": "<eos>"})
    other.save_pretrained(tmp_path)
    tokenizer = module.load_tokenizer(str(tmp_path), None, [])
    assert tokenizer.mask_token_id == len(tokenizer) - 1
    assert module.encode(tokenizer, ["b", "c"])[[1, 3]].tolist() == [tokenizer.eos_token_id] * 2
    assert module.codebook_size(tokenizer) == len(tokenizer) - 1  # the end of a text may be written


def test_learned_byte_pairs_give_every_text_of_theirs_back(tmp_path: Path) -> None:
    module, text = program("train_mdlm"), "to be or not to be,\nthat is the question: to be or not"
    tokenizer = module.load_tokenizer(None, 30, [text])
    tokenizer.save_pretrained(tmp_path)
    for loaded in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        ids = loaded(text).input_ids
        assert len(ids) < 0.6 * len(text)
        assert loaded.decode(ids) == text
        assert loaded("Ä").input_ids == [loaded.unk_token_id] == [30]
        assert loaded("to[MASK]").input_ids[-1] == loaded.mask_token_id == len(loaded) - 1 == 31
        assert module.codebook_size(loaded) == 30


def test_times_are_uniform_and_one_in_each_equal_part() -> None:
    module = program("train_mdlm")
    draws = [module.spread_times(8, torch.Generator().manual_seed(i), torch.device("cpu")) for i in range(400)]
    for times in draws:
        assert (times > 0).all()
        assert (times <= 1).all()
        spaced = times.sort().values.diff()
        torch.testing.assert_close(spaced, torch.full((7,), 0.999 / 8))
    assert torch.stack([times.min() for times in draws]).mean().item() == pytest.approx(1 / 16, abs=0.01)


def test_a_text_too_short_is_refused(text_folder: Path, tmp_path: Path) -> None:
    arguments = ["--data_dir", str(text_folder), "--output_dir", str(tmp_path / "out"), *MDLM_ARGUMENTS]
    with pytest.raises(ValueError, match="`model_length` must be at most 73 for this text, got 100"):
        program("train_mdlm").main([*arguments, "--model_length", "100"])


# --- the classifier --------------------------------------------------------------------------------------------------


def test_the_classifier_learns_and_reads_bytes_and_floats_alike(idx_folder: Path, tmp_path: Path) -> None:
    # Training shifts its images, so here the class is the width of the bar and not its place.
    for prefix in ("train", "t10k"):
        (path,) = idx_folder.glob(f"{prefix}-images*")
        labels = read_idx(next(idx_folder.glob(f"{prefix}-labels*")))
        widths = 1 + 2 * labels.astype(int)[:, None, None]
        bars = np.where(np.arange(SIDE) < widths, 200, 0).repeat(SIDE, 1).astype(np.uint8)
        write_idx(path, bars + np.random.default_rng(2).integers(0, 40, bars.shape, np.uint8))
    arguments = ["--data_dir", str(idx_folder), "--output_dir", str(tmp_path / "classifier"), "--feature_size", "8"]
    accuracy = program("train_digit_classifier").main([*arguments, "--max_train_steps", "100", "--batch_size", "32"])
    assert accuracy > 0.95
    classifier = DigitClassifier.from_pretrained(tmp_path / "classifier")
    images, labels, _ = load_labelled_images("test", data_dir=idx_folder)
    classes, features = classifier.read(images, batch_size=7)
    assert (classes == labels).double().mean().item() == accuracy
    assert features.shape == (30, 8)
    from_floats = classifier.read(images.float() / 255)
    assert torch.equal(from_floats[0], classes)
    torch.testing.assert_close(from_floats[1], features)
    with pytest.raises(ValueError, match=r"shape \(batch_size, 1, 8, 8\), got \(2, 1, 4, 4\)"):
        classifier(torch.zeros(2, 1, 4, 4))


def test_the_shipped_classifier_is_small(tmp_path: Path) -> None:
    DigitClassifier().save_pretrained(tmp_path)
    assert (tmp_path / "diffusion_pytorch_model.safetensors").stat().st_size < 600_000


# --- the benchmark that measures them --------------------------------------------------------------------------------


def test_the_benchmark_resumes_and_does_not_depend_on_batches(
    idx_folder: Path, tokenizer_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES.parent / "benchmarks"))
    images, data = program("images"), ["--data_dir", str(idx_folder)]
    arguments = [*data, "--tokenizer", str(tokenizer_folder), *MASKGIT_ARGUMENTS, "--max_train_steps", "1"]
    program("train_maskgit").main([*arguments, "--output_dir", str(tmp_path / "pipeline")])
    DigitClassifier(sample_size=SIDE, num_classes=3, feature_size=4).save_pretrained(
        tmp_path / "pipeline" / "digit_classifier"
    )
    arguments = [*data, "--pipeline", str(tmp_path / "pipeline"), "--steps", "1", "3", "--num_images", "12"]
    arguments += ["--guidance_scale", "2", "--num_seeds", "2"]
    whole = images.main([*arguments, "--output_dir", str(tmp_path / "whole"), "--batch_size", "5"])

    generate, calls = images.Bench.generate, []

    def killed(self: object, *cell: object) -> dict[str, float]:
        calls.append(cell)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return generate(self, *cell)

    monkeypatch.setattr(images.Bench, "generate", killed)
    with pytest.raises(KeyboardInterrupt):
        images.main([*arguments, "--output_dir", str(tmp_path / "broken")])
    with pytest.raises(ValueError, match="Pass --resume to keep its cells"):
        images.main([*arguments, "--output_dir", str(tmp_path / "broken")])
    with pytest.raises(ValueError, match=r"got others for \['num_images'\]"):
        images.main([*arguments, "--num_images", "11", "--output_dir", str(tmp_path / "broken"), "--resume"])
    resumed = images.main([*arguments, "--output_dir", str(tmp_path / "broken"), "--resume"])

    # Two references of two seeds; seven samplers, two numbers of steps and two seeds; one call was cut short.
    assert len(whole["cells"]) == len(resumed["cells"]) == 4 + 28
    assert len(calls) == 28 + 1
    for cell, again in zip(whole["cells"], resumed["cells"], strict=True):
        assert {key: cell[key] for key in ("sampler", "steps", "seed")}.items() <= again.items()
        assert cell["frechet"] == pytest.approx(again["frechet"], rel=1e-4)
        # Guidance costs a second pass.
        assert cell["accuracy"] == again["accuracy"]
        assert cell["passes"] == again["passes"] == 2 * cell["steps"]
    assert (tmp_path / "broken" / "frechet.png").stat().st_size > 5_000


def test_the_benchmark_of_the_entropy_bound_counts_the_passes_of_each_image(
    idx_folder: Path,
    tokenizer_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES.parent / "benchmarks"))
    data, pipeline, output = ["--data_dir", str(idx_folder)], tmp_path / "pipeline", tmp_path / "out"
    arguments = [*data, "--tokenizer", str(tokenizer_folder), *MASKGIT_ARGUMENTS, "--max_train_steps", "1"]
    program("train_maskgit").main([*arguments, "--output_dir", str(pipeline)])
    DigitClassifier(sample_size=SIDE, num_classes=3, feature_size=4).save_pretrained(pipeline / "digit_classifier")
    positions = program("train_maskgit").MaskGITPipeline.from_pretrained(pipeline).transformer.config.sample_size ** 2
    arguments = [*data, "--pipeline", str(pipeline), "--output_dir", str(output), "--num_images", "12"]
    arguments += ["--num_seeds", "1", "--batch_size", "5", "--steps", "2", "--baseline_steps", "2", "3"]
    arguments += ["--bounds", "0", "4", "1e9", "--num_positions", str(positions)]
    results = program("entropy_bound").main(arguments)
    passes = {(cell["sampler"], cell["steps"]): (cell["passes"], cell["calls"]) for cell in results["cells"]}
    assert passes["bound 0", positions] == (positions, positions)
    assert passes["bound 1e+09", positions] == (1, 1)
    # The slowest image of a batch decides.
    assert 1 < passes["bound 4", positions][0] <= passes["bound 4", positions][1] < positions
    for bound in ("0", "4"):
        assert passes[f"bound {bound}, on schedule", 2] == passes[f"bound {bound}, cut off", 2] == (2, 2)
    assert passes["entropy order", 3] == passes["uniform order", 3] == (3, 3)
    printed = capsys.readouterr().out
    assert f"| bound 0 | {positions} | {positions}.0 | {positions}.0 |" in printed
    assert len([line for line in printed.splitlines() if line.startswith("| ")]) == 2 + len(results["cells"])
    assert (output / "entropy_bound.png").stat().st_size > 5_000


# --- as a user starts them -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["train_vq", "train_maskgit", "train_mdlm", "train_digit_classifier"])
def test_the_command_in_the_header_is_understood(name: str) -> None:
    module = program(name)
    commands = re.findall(r"^    ((?:accelerate launch|python) examples/(?:.*\\\n)*.*)$", module.__doc__, re.MULTILINE)
    assert len(commands) == 1
    words = shlex.split(commands[0].replace("\\\n", " "))
    assert f"examples/{name}.py" in words
    parsed = module.parse_args(words[words.index(f"examples/{name}.py") + 1 :])
    assert parsed.dataset == ("karpathy/tiny_shakespeare" if name == "train_mdlm" else "ylecun/mnist")


@pytest.mark.exhaustive
def test_two_processes_train_one_codebook(idx_folder: Path, tmp_path: Path) -> None:
    words = ["--data_dir", str(idx_folder), "--output_dir", str(tmp_path / "out"), *VQ_ARGUMENTS]
    words += ["--max_train_steps", "40", "--checkpointing_steps", "20"]
    group = launched.start(EXAMPLES / "train_vq.py", words, tmp_path / "printed")
    assert group.wait(300) == [0, 0], group.printed()
    states = [
        torch.load(tmp_path / "out" / "checkpoint-40" / f"custom_checkpoint_{i}.pkl", weights_only=True)
        for i in range(3)
    ]
    # Counts are running means of latents over both processes: 2 x 16 images of 2 x 2 codes.
    assert states[0]["counts"].sum().item() == pytest.approx(2 * 16 * 4, rel=0.3)
    assert weights_of(tmp_path / "out")


def test_two_processes_end_by_one_clock(idx_folder: Path, tmp_path: Path) -> None:
    """That of the main process, though the other's runs five times as fast; else their weights would drift apart."""

    def write_rates() -> None:
        rank, training, times = os.environ["RANK"], program("training_utils"), itertools.count(1)
        training.time = SimpleNamespace(monotonic=lambda: (1 + 4 * int(rank)) * next(times))  # a second for each look
        clock, usual = training.Clock, training.Clock.learning_rate

        def noted(self: object, step: int) -> float:
            rate = usual(self, step)
            with (tmp_path / f"rates-{rank}").open("a") as file:
                file.write(f"{step} {rate!r}\n")
            return rate

        clock.learning_rate = noted

    words = ["--data_dir", str(idx_folder), "--output_dir", str(tmp_path / "out"), *VQ_ARGUMENTS]
    words += ["--max_train_steps", "1000000", "--max_seconds", "10"]
    group = launched.start(EXAMPLES / "train_vq.py", words, tmp_path / "printed", first=write_rates)
    assert group.wait(60) == [0, 0], group.printed()
    rates = [(tmp_path / f"rates-{rank}").read_text().splitlines() for rank in range(2)]
    assert rates[0] == rates[1]
    steps, rate = rates[0][-1].split()
    assert (int(steps), float(rate)) == (9, pytest.approx(0.5 + 0.5 * math.cos(math.pi * 0.9)))
    (last,) = (tmp_path / "out").glob("checkpoint-*")
    assert last.name == f"checkpoint-{steps}"
