"""A conversion's peak of memory is near the size of the weights, whatever the format."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from maskgen_folder import HEADS, MASKGEN, SCORE, TEXT, VQ, WORDS, save_clip
from maskgen_reference import MaskGenReference, TATiTokReference
from meissonic_folder import SIZES, save_meissonic, save_text_encoder, write_json
from safetensors.torch import save_file, save_model
from test_convert import make_tokenizer
from test_dimo_traces import tokenizer_with
from test_sdtt import sdtt_config
from tiny_text_to_image import transformer, vqvae
from titok_reference import Tokenizer, UViTGenerator

from hf_maskdiff import MDLMTransformer
from hf_maskdiff.conversion.convert import convert

Source = tuple[Path, Mapping[str, Any]]  # what is converted, and how `convert` is called besides


def sdtt(root: Path) -> Source:
    sizes = {"hidden_size": 512, "cond_dim": 128, "n_blocks": 4, "n_heads": 8, "length": 16}
    ours = {"hidden_dim": 512, "cond_dim": 128, "n_blocks": 4, "n_heads": 8, "model_length": 16, "vocab_size": 2000}
    weights = {f"backbone.{name}": tensor for name, tensor in MDLMTransformer(**ours).state_dict().items()}
    (root / "model").mkdir()
    save_file(weights, root / "model" / "model.safetensors")
    write_json(root / "model" / "config.json", sdtt_config(**sizes))
    return root / "model", {"tokenizer": make_tokenizer(root / "words", 1999)}


def amused(root: Path) -> Source:
    sizes = {"hidden_size": 512, "num_attention_heads": 8, "intermediate_size": 1536, "num_hidden_layers": 4}
    transformer(**sizes, vocab_size=2000).save_pretrained(root / "model" / "transformer")
    vqvae().save_pretrained(root / "model" / "vqvae")
    write_json(
        root / "model" / "scheduler" / "scheduler_config.json", {"_class_name": "AmusedScheduler", "mask_token_id": 17}
    )
    save_text_encoder(root / "model")
    parts = {"scheduler": "AmusedScheduler", "transformer": "UVit2DModel", "vqvae": "VQModel"}
    index = {name: ["diffusers", found] for name, found in parts.items()}
    index |= {"text_encoder": ["transformers", "CLIPTextModelWithProjection"]}
    index |= {"tokenizer": ["transformers", "CLIPTokenizer"]}
    write_json(root / "model" / "model_index.json", {"_class_name": "AmusedPipeline", **index})
    return root / "model", {}


def meissonic(root: Path) -> Source:
    with patch.dict(SIZES, {"pooled_projection_dim": 256}):  # of the text encoder too
        save_meissonic(root / "model", num_attention_heads=16, num_single_layers=12)
    return root / "model", {}


def titok(root: Path) -> Source:
    generator = UViTGenerator(5, 2000, 4, 512, 5, 8, 2048)
    tokenizer = Tokenizer(3, 5, 2000, token=4, reading=64, writing=64, pixels=20)
    for name, model in (("model", generator), ("tokenizer", tokenizer)):
        (root / name).mkdir()
        save_file(
            {key: value.contiguous() for key, value in model.state_dict().items()}, root / name / "model.safetensors"
        )
        settings = {"model": {"vq_model": {"codebook_size": 2000, "use_l2_norm": True}, "generator": {}}}
        (root / name / "config.json").write_text(json.dumps(settings))
    return root / "model", {"tokenizer": root / "tokenizer", "num_attention_heads": [8]}


def maskgen(root: Path) -> Source:
    generator = MaskGenReference(8, 2000, 384, 4, HEADS, TEXT, 32, SCORE)
    tokenizer = TATiTokReference(2, 8, 2000, 4, 64, 128, WORDS, TEXT)
    for name, model, part in (("model", generator, {"maskgen": MASKGEN}), ("tokenizer", tokenizer, {})):
        write_json(root / name / "config.json", {"model": {"vq_model": VQ, **part}})
        save_model(model, str(root / name / "model.safetensors"))
    save_clip(root)
    return root / "model", {"tokenizer": root / "tokenizer", "text_encoder": root / "clip"}


def dimo(root: Path, width: int = 512, inner: int = 2048, num_layers: int = 4) -> Source:
    """The released sizes are 768, 3072 and 24, of 1024 codes and 1000 classes."""
    codes, classes, places = 1024, 1000, 257
    rows = codes + 1 + classes + 1
    shapes: dict[str, tuple[int, ...]] = {"pos_emb": (1, places, width), "bias": (places, rows)}
    shapes["tok_emb.weight"] = (rows, width)
    blocks = [f"transformer.layers.{i}." for i in range(num_layers)]
    norms = [f"{block}{part}.norm" for block in blocks for part in (0, 1)]
    for norm in [*norms, "first_layer.0", "first_layer.4", "last_layer.0", "last_layer.4"]:
        shapes |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
    linears = dict.fromkeys(("first_layer.2", "first_layer.6", "last_layer.2"), (width, width))
    for block in blocks:
        linears |= {f"{block}0.fn.mha.out_proj": (width, width)}
        linears |= {f"{block}1.fn.net.0": (inner, width), f"{block}1.fn.net.3": (width, inner)}
        shapes[f"{block}0.fn.mha.in_proj_weight"], shapes[f"{block}0.fn.mha.in_proj_bias"] = (
            (3 * width, width),
            (3 * width,),
        )
    for name, shape in linears.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    torch.save({name: torch.randn(shape) / 100 for name, shape in shapes.items()}, root / "pytorch_model.bin")
    return root / "pytorch_model.bin", {"tokenizer": tokenizer_with(codes, root), "num_attention_heads": [16]}


def memory(entry: str) -> int:
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith(entry)).split()[1]) * 1024


def peak_of(source: Path, output: Path, given: Mapping[str, Any], answer: Any) -> None:
    """In a process of its own: send how far memory rises."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    before = memory("VmRSS")
    convert(source, output, **given)
    answer.send(memory("VmHWM") - before)


@pytest.mark.exhaustive
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="this system does not tell a program's peak")
@pytest.mark.parametrize("make", [sdtt, amused, meissonic, titok, maskgen, dimo])
def test_memory_stays_near_the_model_s_size(make: Callable[[Path], Source], tmp_path: Path) -> None:
    torch.manual_seed(0)
    source, given = make(tmp_path)
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(
        target=peak_of, args=(source, tmp_path / "out", given, sender)
    )
    process.start()
    sender.close()
    peak = receiver.recv()
    process.join()
    size = sum(file.stat().st_size for file in (tmp_path / "out").rglob("*.safetensors"))
    assert size > 50e6
    print(f"{make.__name__}: {peak / size:.2f} times {size / 1e6:.0f} MB")
    assert peak < 1.1 * size + 30e6  # a second copy of the weights would be twice the size
