"""The fused kernels against torch, without a GPU: Triton's interpreter runs them, and its compiler compiles them."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hf_maskdiff import (
    AncestralScheduler,
    ConfidenceScheduler,
    HaltonScheduler,
    HybridScheduler,
    MaskedDiffusionScheduler,
    MaskGITScheduler,
    MomentScheduler,
    UniformScheduler,
    kernels,
)
from hf_maskdiff.orders import log_calibrated, log_confidence, log_margin, log_moment, negative_entropy
from hf_maskdiff.sampling import Marginals, Purpose, position_noise

MEASURES = [log_confidence, log_margin, negative_entropy, partial(log_moment, beta=3.7), partial(log_moment, beta=1.0)]


@pytest.fixture
def on_kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bool], None]]:
    """Switches between kernels, run by Triton's interpreter, and torch."""
    pytest.importorskip("triton", "3.6")
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # is read when Triton is imported, which some test may have done

    def of_triton(name: str) -> bool:
        python = name.partition(".")[0] == "triton" and not name.startswith("triton._C")
        return python or name == "hf_maskdiff.kernels.row_kernels"

    before = {name: sys.modules.pop(name) for name in list(sys.modules) if of_triton(name)}
    monkeypatch.setattr(kernels, "_MOST_COLUMNS", 32)  # several tiles of small rows
    yield lambda use: monkeypatch.setattr(kernels, "usable", lambda device: use)
    for name in list(sys.modules):
        if of_triton(name):
            del sys.modules[name]
    sys.modules.update(before)


