"""`pipe.log_likelihood` against plain loops over the model: texts, ids, batches, guidance, blocks, times, refusals."""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_llada
import torch
from block_models import BLOCK, open_family
from diffusers import FirstBlockCacheConfig
from golden_data import cases
from small_models import MASK, save_bert
from text_replay import open_pipeline
from tiny_weights import draw_weights
from torch import Tensor

from hf_maskdiff import (
    AncestralScheduler,
    DualCacheConfig,
    MaskedDiffusionTextPipeline,
    MDLMPipeline,
    MDLMTransformer,
    PartialCacheConfig,
)
from hf_maskdiff.likelihood import (
    AllMasks,
    Chain,
    Independent,
    LLaDACounts,
    Nelbo,
    Patterns,
    PseudoLikelihood,
    Sobol,
    published_counts,
)
from hf_maskdiff.likelihood.patterns import of_counts


@pytest.fixture(scope="module")
def llada(tmp_path_factory: pytest.TempPathFactory) -> MaskedDiffusionTextPipeline:
    pipe = MaskedDiffusionTextPipeline.from_pretrained(tiny_llada.write(tmp_path_factory.mktemp("llada")))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> MaskedDiffusionTextPipeline:
    pipe = MaskedDiffusionTextPipeline.from_pretrained(save_bert(tmp_path_factory.mktemp("bert")))
    draw_weights(pipe.transformer, bias=0.1)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def log_prob(pipe: MaskedDiffusionTextPipeline, ids: Tensor, place: int, token: int, scale: float, own: slice) -> float:
    """Of one token, from whole passes over one sequence, in which the prompt is what does not lie in `own`."""
    with torch.no_grad():
        logits = pipe.denoiser(ids[None], 1.0)[0, place].double()
        if scale != 1:
            without = ids.clone()
            without[: own.start] = pipe.mask_token_id
            logits = logits * scale + (1 - scale) * pipe.denoiser(without[None], 1.0)[0, place].double()
    logits[pipe.mask_token_id] = -torch.inf
    return float(logits.log_softmax(-1)[token])


def chain(pipe: MaskedDiffusionTextPipeline, ids: list[int], own: slice, order: Any, scale: float = 1.0) -> float:
    tokens, total = torch.tensor(ids), 0.0
    sample = tokens.clone()
    sample[own] = pipe.mask_token_id
    for index in order:
        place = own.start + index
        total += log_prob(pipe, sample, place, ids[place], scale, own)
        sample[place] = ids[place]
    return total


# --- texts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_texts_of_any_lengths_are_what_a_loop_finds(llada: MaskedDiffusionTextPipeline, scale: float) -> None:
    pairs = [("The sky is", " blue"), ("Why", "? Because"), ("", "x"), ("a much longer prompt than those", "!")]
    prompts, continuations = zip(*pairs, strict=True)
    found = llada.log_likelihood(list(prompts), list(continuations), 1, Chain(), guidance_scale=scale, batch_size=5)
    encoded = [(list(prompt.encode()), list((prompt + text).encode())) for prompt, text in pairs]
    assert found.num_tokens.tolist() == [len(whole) - len(before) for before, whole in encoded]
    for row, (prompt, text) in enumerate(pairs):
        ids = llada.tokenizer(prompt + text).input_ids
        own = slice(len(llada.tokenizer(prompt).input_ids), len(ids))
        expected = chain(llada, ids, own, range(own.stop - own.start), scale)
        assert found.log_likelihoods[row].item() == pytest.approx(expected, abs=2e-4)
        assert found.token_log_likelihoods[row].sum().item() == pytest.approx(expected, abs=2e-4)
    assert found.standard_errors.tolist() == [0] * 4
    assert found.num_model_passes == found.num_tokens.tolist()


def test_special_tokens_behind_a_text_stay_behind_its_continuation(tmp_path: Path) -> None:
    from tokenizers import processors

    pipe = MaskedDiffusionTextPipeline.from_pretrained(save_bert(tmp_path))
    draw_weights(pipe.transformer, bias=0.1)
    pipe.set_progress_bar_config(disable=True)
    pipe.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="w1 $A w2", special_tokens=[("w1", 1), ("w2", 2)]
    )
    from tokenizers.pre_tokenizers import Whitespace

    pipe.tokenizer.backend_tokenizer.pre_tokenizer = Whitespace()
    (found,) = pipe.log_likelihood("w7 w8", "w9 w10", 1, Chain([1, 0])).log_likelihoods.tolist()
    assert found == pytest.approx(chain(pipe, [1, 7, 8, 9, 10, 2], slice(3, 5), [1, 0]), abs=1e-4)


