"""The BERT-shaped image denoisers: MaskGIT (arXiv 2202.04200), its first reimplementation, and MAGE (2211.09117)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.attention import AttentionMixin
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

from hf_maskdiff.caching import KeyValueCache, PartialCacheMixin, places_of
from hf_maskdiff.models.image_tokens import check_image_tokens, with_noise
from hf_maskdiff.models.maskgit_layers import (
    ACTIVATIONS,
    MAGEDecoder,
    MaskGITTransformerBlock,
    TokenTable,
    TransformerBlocks,
)
from hf_maskdiff.models.sized_model import SizedModelMixin


class MaskGITTransformer2DModel(
    SizedModelMixin, ModelMixin, ConfigMixin, AttentionMixin, PartialCacheMixin, PeftAdapterMixin
):
    """BERT over an image's tokens and a class token: takes the weights of MaskGIT, of Maskgit-pytorch v1.0 and of MAGE.

    One embedding table holds codes, classes and the mask; it is also the output layer. The class is an extra token with
    its own position, after the `sample_size ** 2` codes in row-major order. There is no timestep input: the tokens show
    how much is masked. The published models are configurations of one design:

    | | blocks | before them | after them |
    | --- | --- | --- | --- |
    | MaskGIT (google-research/maskgit) | norms last, tanh GELU | norm | head |
    | Maskgit-pytorch v1.0 (valeoai) | `norm_first` | norm, `project_embeddings` | norm, head, `position_bias` |
    | MAGE (LTH14/mage) | `norm_first` | norm | norm, decoder of `num_decoder_layers`, head |

    MaskGIT itself was never trained without a class: its table has no row for a null label, see `has_null_class`. MAGE
    has no classes at all: `num_classes` is 0, and label 0 stands for "no class".

    A new model's matrices are normal with standard deviation 0.02; the same `torch.manual_seed` gives the same model.

    Sources: Chang, Zhang, Jiang, Liu, Freeman, "MaskGIT: Masked Generative Image Transformer", arXiv 2202.04200
    (Apache-2.0); Besnier, Chen, "A Pytorch Reproduction of Masked Generative Image Transformer", arXiv 2310.14400
    (MIT); Li et al., "MAGE", arXiv 2211.09117 (MIT). An independent implementation; it agrees with each original to
    float32 rounding.

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
        vocab_size (`int`, *optional*): Rows of the table; by default its last row is that of the null label.
        norm_first (`bool`, defaults to True): Put norms before attention and feed-forward and one after all blocks,
            rather than after each attention and feed-forward.
        activation (`str`, defaults to `"gelu"`): `"gelu"`, or its approximation `"gelu_tanh"`.
        project_embeddings (`bool`, defaults to False): Put a small perceptron between embeddings and blocks.
        position_bias (`bool`, defaults to False): Give the logits a bias per position and token, rather than per token.
        dropout (`float`, defaults to 0.0): Dropout probability in training, in attention and feed-forward.
        norm_eps (`float`, defaults to 1e-5): Added to the variance in the norms before and after the blocks.
        block_norm_eps (`float`, defaults to 1e-5): The same for the norms inside the blocks.
        head_norm_eps (`float`, defaults to 1e-5): The same for the norm of the head.
        num_decoder_layers (`int`, defaults to 0): Number of blocks in MAGE's decoder; 0 for no decoder.
        decoder_hidden_size (`int`, *optional*): The decoder's width; by default `hidden_size`.
        num_decoder_attention_heads (`int`, *optional*): The decoder's heads; by default `num_attention_heads`.
        decoder_intermediate_size (`int`, *optional*): Width of the decoder's feed-forward; by default
            `intermediate_size`.
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
        self._check_sizes(decoder_hidden_size, num_decoder_attention_heads)
        self.mask_token_id = codebook_size if mask_token_id is None else mask_token_id
        self.class_token_offset = codebook_size + 1 if class_token_offset is None else class_token_offset
        end = self.class_token_offset + num_classes
        vocab_size = end + 1 if vocab_size is None else vocab_size
        self._check_ids(vocab_size)
        self.has_null_class = end < vocab_size and end != self.mask_token_id

        def blocks(count: int, dim: int, heads: int, inner_dim: int) -> TransformerBlocks:
            arguments = (dim, heads, inner_dim, norm_first, activation, dropout, block_norm_eps)
            return TransformerBlocks(MaskGITTransformerBlock(*arguments) for _ in range(count))

        num_places, gelu = sample_size**2 + 1, nn.GELU(ACTIVATIONS[activation][0])
        num_scored = codebook_size + (self.mask_token_id == codebook_size)
        self.token_embedding = TokenTable(vocab_size, hidden_size, num_scored, num_places if position_bias else None)
        self.position_embedding = nn.Embedding(num_places, hidden_size)
        self.norm_in = nn.LayerNorm(hidden_size, norm_eps)
        self.proj_in = None
        if project_embeddings:
            first, last = (nn.Linear(hidden_size, hidden_size) for _ in range(2))
            self.proj_in = nn.Sequential(first, gelu, nn.LayerNorm(hidden_size, norm_eps), last)
        self.transformer_blocks = blocks(num_layers, hidden_size, num_attention_heads, intermediate_size)
        self.norm_out = nn.LayerNorm(hidden_size, norm_eps) if norm_first else None
        self.decoder = None
        if num_decoder_layers:
            inner_dim = decoder_intermediate_size or intermediate_size
            decoder_blocks = blocks(num_decoder_layers, decoder_hidden_size, num_decoder_attention_heads, inner_dim)
            self.decoder = MAGEDecoder(hidden_size, decoder_hidden_size, num_places, decoder_blocks, norm_eps)
        last_width = decoder_hidden_size if num_decoder_layers else hidden_size
        self.head = nn.Sequential(nn.Linear(last_width, hidden_size), gelu, nn.LayerNorm(hidden_size, head_norm_eps))
        self._initialise_weights()

    def _check_sizes(self, decoder_hidden_size: int, num_decoder_attention_heads: int) -> None:
        config = self.config
        sizes = ("sample_size", "codebook_size", "hidden_size", "num_layers", "num_attention_heads")
        at_least_one = (*sizes, "intermediate_size")
        for name in (*at_least_one, "num_classes", "num_decoder_layers"):
            minimum = int(name in at_least_one)
            if config[name] < minimum:
                raise ValueError(f"`{name}` must be at least {minimum}, got {config[name]}. Pass a larger one.")
        for name, heads, width in (
            ("num_attention_heads", config.num_attention_heads, config.hidden_size),
            ("num_decoder_attention_heads", num_decoder_attention_heads, decoder_hidden_size),
        ):
            if width % heads:
                raise ValueError(f"`{name}` must divide the width {width}, got {heads}. Pass a divisor of it.")
        if config.activation not in ACTIVATIONS:
            raise ValueError(f"`activation` must be one of {sorted(ACTIVATIONS)}, got {config.activation!r}. Pick one.")
        if not 0 <= config.dropout < 1:
            raise ValueError(f"`dropout` must be in [0, 1), got {config.dropout}. Pass 0 to train without it.")

    def _check_ids(self, vocab_size: int) -> None:
        codebook_size, end = self.config.codebook_size, self.class_token_offset + self.config.num_classes
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
        cache: KeyValueCache | None = None,
        embedding_noise: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> Transformer2DModelOutput | tuple[torch.Tensor]:
        """Predict every position's token from all the others.

        Args:
            sample: Token ids, `(batch_size, sample_size, sample_size)` or `(batch_size, sample_size ** 2)` in
                row-major order, int64; masked positions hold `mask_token_id`.
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
            `(batch_size, sample_size ** 2, codebook_size)` in the model's dtype. If the mask's id is `codebook_size`,
            there is one more column, for the mask; samplers ignore it.

        Raises:
            ValueError: If a shape or dtype is not as above. Ids are not checked for their range here, since that would
                make the host wait for an accelerator; wrong ones fail in the embedding.
        """
        side = self.config.sample_size
        check_image_tokens(sample, class_labels, positions, side, self.config.num_classes)
        tokens = torch.cat([sample.flatten(1), self.class_token_offset + class_labels[:, None]], dim=1)
        if positions is None:
            places = torch.arange(side * side + 1, device=sample.device)
        else:
            positions = F.pad(positions, (0, 1), value=side * side)
            places = places_of(positions)

        embeddings = self.token_embedding(tokens)
        if embedding_noise is not None:  # the class has none
            codes, label = embeddings[:, :-1], embeddings[:, -1:]
            embeddings = torch.cat([with_noise(codes, embedding_noise, positions), label], dim=1)
        hidden_states = self.norm_in(embeddings + self.position_embedding(places))
        if self.proj_in is not None:
            hidden_states = self.proj_in(hidden_states)
        num_layers, num_decoder_layers = self.config.num_layers, self.config.num_decoder_layers
        layers = self.layers_of_pass(cache, positions, num_layers + num_decoder_layers, len(sample))
        hidden_states = self.transformer_blocks.run(hidden_states, layers[:num_layers])
        if self.norm_out is not None:
            hidden_states = self.norm_out(hidden_states)
        if self.decoder is not None:
            hidden_states = self.decoder(hidden_states, tokens == self.mask_token_id, places, layers[num_layers:])
        logits = self.token_embedding(self.head(hidden_states[:, :-1]), places[..., :-1])
        if not return_dict:
            return (logits,)
        return Transformer2DModelOutput(sample=logits)
