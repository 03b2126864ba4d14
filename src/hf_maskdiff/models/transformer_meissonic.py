"""The text-to-image denoiser of Meissonic (arXiv 2410.08261, viiika/Meissonic) and Monetico."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.attention import AttentionMixin
from diffusers.models.embeddings import CombinedTimestepTextProjEmbeddings, TimestepEmbedding, get_timestep_embedding
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.normalization import RMSNorm
from torch import Tensor, nn

from hf_maskdiff.caching import CacheContexts, CodeCache, PartialCacheMixin, places_of
from hf_maskdiff.models.image_tokens import with_noise
from hf_maskdiff.models.meissonic_layers import MeissonicJointBlock, MeissonicSingleBlock, rotary_of
from hf_maskdiff.models.patch_grid import PatchGrid, grid_of
from hf_maskdiff.models.sized_model import SizedModelMixin

_EPS = 1e-6


class NormedLinear(nn.Module):
    """RMS normalisation, then a projection without bias."""

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.norm = RMSNorm(dim, _EPS)
        self.proj = nn.Linear(dim, out_dim, bias=False)

    def forward(self, states: Tensor) -> Tensor:
        return self.proj(self.norm(states))


class SquareIn(nn.Module):
    """The codes of a square, `(..., num_codes, dim)`, as one position, `(..., dim)`; each code is normalised."""

    def __init__(self, dim: int, num_codes: int) -> None:
        super().__init__()
        self.norm = RMSNorm(dim, _EPS)
        self.proj = nn.Linear(num_codes * dim, dim, bias=False)

    def forward(self, states: Tensor) -> Tensor:
        return self.proj(self.norm(states).flatten(-2))


class SquareOut(NormedLinear):
    """A position, `(..., dim)`, as the codes of its square, `(..., num_codes, dim)`."""

    def __init__(self, dim: int, num_codes: int) -> None:
        super().__init__(dim, num_codes * dim)
        self.num_codes = num_codes

    def forward(self, states: Tensor) -> Tensor:
        return super().forward(states).unflatten(-1, (self.num_codes, -1))


class MeissonicTransformer2DModel(
    SizedModelMixin, ModelMixin, ConfigMixin, AttentionMixin, PartialCacheMixin, PeftAdapterMixin
):
    """Text-to-image denoiser of image tokens that takes the weights published as Meissonic and Monetico.

    A bidirectional transformer over an image's codes and a text's tokens: blocks in which both have weights of their
    own, then blocks that they share, with rotary position embeddings by row and column, for images of any height and
    width. Time, the pooled text and five numbers on the picture (micro-conditioning) enter through adaptive norms. With
    `downsample`, as in Meissonic at 1024 pixels, a square of 2 x 2 codes is one position of the transformer.

    Partial passes compute what they are given and the text. With `downsample` they compute whole squares: what a square
    holds besides comes from the codes of the passes before, which the cache keeps. Two codes of one square in the same
    group are then computed twice.

    Source: Bai et al., "Meissonic: Revitalizing Masked Generative Transformers for Efficient High-Resolution
    Text-to-Image Synthesis", arXiv 2410.08261; repository viiika/Meissonic (Apache-2.0). An independent implementation.

    Example:

    ```python
    model = MeissonicTransformer2DModel(
        sample_size=4, codebook_size=64, vocab_size=65, num_layers=1, num_single_layers=2, num_attention_heads=2,
        attention_head_dim=16, axes_dims_rope=(4, 6, 6), joint_attention_dim=24, pooled_projection_dim=20,
    )
    sample = torch.full((2, 4, 4), 64)                               # everything masked
    logits = model(
        sample,
        encoder_hidden_states=torch.randn(2, 7, 24),                 # of the text's 7 tokens
        pooled_projections=torch.randn(2, 20),
        micro_conds=torch.tensor([[1024.0, 1024, 0, 0, 6]] * 2),     # width, height, crop, aesthetic score
        timestep=torch.tensor([63.0, 63.0]),                         # the first of 64 steps
    ).sample                                                         # (2, 16, 64)
    ```

    Args:
        sample_size (`int`): Codes per side of the images that it was trained on: 64 for Meissonic, 32 for Monetico.
        codebook_size (`int`): Number of codes, which logits are given for.
        vocab_size (`int`): Rows of the table; its last one is the mask's.
        num_layers (`int`): Number of blocks in which image and text have weights of their own.
        num_single_layers (`int`): Number of blocks after them that image and text share.
        num_attention_heads (`int`): Number of heads.
        attention_head_dim (`int`): Width of a head.
        axes_dims_rope (three `int`): How many of a head's numbers turn with an index that is always 0, with the row and
            with the column: even numbers, `attention_head_dim` in all.
        joint_attention_dim (`int`): Width of `encoder_hidden_states`.
        pooled_projection_dim (`int`): Width of `pooled_projections`.
        downsample (`bool`, defaults to False): Whether 2 x 2 codes are one position.
        micro_cond_encode_dim (`int`, defaults to 256): Width in which each number of micro-conditioning is encoded.
        micro_cond_embed_dim (`int`, defaults to 1280): The same for all of them.

    Raises:
        ValueError: If a size is too small, or sizes do not fit each other.
    """

    takes_noise = True
    _contexts: CacheContexts[CodeCache] | None = None  # type: ignore[assignment]
    _supports_gradient_checkpointing = True
    _no_split_modules = ["MeissonicJointBlock", "MeissonicSingleBlock"]  # noqa: RUF012 (diffusers' convention)
    _repeated_blocks = ["MeissonicJointBlock", "MeissonicSingleBlock"]  # noqa: RUF012 (diffusers' convention)
    _skip_layerwise_casting_patterns = ["embedding", "norm"]  # noqa: RUF012 (diffusers' convention)

    @register_to_config
    def __init__(
        self,
        sample_size: int,
        codebook_size: int,
        vocab_size: int,
        num_layers: int,
        num_single_layers: int,
        num_attention_heads: int,
        attention_head_dim: int,
        axes_dims_rope: Sequence[int],
        joint_attention_dim: int,
        pooled_projection_dim: int,
        downsample: bool = False,
        micro_cond_encode_dim: int = 256,
        micro_cond_embed_dim: int = 1280,
    ) -> None:
        super().__init__()
        _check_config(self.config)
        dim, heads = num_attention_heads * attention_head_dim, num_attention_heads
        self._side = 2 if downsample else 1

        self.token_embedding = nn.Embedding(vocab_size, dim)
        self.code_in = NormedLinear(dim, dim)
        self.square_in = SquareIn(dim, 4) if downsample else nn.Flatten(-2)
        self.proj_in = NormedLinear(dim, dim)
        self.context_embedder = nn.Linear(joint_attention_dim, dim)
        self.context_norm = RMSNorm(dim, _EPS)
        self.cond_embed = TimestepEmbedding(micro_cond_embed_dim + pooled_projection_dim, dim, sample_proj_bias=False)
        self.time_text_embed = CombinedTimestepTextProjEmbeddings(dim, dim)
        self.transformer_blocks = nn.ModuleList(MeissonicJointBlock(dim, heads) for _ in range(num_layers))
        self.single_transformer_blocks = nn.ModuleList(
            MeissonicSingleBlock(dim, heads) for _ in range(num_single_layers)
        )
        self.proj_out = NormedLinear(dim, dim)
        self.square_out = SquareOut(dim, 4) if downsample else nn.Unflatten(-1, (1, dim))
        self.code_out = nn.Linear(dim, dim, bias=False)
        self.head = NormedLinear(dim, codebook_size)
        self.gradient_checkpointing = False

    def new_cache(self) -> CodeCache:
        """A new, empty cache for the passes of one call."""
        return CodeCache()

    def forward(
        self,
        sample: Tensor,
        encoder_hidden_states: Tensor,
        pooled_projections: Tensor,
        micro_conds: Tensor,
        timestep: Tensor,
        return_dict: bool = True,
        positions: Tensor | None = None,
        cache: CodeCache | None = None,
        embedding_noise: Callable[[Tensor], Tensor] | None = None,
    ) -> Transformer2DModelOutput | tuple[Tensor]:
        """Predict every position's code from all the others and a text.

        Args:
            sample: Codes, `(batch_size, height, width)`, or `(batch_size, L)` of square images in row-major order,
                int64; masked positions hold `vocab_size - 1`. With `downsample`, height and width are even.
            encoder_hidden_states: Of the text's tokens, `(batch_size, num_text, joint_attention_dim)`: the text
                encoder's hidden states before its last layer.
            pooled_projections: Of the text, `(batch_size, pooled_projection_dim)`: its projected embedding.
            micro_conds: Width and height in pixels, the two coordinates of the crop and the aesthetic score,
                `(batch_size, 5)`.
            timestep: How many steps are left after this one, `(batch_size,)`: `T - 1` in the first step, 0 in the last.
            return_dict: Whether to return a `Transformer2DModelOutput` rather than a tuple.
            positions: None for a full pass. For a partial pass (see `PartialCacheConfig`), which must follow a full
                pass with the same cache, `sample` is `(batch_size, num_positions)` and `positions` holds the row-major
                index of each of its codes, int64 of the same shape, distinct within a row. A position p given as
                `-p - 1` is computed, but neither its code nor its key and value are kept.
            cache: Stores codes, keys and values between the passes of a call, from `new_cache()`. With None, the cache
                of the current `cache_context` is used if partial caching is on, and nothing is stored if it is off.
            embedding_noise: Maps what the codes are looked up as, `(batch_size, height * width, width of a position)`,
                for models that were distilled with noise there; see `OneStepScheduler`. None leaves it as it is. Only
                in full passes.

        Returns:
            An output whose `sample`, or a tuple whose only entry, holds the logits `(batch_size, height * width,
            codebook_size)`, of a partial pass `(batch_size, num_positions, codebook_size)`, in the model's dtype.

        Raises:
            ValueError: If a shape or dtype is not as above. Ids are not checked for their range here, since that would
                make the host wait for an accelerator; wrong ones fail in the embedding.
        """
        _check_inputs(self.config, sample, positions, encoder_hidden_states, pooled_projections, micro_conds, timestep)
        store = self._contexts.current if cache is None and self._contexts is not None else cache
        grid = self._grid(sample, positions, store)
        patches, within = _patches(grid, sample, positions)
        queries = None if positions is None else _queries(grid, positions, patches, encoder_hidden_states.shape[1])
        blocks = [*self.transformer_blocks, *self.single_transformer_blocks]
        layers = self.layers_of_pass(store, queries, len(blocks), len(sample))
        codes = _codes(grid, sample, positions, store, patches, within)

        if embedding_noise is None:
            embeddings = self.code_in(self.token_embedding(codes))
        else:  # one noise for each code, in their order
            embeddings = with_noise(self.code_in(self.token_embedding(sample.flatten(1))), embedding_noise, positions)
            embeddings = embeddings[:, grid.members(patches)]
        hidden_states = self.proj_in(self.square_in(embeddings))
        text = self.context_norm(self.context_embedder(encoder_hidden_states))
        temb = self._condition(pooled_projections, micro_conds, timestep)
        rotary = rotary_of(*grid.coordinates(patches), text.shape[1], self.config.axes_dims_rope)
        for block, kept in zip(blocks, layers, strict=True):
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                text, hidden_states = self._gradient_checkpointing_func(block, hidden_states, text, temb, rotary, kept)
            else:
                text, hidden_states = block(hidden_states, text, temb, rotary, kept)

        hidden_states = self.square_out(self.proj_out(hidden_states))
        if within is None:
            hidden_states = grid.unpatched(hidden_states)
        else:
            hidden_states = hidden_states.take_along_dim(within[..., None, None], 2).squeeze(2)
        logits = self.head(self.code_out(hidden_states))
        if not return_dict:
            return (logits,)
        return Transformer2DModelOutput(sample=logits)

    def _grid(self, sample: Tensor, positions: Tensor | None, store: CodeCache | None) -> PatchGrid:
        """The grid of the codes: in a partial pass that of the full pass before it."""
        if positions is None:
            return grid_of(sample, self._side)
        stored = None if store is None else store.size
        return PatchGrid(*(stored or (self._side, self._side)), self._side)  # without one the pass is refused later

    def _condition(self, pooled: Tensor, micro_conds: Tensor, timestep: Tensor) -> Tensor:
        """What enters every layer: the pooled text, the numbers on the picture and the time, `(batch_size, dim)`."""
        encode_dim = self.config.micro_cond_encode_dim
        numbers = get_timestep_embedding(
            micro_conds.flatten(), encode_dim, flip_sin_to_cos=True, downscale_freq_shift=0
        )
        joined = torch.cat([pooled, numbers.view(len(pooled), -1).to(pooled.dtype)], 1)
        # In float32: float16 has no number for a thousand times the 66 steps that may be left.
        return self.time_text_embed(timestep.float() * 1000, self.cond_embed(joined))


def _patches(grid: PatchGrid, sample: Tensor, positions: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The patches that a pass computes, and which code of each it is asked for; None for all of them."""
    if positions is None:
        return torch.arange(grid.num_patches, device=sample.device), None
    return grid.split(places_of(positions))


