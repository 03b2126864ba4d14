"""Conversion, evaluation, the Hub."""

from __future__ import annotations

from mutant_lists.mutant import Mutant

MUTANTS = [
    Mutant(
        "queries-and-keys-swapped",
        "a checkpoint's queries are read as keys",
        "hf_maskdiff/conversion/halton_maskgit.py",
        '"attn.wq.weight": "attn.to_q.weight",\n    "attn.wk.weight": "attn.to_k.weight",',
        '"attn.wq.weight": "attn.to_k.weight",\n    "attn.wk.weight": "attn.to_q.weight",',
        ("tests/models/test_transformer_halton_maskgit.py::test_parity_with_the_committed_original",),
    ),
    Mutant(
        "gate-and-up-swapped",
        "a checkpoint's gate is read as what it gates",
        "hf_maskdiff/conversion/halton_maskgit.py",
        '"ff.w1.weight": "ff.gate_proj.weight",\n'
        '    "ff.w2.weight": "ff.down_proj.weight",\n'
        '    "ff.w3.weight": "ff.up_proj.weight",',
        '"ff.w1.weight": "ff.up_proj.weight",\n'
        '    "ff.w2.weight": "ff.down_proj.weight",\n'
        '    "ff.w3.weight": "ff.gate_proj.weight",',
        ("tests/models/test_transformer_halton_maskgit.py::test_parity_with_the_committed_original",),
    ),
    Mutant(
        "last-weights-for-the-average",
        "the weights of MDLM's last step are taken where the averaged ones are asked for",
        "hf_maskdiff/conversion/mdlm.py",
        "return state_dict | {name: require_stored(shadow, name) for name, shadow in zip(names, shadows, strict=True)}",
        "return {name: require_stored(shadow, name) for name, shadow in zip(names, shadows, strict=True)} | state_dict",
        ("tests/conversion/test_mdlm.py::test_the_model_is_whole_and_can_be_saved",),
    ),
    Mutant(
        "sdtt-one-prefix",
        "of weights with two prefixes one stays",
        "hf_maskdiff/published/mdlm_weights.py",
        "2 if any(key.startswith(2 * _PREFIX) for key in weights) else 1",
        "1",
        ("tests/conversion/test_sdtt.py::test_both_layouts",),
    ),
    Mutant(
        "sdtt-another-backbone",
        "a backbone that computes something else is taken for an MDLM",
        "hf_maskdiff/published/sdtt.py",
        "if model.get(name, value) != value}",
        "if False}",
        ("tests/conversion/test_sdtt.py::test_settings_that_do_not_fit",),
    ),
    Mutant(
        "frechet-trace-sign",
        "the trace of the root is added",
        "hf_maskdiff/evaluation/frechet.py",
        "np.square(root1 - root2 @ (left @ right)).sum()",
        "np.square(root1 + root2 @ (left @ right)).sum()",
        ("tests/evaluation/test_frechet.py::test_one_dimension",),
    ),
    Mutant(
        "covariance-biased",
        "the covariance is divided by the number of samples",
        "hf_maskdiff/evaluation/frechet.py",
        "return mean, centred.T @ centred / (len(features) - 1)",
        "return mean, centred.T @ centred / len(features)",
        ("tests/evaluation/test_frechet.py::test_statistics_are_mean_and_unbiased_covariance",),
    ),
    Mutant(
        "entropy-in-bits",
        "the entropy of a sentence is in bits",
        "hf_maskdiff/evaluation/text_metrics.py",
        "(shares * shares.log()).sum().abs()",
        "(shares * shares.log2()).sum().abs()",
        ("tests/evaluation/test_text_metrics.py::test_sentence_entropy",),
    ),
    Mutant(
        "perplexity-of-padding",
        "one token more than a text has is scored",
        "hf_maskdiff/evaluation/text_metrics.py",
        "losses += [loss[row, : len(text) - 1]",
        "losses += [loss[row, : len(text)]",
        ("tests/evaluation/test_text_metrics.py::test_generative_perplexity",),
    ),
    Mutant(
        "bound-not-weighted",
        "the likelihood's bound is not weighted by 1 / t",
        "hf_maskdiff/evaluation/likelihood.py",
        "weight = (sample == mask_token_id) / timesteps[:, None]",
        "weight = (sample == mask_token_id) * torch.ones_like(timesteps)[:, None]",
        ("tests/evaluation/test_likelihood.py::test_the_bound_of_an_exact_denoiser_is_the_likelihood",),
    ),
    Mutant(
        "jackknife-of-a-mean-of-groups",
        "the jackknife's spread is divided by the groups",
        "hf_maskdiff/evaluation/image_metrics.py",
        "spread = (num_groups - 1) / num_groups * np.square",
        "spread = 1 / num_groups * np.square",
        ("tests/evaluation/test_image_metrics.py::test_the_jackknife_s_error_is_what_drawing_again_shows",),
    ),
    Mutant(
        "card-overwritten",
        "saving a pipeline replaces a card that somebody wrote",
        "hf_maskdiff/hub.py",
        "if not (folder / CARD).exists():",
        "if folder.exists():",
        ("tests/test_hub.py::test_a_card_that_somebody_wrote_in_a_folder_stays",),
    ),
    Mutant(
        "card-without-its-import",
        "a card imports every class from the package, also one from elsewhere",
        "hf_maskdiff/hub.py",
        'return f"from {_package(cls) if is_public else cls.__module__} import {cls.__name__}"',
        'return f"from {_package(cls)} import {cls.__name__}"',
        ("tests/test_hub.py::test_a_subclass_elsewhere_is_imported_from_where_it_is",),
    ),
]
