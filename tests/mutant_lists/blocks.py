"""Models that see blocks from left to right, and their exact cache."""

from __future__ import annotations

from mutant_lists.mutant import Mutant

_RULE = "hf_maskdiff/attention_rule.py"
_PLAN = "hf_maskdiff/caching/block_cache.py"
_WINDOWS = "hf_maskdiff/pipelines/text_windows.py"
_COUNTS = "hf_maskdiff/pipelines/step_counts.py"
_ATTENTION = "hf_maskdiff/published/attention.py"
_DECODING = "tests/pipelines/test_block_decoding.py"
_UNITS = "tests/pipelines/test_text_windows.py"
_MODELS = "tests/published/test_block_models.py"

MUTANTS = [
    Mutant(
        "blocks-of-all-rows-alike",
        "the blocks of every row begin with its first token",
        _RULE,
        "(places if offsets is None else places + offsets[:, None]) // self.block_size",
        "places // self.block_size",
        (f"{_MODELS}::test_rows_of_a_batch_are_what_they_are_alone[sdar]",),
    ),
    Mutant(
        "room-behind-the-end-is-seen",
        "what a store holds behind the end of a sequence is seen by its last block",
        _RULE,
        "elif length is not None and length < num_keys:",
        "elif length is not None and length < 0:",
        (f"{_DECODING}::test_a_finished_row_costs_nothing_more[bd3lm]",),
    ),
    Mutant(
        "a-block-is-stored-before-its-end",
        "keys and values of a finished block are those before its last tokens",
        _PLAN,
        "torch.minimum(state.resumed, state.block_starts)",
        "state.block_starts",
        (f"{_DECODING}::test_the_cache_changes_no_token[llada2-confidence-start]",),
    ),
    Mutant(
        "a-smaller-block-alone",
        "a pass computes the part of a block that is filled in, and not what its tokens change in the block",
        _PLAN,
        "ranges_of(state, state.block_starts, state.lengths)",
        "ranges_of(state, state.starts, state.ends)",
        (f"{_DECODING}::test_guidance_and_smaller_blocks[fast_dllm-call2]",),
    ),
    Mutant(
        "an-end-behind-a-mask",
        "a row ends with an end of text before which a mask may become one",
        _WINDOWS,
        "before = masked.long().cumsum(-1) == 0",
        "before = torch.ones_like(masked)",
        (f"{_UNITS}::test_an_end_behind_a_mask_ends_nothing_yet",),
    ),
    Mutant(
        "ended-rows-go-on",
        "a row that has ended in a block takes part in its other passes",
        _COUNTS,
        "self.planned.masked_fill(num_masked_of(self.scheduler, sample).cpu() == 0, 0)",
        "self.planned",
        (f"{_DECODING}::test_a_row_that_ends_inside_a_block_takes_part_in_no_other_pass_of_it[sdar]",),
    ),
    Mutant(
        "a-block-size-is-overruled",
        "what the caller says of the block size goes before what config.json states",
        _ATTENTION,
        "if size is not None and block_size not in (None, size):",
        "if size is not None and block_size not in (None, size) and block_size < 0:",
        (f"{_MODELS}::test_what_does_not_fit",),
    ),
    Mutant(
        "blocks-counted-from-the-window",
        "the blocks of a window begin with its first token, wherever in the sequence it stands",
        _WINDOWS,
        "return BlockGrid(self.block_size, (self.offset + start) % self.block_size)",
        "return BlockGrid(self.block_size, self.offset)",
        (f"{_UNITS}::test_the_blocks_of_a_window_are_those_of_the_sequence",),
    ),
]
