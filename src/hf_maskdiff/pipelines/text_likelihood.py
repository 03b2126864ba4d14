"""`log_likelihood` of the text pipelines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import unwrap_module
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..denoisers import TextDenoiser
from ..integers import as_integer
from ..likelihood import Estimator, Passes, Patterns, ScoredTokens, Scoring, Sobol, parts_of
from ..sampling import Generators, check_generators, draw_keys
from .checks import check_components, check_count, check_flag, check_guidance_scale
from .likelihood_pairs import as_pairs, encode_pair, scored_rows
from .split_models import generator_of_all
from .text_blocks import PROMPT
from .text_prompts import Prompt, PromptEncoder, check_given, check_tokens


@dataclass
class LogLikelihoodOutput(BaseOutput):
    """Output of `log_likelihood`.

    Args:
        log_likelihoods: of each continuation as a whole, in nats, float64 `(N,)`; divide by `num_tokens` for nats per
            token.
        standard_errors: their sampling errors, float64 `(N,)`; 0 where the estimator is exact, NaN where the samples
            are a single group.
        num_tokens: tokens that were scored, int64 `(N,)`.
        num_model_passes: rows of model passes for each continuation. A mask that was drawn twice is computed once, and
            a guided pass counts once.
        token_log_likelihoods: where the estimator is exact, of each token, float64 `(num_tokens,)` each; else None.
    """

    log_likelihoods: Tensor
    standard_errors: Tensor
    num_tokens: Tensor
    num_model_passes: list[int]
    token_log_likelihoods: list[Tensor] | None


@dataclass(frozen=True)
class _Part:
    """What is scored apart of a text: all of it, or a block.

    Args:
        text: the index of the text.
        tokens: the part.
        places: which of the text's scored tokens are its own, int64 `(n,)`.
        patterns: what is masked of them.
        passes: what is computed for that.
    """

    text: int
    tokens: ScoredTokens
    places: Tensor
    patterns: Patterns
    passes: Passes


class LikelihoodMixin:
    """Gives a text pipeline `log_likelihood`."""

    tokenizer: PreTrainedTokenizerBase
    transformer: Any
    scheduler: Any
    config: Any
    progress_bar: Any
    maybe_free_model_hooks: Any
    _execution_device: Any

    @property
    def denoiser(self) -> TextDenoiser:
        """The model as it is called."""
        raise NotImplementedError

    @property
    def mask_token_id(self) -> int:
        """The token at places that are to be filled in."""
        raise NotImplementedError

    @torch.no_grad()
    def log_likelihood(
        self,
        prompts: Prompt | Sequence[Prompt | None] | None = None,
        continuations: str | Sequence[str] | None = None,
        num_samples: int = 128,
        estimator: Estimator | None = None,
        guidance_scale: float = 1.0,
        batch_size: int = 16,
        generator: Generators = None,
        input_ids: Tensor | Sequence[Any] | None = None,
        mask: Tensor | Sequence[Any] | None = None,
        attention_mask: Tensor | Sequence[Any] | None = None,
        mask_counts: bool = False,
        return_dict: bool = True,
    ) -> LogLikelihoodOutput | tuple:
        r"""
        How likely the model finds continuations of prompts: `log p(continuation | prompt)`, with error bars.

        By default the likelihood of writing a continuation one token at a time in random order, estimated without bias
        from random masks. The scheduler has no part in it. Texts of any lengths share batches.

        Example:

            found = pipe.log_likelihood("The capital of France is", [" Paris", " Rome"], num_samples=64)
            best = int(found.log_likelihoods.argmax())

        Args:
            prompts (`str`, chat, or list of these, *optional*): one, or one for each continuation; None for none.
            continuations (`str` or list): what is scored, behind the prompt.
            num_samples (`int`): random masks of each continuation, a multiple of the estimator's `group_size`; exact
                estimators ignore it.
            estimator ([`~hf_maskdiff.likelihood.Estimator`], *optional*): None for `Sobol()`; `LLaDACounts()` for
                published numbers, `Chain()` for one order exactly, `PseudoLikelihood()` for masked language models,
                `Nelbo()` for models that are told the time.
            guidance_scale (`float`): as in a call of the pipeline; anything but 1 runs the model twice as often.
            batch_size (`int`): rows of a model pass.
            generator (`torch.Generator` or list, *optional*): one, or one for each continuation, whose estimate is then
                independent of the others.
            input_ids (int64 tensor, array or lists, *optional*): `(N, length)` instead of texts, to score any places;
                lists may differ in length.
            mask (bool tensor, *optional*): with `input_ids`, True at the places to score.
            attention_mask (*optional*): with `input_ids`, 0 or False where padded.
            mask_counts (`bool`): whether the mask is among the tokens that share the probability, as LLaDA publishes.
            return_dict (`bool`): return a `LogLikelihoodOutput` rather than a tuple.

        Returns:
            [`LogLikelihoodOutput`] or `tuple` of its fields.

        Raises:
            ValueError: for arguments that cannot work, texts that are too long, or a cache that is not exact, before
                any model call.
        """
        estimator = Sobol() if estimator is None else estimator
        num_samples, batch_size = as_integer(num_samples), as_integer(batch_size)
        self._check_likelihood(estimator, num_samples, guidance_scale, batch_size, mask_counts)
        texts = self._scored_texts(prompts, continuations, input_ids, mask, attention_mask)
        check_generators(generator, len(texts))
        asked = ([text.ids.tolist() for text in texts], num_samples, repr(estimator), guidance_scale, mask_counts)
        generator = generator_of_all(self.transformer, generator, self.scheduler, *asked)
        keys = draw_keys(generator, len(texts), torch.device("cpu")).tolist()
        rule = self.denoiser.rule
        parts = []
        for number, (text, key) in enumerate(zip(texts, keys, strict=True)):
            own = torch.Generator().manual_seed(key)
            for tokens, where in parts_of(text, rule):
                patterns = estimator.patterns(len(where), num_samples, own)
                passes = patterns.passes(self.denoiser.time_conditioning)
                parts.append(_Part(number, tokens, where, patterns, passes))
        found = self._run_passes(parts, guidance_scale, batch_size, mask_counts)
        output = _summed(texts, parts, found, estimator, num_samples)
        return output if return_dict else tuple(vars(output).values())

    def _check_likelihood(
        self, estimator: Estimator, num_samples: int, guidance_scale: float, batch_size: int, mask_counts: bool
    ) -> None:
        check_components({"scheduler": self.scheduler, "transformer": self.transformer})
        check_tokens(self.tokenizer, self.denoiser, self.mask_token_id)
        if not isinstance(estimator, Estimator):
            raise ValueError(
                f"`estimator` must be one of hf_maskdiff.likelihood, got {estimator!r}. Pass for example "
                "`Chain()`, or leave it out."
            )
        check_count("num_samples", num_samples, "Pass how many masks are drawn of each text.")
        check_flag("mask_counts", mask_counts, "Pass True for what LLaDA publishes.")
        check_count("batch_size", batch_size, "Pass the rows of a model pass.")
        check_guidance_scale(guidance_scale)
        if isinstance(guidance_scale, Sequence):
            raise ValueError(
                f"`guidance_scale` must be one number for a likelihood, got {guidance_scale!r}. A text is scored in no "
                "order of steps."
            )
        if not estimator.is_exact:
            estimator.check(num_samples)
        model = unwrap_module(self.transformer)
        others = getattr(model, "is_cache_enabled", False) and getattr(model, "cache_config", None) is None
        if others or (self.denoiser.plan is not None and self.denoiser.rule is None):
            name = "diffusers' cache" if others else type(self.denoiser.plan).__name__
            raise ValueError(
                "a likelihood needs exact passes, and in a model that sees the whole sequence the keys and values of a "
                f"prompt change with what follows it, got {name}. Call `pipe.disable_cache()` first."
            )

    def _scored_texts(
        self, prompts: Any, continuations: Any, input_ids: Any, mask: Any, attention_mask: Any
    ) -> list[ScoredTokens]:
        encoder = PromptEncoder(self.tokenizer, self.mask_token_id, self.denoiser.vocab_size)
        if input_ids is not None:
            if continuations is not None or prompts is not None or mask is None:
                raise ValueError(
                    "`input_ids` must come with a `mask` and without texts, got other arguments. Pass True at the "
                    "places to score."
                )
            rows = scored_rows(encoder, input_ids, mask, attention_mask)
        else:
            check_given(None, None, mask, attention_mask, None)
            rows = []
            for before, continuation in as_pairs(prompts, continuations):
                encoded, own = encode_pair(encoder, before, continuation)
                scored = torch.zeros(len(encoded.ids), dtype=torch.bool)
                scored[own] = True
                rows.append((encoded.ids, scored, encoded.is_text() & ~scored))
        longest, limit = max(len(ids) for ids, _, _ in rows), self.denoiser.model_length
        if limit is not None and longest > limit:
            raise ValueError(
                f"a text to score must fit the model's length {limit}, got one of {longest} tokens. Shorten the prompt."
            )
        rule, from_prompt = self.denoiser.rule, self.config.blocks_from == PROMPT
        texts = []
        for ids, scored, prompt in rows:
            places = scored.nonzero()[:, 0]
            offset = -int(places[0]) % rule.block_size if rule is not None and from_prompt else 0
            texts.append(ScoredTokens(ids, places, prompt, offset))
        return texts

    def _run_passes(
        self, parts: list[_Part], guidance_scale: float, batch_size: int, mask_counts: bool
    ) -> list[Tensor]:
        denoiser = self.denoiser
        self.maybe_free_model_hooks()  # a call that raised has not
        total = sum(len(part.passes) for part in parts)
        with self.progress_bar(total=total) as progress, denoiser.cache_context("cond"):
            scoring = Scoring(
                denoiser,
                self.mask_token_id,
                self._execution_device,
                batch_size,
                guidance_scale,
                mask_counts,
                blocks=None if denoiser.plan is None else denoiser.rule,
                on_pass=progress.update,
            )
            try:
                found = scoring([part.tokens for part in parts], [part.passes for part in parts])
            finally:
                denoiser._reset_stateful_cache()
        self.maybe_free_model_hooks()
        return found


def _summed(
    texts: list[ScoredTokens], parts: list[_Part], found: list[Tensor], estimator: Estimator, num_samples: int
) -> LogLikelihoodOutput:
    """The likelihoods of texts from those of their parts, whose errors are independent."""
    sums, squares = torch.zeros(2, len(texts), dtype=torch.float64)
    passes = [0] * len(texts)
    each = [torch.zeros(len(text.places), dtype=torch.float64) for text in texts]
    for part, log_probs in zip(parts, found, strict=True):
        of_tokens = part.patterns.of_tokens(log_probs, part.passes)
        value, error = estimator.estimate(part.patterns.totals(of_tokens), num_samples)
        sums[part.text] += value
        squares[part.text] += error**2
        passes[part.text] += len(part.passes)
        if estimator.is_exact:
            each[part.text][part.places] = of_tokens.sum(0)
    num_tokens = torch.tensor([len(text.places) for text in texts])
    return LogLikelihoodOutput(sums, squares.sqrt(), num_tokens, passes, each if estimator.is_exact else None)
