"""Finds out by a few short passes how to use a transformers model as a denoiser, and refuses unsuitable models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from diffusers.utils.torch_utils import unwrap_module
from torch import Tensor
from transformers import PreTrainedModel

from hf_maskdiff.attention_rule import BlockCausal
from hf_maskdiff.caching import AttentionStore, KeyValueStore, PositionalCache
from hf_maskdiff.denoisers.attention_arguments import (
    by_query,
    explicit,
    native,
    not_causal,
    reserved_positions,
    smallest_window,
)
from hf_maskdiff.denoisers.direct_pass import runs_directly
from hf_maskdiff.denoisers.transformers_pass import Abilities, accepted_arguments, run_pass

# Number of tokens in a probe; to test an attention window, the probe is longer than the window by this number.
PROBE_LENGTH = 12
# Size of the blocks with which it is tested whether a model sees blocks, whatever the size of its own.
_PROBE_BLOCK = 4
# An effect on the logits that is smaller than this, in standard deviations of the logits, counts as none.
_EXACT = 1e-6
# If the rows of a batch affect each other (see `Abilities.noise`), an effect counts as seen above `_SEEN` times that
# noise, and as hidden below the noise or below `_HIDDEN` times the effect of a visible token.
_SEEN, _HIDDEN = 2, 0.05
# Relative differences that can be explained by rounding.
_TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 1e-1}


class Probe:
    """Tests a model on a few random tokens.

    Args:
        model: the model, in evaluation mode.
        device: the device for its tokens.
        rule: what the model is to see; None for all positions.
    """

    def __init__(self, model: PreTrainedModel, device: torch.device, rule: BlockCausal | None = None) -> None:
        self.model, self.device, self.rule = model, device, rule
        self.config = model.config.get_text_config()
        self.name = type(unwrap_module(model)).__name__

    def abilities(self) -> Abilities:
        """How to let every position attend to every other one, and how positions are numbered.

        Raises:
            ValueError: no way works for this model.
        """
        implementation = self.model.config._attn_implementation
        found = self._bidirectional(implementation) if self.rule is None else self._in_blocks(implementation)
        found.first_position = self._first_position(found)
        found.rule = self.rule
        found.direct = runs_directly(self.model) and self._is_the_same(found, replace(found, direct=True))
        return found

    def working_store(self, found: Abilities, length: int) -> Callable[[], KeyValueStore]:
        """The first store class that stores every layer and reproduces a full pass.

        Raises:
            ValueError: no store works; the message says what is wrong with each.
        """
        reasons = []
        # `PositionalCache` cannot tell the model which keys lie in the window of a query at an arbitrary position.
        by_cache = "past_key_values" in accepted_arguments(self.model) and smallest_window(self.config) is None
        stores: list[type[KeyValueStore]] = [PositionalCache, AttentionStore] if by_cache else [AttentionStore]
        for store_class in stores:
            # What a model hangs on its modules later keeps it from direct passes, so both kinds must be right.
            kinds = [replace(found, direct=direct) for direct in (False, True)[: 1 + found.direct]]
            faults = [self._fault(kind, store_class(), length) for kind in kinds]
            reason = next((fault for fault in faults if fault is not None), None)
            if reason is None:
                return store_class
            reasons.append(f"{store_class.__name__}: {reason}")
        raise ValueError(
            f"caching needs every layer's keys and values, but {self.name} does not give them "
            f"({'; '.join(reasons)}). Call `disable_cache()`."
        )

    def _example(self, length: int = PROBE_LENGTH) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens, some of them masked, their positions, and an attention mask with padding; all `(2, length)`."""
        config = self.config
        special = {getattr(config, f"{name}_token_id", None) for name in ("pad", "mask", "bos", "eos", "unk")}
        ids = torch.tensor([i for i in range(min(config.vocab_size, 1000)) if i not in special])
        picked = ids[torch.randint(len(ids), (2, length), generator=torch.Generator().manual_seed(0))]
        mask_token_id = named_mask(config)
        if mask_token_id is not None:
            picked[:, 1::3] = mask_token_id
        places = torch.arange(length, device=self.device).expand(2, -1)
        return picked.to(self.device), places, places < torch.tensor([[length], [length - 2]], device=self.device)

    def _bidirectional(self, implementation: str) -> Abilities:
        """The first way in which real tokens, but not padding, affect the logits before them."""
        require_evaluation(self.model)
        reason = ""
        for attention in (native, not_causal, explicit):
            found = Abilities(implementation, attention)
            try:
                if self._shows(found, self._effects(found)):
                    return found
            except torch.OutOfMemoryError:
                raise
            except (TypeError, ValueError, RuntimeError) as error:  # the model does not accept these arguments
                reason = f" ({error})"
        raise ValueError(
            f"a denoiser must be bidirectional, got {self.name}, in which no token affects the logits before "
            f"it{reason}. Use a masked language model, or one whose attention takes a mask `(batch_size, 1, 1, L)`."
        )

    def _in_blocks(self, implementation: str) -> Abilities:
        """With a mask for each query, tokens affect the logits of their blocks and of later ones, and no others."""
        require_evaluation(self.model)
        found, reason = Abilities(implementation, by_query, rule=BlockCausal(_PROBE_BLOCK)), ""
        try:
            if smallest_window(self.config) is None and self._shows(found, self._effects_in_blocks(found)):
                return found
        except torch.OutOfMemoryError:
            raise
        except (TypeError, ValueError, RuntimeError) as error:
            reason = f" ({error})"
        raise ValueError(
            "a model that sees blocks from left to right must take a mask `(batch_size, 1, L, L)` and keep to it, got "
            f"{self.name}, which does not with {implementation!r} attention{reason}. Load it with "
            '`attn_implementation="sdpa"`.'
        )

    def _shows(self, found: Abilities, effects: tuple[float, float, float]) -> bool:
        """Whether what is to be seen is seen, and what is not is hidden; takes note of the noise."""
        found.noise, seen, leaked = effects
        is_hidden = leaked <= (_EXACT if found.noise <= _EXACT else max(found.noise, _HIDDEN * seen))
        return seen > max(_EXACT, _SEEN * found.noise) and is_hidden

    def _effects_in_blocks(self, found: Abilities) -> tuple[float, float, float]:
        """As `_effects`: what a token does to its own block and to later ones, and what to earlier ones."""
        ids, places, padded = self._example()
        place, size = 2 * _PROBE_BLOCK - 1, _PROBE_BLOCK
        start, end, real = place - size + 1, place + 1, ids.shape[1] - 2

        def moved(row: int, place: int, mask: Tensor | None) -> Tensor:
            """How far each of the real logits of row 1 moves when a token changes, `(real,)`."""
            other = ids.clone()
            other[row, place] = ids[row, 0] if ids[row, 0] != ids[row, place] else ids[row, 2]
            before, after = (
                run_pass(self.model, found, None, tokens, places, None, mask)[1, :real].detach().double()
                for tokens in (ids, other)
            )
            return (after - before).abs().amax(-1) / before.std()

        changes = [moved(1, place, mask) for mask in (None, padded)]
        noise = max(float(moved(0, place, mask).max()) for mask in (None, padded))
        seen = min(float(change[part].min()) for change in changes for part in (slice(start, place), slice(end, real)))
        leaked = max(float(change[:start].max()) for change in changes)
        return noise, seen, max(leaked, float(moved(1, real, padded).max()))

    def _effects(self, found: Abilities) -> tuple[float, float, float]:
        """How far changing one token shifts the logits before it in row 1, at most, in their standard deviations.

        Returns:
            The effect of a token in row 0, which is noise (0, except for 8-bit models: see `Abilities.noise`); the
            effect of a real token of row 1, the smaller of two measured; and the effect of a padding token of row 1.
        """
        ids, places, padded = self._example()
        last = ids.shape[1] - 1
        plain = {id(mask): run_pass(self.model, found, None, ids, places, None, mask)[1] for mask in (None, padded)}

        def effect(row: int, place: int, mask: Tensor | None) -> float:
            other = ids.clone()
            other[row, place] = ids[row, 0] if ids[row, 0] != ids[row, place] else ids[row, 2]
            moved = run_pass(self.model, found, None, other, places, None, mask)[1, : place - 1].detach().double()
            before = plain[id(mask)][: place - 1].detach().double()
            return float((moved - before).abs().amax() / before.std())

        noise = max(effect(0, last, None), *(effect(0, place, padded) for place in range(last, 3, -2)))
        seen = min(effect(1, last, None), effect(1, last - 2, padded))
        return noise, seen, effect(1, last, padded)

    def _first_position(self, found: Abilities) -> int:
        """The id of the first position: explicit ids from it on give the same logits as none. RoBERTa's is not 0."""
        ids, places, _ = self._example()
        if "position_ids" not in accepted_arguments(self.model):
            return 0
        mask = None if found.rule is None else found.rule.seen(places[:1], ids.shape[1])
        own = self.model(input_ids=ids, **found.attention(self.model, mask)).logits
        for first in {0: None, reserved_positions(self.model): None}:
            found.first_position = first
            if _agree(run_pass(self.model, found, None, ids, places), own, found.noise):
                return first
        raise ValueError(
            f"positions must be numbered from 0 or from the padding token, but {self.name} does neither. It cannot be "
            "used."
        )

    def _is_the_same(self, found: Abilities, other: Abilities) -> bool:
        """Whether another way to run the model gives the same logits, with and without padding."""
        ids, places, padded = self._example()
        real = padded[..., None]
        for mask in (None, padded):
            logits, expected = (run_pass(self.model, way, None, ids, places, None, mask) for way in (other, found))
            if not _agree(logits * real, expected * real, found.noise):
                return False
        return True

    def _fault(self, found: Abilities, store: KeyValueStore, length: int) -> str | None:
        """What is wrong with a store; None if it works."""
        if "position_ids" not in accepted_arguments(self.model):
            return "it takes no `position_ids`"
        ids, places, padded = self._example(length)
        rows, other = torch.arange(2, device=self.device)[:, None], ids.flip(1)
        order = torch.stack([torch.randperm(length, generator=torch.Generator().manual_seed(row)) for row in range(2)])
        order = order.to(self.device)
        some = order[:, : length // 3 + 1]
        run, agree = partial(run_pass, self.model, found), partial(_agree, noise=found.noise)

        full = run(store, ids, places, None, padded)
        if store.num_layers != self.config.num_hidden_layers:
            return f"{store.num_layers} of {self.config.num_hidden_layers} layers were seen"
        if not agree(full[padded], run(None, ids, places, None, padded)[padded]):
            return "a recorded pass gives other logits"
        again = run(store, ids.gather(1, some), some, some, padded)
        real = padded.gather(1, some)
        if not agree(again[real], full[rows, some][real]):
            return "unchanged tokens do not repeat the full pass"
        all_new = run(store, other.gather(1, order), order, order, padded)
        real = padded.gather(1, order)
        if not agree(all_new[real], run(None, other, places, None, padded)[rows, order][real]):
            return "with all positions new it is not a full pass"
        return None


def require_evaluation(model: PreTrainedModel) -> None:
    """Raise `ValueError` for a model in training, whose dropout would be in every logit."""
    plain = unwrap_module(model)
    if plain.training:
        raise ValueError(
            f"a denoiser must be in evaluation mode, got {type(plain).__name__} in training. Call `model.eval()`."
        )


def named_mask(config: Any) -> int | None:
    """The mask id that a configuration gives, if any."""
    mask = getattr(config, "mask_token_id", None)
    return mask if mask is not None and mask < config.vocab_size else None  # some give an id of another vocabulary


def _agree(logits: Tensor, expected: Tensor, noise: float) -> bool:
    """Whether logits differ by no more than rounding, which in 8-bit models is as large as their noise."""
    difference = (logits.double() - expected.double()).norm()
    tolerance = max(_TOLERANCE[expected.dtype], min(noise, 0.1))
    return bool(difference <= tolerance * (expected.double() - expected.double().mean()).norm())
