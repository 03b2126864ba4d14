"""What happens to logits before a scheduler reads them: which processors are taken, and that they do what they say."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from test_masked_diffusion_text import MASK, VOCAB, make_pipeline, seeds
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from hf_maskdiff import (
    ConfidenceScheduler,
    DualCacheConfig,
    MaskedDiffusionTextPipeline,
    MaskGITScheduler,
    MomentScheduler,
    PartialCacheConfig,
    UniformScheduler,
)
from hf_maskdiff.pipelines.logits_rules import LogitsRules, check_processor

PROMPTS = ["w7 w8", "w9 w10 w11 w12 w13 w14"]
BANNED = [5, 15, 16, 17, 18]


class Record(LogitsProcessor):
    """Keeps what it is called with."""

    order_free = True

    def __init__(self) -> None:
        self.calls: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.calls.append((input_ids.clone(), scores.clone()))
        return scores


@pytest.fixture(scope="module")
def pipe() -> MaskedDiffusionTextPipeline:
    pipe = make_pipeline("bert")
    pipe.scheduler = ConfidenceScheduler(mask_token_id=MASK, masking_schedule="linear", token_temperature=0)
    return pipe


def written(pipe: MaskedDiffusionTextPipeline, prompts: Any = PROMPTS, **call: Any) -> list[list[int]]:
    call = {"num_inference_steps": 4, "max_new_tokens": 9, "stop_at_eos": False} | call
    return [ids.tolist() for ids in pipe(prompts, **call).sequences]


# --- what they do -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
def test_a_penalty_is_that_of_transformers_at_every_masked_position(
    pipe: MaskedDiffusionTextPipeline, guidance_scale: float
) -> None:
    """Against a loop over each row alone, with the processor of transformers and every token that is known."""
    plain = written(pipe, guidance_scale=guidance_scale)
    penalty = RepetitionPenaltyLogitsProcessor(3.0)
    found = written(pipe, guidance_scale=guidance_scale, repetition_penalty=3.0)
    assert found == written(pipe, guidance_scale=guidance_scale, logits_processor=[penalty])
    assert found != plain
    for row, prompt in enumerate(pipe.prepare_sequences(PROMPTS, None, None, 9, None)):
        sample, hidden = prompt.ids[None], (prompt.ids != MASK)[None] & prompt.is_text()
        pipe.scheduler.set_timesteps(4)
        ratio = (sample == MASK).double().mean(1)
        for t in pipe.scheduler.timesteps:
            with torch.no_grad():
                logits = pipe.denoiser(sample)
                if guidance_scale != 1:
                    without = pipe.denoiser(sample.masked_fill(hidden, MASK))
                    logits = without.lerp(logits, guidance_scale)
            logits = penalty(sample.expand(sample.shape[1], -1), logits[0])[None]
            sample = pipe.scheduler.step(logits, t, sample, ratio).prev_sample
        assert found[row] == sample[0].tolist()


@pytest.mark.covering(2)
@pytest.mark.parametrize("scheduler_class", [ConfidenceScheduler, MaskGITScheduler, MomentScheduler, UniformScheduler])
@pytest.mark.parametrize("cache", [None, PartialCacheConfig(num_substeps=3), DualCacheConfig(refresh_every=2)])
@pytest.mark.parametrize("block_length", [None, 3])
def test_banned_tokens_are_never_written(scheduler_class: Any, cache: Any, block_length: int | None) -> None:
    if scheduler_class is MaskGITScheduler and isinstance(cache, PartialCacheConfig):
        return
    pipe = make_pipeline("llama", num_layers=1)
    pipe.scheduler = scheduler_class(mask_token_id=MASK)
    if cache is not None:
        pipe.enable_cache(cache)
    allowed = 8
    call = {"block_length": block_length, "guidance_scale": 1.5, "generator": seeds(0, 1)}
    bans = {"suppress_tokens": range(allowed, 30), "bad_words_ids": [[token] for token in range(30, VOCAB)]}
    new = [ids[-9:] for ids in written(pipe, **call, **bans)]
    assert max(map(max, new)) < allowed
    assert max(max(ids[-9:]) for ids in written(pipe, **call)) >= allowed


def test_what_a_processor_gets(pipe: MaskedDiffusionTextPipeline) -> None:
    """Float32 scores as the model gives them, and the tokens of the row, without what pads the batch."""
    record = Record()
    found = written(pipe, logits_processor=LogitsProcessorList([record]))
    assert found == written(pipe)
    rows = [set(ids) for ids in found]
    (first, scores), *_ = record.calls
    encoded = pipe.prepare_sequences(PROMPTS, None, None, 9, None)
    expected = [set(one.ids.tolist()) for one in encoded]
    assert [set(ids.tolist()) for ids in first] == [one for one in expected for _ in range(9)]
    with torch.no_grad():
        logits = [pipe.denoiser(one.ids[None])[0, one.ids == MASK] for one in encoded]
    given = torch.cat(logits)
    given[:, MASK] = -torch.inf  # which is never drawn
    torch.testing.assert_close(scores, given)
    for ids, scores in record.calls:
        assert scores.dtype == torch.float32
        assert all(any(set(row.tolist()) - {MASK} <= own for own in rows) for row in ids)


@pytest.mark.parametrize("threshold", [0, 1])  # the second group's pass is a full one, or a partial one
def test_later_groups_know_what_earlier_ones_have_drawn(threshold: float) -> None:
    pipe, record = make_pipeline("llama", num_layers=1), Record()
    pipe.enable_cache(PartialCacheConfig(num_substeps=2, full_pass_threshold=threshold))
    (found,) = written(pipe, PROMPTS[:1], num_inference_steps=1, logits_processor=[record], generator=seeds(0))
    (before, _), (after, _) = record.calls
    assert [set(row.tolist()) for row in before] == [{7, 8, MASK}] * 9
    drawn = set(after[0].tolist()) - {7, 8, MASK}
    assert drawn
    assert all(set(row.tolist()) == {7, 8, MASK} | drawn for row in after)
    assert (after[0] == MASK).sum() == 4  # of 9, the first group has drawn 5
    assert drawn <= set(found)


def test_nothing_of_the_model_is_overwritten() -> None:
    logits = torch.randn(2, 3, VOCAB)
    before, ids = logits.clone(), torch.tensor([[7, MASK], [8, MASK]])
    rules = LogitsRules.of_call(None, 2.0, [9], None, MASK, VOCAB)
    assert rules(logits, ids).isneginf().any(-1).all()
    assert torch.equal(logits, before)
    half = rules(logits.bfloat16().transpose(0, 1).contiguous().transpose(0, 1), ids)
    assert half.dtype == torch.bfloat16
    expected = RepetitionPenaltyLogitsProcessor(2.0)(ids[1:], before[1, :1])
    expected[:, [9, MASK]] = -torch.inf
    torch.testing.assert_close(rules(logits, ids)[1, :1], expected, rtol=0, atol=0)
    assert not LogitsRules.of_call(None, 1.0, None, [], MASK, VOCAB)


@pytest.mark.parametrize("processor", [TopKLogitsWarper(3), MinPLogitsWarper(0.5), TopPLogitsWarper(0.5)])
def test_what_is_never_drawn_has_no_share_in_what_processors_count(processor: Any) -> None:
    """Models may find the mask the likeliest of all, and have columns behind the last token."""
    logits, ids = torch.randn(1, 4, VOCAB), torch.tensor([[7, MASK, 8, 9]])
    logits[..., [MASK, VOCAB - 1]] = 20.0
    found = LogitsRules.of_call([processor], 1.0, None, None, MASK, VOCAB, codebook_size=VOCAB - 3)(logits, ids)
    tokens = [token for token in range(VOCAB - 3) if token != MASK]
    expected = processor(ids, logits[0][:, tokens].clone())
    torch.testing.assert_close(found[0][:, tokens], expected, rtol=0, atol=0)
    outside = LogitsRules.of_call([processor], 1.0, None, None, VOCAB, VOCAB)(logits[..., : VOCAB - 1], ids)
    torch.testing.assert_close(outside[0], processor(ids, logits[0][:, : VOCAB - 1].clone()), rtol=0, atol=0)


def test_rules_are_followed_without_a_look_at_values() -> None:
    """On the device that has no values, every look at one is an error."""
    rules = LogitsRules.of_call([TopKLogitsWarper(3)], 2.0, [9], [[7]], MASK, VOCAB)
    ids = torch.zeros(2, 9, dtype=torch.int64, device="meta")
    found = rules(torch.zeros(2, 3, VOCAB, device="meta"), ids, ids == 0)
    assert (found.device.type, found.shape) == ("meta", (2, 3, VOCAB))


def test_the_task_takes_them_too(pipe: MaskedDiffusionTextPipeline) -> None:
    write = transformers.pipeline("masked-diffusion-text-generation", model=pipe)
    call = {"num_inference_steps": 4, "max_new_tokens": 9, "stop_at_eos": False}
    rules = {"suppress_tokens": BANNED, "repetition_penalty": 2.0, "logits_processor": [TopKLogitsWarper(3)]}
    (made,) = write(PROMPTS[0], **call, **rules)
    assert made["generated_text"] == pipe(PROMPTS[0], **call, **rules).texts[0]
    assert made["generated_text"] != pipe(PROMPTS[0], **call).texts[0]


# --- which are taken --------------------------------------------------------------------------------------------------


def test_processors_that_need_an_order_are_refused() -> None:
    """Of all that transformers has, those without one are taken, and are few."""
    kinds = vars(transformers.generation.logits_process).values()
    found = [k for k in kinds if isinstance(k, type) and issubclass(k, LogitsProcessor) and k is not LogitsProcessor]
    refused = set()
    for kind in found:
        processor = kind.__new__(kind)  # their settings do not matter here
        processor.sequence_bias, processor.prompt_ignore_length = {(7,): 1.0}, None
        try:
            check_processor(processor)
        except ValueError as error:
            assert kind.__name__ in str(error)  # noqa: PT017
            refused.add(kind.__name__)
    names = {kind.__name__ for kind in found}
    assert {"NoRepeatNGramLogitsProcessor", "MinLengthLogitsProcessor", "ForcedEOSTokenLogitsProcessor"} <= refused
    assert {"SuppressTokensAtBeginLogitsProcessor", "PrefixConstrainedLogitsProcessor"} <= refused
    assert {"WatermarkLogitsProcessor", "ExponentialDecayLengthPenalty"} <= refused
    taken = {name.removesuffix("LogitsWarper").removesuffix("LogitsProcessor") for name in names - refused}
    common = {"Epsilon", "Eta", "InfNanRemove", "LogitNormalization", "MinP", "NoBadWords", "RepetitionPenalty"}
    common |= {"SequenceBias", "SuppressTokens", "Temperature", "TopK", "TopP", "Typical"}
    assert common <= taken <= common | {"TopH"}


class Another(TopKLogitsWarper):
    """Who calls something else must say what it needs."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores.masked_fill(torch.arange(scores.shape[1]) == input_ids[:, -1:], -torch.inf)


