"""What a GPU computes otherwise than a CPU: fused kernels, and without Triton measures in few passes.

A fused kernel for scores or draws reads the logits once and copies nothing; torch alone needs several passes, since
each of its functions reads and writes all of a block. The kernels compute what `hf_maskdiff.orders` and
`hf_maskdiff.sampling` do, but for rounding, and need Triton, which comes with torch for CUDA. Before their first use on
a device they are held against torch there, on a few rows. `HF_MASKDIFF_KERNELS=0` switches them off.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from ..orders import log_confidence, log_margin, log_moment, negative_entropy
from .few_passes import log_softmax_of, softmax_of, twin_of

__all__ = [
    "SWITCH",
    "Rows",
    "log_softmax_of",
    "measured",
    "position_noise",
    "row_draws",
    "row_log_probs",
    "row_scores",
    "softmax_of",
    "twin_of",
    "usable",
]

# Set this to 0 to compute by torch alone.
SWITCH = "HF_MASKDIFF_KERNELS"
# Columns that a program holds at a time.
_MOST_COLUMNS = 4096
_NOISE_BLOCK = 256


def usable(device: torch.device) -> bool:
    """Whether the kernels run on this device: a GPU with Triton, of a user who has not switched them off."""
    if device.type != "cuda" or os.environ.get(SWITCH) == "0":
        return False
    return _work_on(torch.cuda.current_device() if device.index is None else device.index)


@lru_cache(maxsize=64)
def _work_on(index: int) -> bool:
    """Whether they do, found out by a trial of each: a machine may lack Triton, or the compiler that it calls."""
    try:
        wrong = _differences(torch.device("cuda", index))
    except Exception as error:  # whatever Triton raises, torch can do the work
        wrong = f"{type(error).__name__}: {error}"
    if wrong:
        warnings.warn(
            f"Triton's kernels do not run on cuda:{index} ({wrong}): steps use torch alone, and are slower. Install "
            f"triton and a C compiler, or set {SWITCH}=0.",
            stacklevel=2,
        )
    return not wrong


# Noise of two keys at two positions, in units of 2^-52.
_TRIAL_KEYS = (1, -(2**62))
_TRIAL_NOISE = ((3774766793162929, 4252590154780699), (318233585316903, 103424388664533))


def _differences(device: torch.device) -> str:
    """What the kernels compute otherwise than torch; nothing if they are right.

    Torch computes on the CPU, and nothing is left to a default: whatever the user has set, such as float64 or
    deterministic algorithms, which a sum on a GPU refuses, must not look like a fault of the kernels.
    """
    noise = torch.tensor(_TRIAL_NOISE, dtype=torch.float64, device="cpu") * 2.0**-52
    logits = torch.linspace(-3, 3, 2 * 2 * 37, dtype=torch.float32, device="cpu").sin_().mul_(4).view(2, 2, 37)
    allowed = torch.arange(37, device="cpu") != 5
    log_probs = logits.where(allowed, -torch.inf).div_(0.7).log_softmax(-1)
    tokens = (log_probs.double().exp_().cumsum(-1) < noise[..., None]).sum(-1)
    keys, rows = torch.tensor(_TRIAL_KEYS, device="cpu").to(device), Rows(logits.to(device), 37, 5, 0.7)
    scores = row_scores(rows, log_confidence)
    right = {
        "noise": torch.equal(position_noise(keys, 2, (0,), 5)[0].cpu(), noise),
        "scores": scores is not None and torch.allclose(scores.cpu(), log_probs.amax(-1), atol=1e-4),
        "draws": torch.equal(row_draws(rows, noise.to(device))[0].cpu(), tokens),
    }
    wrong = [name for name, same in right.items() if not same]
    return f"other {', '.join(wrong)} than torch's" if wrong else ""


@dataclass(frozen=True)
class Rows:
    """The logits of which the kernels read rows, and what they make of them.

    Args:
        logits: `(batch_size, L, V)`, any float dtype, whose last stride is 1.
        num_tokens: how many columns are read.
        mask_token_id: the column that counts as -inf; it may lie outside.
        temperature: divides the logits.
        rows: indices of the rows that are read, in the flattened `(batch_size, L)`, int64 of any shape; None for all.
        wanted: which of them are read, bool; None for all.
    """

    logits: Tensor
    num_tokens: int
    mask_token_id: int
    temperature: float
    rows: Tensor | None = None
    wanted: Tensor | None = None

    @property
    def shape(self) -> torch.Size:
        """That of the results."""
        return self.logits.shape[:2] if self.rows is None else self.rows.shape

    @property
    def columns_at_a_time(self) -> int:
        return min(_MOST_COLUMNS, max(16, 1 << (self.num_tokens - 1).bit_length()))

    def launch(self, kernel: Any, unused: Tensor, *tensors: Tensor, **options: Any) -> None:
        """Run a kernel with a program for each row; `unused` stands for tensors that are not given."""
        rows = unused if self.rows is None else self.rows.contiguous()
        wanted = unused if self.wanted is None else self.wanted.contiguous()
        columns = self.columns_at_a_time
        with on(self.logits.device):
            kernel[(self.shape.numel(),)](
                self.logits,
                rows,
                wanted,
                *tensors,
                length=self.logits.shape[1],
                row_stride=self.logits.stride(0),
                position_stride=self.logits.stride(1),
                mask_token_id=self.mask_token_id,
                inverse_temperature=1.0 / self.temperature,
                NUM_TOKENS=self.num_tokens,
                HAS_ROWS=self.rows is not None,
                HAS_WANTED=self.wanted is not None,
                BLOCK=columns,
                num_warps=max(1, min(8, columns // 256)),
                **options,
            )


def on(device: torch.device) -> AbstractContextManager[Any]:
    """Triton launches on the current device."""
    if device.type != "cuda" or device.index in (None, torch.cuda.current_device()):
        return nullcontext()
    return torch.cuda.device(device)


def measured(function: Callable[..., Tensor]) -> tuple[str, float] | None:
    """The kernel's name of a measure of `hf_maskdiff.orders`, and its beta; None if there is no kernel for it."""
    if isinstance(function, partial) and function.func is log_moment and not function.args:
        return ("moment", function.keywords["beta"]) if set(function.keywords) == {"beta"} else None
    names = {log_confidence: "confidence", log_margin: "margin", negative_entropy: "entropy"}
    return (names[function], 1.0) if function in names else None


