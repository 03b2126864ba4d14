"""Runs the passes that an estimator asks for, in batches over texts of any lengths."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from hf_maskdiff.attention_rule import BlockCausal
from hf_maskdiff.denoisers import TextDenoiser
from hf_maskdiff.likelihood.blocks import ScoredTokens
from hf_maskdiff.likelihood.patterns import Passes

_MOST_LOGITS = 2**25  # whose exponentials are added up at a time


def log_probs_of(logits: Tensor, tokens: Tensor, mask_token_id: int, mask_counts: bool = False) -> Tensor:
    """Log-probabilities of tokens, at least float32, shaped like `tokens`; the logits are read once and not copied.

    Args:
        logits: `(batch_size, n, vocab_size)`, any float dtype.
        tokens: int64 `(batch_size, n)`.
        mask_token_id: id of the mask.
        mask_counts: whether the mask is among the tokens that share the probability.
    """
    flat = logits.flatten(0, 1)
    dtype = torch.promote_types(logits.dtype, torch.float32)
    mask = torch.tensor([mask_token_id], device=logits.device)
    totals = []
    for part in flat.split(max(_MOST_LOGITS // flat.shape[1], 1)):
        part = part.to(dtype)
        totals.append((part if mask_counts else part.index_fill(-1, mask, -torch.inf)).logsumexp(-1))
    chosen = flat.gather(-1, tokens.flatten()[:, None])[:, 0]
    return (chosen.to(dtype) - torch.cat(totals)).view(tokens.shape)


@dataclass(frozen=True)
class _Row:
    """A pass over one text: which tokens it masks, and which columns of the scored tokens it reads."""

    text: int
    index: int
    tokens: ScoredTokens
    masked: Tensor
    columns: Tensor
    time: float

    def ids(self, mask_token_id: int) -> Tensor:
        return self.tokens.ids.index_fill(0, self.tokens.places[self.masked], mask_token_id)

    @property
    def read(self) -> Tensor:
        """Where the tokens stand that are read."""
        return self.tokens.places[self.columns]


@dataclass
class Scoring:
    """Computes the log-probabilities that patterns ask for, in passes of at most `batch_size` rows.

    Rows of all texts share batches, those of like length together. The prompt of a text is computed in every pass, as
    its tokens see the masks. Only where the model sees blocks from left to right do they not: with `blocks`, what
    stands before a block is computed once for all of its passes.

    Args:
        denoiser: the model.
        mask_token_id: the mask, a row of the model.
        device: where the model runs.
        batch_size: rows of a model pass; a guided pass is two of them.
        guidance_scale: w in `l + (w - 1) (l - l')`, l' the logits with the prompt masked; 1 is no guidance.
        mask_counts: see `log_probs_of`.
        blocks: the blocks that the model sees, where what is before them is to be stored; None stores nothing.
        on_pass: called with the number of rows after each pass.
    """

    denoiser: TextDenoiser
    mask_token_id: int
    device: torch.device
    batch_size: int = 16
    guidance_scale: float = 1.0
    mask_counts: bool = False
    blocks: BlockCausal | None = None
    on_pass: Callable[[int], object] = lambda rows: None

    @torch.no_grad()
    def __call__(self, texts: Sequence[ScoredTokens], passes: Sequence[Passes]) -> list[Tensor]:
        """The log-probabilities of the tokens that each pass reads.

        Args:
            texts: the texts, or their parts.
            passes: those over each.

        Returns:
            For each text float64 `(num_passes, n)` on the CPU, 0 where a token is not read.
        """
        rows = [row for k, pair in enumerate(zip(texts, passes, strict=True)) for row in _rows(k, *pair)]
        pending = []
        for batch, logits_of in self._batches(rows):
            values = self._log_probs(batch, logits_of)
            pending.append((batch, values))
            self.on_pass(len(batch))
        found = [torch.zeros(one.masked.shape, dtype=torch.float64) for one in passes]
        for batch, values in pending:  # the host waits for an accelerator only here
            for row, of_row in zip(batch, values.cpu().double(), strict=True):
                found[row.text][row.index, row.columns] = of_row[: len(row.columns)]
        return found

    def _batches(self, rows: list[_Row]) -> Iterator[tuple[list[_Row], Callable[..., Tensor]]]:
        """Rows that share a pass, and how their logits are computed; the longest first, to show if memory is short."""
        if self.blocks is None:
            rows = sorted(rows, key=lambda row: (-len(row.tokens.ids), -len(row.columns), row.text, row.index))
            for start in range(0, len(rows), self.batch_size):
                yield rows[start : start + self.batch_size], self._whole_pass
            return
        for _, group in groupby(rows, key=lambda row: row.text):
            of_text = sorted(group, key=lambda row: -len(row.columns))
            block = _BlockPasses(self, of_text[0].tokens, self.blocks)
            for start in range(0, len(of_text), self.batch_size):
                yield of_text[start : start + self.batch_size], block

    def _log_probs(self, batch: list[_Row], logits_of: Callable[..., Tensor]) -> Tensor:
        """Of the tokens that the rows read, `(num_rows, most read)`; behind them what nobody looks at."""
        read = pad_sequence([row.read for row in batch], batch_first=True, padding_value=int(batch[0].read[0]))
        ids = [row.ids(self.mask_token_id) for row in batch]
        tokens = torch.stack([row.tokens.ids[at] for row, at in zip(batch, _inside(read, ids), strict=True)])
        times = [row.time for row in batch]
        time = times[0] if len(set(times)) == 1 else torch.tensor(times, device=self.device, dtype=torch.float32)
        logits = logits_of(batch, ids, _inside(read, ids), time, True)
        if self.guidance_scale != 1:
            hidden = [
                of_row.masked_fill(row.tokens.prompt, self.mask_token_id)
                for row, of_row in zip(batch, ids, strict=True)
            ]
            without = logits_of(batch, hidden, _inside(read, ids), time, False)
            logits = without.lerp_(logits, self.guidance_scale)
        return log_probs_of(logits, tokens.to(self.device), self.mask_token_id, self.mask_counts)

    def _whole_pass(
        self, batch: list[_Row], ids: list[Tensor], read: Tensor, time: float | Tensor, with_prompt: bool
    ) -> Tensor:
        told: dict[str, Any] = {"logits_at": read.to(self.device)}
        lengths = torch.tensor([len(one) for one in ids])
        # The model does not see the padding, which may be any token but the mask.
        padded = pad_sequence(ids, batch_first=True, padding_value=0 if self.mask_token_id else 1).to(self.device)
        if int(lengths.min()) < padded.shape[1]:
            told["attention_mask"] = (torch.arange(padded.shape[1]) < lengths[:, None]).to(self.device)
        offsets = [row.tokens.offset for row in batch]
        if any(offsets):
            told["offsets"] = torch.tensor(offsets, device=self.device)
        return self.denoiser(padded, time, **told)


class _BlockPasses:
    """Passes over the last block of a text; what stands before it is computed once, with the prompt and without.

    Args:
        scoring: the model, and how it is run.
        tokens: the text up to the end of the block.
        blocks: the blocks that the model sees.
    """

    def __init__(self, scoring: Scoring, tokens: ScoredTokens, blocks: BlockCausal) -> None:
        self._scoring, self._tokens = scoring, tokens
        block = int(blocks.blocks_of(tokens.places[:1] + tokens.offset)[0])
        self._start = max(block * blocks.block_size - tokens.offset, 0)
        self._stored: dict[bool, Any] = {}

    def __call__(
        self, batch: list[_Row], ids: list[Tensor], read: Tensor, time: float | Tensor, with_prompt: bool
    ) -> Tensor:
        scoring = self._scoring
        if self._start == 0:
            return scoring._whole_pass(batch, ids, read, time, with_prompt)
        device, length = scoring.device, len(self._tokens.ids)
        offsets = torch.full((len(batch),), self._tokens.offset, device=device)
        if with_prompt not in self._stored:
            stored = self._stored[with_prompt] = scoring.denoiser.new_cache()
            first = torch.zeros(1, 1, dtype=torch.int64, device=device)
            # Its masks do not matter: they stand in the block, which nothing before it sees.
            scoring.denoiser(ids[0][None].to(device), 1.0, logits_at=first, cache=stored, offsets=offsets[:1])
        places = torch.arange(self._start, length, device=device).expand(len(batch), -1)
        return scoring.denoiser(
            torch.stack(ids)[:, self._start :].to(device),
            time,
            positions=places,
            logits_at=read.to(device) - self._start,
            cache=self._stored[with_prompt].take(torch.zeros(len(batch), dtype=torch.int64, device=device)),
            num_runs=1,
            offsets=offsets,
            length=length,
        )


def _rows(text: int, tokens: ScoredTokens, passes: Passes) -> Iterator[_Row]:
    for index, (masked, read, time) in enumerate(zip(passes.masked, passes.read, passes.times.tolist(), strict=True)):
        yield _Row(text, index, tokens, masked, read.nonzero()[:, 0], time)


def _inside(read: Tensor, ids: list[Tensor]) -> Tensor:
    """Places that lie within each row, also those that fill up rows which read less than others."""
    return torch.minimum(read, torch.tensor([len(one) - 1 for one in ids])[:, None])
