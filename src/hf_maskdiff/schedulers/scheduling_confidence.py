"""Confidence order: the positions the model is surest of come first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from ..masking import MaskingSchedule
from ..orders import log_calibrated
from ..sampling import Marginals, Purpose
from .checks import ChoiceTemperature, check_token_ids, check_token_prior, is_number, require
from .position_orders import MEASURES, certainty
from .scheduling_choose_then_sample import ChooseThenSampleScheduler
from .step_context import StepContext
from .token_temperature import beta_of, check_token_temperature


class ConfidenceScheduler(ChooseThenSampleScheduler):
    r"""Reveals what the model is surest of first: sharp and greedy, the common choice for language models that reason.

    $$ s_i = c_i + \alpha_n G_i, \qquad c_i = \log \max_x p_i(x), \;\;
       \log (p_{i,(1)} - p_{i,(2)}) \;\; \text{or} \;\; -H(p_i), \qquad x_i \sim p_i $$

    for the measures `"confidence"`, `"margin"` and `"entropy"`. G_i is standard Gumbel noise; without a choice
    temperature there is none. Tokens are drawn from the model's marginals at `token_temperature`, which does not affect
    the order of positions: 0 always takes the most probable token, as LLaDA and Dream do. (`top_k=1` does so too, but
    then all positions are equally certain.) Algorithm 3 of arXiv 2510.04525; the measures are from arXiv 2502.06768.

    Confidence prefers what is frequent everywhere, punctuation and ends of text among it. With a `token_prior` f, the
    frequency of each token in text like that to be written, and a `position_decay` d it is calibrated,

    $$ c_i = \log \min \bigl( \ell, \; -p_i(x) \log f(x) \bigr) - d \, i, \qquad x = \operatorname{argmax} p_i $$

    so that what is sure and says much comes first, and more so at the beginning: i is the index in the row, in a
    pipeline with `block_length` that in the block. This is PC-Sampler, later Uncode (arXiv 2508.13021). Frequencies are
    counted once, on text of your own choice, here with at least one occurrence of each of V tokens:

        counts = torch.bincount(torch.tensor(tokenizer(text).input_ids), minlength=V).clamp(min=1)
        scheduler = ConfidenceScheduler(
            mask_token_id=126336, token_temperature=0, token_prior=counts / counts.sum(), position_decay=0.25
        )

    Example:

        scheduler = ConfidenceScheduler(mask_token_id=50257, measure="entropy", masking_schedule="linear")
        scheduler.set_timesteps(64)
        for t in scheduler.timesteps:
            sample = scheduler.step(model(sample), t, sample).prev_sample

    Args:
        mask_token_id (`int`): id of the mask.
        codebook_size, masking_schedule, rounding, temperature, top_k, top_p, typical_p: see `MaskedDiffusionScheduler`.
        measure (`str`): `"confidence"`, `"margin"` or `"entropy"`.
        choice_temperature (`float` or pair, optional): alpha, the strength of the noise in the order; None for no
            noise; a pair (start, end) changes linearly over the steps.
        token_temperature (`float`): temperature of the draws, applied after `temperature`, `top_k` and `top_p`; 0 is
            greedy.
        choice_temperature_schedule (`str`): `"linear"`, `alpha_n = alpha (1 - (n + 1) / T)` as in MaskGIT, or
            `"constant"`.
        min_distance (`int`), num_candidates (`int`), candidate_cost (`float`): see `ChooseThenSampleScheduler`.
        unsure_token_ids (list of `int`, optional): a position at which one of these tokens is the likeliest has a
            certainty of zero, so that it comes last; the token may still be drawn there. For models that would end a
            text before they have written it: the ends of text, as LLaDA's appendix B.4 has it (arXiv 2502.09992).
        token_prior (list of `float` or tensor, optional): f, of every token that may be drawn, in [0, 1]; saved with
            the configuration. Only for the measure `"confidence"`.
        prior_limit (`float`): l, above 0: how much a rare token can count for.
        position_decay (`float`): d, at least 0, in nats per position. Not for `"entropy"`, which is no logarithm.
    """

    @register_to_config
    def __init__(
        self,
        mask_token_id: int,
        codebook_size: int | None = None,
        masking_schedule: MaskingSchedule = "cosine",
        rounding: str = "floor_masked",
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        measure: str = "confidence",
        choice_temperature: ChoiceTemperature | None = None,
        choice_temperature_schedule: str = "linear",
        token_temperature: float = 1.0,
        typical_p: float | None = None,
        min_distance: int = 1,
        unsure_token_ids: Sequence[int] | None = None,
        token_prior: Sequence[float] | Tensor | None = None,
        prior_limit: float = 10.0,
        position_decay: float = 0.0,
        num_candidates: int = 1,
        candidate_cost: float = 1.0,
    ) -> None:
        check_token_temperature(token_temperature)
        check_token_ids("unsure_token_ids", unsure_token_ids)
        require(measure in MEASURES, "measure", f"one of {sorted(MEASURES)}", measure, "Pick one of these.")
        if token_prior is not None:
            check_token_prior(token_prior)
            require(measure == "confidence", "measure", "'confidence' with a `token_prior`", measure, "Leave one out.")
        valid = is_number(prior_limit) and prior_limit > 0
        require(valid, "prior_limit", "a number above 0", prior_limit, "Try 10.0.")
        valid = is_number(position_decay) and 0 <= position_decay < math.inf
        require(valid, "position_decay", "a number of at least 0", position_decay, "Try 0.25, or 0 for none.")
        valid = measure != "entropy" or position_decay == 0
        require(valid, "position_decay", "0 for the measure 'entropy'", position_decay, "Take 'confidence'.")
        self._surprisals: dict[torch.device, Tensor] = {}
        self.check_config()

    def with_sampling_temperature(self, value: float) -> ConfidenceScheduler:
        """A copy that draws tokens at another temperature and keeps the order of positions."""
        return self.from_config(self.config, token_temperature=value)

    def score_positions(self, marginals: Marginals, context: StepContext) -> Tensor:
        config = self.config
        measure = MEASURES[config.measure]
        if config.token_prior is not None:
            surprisal = self._surprisal(marginals.num_tokens, marginals.logits.device)
            measure = partial(log_calibrated, surprisal=surprisal, limit=config.prior_limit)
        sureness = certainty(marginals, context, measure, config.unsure_token_ids)
        if config.position_decay:
            places = torch.arange(context.tokens.shape[1], device=context.keys.device).double()
            sureness = sureness.to(places.device) - config.position_decay * places
        if context.choice_temperature is None:
            return sureness
        return sureness + context.choice_temperature * context.gumbel(Purpose.CHOICE)

    def _surprisal(self, num_tokens: int, device: torch.device) -> Tensor:
        """Minus the logarithm of the prior, float32; kept for each device, as the configuration does not change."""
        prior = self.config.token_prior
        remedy = "Count every token of the model."
        require(len(prior) >= num_tokens, "token_prior", f"one for each of {num_tokens} tokens", len(prior), remedy)
        if device not in self._surprisals:
            surprisal = (torch.tensor(prior, dtype=torch.float32) + 1e-9).log().neg()
            self._surprisals[device] = surprisal.to(device, non_blocking=True)
        return self._surprisals[device]

    def token_beta(self, context: StepContext, num_ranks: int) -> Tensor:
        return beta_of(self.config.token_temperature, context, num_ranks)  # noise affects the order alone
