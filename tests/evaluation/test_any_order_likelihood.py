"""Any-order likelihood: on a chain whose conditionals are exact, every order gives the likelihood itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hf_maskdiff.evaluation.any_order_likelihood import any_order_log_likelihood
from hf_maskdiff.evaluation.markov_chain import MarkovChain

LENGTH, STATES = 7, 4
CHAIN = MarkovChain.random(length=LENGTH, num_states=STATES, sharpness=1.5)


def denoiser(sample: Tensor, t: float, logits_at: Tensor) -> Tensor:
    """The chain between two tokens that are never masked, with a column for the mask."""
    logits = torch.nn.functional.pad(CHAIN(sample[:, 1:-1]), (0, 1, 1, 1))
    return logits.gather(1, logits_at[..., None].expand(-1, -1, STATES + 1))


def estimates(num_masks: int, seed: int = 0, copies: int = 1) -> tuple[Tensor, Tensor]:
    tokens = torch.nn.functional.pad(CHAIN.draw(5, seed=1).repeat(copies, 1), (1, 1))
    generator = torch.Generator().manual_seed(seed)
    places = torch.arange(1, LENGTH + 1)
    found = any_order_log_likelihood(denoiser, tokens, places, STATES, num_masks, generator, batch_size=50)
    return found.view(copies, -1), CHAIN.log_evidence(tokens[:5, 1:-1]) / LENGTH


@pytest.mark.parametrize("num_masks", [1, 3, LENGTH])
def test_it_is_the_likelihood_on_average(num_masks: int) -> None:
    found, expected = estimates(num_masks, copies=700 // num_masks)
    error = found.std(0) / len(found) ** 0.5
    assert ((found.mean(0) - expected).abs() < 5 * error).all()
    assert (error < 0.08 * expected.abs()).all()
    assert (found.mean(0) < 0).all()


def test_sizes_that_are_spread_have_less_error_and_a_seed_repeats_them() -> None:
    assert torch.equal(estimates(3, seed=5)[0], estimates(3, seed=5)[0])
    single = estimates(1, copies=300)[0].view(50, 6, 5).mean(1).std(0)
    spread = estimates(6, copies=50)[0].std(0)
    assert spread.mean() < 0.9 * single.mean()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_ids": torch.zeros(2, 3)}, "`input_ids` must be int64"),
        ({"positions": torch.zeros(2, 3, dtype=torch.int64)}, "`input_ids` must be int64"),
        ({"num_masks": 0}, "`num_masks` must be at least 1, got 0"),
    ],
)
def test_what_it_refuses(change: dict[str, object], message: str) -> None:
    given = {"input_ids": torch.zeros(2, LENGTH, dtype=torch.int64), "positions": torch.arange(LENGTH)}
    with pytest.raises(ValueError, match=message):
        any_order_log_likelihood(denoiser, mask_token_id=STATES, **given | change)  # type: ignore[arg-type]
