"""The bound is exact for an exact denoiser, and the log-probabilities are those of clean tokens only."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from hf_maskdiff.evaluation.likelihood import nelbo, subs_log_probs

LENGTH, VALUES = 3, 3
MASK = VALUES


def exact_logits(law: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
    """Logits of each token given those of `sample` that are known: `(1, LENGTH, VALUES + 1)`; the mask's is wild."""
    for axis, token in enumerate(sample.tolist()):
        if token != MASK:
            known = torch.zeros(VALUES)
            known[token] = 1
            law = law * known.view([-1 if i == axis else 1 for i in range(LENGTH)])
    marginals = [law.sum([i for i in range(LENGTH) if i != axis]) for axis in range(LENGTH)]
    return torch.cat([torch.stack(marginals).log(), torch.full((LENGTH, 1), 9.0)], -1)[None]


@pytest.mark.parametrize("tokens", [(0, 1, 2), (2, 2, 0)])
def test_the_bound_of_an_exact_denoiser_is_the_likelihood(tokens: tuple[int, ...]) -> None:
    """Masks are enumerated, and the integral over time is that of a polynomial: no sampling, no error."""
    law = torch.rand((VALUES,) * LENGTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    law = law / law.sum()
    clean = torch.tensor(tokens)
    nodes, weights = np.polynomial.legendre.leggauss(4)
    total = 0.0
    for t, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
        for masked in product([False, True], repeat=LENGTH):
            probability = t ** sum(masked) * (1 - t) ** (LENGTH - sum(masked))
            sample = clean.masked_fill(torch.tensor(masked), MASK)
            bound = nelbo(exact_logits(law, sample), sample[None], clean[None], torch.tensor([t]), MASK)
            assert torch.equal(bound[0] == 0, ~torch.tensor(masked))
            total += weight * probability * bound.sum().item()
    assert total == pytest.approx(-law[tokens].log().item(), rel=1e-9)


def test_log_probabilities_are_normalised_without_the_mask_and_keep_what_is_known() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 4, generator=generator)
    sample = torch.tensor([[0, 3, 2, 3, 3], [3, 3, 1, 1, 0]])
    log_probs = subs_log_probs(logits, sample, 3)
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(2, 5))
    assert (log_probs[..., 3] == -torch.inf).all()
    known = sample != 3
    assert (log_probs[known].gather(-1, sample[known][:, None]) == 0).all()
    torch.testing.assert_close(log_probs[~known][:, :3], logits[~known][:, :3].log_softmax(-1))
    # A mask id in the middle is as good as one at the end.
    order = torch.tensor([0, 3, 1, 2])
    renamed = torch.argsort(order)[sample]
    torch.testing.assert_close(subs_log_probs(logits[..., order], renamed, 1), log_probs[..., order])


def test_half_precision_is_raised_and_gradients_are_finite() -> None:
    logits = torch.randn(1, 4, 5, dtype=torch.bfloat16).requires_grad_()
    sample, clean = torch.tensor([[4, 1, 4, 2]]), torch.tensor([[0, 1, 3, 2]])
    bound = nelbo(logits, sample, clean, torch.tensor([0.5]), 4)
    assert bound.dtype == subs_log_probs(logits, sample, 4).dtype == torch.float32
    bound.sum().backward()
    assert logits.grad.isfinite().all()
    assert torch.equal(logits.grad[0].abs().sum(-1) > 0, sample[0] == 4)
    assert not logits.grad[..., 4].any()
