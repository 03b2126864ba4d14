"""The BERT-shaped image denoisers: MaskGIT (arXiv 2202.04200), its first reimplementation, and MAGE (2211.09117)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.attention import AttentionMixin, AttentionModuleMixin, FeedForward
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

from hf_maskdiff.hub import ModelCardMixin
from hf_maskdiff.models.image_tokens import check_image_tokens
from hf_maskdiff.models.partial_cache import KeyValueSlot, PartialCacheMixin, places_of

# Names of torch's and of diffusers' for the two forms of the GELU.
ACTIVATIONS = {"gelu": ("none", "gelu"), "gelu_tanh": ("tanh", "gelu-approximate")}


class TokenTable(nn.Module):
    """One table that reads tokens and scores the first `num_scored` of them: integers are looked up, vectors scored.

    The bias belongs to the token, or with `num_places` to token and place, `(num_places, num_tokens)`.
    """

    def __init__(self, num_tokens: int, dim: int, num_scored: int, num_places: int | None = None) -> None:
        super().__init__()
        self.num_scored = num_scored
        self.weight = nn.Parameter(torch.empty(num_tokens, dim))
        self.bias = nn.Parameter(torch.zeros(num_tokens if num_places is None else (num_places, num_tokens)))

    def forward(self, tokens_or_states: torch.Tensor, places: torch.Tensor | None = None) -> torch.Tensor:
        if not tokens_or_states.is_floating_point():
            return F.embedding(tokens_or_states, self.weight)
        if places is None or self.bias.ndim == 1:
            return F.linear(tokens_or_states, self.weight[: self.num_scored], self.bias[: self.num_scored])
        scores = F.linear(tokens_or_states, self.weight[: self.num_scored])
        return scores + F.embedding(places, self.bias)[..., : self.num_scored]


class MaskGITAttnProcessor:
    """Plain softmax attention over all tokens, through whichever attention backend is selected."""

    _attention_backend = None
    _parallel_config = None

    def __call__(
        self, attn: MaskGITAttention, hidden_states: torch.Tensor, positions: torch.Tensor | None
    ) -> torch.Tensor:
        if attn.fused_projections:
            query, key, value = attn.to_qkv(hidden_states).chunk(3, dim=-1)
        else:
            query, key, value = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
        query, key, value = (states.unflatten(-1, (attn.heads, -1)) for states in (query, key, value))
        key, value = attn.key_value_slot(key, value, positions)
        hidden_states = dispatch_attention_fn(
            query, key, value, backend=self._attention_backend, parallel_config=self._parallel_config
        )
        hidden_states = hidden_states.flatten(2, 3).to(query.dtype)
        for module in attn.to_out:
            hidden_states = module(hidden_states)
        return hidden_states


class MaskGITAttention(nn.Module, AttentionModuleMixin):
    """Self-attention with biases."""

    _default_processor_cls = MaskGITAttnProcessor
    _available_processors = [MaskGITAttnProcessor]  # noqa: RUF012 (diffusers' convention)
    to_qkv: nn.Linear  # there while the projections are fused

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.use_bias = True
        self.to_q = nn.Linear(dim, dim)
        self.to_k = nn.Linear(dim, dim)
        self.to_v = nn.Linear(dim, dim)
        self.key_value_slot = KeyValueSlot()
        self.to_out = nn.ModuleList([nn.Linear(dim, dim), nn.Dropout(dropout)])
        self.processor = self._default_processor_cls()

    def forward(self, hidden_states: torch.Tensor, positions: torch.Tensor | None = None) -> torch.Tensor:
        return self.processor(self, hidden_states, positions)


class MaskGITTransformerBlock(nn.Module):
    """Attention and feed-forward with LayerNorm before each (`norm_first`) or after each, as in BERT."""

    def __init__(
        self, dim: int, heads: int, inner_dim: int, norm_first: bool, activation: str, dropout: float, eps: float
    ) -> None:
        super().__init__()
        self.norm_first = norm_first
        self.attn = MaskGITAttention(dim, heads, dropout)
        self.norm1 = nn.LayerNorm(dim, eps)
        self.ff = FeedForward(dim, activation_fn=ACTIVATIONS[activation][1], inner_dim=inner_dim, dropout=dropout)
        self.norm2 = nn.LayerNorm(dim, eps)

    def forward(self, hidden_states: torch.Tensor, positions: torch.Tensor | None = None) -> torch.Tensor:
        if self.norm_first:
            hidden_states = hidden_states + self.attn(self.norm1(hidden_states), positions)
            return hidden_states + self.ff(self.norm2(hidden_states))
        hidden_states = self.norm1(hidden_states + self.attn(hidden_states, positions))
        return self.norm2(hidden_states + self.ff(hidden_states))


# diffusers' FirstBlockCache and MagCache only know the blocks registered here.
TransformerBlockRegistry.register(MaskGITTransformerBlock, TransformerBlockMetadata(return_hidden_states_index=0))


class TransformerBlocks(nn.ModuleList):
    """Blocks one after the other."""

    gradient_checkpointing = False
    _gradient_checkpointing_func: Callable[..., torch.Tensor]  # diffusers sets it

    def run(self, hidden_states: torch.Tensor, positions: torch.Tensor | None) -> torch.Tensor:
        for block in self:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                hidden_states = self._gradient_checkpointing_func(block, hidden_states, positions)
            else:
                hidden_states = block(hidden_states, positions)
        return hidden_states


class MAGEDecoder(nn.Module):
    """MAGE's second half: what the encoder saw of masked tokens is dropped, the class slot's features take the place.

    Every token still attends to all others, so a partial pass means here what it means in the encoder: the queries are
    the chosen positions and the class slot, and the keys and values of the others are those of the last full pass,
    including those that came from the class slot's features then.
    """

    def __init__(self, encoder_dim: int, dim: int, num_places: int, blocks: TransformerBlocks, eps: float) -> None:
        super().__init__()
        self.proj_in = nn.Linear(encoder_dim, dim)
        self.position_embedding = nn.Embedding(num_places, dim)
        self.transformer_blocks = blocks
        self.norm_out = nn.LayerNorm(dim, eps)

    def forward(
        self,
        hidden_states: torch.Tensor,
        masked: torch.Tensor,
        places: torch.Tensor,
        positions: torch.Tensor | None = None,
    ) -> torch.Tensor:
        hidden_states = self.proj_in(hidden_states)
        hidden_states = torch.where(masked[..., None], hidden_states[:, -1:], hidden_states)
        hidden_states = hidden_states + self.position_embedding(places)
        return self.norm_out(self.transformer_blocks.run(hidden_states, positions))


class MaskGITTransformer2DModel(
    ModelCardMixin, ModelMixin, ConfigMixin, AttentionMixin, PartialCacheMixin, PeftAdapterMixin
):
    """BERT over an image's tokens and a class token: takes the weights of MaskGIT, of Maskgit-pytorch v1.0 and of MAGE.

    One table holds codes, classes and the mask; it is also the output layer. The class is a token of its own, after the
    `sample_size ** 2` codes in row-major order, with a place of its own. No timestep: how much is masked is seen
    from the tokens. The published models are settings of one design:

    | | blocks | before them | after them |
    | --- | --- | --- | --- |
    | MaskGIT (google-research/maskgit) | norms last, tanh GELU | norm | head |
    | Maskgit-pytorch v1.0 (valeoai) | `norm_first` | norm, `project_embeddings` | norm, head, `position_bias` |
    | MAGE (LTH14/mage) | `norm_first` | norm | norm, decoder of `num_decoder_layers`, head |

    MaskGIT itself was never shown an image without its class: its ids leave no row for one, see `has_null_class`. MAGE
    knows no classes at all: `num_classes` is 0, and label 0 is none.

    A new model's matrices are normal with standard deviation 0.02; the same `torch.manual_seed` gives the same model.

    Sources: Chang, Zhang, Jiang, Liu, Freeman, "MaskGIT: Masked Generative Image Transformer", arXiv 2202.04200
    (Apache-2.0); Besnier, Chen, "A Pytorch Reproduction of Masked Generative Image Transformer", arXiv 2310.14400
    (MIT); Li et al., "MAGE", arXiv 2211.09117 (MIT). Written anew; agrees with each to float32 rounding.

    Example:

    ```python
    model = MaskGITTransformer2DModel(
        sample_size=7, codebook_size=64, num_classes=10,
        hidden_size=144, num_layers=6, num_attention_heads=6, intermediate_size=576,
    )
    sample = torch.full((2, 7, 7), 64)                     # everything masked
    logits = model(sample, torch.tensor([3, 10])).sample   # digit 3, and unconditional: (2, 49, 65)
    ```

    Args:
        sample_size (`int`): Tokens per side of the image's token grid.
        codebook_size (`int`): Number of image tokens, whose ids come first.
        num_classes (`int`): Number of classes; the null (unconditional) label is `num_classes`.
        hidden_size (`int`): Width of the residual stream.
        num_layers (`int`): Number of transformer blocks.
        num_attention_heads (`int`): Number of heads; divides `hidden_size`.
        intermediate_size (`int`): Width between the two halves of the feed-forward.
        mask_token_id (`int`, *optional*): Id of the mask; by default `codebook_size`.
        class_token_offset (`int`, *optional*): Id of class 0; by default `codebook_size + 1`.
        vocab_size (`int`, *optional*): Rows of the table; by default there is one for a null label, and none after it.
        norm_first (`bool`, defaults to True): Norms before attention and feed-forward and after the blocks, rather
            than after each.
        activation (`str`, defaults to `"gelu"`): `"gelu"`, or its approximation `"gelu_tanh"`.
        project_embeddings (`bool`, defaults to False): A small perceptron between embeddings and blocks.
        position_bias (`bool`, defaults to False): A bias of every token at every place, rather than of every token.
        dropout (`float`, defaults to 0.0): Dropout probability in training, in attention and feed-forward.
        norm_eps (`float`, defaults to 1e-5): Added to the variance in the norms before and after the blocks.
        block_norm_eps (`float`, defaults to 1e-5): The same for the blocks' own.
        head_norm_eps (`float`, defaults to 1e-5): The same for the head's.
        num_decoder_layers (`int`, defaults to 0): Blocks of MAGE's decoder; 0 for none.
        decoder_hidden_size (`int`, *optional*): Its width; by default `hidden_size`.
        num_decoder_attention_heads (`int`, *optional*): Its heads; by default `num_attention_heads`.
        decoder_intermediate_size (`int`, *optional*): Its feed-forward's width; by default `intermediate_size`.
        id2label (`dict`, *optional*): Names of the classes, for the pipeline; synonyms are separated by commas.

    Raises:
        ValueError: If a size is too small, heads do not divide a width, or the ids do not fit the table.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["MaskGITTransformerBlock"]  # noqa: RUF012 (diffusers' convention)
    _repeated_blocks = ["MaskGITTransformerBlock"]  # noqa: RUF012 (diffusers' convention)
    _skip_layerwise_casting_patterns = ["embedding", "norm"]  # noqa: RUF012 (diffusers' convention)

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
        mask_token_id: int | None = None,
        class_token_offset: int | None = None,
        vocab_size: int | None = None,
        norm_first: bool = True,
        activation: str = "gelu",
        project_embeddings: bool = False,
        position_bias: bool = False,
        dropout: float = 0.0,
        norm_eps: float = 1e-5,
        block_norm_eps: float = 1e-5,
        head_norm_eps: float = 1e-5,
        num_decoder_layers: int = 0,
        decoder_hidden_size: int | None = None,
        num_decoder_attention_heads: int | None = None,
        decoder_intermediate_size: int | None = None,
        id2label: dict[int, str] | None = None,
    ) -> None:
        super().__init__()
        decoder_hidden_size = decoder_hidden_size or hidden_size
        num_decoder_attention_heads = num_decoder_attention_heads or num_attention_heads
        for name, value, minimum in (
            ("sample_size", sample_size, 1),
            ("codebook_size", codebook_size, 1),
            ("num_classes", num_classes, 0),
            ("hidden_size", hidden_size, 1),
            ("num_layers", num_layers, 1),
            ("num_attention_heads", num_attention_heads, 1),
            ("intermediate_size", intermediate_size, 1),
            ("num_decoder_layers", num_decoder_layers, 0),
        ):
            if value < minimum:
                raise ValueError(f"`{name}` must be at least {minimum}, got {value}. Pass a larger one.")
        for name, heads, width in (
            ("num_attention_heads", num_attention_heads, hidden_size),
            ("num_decoder_attention_heads", num_decoder_attention_heads, decoder_hidden_size),
        ):
            if width % heads:
                raise ValueError(f"`{name}` must divide the width {width}, got {heads}. Pass a divisor of it.")
        if activation not in ACTIVATIONS:
            raise ValueError(f"`activation` must be one of {sorted(ACTIVATIONS)}, got {activation!r}. Pick one.")
        if not 0 <= dropout < 1:
            raise ValueError(f"`dropout` must be in [0, 1), got {dropout}. Pass 0 to train without it.")
        self.mask_token_id = codebook_size if mask_token_id is None else mask_token_id
        self.class_token_offset = codebook_size + 1 if class_token_offset is None else class_token_offset
        end = self.class_token_offset + num_classes
        vocab_size = end + 1 if vocab_size is None else vocab_size
        classes = range(self.class_token_offset, end)
        if self.mask_token_id < codebook_size or self.mask_token_id in classes or self.class_token_offset < 0:
            raise ValueError(
                f"`mask_token_id` must be neither a code's nor a class's id, got {self.mask_token_id} with codes below "
                f"{codebook_size} and classes in {classes}. Pass the id of the mask's own row."
            )
        if vocab_size < max(end, self.mask_token_id + 1):
            raise ValueError(
                f"`vocab_size` must cover codes, classes and mask, {max(end, self.mask_token_id + 1)} rows, got "
                f"{vocab_size}. Leave it out for a table without spare rows."
            )
        self.has_null_class = end < vocab_size and end != self.mask_token_id

        num_places, gelu = sample_size**2 + 1, nn.GELU(ACTIVATIONS[activation][0])
        num_scored = codebook_size + (self.mask_token_id == codebook_size)
        self.token_embedding = TokenTable(vocab_size, hidden_size, num_scored, num_places if position_bias else None)
        self.position_embedding = nn.Embedding(num_places, hidden_size)
        self.norm_in = nn.LayerNorm(hidden_size, norm_eps)
        self.proj_in = (
            nn.Sequential(
                nn.Linear(hidden_size, hidden_size),
                gelu,
                nn.LayerNorm(hidden_size, norm_eps),
                nn.Linear(hidden_size, hidden_size),
            )
            if project_embeddings
            else None
        )

        def blocks(count: int, dim: int, heads: int, inner_dim: int) -> TransformerBlocks:
            arguments = (dim, heads, inner_dim, norm_first, activation, dropout, block_norm_eps)
            return TransformerBlocks(MaskGITTransformerBlock(*arguments) for _ in range(count))

        self.transformer_blocks = blocks(num_layers, hidden_size, num_attention_heads, intermediate_size)
        self.norm_out = nn.LayerNorm(hidden_size, norm_eps) if norm_first else None
        self.decoder = (
            MAGEDecoder(
                hidden_size,
                decoder_hidden_size,
                num_places,
                blocks(
                    num_decoder_layers,
                    decoder_hidden_size,
                    num_decoder_attention_heads,
                    decoder_intermediate_size or intermediate_size,
                ),
                norm_eps,
            )
            if num_decoder_layers
            else None
        )
        self.head = nn.Sequential(
            nn.Linear(decoder_hidden_size if num_decoder_layers else hidden_size, hidden_size),
            gelu,
            nn.LayerNorm(hidden_size, head_norm_eps),
        )
        self._initialise_weights()

    def _initialise_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding | TokenTable):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(
        self,
        sample: torch.Tensor,
        class_labels: torch.Tensor,
        return_dict: bool = True,
        positions: torch.Tensor | None = None,
    ) -> Transformer2DModelOutput | tuple[torch.Tensor]:
        """Predict every position's token from all the others.

        Args:
            sample: Token ids, `(batch_size, sample_size, sample_size)` or `(batch_size, sample_size ** 2)` in
                row-major order, int64; masked positions hold `mask_token_id`.
            class_labels: Class ids, `(batch_size,)`, int64; `num_classes` is the unconditional label.
            return_dict: Whether to return a `Transformer2DModelOutput` rather than a tuple.
            positions: For a partial pass (see `PartialCacheConfig`), after a full one in the same `cache_context`:
                where in row-major order the codes of `sample`, then `(batch_size, num_positions)`, stand; int64 like
                it, distinct in a row; a p written as `-p - 1` is computed but leaves the cached key and value of p.

        Returns:
            An output whose `sample`, or a tuple whose only entry, holds the logits
            `(batch_size, sample_size ** 2, codebook_size)` in the model's dtype, with one more column where the mask's
            id is `codebook_size`; samplers leave that out.

        Raises:
            ValueError: If a shape or dtype is not as above. Ids out of range are not looked for (that would make an
                accelerator wait); they fail in the embedding.
        """
        side = self.config.sample_size
        check_image_tokens(sample, class_labels, positions, side, self.config.num_classes)
        tokens = torch.cat([sample.flatten(1), self.class_token_offset + class_labels[:, None]], dim=1)
        if positions is None:
            places = torch.arange(side * side + 1, device=sample.device)
        else:
            positions = F.pad(positions, (0, 1), value=side * side)
            places = places_of(positions)

        hidden_states = self.norm_in(self.token_embedding(tokens) + self.position_embedding(places))
        if self.proj_in is not None:
            hidden_states = self.proj_in(hidden_states)
        hidden_states = self.transformer_blocks.run(hidden_states, positions)
        if self.norm_out is not None:
            hidden_states = self.norm_out(hidden_states)
        if self.decoder is not None:
            hidden_states = self.decoder(hidden_states, tokens == self.mask_token_id, places, positions)
        logits = self.token_embedding(self.head(hidden_states[:, :-1]), places[..., :-1])
        if not return_dict:
            return (logits,)
        return Transformer2DModelOutput(sample=logits)
