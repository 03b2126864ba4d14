"""VampNet's recorded runs, replayed by its preset over the converted models, to the token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_data import COMMITTED, later_cases, read
from safetensors.torch import load_file
from torch import Tensor

from hf_maskdiff import MaskGITScheduler, StepContext, VampNetTransformer
from hf_maskdiff.conversion.convert import convert
from hf_maskdiff.conversion.vampnet import vampnet
from hf_maskdiff.masking import ROUNDINGS, Count
from hf_maskdiff.sampling import Marginals, Purpose
from hf_maskdiff.token_filters import keep_top_p


def round_in_float32(initial: Count, ratio: float, done: int, num_steps: int) -> Count:
    """The original's count, whose float32 may fall below a whole number; a tensor for one, a number for a number."""
    progress = torch.tensor(done / num_steps)
    left = torch.floor((progress * torch.pi / 2).cos() * torch.as_tensor(initial, dtype=torch.float32)).double()
    return left if isinstance(initial, Tensor) else left.item()


class Replay:
    """Feeds the draws of a trace to `MaskGITScheduler`, one step after the other."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, trace: dict[str, Tensor], num_codebooks: int) -> None:
        self.step = 0

        def by_codebook(values: Tensor) -> Tensor:
            """Of `(batch_size, frames * codebooks, ...)` the same, codebook after codebook."""
            return values.unflatten(1, (-1, num_codebooks)).transpose(1, 2).flatten(1, 2)

        def draw_all(marginals: Marginals, wanted: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
            rows = torch.arange(wanted.numel())
            (log_probs,) = marginals.reduce(lambda block: (block.log_softmax(-1),), rows)
            log_probs = log_probs.view(*wanted.shape, -1)
            tokens = (log_probs.exp() / by_codebook(trace["exponential"][self.step])).argmax(-1)
            return tokens, log_probs.gather(-1, tokens[..., None])[..., 0].double()

        def noise(context: StepContext, purpose: object) -> Tensor:
            return -(-by_codebook(trace["gumbel_u"][self.step]).log()).log().double()

        monkeypatch.setattr(Marginals, "draw_all", draw_all)
        monkeypatch.setattr(StepContext, "gumbel", noise)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The converted models of a golden folder, by the name of the original's."""
    made: dict[Path, dict[str, VampNetTransformer]] = {}

    def of(folder: Path) -> dict[str, VampNetTransformer]:
        if folder not in made:
            output = convert(folder, tmp_path_factory.mktemp("vampnet") / "out")
            names = {"coarse": "transformer", "c2f": "fine_transformer"}
            made[folder] = {
                name: VampNetTransformer.from_pretrained(output, subfolder=part) for name, part in names.items()
            }
        return made[folder]

    return of


def filtered(logits: Tensor, top_p: str) -> Tensor:
    """The nucleus of the logits as they are: the original takes it before its temperature, `top_p` here after it."""
    if top_p != "None":
        logits = logits.clone()
        keep_top_p(logits.view(-1, logits.shape[-1]), float(top_p))
    return logits


