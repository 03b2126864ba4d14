"""Tiny text-to-image pipelines without a text encoder: prompts come encoded."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import UVit2DModel, VQModel
from tiny_weights import draw_weights

from hf_maskdiff import MaskedDiffusionScheduler, MaskedDiffusionTextToImagePipeline, MomentScheduler

CODES, MASK, SIDE, SCALE = 16, 17, 4, 2  # the table has rows between codes and mask, as aMUSEd's


def transformer(**changes: Any) -> UVit2DModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 12}
    sizes |= {"in_channels": 10, "block_out_channels": 12, "block_num_heads": 2, "num_res_blocks": 1}
    sizes |= {"cond_embed_dim": 6, "micro_cond_encode_dim": 4, "micro_cond_embed_dim": 20, "encoder_hidden_size": 8}
    sizes |= {"vocab_size": MASK + 1, "codebook_size": CODES, "sample_size": SIDE}
    model = UVit2DModel(**(sizes | changes))
    draw_weights(model)
    return model.eval()


def vqvae() -> VQModel:
    torch.manual_seed(1)
    model = VQModel(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        latent_channels=4,
        num_vq_embeddings=CODES,
        norm_num_groups=4,
        lookup_from_codebook=True,
    )
    draw_weights(model)
    return model.eval()


def pipeline(scheduler: MaskedDiffusionScheduler | None = None, **changes: Any) -> MaskedDiffusionTextToImagePipeline:
    scheduler = scheduler or MomentScheduler(mask_token_id=MASK, codebook_size=CODES)
    pipe = MaskedDiffusionTextToImagePipeline(vqvae(), None, None, transformer(**changes), scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def prompts(pipe: MaskedDiffusionTextToImagePipeline, *seeds: int, negative: bool = True) -> dict[str, torch.Tensor]:
    """Encoded prompts of a call, each made from a number, and one negative prompt."""
    config = pipe.transformer.config

    def drawn(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        noise = torch.Generator().manual_seed(seed)
        pooled = torch.randn(config.cond_embed_dim, generator=noise)
        return pooled, torch.randn(3, config.encoder_hidden_size, generator=noise)

    pooled, hidden = (torch.stack(parts) for parts in zip(*map(drawn, seeds), strict=True))
    given = {"prompt_embeds": pooled, "encoder_hidden_states": hidden}
    if negative:
        pooled, hidden = drawn(-1 % 2**32)
        given |= {"negative_prompt_embeds": pooled[None], "negative_encoder_hidden_states": hidden[None]}
    return given


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]
