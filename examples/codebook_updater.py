"""How the tokenizers and codecs that are trained here learn their codes: by running means, with restarts."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn


class CodebookUpdater(nn.Module):
    """Moves each code to the running mean of the latents that it encodes, and unused codes to latents just seen.

    A codebook trained by gradient uses only a few of its codes. Running means (van den Oord, Vinyals, Kavukcuoglu,
    arXiv 1711.00937, appendix A.1) with restarts (Dhariwal et al., arXiv 2005.00341) use them all. At the first step
    no code is in use, so the codebook starts as a sample of latents.
    """

    def __init__(self, codebook: nn.Embedding, decay: float, min_share: float = 0.03) -> None:
        super().__init__()
        # Held in a tuple, because the codebook is part of the model and not of this module's state.
        self.codebook, self.decay, self.min_share = (codebook,), decay, min_share
        codes = codebook.weight.requires_grad_(False)
        self.register_buffer("counts", torch.zeros(len(codes)))
        self.register_buffer("sums", torch.zeros_like(codes))

    @torch.no_grad()
    def go_on(self, num_latents: int) -> None:
        """Start from the codes as they are, rather than from a sample of latents, of which a step has so many."""
        self.counts.fill_(num_latents / len(self.counts))
        self.sums.copy_(self.codebook[0].weight * self.counts[:, None])

    def remember(self, latents: Tensor, indices: Tensor) -> None:
        """Take the latents `(num_latents, width)` of a forward pass and the codes `(num_latents,)` that they became."""
        self.latents, self.indices = latents.detach().float(), indices

    @torch.no_grad()
    def step(self, accelerator: Accelerator, generator: torch.Generator) -> None:
        """Update the codes from what was remembered last, on all processes together."""
        one_hot = F.one_hot(self.indices, len(self.counts)).to(self.latents.dtype)
        counts = accelerator.reduce(one_hot.sum(0), "sum")
        sums = accelerator.reduce(one_hot.T @ self.latents, "sum")
        self.counts.lerp_(counts, 1 - self.decay)
        self.sums.lerp_(sums, 1 - self.decay)
        # A code is in use if it encodes a fair share of the latents, or at least `min_share` of that.
        fair = counts.sum() / len(counts)
        picks = torch.randint(len(self.latents), (len(counts),), generator=generator, device=self.latents.device)
        candidates = broadcast(self.latents[picks])
        dead = self.counts < self.min_share * fair
        self.counts.copy_(torch.where(dead, fair, self.counts))
        self.sums.copy_(torch.where(dead[:, None], candidates * fair, self.sums))
        self.codebook[0].weight.copy_(self.sums / self.counts[:, None])
