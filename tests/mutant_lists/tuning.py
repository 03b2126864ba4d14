"""The search of `hf-maskdiff tune`: what is tried, who goes on, what is spent, what is said."""

from __future__ import annotations

from mutant_lists.mutant import Mutant

_SPACE = "hf_maskdiff/tuning/space.py"
_FRONT = "hf_maskdiff/tuning/front.py"
_HALVING = "hf_maskdiff/tuning/halving.py"
_SEARCH = "hf_maskdiff/tuning/search.py"
_JUDGING = "hf_maskdiff/tuning/judging.py"
_HALVED = "tests/tuning/test_halving.py"
_TUNED = "tests/tuning/test_tune.py"
_WHOLE = (f"{_TUNED}::test_a_search_chooses_what_is_diverse_and_writes_presets",)

MUTANTS = [
    Mutant(
        "tune-groups-cost-nothing",
        "a sampler in groups has as many steps as one without, and so more passes",
        _SPACE,
        "return self.level - self.num_substeps + 1",
        "return self.level",
        (f"{_TUNED}::test_the_space_holds_each_candidate_once",),
    ),
    Mutant(
        "tune-threshold-without-schedule",
        "a threshold reveals as few tokens as it likes, and so takes more passes than its level has",
        _SPACE,
        'follow = {"follow_schedule": True} if "follow_schedule" in known else {}',
        "follow: dict[str, Any] = {}",
        (f"{_TUNED}::test_the_space_holds_each_candidate_once",),
    ),
    Mutant(
        "tune-own-scheduler-twice",
        "the pipeline's own scheduler is judged a second time under another name",
        _SPACE,
        "if (_settings(one[0]), one[1]) != (same, 1)}",
        "if one[0] is not shipped}",
        (f"{_TUNED}::test_the_space_holds_each_candidate_once",),
    ),
    Mutant(
        "tune-varies-nothing",
        "a further setting stands in a candidate's name alone",
        _SPACE,
        "made = scheduler.from_config(shipped.config, **chosen, **other) if other else without",
        "made = without",
        (f"{_TUNED}::test_further_settings_are_tried_of_the_samplers_that_have_them",),
    ),
    Mutant(
        "tune-forgets-what-to-vary",
        "the search does not hear of further settings",
        _SEARCH,
        "args.thresholds, args.vary or ()",
        "args.thresholds, ()",
        (f"{_TUNED}::test_further_settings_in_the_shell",),
    ),
    Mutant(
        "tune-keys-without-a-sign",
        "two candidates have one name for files",
        _SPACE,
        're.findall(r"[\\w.-]+", self.name.lower())',
        're.findall(r"[a-z]+", self.name.lower())',
        (f"{_TUNED}::test_the_space_holds_each_candidate_once",),
    ),
    Mutant(
        "tune-the-worst-go-on",
        "the worst of each level go on to the next round",
        _HALVING,
        "*(key for key in order if key not in sure)][:number]",
        "*(key for key in order if key not in sure)][-number:]",
        (f"{_HALVED}::test_without_noise_the_best_of_each_level_stays",),
    ),
    Mutant(
        "tune-doubtful-ones-crowd-out-all",
        "what repeats itself takes every place of a round, and the search ends without any choice",
        _HALVING,
        "if scores[key].diversity >= floor][: ceil(number / 2)]",
        "if scores[key].diversity >= floor][:0]",
        (f"{_HALVED}::test_what_seems_diverse_enough_keeps_half_of_the_places",),
    ),
    Mutant(
        "tune-later-rounds-are-no-larger",
        "every round judges as few samples as the first",
        _HALVING,
        "rounds = tuple(Round(numbers, first * many)",
        "rounds = tuple(Round(numbers, first)",
        (f"{_HALVED}::test_a_plan_costs_what_it_says_and_no_more_than_the_budget",),
    ),
    Mutant(
        "tune-new-seeds-cost-nothing",
        "the sets of new seeds are not counted, and the budget is overspent",
        _HALVING,
        "    cost_of_first += num_held_out * growth[-1] * cost_of_one(judged_again)\n",
        "",
        (f"{_HALVED}::test_a_plan_costs_what_it_says_and_no_more_than_the_budget",),
    ),
    Mutant(
        "tune-grid-of-one-set",
        "the cost of the whole grid is that of one set each, so that the search looks dear",
        _HALVING,
        "grid = num_held_out * rounds[-1].num_samples * cost_of_one(levels)",
        "grid = rounds[-1].num_samples * cost_of_one(levels)",
        (f"{_HALVED}::test_a_plan_costs_what_it_says_and_no_more_than_the_budget",),
    ),
    Mutant(
        "tune-judge-costs-nothing",
        "the model's passes for its own likelihood are not counted",
        _SEARCH,
        "costs = {level: float(level + judge.passes) for level in levels}",
        "costs = {level: float(level) for level in levels}",
        _WHOLE,
    ),
    Mutant(
        "tune-rounds-share-samples",
        "all rounds draw from one seed: who was lucky once is lucky again",
        _SEARCH,
        "search.trial(key, args.seed + number, num_samples)",
        "search.trial(key, args.seed, num_samples)",
        _WHOLE,
    ),
    Mutant(
        "tune-new-seeds-are-the-old",
        "finalists are judged again on the seeds of the search",
        _SEARCH,
        "seeds = [args.seed + HELD_OUT + j for j in range(plan.num_held_out)]",
        "seeds = [args.seed + j for j in range(plan.num_held_out)]",
        _WHOLE,
    ),
    Mutant(
        "tune-takes-what-lacks-diversity",
        "what repeats itself wins, as it scores best",
        _FRONT,
        "key=lambda name: (scores[name].lacks(floor), scores[name].value)",
        "key=lambda name: scores[name].value",
        (f"{_HALVED}::test_ranks_put_what_lacks_diversity_last",),
    ),
    Mutant(
        "tune-diversity-without-its-error",
        "a candidate is out for a diversity that may be enough",
        _FRONT,
        "return self.diversity + _SURE * error < floor",
        "return self.diversity < floor",
        (f"{_HALVED}::test_ranks_put_what_lacks_diversity_last",),
    ),
    Mutant(
        "tune-front-of-the-dear",
        "a point that costs more and is as good lies on the front",
        _FRONT,
        "values[index] < values[front[-1]]",
        "values[index] <= values[front[-1]]",
        (f"{_HALVED}::test_front_of_few_points",),
    ),
    Mutant(
        "tune-never-overfitted",
        "a choice that new seeds belie is not marked",
        "hf_maskdiff/tuning/results.py",
        "if self.searched is None or self.held_out.value <= self.searched.value:",
        "if self.searched is None or self.held_out.value >= self.searched.value:",
        (f"{_TUNED}::test_a_row_that_new_seeds_belie_is_marked",),
    ),
    Mutant(
        "tune-goes-on-with-another-search",
        "a folder of other settings is continued, and its trials are mixed with the new ones",
        "hf_maskdiff/tuning/trials.py",
        "        if others:\n",
        "        if len(others) > 1:\n",
        _WHOLE,
    ),
    Mutant(
        "tune-scores-what-was-added",
        "what the tokenizer adds around a prompt is put there twice, and scored",
        _JUDGING,
        "rows = [_without(ids.tolist(), before, after) for ids in samples.tokens]",
        "rows = [ids.tolist() for ids in samples.tokens]",
        (f"{_TUNED}::test_what_a_tokenizer_adds_around_a_prompt_is_not_scored",),
    ),
    Mutant(
        "tune-revises-in-groups",
        "a sampler that masks again is tried in groups, which take more passes than its level has",
        _SPACE,
        " and not issubclass(",
        " or not issubclass(",
        (f"{_TUNED}::test_the_space_holds_each_candidate_once",),
    ),
    Mutant(
        "tune-likelihood-by-the-place",
        "a text's nats are those of the whole text instead of one token's",
        _JUDGING,
        "nats = (-found.log_likelihoods / found.num_tokens).tolist()",
        "nats = (-found.log_likelihoods).tolist()",
        (f"{_TUNED}::test_the_model_s_own_likelihood_is_that_of_the_pipeline",),
    ),
]
