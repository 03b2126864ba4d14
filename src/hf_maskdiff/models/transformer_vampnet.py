"""The denoiser of VampNet: music as the codes of a neural codec (arXiv 2307.04686, hugofloresgarcia/vampnet)."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.attention import AttentionMixin
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from hf_maskdiff.caching import CacheContexts, CodeCache, PartialCacheMixin, places_of
from hf_maskdiff.models.sized_model import SizedModelMixin
from hf_maskdiff.models.vampnet_layers import RelativeBias, VampNetBlock


class VampNetTransformer(SizedModelMixin, ModelMixin, ConfigMixin, AttentionMixin, PartialCacheMixin, PeftAdapterMixin):
    """Denoiser of audio codes: takes the weights of VampNet's coarse model and of its coarse-to-fine model.

    A residual codec writes a sound as frames, each of one code from every codebook, the first of which says most. A
    bidirectional transformer sees each frame as one position and predicts the codes of `num_codebooks` codebooks in it.
    A frame enters as the codec's own vectors of its codes, with a learned vector for a mask, side by side; places enter
    as distances, so that any number of frames will do. There is no timestep input. VampNet's own models have no class;
    with `num_classes` a class is a learned vector that is added to every frame.

    | | predicts | is given |
    | --- | --- | --- |
    | coarse | the first 4 codebooks | nothing |
    | coarse-to-fine | the 10 others | the first 4, as `conditioning_codes` |

    Partial passes compute whole frames: what a frame holds besides comes from the codes of the passes before, which the
    cache keeps. Two codes of one frame in the same group are then computed twice, so a partial pass is cheaper than a
    full one only where it is for fewer codes than there are frames.

    A new model's matrices are normal with standard deviation 0.02; the same `torch.manual_seed` gives the same model.
    Its codec's vectors have to be put into `latent_embedding` before it is trained, see there.

    Source: Flores Garcia et al., "VampNet: Music Generation via Masked Acoustic Token Modeling", arXiv 2307.04686;
    repository hugofloresgarcia/vampnet (MIT). An independent implementation.

    Example:

    ```python
    model = VampNetTransformer(
        num_codebooks=2, codebook_size=64, latent_dim=4, hidden_size=32, num_layers=2, num_attention_heads=2,
        num_conditioning_codebooks=1,
    )
    sample = torch.full((3, 2, 50), 64)                                           # 50 frames, everything masked
    given = torch.randint(0, 64, (3, 1, 50))
    logits = model(sample, conditioning_codes=given).sample                       # (3, 2 * 50, 64)
    ```

    Attributes:
        latent_embedding: What the codes of a frame enter as: for each codebook in turn, the given ones first, the
            codec's `codebook_size` vectors and behind them the mask's, `(number of codebooks * (codebook_size + 1),
            latent_dim)`.

    Args:
        num_codebooks (`int`): Codebooks whose codes are predicted.
        codebook_size (`int`): Codes in a codebook; the mask's id is `codebook_size`.
        latent_dim (`int`): Width of the codec's vectors.
        hidden_size (`int`): Width of the residual stream.
        num_layers (`int`): Number of transformer blocks.
        num_attention_heads (`int`): Number of heads; divides `hidden_size`.
        num_conditioning_codebooks (`int`, defaults to 0): Codebooks before them, whose codes are given.
        num_buckets (`int`, defaults to 32): Numbers that a head has for distances; a multiple of 4.
        max_distance (`int`, defaults to 128): Distance in frames from which on all are alike; above `num_buckets / 4`.
        dropout (`float`, defaults to 0.0): Dropout probability in training, of attention, feed-forward and both sums.
        norm_eps (`float`, defaults to 1e-6): Added to the mean square in all norms.
        num_classes (`int`, defaults to 0): Number of classes; the null (unconditional) label is `num_classes`. 0 is a
            model without classes.
        id2label (`dict`, *optional*): Names of the classes, for the pipeline; synonyms are separated by commas.

    Raises:
        ValueError: If a size is too small, or sizes do not fit each other.
    """

    _contexts: CacheContexts[CodeCache] | None = None  # type: ignore[assignment]
    _supports_gradient_checkpointing = True
    _no_split_modules = ["VampNetBlock"]  # noqa: RUF012 (diffusers' convention)
    _repeated_blocks = ["VampNetBlock"]  # noqa: RUF012 (diffusers' convention)
    _skip_layerwise_casting_patterns = ["embedding", "norm"]  # noqa: RUF012 (diffusers' convention)

    @register_to_config
    def __init__(
        self,
        num_codebooks: int,
        codebook_size: int,
        latent_dim: int,
        hidden_size: int,
        num_layers: int,
        num_attention_heads: int,
        num_conditioning_codebooks: int = 0,
        num_buckets: int = 32,
        max_distance: int = 128,
        dropout: float = 0.0,
        norm_eps: float = 1e-6,
        num_classes: int = 0,
        id2label: dict[int, str] | None = None,
    ) -> None:
        super().__init__()
        _check_config(self.config)
        num_latents = num_conditioning_codebooks + num_codebooks
        self.latent_embedding = nn.Embedding(num_latents * (codebook_size + 1), latent_dim)
        self.proj_in = nn.Linear(num_latents * latent_dim, hidden_size)
        self.class_embedding = nn.Embedding(num_classes + 1, hidden_size) if num_classes else None
        self.relative_bias = RelativeBias(num_buckets, max_distance, num_attention_heads)
        shape = (hidden_size, num_attention_heads, 2 * hidden_size, dropout, norm_eps)
        self.transformer_blocks = nn.ModuleList(VampNetBlock(*shape) for _ in range(num_layers))
        self.norm_out = nn.RMSNorm(hidden_size, norm_eps)
        self.head = nn.Linear(hidden_size, num_codebooks * codebook_size)
        self.gradient_checkpointing = False
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    @property
    def mask_token_id(self) -> int:
        """Id of the mask, in every codebook the one after its codes."""
        return self.config.codebook_size

    def new_cache(self) -> CodeCache:
        """A new, empty cache for the passes of one call."""
        return CodeCache()

    def forward(
        self,
        sample: Tensor,
        conditioning_codes: Tensor | None = None,
        return_dict: bool = True,
        positions: Tensor | None = None,
        cache: CodeCache | None = None,
        class_labels: Tensor | None = None,
    ) -> Transformer2DModelOutput | tuple[Tensor]:
        """Predict every code from all the others.

        Args:
            sample: Codes of the predicted codebooks, `(batch_size, num_codebooks, num_frames)`, or the same in one row,
                `(batch_size, num_codebooks * num_frames)`, int64; masked positions hold `codebook_size`.
            conditioning_codes: Codes of the given codebooks, `(batch_size, num_conditioning_codebooks, num_frames)`,
                int64; what is unknown of them may be masked too. None for a model that is given none.
            return_dict: Whether to return a `Transformer2DModelOutput` rather than a tuple.
            positions: None for a full pass. For a partial pass (see `PartialCacheConfig`), which must follow a full
                pass with the same cache, `sample` is `(batch_size, num_positions)` and `positions` holds the place of
                each of its codes, `codebook * num_frames + frame`, int64 of the same shape, distinct within a row. A
                position p given as `-p - 1` is computed, but neither its code nor its key and value are kept.
            cache: Stores codes, keys and values between the passes of a call, from `new_cache()`. With None, the cache
                of the current `cache_context` is used if partial caching is on, and nothing is stored if it is off.
            class_labels: Class ids, `(batch_size,)`, int64; `num_classes` is the unconditional label, and so is None.
                Only for a model with classes.

        Returns:
            An output whose `sample`, or a tuple whose only entry, holds the logits `(batch_size, num_codebooks *
            num_frames, codebook_size)`, of a partial pass `(batch_size, num_positions, codebook_size)`, in the model's
            dtype.

        Raises:
            ValueError: If a shape or dtype is not as above. Ids are not checked for their range here, since that would
                make the host wait for an accelerator; wrong ones fail in the embedding.
        """
        store = self._contexts.current if cache is None and self._contexts is not None else cache
        stored = None if store is None else store.size
        length = _num_frames(self.config, sample, positions, stored)
        places = torch.arange(length, device=sample.device) if positions is None else places_of(positions) % length
        queries = None if positions is None else torch.where(positions < 0, ~places, places)
        layers = self.layers_of_pass(store, queries, len(self.transformer_blocks), len(sample))
        _check_conditioning(self.config, sample, conditioning_codes, length)
        _check_classes(self.config, sample, class_labels)
        codes = self._frames(sample, conditioning_codes, positions, store, places, length)

        offsets = torch.arange(codes.shape[-1], device=codes.device) * (self.config.codebook_size + 1)
        hidden_states = self.proj_in(self.latent_embedding(codes + offsets).flatten(-2))
        if self.class_embedding is not None:
            labels = class_labels
            if labels is None:
                labels = torch.full((len(sample),), self.config.num_classes, device=sample.device)
            hidden_states = hidden_states + self.class_embedding(labels)[:, None]
        bias = self.relative_bias(places, length)
        for block, layer in zip(self.transformer_blocks, layers, strict=True):
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                hidden_states = self._gradient_checkpointing_func(block, hidden_states, bias, layer)
            else:
                hidden_states = block(hidden_states, bias, layer)
        logits = self.head(self.norm_out(hidden_states)).unflatten(-1, (self.config.num_codebooks, -1))
        if positions is None:  # from frame by frame to codebook by codebook
            logits = logits.transpose(1, 2).flatten(1, 2)
        else:
            logits = logits.take_along_dim((places_of(positions) // length)[..., None, None], 2).squeeze(2)
        if not return_dict:
            return (logits,)
        return Transformer2DModelOutput(sample=logits)

    def _frames(
        self,
        sample: Tensor,
        conditioning_codes: Tensor | None,
        positions: Tensor | None,
        store: CodeCache | None,
        places: Tensor,
        length: int,
    ) -> Tensor:
        """All codes of each frame that a pass computes, `(batch_size, num_queries, number of codebooks)`.

        The pass's own are kept for later ones. A code that is computed but not kept is seen by its own query alone.
        """
        count = self.config.num_codebooks
        if positions is None or store is None:
            if store is not None:
                store.begin(sample.flatten(1), (count, length))
            predicted = sample.reshape(len(sample), count, length).transpose(1, 2)
            given = None if conditioning_codes is None else conditioning_codes.transpose(1, 2)
        else:
            members = places[..., None] + torch.arange(count, device=places.device) * length
            predicted = store.with_codes(sample, positions).gather(1, members.flatten(1)).view_as(members)
            predicted = predicted.scatter(2, (places_of(positions) // length)[..., None], sample[..., None])
            given = None
            if conditioning_codes is not None:
                given = conditioning_codes.transpose(1, 2).take_along_dim(places[..., None], 1)
        return predicted if given is None else torch.cat([given, predicted], -1)


def _check_config(config: Any) -> None:
    """Raise `ValueError` for sizes that are too small or do not fit each other."""
    least = dict.fromkeys(("num_codebooks", "codebook_size", "latent_dim", "hidden_size", "num_layers"), 1)
    least |= {"num_attention_heads": 1, "num_conditioning_codebooks": 0, "num_buckets": 4, "num_classes": 0}
    for name, minimum in least.items():
        if config[name] < minimum:
            raise ValueError(f"`{name}` must be at least {minimum}, got {config[name]}. Pass a larger one.")
    if config.hidden_size % config.num_attention_heads:
        raise ValueError(
            f"`num_attention_heads` must divide the width {config.hidden_size}, got {config.num_attention_heads}. "
            "Pass a divisor of it."
        )
    if config.num_buckets % 4:
        raise ValueError(f"`num_buckets` must be a multiple of 4, got {config.num_buckets}. Pass 32 for VampNet's.")
    if 4 * config.max_distance <= config.num_buckets:
        raise ValueError(
            f"`max_distance` must be above a quarter of `num_buckets` = {config.num_buckets}, got "
            f"{config.max_distance}. Pass 128 for VampNet's."
        )
    if not 0 <= config.dropout < 1:
        raise ValueError(f"`dropout` must be in [0, 1), got {config.dropout}. Pass 0 to train without it.")


def _num_frames(config: Any, sample: Tensor, positions: Tensor | None, stored: tuple[int, int] | None) -> int:
    """How many frames there are, in a partial pass those of the full pass before it; `ValueError` for a wrong shape."""
    count = config.num_codebooks
    if sample.dtype != torch.int64:
        raise ValueError(f"`sample` must hold ids as torch.int64, got {sample.dtype}. Convert it with `.long()`.")
    if positions is not None:
        if positions.shape != sample.shape or positions.dtype != torch.int64:
            raise ValueError(
                f"`positions` must be int64 of the shape of `sample`, {tuple(sample.shape)}, got {positions.dtype} "
                f"{tuple(positions.shape)}. Pass where each code stands: its codebook times the number of frames, plus "
                "its frame."
            )
        return 1 if stored is None else stored[1]  # without one the pass is refused later
    of_rows = sample.ndim == 2 and sample.shape[1] % count == 0
    if not (of_rows or (sample.ndim == 3 and sample.shape[1] == count)) or not sample[:1].numel():
        raise ValueError(
            f"`sample` must have shape (batch_size, {count}, num_frames), got {tuple(sample.shape)}. Pass the codes of "
            f"the {count} codebooks that the model predicts, and those that it is given as `conditioning_codes`."
        )
    return sample[0].numel() // count


def _check_conditioning(config: Any, sample: Tensor, conditioning_codes: Tensor | None, length: int) -> None:
    """Raise `ValueError` unless the given codes are there where the model needs them, in the shape that it needs."""
    count = config.num_conditioning_codebooks
    got = "None"
    if conditioning_codes is not None:
        got = f"{conditioning_codes.dtype} {tuple(conditioning_codes.shape)}"
    if count == 0 and conditioning_codes is not None:
        raise ValueError(
            f"`conditioning_codes` must be None for a model that predicts every codebook, got {got}. Leave them out."
        )
    if count and got != f"{torch.int64} {(len(sample), count, length)}":
        raise ValueError(
            f"`conditioning_codes` must be int64 of shape {(len(sample), count, length)}, got {got}. Pass the codes of "
            f"the first {count} codebooks, of the same frames as `sample`."
        )


def _check_classes(config: Any, sample: Tensor, class_labels: Tensor | None) -> None:
    """Raise `ValueError` for class labels of a wrong shape or dtype, or for a model without classes."""
    if class_labels is None:
        return
    got = f"{class_labels.dtype} {tuple(class_labels.shape)}"
    if config.num_classes == 0:
        raise ValueError(f"`class_labels` must be None for a model without classes, got {got}. Leave them out.")
    if class_labels.shape != sample.shape[:1] or class_labels.dtype != torch.int64:
        raise ValueError(
            f"`class_labels` must be int64 of shape ({len(sample)},), one per row of `sample`, got {got}. Pass "
            f"{config.num_classes} for a row without a class."
        )
