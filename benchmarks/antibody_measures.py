"""What is said of a set of designs beside their likelihood: how far apart they are, how far their law is from that of
another set, and how near their framework is to a human germline's.

The law of a set is compared with another by the squared distance of their laws of the residues at two places, summed
over all pairs of places. Two designs that agree at m places agree at both places of C(m, 2) pairs, so three means of
C(m, 2) over pairs of designs give it without bias: no law is estimated, and for two sets of one law it is 0 on average,
below 0 as often as above. Errors are those of the jackknife, which leaves out one design at a time.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

Value = tuple[float, float]  # mean and standard error

# The framework of human V genes (IMGT/GENE-DB): IMGT's FR1, FR2 and FR3, and where each begins.
# Frequent genes of the heavy chain's families 1, 3, 4 and 5, and of light chains, which the model writes too.
GERMLINES: dict[str, tuple[tuple[int, str], ...]] = {
    gene: tuple(zip((0, *starts), regions.split(), strict=True))
    for gene, starts, regions in (
        ("IGHV1-2", (33, 58), "QVQLVQSGAEVKKPGASVKVSCKAS MHWVRQAPGQGLEWMGW NYAQKFQGRVTMTRDTSISTAYMELSRLRSDDTAVYYC"),
        ("IGHV1-69", (33, 58), "QVQLVQSGAEVKKPGSSVKVSCKAS ISWVRQAPGQGLEWMGG NYAQKFQGRVTITADESTSTAYMELSSLRSEDTAVYYC"),
        ("IGHV3-23", (33, 58), "EVQLLESGGGLVQPGGSLRLSCAAS MSWVRQAPGKGLEWVSA YYADSVKGRFTISRDNSKNTLYLQMNSLRAEDTAVYYC"),
        ("IGHV3-30", (33, 58), "QVQLVESGGGVVQPGRSLRLSCAAS MHWVRQAPGKGLEWVAV YYADSVKGRFTISRDNSKNTLYLQMNSLRAEDTAVYYC"),
        ("IGHV4-34", (33, 57), "QVQLQQWGAGLLKPSETLSLTCAVY WSWIRQPPGKGLEWIGE NYNPSLKSRVTISVDTSKNQFSLKLSSVTAADTAVYYC"),
        ("IGHV4-59", (33, 57), "QVQLQESGPGLVKPSETLSLTCTVS WSWIRQPPGKGLEWIGY NYNPSLKSRVTISVDTSKNQFSLKLSSVTAADTAVYYC"),
        ("IGHV5-51", (33, 58), "EVQLVQSGAEVKKPGESLKISCKGS IGWVRQMPGKGLEWMGI RYSPSFQGQVTISADKSISTAYLQWSSLKASDTAMYYC"),
        ("IGKV1-39", (32, 52), "DIQMTQSPSSLSASVGDRVTITCRAS LNWYQQKPGKAPKLLIY SLQSGVPSRFSGSGSGTDFTLTISSLQPEDFATYYC"),
        ("IGKV3-20", (33, 53), "EIVLTQSPGTLSLSPGERATLSCRAS LAWYQQKPGQAPRLLIY SRATGIPDRFSGSGSGTDFTLTISRLEPEDFAVYYC"),
        ("IGLV1-44", (33, 53), "QSVLTQPPSASGTPGQRVTISCSGS VNWYQQLPGTAPKLLIY QRPSGVPDRFSGSKSGTSASLAISGLQSEDEADYYC"),
        ("IGLV2-14", (34, 54), "QSALTQPASVSGSPGQSITISCTGT VSWYQQHPGKAPKLMIY NRPSGVSNRFSGSKSGNTASLTISGLQAEDEADYYC"),
    )
}
SHIFTS = range(-4, 16)  # of a region, as CDRs differ in length, and light chains are made as long as heavy ones


def agreements(first: Tensor, second: Tensor) -> Tensor:
    """At how many places each design of one set agrees with each of another.

    Args:
        first: residues, int64 `(n, length)`.
        second: residues, int64 `(m, length)`.

    Returns:
        float64 `(n, m)`.
    """
    return (first[:, None] == second).sum(-1).double()


def apart(designs: Tensor) -> Value:
    """The share of places at which two different designs of a set differ."""
    differs = 1 - agreements(designs, designs) / designs.shape[1]
    mean, without = _mean_and_without_each(differs.fill_diagonal_(0))
    return mean, _jackknife(without)


def distance(designs: Tensor, reference: Tensor, size: int = 2) -> Value:
    """Squared distance of two laws of the residues at `size` places, relative to the reference's sum of squares.

    Design i of both sets may come from the same noise: such a pair has no part in it.

    Args:
        designs: int64 `(n, length)`.
        reference: int64 `(m, length)`.
        size: 2 for pairs of places, 1 for single ones.
    """
    own = _choose(agreements(designs, designs), size).fill_diagonal_(0)
    theirs = _choose(agreements(reference, reference), size).fill_diagonal_(0)
    across = _choose(agreements(designs, reference), size)
    n, m = across.shape
    counted = 1 - torch.eye(n, m, dtype=torch.float64)
    across = across * counted
    (a, a_without), (b, b_without) = _mean_and_without_each(own), _mean_and_without_each(theirs)
    total, number = across.sum(), counted.sum()
    c = total / number
    c_without_own = (total - across.sum(1)) / (number - counted.sum(1))
    c_without_theirs = (total - across.sum(0)) / (number - counted.sum(0))
    errors = (
        _jackknife((a_without + b - 2 * c_without_own) / b),
        _jackknife((a + b_without - 2 * c_without_theirs) / b_without),
    )
    return float((a + b - 2 * c) / b), math.hypot(*errors)


def _choose(number: Tensor, size: int) -> Tensor:
    return number if size == 1 else number * (number - 1) / 2


def _mean_and_without_each(matrix: Tensor) -> tuple[float, Tensor]:
    """Mean of a symmetric matrix off its diagonal, which is 0, and the means without each row and its column."""
    n = len(matrix)
    total = matrix.sum()
    return float(total / (n * (n - 1))), (total - 2 * matrix.sum(1)) / ((n - 1) * (n - 2))


def _jackknife(without: Tensor) -> float:
    """Standard error from the values without each of the n."""
    n = len(without)
    return float(((n - 1) / n * (without - without.mean()).square().sum()).sqrt())


@cache
def nearest_germline(chain: str) -> tuple[str, float]:
    """The gene of `GERMLINES` whose framework a chain is nearest to, and the share of its residues that the chain has.

    Each region is laid on the chain without gaps, where it agrees best near its own place (`SHIFTS`).
    """
    shares = {
        gene: sum(_found(chain, *region) for region in regions) / sum(len(letters) for _, letters in regions)
        for gene, regions in GERMLINES.items()
    }
    best = max(shares, key=shares.__getitem__)
    return best, shares[best]


@cache
def is_mixed(chain: str) -> bool:
    """Whether a chain begins as a heavy chain and goes on as a light one, or the other way round: by FR1 and FR3."""
    first, third = (
        max(GERMLINES, key=lambda gene: _found(chain, *GERMLINES[gene][region]) / len(GERMLINES[gene][region][1]))
        for region in (0, 2)
    )
    return first.startswith("IGH") != third.startswith("IGH")


def _found(chain: str, start: int, letters: str) -> int:
    """Residues of a region that a chain has, where it agrees best near its own place."""
    starts = [start + shift for shift in SHIFTS if start + shift >= 0]
    return max(sum(a == b for a, b in zip(chain[begin:], letters, strict=False)) for begin in starts)
