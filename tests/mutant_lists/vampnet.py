"""Bugs in VampNet's model, converter and sampler."""

from __future__ import annotations

from mutant_lists.mutant import Mutant

_MODEL = "hf_maskdiff/models/transformer_vampnet.py"
_CONVERSION = "hf_maskdiff/conversion/vampnet.py"
_TESTS = "tests/models/test_transformer_vampnet.py"
_PARITY = ("tests/conversion/test_vampnet.py::test_the_committed_model",)

MUTANTS = [
    Mutant(
        "vampnet-lora-unscaled",
        "what LoRA has trained is added without being divided by its rank",
        _CONVERSION,
        "alpha=1 / len(low)",
        "alpha=1.0",
        _PARITY,
    ),
    Mutant(
        "vampnet-logits-by-code",
        "a frame's logits stay in the original's order",
        _CONVERSION,
        "unflatten(0, (codebook_size, num_codebooks)).transpose(0, 1).flatten(0, 1)",
        "unflatten(0, (codebook_size, num_codebooks)).flatten(0, 1)",
        _PARITY,
    ),
    Mutant(
        "vampnet-past-for-future",
        "keys before the query have the buckets of those behind it",
        "hf_maskdiff/models/vampnet_layers.py",
        "half * (distance > 0)",
        "half * (distance < 0)",
        (f"{_TESTS}::test_distances_are_those_of_t5",),
    ),
    Mutant(
        "vampnet-frames-of-one-pass",
        "codes that are not kept are seen by all of the pass",
        _MODEL,
        "store.with_codes(sample, positions).gather",
        "store.with_codes(sample, places_of(positions)).gather",
        (f"{_TESTS}::test_codes_that_are_not_kept_are_seen_by_nobody_else",),
    ),
    Mutant(
        "vampnet-conditioning-of-the-first-frames",
        "a partial pass is given the codes of the first frames rather than of its own",
        _MODEL,
        "take_along_dim(places[..., None], 1)",
        "take_along_dim((places * 0)[..., None], 1)",
        (f"{_TESTS}::test_only_the_frames_of_the_codes_are_fresh",),
    ),
    Mutant(
        "cutoff-a-step-early",
        "the step at the cutoff takes the most probable tokens",
        "hf_maskdiff/schedulers/scheduling_maskgit.py",
        "<= self.config.sample_cutoff",
        "< self.config.sample_cutoff",
        ("tests/test_vampnet_traces.py::test_late_steps_take_the_most_probable_tokens",),
    ),
    Mutant(
        "typical-one-too-many",
        "one token more is kept than has to be",
        "hf_maskdiff/token_filters.py",
        "clamp(min=min_tokens - 1)",
        "clamp(min=min_tokens)",
        ("tests/test_sampling.py::test_so_many_typical_tokens_at_least",),
    ),
    Mutant(
        "lac-codebooks-of-the-whole",
        "each codebook has the code nearest to the frame itself",
        "hf_maskdiff/models/codec_lac.py",
        "states = states - codebook(codes[-1])",
        "states = states - 0 * codebook(codes[-1])",
        ("tests/models/test_codec_lac.py::test_the_original_s_codes_and_waveforms",),
    ),
    Mutant(
        "lac-sum-of-branches",
        "the decoder's branches are added up, not averaged",
        "hf_maskdiff/models/codec_lac.py",
        "return total / len(self)",
        "return total",
        ("tests/models/test_codec_lac.py::test_the_original_s_codes_and_waveforms",),
    ),
]