def test_one_prompt_for_many_and_a_chat(llada: MaskedDiffusionTextPipeline) -> None:
    many = llada.log_likelihood("Why", [" not", " so", "?"], 1, Chain()).log_likelihoods
    each = [llada.log_likelihood(["Why"], text, 1, Chain()).log_likelihoods[0] for text in (" not", " so", "?")]
    torch.testing.assert_close(many, torch.stack(each), atol=1e-4, rtol=0)
    chat = [{"role": "user", "content": "Why?"}]
    text = llada.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    ids, more = (llada.tokenizer(part, add_special_tokens=False).input_ids for part in (text, "So."))
    expected = chain(llada, ids + more, slice(len(ids), len(ids) + len(more)), range(len(more)))
    assert llada.log_likelihood(chat, "So.", 1, Chain()).log_likelihoods[0].item() == pytest.approx(expected, abs=1e-4)


def test_a_space_at_the_end_of_a_prompt_belongs_to_the_word_behind_it() -> None:
    from hf_maskdiff.pipelines.likelihood_pairs import encode_pair

    pipe = MDLMPipeline.from_pretrained("pipelines/mdlm-shakespeare")
    encoder, tokenize = pipe._encoder(), lambda text: pipe.tokenizer(text).input_ids
    for prompt, text in (("ROMEO:\nWhat", " light"), ("ROMEO:\nWhat ", "light"), ("What lig", "ht"), ("So", "\n\nMy")):
        encoded, own = encode_pair(encoder, prompt, text)
        assert pipe.tokenizer.decode(encoded.ids) == prompt + text
        assert own.stop == len(encoded.ids) > own.start > 0
    spaced, own = encode_pair(encoder, "ROMEO:\nWhat ", "light")
    assert spaced.ids.tolist() == tokenize("ROMEO:\nWhat light")
    assert pipe.tokenizer.decode(spaced.ids[own]) == " light"
    # Where words are cut elsewhere, each is encoded by itself: nothing of the continuation is lost.
    cut, own = encode_pair(encoder, "What lig", "ht")
    assert (pipe.tokenizer.decode(cut.ids[own]), tokenize("What lig")) == ("ht", cut.ids[: own.start].tolist())


def test_an_unknown_word_takes_nothing_of_a_continuation_in() -> None:
    """The tokenizer would make one unknown word of the prompt's end and the continuation's beginning."""
    from test_masked_diffusion_text import make_pipeline

    pipe = make_pipeline()
    glued, apart = (pipe.log_likelihood("w9 what", text, estimator=Chain()) for text in ("w7 w8", " w7 w8"))
    assert glued.num_tokens.tolist() == apart.num_tokens.tolist() == [2]
    assert torch.equal(glued.log_likelihoods, apart.log_likelihoods)


# --- ids --------------------------------------------------------------------------------------------------------------


def test_places_inside_a_text(bert: MaskedDiffusionTextPipeline) -> None:
    ids = torch.tensor([[5, 6, 7, 8, 9, 10], [0, 0, 11, 12, 13, 14]])
    mask = torch.tensor([[0, 1, 0, 1, 1, 0], [0, 0, 0, 1, 0, 0]]).bool()
    real = torch.tensor([[1] * 6, [0, 0, 1, 1, 1, 1]])
    found = bert.log_likelihood(input_ids=ids, mask=mask, attention_mask=real, estimator=PseudoLikelihood())
    for row, places in ((0, [1, 3, 4]), (1, [1])):
        known = ids[row][real[row].bool()]
        for place, value in zip(places, found.token_log_likelihoods[row].tolist(), strict=True):
            sample = known.clone()
            sample[place] = MASK
            expected = log_prob(bert, sample, place, int(known[place]), 1.0, slice(0, 0))
            assert value == pytest.approx(expected, abs=1e-4)
    assert found.num_model_passes == [3, 1]