def _queries(grid: PatchGrid, positions: Tensor, patches: Tensor, num_text: int) -> Tensor:
    """The positions that a partial pass computes in the blocks: the patches, and behind all of them the text."""
    text = torch.arange(grid.num_patches, grid.num_patches + num_text, device=patches.device)
    return torch.cat([torch.where(positions < 0, ~patches, patches), text.expand(len(patches), -1)], 1)


def _codes(
    grid: PatchGrid,
    sample: Tensor,
    positions: Tensor | None,
    store: CodeCache | None,
    patches: Tensor,
    within: Tensor | None,
) -> Tensor:
    """The codes in each patch, `(batch_size, num_patches, num_codes)`; those of this pass are kept for later ones.

    A code that is computed but not kept is seen by its own query alone.
    """
    members = grid.members(patches)
    if positions is None or within is None or store is None:
        if store is not None:
            store.begin(sample.flatten(1), (grid.height, grid.width))
        return sample.flatten(1)[:, members]
    codes = store.with_codes(sample, positions).gather(1, members.flatten(1)).view_as(members)
    return codes.scatter(2, within[..., None], sample[..., None])


def _check_config(config: Any) -> None:
    """Raise `ValueError` for sizes that are too small or do not fit each other."""
    least = {"num_layers": 0, "num_single_layers": 0, "codebook_size": 1}
    names = ("sample_size", "num_attention_heads", "attention_head_dim", "joint_attention_dim")
    others = ("pooled_projection_dim", "micro_cond_encode_dim", "micro_cond_embed_dim")
    for name, minimum in (least | dict.fromkeys((*names, *others), 1)).items():
        if config[name] < minimum:
            raise ValueError(f"`{name}` must be at least {minimum}, got {config[name]}. Pass a larger one.")
    axes = tuple(config["axes_dims_rope"])
    if len(axes) != 3 or any(dim % 2 or dim < 0 for dim in axes) or sum(axes) != config["attention_head_dim"]:
        raise ValueError(
            f"`axes_dims_rope` must be three even numbers that add up to `attention_head_dim` = "
            f"{config['attention_head_dim']}, got {axes}. Pass for example (16, 56, 56) for 128."
        )
    if config["vocab_size"] <= config["codebook_size"]:
        raise ValueError(
            f"`vocab_size` must be above `codebook_size` = {config['codebook_size']}, since the last row is the "
            f"mask's, got {config['vocab_size']}. Add a row."
        )
    if config["micro_cond_embed_dim"] % config["micro_cond_encode_dim"]:
        raise ValueError(
            f"`micro_cond_embed_dim` must be a multiple of `micro_cond_encode_dim` = "
            f"{config['micro_cond_encode_dim']}, got {config['micro_cond_embed_dim']}. Pass five times as much."
        )
    if config["downsample"] and config["sample_size"] % 2:
        raise ValueError(f"`sample_size` must be even with `downsample`, got {config['sample_size']}. Add one.")


