"""The class-conditional image denoiser of Halton-MaskGIT (arXiv 2503.17076, valeoai/Halton-MaskGIT)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.attention import AttentionMixin, AttentionModuleMixin
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

from hf_maskdiff.caching import KeyValueCache, KeyValueSlot, LayerCache, PartialCacheMixin, places_of
from hf_maskdiff.models.image_tokens import check_image_tokens, with_noise
from hf_maskdiff.models.sized_model import SizedModelMixin


class TiedTokenEmbedding(nn.Module):
    """One table for both ends of the model: integers are looked up, vectors become one logit per token.

    Both uses go through `forward`, so the table is stored once, stays tied through saving and loading, and works with
    hooks that move a module's weights before and after its call.
    """

    def __init__(self, num_embeddings: int, embedding_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_embeddings, embedding_dim))
        self.bias = nn.Parameter(torch.zeros(num_embeddings))

    def forward(self, tokens_or_states: torch.Tensor) -> torch.Tensor:
        if tokens_or_states.is_floating_point():
            return F.linear(tokens_or_states, self.weight, self.bias)
        return F.embedding(tokens_or_states, self.weight)


class AdaRMSNorm(nn.Module):
    """RMS normalisation whose gain and offset depend on the condition, computed in float32 for half-precision input.

    `(x / rms(x) * weight + bias) * (1 + scale) + shift`. The factors of `x` are multiplied together first, because they
    have one row per image while `x` has one row per token.
    """

    def __init__(self, dim: int, eps: float, bias: bool = False) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim)) if bias else None

    def forward(self, hidden_states: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        dtype = torch.promote_types(hidden_states.dtype, torch.float32)
        scale, shift = 1 + scale.to(dtype), shift.to(dtype)
        if self.bias is not None:
            shift = shift + self.bias.to(dtype) * scale
        normalised = F.rms_norm(hidden_states.to(dtype), self.weight.shape, eps=self.eps)
        return torch.addcmul(shift, normalised, self.weight.to(dtype) * scale).to(hidden_states.dtype)


class HaltonMaskGITAttnProcessor:
    """Plain softmax attention over all tokens, through whichever attention backend is selected."""

    _attention_backend = None
    _parallel_config = None

    def __call__(
        self, attn: HaltonMaskGITAttention, hidden_states: torch.Tensor, kept: LayerCache | None
    ) -> torch.Tensor:
        if attn.fused_projections:
            query, key, value = attn.to_qkv(hidden_states).chunk(3, dim=-1)
        else:
            query, key, value = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)

        # The norm covers all heads together, so it comes before they are split.
        query, key = attn.norm_q(query), attn.norm_k(key)
        query, key, value = (states.unflatten(-1, (attn.heads, -1)) for states in (query, key, value))
        key, value = attn.key_value_slot(key, value, kept)

        hidden_states = dispatch_attention_fn(
            query, key, value, backend=self._attention_backend, parallel_config=self._parallel_config
        )
        hidden_states = hidden_states.flatten(2, 3).to(query.dtype)
        for module in attn.to_out:
            hidden_states = module(hidden_states)
        return hidden_states


class HaltonMaskGITAttention(nn.Module, AttentionModuleMixin):
    """Bias-free self-attention with normalised queries and keys; the heads' total width may differ from `dim`."""

    _default_processor_cls = HaltonMaskGITAttnProcessor
    _available_processors = [HaltonMaskGITAttnProcessor]  # noqa: RUF012 (diffusers' convention)
    to_qkv: nn.Linear  # exists only while the projections are fused

    def __init__(self, dim: int, heads: int, dropout: float, eps: float) -> None:
        super().__init__()
        inner_dim = heads * (dim // heads)
        self.heads = heads
        self.use_bias = False
        self.to_q = nn.Linear(dim, inner_dim, bias=False)
        self.to_k = nn.Linear(dim, inner_dim, bias=False)
        self.to_v = nn.Linear(dim, inner_dim, bias=False)
        self.norm_q = nn.RMSNorm(inner_dim, eps=eps, elementwise_affine=False)
        self.norm_k = nn.RMSNorm(inner_dim, eps=eps, elementwise_affine=False)
        self.key_value_slot = KeyValueSlot()
        self.to_out = nn.ModuleList([nn.Linear(inner_dim, dim, bias=False), nn.Dropout(dropout)])
        self.processor = self._default_processor_cls()

    def forward(self, hidden_states: torch.Tensor, kept: LayerCache | None = None) -> torch.Tensor:
        return self.processor(self, hidden_states, kept)


class HaltonMaskGITFeedForward(nn.Module):
    """Bias-free SwiGLU: `down(silu(gate(x)) * up(x))`."""

    def __init__(self, dim: int, intermediate_size: int, dropout: float) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(dim, intermediate_size, bias=False)
        self.up_proj = nn.Linear(dim, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, dim, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = F.silu(self.gate_proj(hidden_states)) * self.up_proj(hidden_states)
        return self.dropout(self.down_proj(hidden_states))


class HaltonMaskGITTransformerBlock(nn.Module):
    """Attention and feed-forward, each shifted, scaled and gated by the class embedding."""

    def __init__(self, dim: int, heads: int, intermediate_size: int, dropout: float, eps: float) -> None:
        super().__init__()
        self.modulation = nn.Linear(dim, 6 * dim)
        self.norm1 = AdaRMSNorm(dim, eps)
        self.attn = HaltonMaskGITAttention(dim, heads, dropout, eps)
        self.norm2 = AdaRMSNorm(dim, eps)
        self.ff = HaltonMaskGITFeedForward(dim, intermediate_size, dropout)

    def forward(self, hidden_states: torch.Tensor, temb: torch.Tensor, kept: LayerCache | None = None) -> torch.Tensor:
        shift_attn, scale_attn, gate_attn, shift_ff, scale_ff, gate_ff = (
            self.modulation(temb).unsqueeze(1).chunk(6, dim=-1)
        )
        attended = self.attn(self.norm1(hidden_states, shift_attn, scale_attn), kept)
        hidden_states = hidden_states + gate_attn * attended
        return hidden_states + gate_ff * self.ff(self.norm2(hidden_states, shift_ff, scale_ff))


# diffusers' FirstBlockCache and MagCache support only block classes that are registered like this.
TransformerBlockRegistry.register(HaltonMaskGITTransformerBlock, TransformerBlockMetadata(return_hidden_states_index=0))


class HaltonMaskGITTransformer2DModel(
    SizedModelMixin, ModelMixin, ConfigMixin, AttentionMixin, PartialCacheMixin, PeftAdapterMixin
):
    """Class-conditional denoiser of image tokens that takes the weights published with Halton-MaskGIT.

    A bidirectional transformer over the `sample_size ** 2` tokens of an image in row-major order, with learned
    position embeddings and a few register tokens after the image's tokens. The class enters through adaptive norms in
    every layer. There is no timestep input: the tokens show how much is masked. The token table is also the output
    layer. All masked positions are predicted at once and independently, so every scheduler of this package can use it.

    In a new model every block is the identity (its modulation is zero), and all other matrices are normal with standard
    deviation 0.02; the same `torch.manual_seed` gives the same model.

    Source: Besnier, Chen, Hurych, Valle, Cord, "Halton Scheduler for Masked Generative Image Transformer", arXiv
    2503.17076; repository valeoai/Halton-MaskGIT (MIT). An independent implementation; it agrees with the original to
    float32 rounding.

    Example:

    ```python
    model = HaltonMaskGITTransformer2DModel(
        sample_size=7, codebook_size=64, num_classes=10,
        hidden_size=144, num_layers=6, num_attention_heads=6, intermediate_size=384,
    )
    sample = torch.full((2, 7, 7), 64)                     # everything masked
    logits = model(sample, torch.tensor([3, 10])).sample   # digit 3, and unconditional: (2, 49, 65)
    ```

    Args:
        sample_size (`int`): Tokens per side of the image's token grid.
        codebook_size (`int`): Number of image tokens; the mask token's id is `codebook_size`.
        num_classes (`int`): Number of classes; the null (unconditional) label is `num_classes`.
        hidden_size (`int`): Width of the residual stream.
        num_layers (`int`): Number of transformer blocks.
        num_attention_heads (`int`):
            Number of heads, each `hidden_size // num_attention_heads` wide. It need not divide `hidden_size`: the
            published "small" model has 6 heads of width 85 at `hidden_size` 512.
        intermediate_size (`int`): Width between the two halves of the feed-forward (SwiGLU).
        num_register_tokens (`int`, defaults to 1): Learned tokens without position or prediction; may be 0.
        dropout (`float`, defaults to 0.0):
            Dropout probability in training, on the outputs of attention and feed-forward.
        norm_eps (`float`, defaults to 1e-5): Added to the mean square in every norm.
        id2label (`dict`, *optional*): Names of the classes, for the pipeline; synonyms are separated by commas.

    Raises:
        ValueError: If a size is below 1, `num_attention_heads` exceeds `hidden_size`, or `dropout` is not in [0, 1).
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["HaltonMaskGITTransformerBlock"]  # noqa: RUF012 (diffusers' convention)
    _repeated_blocks = ["HaltonMaskGITTransformerBlock"]  # noqa: RUF012 (diffusers' convention)
    _skip_layerwise_casting_patterns = ["embedding", "norm"]  # noqa: RUF012 (diffusers' convention)
    has_null_class = True

    @register_to_config
    def __init__(
        self,
        sample_size: int,
        codebook_size: int,
        num_classes: int,
        hidden_size: int,
        num_layers: int,
        num_attention_heads: int,
        intermediate_size: int,
        num_register_tokens: int = 1,
        dropout: float = 0.0,
        norm_eps: float = 1e-5,
        id2label: dict[int, str] | None = None,
    ) -> None:
        super().__init__()
        for name, value, minimum in (
            ("sample_size", sample_size, 1),
            ("codebook_size", codebook_size, 1),
            ("num_classes", num_classes, 1),
            ("hidden_size", hidden_size, 1),
            ("num_layers", num_layers, 1),
            ("num_attention_heads", num_attention_heads, 1),
            ("intermediate_size", intermediate_size, 1),
            ("num_register_tokens", num_register_tokens, 0),
        ):
            if value < minimum:
                raise ValueError(f"`{name}` must be at least {minimum}, got {value}. Pass a larger one.")
        if num_attention_heads > hidden_size:
            raise ValueError(
                f"`num_attention_heads` must be at most `hidden_size` = {hidden_size}, got {num_attention_heads}. "
                "Use fewer heads or a wider model."
            )
        if not 0 <= dropout < 1:
            raise ValueError(f"`dropout` must be in [0, 1), got {dropout}. Pass 0 to train without it.")

        self.token_embedding = TiedTokenEmbedding(codebook_size + 1, hidden_size)
        self.position_embedding = nn.Embedding(sample_size**2, hidden_size)
        self.register_embedding = nn.Embedding(num_register_tokens, hidden_size) if num_register_tokens else None
        self.class_embedding = nn.Embedding(num_classes + 1, hidden_size)
        self.transformer_blocks = nn.ModuleList(
            HaltonMaskGITTransformerBlock(hidden_size, num_attention_heads, intermediate_size, dropout, norm_eps)
            for _ in range(num_layers)
        )
        self.modulation_out = nn.Linear(hidden_size, 2 * hidden_size)
        self.norm_out = AdaRMSNorm(hidden_size, norm_eps, bias=True)

        self.gradient_checkpointing = False
        self._initialise_weights()

    def _initialise_weights(self) -> None:
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear) and "modulation" in name:
                nn.init.zeros_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Linear | nn.Embedding | TiedTokenEmbedding):
                nn.init.normal_(module.weight, std=0.02)

    def forward(
        self,
        sample: torch.Tensor,
        class_labels: torch.Tensor,
        return_dict: bool = True,
        positions: torch.Tensor | None = None,
        cache: KeyValueCache | None = None,
        embedding_noise: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> Transformer2DModelOutput | tuple[torch.Tensor]:
        """Predict every position's token from all the others.

        Args:
            sample: Token ids, `(batch_size, sample_size, sample_size)` or `(batch_size, sample_size ** 2)` in
                row-major order, int64; masked positions hold `codebook_size`.
            class_labels: Class ids, `(batch_size,)`, int64; `num_classes` is the unconditional label.
            return_dict: Whether to return a `Transformer2DModelOutput` rather than a tuple.
            positions: None for a full pass. For a partial pass (see `PartialCacheConfig`), which must follow a full
                pass with the same cache, `sample` is `(batch_size, num_positions)` and `positions` holds the row-major
                index of each of its tokens, int64 of the same shape, distinct within a row. A position p given as
                `-p - 1` is computed, but its cached key and value are kept.
            cache: Stores keys and values between the passes of a call, from `new_cache()`. With None, the cache of the
                current `cache_context` is used if partial caching is on, and nothing is stored if it is off.
            embedding_noise: Maps the embeddings of the image's tokens, `(batch_size, sample_size ** 2, hidden_size)`,
                to what positions are added to, for models that were distilled with noise there; see
                `OneStepScheduler`. None leaves them as they are. Only in full passes.

        Returns:
            An output whose `sample`, or a tuple whose only entry, holds the logits
            `(batch_size, sample_size ** 2, codebook_size + 1)` in the model's dtype. The last column belongs to the
            mask token, which is never a target; samplers ignore it.

        Raises:
            ValueError: If a shape or dtype is not as above. Ids are not checked for their range here, since that would
                make the host wait for an accelerator; wrong ones fail in the embedding.
        """
        side = self.config.sample_size
        check_image_tokens(sample, class_labels, positions, side, self.config.num_classes)
        hidden_states = with_noise(self.token_embedding(sample.flatten(1)), embedding_noise, positions)
        num_tokens = hidden_states.shape[1]
        places = torch.arange(num_tokens, device=sample.device) if positions is None else places_of(positions)
        hidden_states = hidden_states + self.position_embedding(places)
        if self.register_embedding is not None:
            registers = torch.arange(self.config.num_register_tokens, device=sample.device)
            if positions is not None:
                positions = torch.cat([positions, (side * side + registers).expand(len(positions), -1)], dim=1)
            registers = self.register_embedding(registers).expand(sample.shape[0], -1, -1)
            hidden_states = torch.cat([hidden_states, registers], dim=1)
        temb = F.silu(self.class_embedding(class_labels))

        layers = self.layers_of_pass(cache, positions, len(self.transformer_blocks), len(sample))
        for block, kept in zip(self.transformer_blocks, layers, strict=True):
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                hidden_states = self._gradient_checkpointing_func(block, hidden_states, temb, kept)
            else:
                hidden_states = block(hidden_states, temb, kept)

        shift, scale = self.modulation_out(temb).unsqueeze(1).chunk(2, dim=-1)
        hidden_states = self.norm_out(hidden_states[:, :num_tokens], shift, scale)
        logits = self.token_embedding(hidden_states)
        if not return_dict:
            return (logits,)
        return Transformer2DModelOutput(sample=logits)