class Alike(TopKLogitsWarper):
    """What inherits a call is what it inherits."""


class Undeclared(Record):
    order_free = False


WITHOUT_ORDER = "must hold processors that read the scores, or `input_ids` as a set, .*, got {}. .* `order_free = True`"
REFUSED = [
    ({"logits_processor": [Another(3)]}, WITHOUT_ORDER.format("Another")),
    ({"logits_processor": [Undeclared()]}, WITHOUT_ORDER.format("Undeclared")),
    ({"logits_processor": [lambda ids, scores: scores]}, WITHOUT_ORDER.format("function")),
    ({"logits_processor": [lambda scores: scores]}, "called with `input_ids` and `scores` alone, got function. Pass"),
    ({"logits_processor": ["top_k"]}, "called with `input_ids` and `scores` alone, got str. Pass"),
    ({"logits_processor": TopKLogitsWarper(3)}, "must be a list of processors, got TopKLogitsWarper. Pass one in"),
    (
        {"logits_processor": [NoBadWordsLogitsProcessor([[7], [8, 9]])]},
        r"sequences of NoBadWordsLogitsProcessor must be of one token each, .*, got \(8, 9\). Name",
    ),
    (
        {"logits_processor": [SequenceBiasLogitsProcessor([[[7, 8, 9], 2.0]])]},
        r"SequenceBiasLogitsProcessor must be of one token each, .*, got \(7, 8, 9\)",
    ),
    (
        {"logits_processor": [RepetitionPenaltyLogitsProcessor(1.2, prompt_ignore_length=3)]},
        "`prompt_ignore_length` of RepetitionPenaltyLogitsProcessor must be None, .*, got 3. Leave",
    ),
    ({"repetition_penalty": 0}, "`repetition_penalty` must be a number above 0, got 0. Pass 1.0"),
    ({"repetition_penalty": "2"}, "`repetition_penalty` must be a number above 0, got '2'"),
    ({"repetition_penalty": float("inf")}, "`repetition_penalty` must be a number above 0, got inf"),
    ({"suppress_tokens": [7, VOCAB]}, r"`suppress_tokens` must be token ids below 40, in lists, got \[7, 40\]. Pass"),
    ({"suppress_tokens": [-1]}, r"`suppress_tokens` must be token ids below 40, in lists, got \[-1\]"),
    ({"suppress_tokens": 7}, "`suppress_tokens` must be token ids below 40, in lists, got 7"),
    ({"suppress_tokens": "w7"}, "`suppress_tokens` must be token ids below 40, in lists, got 'w7'"),
    ({"bad_words_ids": [7]}, "`bad_words_ids` must be token ids below 40, in lists, got 7"),
    ({"bad_words_ids": [[7], [8, 9]]}, r"`bad_words_ids` must be words of one token each, got \[8, 9\]. Tokens of"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED)
def test_what_cannot_work_is_refused_before_a_pass(
    pipe: MaskedDiffusionTextPipeline, arguments: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipe.transformer, "forward", None)
    with pytest.raises(ValueError, match=message):
        pipe(PROMPTS[0], max_new_tokens=4, **arguments)


def test_what_a_processor_says_of_itself_counts(pipe: MaskedDiffusionTextPipeline) -> None:
    def without_scores(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores.index_fill(1, torch.tensor(BANNED), -torch.inf)

    without_scores.order_free = True  # type: ignore[attr-defined]
    found = written(pipe, logits_processor=[without_scores, Alike(5)])
    assert found == written(pipe, suppress_tokens=BANNED, logits_processor=[TopKLogitsWarper(5)])


def test_a_position_without_an_allowed_token_is_an_error(pipe: MaskedDiffusionTextPipeline) -> None:
    with pytest.raises(ValueError, match="must allow a token at every position"):
        pipe(PROMPTS[0], max_new_tokens=4, suppress_tokens=range(VOCAB))
