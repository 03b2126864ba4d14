"""The text-to-image denoiser of MaskGen's one-dimensional codes (arXiv 2501.07730, bytedance/1d-tokenizer)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.attention import AttentionMixin
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.normalization import AdaLayerNormContinuous
from torch import Tensor, nn

from hf_maskdiff.caching import KeyValueCache, PartialCacheMixin, places_of
from hf_maskdiff.models.image_tokens import check_codes_of_row, with_noise
from hf_maskdiff.models.maskgen_layers import MaskGenJointBlock, MaskGenLastBlock
from hf_maskdiff.models.maskgit_layers import TokenTable
from hf_maskdiff.models.sized_model import SizedModelMixin


class MaskGenTransformer1DModel(
    SizedModelMixin, ModelMixin, ConfigMixin, AttentionMixin, PartialCacheMixin, PeftAdapterMixin
):
    """Text-to-image denoiser of an image that is a row of codes: takes the weights of MaskGen's generators of codes.

    A bidirectional transformer over `num_tokens` codes and a text's tokens, which have weights of their own and attend
    to all of both. The pooled text and the image's aesthetic score enter through adaptive norms; there is no time. A
    code is no place in the image, see `TATiTokVQModel`. Each token of the text is seen, those that fill it up too, so
    the text encoder has to be given the filling that the model was trained with: `text_pad_token_id`.

    Source: Kim et al., "Democratizing Text-to-Image Masked Generative Models with Compact Text-Aware One-Dimensional
    Tokens", arXiv 2501.07730; repository bytedance/1d-tokenizer (Apache-2.0). An independent implementation.

    Example:

    ```python
    model = MaskGenTransformer1DModel(
        num_tokens=8, codebook_size=64, hidden_size=32, num_layers=2, num_attention_heads=4,
        joint_attention_dim=24, pooled_projection_dim=20, micro_cond_encode_dim=16,
    )
    sample = torch.full((2, 8), 64)                                  # everything masked
    logits = model(
        sample,
        encoder_hidden_states=torch.randn(2, 7, 24),                 # of the text's 7 tokens
        pooled_projections=torch.randn(2, 20),
        micro_conds=torch.tensor([[6.5], [6.5]]),                    # aesthetic score
    ).sample                                                         # (2, 8, 64)
    ```

    Args:
        num_tokens (`int`): Codes of an image.
        codebook_size (`int`): Number of codes, whose ids come first; the mask's id is `codebook_size`.
        hidden_size (`int`): Width of the residual stream.
        num_layers (`int`): Number of transformer blocks.
        num_attention_heads (`int`): Number of heads; divides `hidden_size`.
        joint_attention_dim (`int`): Width of `encoder_hidden_states`.
        pooled_projection_dim (`int`): Width of `pooled_projections`.
        micro_cond_encode_dim (`int`, defaults to 256): Width in which the aesthetic score is encoded.
        text_pad_token_id (`int`, *optional*): What pipelines fill texts up with before they encode them; None is what
            their tokenizer says.

    Raises:
        ValueError: If a size is too small, or heads do not divide the width.
    """

    takes_noise = True
    reads_score_alone = True  # of what pipelines tell of a picture
    _supports_gradient_checkpointing = True
    _no_split_modules = ["MaskGenJointBlock", "MaskGenLastBlock"]  # noqa: RUF012 (diffusers' convention)
    _repeated_blocks = ["MaskGenJointBlock", "MaskGenLastBlock"]  # noqa: RUF012 (diffusers' convention)
    _skip_layerwise_casting_patterns = ["embedding", "norm"]  # noqa: RUF012 (diffusers' convention)

    @register_to_config
    def __init__(
        self,
        num_tokens: int,
        codebook_size: int,
        hidden_size: int,
        num_layers: int,
        num_attention_heads: int,
        joint_attention_dim: int,
        pooled_projection_dim: int,
        micro_cond_encode_dim: int = 256,
        text_pad_token_id: int | None = None,
    ) -> None:
        super().__init__()
        self._check_sizes()
        dim, heads = hidden_size, num_attention_heads
        self.token_embedding = TokenTable(codebook_size + 1, dim, codebook_size)
        self.position_embedding = nn.Embedding(num_tokens, dim)
        self.context_embedder = nn.Linear(joint_attention_dim, dim)
        self.cond_embed = nn.Linear(pooled_projection_dim + micro_cond_encode_dim, dim)
        self.transformer_blocks = nn.ModuleList(MaskGenJointBlock(dim, heads) for _ in range(num_layers - 1))
        self.transformer_blocks.append(MaskGenLastBlock(dim, heads))
        self.norm_out = AdaLayerNormContinuous(dim, dim, elementwise_affine=False, eps=1e-6)
        self.gradient_checkpointing = False
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding | TokenTable):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def _check_sizes(self) -> None:
        config = self.config
        names = ("num_tokens", "codebook_size", "hidden_size", "num_layers", "num_attention_heads")
        for name in (*names, "joint_attention_dim", "pooled_projection_dim", "micro_cond_encode_dim"):
            if config[name] < 1:
                raise ValueError(f"`{name}` must be at least 1, got {config[name]}. Pass a larger one.")
        if config.hidden_size % config.num_attention_heads:
            raise ValueError(
                f"`num_attention_heads` must divide the width {config.hidden_size}, got {config.num_attention_heads}. "
                "Pass a divisor of it."
            )

    def forward(
        self,
        sample: Tensor,
        encoder_hidden_states: Tensor,
        pooled_projections: Tensor,
        micro_conds: Tensor,
        timestep: Tensor | None = None,
        return_dict: bool = True,
        positions: Tensor | None = None,
        cache: KeyValueCache | None = None,
        embedding_noise: Callable[[Tensor], Tensor] | None = None,
    ) -> Transformer2DModelOutput | tuple[Tensor]:
        """Predict every position's code from all the others and a text.

        Args:
            sample: Codes, `(batch_size, num_tokens)`, int64; masked positions hold `codebook_size`.
            encoder_hidden_states: Of the text's tokens, `(batch_size, num_text, joint_attention_dim)`: the text
                encoder's hidden states before its last layer.
            pooled_projections: Of the text, `(batch_size, pooled_projection_dim)`: its projected embedding.
            micro_conds: Numbers on the picture, `(batch_size, n)`, as pipelines pass them. The last one is its
                aesthetic score; the others are not read.
            timestep: Accepted but ignored, for pipelines that tell other models the time.
            return_dict: Whether to return a `Transformer2DModelOutput` rather than a tuple.
            positions: None for a full pass. For a partial pass (see `PartialCacheConfig`), which must follow a full
                pass with the same cache, `sample` is `(batch_size, num_positions)` and `positions` holds the index of
                each of its codes, int64 of the same shape, distinct within a row. A position p given as `-p - 1` is
                computed, but its cached key and value are kept.
            cache: Stores keys and values between the passes of a call, from `new_cache()`. With None, the cache of the
                current `cache_context` is used if partial caching is on, and nothing is stored if it is off.
            embedding_noise: Maps the codes' embeddings, `(batch_size, num_tokens, hidden_size)`, to what positions are
                added to; see `OneStepScheduler`. None leaves them as they are. Only in full passes.

        Returns:
            An output whose `sample`, or a tuple whose only entry, holds the logits `(batch_size, num_tokens,
            codebook_size)`, of a partial pass `(batch_size, num_positions, codebook_size)`, in the model's dtype.

        Raises:
            ValueError: If a shape or dtype is not as above. Ids are not checked for their range here, since that would
                make the host wait for an accelerator; wrong ones fail in the embedding.
        """
        length = self.config.num_tokens
        check_codes_of_row(sample, positions, length)
        self._check_text(len(sample), encoder_hidden_states, pooled_projections, micro_conds)
        places = torch.arange(length, device=sample.device) if positions is None else places_of(positions)
        codes = with_noise(self.token_embedding(sample), embedding_noise, positions)
        hidden_states = codes + self.position_embedding(places)
        text = self.context_embedder(encoder_hidden_states)
        temb = self._condition(pooled_projections, micro_conds)

        queries = None
        if positions is not None:  # and the text, which stands behind all codes
            behind = torch.arange(length, length + text.shape[1], device=sample.device)
            queries = torch.cat([positions, behind.expand(len(sample), -1)], 1)
        layers = self.layers_of_pass(cache, queries, self.config.num_layers, len(sample))
        for block, kept in zip(self.transformer_blocks, layers, strict=True):
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                text, hidden_states = self._gradient_checkpointing_func(block, hidden_states, text, temb, kept)
            else:
                text, hidden_states = block(hidden_states, text, temb, kept)
        logits = self.token_embedding(self.norm_out(hidden_states, temb))
        if not return_dict:
            return (logits,)
        return Transformer2DModelOutput(sample=logits)

    def _condition(self, pooled: Tensor, micro_conds: Tensor) -> Tensor:
        """What enters every layer: the pooled text and the aesthetic score, `(batch_size, hidden_size)`."""
        hundredths = 100 * micro_conds[:, -1].float()
        score = get_timestep_embedding(
            hundredths, self.config.micro_cond_encode_dim, downscale_freq_shift=0, max_period=1000
        )
        return self.cond_embed(torch.cat([pooled, score.to(pooled.dtype)], 1))

    def _check_text(self, rows: int, hidden: Tensor, pooled: Tensor, micro_conds: Tensor) -> None:
        """Raise `ValueError` for tensors of another shape than `forward` takes."""
        config = self.config
        for name, given, shape in (
            ("encoder_hidden_states", hidden, (rows, *hidden.shape[1:2], config.joint_attention_dim)),
            ("pooled_projections", pooled, (rows, config.pooled_projection_dim)),
            ("micro_conds", micro_conds, (rows, max([1, *micro_conds.shape[1:2]]))),
        ):
            if given.shape != shape:
                raise ValueError(
                    f"`{name}` must have shape {shape}, one entry per row of `sample`, got {tuple(given.shape)}. Pass "
                    "what the text encoder returns that the model was trained with, and each row's aesthetic score."
                )