@torch.no_grad()
@pytest.mark.parametrize("path", later_cases("vampnet/trace_*"))
def test_a_run_to_the_token(path: Path, models: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    trace, settings = read(path)
    model = models(path.parent)[settings["model"]]
    num_given, codes = model.config.num_conditioning_codebooks, model.config.codebook_size
    assert codes == json.loads((path.parent / "manifest.json").read_text())["mask_token_id"]
    scheduler = MaskGITScheduler.from_config(
        vampnet(codes).scheduler.config,
        choice_temperature=float(settings["mask_temperature"]),
        temperature=float(settings["temperature"]),
        sample_cutoff=float(settings["sample_cutoff"]),
    )
    scheduler.set_timesteps(int(settings["_sampling_steps"]))
    states = trace["z_masked_in"]
    sample = states[0][:, num_given:]
    # The original counts the masks of all rows together, and those of given codebooks, where they are masked at first.
    ratio = (states[0] == codes).sum() / sample[0].numel()
    monkeypatch.setitem(ROUNDINGS, "floor_masked", round_in_float32)
    replay = Replay(monkeypatch, trace, model.config.num_codebooks)
    for replay.step, t in enumerate(scheduler.timesteps):
        assert torch.equal(sample, states[replay.step][:, num_given:])
        given = states[replay.step][:, :num_given] if num_given else None
        logits = filtered(model(sample, given).sample, settings["top_p"])
        sample = scheduler.step(logits, t, sample, ratio).prev_sample
    assert torch.equal(sample, trace["final"][:, num_given:])


# --- what always runs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cutoff", [0.0, 0.4, 0.5, 1.0])
def test_late_steps_take_the_most_probable_tokens(cutoff: float) -> None:
    """The authors' rule with our noise, over random logits with a temperature and a nucleus."""
    steps, mask = 6, 9
    scheduler = MaskGITScheduler(mask, mask, temperature=0.8, top_p=0.9, choice_temperature=2.0, sample_cutoff=cutoff)
    scheduler.set_timesteps(steps)
    sample, noise = torch.full((3, 2, 10), mask), torch.Generator().manual_seed(1)
    differ = 0
    for n, t in enumerate(scheduler.timesteps):
        logits = 2 * torch.randn(3, 20, mask, generator=noise)
        marginals, context = scheduler.start_step(logits, t, sample, 1.0, torch.Generator().manual_seed(n))
        drawn, log_probs = marginals.draw_all(context.masked, context.uniform(Purpose.TOKEN))
        if n / steps > cutoff:
            differ += int((drawn != logits.argmax(-1))[context.masked].sum())
            (scores,) = marginals.reduce(lambda block: (block.log_softmax(-1),), torch.arange(60))
            drawn, log_probs = logits.argmax(-1), scores.amax(-1).view(3, 20).double()
        score = log_probs + 2.0 * (1 - (n + 1) / steps) * context.gumbel(Purpose.CHOICE)
        expected = sample.flatten(1).clone()
        for row in range(3):
            order = score[row].masked_fill(~context.masked[row], -torch.inf).argsort(descending=True)
            chosen = order[: int(context.count[row])]
            expected[row, chosen] = drawn[row, chosen]
        sample = scheduler.step(logits, t, sample, generator=torch.Generator().manual_seed(n)).prev_sample
        assert torch.equal(sample.flatten(1), expected)
    assert (differ > 0) == (cutoff < 0.8)
    assert (sample != mask).all()


def test_a_clip_is_the_same_alone_and_in_a_batch() -> None:
    """Unlike in the original, whose counts are of the batch."""
    golden = load_file(COMMITTED / "vampnet" / "coarse.safetensors")
    start = golden["z_masked"].clone()
    mask = len(golden["codec.quantizer.quantizers.0.codebook.weight"])
    start[0] = mask
    start[1, :, ::3] = 1
    logits = torch.randn(2, start[0].numel(), mask, generator=torch.Generator().manual_seed(0))

    def run(rows: list[int]) -> Tensor:
        scheduler, sample = vampnet(mask).scheduler, start[rows]
        scheduler.set_timesteps(5)
        ratio = (sample == mask).flatten(1).float().mean(1)
        generators = [torch.Generator().manual_seed(row) for row in rows]
        for t in list(scheduler.timesteps)[:3]:
            sample = scheduler.step(logits[rows], t, sample, ratio, generators).prev_sample
        return sample

    both = run([0, 1])
    assert torch.equal(both, torch.cat([run([0]), run([1])]))
    assert (both == mask).any()


def test_broken_logits_are_found_where_tokens_are_not_drawn() -> None:
    scheduler = MaskGITScheduler(4, 4, sample_cutoff=0.0)
    scheduler.set_timesteps(2)
    logits = torch.zeros(1, 3, 4)
    logits[0, 1, 2] = torch.nan
    with pytest.raises(ValueError, match="hold no NaN or \\+inf, got such logits in step 1"):
        scheduler.step(logits, 0.5, torch.full((1, 3), 4))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sample_cutoff": 1.5}, r"`sample_cutoff` must be in \[0, 1\], got 1.5"),
        ({"sample_cutoff": None}, r"`sample_cutoff` must be in \[0, 1\], got None"),
        ({"typical_min_tokens": 0}, "`typical_min_tokens` must be an integer of at least 1, got 0"),
    ],
)
def test_settings_that_cannot_work(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MaskGITScheduler(4, **changes)