def hard_logits(vocabulary: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Rows (2, 12, V): ordinary ones, and in the first batch row those in which something is extreme."""
    logits = 3 * torch.randn(2, 12, vocabulary, generator=torch.Generator().manual_seed(0))
    logits[0, 0, 3] = math.nan
    logits[0, 1, 5] = math.inf
    logits[0, 2] = -math.inf
    logits[0, 3, : vocabulary // 2] = -math.inf  # whole tiles of tokens that may not be drawn, at the beginning
    logits[0, 4, vocabulary // 3 :] = -math.inf  # and at the end
    logits[0, 5] = 2.0
    logits[0, 6, 0] = 80.0
    logits[0, 7], logits[0, 7, 1:3] = -300.0, -200.0
    return logits.to(dtype)


@pytest.mark.parametrize(
    ("vocabulary", "mask", "dtype", "temperature"),
    [(40, 40, torch.bfloat16, 1.0), (70, 7, torch.float32, 0.6)],
)
def test_scores_and_draws(
    on_kernels: Callable[[bool], None], vocabulary: int, mask: int, dtype: torch.dtype, temperature: float
) -> None:
    logits, random = hard_logits(vocabulary, dtype), torch.Generator().manual_seed(1)
    wanted, everywhere = torch.rand(2, 12, generator=random) < 0.7, torch.ones(2, 12, dtype=torch.bool)
    noise = torch.rand(2, 12, dtype=torch.float64, generator=random)
    tokens = torch.randint(vocabulary + 2, (2, 12), generator=random)
    tokens[0, 1] = 5  # of the row with +inf there
    rows, beta = torch.randperm(24, generator=random), 0.5 + 3 * torch.rand(24, generator=random)
    greedy = torch.full((24,), 1e30)

    def results() -> list[Any]:
        marginals = Marginals(logits, mask, temperature=temperature)
        keys = torch.tensor([-(2**63), 2**62 + 12345])
        drawn, log_probs = marginals.draw_all(everywhere, noise)
        at_most = [marginals.draw_all(wanted, noise)[0][wanted], marginals.log_prob_of(tokens, wanted)[wanted]]
        return [
            position_noise(keys, 12, Purpose.CHOICE, Purpose.TOKEN),
            position_noise(keys, 300, Purpose.SHIFT),
            marginals.draw(rows, noise.flatten(), beta),
            marginals.draw(rows, noise.flatten(), greedy),
            drawn,
            log_probs[drawn < marginals.num_tokens],
            marginals.log_prob_at(rows, tokens.flatten()[rows].clamp(max=vocabulary - 1)),
            *at_most,
            *(marginals.score(measure, everywhere) for measure in MEASURES),
            marginals.score(log_confidence, wanted),
        ]

    on_kernels(False)
    expected = results()
    on_kernels(True)
    for index, (found, right) in enumerate(zip(results(), expected, strict=True)):
        assert (found.dtype, found.shape) == (right.dtype, right.shape)
        if found.is_floating_point() and index > 1:
            torch.testing.assert_close(found, right, rtol=4e-6, atol=4e-6, equal_nan=True)
        else:  # noise to the bit, and tokens
            assert torch.equal(found, right), index


def test_noise_at_the_ends(on_kernels: Callable[[bool], None]) -> None:
    """A token without mass is never drawn, whatever the noise: few of each row's tokens may be."""
    random = torch.Generator().manual_seed(3)
    logits = torch.full((1, 20, 100), -math.inf)
    allowed = torch.rand(20, 100, generator=random).argsort(-1)[:, :3]
    logits[0] = logits[0].scatter(1, allowed, torch.randn(20, 3, generator=random))
    ends = torch.tensor([2.0**-52, 1 - 2.0**-52], dtype=torch.float64)
    noise = ends.repeat(10)[None]
    on_kernels(True)
    drawn, log_probs = Marginals(logits, 100).draw_all(torch.ones(1, 20, dtype=torch.bool), noise)
    ordered = allowed.sort().values
    assert torch.equal(drawn[0], torch.where(noise[0] < 0.5, ordered[:, 0], ordered[:, 2]))
    torch.testing.assert_close(log_probs, logits.double().log_softmax(-1).gather(2, drawn[..., None])[..., 0])


def test_places(on_kernels: Callable[[bool], None]) -> None:
    """Logits of some positions alone: in another order, with one that belongs nowhere, of a view with strides."""
    random = torch.Generator().manual_seed(2)
    logits = (3 * torch.randn(2, 9, 30, generator=random))[:, 2:7, :25]
    places = torch.tensor([[3, 0, -1, 5, 1], [11, 10, 6, 8, -1]])
    wanted = torch.zeros(2, 6, dtype=torch.bool)
    wanted.view(-1)[places[places >= 0]] = True
    noise, tokens = torch.rand(2, 6, dtype=torch.float64, generator=random), torch.randint(25, (2, 6), generator=random)
    flat = wanted.flatten().nonzero()[:, 0]

    def results() -> list[Tensor]:
        marginals = Marginals(logits, 25, places=places, num_places=12)
        drawn, log_probs = marginals.draw_all(wanted, noise)
        one = torch.ones(len(flat))
        parts = [marginals.score(log_confidence, wanted), drawn, log_probs, marginals.log_prob_of(tokens, wanted)]
        return [*(part[wanted] for part in parts), marginals.draw(flat, noise.flatten()[flat], one)]

    on_kernels(False)
    expected = results()
    on_kernels(True)
    for found, right in zip(results(), expected, strict=True):
        torch.testing.assert_close(found, right, rtol=4e-6, atol=4e-6)


def test_ranks_that_keep_their_token(on_kernels: Callable[[bool], None]) -> None:
    logits = hard_logits(40)
    rows = torch.arange(24).view(2, 12)
    noise, beta = torch.full((2, 12), 0.5, dtype=torch.float64), torch.tensor([[1.0], [2.0]]).expand(2, 12)
    tokens, wanted = torch.arange(100, 124).view(2, 12), torch.arange(12).expand(2, -1) % 3 != 1
    found = []
    for use in (False, True):
        on_kernels(use)
        found.append(Marginals(logits, 40).draw_or_keep(rows, noise, beta, wanted, tokens))
    assert torch.equal(*found)
    assert torch.equal(found[0][~wanted], tokens[~wanted])
    assert found[0][0, [0, 2]].tolist() == [100, 102]  # NaN, and nothing to draw
    assert bool((found[0][1][wanted[1]] < 40).all())


def test_what_has_no_kernel_is_left_to_torch(on_kernels: Callable[[bool], None]) -> None:
    on_kernels(True)
    logits, wanted = torch.randn(1, 4, 10), torch.ones(1, 4, dtype=torch.bool)
    calibrated = partial(log_calibrated, surprisal=torch.ones(10), limit=1.0)
    assert kernels.measured(calibrated) is None
    assert kernels.measured(partial(log_confidence, block=logits)) is None
    found = Marginals(logits, 10).score(calibrated, wanted)
    torch.testing.assert_close(found, logits.softmax(-1).amax(-1).log())
    for filtered in ({"top_k": 2}, {"top_p": 0.5}, {"typical_p": 0.5}):
        assert not Marginals(logits, 10, **filtered)._fused  # type: ignore[arg-type]
    assert not Marginals(logits.transpose(1, 2), 10)._fused  # a row is not contiguous
    assert Marginals(logits, 10)._fused


COMPILE = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from hf_maskdiff.kernels import row_kernels as kernels

POINTERS = dict(rows="*i64", wanted="*i1", tokens="*i64", scores="*fp32", uniform="*fp64", beta="*fp64", drawn="*i64")
POINTERS |= dict(otherwise="*i64", log_probs="*fp64", keys="*i64", noise="*fp64", inverse_temperature="fp32")
FLAGS = ("HAS_ROWS", "HAS_WANTED", "HAS_BETA", "HAS_OTHERWISE", "HAS_LOG_PROBS")

def build(kernel, logits="*fp32", beta="*fp64", **constants):
    types = {"logits": logits, **POINTERS, "beta": beta}
    names = kernel.arg_names
    constants = {name: value for name, value in constants.items() if name in names}
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in names}
    constexprs = {(names.index(name),): value for name, value in constants.items()}
    compile(ASTSource(fn=kernel, signature=signature, constexprs=constexprs), target=GPUTarget("cuda", 90, 32))