def test_a_text_of_its_own_generator_has_the_same_result_in_any_batch(bert: MaskedDiffusionTextPipeline) -> None:
    ids = torch.randint(5, 40, (4, 9), generator=torch.Generator().manual_seed(0)).tolist()
    rows = [row[:length] for row, length in zip(ids, (9, 4, 7, 9), strict=True)]
    masks = [[False] * 2 + [True] * (len(row) - 2) for row in rows]

    def score(which: list[int], batch_size: int) -> Tensor:
        own = [torch.Generator().manual_seed(row) for row in which]
        given = {"input_ids": [rows[row] for row in which], "mask": [masks[row] for row in which]}
        return bert.log_likelihood(**given, num_samples=32, generator=own, batch_size=batch_size).log_likelihoods

    whole = score([0, 1, 2, 3], 16)
    torch.testing.assert_close(score([3, 1], 3), whole[[3, 1]], atol=1e-4, rtol=0)
    torch.testing.assert_close(score([2], 100), whole[[2]], atol=1e-4, rtol=0)
    one = {"input_ids": rows, "mask": masks, "num_samples": 32}
    seeded = [bert.log_likelihood(**one, generator=torch.Generator().manual_seed(1)).log_likelihoods for _ in range(2)]
    assert torch.equal(*seeded)
    assert not torch.equal(seeded[0], whole)


def test_random_masks_agree_with_all_masks(bert: MaskedDiffusionTextPipeline) -> None:
    given = {"input_ids": [[5, 6, 7, 8, 9, 10, 11]], "mask": [[False, True, True, True, False, True, True]]}
    exact = bert.log_likelihood(**given, estimator=AllMasks())
    assert exact.num_model_passes == [31]
    for estimator in (None, Independent()):
        drawn = bert.log_likelihood(
            **given, num_samples=2048, estimator=estimator, generator=torch.Generator().manual_seed(0)
        )
        off, error = drawn.log_likelihoods - exact.log_likelihoods, drawn.standard_errors
        assert off.abs().item() < 3 * error.item() < 0.1 * exact.log_likelihoods.abs().item()
    alone = bert.log_likelihood(**given, num_samples=16, estimator=Sobol(16))
    assert math.isnan(alone.standard_errors.item())


# --- LLaDA's own program ----------------------------------------------------------------------------------------------


class Recorded(LLaDACounts):
    """Masks that another program has drawn, bool `(num_samples, n)`."""

    def __init__(self, masks: Tensor) -> None:
        super().__init__(4)
        object.__setattr__(self, "masks", masks)

    def patterns(self, num_tokens: int, num_samples: int, generator: torch.Generator) -> Patterns:
        ranks = (~self.masks).long().argsort(dim=-1, stable=True).argsort(-1)  # masked tokens first
        return of_counts(self.masks.sum(-1), ranks)


