"""Samplers of second order."""

from __future__ import annotations

from mutant_lists.mutant import Mutant

_MATHEMATICS = "hf_maskdiff/schedulers/extrapolation.py"
_BASE = "hf_maskdiff/schedulers/two_passes.py"
_TRAPEZOIDAL = "hf_maskdiff/schedulers/scheduling_trapezoidal.py"
_EXTRAPOLATING = "hf_maskdiff/schedulers/scheduling_extrapolating.py"
_LAWS = "tests/test_second_order_laws.py"
_PASSES = "tests/schedulers/test_two_passes.py"

MUTANTS = [
    Mutant(
        "weight-of-the-limit",
        "planned counts are extrapolated as if they were many",
        _MATHEMATICS,
        "count * (count - 1) / (2 * pairs.clamp(min=1))",
        "count * count / (2 * pairs.clamp(min=1))",
        (f"{_LAWS}::test_extrapolating_runs_have_their_law",),
    ),
    Mutant(
        "extrapolated-the-wrong-way",
        "the two passes of an interval are exchanged",
        _MATHEMATICS,
        "return before.lerp_(now, weight).clamp_(min=0)",
        "return before.lerp_(now, 1 - weight).clamp_(min=0)",
        (f"{_LAWS}::test_the_extrapolated_marginal",),
    ),
    Mutant(
        "half-the-extrapolation",
        "the weight of an interval is too small",
        _MATHEMATICS,
        "return (before - after) ** 2 / (2 * (before - middle) * (middle - after))",
        "return 1 + (before - after) ** 2 / (8 * (before - middle) * (middle - after))",
        (f"{_LAWS}::test_trapezoidal_runs_have_their_law",),
    ),
    Mutant(
        "old-marginals-untempered",
        "the first pass is read at the model's own temperature",
        _MATHEMATICS,
        "before.reduce(lambda rows: (tempered_(rows, beta),), index)",
        "before.reduce(lambda rows: (tempered_(rows, beta**0),), index)",
        (f"{_LAWS}::test_draws_follow_the_extrapolated_marginal",),
    ),
    Mutant(
        "what-was-not-kept-is-extrapolated",
        "a position without a first pass takes that of another",
        _MATHEMATICS,
        "weight = torch.where(rows_before.to(weight.device) < 0, 1.0, weight)",
        "weight = weight.clone()",
        (f"{_LAWS}::test_draws_follow_the_extrapolated_marginal",),
    ),
    Mutant(
        "first-pass-of-another-interval",
        "whatever was kept last is taken for the first pass",
        _BASE,
        "return first if first is not None and first.step_index == step_index - 1 else None",
        "return first",
        (f"{_PASSES}::test_a_first_pass_is_of_its_own_interval",),
    ),
    Mutant(
        "reveals-without-its-mass",
        "what is cut off does not make a position come sooner",
        _TRAPEZOIDAL,
        "(own > least ** mass.to(own.device))",
        "(own > least)",
        (f"{_LAWS}::test_an_interval_has_its_law_with_what_stays_masked",),
    ),
    Mutant(
        "survival-used-twice",
        "the second pass reads the noise of the first as it was",
        _TRAPEZOIDAL,
        "survival = survival / least\n",
        "survival = survival * 1.0\n",
        (f"{_LAWS}::test_an_interval_has_its_law_with_what_stays_masked",),
    ),
    Mutant(
        "a-lonely-pass-has-an-interval",
        "with an odd number of passes the last one leaves masks to nobody",
        _TRAPEZOIDAL,
        "alone = start == num_steps - 1",
        "alone = False",
        (f"{_PASSES}::test_the_intervals_of_a_run",),
    ),
    Mutant(
        "theta-of-time",
        "theta divides what stays instead of what comes",
        _TRAPEZOIDAL,
        "before - self.config.theta * (before - after), after",
        "after + self.config.theta * (before - after), after",
        (f"{_LAWS}::test_trapezoidal_runs_have_their_law",),
    ),
    Mutant(
        "one-weight-for-all-rows",
        "a row is extrapolated by the counts of the first",
        _EXTRAPOLATING,
        "weight_of_counts(first.count, context.count).to(rank.device)[row]",
        "weight_of_counts(first.count, context.count).to(rank.device)[row * 0]",
        (f"{_PASSES}::test_weights_of_rows_are_their_own",),
    ),
    Mutant(
        "kept-one-too-few",
        "the last position of a second pass has no first",
        _EXTRAPOLATING,
        "later &= rank < count + self._next_count(context).to(rank.device)[:, None]",
        "later &= rank < count + self._next_count(context).to(rank.device)[:, None] - 1",
        (f"{_PASSES}::test_what_is_kept",),
    ),
    Mutant(
        "another-order-in-the-second-pass",
        "random positions are drawn anew in the second pass, of which some were not kept",
        _EXTRAPOLATING,
        "if first is not None and name in WITHOUT_LOGITS:",
        "if first is None and name in WITHOUT_LOGITS and False:",
        (f"{_PASSES}::test_what_is_kept",),
    ),
]
