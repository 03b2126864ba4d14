"""What happens to the logits of a text before the scheduler reads them: transformers' logits processors, in any order.

A processor is called as `generate` calls it: with tokens `(rows, length)` and scores `(rows, vocab_size)`, float32. A
row is a position here. Its tokens are all that the model sees of its sequence, before and behind the position, with the
mask where nothing stands yet: a set, and no text that ends where the next token begins. So a processor may read the
scores alone, or which tokens there are; one that reads their order, their number or the last of them would do something
else than it says, and is refused.

A sampler that takes tokens back reads revealed positions too, under the same rules: to a repetition penalty the token
that stands there is one that the sequence has.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, RepetitionPenaltyLogitsProcessor

from ..integers import as_integer, is_integer
from ..schedulers.checks import is_number, require

_MODULE = "transformers.generation.logits_process"
# Of transformers' own: what reads the scores alone, or tokens as a set.
_WITHOUT_ORDER = {
    "EpsilonLogitsWarper",
    "EtaLogitsWarper",
    "InfNanRemoveLogitsProcessor",
    "LogitNormalization",
    "MinPLogitsWarper",
    "RepetitionPenaltyLogitsProcessor",
    "SequenceBiasLogitsProcessor",  # and bad words, which are a kind of it
    "SuppressTokensLogitsProcessor",
    "TemperatureLogitsWarper",
    "TopHLogitsWarper",
    "TopKLogitsWarper",
    "TopPLogitsWarper",
    "TypicalLogitsWarper",
}
# What a processor of somebody's own sets to True to say that it is such a one.
DECLARATION = "order_free"


class LogitsRules:
    """The processors of one call: those of its keywords, and behind them the user's own, as in `generate`.

    Args:
        processors: called one after the other.
        mask_token_id: stands where a sequence has no token.
        codebook_size: of the scheduler.

    What is never drawn, the mask and ids from `codebook_size` on, has no share in what processors count: the k of
    `TopKLogitsWarper` are tokens, and so is the most probable one of `MinPLogitsWarper`.

    It is false where there are none. Else it fills a second tensor of the logits' size, some float32 rows at a time, so
    that nothing that the model keeps is overwritten.
    """

    def __init__(
        self, processors: Iterable[Any] = (), mask_token_id: int = 0, codebook_size: int | None = None
    ) -> None:
        self.processors, self.mask_token_id = LogitsProcessorList(processors), mask_token_id
        self.codebook_size = codebook_size

    def __bool__(self) -> bool:
        return bool(self.processors)

    @classmethod
    def of_call(
        cls,
        logits_processor: Sequence[Any] | None,
        repetition_penalty: float,
        suppress_tokens: Sequence[int] | None,
        bad_words_ids: Sequence[Sequence[int]] | None,
        mask_token_id: int,
        vocab_size: int,
        codebook_size: int | None = None,
    ) -> LogitsRules:
        """Those that the arguments of a pipeline's call ask for.

        Raises:
            ValueError: a processor that needs an order of the tokens; a penalty that is no number above 0; a token that
                the model does not have; a word of several tokens.
        """
        if not isinstance(logits_processor, Sequence | None) or isinstance(logits_processor, str):
            got = type(logits_processor).__name__
            raise ValueError(f"`logits_processor` must be a list of processors, got {got}. Pass one in a list.")
        own = list(logits_processor or [])
        for processor in own:
            check_processor(processor)
        processors: list[Any] = []
        remedy = "Pass 1.0 for none, 1.2 to make tokens that the text has less probable."
        valid = is_number(repetition_penalty) and 0 < repetition_penalty < math.inf
        require(valid, "repetition_penalty", "a number above 0", repetition_penalty, remedy)
        if repetition_penalty != 1:
            processors.append(RepetitionPenaltyLogitsProcessor(float(repetition_penalty)))
        banned = _token_ids("suppress_tokens", suppress_tokens, vocab_size)
        words = () if bad_words_ids is None else bad_words_ids
        remedy = "Pass one list for each word."
        listed = isinstance(words, list | tuple) or getattr(words, "ndim", 0) == 2
        require(listed, "bad_words_ids", "a list of lists of token ids", words, remedy)
        for word in words:
            ids = _token_ids("bad_words_ids", word, vocab_size)
            remedy = "Tokens of one step are drawn at once, so that a longer word cannot be kept out; ban its tokens."
            require(len(ids) == 1, "bad_words_ids", "words of one token each", ids, remedy)
            banned += ids
        if banned:
            processors.append(_Banned(sorted(set(banned))))
        return cls([*processors, *own], mask_token_id, codebook_size)

    def __call__(self, logits: Tensor, ids: Tensor, seen: Tensor | None = None) -> Tensor:
        """The logits that the scheduler reads, like `logits`.

        Args:
            logits: `(num_rows, n, vocab_size)`, of any positions of each row.
            ids: the tokens of each row, int64 `(num_rows, length)`.
            seen: bool like `ids`, False for padding; None if there is none.
        """
        if seen is not None:
            ids = ids.masked_fill(~seen, self.mask_token_id)
        source, processed = logits.flatten(0, 1), torch.empty_like(logits, memory_format=torch.contiguous_format)
        target, row = processed.flatten(0, 1), torch.arange(len(source), device=ids.device) // logits.shape[1]
        size = max(1, (2**22 if logits.device.type == "cpu" else 2**26) // logits.shape[2])
        for start in range(0, len(source), size):
            part = slice(start, start + size)
            scores = source[part].to(torch.float32, copy=True)
            scores[:, self.mask_token_id : self.mask_token_id + 1] = -math.inf  # which may lie outside the columns
            scores[:, self.codebook_size or scores.shape[1] :] = -math.inf
            target[part] = self.processors(ids[row[part]], scores)
        return processed


class _Banned(LogitsProcessor):
    """Tokens that are never drawn; transformers' own asks for the device before it sees the scores."""

    order_free = True

    def __init__(self, token_ids: list[int]) -> None:
        self.token_ids = torch.tensor(token_ids)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self.token_ids.device != scores.device:
            self.token_ids = self.token_ids.to(scores.device, non_blocking=True)
        return scores.index_fill(1, self.token_ids, -math.inf)


