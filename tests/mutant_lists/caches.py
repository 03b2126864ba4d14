"""Plans of passes, and the stores that follow the rows."""

from __future__ import annotations

from mutant_lists.mutant import Mutant

_PLANS = "hf_maskdiff/caching/plans.py"
_CALLS = "hf_maskdiff/pipelines/calls.py"
_LOOP = "hf_maskdiff/pipelines/denoising.py"
_PLANNED = "hf_maskdiff/pipelines/planned_passes.py"
_STORES = "hf_maskdiff/caching/transformers_stores.py"
_TEXT = "hf_maskdiff/pipelines/text_denoising.py"
_SAMPLING = "hf_maskdiff/sampling.py"
_DIRECT = "hf_maskdiff/denoisers/direct_pass.py"
_DIRECT_TESTS = "tests/models/test_direct_pass.py"
_BY_HAND = "tests/caching/test_plans.py"
_REFERENCE = "tests/pipelines/test_cached_steps.py::test_it_computes_what_it_says_and_keeps_all_else"
_ROWS = "tests/pipelines/test_cached_steps.py::test_a_row_does_not_depend_on_its_batch"

MUTANTS = [
    Mutant(
        "refreshed-one-step-late",
        "all positions are computed afresh in the step after the one that is due",
        _PLANS,
        "state.step % self.refresh_every == 0",
        "state.step % self.refresh_every == 1",
        ("tests/caching/test_plans.py::test_when_all_are_computed_afresh",),
    ),
    Mutant(
        "delayed-without-its-second-step",
        "what the first step has drawn is stored as the mask that it was",
        _PLANS,
        "        if state.step == 1:\n            return None\n",
        "",
        (f"{_REFERENCE}[1.0-DelayedCacheConfig-3]",),
    ),
    Mutant(
        "prefix-stops-at-the-block",
        "the prefix cache computes the block alone",
        _PLANS,
        "return ranges_of(state, state.starts, state.lengths)",
        "return ranges_of(state, state.starts, state.ends)",
        (f"{_REFERENCE}[1.0-PrefixCacheConfig-None]",),
    ),
    Mutant(
        "block-starts-one-late",
        "the dual cache leaves out the first position of the block",
        _PLANS,
        "return ranges_of(state, state.starts, state.ends)",
        "return ranges_of(state, state.starts + 1, state.ends)",
        (f"{_BY_HAND}::test_dual_computes_the_block",),
    ),
    Mutant(
        "block-ends-one-early",
        "the dual cache leaves out the last position of the block",
        _PLANS,
        "return ranges_of(state, state.starts, state.ends)",
        "return ranges_of(state, state.starts, state.ends - 1)",
        (f"{_BY_HAND}::test_dual_computes_the_block",),
    ),
    Mutant(
        "block-of-the-shortest-row",
        "a pass has room for the shortest block of the batch alone",
        _PLANS,
        "torch.arange(int((ends - starts).max()), device=device)",
        "torch.arange(int((ends - starts).min()), device=device)",
        (f"{_BY_HAND}::test_dual_computes_the_block",),
    ),
    Mutant(
        "behind-a-block-stored",
        "what fills up a row with a shorter block is stored too",
        _PLANS,
        "Queries(torch.where(valid, positions, ~positions), num_runs=1)",
        "Queries(positions, num_runs=1)",
        (f"{_BY_HAND}::test_prefix_computes_the_block_and_all_behind_it",),
    ),
    Mutant(
        "known-tokens-stored",
        "what fills up a row with fewer masks is stored too",
        _PLANS,
        "torch.where(wanted.gather(1, positions), positions, ~positions), num_runs=count",
        "positions, num_runs=count",
        (f"{_BY_HAND}::test_delayed_computes_what_was_masked_before_the_last_pass",),
    ),
    Mutant(
        "masks-behind-the-block-left-out",
        "the delayed cache has room for as many positions as the block has masks",
        _TEXT,
        "num_masked = at_rows(self._num_outside + now.remaining, of_rows)",
        "num_masked = at_rows(now.remaining, of_rows)",
        (f"{_REFERENCE}[1.0-DelayedCacheConfig-3]",),
    ),
    Mutant(
        "delay-forgotten",
        "a token that was just drawn keeps the keys of its mask until all are computed afresh",
        _PLANNED,
        "        latest = (at_rows(self._masked, rows), at_rows(self._num_masked, of_rows))",
        "        latest = (masked, num_masked)",
        (f"{_REFERENCE}[1.0-DelayedCacheConfig-3]",),
    ),
    Mutant(
        "rows-stay-in-the-store",
        "the store's rows are those of its first pass, whichever rows take part",
        _CALLS,
        "cache = cache.take(_places_in(held, unfinished))",
        "cache = cache.take(torch.arange(len(unfinished)))",
        (f"{_ROWS}[llama-threshold-DualCacheConfig-None]",),
    ),
    Mutant(
        "pass-of-some-rows-completes-the-first",
        "a pass of some rows completes the keys and values of the store's first ones",
        _CALLS,
        "part = self._make() if positions is None else cache.take(index)",
        "part = self._make() if positions is None else cache.take(torch.arange(len(rows)))",
        (f"{_ROWS}[modernbert-ancestral-DelayedCacheConfig-3]",),
    ),
    Mutant(
        "pass-of-some-rows-stored-in-the-first",
        "what a pass of some rows computes is stored in the store's first ones",
        _CALLS,
        "cache.put(index, part)",
        "cache.put(torch.arange(len(rows)), part)",
        (f"{_ROWS}[modernbert-ancestral-DelayedCacheConfig-3]",),
    ),
    Mutant(
        "pass-of-some-rows-not-stored",
        "what a pass of some rows computes is lost for the next one",
        _CALLS,
        "        cache.put(index, part)\n",
        "",
        (f"{_ROWS}[modernbert-ancestral-DelayedCacheConfig-3]",),
    ),
    Mutant(
        "values-of-other-rows",
        "rows are taken out of a store with the values of the first ones",
        _STORES,
        "taken._hold(*(kept.take(rows) for kept in self._kept))",
        "taken._hold(self._kept[0].take(rows), self._kept[1].take(rows - rows[0]))",
        (f"{_ROWS}[llama-threshold-DualCacheConfig-None]",),
    ),
    Mutant(
        "mask-of-other-rows",
        "rows are taken out of a store with the attention masks of the first ones",
        _STORES,
        "mask = masks.setdefault(id(mask), mask[rows])",
        "mask = masks.setdefault(id(mask), mask[: len(rows)])",
        (f"{_ROWS}[modernbert-moment-DualCacheConfig-None]",),
    ),
    Mutant(
        "logits-of-the-wrong-queries",
        "a cached pass gives the logits of its first queries",
        _TEXT,
        "columns.gather(1, at)",
        "torch.arange(at.shape[1], device=at.device).expand_as(at)",
        (f"{_REFERENCE}[1.0-PrefixCacheConfig-None]",),
    ),
    Mutant(
        "edits-not-seen",
        "what a callback changes does not begin the plan anew",
        _LOOP,
        "logits, began = None, i + 1",
        "logits = None",
        ("tests/pipelines/test_cached_steps.py::test_what_a_callback_changes_is_seen",),
    ),
    Mutant(
        "places-of-logits-mixed-up",
        "logits of some positions are taken for those of the positions after them",
        "hf_maskdiff/marginals.py",
        "sources[places] = torch.arange(len(places), device=places.device)",
        "sources[places] = torch.arange(len(places), device=places.device).roll(1)",
        ("tests/schedulers/test_logits_at.py::test_it_is_the_step_with_all_logits",),
    ),
    Mutant(
        "greedy-far-masks",
        "the masks computed around a position are those furthest to the right",
        _PLANS,
        "rank = (2 * offsets.abs() + (offsets > 0))",
        "rank = (2 * among.shape[1] - 1 - offsets)",
        (f"{_BY_HAND}::test_greedy_computes_what_is_drawn_before_and_now_and_the_nearest_masks",),
    ),
    Mutant(
        "greedy-forgets-what-was-drawn",
        "tokens drawn in the last step are not computed",
        _PLANS,
        "drawn = state.masked & ~state.masked_now",
        "drawn = torch.zeros_like(state.masked)",
        (f"{_BY_HAND}::test_greedy_computes_what_is_drawn_before_and_now_and_the_nearest_masks",),
    ),
    Mutant(
        "greedy-stores-what-no-step-draws",
        "ranks that are not valid count as chosen",
        _TEXT,
        "torch.where(wanted, at, ~at)",
        "at",
        ("tests/pipelines/test_greedy_cache.py::test_a_row_does_not_depend_on_its_batch",),
    ),
    Mutant(
        "range-written-one-late",
        "a block is written one position behind its place",
        "hf_maskdiff/caching/key_values.py",
        "return slice(None), slice(*span)",
        "return slice(None), slice(span[0] + 1, span[1] + 1)",
        (f"{_DIRECT_TESTS}::test_a_range_is_written_as_positions_are",),
    ),
    Mutant(
        "last-layer-at-other-positions",
        "the wanted queries of the last layer are turned as the first positions are",
        _DIRECT,
        "cos, sin = (_of_rows(table[:, 0], wanted)[:, None] for table in (cos, sin))",
        "cos, sin = (table[:, :, : wanted.shape[1]] for table in (cos, sin))",
        (f"{_DIRECT_TESTS}::test_only_wanted_rows_are_computed_to_the_end[6-llama]",),
    ),
    Mutant(
        "last-layer-sees-as-the-first-rows",
        "the wanted queries of the last layer see the blocks of the first queries",
        _DIRECT,
        "_of_rows(seen[:, 0], wanted)[:, None]",
        "seen[:, :, : wanted.shape[1]]",
        (f"{_DIRECT_TESTS}::test_only_wanted_rows_are_computed_to_the_end[6-llama]",),
    ),
    Mutant(
        "hooks-on-attention-skipped",
        "a hook on a layer's attention does not keep a model from direct passes",
        _DIRECT,
        "        yield layer.self_attn, attention_class\n",
        "",
        (f"{_DIRECT_TESTS}::test_none_where_a_forward_must_not_be_skipped[hook_before]",),
    ),
]
