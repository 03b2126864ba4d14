"""Tiny audio pipelines of random weights: codecs of transformers with frames of 8 samples, 4 codebooks of 16 codes."""

from __future__ import annotations

from typing import Any

import torch
from tiny_weights import draw_weights
from torch import Tensor, nn
from transformers import DacConfig, DacModel, EncodecConfig, EncodecModel, PreTrainedModel

from hf_maskdiff import MaskedDiffusionAudioPipeline, MomentScheduler, VampNetTransformer

CODES, CODEBOOKS, COARSE, HOP, RATE = 16, 4, 2, 8, 80  # so ten frames are a second
MASK = CODES


def dac(**changes: Any) -> DacModel:
    sizes = {"encoder_hidden_size": 4, "decoder_hidden_size": 16, "codebook_dim": 4, "downsampling_ratios": [2, 4]}
    torch.manual_seed(0)
    config = DacConfig(**({"n_codebooks": CODEBOOKS, "codebook_size": CODES, "sampling_rate": RATE} | sizes | changes))
    model = DacModel(config).eval()
    for quantizer in model.quantizer.quantizers:
        nn.init.normal_(quantizer.codebook.weight)
    return model


@torch.no_grad()
def encodec(**changes: Any) -> EncodecModel:
    torch.manual_seed(0)
    sizes = {"num_filters": 4, "hidden_size": 8, "codebook_dim": 8, "num_lstm_layers": 1, "upsampling_ratios": [4, 2]}
    bandwidth = CODEBOOKS * 4 * (RATE // HOP) / 1000  # of four bits a code
    config = EncodecConfig(codebook_size=CODES, sampling_rate=RATE, target_bandwidths=[bandwidth], **(sizes | changes))
    model = EncodecModel(config).eval()
    vectors = model.encoder(torch.randn(1, 1, CODES * HOP))[0].T  # so that a clip uses many codes
    for layer in model.quantizer.layers:
        layer.codebook.embed.copy_(vectors)
        vectors = (vectors - vectors.mean(0)) / 2
    return model


def transformer(**changes: Any) -> VampNetTransformer:
    sizes = {"latent_dim": 4, "hidden_size": 16, "num_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(1)
    model = VampNetTransformer(num_codebooks=COARSE, codebook_size=CODES, **(sizes | changes)).eval()
    draw_weights(model)
    return model


def pipeline(
    codec: PreTrainedModel | None = None, fine: bool = True, **components: Any
) -> MaskedDiffusionAudioPipeline:
    parts: dict[str, Any] = {
        "codec": dac() if codec is None else codec,
        "transformer": transformer(),
        "scheduler": MomentScheduler(mask_token_id=MASK, codebook_size=CODES),
        "fine_transformer": transformer(num_conditioning_codebooks=COARSE) if fine else None,
    }
    pipe = MaskedDiffusionAudioPipeline(**(parts | components))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def clips(num_clips: int = 1, num_frames: int = 12, seed: int = 0) -> Tensor:
    noise = torch.randn(num_clips, 1, num_frames * HOP, generator=torch.Generator().manual_seed(seed))
    return noise.clamp(-3, 3) / 4


def seeds(*numbers: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(number) for number in numbers]
