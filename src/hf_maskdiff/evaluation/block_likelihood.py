"""The likelihood bound of a language model that writes block by block: what such a model is trained on."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hf_maskdiff.evaluation.likelihood import nelbo
from hf_maskdiff.models import MDLMTransformer


def noisy_and_clean_mask(length: int, block_size: int, device: torch.device | None = None) -> Tensor:
    """Which positions see which, in a pass over partly masked tokens followed by the same tokens unmasked.

    A masked block sees itself and all unmasked blocks before it, as in sampling; an unmasked block sees itself and the
    unmasked ones before it. So one pass predicts every block from its finished predecessors.

    Args:
        length: number of tokens of each of the two, a multiple of `block_size`.
        block_size: positions in a block.

    Returns:
        bool `(1, 1, 2 length, 2 length)`, queries before keys, True where a query sees a key.
    """
    block = torch.arange(length, device=device) // block_size
    query, key = block[:, None], block[None]
    noisy = torch.cat([query == key, query > key], 1)
    clean = torch.cat([torch.zeros_like(query == key), query >= key], 1)
    return torch.cat([noisy, clean])[None, None]


class NoisyAndClean(nn.Module):
    """Predicts every block of partly masked tokens from that block and the unmasked tokens before it, in one pass.

    It is a module, so that `accelerate` can prepare it for several processes; it has no weights but the model's.

    ```python
    objective = NoisyAndClean(model, block_size=16)
    loss = block_nelbo(objective(sample, tokens), sample, tokens, times, mask_token_id).mean()
    ```

    Args:
        model: the denoiser, without `time_conditioning`: blocks of a row have different times.
        block_size: positions in a block; the model then writes such blocks from left to right.

    Raises:
        ValueError: the model has `time_conditioning`.

    Source: Arriola et al., "Block Diffusion", arXiv 2503.09573, section 4 and appendix B.
    """

    def __init__(self, model: MDLMTransformer, block_size: int) -> None:
        super().__init__()
        if model.config.time_conditioning:
            raise ValueError(
                "block diffusion needs a model without `time_conditioning`, got one with it: every block has its own "
                "time. Make the model without."
            )
        self.model, self.block_size = model, block_size

    def forward(self, sample: Tensor, tokens: Tensor) -> Tensor:
        """Logits of the masked tokens.

        Args:
            sample: partly masked tokens, int64 `(batch_size, L)`; L must be a multiple of `block_size`.
            tokens: the tokens before masking, int64 `(batch_size, L)`.

        Returns:
            `(batch_size, L, vocab_size)`.

        Raises:
            ValueError: L is no multiple of `block_size`.
        """
        model, length = self.model, sample.shape[1]
        if length % self.block_size:
            raise ValueError(
                f"rows must have a multiple of `block_size` = {self.block_size} tokens, got {length}. Cut or pad them."
            )
        seen = noisy_and_clean_mask(length, self.block_size, sample.device)
        rotary = model.rotary_emb(torch.arange(length, device=sample.device).repeat(2))
        hidden_states = model.vocab_embed(torch.cat([sample, tokens], 1))
        condition = model.sigma_map(torch.zeros(1, device=sample.device), hidden_states.dtype)
        for block in model.blocks:
            hidden_states = block(hidden_states, condition, rotary, seen)
        return model.output_layer(hidden_states[:, :length], condition)


def block_nelbo(
    logits: Tensor, sample: Tensor, original_samples: Tensor, timesteps: Tensor, mask_token_id: int
) -> Tensor:
    """Negative evidence lower bound per token, in nats, with a time for every block: see `nelbo`.

    Args:
        logits: `(batch_size, L, vocab_size)`, any float dtype.
        sample: partly masked tokens, int64 `(batch_size, L)`.
        original_samples: the tokens before masking, shaped like `sample`.
        timesteps: t in (0, 1] of each block, `(batch_size, L / block_size)`.
        mask_token_id: id of the mask, a column of `logits`.

    Returns:
        `(batch_size, L)`, at least float32.
    """
    blocks = timesteps.numel()
    parts = logits.reshape(blocks, -1, logits.shape[-1]), sample.reshape(blocks, -1)
    return nelbo(*parts, original_samples.reshape(blocks, -1), timesteps.flatten(), mask_token_id).view(sample.shape)
