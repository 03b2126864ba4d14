"""The text denoiser of MDLM (arXiv 2406.07524, kuleshov-group/mdlm)."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.attention import AttentionMixin
from diffusers.models.modeling_utils import ModelMixin
from torch import nn
from transformers.modeling_outputs import MaskedLMOutput

from hf_maskdiff.attention_rule import BlockCausal
from hf_maskdiff.caching import KeyValueCache, LayerCache, PartialCacheMixin, places_of
from hf_maskdiff.models.mdlm_layers import (
    AdaLayerNorm,
    MDLMNoiseEmbedding,
    MDLMOutputLayer,
    MDLMRotaryEmbedding,
    MDLMTokenEmbedding,
    MDLMTransformerBlock,
    log_linear_noise,
    rotate,
)
from hf_maskdiff.models.sized_model import SizedModelMixin
from hf_maskdiff.published.malformed import refusing, settings_of
from hf_maskdiff.published.mdlm_weights import LOCATION, published_weights
from hf_maskdiff.published.sdtt import is_sdtt, mdlm_settings
from hf_maskdiff.published.sizes import check_sizes

__all__ = ["PUBLISHED_TYPES", "AdaLayerNorm", "MDLMTransformer", "log_linear_noise", "rotate"]

PUBLISHED_TYPES = ("mdlm", "bd3lm")
_BUFFERS_OF_TRAINING = ("sampling_eps_min", "sampling_eps_max")  # of BD3-LM: how much its loss masks
# What a BD3-LM may say of its arithmetic and still be this model.
_SUPPORTED = {"adaln": True, "causal": False}


class MDLMTransformer(SizedModelMixin, ModelMixin, ConfigMixin, AttentionMixin, PartialCacheMixin, PeftAdapterMixin):
    """Text denoiser that takes the weights published with MDLM, at any length, on any device.

    A bidirectional transformer with rotary positions over partly masked token ids. All masked positions are predicted
    at once and independently, so every scheduler of this package can use it. The noise level enters through adaptive
    norms in every layer. Without `time_conditioning`, as in the published models, the noise level is always zero, so
    the norms' condition is one learned vector, and only the tokens show how much is masked.

    With a `block_size` it is a BD3-LM (arXiv 2503.09573, repository kuleshov-group/bd3lms, Apache-2.0): every position
    sees its own block and those before it, so that a finished block is cached exactly.

    In a new model every block is the identity (its modulation is zero), and all other matrices are normal with standard
    deviation 0.02; the same `torch.manual_seed` gives the same model.

    Source: Sahoo et al., "Simple and Effective Masked Diffusion Language Models", arXiv 2406.07524; repository
    kuleshov-group/mdlm (Apache-2.0). An independent implementation; it agrees with the original to float32 rounding.
    Names of sizes and weights are those of the published files.

    Example:

    ```python
    model = MDLMTransformer(vocab_size=68, model_length=128, hidden_dim=192, cond_dim=32, n_blocks=5, n_heads=6)
    input_ids = torch.full((2, 100), 67)   # everything masked
    logits = model(input_ids).logits       # (2, 100, 68)
    ```

    Args:
        vocab_size (`int`): Rows of the token table; the last one, `vocab_size - 1`, is the mask.
        model_length (`int`): Length of the training sequences; shorter and longer sequences work too.
        hidden_dim (`int`): Width of the residual stream.
        cond_dim (`int`): Width of the norms' condition.
        n_blocks (`int`): Number of transformer blocks.
        n_heads (`int`): Number of attention heads; `hidden_dim / n_heads` must be an even integer.
        dropout (`float`, defaults to 0.1):
            Dropout probability in training, on the outputs of attention and feed-forward.
        time_conditioning (`bool`, defaults to False): Whether the model reads the time.
        block_size (`int`, *optional*): Size of the blocks that are seen from left to right; None to see everything.

    Raises:
        ValueError: If a size is below 1, `n_heads` does not fit `hidden_dim`, or `dropout` is not in [0, 1).
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["MDLMTransformerBlock"]  # noqa: RUF012 (diffusers' convention)
    _repeated_blocks = ["MDLMTransformerBlock"]  # noqa: RUF012 (diffusers' convention)
    _skip_layerwise_casting_patterns = ["embed", "norm"]  # noqa: RUF012 (diffusers' convention)

    @register_to_config
    def __init__(
        self,
        vocab_size: int,
        model_length: int,
        hidden_dim: int,
        cond_dim: int,
        n_blocks: int,
        n_heads: int,
        dropout: float = 0.1,
        time_conditioning: bool = False,
        block_size: int | None = None,
    ) -> None:
        super().__init__()
        for name, value in (
            ("vocab_size", vocab_size),
            ("model_length", model_length),
            ("hidden_dim", hidden_dim),
            ("cond_dim", cond_dim),
            ("n_blocks", n_blocks),
            ("n_heads", n_heads),
        ):
            if value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}. Pass a larger one.")
        if hidden_dim % (2 * n_heads):
            raise ValueError(
                f"`hidden_dim` must be a multiple of 2 * `n_heads` = {2 * n_heads}, got {hidden_dim}. "
                "Rotary positions turn pairs of a head's coordinates: make every head of even width."
            )
        if not 0 <= dropout < 1:
            raise ValueError(f"`dropout` must be in [0, 1), got {dropout}. Pass 0 to train without it.")
        self.rule = None if block_size is None else BlockCausal(block_size)

        self.vocab_embed = MDLMTokenEmbedding(vocab_size, hidden_dim)
        self.sigma_map = MDLMNoiseEmbedding(cond_dim)
        self.rotary_emb = MDLMRotaryEmbedding(hidden_dim // n_heads)
        self.blocks = nn.ModuleList(
            MDLMTransformerBlock(hidden_dim, cond_dim, n_heads, dropout) for _ in range(n_blocks)
        )
        self.output_layer = MDLMOutputLayer(hidden_dim, cond_dim, vocab_size)

        self.gradient_checkpointing = False
        self._initialise_weights()

    def _initialise_weights(self) -> None:
        nn.init.normal_(self.vocab_embed.embedding, std=0.02)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.0 if "modulation" in name else 0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> MDLMTransformer:
        """Load a model saved by `save_pretrained`, or one in the layout published by MDLM's authors.

        The published layout (kuleshov-group/mdlm-owt) has a `config.json` of model type "mdlm", and `model.safetensors`
        in one file or in shards, with weight names that start with "backbone.". That of BD3-LM
        (kuleshov-group/bd3lm-owt-block_size4) is of model type "bd3lm", and says its `block_size`. Those of SDTT
        (jdeschena/sdtt, a `revision` for each model) have the configuration of their training. The repository's own
        code is neither needed nor run.

        Example:

        ```python
        model = MDLMTransformer.from_pretrained("kuleshov-group/mdlm-owt", torch_dtype=torch.bfloat16)
        ```

        Args:
            pretrained_model_name_or_path: A repository of the Hub or a local folder.
            kwargs: As for every diffusers model. For the published layout only `torch_dtype` (or `dtype`) and the
                arguments that locate the files: `revision`, `subfolder`, `cache_dir`, `token`, `local_files_only`,
                `force_download`, `proxies`.

        Raises:
            ValueError: If a folder in the published layout has missing settings, or missing or unexpected weights, or
                if a keyword is not among those above.
        """
        location = {name: kwargs[name] for name in LOCATION if kwargs.get(name) is not None}
        what = f"config.json in {str(pretrained_model_name_or_path)!r}"
        config = settings_of(what, lambda: cls.load_config(pretrained_model_name_or_path, **location))
        if config.get("model_type") not in PUBLISHED_TYPES and not is_sdtt(config):
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

        unknown = sorted(kwargs.keys() - {*LOCATION, "torch_dtype", "dtype"})
        if unknown:
            raise ValueError(
                f"{unknown} cannot be used with the published layout in {str(pretrained_model_name_or_path)!r}. Load "
                "the model without, call `model.save_pretrained(folder)`, and load that folder with them."
            )
        settings = inspect.signature(cls.__init__).parameters
        if not is_sdtt(config):
            _require_supported(config, settings)
        weights = published_weights(pretrained_model_name_or_path, location)
        for name in _BUFFERS_OF_TRAINING:
            weights.pop(name, None)
        shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
        config = mdlm_settings(config, shapes) if is_sdtt(config) else config
        check_sizes(config, shapes)
        with torch.device("meta"), refusing(what, "Take config.json and weights from one model."):
            model = cls(**{name: config[name] for name in settings if name in config})

        try:
            model.load_state_dict(weights, assign=True)
        except RuntimeError as error:
            raise ValueError(
                f"The weights in {str(pretrained_model_name_or_path)!r} do not fit its config.json. {error}"
            ) from error
        model.register_to_config(_name_or_path=str(pretrained_model_name_or_path))
        dtype = kwargs.get("dtype") or kwargs.get("torch_dtype")
        return (model if dtype is None else model.to(dtype)).eval()

    def forward(
        self,
        input_ids: torch.Tensor,
        timestep: float | torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        return_dict: bool = True,
        positions: torch.Tensor | None = None,
        cache: KeyValueCache | None = None,
        logits_at: torch.Tensor | None = None,
        offsets: torch.Tensor | None = None,
        length: int | None = None,
    ) -> MaskedLMOutput | tuple[torch.Tensor]:
        """Predict every position's token from all the others.

        Args:
            input_ids: Token ids, `(batch_size, sequence_length)`, int64; masked positions hold `vocab_size - 1`.
            timestep: Time t in [0, 1], the share of masked positions, one number or one per row `(batch_size,)`. A
                model with `time_conditioning` needs it, and reads it as the noise level `log_linear_noise(t)`; all
                others ignore it.
            attention_mask: `(batch_size, sequence_length)`, bool or integer: 1 for a real token, 0 for padding, to
                which no position attends. None if all tokens are real.
            return_dict: Whether to return a `MaskedLMOutput` rather than a tuple.
            positions: None for a full pass. For a partial pass (see `PartialCacheConfig`), which must follow a full
                pass with the same cache, the positions of `input_ids` in the sequence, int64 of the same shape,
                distinct within a row. A position p given as `-p - 1` is computed, but its cached key and value are
                kept. The attention mask must be that of the full pass.
            cache: Stores keys and values between the passes of a call, from `new_cache()`. With None, the cache of the
                current `cache_context` is used if caching is on, and nothing is stored if it is off.
            logits_at: The columns of `input_ids` whose logits are wanted, int64 `(batch_size, n)`; None for all. The
                projection to the vocabulary, which takes most of the time and memory of a small model, is computed for
                these alone.
            offsets: Only with a `block_size`: positions that each row's first block lacks, int64 `(batch_size,)`; None
                for 0. They must be those of the full pass.
            length: Number of positions of the sequences in a partial pass, for which `attention_mask` is, where they
                may be more than in the pass before.

        Returns:
            An output whose `logits`, or a tuple whose only entry, is `(batch_size, sequence_length, vocab_size)` in
            the model's dtype, or `(batch_size, n, vocab_size)` with `logits_at`: raw logits, masked or not. The last
            column belongs to the mask, which is never a target; samplers ignore it.

        Raises:
            ValueError: If a shape or dtype is not as above, or the time is missing. Ids are not checked for their range
                here, since that would make the host wait for an accelerator; wrong ones fail in the embedding.
        """
        _check_inputs(input_ids, attention_mask, positions)
        if positions is None:
            places = torch.arange(input_ids.shape[1], device=input_ids.device)
        else:
            places = places_of(positions)
        rotary = self.rotary_emb(places)
        if attention_mask is not None:
            real = attention_mask.bool()
            # In a row without real tokens the softmax would be over nothing, so let it attend to its padding.
            attention_mask = (real | ~real.any(-1, keepdim=True))[:, None, None]

        hidden_states = self.vocab_embed(input_ids)
        noise_level = self._noise_level(timestep, len(input_ids), input_ids.device)
        condition = self.sigma_map(noise_level, hidden_states.dtype)
        layers = self.layers_of_pass(cache, positions, len(self.blocks), len(input_ids), length)
        if self.rule is not None:
            seen = None if attention_mask is None else attention_mask[:, 0, 0]
            places = places.expand(len(input_ids), -1)
            num_keys = _num_keys(layers, input_ids, positions)
            attention_mask = self.rule.seen(places, num_keys, seen, offsets, length)
        for block, kept in zip(self.blocks, layers, strict=True):
            arguments = (hidden_states, condition, rotary, attention_mask, kept)
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                hidden_states = self._gradient_checkpointing_func(block, *arguments)
            else:
                hidden_states = block(*arguments)
        if logits_at is not None:
            hidden_states = hidden_states.gather(1, logits_at[..., None].expand(-1, -1, hidden_states.shape[-1]))
        logits = self.output_layer(hidden_states, condition)
        if not return_dict:
            return (logits,)
        return MaskedLMOutput(logits=logits)

    def _noise_level(
        self, timestep: float | torch.Tensor | None, batch_size: int, device: torch.device
    ) -> torch.Tensor:
        """The noise level sigma, one for all rows or one per row: `(1 or batch_size,)`."""
        if not self.config.time_conditioning:
            return torch.zeros(1, device=device)
        if timestep is None:
            raise ValueError("`timestep` must be given to a model with `time_conditioning`, got None. Pass the time t.")
        time = torch.as_tensor(timestep)
        if time.shape not in ((), (1,), (batch_size,)):
            raise ValueError(
                f"`timestep` must be one time or one per row ({batch_size},), got {tuple(time.shape)}. "
                "Pass an entry of `scheduler.timesteps`."
            )
        return log_linear_noise(time.reshape(-1)).float().to(device)


def _require_supported(config: Mapping[str, Any], settings: Mapping[str, inspect.Parameter]) -> None:
    """`ValueError` for settings of a published model that are not there, or under which it computes something else."""
    required = [name for name, setting in settings.items() if setting.default is setting.empty and name != "self"]
    missing = [name for name in required if name not in config]
    if missing:
        raise ValueError(f"`config.json` of an MDLM must name its sizes, {missing} are not there. Add them.")
    other = {name: config[name] for name, value in _SUPPORTED.items() if config.get(name, value) != value}
    if other:
        raise ValueError(f"a BD3-LM must have adaptive norms and blocks, got {other} in config.json. It is another.")
    if config["model_type"] == "bd3lm" and config.get("block_size") is None:
        raise ValueError("`config.json` of a BD3-LM must name its `block_size`, it is not there. Add it.")


def _num_keys(layers: list[LayerCache] | list[None], input_ids: torch.Tensor, positions: torch.Tensor | None) -> int:
    """Number of positions that queries attend to: those of the pass, or all that are stored."""
    stored = layers[0].key if layers and layers[0] is not None else None
    return input_ids.shape[1] if positions is None or stored is None else stored.length


def _check_inputs(input_ids: torch.Tensor, attention_mask: torch.Tensor | None, positions: torch.Tensor | None) -> None:
    """Raise `ValueError` for tensors of another shape or dtype than `MDLMTransformer.forward` takes."""
    if input_ids.ndim != 2 or input_ids.dtype != torch.int64:
        raise ValueError(
            "`input_ids` must hold ids as torch.int64 of shape (batch_size, sequence_length), got "
            f"{input_ids.dtype} {tuple(input_ids.shape)}. Pass `tokenizer(texts, return_tensors='pt').input_ids`."
        )
    if positions is not None and (positions.shape != input_ids.shape or positions.dtype != torch.int64):
        raise ValueError(
            f"`positions` must be int64 of the shape of `input_ids`, {tuple(input_ids.shape)}, got "
            f"{positions.dtype} {tuple(positions.shape)}. Pass where each token stands in the sequence."
        )
    if attention_mask is not None and positions is None and attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"`attention_mask` must have the shape of `input_ids`, {tuple(input_ids.shape)}, got "
            f"{tuple(attention_mask.shape)}. Pass 1 where a token is real and 0 where it is padding."
        )
