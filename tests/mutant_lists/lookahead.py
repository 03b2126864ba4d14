"""Steps of which several are drawn."""

from __future__ import annotations

from mutant_lists.mutant import Mutant

_MATHEMATICS = "hf_maskdiff/schedulers/looking_ahead.py"
_STEP = "hf_maskdiff/pipelines/looking_ahead.py"
_LAWS = "tests/test_lookahead_laws.py"
_ENUMERATED = f"{_LAWS}::test_candidates_scores_and_choice_are_those_of_enumeration"
_RUNS = f"{_LAWS}::test_three_steps_have_the_law_of_enumeration"
_PIPELINES = "tests/pipelines/test_looking_ahead.py"
_AGAIN = f"{_PIPELINES}::test_a_pass_is_used_again_only_where_nothing_has_changed"

MUTANTS = [
    Mutant(
        "seen-with-the-guidance-before",
        "logits of a pass before a callback are read although it has changed their guidance",
        _STEP,
        " and guidance_of(self.denoiser) == self._guidance",
        "",
        (f"{_PIPELINES}::test_guidance_that_a_callback_changes_holds_from_the_next_step_on",),
    ),
    Mutant(
        "kept-with-the-guidance-before",
        "a row in which nothing was revealed keeps its logits although a callback has changed their guidance",
        "hf_maskdiff/pipelines/denoising.py",
        "if guidance_of(denoiser) != guidance:",
        "if False:",
        (f"{_PIPELINES}::test_guidance_that_a_callback_changes_holds_where_a_step_has_revealed_nothing",),
    ),
    Mutant(
        "steps-left-of-the-longest",
        "every image is told how many steps the one with the most masks has left",
        "hf_maskdiff/pipelines/image_denoising.py",
        "        if not scheduler.steps_by_masks:\n            return self.call.steps_left_after(t)",
        "        if True:\n            return self.call.steps_left_after(t)",
        ("tests/pipelines/test_text_to_image.py::test_each_image_is_told_how_many_steps_it_has_left_itself",),
    ),
    Mutant(
        "frequencies-of-the-batch",
        "short and long texts share a pass whose rotary frequencies are those of the long ones",
        "hf_maskdiff/denoisers/attention_arguments.py",
        "    if shortest <= limit:",
        "    if shortest < 0:",
        (
            "tests/models/test_transformers_denoiser.py::test_frequencies_that_depend_on_other_texts_or_passes_are_refused",
        ),
    ),
    Mutant(
        "unknown-word-takes-all-in",
        "an unknown word at a prompt's end takes in the beginning of the continuation",
        "hf_maskdiff/pipelines/likelihood_pairs.py",
        "if ends_unknown and not",
        "if False and not",
        ("tests/pipelines/test_text_likelihood.py::test_an_unknown_word_takes_nothing_of_a_continuation_in",),
    ),
    Mutant(
        "candidates-of-one-noise",
        "all candidates are drawn with the noise of the step",
        _MATHEMATICS,
        "replace(context, keys=keys[:, number])",
        "replace(context, keys=context.keys)",
        (_RUNS,),
    ),
    Mutant(
        "sum-of-what-is-left",
        "the entropies that are left are added up, not averaged",
        _MATHEMATICS,
        ".sum(-1) / masked.sum(-1).clamp(min=1)",
        ".sum(-1)",
        (_ENUMERATED,),
    ),
    Mutant(
        "mean-of-all-positions",
        "known positions count as if they had no entropy",
        _MATHEMATICS,
        "masked.sum(-1).clamp(min=1)",
        "masked.shape[-1]",
        (_ENUMERATED,),
    ),
    Mutant(
        "cost-of-nothing",
        "what a candidate reveals costs nothing",
        _MATHEMATICS,
        "cost = self.config.candidate_cost * candidates.cost[numbers, rows]",
        "cost = 0 * candidates.cost[numbers, rows]",
        (_ENUMERATED,),
    ),
    Mutant(
        "gain-for-cost",
        "the candidate that reveals most entropy is best",
        _MATHEMATICS,
        "best_of_rows(-(cost + left)",
        "best_of_rows(cost - left",
        (_ENUMERATED,),
    ),
    Mutant(
        "a-candidate-twice",
        "equal candidates are all passed through the model",
        _MATHEMATICS,
        ".tril(-1).any(-1)",
        ".tril(-1).all(-1)",
        (_ENUMERATED,),
    ),
    Mutant(
        "the-pass-of-another",
        "the next step begins with the logits of the first candidate",
        _STEP,
        "won = (numbers == best[rows]).nonzero()[:, 0]",
        "won = (numbers == 0).nonzero()[:, 0]",
        (_AGAIN,),
    ),
    Mutant(
        "seen-before-the-callback",
        "a pass is used again although a callback has put in other tokens",
        _STEP,
        "return first is second or torch.equal(first[rows], second[rows])",
        "return True",
        (_AGAIN,),
    ),
    Mutant(
        "passes-of-a-row-counted-once",
        "of the candidates of a row one is counted",
        "hf_maskdiff/pipelines/text_denoising.py",
        "needed, accumulate=True)",
        "needed + self.passes[0, self._ids[rows]])",
        (f"{_PIPELINES}::test_one_pass_of_all_candidates_is_the_next_steps",),
    ),
]
