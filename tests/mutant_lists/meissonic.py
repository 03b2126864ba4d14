"""Bugs in Meissonic's, TiTok's and MaskGen's models, converters and sampler."""

from __future__ import annotations

from mutant_lists.mutant import Mutant

_MODEL = "hf_maskdiff/models/transformer_meissonic.py"
_LAYERS = "hf_maskdiff/models/meissonic_layers.py"
_GRID = "hf_maskdiff/models/patch_grid.py"
_TITOK = "hf_maskdiff/models/transformer_titok.py"
_TOKENIZER = "hf_maskdiff/models/vq_titok.py"
_TESTS = "tests/models/test_transformer_meissonic.py"
_PARITY = (f"{_TESTS}::test_parity_with_a_model_of_diffusers_blocks",)
_TITOK_TESTS = "tests/models/test_titok_models.py"
_MASKGEN_TESTS = "tests/models/test_maskgen_models.py"
_ANNEALED = "hf_maskdiff/schedulers/scheduling_annealed.py"
_ANNEALED_TESTS = ("tests/schedulers/test_annealed.py::test_the_authors_rule_with_our_noise",)

MUTANTS = [
    Mutant(
        "meissonic-column-for-row",
        "queries and keys turn with the column where they should with the row",
        _LAYERS,
        "zip((torch.zeros_like(row), row, column), axes, strict=True)",
        "zip((torch.zeros_like(row), column, row), axes, strict=True)",
        _PARITY,
    ),
    Mutant(
        "meissonic-text-turns",
        "the text stands behind the image's places rather than at place 0",
        _LAYERS,
        "nn.functional.pad(torch.cat(angles, -1), (0, 0, 0, num_text))",
        "nn.functional.pad(torch.cat(angles, -1), (0, 0, 0, num_text), value=1.0)",
        _PARITY,
    ),
    Mutant(
        "meissonic-text-bounded-as-image",
        "image and text are put out in each other's place",
        _LAYERS,
        "return bounded(encoder_hidden_states), hidden_states",
        "return hidden_states, bounded(encoder_hidden_states)",
        _PARITY,
    ),
    Mutant(
        "meissonic-half-precision-time",
        "the steps left are multiplied in the model's precision",
        _MODEL,
        "timestep.float() * 1000",
        "timestep.to(pooled.dtype) * 1000",
        (f"{_TESTS}::test_half_precision_has_no_nan_at_any_number_of_steps",),
    ),
    Mutant(
        "meissonic-squares-forget",
        "a partial pass does not keep the codes that it was given",
        _MODEL,
        "codes = store.with_codes(sample, positions).gather",
        "codes = store.with_codes(sample, ~places_of(positions)).gather",
        (f"{_TESTS}::test_later_passes_see_the_codes_of_earlier_ones",),
    ),
    Mutant(
        "meissonic-squares-of-one-pass",
        "codes that are not kept are seen by all of the pass",
        _MODEL,
        "codes = store.with_codes(sample, positions).gather",
        "codes = store.with_codes(sample, places_of(positions)).gather",
        (f"{_TESTS}::test_codes_that_are_not_kept_are_seen_by_nobody_else",),
    ),
    Mutant(
        "meissonic-square-by-column",
        "the codes of a square are numbered column by column",
        _GRID,
        "row % self.side * self.side + column % self.side",
        "column % self.side * self.side + row % self.side",
        (f"{_TESTS}::test_a_partial_pass_over_all_codes_is_a_full_pass",),
    ),
    Mutant(
        "code-cache-rows-not-put",
        "the codes of some rows' passes are not put back into the cache",
        "hf_maskdiff/caching/code_cache.py",
        "self._codes.put(rows, other._codes)",
        "pass",
        (f"{_TESTS}::test_rows_of_a_cache_can_be_taken_and_put_back",),
    ),
    Mutant(
        "meissonic-time-of-the-step-before",
        "the pipeline says that one step more is left",
        "hf_maskdiff/pipelines/calls.py",
        "left = float(timestep) * (self.scheduler.num_inference_steps or 1) - 1",
        "left = float(timestep) * (self.scheduler.num_inference_steps or 1)",
        ("tests/conversion/test_meissonic.py::test_the_authors_loop_to_the_code",),
    ),
    Mutant(
        "titok-skips-in-order",
        "the first block of the second half is given what the first block of the first half returned",
        _TITOK,
        "returned.pop()",
        "returned.pop(0)",
        (f"{_TITOK_TESTS}::test_parity_of_the_denoiser",),
    ),
    Mutant(
        "titok-latents-in-order",
        "the vectors are read in the order in which they were written, unlike in training",
        _TOKENIZER,
        "return latent.reshape(len(latent), latent.shape[2], latent.shape[1]).transpose(1, 2)",
        "return latent",
        (f"{_TITOK_TESTS}::test_parity_of_the_tokenizer",),
    ),
    Mutant(
        "annealed-at-the-model-s-temperature",
        "tokens are drawn at temperature 1",
        _ANNEALED,
        "beta = 1 / max(hot * alpha, _COLDEST)",
        "beta = 1.0",
        _ANNEALED_TESTS,
    ),
    Mutant(
        "annealed-by-cold-logits",
        "the order does not see the temperature of the logits",
        _ANNEALED,
        "score = logits.to(noise) / hot + alpha * noise",
        "score = logits.to(noise) + alpha * noise",
        _ANNEALED_TESTS,
    ),
    Mutant(
        "power-cosine-to-the-end",
        "a power-cosine reaches its end in the last step",
        "hf_maskdiff/pipelines/guidance.py",
        "share = ((step + ahead) / num_steps.clamp(min=1).double()).clamp(max=1)",
        "share = ((step + ahead) / (num_steps - 1).clamp(min=1).double()).clamp(max=1)",
        ("tests/schedulers/test_annealed.py::test_the_three_rises_of_titok",),
    ),
    Mutant(
        "titok-one-code-masked-is-no-grey",
        "an image of codes that are no places is grey only where all of them are masked",
        "hf_maskdiff/pipelines/image_codes.py",
        "masked.any(-1)[:, None, None]",
        "masked.all(-1)[:, None, None]",
        ("tests/conversion/test_titok.py::test_every_mode_of_a_row_of_codes",),
    ),
    Mutant(
        "guidance-not-ahead",
        "the fourth number of a rise is not read",
        "hf_maskdiff/pipelines/guidance.py",
        "share = ((step + ahead) /",
        "share = ((step + 0 * ahead) /",
        ("tests/schedulers/test_annealed.py::test_the_three_rises_of_titok",),
    ),
    Mutant(
        "maskgen-text-filled-with-its-end",
        "texts are filled up as their tokenizer does it, and not as the model was trained",
        "hf_maskdiff/pipelines/text_conditions.py",
        "return found.input_ids.masked_fill(found.attention_mask == 0, self.pad_token_id)",
        "return found.input_ids",
        ("tests/conversion/test_maskgen.py::test_what_comes_out_computes_what_went_in",),
    ),
    Mutant(
        "maskgen-score-in-ones",
        "the aesthetic score is encoded as it is, and not a hundred times as large",
        "hf_maskdiff/models/transformer_maskgen.py",
        "100 * micro_conds[:, -1]",
        "micro_conds[:, -1]",
        (f"{_MASKGEN_TESTS}::test_parity_of_the_denoiser",),
    ),
    Mutant(
        "maskgen-text-behind-its-head",
        "the last block gives the codes the text's attention",
        "hf_maskdiff/models/maskgen_layers.py",
        "codes = attended[:, :count]",
        "codes = attended[:, -count:]",
        (f"{_MASKGEN_TESTS}::test_parity_of_the_denoiser",),
    ),
    Mutant(
        "tatitok-patches-on-their-side",
        "rows and columns of a patch's pixels are swapped",
        "hf_maskdiff/models/vq_tatitok.py",
        "patches.permute(0, 5, 1, 3, 2, 4)",
        "patches.permute(0, 5, 1, 4, 2, 3)",
        (f"{_MASKGEN_TESTS}::test_parity_of_the_tokenizer",),
    ),
]
