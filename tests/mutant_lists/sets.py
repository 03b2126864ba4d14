"""Sets of samples."""

from __future__ import annotations

from mutant_lists.mutant import Mutant

_BATCHES = "hf_maskdiff/sets/batches.py"
_SET = "hf_maskdiff/sets/sample_set.py"
_MAKING = "hf_maskdiff/sets/generate.py"
_SOURCES = "hf_maskdiff/sets/sources.py"

MUTANTS = [
    Mutant(
        "resume-skips-a-sample",
        "the block after what is there counts as made",
        _BATCHES,
        "for block in range(start // block_size, -(-stop // block_size))}",
        "for block in range(start // block_size, stop // block_size + 1)}",
        ("tests/test_parallel.py::test_every_sample_that_is_missing_is_planned_once",),
    ),
    Mutant(
        "resume-writes-a-sample-twice",
        "ranges that overlap are joined whole",
        _BATCHES,
        "found.append(((begin, end), at - begin))",
        "found.append(((begin, end), 0))",
        ("tests/test_parallel.py::test_ranges_that_overlap_cover_each_sample_once",),
    ),
    Mutant(
        "seeds-come-again",
        "the seeds of a set repeat after 64 samples",
        _BATCHES,
        'f"{base_seed}:{index}".encode()',
        'f"{base_seed}:{index % 64}".encode()',
        ("tests/test_parallel.py::test_a_seed_is_a_function_of_base_seed_and_index",),
    ),
    Mutant(
        "seeds-of-sets-overlap",
        "the next base seed's set is this one's, moved by one",
        _BATCHES,
        'f"{base_seed}:{index}".encode()',
        'f"{base_seed + index}".encode()',
        ("tests/test_parallel.py::test_a_seed_is_a_function_of_base_seed_and_index",),
    ),
    Mutant(
        "seeds-come-again-in-later-blocks",
        "a sample is drawn with another seed than the file says: one of four blocks before",
        _MAKING,
        "made = source.sample(block, [seed_of(base_seed, i) for i in block])",
        "made = source.sample(block, [seed_of(base_seed, i % (4 * block_size)) for i in block])",
        ("tests/test_parallel.py::test_no_two_samples_of_many_blocks_are_drawn_with_one_seed",),
    ),
    Mutant(
        "shard-named-by-its-last-sample",
        "a shard's name ends with its last sample instead of the one after",
        _SET,
        'return self.folder / f"train-{start:09d}-{stop:09d}.parquet"',
        'return self.folder / f"train-{start:09d}-{stop - 1:09d}.parquet"',
        ("tests/test_parallel.py::test_a_shard_is_named_by_its_first_sample_and_the_one_after_its_last",),
    ),
    Mutant(
        "cost-of-what-is-not-kept",
        "passes for samples that fill up a block are counted",
        _MAKING,
        "kept = len(batch) / (block_size * len(blocks_of(batch, block_size)))",
        "kept = 1",
        ("tests/test_parallel.py::test_what_a_set_cost_is_known_after_a_kill_within_the_log",),
    ),
    Mutant(
        "labels-by-the-place-in-a-block",
        "every block begins with the first label",
        _SOURCES,
        'which = {"num_images_per_prompt"',
        'labels = (self.labels * len(labels))[: len(labels)]\n        which = {"num_images_per_prompt"',
        ("tests/test_parallel.py::test_images_open_with_labels_and_seeds_and_are_the_pipeline_s",),
    ),
]
