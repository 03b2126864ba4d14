"""The class-conditional denoiser of TiTok's one-dimensional codes (arXiv 2406.07550, bytedance/1d-tokenizer)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.attention import AttentionMixin
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from hf_maskdiff.caching import KeyValueCache, PartialCacheMixin, places_of
from hf_maskdiff.models.image_tokens import check_code_row, with_noise
from hf_maskdiff.models.maskgit_layers import MaskGITTransformerBlock
from hf_maskdiff.models.sized_model import SizedModelMixin


class TiTokTransformer1DModel(
    SizedModelMixin, ModelMixin, ConfigMixin, AttentionMixin, PartialCacheMixin, PeftAdapterMixin
):
    """Class-conditional denoiser of an image that is a row of codes: takes the weights of TiTok's generators.

    A bidirectional transformer over `num_tokens` codes and a class token behind them. A code is no place in the image:
    each tells something of all of it, see `TiTokVQModel`. There is no timestep input. The published models are:

    | | blocks | skips |
    | --- | --- | --- |
    | TiTok-L-32, TiTok-B-64 | norms last, as BERT | none |
    | TiTok-S-128 | `norm_first` | from each block of the first half to its mirror image, as U-ViT |

    A new model's matrices are normal with standard deviation 0.02; the same `torch.manual_seed` gives the same model.

    Source: Yu et al., "An Image is Worth 32 Tokens for Reconstruction and Generation", arXiv 2406.07550; repository
    bytedance/1d-tokenizer (Apache-2.0). An independent implementation.

    Example:

    ```python
    model = TiTokTransformer1DModel(
        num_tokens=8, codebook_size=64, num_classes=10,
        hidden_size=48, num_layers=3, num_attention_heads=4, intermediate_size=96,
    )
    sample = torch.full((2, 8), 64)                        # everything masked
    logits = model(sample, torch.tensor([3, 10])).sample   # class 3, and unconditional: (2, 8, 64)
    ```

    Args:
        num_tokens (`int`): Codes of an image.
        codebook_size (`int`): Number of codes, whose ids come first; the mask's id is `codebook_size`.
        num_classes (`int`): Number of classes; the null (unconditional) label is `num_classes`.
        hidden_size (`int`): Width of the residual stream.
        num_layers (`int`): Number of transformer blocks.
        num_attention_heads (`int`): Number of heads; divides `hidden_size`.
        intermediate_size (`int`): Width between the two halves of the feed-forward.
        norm_first (`bool`, defaults to False): Put norms before attention and feed-forward and one after all blocks,
            rather than after each attention and feed-forward and one before all blocks.
        num_skips (`int`, defaults to 0): How many of the last blocks are also given what one of the first blocks
            returned: the last block that of the first one, and so on; at most half of the blocks.
        dropout (`float`, defaults to 0.0): Dropout probability in training, in attention and feed-forward.
        norm_eps (`float`, defaults to 1e-5): Added to the variance in all norms.
        id2label (`dict`, *optional*): Names of the classes, for the pipeline; synonyms are separated by commas.

    Raises:
        ValueError: If a size is too small, heads do not divide the width, or there are too many skips.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["MaskGITTransformerBlock"]  # noqa: RUF012 (diffusers' convention)
    _repeated_blocks = ["MaskGITTransformerBlock"]  # noqa: RUF012 (diffusers' convention)
    _skip_layerwise_casting_patterns = ["embedding", "norm"]  # noqa: RUF012 (diffusers' convention)
    has_null_class = True

    @register_to_config
    def __init__(
        self,
        num_tokens: int,
        codebook_size: int,
        num_classes: int,
        hidden_size: int,
        num_layers: int,
        num_attention_heads: int,
        intermediate_size: int,
        norm_first: bool = False,
        num_skips: int = 0,
        dropout: float = 0.0,
        norm_eps: float = 1e-5,
        id2label: dict[int, str] | None = None,
    ) -> None:
        super().__init__()
        self._check_sizes()
        shape = (hidden_size, num_attention_heads, intermediate_size, norm_first, "gelu", dropout, norm_eps)
        self.token_embedding = nn.Embedding(codebook_size + num_classes + 2, hidden_size)
        self.position_embedding = nn.Embedding(num_tokens + 1, hidden_size)
        self.norm_in = nn.Identity() if norm_first else nn.LayerNorm(hidden_size, norm_eps)
        self.transformer_blocks = nn.ModuleList(MaskGITTransformerBlock(*shape) for _ in range(num_layers))
        self.skips = nn.ModuleList(nn.Linear(2 * hidden_size, hidden_size) for _ in range(num_skips))
        self.norm_out = nn.LayerNorm(hidden_size, norm_eps) if norm_first else nn.Identity()
        self.head = nn.Linear(hidden_size, codebook_size)
        self.gradient_checkpointing = False
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def _check_sizes(self) -> None:
        config = self.config
        least = dict.fromkeys(("num_tokens", "codebook_size", "num_classes", "hidden_size", "num_layers"), 1)
        least |= {"num_attention_heads": 1, "intermediate_size": 1, "num_skips": 0}
        for name, minimum in least.items():
            if config[name] < minimum:
                raise ValueError(f"`{name}` must be at least {minimum}, got {config[name]}. Pass a larger one.")
        if config.hidden_size % config.num_attention_heads:
            raise ValueError(
                f"`num_attention_heads` must divide the width {config.hidden_size}, got {config.num_attention_heads}. "
                "Pass a divisor of it."
            )
        if 2 * config.num_skips > config.num_layers:
            raise ValueError(
                f"`num_skips` must be at most half of `num_layers` = {config.num_layers}, got {config.num_skips}. Pass "
                "fewer, or add blocks."
            )
        if not 0 <= config.dropout < 1:
            raise ValueError(f"`dropout` must be in [0, 1), got {config.dropout}. Pass 0 to train without it.")

    def forward(
        self,
        sample: Tensor,
        class_labels: Tensor,
        return_dict: bool = True,
        positions: Tensor | None = None,
        cache: KeyValueCache | None = None,
        embedding_noise: Callable[[Tensor], Tensor] | None = None,
    ) -> Transformer2DModelOutput | tuple[Tensor]:
        """Predict every position's code from all the others.

        Args:
            sample: Codes, `(batch_size, num_tokens)`, int64; masked positions hold `codebook_size`.
            class_labels: Class ids, `(batch_size,)`, int64; `num_classes` is the unconditional label.
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
            codebook_size)` in the model's dtype.

        Raises:
            ValueError: If a shape or dtype is not as above. Ids are not checked for their range here, since that would
                make the host wait for an accelerator; wrong ones fail in the embedding.
        """
        length = self.config.num_tokens
        check_code_row(sample, class_labels, positions, length, self.config.num_classes)
        if positions is None:
            places = torch.arange(length + 1, device=sample.device)
        else:
            positions = F.pad(positions, (0, 1), value=length)
            places = places_of(positions)
        codes = with_noise(self.token_embedding(sample), embedding_noise, positions)
        label = self.token_embedding(self.config.codebook_size + 1 + class_labels[:, None])
        hidden_states = self.norm_in(torch.cat([codes, label], dim=1) + self.position_embedding(places))
        layers = self.layers_of_pass(cache, positions, self.config.num_layers, len(sample))
        hidden_states = self.norm_out(self._run(hidden_states, layers)[:, :-1])
        logits = self.head(hidden_states)
        if not return_dict:
            return (logits,)
        return Transformer2DModelOutput(sample=logits)

    def _run(self, hidden_states: Tensor, layers: list) -> Tensor:
        """The hidden states after all blocks."""
        num_skips = self.config.num_skips
        returned: list[Tensor] = []
        first_skip = self.config.num_layers - num_skips
        for i, (block, kept) in enumerate(zip(self.transformer_blocks, layers, strict=True)):
            if i >= first_skip:
                joined = torch.cat([hidden_states, returned.pop()], dim=-1)
                hidden_states = self.skips[i - first_skip](joined)
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                hidden_states = self._gradient_checkpointing_func(block, hidden_states, kept)
            else:
                hidden_states = block(hidden_states, kept)
            if i < num_skips:
                returned.append(hidden_states)
        return hidden_states