for kind in ("confidence", "moment", "margin", "entropy", "log_prob"):
    build(kernels.row_scores, beta="fp32", NUM_TOKENS=5000, KIND=kind, HAS_ROWS=True, HAS_WANTED=True, BLOCK=4096)
build(kernels.row_scores, "*bf16", "fp32", NUM_TOKENS=40, KIND="moment", HAS_ROWS=False, HAS_WANTED=False, BLOCK=64)
for has in (True, False):
    build(kernels.row_draws, "*bf16", NUM_TOKENS=5000, BLOCK=4096, TILES=2, **dict.fromkeys(FLAGS, has))
build(kernels.noise_of_positions, BLOCK=256)
print("compiled")
"""


@pytest.mark.exhaustive  # 10 s
def test_they_compile_for_a_gpu(tmp_path: Path) -> None:
    """What the interpreter allows, the compiler may refuse; it needs no GPU."""
    pytest.importorskip("triton", "3.6")
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    ran = subprocess.run([sys.executable, "-c", COMPILE], capture_output=True, text=True, env=environment)
    assert ran.stdout.strip() == "compiled", ran.stderr


def test_the_trial_before_their_first_use(on_kernels: Callable[[bool], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """It finds them right, and each of them wrong where it is."""
    cpu = torch.device("cpu")
    on_kernels(True)
    assert kernels._differences(cpu) == ""
    try:  # what the user has set is no fault of the kernels
        torch.set_default_dtype(torch.float64)
        torch.use_deterministic_algorithms(True)
        with torch.device("meta"):
            assert kernels._differences(cpu) == ""
    finally:
        torch.set_default_dtype(torch.float32)
        torch.use_deterministic_algorithms(False)
    wrong: dict[str, Callable[..., Any]] = {
        "row_scores": lambda *_: torch.zeros(2, 2),
        "row_draws": lambda *_: (torch.zeros(2, 2, dtype=torch.int64), None),
        "position_noise": lambda keys, length, *_: torch.full((1, len(keys), length), 0.5, dtype=torch.float64),
    }
    found = []
    for name, computed in wrong.items():
        with monkeypatch.context() as patch:
            patch.setattr(kernels, name, computed)
            found.append(kernels._differences(cpu))
    assert found == ["other scores than torch's", "other draws than torch's", "other noise than torch's"]


def test_the_trial_knows_the_noise() -> None:
    noise = position_noise(torch.tensor(kernels._TRIAL_KEYS), 2, Purpose.CHOICE)[0]
    assert torch.equal(noise, torch.tensor(kernels._TRIAL_NOISE, dtype=torch.float64) * 2.0**-52)
    assert Purpose.CHOICE == 0
    assert len(Purpose) == 5


def no_compiler(device: torch.device) -> str:
    raise RuntimeError("no C compiler")


@pytest.mark.parametrize(
    ("trial", "why"), [(no_compiler, "RuntimeError: no C compiler"), (lambda _: "other noise", "other noise")]
)
def test_a_machine_on_which_they_fail_is_told_once(
    trial: Callable[[torch.device], str], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels._work_on.cache_clear()
    monkeypatch.setattr(kernels, "_differences", trial)
    with pytest.warns(UserWarning, match=rf"do not run on cuda:0 \({why}\): steps use torch alone"):
        assert not kernels._work_on(0)
    assert not kernels._work_on(0)
    kernels._work_on.cache_clear()


def test_they_are_on_unless_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_work_on", lambda index: index == 0)
    for value, on in (("", True), ("0", False), ("1", True)):
        monkeypatch.setenv(kernels.SWITCH, value)
        assert kernels.usable(torch.device("cuda:0")) == on
        assert not kernels.usable(torch.device("cpu"))
    monkeypatch.delenv(kernels.SWITCH)
    assert kernels.usable(torch.device("cuda:0"))
    assert not kernels.usable(torch.device("cuda:1"))


# --- what an accelerator computes by torch alone ----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("measure", [*MEASURES, partial(log_moment, beta=1e6)])
def test_measures_in_few_passes(measure: Callable[..., Tensor], dtype: torch.dtype) -> None:
    rows = hard_logits(70, dtype).flatten(0, 1)
    before, twin = rows.clone(), kernels.twin_of(measure)
    assert twin is not None
    torch.testing.assert_close(twin(rows), measure(rows.float().clone()), rtol=4e-6, atol=4e-6, equal_nan=True)
    assert torch.equal(rows.nan_to_num(), before.nan_to_num())  # they are the model's


def test_what_has_no_twin() -> None:
    assert kernels.twin_of(partial(log_calibrated, surprisal=torch.ones(10), limit=1.0)) is None
    assert kernels.twin_of(partial(log_moment, block=torch.zeros(1, 1), beta=2.0)) is None


@pytest.mark.parametrize("rows_at_a_time", [1, 7, 1000])
@pytest.mark.parametrize("of_places", [False, True])
@pytest.mark.parametrize("settings", [{}, {"temperature": 0.7}, {"top_k": 5}], ids=str)
def test_an_accelerator_computes_the_same(
    rows_at_a_time: int, of_places: bool, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way that selects nothing, on a CPU's tensors: with any size of the blocks the same tokens and scores."""
    random = torch.Generator().manual_seed(5)
    logits = 3 * torch.randn(2, 9, 1300, generator=random)
    wanted, changes = torch.rand(2, 9, generator=random) < 0.7, dict(settings)
    if of_places:
        places = torch.where(wanted.flatten(), torch.arange(18), -1)[torch.randperm(18, generator=random)]
        changes |= {"places": places.view(2, 9), "num_places": 18}
    noise, tokens = torch.rand(2, 9, dtype=torch.float64, generator=random), torch.randint(1302, (2, 9))
    beta = 0.5 + 3 * torch.rand(2, 9, generator=random)
    rows = torch.arange(18).view(2, 9)

    def results() -> list[Tensor]:
        marginals = Marginals(logits, 1299, **changes)
        drawn, log_probs = marginals.draw_all(wanted, noise)
        parts = [drawn, log_probs, marginals.log_prob_of(tokens, wanted)]
        parts += [marginals.score(measure, wanted) for measure in MEASURES]
        drawn = marginals.draw(rows[wanted], noise[wanted], beta[wanted])
        return [drawn, *(part[wanted] for part in parts)]

    expected = results()
    monkeypatch.setattr("hf_maskdiff.marginals.on_cpu", lambda device: False)
    monkeypatch.setattr(Marginals, "_rows_at_a_time", rows_at_a_time)
    found = results()
    marginals = Marginals(logits, 1299, **changes)
    assert (marginals._views is None) == bool(settings)
    for one, right in zip(found, expected, strict=True):
        torch.testing.assert_close(one, right, rtol=4e-6, atol=4e-6)
    kept = marginals.draw_or_keep(rows, noise, beta, wanted, tokens)
    assert torch.equal(kept[wanted], found[0])
    assert torch.equal(kept[~wanted], tokens[~wanted])