def _check_inputs(
    config: Any,
    sample: Tensor,
    positions: Tensor | None,
    encoder_hidden_states: Tensor,
    pooled_projections: Tensor,
    micro_conds: Tensor,
    timestep: Tensor,
) -> None:
    """Raise `ValueError` for tensors of another shape or dtype than `forward` takes."""
    if sample.dtype != torch.int64:
        raise ValueError(f"`sample` must hold ids as torch.int64, got {sample.dtype}. Convert it with `.long()`.")
    if positions is not None and (positions.shape != sample.shape or positions.dtype != torch.int64):
        raise ValueError(
            f"`positions` must be int64 of the shape of `sample`, {tuple(sample.shape)}, got {positions.dtype} "
            f"{tuple(positions.shape)}. Pass where each code stands in the image, in row-major order."
        )
    rows, num_text = len(sample), encoder_hidden_states.shape[1:2]
    num_micro = config.micro_cond_embed_dim // config.micro_cond_encode_dim
    for name, given, shape in (
        ("encoder_hidden_states", encoder_hidden_states, (rows, *num_text, config.joint_attention_dim)),
        ("pooled_projections", pooled_projections, (rows, config.pooled_projection_dim)),
        ("micro_conds", micro_conds, (rows, num_micro)),
        ("timestep", timestep, (rows,)),
    ):
        if given.shape != shape:
            raise ValueError(
                f"`{name}` must have shape {shape}, one entry per row of `sample`, got {tuple(given.shape)}. Pass "
                "what the text encoder returns that the model was trained with, and the steps left of each row."
            )
