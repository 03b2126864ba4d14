"""LAC: the original's codes and waveforms, and what a pipeline and users ask of a codec."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from golden_data import COMMITTED
from safetensors.torch import load_file
from torch import Tensor

from hf_maskdiff import LACModel
from hf_maskdiff.conversion.lac import convert_lac, is_lac

CLOSE = {"atol": 2e-5, "rtol": 2e-5}
SIZES: dict[str, Any] = {
    "encoder_dim": 4,
    "encoder_rates": [2, 4],
    "decoder_dim": 8,
    "decoder_rates": [4, 2],
    "n_codebooks": 3,
    "codebook_size": 16,
    "codebook_dim": 4,
}


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(COMMITTED / "vampnet" / "codec.safetensors")


@pytest.fixture(scope="module")
def codec(golden: dict[str, Tensor]) -> Any:
    weights = {name.removeprefix("codec."): tensor for name, tensor in golden.items() if name.startswith("codec.")}
    tree = {"state_dict": weights, "metadata": {"kwargs": {"sample_rate": 8000}}}
    assert is_lac(tree)
    return convert_lac(tree).build()


@torch.no_grad()
def test_the_original_s_codes_and_waveforms(codec: LACModel, golden: dict[str, Tensor]) -> None:
    assert (codec.config.sampling_rate, codec.config.hop_length) == (8000, 8)
    codes = codec.encode(golden["audio"]).audio_codes
    assert torch.equal(codes, golden["codes"])
    assert all(len(codebook.unique()) > 3 for codebook in codes.unbind(1))
    assert 0.05 < golden["decoded"].std() < 0.6
    for name, count in (("decoded", 3), ("decoded_2", 2)):
        audio = codec.decode(audio_codes=codes[:, :count]).audio_values
        torch.testing.assert_close(audio, golden[name], **CLOSE)
    whole = codec(golden["audio"]).audio_values
    torch.testing.assert_close(whole, golden["decoded"], **CLOSE)
    assert whole.shape[-1] - golden["audio"].shape[-1] in range(8)  # whole frames


@torch.no_grad()
def test_clips_do_not_see_each_other(codec: LACModel) -> None:
    audio = torch.randn(2, 1, 160, generator=torch.Generator().manual_seed(0))
    codes = codec.encode(audio, return_dict=False)[0]
    assert codes.shape == (2, 3, 20)
    assert torch.equal(codes[1:], codec.encode(audio[1:]).audio_codes)
    decoded = codec.decode(codes, return_dict=False)[0]
    torch.testing.assert_close(decoded[1:], codec.decode(codes[1:]).audio_values, **CLOSE)


def test_save_and_load(codec: LACModel, tmp_path: Path) -> None:
    codec.save_pretrained(tmp_path)
    loaded = LACModel.from_pretrained(tmp_path)
    assert dict(loaded.config)["hop_length"] == 8
    codes = torch.arange(15).view(1, 3, 5)
    with torch.no_grad():
        assert torch.equal(loaded.decode(codes).audio_values, codec.decode(codes).audio_values)


def test_bad_input_is_one_clear_error(codec: LACModel) -> None:
    for audio in (torch.zeros(1, 2, 80), torch.zeros(1, 80), torch.zeros(1, 1, 0)):
        with pytest.raises(ValueError, match=r"`waveform` must have shape \(batch_size, 1, num_samples\), got"):
            codec.encode(audio)
    for codes in (torch.zeros(1, 4, 5).long(), torch.zeros(1, 5).long(), torch.zeros(1, 3, 5)):
        with pytest.raises(ValueError, match=r"`audio_codes` must be int64 .*1 to 3 codebooks"):
            codec.decode(codes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_codebooks": 0}, "`n_codebooks` must be at least 1, got 0"),
        ({"encoder_rates": [2, 2]}, r"even numbers with one product, got \[2, 2\] and \[4, 2\]"),
        ({"encoder_rates": [3, 3], "decoder_rates": [3, 3]}, "must be even numbers"),
        ({"hop_length": 16}, "`hop_length` must be the product of the rates, 8, got 16"),
        ({"decoder_dim": 6}, "`decoder_dim` must be a multiple of 4"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LACModel(**(SIZES | changes))