def as_published(
    pipe: MaskedDiffusionTextPipeline, ids: Tensor, num_known: int, num_samples: int, size: int, scale: float
) -> tuple[float, Tensor]:
    """The estimate as its authors describe it, written down anew, with what it draws."""
    length = len(ids) - num_known
    losses, drawn = [], []
    for _ in range(num_samples // size):
        start = int(torch.randint(1, length + 1, ()))
        counts = published_counts(start, length, size)
        chosen = torch.zeros(size, length, dtype=torch.bool)
        for row, count in enumerate(counts.tolist()):
            chosen[row, torch.randperm(length)[:count]] = True
        whole = torch.cat([torch.zeros(size, num_known, dtype=torch.bool), chosen], 1)
        sample = torch.where(whole, pipe.mask_token_id, ids)
        with torch.no_grad():
            logits = pipe.denoiser(sample)
            if scale:
                hidden = sample.clone()
                hidden[:, :num_known] = pipe.mask_token_id
                without = pipe.denoiser(hidden)
                logits = without + (scale + 1) * (logits - without)
        share = (counts / length)[:, None].expand_as(whole)
        cross_entropy = torch.nn.functional.cross_entropy(logits[whole], ids.expand_as(sample)[whole], reduction="none")
        losses.append(float((cross_entropy / share[whole]).sum()) / size)
        drawn.append(chosen)
    return -sum(losses) / len(losses), torch.cat(drawn)


@pytest.mark.parametrize("scale", [0.0, 1.5])
@pytest.mark.parametrize("folder", cases("llada/*", lambda path: path.is_dir()))
def test_the_published_estimate_from_its_own_draws(folder: Path, scale: float) -> None:
    pipe = open_pipeline(folder)
    torch.manual_seed(0)
    known = torch.randint(8, 30, (9,))
    expected, masks = as_published(pipe, known, 4, 32, 4, scale)
    found = pipe.log_likelihood(
        input_ids=known[None],
        mask=(torch.arange(9) >= 4)[None],
        num_samples=32,
        estimator=Recorded(masks),
        guidance_scale=scale + 1,
        mask_counts=True,
    )
    assert found.log_likelihoods.item() == pytest.approx(expected, rel=1e-5)
    others = pipe.log_likelihood(input_ids=known[None], mask=(torch.arange(9) >= 4)[None], num_samples=32)
    assert others.log_likelihoods.item() != pytest.approx(expected, rel=1e-3)


# --- models that see blocks, and models that are told the time --------------------------------------------------------


@pytest.mark.parametrize("start", ["start", "prompt"])
@pytest.mark.parametrize("name", ["sdar", "fast_dllm", "bd3lm"])
def test_blocks_are_exact_with_the_cache_and_without(name: str, start: str, tmp_path: Path) -> None:
    pipe = open_family(name, tmp_path / "model", blocks_from=start)
    ids = torch.randint(5, 38, (2, 14), generator=torch.Generator().manual_seed(1)).tolist()
    rows, lengths = [ids[0], ids[1][:9]], (6, 3)
    masks = [[place >= known for place in range(len(row))] for row, known in zip(rows, lengths, strict=True)]

    def score(scale: float = 1.0) -> Tensor:
        given = {"input_ids": rows, "mask": masks, "guidance_scale": scale, "batch_size": 3}
        return pipe.log_likelihood(**given, estimator=Chain()).log_likelihoods

    assert pipe.denoiser.plan is not None
    cached = [score(), score(2.0)]
    pipe.disable_cache()
    plain = [score(), score(2.0)]
    torch.testing.assert_close(cached[0], plain[0], atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(cached[1], plain[1], atol=1e-3, rtol=1e-4)
    # By hand: each token from a pass that ends with its block, all before it known.
    for row, known, value in zip(rows, lengths, plain[0].tolist(), strict=True):
        offset, total = (-known % BLOCK if start == "prompt" else 0), 0.0
        for place in range(known, len(row)):
            end = min(((place + offset) // BLOCK + 1) * BLOCK - offset, len(row))
            sample = torch.tensor(row[:place] + [pipe.mask_token_id] * (end - place))[None]
            with torch.no_grad():
                logits = pipe.denoiser(sample, 1.0, offsets=torch.tensor([offset]))[0, place].double()
            logits[pipe.mask_token_id] = -torch.inf
            total += float(logits.log_softmax(-1)[row[place]])
        assert value == pytest.approx(total, abs=1e-3)


def test_a_model_that_is_told_the_time() -> None:
    """The bound by quadrature over the time, of all masks; the words of a text of three."""
    pipe = MDLMPipeline.from_pretrained("pipelines/mdlm-shakespeare")
    torch.manual_seed(0)
    model = MDLMTransformer(
        vocab_size=1026, model_length=8, hidden_dim=16, cond_dim=8, n_blocks=1, n_heads=2, time_conditioning=True
    )
    draw_weights(model)
    told = MDLMPipeline(pipe.tokenizer, model.eval(), AncestralScheduler(mask_token_id=1025, codebook_size=1025))
    told.set_progress_bar_config(disable=True)
    ids = torch.tensor([5, 100, 200, 300])
    nodes, weights = np.polynomial.legendre.leggauss(12)
    expected = 0.0
    for t, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
        for masked in product([False, True], repeat=3):
            probability = t ** sum(masked) * (1 - t) ** (3 - sum(masked))
            sample = ids.masked_fill(torch.tensor([False, *masked]), 1025)
            with torch.no_grad():
                logits = model(sample[None], float(t)).logits[0, 1:].double()
            logits[:, 1025] = -torch.inf
            own = logits.log_softmax(-1).gather(-1, ids[1:, None])[:, 0]
            expected += weight * probability * float(own[torch.tensor(masked)].sum()) / t
    given = {"input_ids": ids[None], "mask": torch.tensor([[False, True, True, True]])}
    found = told.log_likelihood(
        **given, num_samples=2048, estimator=Nelbo(), batch_size=256, generator=torch.Generator().manual_seed(0)
    )
    assert abs(found.log_likelihoods.item() - expected) < 3 * found.standard_errors.item() < 0.08 * abs(expected)
    assert found.num_model_passes[0] > 1500  # the same mask at another time is another pass


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "`continuations` must be a string or a list of them, none empty, got None"),
        ({"continuations": ""}, "`continuations` must be a string .* none empty, got ''"),
        ({"prompts": ["w5"] * 2, "continuations": ["w6"] * 3}, "one for each of the 3 continuations, got 2"),
        ({"prompts": 5, "continuations": "w6"}, "`prompts` must be a string, a chat .* got 5"),
        ({"prompts": "w5 [MASK]", "continuations": "w6"}, "must hold no masks, got some"),
        ({"continuations": "w6", "num_samples": 20}, "`num_samples` must be a multiple of 16, .* got 20"),
        ({"continuations": "w6", "num_samples": 0}, "`num_samples` must be an integer of at least 1, got 0"),
        ({"continuations": "w6", "batch_size": 0}, "`batch_size` must be an integer of at least 1, got 0"),
        (
            {"continuations": "w6", "estimator": "chain"},
            "`estimator` must be one of .*likelihood, got 'chain'",
        ),
        ({"continuations": "w6", "guidance_scale": (1, 2)}, "`guidance_scale` must be one number for a likelihood"),
        ({"continuations": "w6", "generator": [torch.Generator()] * 2}, "one per row, got 2 for a batch of 1"),
        ({"continuations": "w6", "mask": [[True]]}, "`mask` must come with `input_ids`, got it alone"),
        ({"input_ids": [[5, 6]]}, "`input_ids` must come with a `mask` and without texts"),
        ({"input_ids": [[5, 6]], "mask": [[False, False]]}, "`mask` at least one True in each row, got 0 masks and 0"),
        ({"input_ids": [[5, MASK]], "mask": [[True, False]]}, "`input_ids` must hold no masks, .* got 1 masks"),
        ({"input_ids": [[5] * 40], "mask": [[True] * 40]}, "must fit the model's length 32, got one of 40 tokens"),
        ({"input_ids": [[5, 6]], "mask": [[True, False]], "estimator": Chain([1, 0])}, r"each of 0 \.\. 0 once"),
    ],
)
def test_errors(given: dict[str, Any], message: str, bert: MaskedDiffusionTextPipeline) -> None:
    with pytest.raises(ValueError, match=message):
        bert.log_likelihood(**given)


def test_a_cache_that_is_not_exact_is_refused(bert: MaskedDiffusionTextPipeline) -> None:
    given = {"input_ids": [[5, 6, 7]], "mask": [[False, True, True]], "estimator": Chain()}
    plain = bert.log_likelihood(**given).log_likelihoods
    bert.enable_cache(DualCacheConfig())
    with pytest.raises(ValueError, match=r"needs exact passes, .* got DualCacheConfig. Call `pipe.disable_cache\(\)`"):
        bert.log_likelihood(**given)
    bert.enable_cache(PartialCacheConfig(num_substeps=2))  # which has no part in whole passes
    assert torch.equal(bert.log_likelihood(**given).log_likelihoods, plain)
    bert.disable_cache()


def test_diffusers_caches_are_refused_too() -> None:
    pipe = MDLMPipeline.from_pretrained("pipelines/mdlm-shakespeare")
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=1e9))
    with pytest.raises(ValueError, match=r"needs exact passes, .* got diffusers' cache"):
        pipe.log_likelihood("ROMEO:", " What", estimator=Chain())
    pipe.transformer.disable_cache()
    pipe.transformer.enable_cache(PartialCacheConfig(num_substeps=2))  # of this package, at the model
    held = pipe.log_likelihood("ROMEO:", " What light", estimator=Chain()).log_likelihoods
    pipe.transformer.disable_cache()
    assert torch.equal(pipe.log_likelihood("ROMEO:", " What light", estimator=Chain()).log_likelihoods, held)
