"""Which samples of a set are missing, which of them are made together, and with which seeds: pure functions.

A set is cut into shards, the files that are left in the end. A shard is made in batches, which are what is written at
once, and a batch in blocks, which are what goes through the model at once. Each holds a range of neighbouring indices.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable


def seed_of(base_seed: int, index: int) -> int:
    """Seed of sample `index`, of 63 bits: a hash, so that sets of neighbouring base seeds share no sample.

    Example:
        >>> torch.Generator().manual_seed(seed_of(0, 7))  # draws sample 7 of the set of base seed 0
    """
    return int.from_bytes(hashlib.sha256(f"{base_seed}:{index}".encode()).digest()[:8], "big") >> 1


def plan_batches(
    num_samples: int, shard_size: int, block_size: int, batch_size: int, done: Iterable[tuple[int, int]] = ()
) -> list[range]:
    """The batches that are missing, in order. Each is a range of whole blocks of one shard.

    Args:
        num_samples: samples of the whole set.
        shard_size: samples of a shard, a multiple of `block_size`.
        block_size: samples that are made together, always the same ones: `block_size k .. block_size (k + 1) - 1`.
        batch_size: samples of a batch at most, rounded up to whole blocks.
        done: index ranges `(start, stop)` of samples that exist.

    Returns:
        disjoint ranges. Only the last sample of the set may end one of them within a block.

    Example:
        >>> plan_batches(10, shard_size=8, block_size=2, batch_size=3, done=[(2, 4)])
        [range(0, 2), range(4, 8), range(8, 10)]
    """
    finished = {block for start, stop in done for block in range(start // block_size, -(-stop // block_size))}
    size = -(-batch_size // block_size) * block_size
    batches: list[range] = []
    for start in range(0, num_samples, block_size):
        stop = min(start + block_size, num_samples)
        if start // block_size in finished:
            continue
        last = batches[-1] if batches else range(0)
        if last.stop == start and start % shard_size and last and stop - last.start <= size:
            batches[-1] = range(last.start, stop)
        else:
            batches.append(range(start, stop))
    return batches


def blocks_of(batch: range, block_size: int) -> list[range]:
    """The blocks of a batch, all of full size: the last one may go on to samples behind the set, which are not kept."""
    return [range(start, start + block_size) for start in range(batch.start, batch.stop, block_size)]


def cover(spans: Iterable[tuple[int, int]], start: int, stop: int) -> list[tuple[tuple[int, int], int]]:
    """Choose, of index ranges that may overlap, those that hold each of `start .. stop - 1`.

    Ranges overlap where two runs wrote to one folder: workers outlive a launcher that is killed.

    Returns:
        in order, each range with the number of its first samples that an earlier range holds too and that are to be
        skipped; empty if an index is in none of the ranges.

    Example:
        >>> cover([(0, 4), (2, 6), (6, 8)], 0, 8)
        [((0, 4), 0), ((2, 6), 2), ((6, 8), 0)]
    """
    found: list[tuple[tuple[int, int], int]] = []
    at = start
    for begin, end in sorted(spans):
        if begin <= at < end:
            found.append(((begin, end), at - begin))
            at = end
    return found if at == stop else []
