"""The loop with its groups, and what a partial pass keeps."""

from __future__ import annotations

from mutant_lists.mutant import Mutant

_LOOP = "hf_maskdiff/pipelines/denoising.py"
_COUNTS = "hf_maskdiff/pipelines/step_counts.py"
_GROUPS = "hf_maskdiff/pipelines/substeps.py"
_CALLS = "hf_maskdiff/pipelines/calls.py"
_CACHE = "hf_maskdiff/caching/key_values.py"
_DENOISER = "hf_maskdiff/denoisers/transformers_denoiser.py"
_PROBE = "hf_maskdiff/denoisers/transformers_probe.py"

MUTANTS = [
    # the loop and its groups
    Mutant(
        "larger-groups-last",
        "the last groups of a step are the larger ones",
        _GROUPS,
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
        _GROUPS,
        "drawn = self.scheduler.sample_tokens(values, own, groups == group)",
        "if not group:\n"
        "                last = min(self.partial_cache.num_substeps, own.positions.shape[1]) - 1\n"
        "                groups = torch.where(groups > last, groups, last - groups)\n"
        "            drawn = self.scheduler.sample_tokens(values, own, groups == group)",
        (
            "tests/pipelines/test_partial_caching.py"
            "::test_without_partial_passes_a_step_is_drawn_group_by_group_at_any_depth",
        ),
    ),
    Mutant(
        "full-passes-by-the-batch",
        "whether a row gets full passes depends on its batch's longest row",
        _GROUPS,
        "(count > self.partial_cache.full_pass_threshold * lengths)",
        "(count > self.partial_cache.full_pass_threshold * torch.as_tensor(lengths).max())",
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
        _COUNTS,
        "self.timesteps = scheduler.timesteps[self.first_step :]",
        "self.timesteps = scheduler.timesteps[: len(scheduler.timesteps) - self.first_step]",
        ("tests/pipelines/test_denoising.py::test_counts_follow_from_the_editable_region",),
    ),
    Mutant(
        "cache-written-where-nothing-is-valid",
        "a partial pass writes the cache also at ranks that a row does not reveal",
        _GROUPS,
        "values = self.denoiser(tokens, t, rows, torch.where(drawing, own.positions, ~own.positions))",
        "values = self.denoiser(tokens, t, rows, own.positions)",
        ("tests/pipelines/test_denoising.py::test_a_partial_pass_writes_what_its_step_reveals_and_nothing_else",),
    ),
    Mutant(
        "stale-rows-kept",
        "a row that has changed keeps its logits while another has not",
        _LOOP,
        "            elif rows:\n",
        "            elif not rows:\n",
        ("tests/pipelines/test_pipeline_mdlm.py::test_a_text_is_the_same_alone_and_beside_others[AncestralScheduler]",),
    ),
    # partial caches
    Mutant(
        "invalid-positions-written",
        "keys and values of positions that keep theirs are overwritten",
        _CACHE,
        "return rows, torch.where(positions < 0, length, positions)",
        "return rows, torch.where(positions < 0, ~positions, positions)",
        ("tests/models/test_partial_cache.py::test_a_position_that_is_not_valid_writes_nothing[mdlm]",),
    ),
    Mutant(
        "places-off-by-one",
        "a position that keeps its key and value is taken for its left neighbour",
        _CACHE,
        "return torch.where(positions < 0, ~positions, positions)",
        "return torch.where(positions < 0, -positions - 2, positions)",
        ("tests/models/test_partial_cache.py::test_a_position_that_is_not_valid_writes_nothing[mdlm]",),
    ),
    Mutant(
        "values-taken-from-the-keys",
        "the other positions' values are their keys",
        _CACHE,
        "return self.key.write(key, self.targets), self.value.write(value, self.targets)",
        "return self.key.write(key, self.targets), self.key.take(torch.arange(len(key))).write(value, self.targets)",
        ("tests/models/test_partial_cache.py::test_with_more_layers_the_others_are_stale_and_nothing_else[mdlm-1]",),
    ),
    Mutant(
        "rotary-by-rank",
        "a partial pass encodes the ranks of its queries, not their places",
        "hf_maskdiff/models/transformer_mdlm.py",
        "            places = places_of(positions)",
        "            places = torch.arange(input_ids.shape[1], device=input_ids.device)",
        ("tests/models/test_partial_cache.py::test_with_more_layers_the_others_are_stale_and_nothing_else[mdlm-1]",),
    ),
    Mutant(
        "attention-store-one-layer-off",
        "a partial pass starts with the second layer's keys and values",
        "hf_maskdiff/caching/transformers_stores.py",
        "self.positions, self._next = positions, 0",
        "self.positions, self._next = positions, -1 if positions is not None else 0",
        ("tests/models/test_transformers_denoiser.py::test_partial_passes",),
    ),
    Mutant(
        "logits-not-shifted",
        "a shifted model's row i predicts position i",
        _DENOISER,
        "logits_at = (places if logits_at is None else logits_at).sub(1).clamp(min=0)",
        "logits_at = places if logits_at is None else logits_at",
        ("tests/models/test_transformers_denoiser.py::test_shifted_logits_belong_to_the_row_before",),
    ),
    Mutant(
        "contexts-share-a-cache",
        "the passes with and without a prompt complete each other's keys and values",
        _CALLS,
        "        cache, held = self._of_contexts.get(context, (None, []))",
        '        context = ""\n        cache, held = self._of_contexts.get(context, (None, []))',
        (
            "tests/pipelines/test_masked_diffusion_text.py::test_with_one_layer_partial_passes_equal_full_ones[call2-llama]",
        ),
    ),
    Mutant(
        "full-pass-of-some-rows-kept-as-of-all",
        "a full pass apart from the stores replaces what they hold",
        _CALLS,
        'return {"cache": self._make()} if self.are_on else {}',
        'return {"cache": self._of_contexts["cond"][0]} if self.are_on else {}',
        ("tests/pipelines/test_partial_caching.py::test_a_full_pass_of_some_rows_leaves_what_is_kept_of_all",),
    ),
    Mutant(
        "causal-model-taken-for-its-noise",
        "the probe takes what rounding to 8 bits moves for the effect of a token",
        _PROBE,
        "return seen > max(_EXACT, _SEEN * found.noise) and is_hidden",
        "return seen > _EXACT and is_hidden",
        ("tests/pipelines/test_adapters.py::test_noise_does_not_make_a_causal_model_bidirectional",),
    ),
    Mutant(
        "context-names-ignored",
        "a model keeps one cache for all cache contexts",
        "hf_maskdiff/caching/contexts.py",
        "before, self._name = self._name, name",
        "before = self._name",
        ("tests/models/test_transformers_denoiser.py::test_contexts_do_not_mix_and_nothing_is_kept",),
    ),
    Mutant(
        "predecessors-not-run",
        "a partial pass of a shifted model leaves out the rows that predict its positions",
        "hf_maskdiff/denoisers/shifted_logits.py",
        "    wanted.scatter_add_(1, before, valid.long())\n",
        "",
        ("tests/models/test_transformers_denoiser.py::test_queries_with_predecessors",),
    ),
    Mutant(
        "plan-held-after-an-edit",
        "what a callback masks anew is not drawn, as the plan says that the row is done",
        _LOOP,
        "counts.depart(returned, given)",
        "pass",
        ("tests/pipelines/test_pipeline_maskgit.py::test_callback_edits_latents",),
    ),
]
