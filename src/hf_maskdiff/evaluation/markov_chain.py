"""A data distribution with known conditionals, an inhomogeneous Markov chain, to test samplers without model error."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor


@dataclass(frozen=True)
class MarkovChain:
    """Gives the exact marginals of masked positions for any mask pattern, so that all error is the sampler's.

    Token i depends on token i - 1 by a transition matrix of its position. The known tokens of a partly masked sequence
    are evidence: the forward-backward recursions give `p(x_i | known tokens)` and the probability of the known tokens.

    ```python
    chain = MarkovChain.random(length=64, num_states=8)
    logits = chain(torch.full((4, 64), 8))  # everything masked: the marginals, (4, 64, 8)
    chain.log_evidence(sample)              # log p(the tokens that are not masked), (4,)
    ```

    Args:
        initial: probabilities of the first token, float64 `(V,)`.
        transitions: probabilities of token i + 1 given token i, float64 `(L - 1, V, V)`; each row sums to 1.
    """

    initial: Tensor
    transitions: Tensor

    @classmethod
    def random(cls, length: int = 64, num_states: int = 8, sharpness: float = 2.0, seed: int = 0) -> MarkovChain:
        """A random chain: softmaxes of normal numbers times `sharpness`; the larger this is, the more predictable."""
        generator = torch.Generator().manual_seed(seed)
        shape = (length, num_states, num_states)
        weights = torch.softmax(sharpness * torch.randn(shape, generator=generator, dtype=torch.float64), -1)
        return cls(weights[0, 0], weights[1:])

    @property
    def length(self) -> int:
        return len(self.transitions) + 1

    @property
    def mask_token_id(self) -> int:
        """V, the id after the last token."""
        return len(self.initial)

    def __call__(self, sample: Tensor) -> Tensor:
        """`log p(x_i | the tokens that are not masked)`, float64 `(batch_size, L, V)`; exact at known positions too.

        Args:
            sample: int64 `(batch_size, L)`, with `mask_token_id` at masked positions.

        Raises:
            ValueError: the sample has another length, or holds other tokens.
        """
        forward, _ = self._forward(sample)
        evidence = self._evidence(sample)
        backward = torch.ones_like(forward)
        for i in range(self.length - 2, -1, -1):
            message = (backward[:, i + 1] * evidence[:, i + 1]) @ self.transitions[i].T
            backward[:, i] = message / message.sum(-1, keepdim=True)
        marginals = forward * backward
        return (marginals / marginals.sum(-1, keepdim=True)).log()

    def log_evidence(self, sample: Tensor) -> Tensor:
        """Log-probability of the known tokens, float64 `(batch_size,)`; without masks this is the log-likelihood."""
        return self._forward(sample)[1]

    def draw(self, num_samples: int, seed: int = 0) -> Tensor:
        """Draw sequences from the chain itself, int64 `(num_samples, L)`."""
        generator = torch.Generator().manual_seed(seed)
        tokens = [torch.multinomial(self.initial, num_samples, True, generator=generator)]
        for step in self.transitions:
            tokens.append(torch.multinomial(step[tokens[-1]], 1, generator=generator)[:, 0])
        return torch.stack(tokens, 1)

    def pair_probabilities(self) -> Tensor:
        """`p(x_i, x_{i + 1})`, float64 `(L - 1, V, V)`."""
        marginal, pairs = self.initial, []
        for step in self.transitions:
            pairs.append(marginal[:, None] * step)
            marginal = marginal @ step
        return torch.stack(pairs)

    def _evidence(self, sample: Tensor) -> Tensor:
        """1 for the tokens that a position may hold, 0 for all others, float64 `(batch_size, L, V)`."""
        if (
            sample.ndim != 2
            or sample.shape[1] != self.length
            or not bool(((sample >= 0) & (sample <= self.mask_token_id)).all())
        ):
            raise ValueError(
                f"`sample` must hold tokens 0 .. {self.mask_token_id}, the last for the mask, of shape (batch_size, "
                f"{self.length}), got {tuple(sample.shape)}. Start from `torch.full((n, {self.length}), "
                f"{self.mask_token_id})`."
            )
        known = torch.nn.functional.one_hot(sample, self.mask_token_id + 1)[..., :-1]
        return torch.where((sample == self.mask_token_id)[..., None], 1, known).double()

    def _forward(self, sample: Tensor) -> tuple[Tensor, Tensor]:
        """`p(x_i | the known tokens up to i)`, `(batch_size, L, V)`, and the log-probability of all known tokens."""
        evidence, message = self._evidence(sample), self.initial.expand(len(sample), -1)
        messages, log_evidence = [], torch.zeros(len(sample), dtype=torch.float64)
        for i in range(self.length):
            message = message * evidence[:, i]
            mass = message.sum(-1, keepdim=True)
            log_evidence += mass[:, 0].log()
            message = message / mass
            messages.append(message)
            if i < self.length - 1:
                message = message @ self.transitions[i]
        return torch.stack(messages, 1), log_evidence


class ChainDenoiser:
    """Runs a chain under `denoise` with any scheduler, with or without partial caching, and records the samples.

    `path_divergence` evaluates these. The chain's partial passes take every drawn token into account: a transformer's
    partial passes approximate this.

    ```python
    denoiser = ChainDenoiser(chain)
    scheduler.set_timesteps(8)
    start = denoiser.start(1000)
    sample = denoise(denoiser, scheduler, start, progress_bar=tqdm, on_step_end=lambda i, t, sample: sample)
    ```

    Args:
        path: the samples given to each pass, int64 `(batch_size, L)`; with R groups there are R per step. The final
            sample is not among them: it is what `denoise` returns.
        steps: the step of each of these samples, counted from 0.
    """

    def __init__(self, chain: MarkovChain) -> None:
        self.chain = chain
        self.path: list[Tensor] = []
        self.steps: list[int] = []

    def start(self, batch_size: int) -> Tensor:
        """Fully masked sequences, int64 `(batch_size, L)`."""
        return torch.full((batch_size, self.chain.length), self.chain.mask_token_id)

    def __call__(self, sample: Tensor, t: Tensor, rows: slice, positions: Tensor | None = None) -> Tensor:
        step = self.steps[-1] if self.steps else -1
        self.steps.append(step + (positions is None))
        if positions is None:
            self.path.append(sample)
            return self.chain(sample)
        places = torch.where(positions < 0, ~positions, positions)
        whole = self.path[-1].scatter(1, places, sample)
        self.path.append(whole)
        logits = self.chain(whole)
        return logits.gather(1, places[..., None].expand(-1, -1, logits.shape[-1]))


def bigram_divergence(samples: Tensor, chain: MarkovChain) -> Tensor:
    """KL divergence of the samples' adjacent pairs from the chain's, in nats, mean over L - 1 places; float64 scalar.

    Counts of n samples are noisy: even for samples of the chain itself the result is near `(V^2 - 1) / (2 n)`. This
    bias is not subtracted.

    Args:
        samples: int64 `(num_samples, L)`, no masks.
    """
    size = chain.mask_token_id
    pairs = samples[:, :-1] * size + samples[:, 1:]
    counts = torch.nn.functional.one_hot(pairs, size * size).double().mean(0)
    true = chain.pair_probabilities().flatten(1)
    return torch.where(counts > 0, counts * (counts / true).log(), 0.0).sum(-1).mean()


@dataclass(frozen=True)
class PathDivergence:
    """The two errors of each run, in nats, float64 `(batch_size,)` each; their means over runs are KL divergences.

    `total = tempering + dependence` is a log-ratio summed over the steps: the probability with which a step drew its
    tokens, over their probability under the chain, both given all earlier tokens.

    Args:
        tempering: the part due to temperature: the probability of the draw over the product of the exact marginals; 0
            without a temperature.
        dependence: the part due to independent draws: the product of the exact marginals over the joint probability; 0
            if one token is drawn at a time.
    """

    tempering: Tensor
    dependence: Tensor

    @property
    def total(self) -> Tensor:
        return self.tempering + self.dependence


def path_divergence(chain: MarkovChain, path: list[Tensor], betas: list[Tensor] | None = None) -> PathDivergence:
    """The two errors along sampled runs, for samplers whose choice of positions in a step ignores the step's tokens.

    Args:
        path: the samples before the first step, after it, after the second and so on, int64 `(batch_size, L)` each.
        betas: inverse temperature of each step's draws, float64 `(batch_size,)` each; None if it is always 1.
    """
    zero = torch.zeros(len(path[0]), dtype=torch.float64)
    tempering, dependence = zero, zero
    for n, (before, after) in enumerate(pairwise(path)):
        new = before != after
        logits = chain(before)
        tokens = after.clamp(max=chain.mask_token_id - 1)[..., None]
        product = torch.where(new, logits.gather(-1, tokens)[..., 0], 0.0).sum(-1)
        if betas is not None:
            tempered = torch.log_softmax(logits * betas[n][:, None, None], -1).gather(-1, tokens)[..., 0]
            tempering = tempering + torch.where(new, tempered, 0.0).sum(-1) - product
        dependence = dependence + product - (chain.log_evidence(after) - chain.log_evidence(before))
    return PathDivergence(tempering, dependence)