def check_processor(processor: Any) -> None:
    """Raise `ValueError` unless a logits processor needs no order of the tokens, as far as it says."""
    name = type(processor).__name__
    if not callable(processor) or len(inspect.signature(processor).parameters) != 2:
        raise ValueError(
            "`logits_processor` must hold what is called with `input_ids` and `scores` alone, got "
            f"{name}. Pass processors of transformers, or a function of these two."
        )
    owner = next((kind for kind in type(processor).__mro__ if "__call__" in vars(kind)), object)
    known = owner.__module__ == _MODULE and owner.__name__ in _WITHOUT_ORDER
    if not known and getattr(processor, DECLARATION, False) is not True:
        raise ValueError(
            "`logits_processor` must hold processors that read the scores, or `input_ids` as a set, since masked "
            f"tokens are not written from left to right, got {name}. Leave it out; one of your own says so by "
            f"`{DECLARATION} = True`."
        )
    words = getattr(processor, "sequence_bias", ())
    if known and any(len(word) != 1 for word in words):
        raise ValueError(
            f"the sequences of {name} must be of one token each, since the tokens of one step are drawn at once, got "
            f"{max(words, key=len)}. Name the tokens that you mean."
        )
    if known and getattr(processor, "prompt_ignore_length", None) is not None:
        raise ValueError(
            f"`prompt_ignore_length` of {name} must be None, since a prompt may stand anywhere, got "
            f"{processor.prompt_ignore_length}. Leave it out."
        )


def _token_ids(name: str, ids: Sequence[int] | None, vocab_size: int) -> list[int]:
    """Token ids as `int`; `ValueError` for what is none of the model's."""
    if ids is None:
        return []
    known = isinstance(ids, Iterable) and not isinstance(ids, str) and getattr(ids, "ndim", 1) == 1
    values = [as_integer(value) for value in ids] if known else []
    valid = known and all(is_integer(value, at_least=0) and value < vocab_size for value in values)
    remedy = "Pass ids of the tokenizer, for example `tokenizer.convert_tokens_to_ids`."
    require(valid, name, f"token ids below {vocab_size}, in lists", ids, remedy)
    return values
