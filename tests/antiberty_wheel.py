"""Wheels like AntiBERTy's, small and with random weights, and its tensors read without any code of this project."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import torch
from tiny_weights import draw_weights
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM

TRAINED = "antiberty/trained_models"
WEIGHTS = f"{TRAINED}/AntiBERTy_md_smooth/pytorch_model.bin"
CONFIG = f"{TRAINED}/AntiBERTy_md_smooth/config.json"
VOCABULARY = f"{TRAINED}/vocab.txt"
LICENCE = "antiberty-0.1.3.dist-info/LICENSE.MD"
RESIDUES = "ACDEFGHIKLMNPQRSTVWY"
SETTINGS = {
    "_name_or_path": "somewhere/checkpoint-1",
    "architectures": ["AntiBERTy"],
    "attention_probs_dropout_prob": 0.1,
    "gradient_checkpointing": False,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 32,
    "initializer_range": 0.02,
    "intermediate_size": 48,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 160,
    "model_type": "bert",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "pad_token_id": 0,
    "position_embedding_type": "absolute",
    "transformers_version": "4.5.1",
    "type_vocab_size": 2,
    "use_cache": True,
    "vocab_size": 25,
}


def tensors() -> dict[str, Tensor]:
    """What `pytorch_model.bin` holds: a `BertForMaskedLM`, the heads beside it, the pooler and a buffer."""
    torch.manual_seed(0)
    model = BertForMaskedLM(BertConfig(**{k: SETTINGS[k] for k in SETTINGS if k.endswith(("_size", "s", "act"))}))
    draw_weights(model)
    model.cls.predictions.bias.data[:5] = -50  # like the released model: special tokens are not to be expected
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    heads = {"cls.species": (6, 32), "cls.chain": (2, 32), "cls.graft": (2, 32), "bert.pooler.dense": (32, 32)}
    for name, shape in heads.items():
        weights |= {f"{name}.weight": torch.randn(shape), f"{name}.bias": torch.randn(shape[:1])}
    places = SETTINGS["max_position_embeddings"]
    return weights | {"bert.embeddings.position_ids": torch.arange(places)[None]}


def saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def contents(weights: dict[str, Tensor] | None = None) -> dict[str, bytes]:
    """The files of the wheel."""
    return {
        "antiberty/__init__.py": b"raise AssertionError('code of the wheel was run')\n",
        WEIGHTS: saved(tensors() if weights is None else weights),
        CONFIG: json.dumps(SETTINGS).encode(),
        VOCABULARY: "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *RESIDUES]).encode(),
        f"{TRAINED}/AntiBERTy_md_smooth/training_args.bin": b"not read",
        LICENCE: b"MIT License\n\nCopyright (c) 2023 Somebody\n",
        "antiberty-0.1.3.dist-info/METADATA": b"Name: antiberty\n",
    }


def write_wheel(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def unpack(wheel: Path, folder: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def raw_model(wheel: Path) -> BertForMaskedLM:
    """The model by torch and transformers alone, as somebody would load it by hand."""
    with zipfile.ZipFile(wheel) as archive:
        config = json.loads(archive.read(CONFIG))
        weights = torch.load(io.BytesIO(archive.read(WEIGHTS)), map_location="cpu", weights_only=True)
    model = BertForMaskedLM(BertConfig(**config))
    missing, _ = model.load_state_dict(weights, strict=False)
    assert not missing
    return model.eval()