# --- how much a step asks of the host ---------------------------------------------------------------------------------


class Issued(TorchDispatchMode):
    """Counts what is issued to the device in its context: views, which are not, are left out."""

    VIEWS = ("view", "slice", "select", "expand", "unsqueeze", "unbind", "flatten", "alias", "detach", "empty", "item")

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, made = str(function).removeprefix("aten."), function(*args, **(kwargs or {}))
        nothing = name.startswith("to.") and made is args[0]
        if not nothing and not name.startswith(self.VIEWS):
            self.names.append(name)
        return made


STEPS = [
    # a scheduler, and the most operations of a step with kernels and by torch alone
    (MomentScheduler, 30, 64),
    (HybridScheduler, 41, 76),
    (MaskGITScheduler, 30, 67),
    (ConfidenceScheduler, 26, 53),
    (partial(ConfidenceScheduler, measure="entropy"), 26, 55),
    (UniformScheduler, 24, 50),
    (HaltonScheduler, 26, 52),
    (AncestralScheduler, 29, 55),
]


def issued_by_a_step(scheduler: MaskedDiffusionScheduler) -> list[str]:
    """On a GPU each operation costs the host about ten microseconds. The meta device takes the ways of an accelerator,
    and fails where a value is read."""
    scheduler.set_timesteps(8)
    logits, sample = torch.empty(2, 16, 40, device="meta"), torch.empty(2, 16, dtype=torch.int64, device="meta")
    arguments: Any = {"starting_mask_ratio": 1.0, "max_count": 3}
    scheduler.step(logits, scheduler.timesteps[3], sample, **arguments)  # which makes the constants
    with Issued() as issued:
        scheduler.step(logits, scheduler.timesteps[3], sample, **arguments)
    return issued.names


