"""The loop with its groups, and what a partial pass keeps."""

from __future__ import annotations

from mutant_lists.mutant import Mutant

_LOOP = "hf_maskdiff/pipelines/denoising.py"
_CACHE = "hf_maskdiff/models/partial_cache.py"

MUTANTS = [
    # the loop and its groups
    Mutant(
        "larger-groups-last",
        "the last groups of a step are the larger ones",
        _LOOP,
        "    in_larger = num_larger * (size + 1)\n"
        "    group = torch.where(ranks < in_larger, ranks // (size + 1), "
        "num_larger + (ranks - in_larger) // size.clamp(min=1))",
        "    smaller = num_groups - num_larger\n"
        "    later = smaller + (ranks - smaller * size) // (size + 1)\n"
        "    group = torch.where(ranks < smaller * size, ranks // size.clamp(min=1), later)",
        ("tests/pipelines/test_partial_caching.py::test_groups",),
    ),
    Mutant(
        "groups-swapped",
        "the groups of a step are drawn from the last to the first",
        _LOOP,
        "drawn = scheduler.sample_tokens(logits, choice, groups == group)",
        "if not group:\n"
        "            last = min(partial_cache.num_substeps, num_ranks) - 1\n"
        "            groups = torch.where(groups > last, groups, last - groups)\n"
        "        drawn = scheduler.sample_tokens(logits, choice, groups == group)",
        (
            "tests/pipelines/test_partial_caching.py"
            "::test_without_partial_passes_a_step_is_drawn_group_by_group_at_any_depth",
        ),
    ),
    Mutant(
        "full-passes-by-the-batch",
        "whether a row gets full passes depends on its batch's longest row",
        _LOOP,
        "in_full = counts > partial_cache.full_pass_threshold * lengths",
        "in_full = counts > partial_cache.full_pass_threshold * lengths.max()",
        (
            "tests/pipelines/test_masked_diffusion_text.py::test_a_row_does_not_depend_on_its_batch[llama-3-MomentScheduler]",
        ),
    ),
    Mutant(
        "finished-rows-draw-on",
        "the generator of a row moves on while others take longer",
        _LOOP,
        "own if count else torch.Generator(own.device)",
        "own",
        ("tests/pipelines/test_denoising.py::test_a_row_s_generator_moves_on_while_the_row_does[MomentScheduler]",),
    ),
    Mutant(
        "edits-start-at-the-first-step",
        "an edit runs the first steps instead of the last",
        _LOOP,
        "timesteps = scheduler.timesteps[first_step:]",
        "timesteps = scheduler.timesteps[: len(scheduler.timesteps) - first_step]",
        ("tests/pipelines/test_denoising.py::test_counts_follow_from_the_editable_region",),
    ),
    Mutant(
        "cache-written-where-nothing-is-valid",
        "a partial pass writes the cache also at ranks that a row does not reveal",
        _LOOP,
        "positions = torch.where(partial, choice.positions, ~choice.positions)",
        "positions = choice.positions",
        ("tests/pipelines/test_denoising.py::test_a_partial_pass_writes_what_its_step_reveals_and_nothing_else",),
    ),
    Mutant(
        "stale-rows-kept",
        "a row that has changed keeps its logits while another has not",
        _LOOP,
        "elif bool(changed.any()):",
        "elif bool(changed.all()):",
        ("tests/pipelines/test_pipeline_mdlm.py::test_a_text_is_the_same_alone_and_beside_others[AncestralScheduler]",),
    ),
    # partial caches
    Mutant(
        "invalid-positions-written",
        "keys and values of positions that keep theirs are overwritten",
        _CACHE,
        "kept_rows[rows, places] = torch.where(is_new, new_rows, kept_rows[rows, places])",
        "kept_rows[rows, places] = new_rows",
        ("tests/models/test_partial_cache.py::test_a_position_that_is_not_valid_writes_nothing[mdlm]",),
    ),
    Mutant(
        "places-off-by-one",
        "a position that keeps its key and value is taken for its right neighbour",
        _CACHE,
        "return torch.where(positions < 0, ~positions, positions)",
        "return torch.where(positions < 0, -positions, positions)",
        ("tests/models/test_partial_cache.py::test_a_position_that_is_not_valid_writes_nothing[mdlm]",),
    ),
    Mutant(
        "values-taken-from-the-keys",
        "the other positions' values are their keys",
        _CACHE,
        "for kept, new in ((state.key, key), (state.value, value)))",
        "for kept, new in ((state.key, key), (state.key.clone(), value)))",
        ("tests/models/test_partial_cache.py::test_with_more_layers_the_others_are_stale_and_nothing_else[mdlm-1]",),
    ),
    Mutant(
        "rotary-by-rank",
        "a partial pass encodes the ranks of its queries, not their places",
        "hf_maskdiff/models/transformer_mdlm.py",
        "if positions is None else places_of(positions)",
        "if True else places_of(positions)",
        ("tests/models/test_partial_cache.py::test_with_more_layers_the_others_are_stale_and_nothing_else[mdlm-1]",),
    ),
    Mutant(
        "attention-store-one-layer-off",
        "a partial pass starts with the second layer's keys and values",
        "hf_maskdiff/models/transformers_cache.py",
        "self.positions, self._next = positions, 0",
        "self.positions, self._next = positions, -1 if positions is not None else 0",
        ("tests/models/test_transformers_denoiser.py::test_partial_passes",),
    ),
    Mutant(
        "logits-not-shifted",
        "a shifted model's row i predicts position i",
        "hf_maskdiff/models/transformers_denoiser.py",
        "logits_at = (places if logits_at is None else logits_at).sub(1).clamp(min=0)",
        "logits_at = places if logits_at is None else logits_at",
        ("tests/models/test_transformers_denoiser.py::test_shifted_logits_belong_to_the_row_before",),
    ),
]
