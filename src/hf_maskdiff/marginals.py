"""The distributions that a sampler may draw from, as a view of the model's logits."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from . import kernels
from .draws import chunked_inverse_cdf, draw_index, float64_device, is_sharp, only_tokens_, tempered_
from .token_filters import keep_top_k, keep_top_p, keep_typical


def on_cpu(device: torch.device) -> bool:
    """Whether it costs nothing to read a value on this device, and to select by it."""
    return device.type == "cpu"


@dataclass(frozen=True)
class Marginals:
    """The distributions p_i that a sampler may draw from, read from logits block by block: no (B, L, V) copy is made.

    A block holds rows of `log p_i` up to a constant, float32, with -inf for forbidden tokens. On a CPU, blocks are
    small enough for its cache; elsewhere they are large.

    Args:
        logits: `(batch_size, L, V)`, any float dtype, any strides.
        mask_token_id: never drawn; may lie outside the V columns.
        codebook_size: columns from this one on are never drawn; None allows all V.
        temperature: divides the logits.
        top_k: only the k most probable tokens, and those that tie with the k-th, may be drawn.
        top_p: only the most probable tokens may be drawn, up to and including the one with which their total
            probability reaches `top_p`. Applied after temperature and `top_k`, as in transformers.
        typical_p: only the tokens whose information is nearest to the entropy may be drawn, up to and including the one
            with which their total probability reaches `typical_p`. Applied last, as in transformers.
        typical_min_tokens: with `typical_p`, at least so many tokens may be drawn, those nearest to the entropy.
        places: where the logits belong, if they are not those of all positions: the index of each in the flattened
            `(batch_size, L)`, int64 like `logits` without its last dimension; -1 for those that belong nowhere. All
            methods below still speak of positions in `(batch_size, L)`.
        num_places: `batch_size * L`, with `places`.
    """

    logits: Tensor
    mask_token_id: int
    codebook_size: int | None = None
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    places: Tensor | None = None
    num_places: int = 0
    typical_p: float | None = None
    typical_min_tokens: int = 1

    @property
    def num_tokens(self) -> int:
        """Number of columns that are read: those of the codebook, without the mask's column if that is the last."""
        size = self.logits.shape[-1]
        size = size if self.codebook_size is None else min(size, self.codebook_size)
        return size - 1 if self.mask_token_id == size - 1 else size

    def reduce(self, function: Callable[..., tuple[Tensor, ...]], rows: Tensor, *per_row: Tensor) -> list[Tensor]:
        """Call `function(block, *columns)` for every block, and concatenate each of its results over the blocks.

        Args:
            rows: indices into the flattened `(batch_size, L)`, int64 `(M,)`.
            per_row: tensors `(M, ...)` with an entry for each of `rows`; `columns` are their entries for one block.
        """
        rows, size = self._sources_of(rows), self._rows_at_a_time
        if rows.shape[0] <= size:  # one block: nothing to split or concatenate
            return list(function(self._block(rows), *per_row))
        parts = zip(*(values.split(size) for values in (rows, *per_row)), strict=True)
        results = [function(self._block(part), *columns) for part, *columns in parts]
        return [torch.cat(blocks) for blocks in zip(*results, strict=True)]

    @property
    def _rows_at_a_time(self) -> int:
        """Blocks fit into the cache of a CPU; elsewhere they are large, 128 MiB, so that there are few."""
        elements = 2**18 if on_cpu(self.logits.device) else 2**25
        return max(1, elements // self.num_tokens)

    @cached_property
    def _flat(self) -> Tensor | None:
        """The columns that are read, `(batch_size * L, num_tokens)`, as a view; None if that would need a copy."""
        logits, length = self.logits, self.logits.shape[1]
        if logits.shape[0] > 1 and logits.stride(0) != length * logits.stride(1):
            return None
        return logits.flatten(0, 1)[:, : self.num_tokens]

    @cached_property
    def _fused(self) -> bool:
        """Whether `hf_maskdiff.kernels` can read these logits: contiguous rows, of which nothing is filtered out."""
        return not self._filters and self.logits.stride(-1) == 1 and kernels.usable(self.logits.device)

    def _kernel_rows(self, rows: Tensor | None = None, wanted: Tensor | None = None) -> kernels.Rows:
        """What the kernels read: some flat positions, or all that have logits, of which some may be wanted."""
        if self.places is not None:
            if rows is None:
                wanted = self.places >= 0
            else:
                rows = self._sources[rows]
        return kernels.Rows(self.logits, self.num_tokens, self.mask_token_id, self.temperature, rows, wanted)

    @property
    def _views(self) -> tuple[Tensor, ...] | None:
        """On an accelerator, blocks of all rows that have logits, which must not be overwritten, if these are the
        marginals without a change; else None. So what only reads them needs no copy."""
        changed = self.temperature != 1.0 or 0 <= self.mask_token_id < self.num_tokens or self._filters
        if on_cpu(self.logits.device) or changed or self._flat is None or not len(self._flat):
            return None
        return self._flat.split(self._rows_at_a_time)

    @property
    def _filters(self) -> bool:
        return self.top_k is not None or self.top_p is not None or self.typical_p is not None

    def _at_places(self, values: Tensor) -> Tensor:
        """The entries of a tensor `(batch_size, L)` that belong to the logits, `(num_rows, n)`."""
        return values if self.places is None else values.flatten()[self.places.clamp(min=0)]

    @cached_property
    def _targets(self) -> Tensor:
        """The flat `places`, where those that belong nowhere are put one past the end."""
        assert self.places is not None
        flat = self.places.flatten()
        return torch.where(flat < 0, self.num_places, flat)

    @cached_property
    def _sources(self) -> Tensor:
        """The row of the flattened logits that belongs to each flat position; if there is none, -1 on a CPU, where
        this is checked, and 0 elsewhere."""
        assert self.places is not None
        places, num_places = self.places.flatten(), self.num_places
        sources = places.new_full((num_places + 1,), -1 if on_cpu(places.device) else 0)
        sources[places] = torch.arange(len(places), device=places.device)  # -1 is the one past the end
        return sources

    def _sources_of(self, rows: Tensor) -> Tensor:
        """Where the logits of flat positions are, as rows of the flattened logits; all of them must have some."""
        if self.places is None:
            return rows
        sources = self._sources[rows]
        if on_cpu(rows.device) and sources.numel() and int(sources.min()) < 0:
            raise ValueError(
                "`logits_at` must name every masked position, got some without logits. Pass the places of all "
                "positions that are masked in `sample`."
            )
        return sources

    def rows_at(self, rows: Tensor) -> Tensor:
        """The logits of these flat positions, `(..., V)`, as they are given."""
        if self.places is not None:
            rows = self._sources[rows]
        length = self.logits.shape[1]
        return self.logits[rows // length, rows % length]  # whatever the strides, nothing else is copied

    def _block(self, rows: Tensor) -> Tensor:
        """A copy of these rows of the flattened logits, as they may be drawn from."""
        if self._flat is not None:
            return self._filtered(self._flat.index_select(0, rows).float())
        length = self.logits.shape[1]
        return self._filtered(self.logits[rows // length, rows % length, : self.num_tokens].float())

    def _filtered(self, block: Tensor) -> Tensor:
        """Apply temperature, top-k, top-p and typical-p to a block, in place."""
        if 0 <= self.mask_token_id < self.num_tokens:
            block[:, self.mask_token_id] = -math.inf
        if self.temperature != 1.0:
            block /= self.temperature
        if self.top_k is not None:
            keep_top_k(block, self.top_k)
        if self.top_p is not None:
            keep_top_p(block, self.top_p)
        if self.typical_p is not None:
            keep_typical(block, self.typical_p, self.typical_min_tokens)
        return block

    def score(self, function: Callable[[Tensor], Tensor], wanted: Tensor) -> Tensor:
        """Reduce the logits of every wanted position to one number: `function(block)` gives `(rows,)`.

        Args:
            wanted: bool `(batch_size, L)`. All other positions get 0, but on an accelerator without a kernel for the
                function. There their scores are computed too, as selecting positions would make the host wait.

        Returns:
            float32 `(batch_size, L)`.
        """
        if self._fused and (found := kernels.row_scores(self._kernel_rows(wanted=wanted), function)) is not None:
            return self._placed(found, wanted)
        views, twin = self._views, kernels.twin_of(function)
        if views is not None and twin is not None:
            return self._placed(_joined([twin(view) for view in views]), wanted)
        (scores,) = self.reduce(lambda block: (function(block),), self._rows_of(wanted))
        return self._placed(scores, wanted)

    def log_prob_of(self, tokens: Tensor, wanted: Tensor) -> Tensor:
        """`log p_i(x_i)` of the tokens x that stand at the wanted positions.

        Args:
            tokens: int64 `(batch_size, L)`.
            wanted: bool `(batch_size, L)`.

        Returns:
            float32 `(batch_size, L)`: -inf for a token that may not be drawn, at all other positions as `score`.
        """
        if self._fused:
            found = kernels.row_log_probs(self._kernel_rows(wanted=wanted), self._at_places(tokens))
            return self._placed(found, wanted)
        if (views := self._views) is not None:
            inside = self._at_places(tokens).flatten()
            column = inside.clamp(max=self.num_tokens - 1)[:, None].split(self._rows_at_a_time)
            parts = zip(views, column, strict=True)
            found = _joined([kernels.log_softmax_of(view).gather(1, at)[:, 0] for view, at in parts])
            return self._placed(found.masked_fill_(inside >= self.num_tokens, -math.inf), wanted)
        rows = self._rows_of(wanted)
        return self._placed(self.log_prob_at(rows, tokens.flatten()[rows]), wanted)

    def log_prob_of_and_largest(self, tokens: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """As `log_prob_of`, and `log max p_i`, in one reading of the logits; both float32 `(batch_size, L)`."""

        def both(block: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
            log_probs = torch.log_softmax(block, -1, out=block)
            found = log_probs.gather(1, tokens.clamp(max=self.num_tokens - 1)[:, None])[:, 0]
            return found.masked_fill_(tokens >= self.num_tokens, -math.inf), log_probs.amax(-1)

        rows = self._rows_of(wanted)
        found, largest = self.reduce(both, rows, tokens.flatten()[rows])
        return self._placed(found, wanted), self._placed(largest, wanted)

    def log_prob_at(self, rows: Tensor, tokens: Tensor) -> Tensor:
        """`log p(x)` of one token per row, float32 `(M,)`; rows as of `draw`, tokens int64 `(M,)`."""

        if self._fused:
            return kernels.row_log_probs(self._kernel_rows(rows), tokens)

        def log_prob(block: Tensor, tokens: Tensor) -> tuple[Tensor]:
            token = tokens.clamp(max=self.num_tokens - 1)[:, None]
            found = block.gather(1, token)[:, 0] - block.logsumexp(-1)
            return (found.masked_fill_(tokens >= self.num_tokens, -math.inf),)

        return self.reduce(log_prob, rows, tokens)[0]

    def draw(self, rows: Tensor, uniform: Tensor | Callable[[], Tensor], beta: Tensor) -> Tensor:
        """Draw one token per row from the normalised p_i^beta, by inverting its cumulative distribution.

        Args:
            rows: indices into the flattened `(batch_size, L)`, int64 `(M,)`.
            uniform: noise, float64 `(M,)` in (0, 1), or what makes it if it is needed: not where each row has but one
                token that can be drawn.
            beta: inverse temperature, `(M,)`.

        Returns:
            Tokens, int64 `(M,)`; `num_tokens` if no token can be drawn (NaN or +inf logits, or no token allowed).
        """
        if not self._fused:
            beta = beta.to(self.logits.device, torch.float32)[:, None]
            if is_sharp(beta):
                (tokens,) = self.reduce(lambda block, beta: (only_tokens_(block, beta),), rows, beta)
                if int(tokens.min()) >= 0:
                    return tokens
        if not isinstance(uniform, Tensor):
            uniform = uniform()
        if self._fused:
            return kernels.row_draws(self._kernel_rows(rows), uniform, beta[None])[0]
        device = float64_device(self.logits.device)

        def draw_block(block: Tensor, uniform: Tensor, beta: Tensor) -> tuple[Tensor]:
            return (draw_index(tempered_(block, beta).to(device), uniform),)

        return self.reduce(draw_block, rows, uniform, beta)[0]

    def draw_or_keep(self, rows: Tensor, uniform: Tensor, beta: Tensor, wanted: Tensor, tokens: Tensor) -> Tensor:
        """`draw` at the ranks that are wanted; at all others, and where no token can be drawn, `tokens` stay.

        For accelerators: nothing is selected, which would make the host wait. All arguments are `(batch_size, K)`.

        Args:
            rows, uniform, beta: of each rank, as of `draw`.
            wanted: bool.
            tokens: int64.
        """
        if self._fused:
            return kernels.row_draws(self._kernel_rows(rows, wanted), uniform, beta, tokens)[0]
        drawn = self.draw(rows.flatten(), uniform.flatten(), beta.flatten()).view_as(rows).to(tokens.device)
        return torch.where(wanted & (drawn < self.num_tokens), drawn, tokens)

    def draw_all(self, wanted: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """Draw a token from p_i at every wanted position.

        Args:
            wanted: bool `(batch_size, L)`.
            uniform: noise, float64 `(batch_size, L)` in (0, 1).

        Returns:
            Tokens, int64, with `num_tokens` if no token can be drawn, and their log-probabilities, float64; both
            `(batch_size, L)`. Values at all other positions are meaningless.
        """
        if self._fused:
            read = self._kernel_rows(wanted=wanted)
            drawn, log_probs = kernels.row_draws(read, self._at_places(uniform), with_log_probs=True)
            assert log_probs is not None
            return self._placed(drawn, wanted), self._placed(log_probs, wanted)
        device = float64_device(self.logits.device)

        def draw_from(probs: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
            tokens = chunked_inverse_cdf(probs, uniform)
            return tokens, probs.gather(1, tokens.clamp(max=self.num_tokens - 1)[:, None])[:, 0].double().log_()

        def draw_block(block: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
            return draw_from(torch.softmax(block, -1, out=block).to(device), uniform)

        if (views := self._views) is not None:
            noise = self._at_places(uniform).flatten().split(self._rows_at_a_time)
            found = [draw_from(kernels.softmax_of(view).to(device), u) for view, u in zip(views, noise, strict=True)]
            tokens, log_probs = (_joined(parts) for parts in zip(*found, strict=True))
            return self._placed(tokens, wanted), self._placed(log_probs, wanted)
        rows = self._rows_of(wanted)
        tokens, log_probs = self.reduce(draw_block, rows, uniform.flatten()[rows])
        return self._placed(tokens, wanted), self._placed(log_probs, wanted)

    def most_probable(self, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """The most probable token of every wanted position, and its log-probability; shaped and typed as `draw_all`."""

        device = float64_device(self.logits.device)

        def take(block: Tensor) -> tuple[Tensor, Tensor]:
            log_probs, tokens = torch.log_softmax(block, -1, out=block).max(-1)
            tokens.masked_fill_(~log_probs.isfinite(), self.num_tokens)
            return tokens.to(device), log_probs.to(device).double()

        tokens, log_probs = self.reduce(take, self._rows_of(wanted))
        return self._placed(tokens, wanted), self._placed(log_probs, wanted)

    def draw_all_tempered(self, wanted: Tensor, uniform: Tensor, beta: float) -> tuple[Tensor, Tensor]:
        """Draw a token from the normalised p_i^beta at every wanted position.

        Args:
            wanted: bool `(batch_size, L)`.
            uniform: noise, float64 `(batch_size, L)` in (0, 1).
            beta: inverse temperature.

        Returns:
            Tokens, int64, with `num_tokens` if no token can be drawn, and their logits, divided by the temperature,
            float32; both `(batch_size, L)`. Values at all other positions are meaningless.
        """
        device = float64_device(self.logits.device)

        def draw_block(block: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
            probs = tempered_(block.clone(), block.new_tensor(beta))
            tokens = draw_index(probs.to(device), uniform)
            return tokens, block.gather(1, tokens.to(block.device).clamp(max=self.num_tokens - 1)[:, None])[:, 0]

        rows = self._rows_of(wanted)
        tokens, logits = self.reduce(draw_block, rows, uniform.flatten()[rows])
        return self._placed(tokens, wanted), self._placed(logits, wanted)

    def _rows_of(self, wanted: Tensor) -> Tensor:
        """Flat indices of the wanted positions. On an accelerator, where selecting them would make the host wait, of
        all positions that have logits."""
        if on_cpu(wanted.device):
            return wanted.flatten().nonzero().squeeze(1)
        if self.places is None:
            return torch.arange(wanted.numel(), device=wanted.device)
        return self.places.flatten().clamp(min=0)

    def _placed(self, values: Tensor, wanted: Tensor) -> Tensor:
        """The values of `_rows_of`, or of all positions that have logits, put back into `(batch_size, L)`."""
        if on_cpu(wanted.device) and not self._fused:
            return values.new_zeros(wanted.shape).masked_scatter_(wanted, values)
        if self.places is None:
            return values.view(wanted.shape)
        return (
            values.new_zeros(self.num_places + 1).scatter_(0, self._targets, values.flatten())[:-1].view(wanted.shape)
        )


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(tuple(parts))