@pytest.mark.parametrize(("make", "most"), [(make, most) for make, _, most in STEPS])
def test_operations_of_a_step_by_torch_alone(make: Callable[..., MaskedDiffusionScheduler], most: int) -> None:
    names = issued_by_a_step(make(mask_token_id=40))
    assert len(names) <= most, " ".join(names)


@pytest.mark.parametrize(("make", "most"), [(make, most) for make, most, _ in STEPS])
def test_operations_of_a_step_with_kernels(
    make: Callable[..., MaskedDiffusionScheduler], most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernels, one operation each, are replaced by others that compute nothing."""
    launched: list[str] = []

    def noise(keys: Tensor, length: int, purposes: tuple[int, ...], all_purposes: int) -> Tensor:
        launched.append("noise")
        return torch.empty(len(purposes), len(keys), length, dtype=torch.float64, device="meta")

    def launch(rows: kernels.Rows, kernel: Any, *_: Any, **__: Any) -> None:
        launched.append("rows")

    monkeypatch.setattr(kernels, "usable", lambda device: device.type == "meta")
    monkeypatch.setattr(kernels, "position_noise", noise)
    monkeypatch.setattr(kernels.Rows, "launch", launch)
    monkeypatch.setitem(sys.modules, "hf_maskdiff.kernels.row_kernels", type(sys)("row_kernels"))
    for name in ("row_scores", "row_draws"):
        setattr(sys.modules["hf_maskdiff.kernels.row_kernels"], name, None)
    names = issued_by_a_step(make(mask_token_id=40))
    assert launched
    assert len(names) + len(launched) // 2 <= most, " ".join(names)  # of two steps