def row_scores(rows: Rows, function: Callable[..., Tensor]) -> Tensor | None:
    """`function` of each row, float32 of the shape of the rows, 0 where it is not wanted; None if it has no kernel.

    Args:
        function: a measure of `hf_maskdiff.orders`.
    """
    found = measured(function)
    return None if found is None else _scores(rows, *found)


def row_log_probs(rows: Rows, tokens: Tensor) -> Tensor:
    """`log p(x)` of one token x per row, float32, of the shape of the rows; tokens int64 of that shape."""
    return _scores(rows, "log_prob", 1.0, tokens.contiguous())


def _scores(rows: Rows, kind: str, beta: float, tokens: Tensor | None = None) -> Tensor:
    scores = torch.empty(rows.shape, dtype=torch.float32, device=rows.logits.device)
    if scores.numel():
        from . import row_kernels

        unused = scores if tokens is None else tokens
        rows.launch(row_kernels.row_scores, scores, unused, scores, beta=float(beta), KIND=kind)
    return scores


def row_draws(
    rows: Rows,
    uniform: Tensor,
    beta: Tensor | None = None,
    otherwise: Tensor | None = None,
    with_log_probs: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """One token per row from the normalised p^beta, by inverting its cumulative distribution.

    Args:
        uniform: noise, float64 in (0, 1), of the shape of the rows.
        beta: inverse temperature, `(batch_size, K)` like the rows, any strides; None for 1.
        otherwise: the token where none can be drawn or is wanted, int64 of the shape of the rows; None for
            `num_tokens`.
        with_log_probs: return the logarithm of the token's probability too, float64; NaN where none was drawn.

    Returns:
        Tokens, int64 of the shape of the rows, and their log-probabilities or None.
    """
    drawn = torch.empty(rows.shape, dtype=torch.int64, device=rows.logits.device)
    log_probs = torch.empty(rows.shape, dtype=torch.float64, device=drawn.device) if with_log_probs else None
    if drawn.numel():
        from .row_kernels import row_draws as kernel

        rows.launch(
            kernel,
            drawn,
            uniform.contiguous(),
            drawn if beta is None else beta,
            drawn if otherwise is None else otherwise.contiguous(),
            drawn,
            drawn if log_probs is None else log_probs,
            num_ranks=rows.shape[-1],
            beta_row_stride=0 if beta is None else beta.stride(0),
            beta_rank_stride=0 if beta is None else beta.stride(1),
            HAS_BETA=beta is not None,
            HAS_OTHERWISE=otherwise is not None,
            HAS_LOG_PROBS=with_log_probs,
            TILES=1 << (-(-rows.num_tokens // rows.columns_at_a_time) - 1).bit_length(),
        )
    return drawn, log_probs


def position_noise(keys: Tensor, length: int, purposes: Sequence[int], all_purposes: int) -> Tensor:
    """`hf_maskdiff.sampling.position_noise` of one or two purposes out of `all_purposes`, to the bit."""
    noise = torch.empty(len(purposes), len(keys), length, dtype=torch.float64, device=keys.device)
    if noise.numel():
        from .row_kernels import noise_of_positions as kernel

        with on(keys.device):
            kernel[(-(-noise.numel() // _NOISE_BLOCK),)](
                keys.contiguous(),
                noise,
                noise.numel(),
                len(keys) * length,
                length,
                int(purposes[0]),
                int(purposes[-1]),
                all_purposes,
                BLOCK=_NOISE_BLOCK,
                num_warps=4,
            )
    return noise
