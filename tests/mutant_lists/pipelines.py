"""Pipelines of images and of texts."""

from __future__ import annotations

from mutant_lists.mutant import Mutant

_IMAGE = "hf_maskdiff/pipelines/pipeline_maskgit.py"
_TEXT = "hf_maskdiff/pipelines/pipeline_masked_diffusion_text.py"

MUTANTS = [
    Mutant(
        "guidance-sign",
        "guidance leads away from the class",
        _IMAGE,
        "return uncond.lerp_(cond, scale)",
        "return cond.lerp_(uncond, scale)",
        ("tests/pipelines/test_pipeline_maskgit.py::test_guidance_is_extrapolation",),
    ),
    Mutant(
        "guidance-ramp-too-slow",
        "a pair of scales stops short of its end",
        _IMAGE,
        "return start + (end - start) * step_index / max(num_steps - 1, 1)",
        "return start + (end - start) * step_index / num_steps",
        ("tests/pipelines/test_pipeline_maskgit.py::test_a_pair_of_scales_is_the_published_ramp",),
    ),
    Mutant(
        "null-class",
        "guidance compares with the last class instead of none",
        _IMAGE,
        "no_class = torch.full_like(classes, self.transformer.config.num_classes)",
        "no_class = torch.full_like(classes, self.transformer.config.num_classes - 1)",
        ("tests/pipelines/test_pipeline_maskgit.py::test_guidance_costs_a_second_pass",),
    ),
    Mutant(
        "labels-of-other-images",
        "with several images of a label the labels come in turn",
        _IMAGE,
        "return values.repeat_interleave(num_images_per_prompt, 0)",
        "return values.repeat(num_images_per_prompt, *[1] * (values.ndim - 1))",
        ("tests/pipelines/test_pipeline_maskgit.py::test_num_images_per_prompt",),
    ),
    Mutant(
        "kept-and-edited-swapped",
        "what shall be kept of an image is drawn anew",
        _IMAGE,
        "return torch.where(editable, noisy, codes), editable.flatten(1).sum(-1)",
        "return torch.where(editable, codes, noisy), editable.flatten(1).sum(-1)",
        ("tests/pipelines/test_editing.py::test_kept_codes_come_back",),
    ),
    Mutant(
        "mask-by-the-mean",
        "a code changes if half of its pixels are white",
        _IMAGE,
        "adaptive_max_pool2d(mask, side)[:, 0] >= 0.5",
        "torch.nn.functional.adaptive_avg_pool2d(mask, side)[:, 0] >= 0.5",
        ("tests/pipelines/test_editing.py::test_a_code_is_drawn_anew_if_any_of_its_pixels_is_white",),
    ),
    Mutant(
        "end-of-text-at-the-first-place",
        "an end of text at the first place that was written ends nothing",
        _TEXT,
        "ends = ends[(ends >= prompt_length) & (ends < first_mask)]",
        "ends = ends[(ends > prompt_length) & (ends < first_mask)]",
        ("tests/pipelines/test_masked_diffusion_text.py::test_an_answer_that_ends_at_once_is_empty",),
    ),
    Mutant(
        "end-of-text-left-out",
        "a sequence is cut before its end of text",
        _TEXT,
        "return sequence[: int(ends[0]) + 1] if len(ends) else sequence",
        "return sequence[: int(ends[0])] if len(ends) else sequence",
        ("tests/pipelines/test_masked_diffusion_text.py::test_an_answer_ends_with_its_turn",),
    ),
    Mutant(
        "end-of-text-after-a-mask",
        "an end of text that stands after masks ends a text",
        _TEXT,
        "ends = ends[(ends >= prompt_length) & (ends < first_mask)]",
        "ends = ends[ends >= prompt_length]",
        ("tests/pipelines/test_masked_diffusion_text.py::test_an_end_of_text_after_masks_ends_nothing_yet",),
    ),
    Mutant(
        "padding-seen",
        "a shorter row sees one place of its padding",
        _TEXT,
        "else places < lengths[:, None]",
        "else places <= lengths[:, None]",
        ("tests/pipelines/test_pipeline_mdlm.py::test_a_text_is_the_same_alone_and_beside_others[AncestralScheduler]",),
    ),
    Mutant(
        "passes-of-finished-rows",
        "a row's passes count those that the others still need",
        _TEXT,
        "passes[row_ids[rows]] += (sample == mask_token_id).any(-1)",
        "passes[row_ids[rows]] += 1",
        ("tests/pipelines/test_pipeline_mdlm.py::test_a_text_is_the_same_alone_and_beside_others[MomentScheduler]",),
    ),
    Mutant(
        "window-starts-one-late",
        "a window holds one place less of what stands before its first mask",
        _TEXT,
        "start = max(min(first_mask - context, len(sequence) - length), 0)",
        "start = max(min(first_mask - context + 1, len(sequence) - length), 0)",
        ("tests/pipelines/test_masked_diffusion_text.py::test_a_window_holds_what_stands_before_its_first_mask",),
    ),
    Mutant(
        "block-one-short",
        "a block fills in one place less than its length",
        _TEXT,
        "slice(first_mask - start, first_mask - start + block_length)",
        "slice(first_mask - start, first_mask - start + max(block_length - 1, 1))",
        ("tests/pipelines/test_masked_diffusion_text.py::test_blocks_are_written_from_left_to_right",),
    ),
    Mutant(
        "block-places-of-the-window",
        "the positions of a partial pass count from the block's start",
        _TEXT,
        "positions = torch.where(positions < 0, ~stand, stand)",
        "positions = positions",
        ("tests/pipelines/test_masked_diffusion_text.py::test_with_one_layer_partial_passes_equal_full_ones",),
    ),
    Mutant(
        "text-guidance-sign",
        "guidance leads away from the prompt",
        _TEXT,
        'return logits_of("uncond", sample, t, rows, positions, hidden).lerp_(logits, guidance_scale)',
        'return logits.lerp_(logits_of("uncond", sample, t, rows, positions, hidden), guidance_scale)',
        ("tests/pipelines/test_masked_diffusion_text.py::test_guidance_compares_with_a_hidden_prompt",),
    ),
    Mutant(
        "guidance-hides-the-answer",
        "guidance hides what earlier blocks have written, not the prompt alone",
        _TEXT,
        "[prompts[r][w] for r, (w, _) in zip(rows, parts, strict=True)]",
        "[sequences[r][w] != mask_token_id for r, (w, _) in zip(rows, parts, strict=True)]",
        ("tests/pipelines/test_masked_diffusion_text.py::test_guidance_hides_the_prompt_and_not_what_was_written",),
    ),
]
