"""Pseudo-likelihood against exact enumeration of a small world, and against a plain loop over a model."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from tiny_weights import draw_weights
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM

from hf_maskdiff.denoisers import TextDenoiser, text_denoiser
from hf_maskdiff.evaluation.markov_chain import MarkovChain
from hf_maskdiff.evaluation.pseudo_likelihood import pseudo_log_likelihood

MASK = 4


@pytest.fixture(scope="module")
def bert() -> TextDenoiser:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    model = BertForMaskedLM(BertConfig(vocab_size=12, max_position_embeddings=16, **sizes)).eval()
    draw_weights(model)
    return text_denoiser(model)


class ChainDenoiser:
    """The exact conditionals of a Markov chain, with a column for the mask that carries much weight, to be ignored."""

    def __init__(self, chain: MarkovChain) -> None:
        self.chain, self.rows = chain, []

    def __call__(self, input_ids: Tensor, timestep: float, logits_at: Tensor) -> Tensor:
        self.rows.append(len(input_ids))
        assert timestep == 1 / self.chain.length
        logits = torch.nn.functional.pad(self.chain(input_ids), (0, 1), value=5.0)
        return logits.gather(1, logits_at[..., None].expand(-1, -1, logits.shape[-1]))


def test_exact_conditionals_by_enumeration() -> None:
    """`p(x) / sum over all y that differ from x at i alone of p(y)`, from the probabilities of all sequences."""
    chain = MarkovChain.random(length=4, num_states=3)
    everything = torch.tensor(list(product(range(3), repeat=4)))
    joint = dict(zip(map(tuple, everything.tolist()), chain.log_evidence(everything).exp().tolist(), strict=True))
    assert sum(joint.values()) == pytest.approx(1, abs=1e-12)

    def conditional(x: list[int], i: int) -> float:
        return joint[tuple(x)] / sum(joint[(*x[:i], y, *x[i + 1 :])] for y in range(3))

    expected = torch.tensor([[conditional(x, i) for i in range(4)] for x in everything.tolist()], dtype=torch.float64)
    denoiser = ChainDenoiser(chain)
    ours = pseudo_log_likelihood(denoiser, everything, torch.arange(4), chain.mask_token_id, batch_size=100)
    torch.testing.assert_close(ours, expected.log(), atol=1e-12, rtol=0)
    assert denoiser.rows == [100, 100, 100, 24]


def test_a_loop_over_a_model(bert: TextDenoiser) -> None:
    ids = torch.tensor([[2, 5, 6, 7, 8, 3], [2, 11, 11, 9, 10, 3]])
    positions = torch.tensor([[1, 3, 4], [4, 2, 1]])
    expected = torch.empty(2, 3)
    for b, j in product(range(2), range(3)):
        masked, i = ids[b : b + 1].clone(), int(positions[b, j])
        masked[0, i] = MASK
        with torch.no_grad():
            logits = bert.model(input_ids=masked).logits[0, i]
        logits[MASK] = -torch.inf
        expected[b, j] = logits.log_softmax(-1)[ids[b, i]]
    for batch_size in (1, 4, 32):
        ours = pseudo_log_likelihood(bert, ids, positions, MASK, batch_size)
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)
    assert expected.std() > 0.1


def test_one_list_of_places_for_all_sequences(bert: TextDenoiser) -> None:
    ids = torch.tensor([[2, 5, 6, 7, 8, 3], [2, 11, 11, 9, 10, 3]])
    shared = pseudo_log_likelihood(bert, ids, torch.tensor([3, 1]), MASK)
    torch.testing.assert_close(shared, pseudo_log_likelihood(bert, ids, torch.tensor([[3, 1]] * 2), MASK))
    assert pseudo_log_likelihood(bert, ids, torch.arange(0), MASK).shape == (2, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_ids": torch.tensor([2, 5, 3])}, r"`input_ids` must be int64 of shape .* got torch.int64 \(3,\)"),
        ({"input_ids": torch.ones(1, 3)}, r"`input_ids` must be int64 .* got torch.float32"),
        ({"input_ids": torch.tensor([[2, MASK, 3]])}, r"`input_ids` must hold no mask, got 4 .* Fill them in first"),
        ({"positions": torch.tensor([1, 3])}, r"`positions` must lie in 0 \.\. 2, got 1 to 3"),
        ({"positions": torch.tensor([-1])}, r"`positions` must lie in 0 \.\. 2, got -1"),
        ({"positions": torch.tensor([[1], [1], [1]])}, r"`positions` must be int64 of shape \(n,\) or \(2, n\)"),
        ({"positions": torch.tensor(1)}, r"`positions` must be int64 of shape"),
        ({"batch_size": 0}, r"`batch_size` must be at least 1, got 0"),
    ],
)
def test_errors_are_clear(change: dict, message: str, bert: TextDenoiser) -> None:
    arguments = {"input_ids": torch.tensor([[2, 5, 3], [2, 6, 3]]), "positions": torch.tensor([1]), **change}
    with pytest.raises(ValueError, match=message):
        pseudo_log_likelihood(bert, **arguments, mask_token_id=MASK)
