"""Bugs in the audio pipeline and its masks."""

from __future__ import annotations

from mutant_lists.mutant import Mutant

_MASKS = "hf_maskdiff/audio_masks.py"
_CODECS = "hf_maskdiff/pipelines/audio_codecs.py"
_RUN = "hf_maskdiff/pipelines/audio_denoising.py"
_WINDOWS = "hf_maskdiff/pipelines/audio_windows.py"
_TESTS = "tests/pipelines/test_audio.py"

MUTANTS = [
    Mutant(
        "audio-span-cut-short",
        "the last frame of a span that is no whole number of frames is not drawn anew",
        _MASKS,
        "return math.ceil(seconds * frame_rate - _OF_A_FRAME)",
        "return math.floor(seconds * frame_rate)",
        ("tests/test_audio_masks.py::test_a_span_takes_every_frame_that_it_touches",),
    ),
    Mutant(
        "audio-masks-are-heard",
        "a frame of which some codes are still masked sounds as if they were the first ones",
        "hf_maskdiff/pipelines/pipeline_masked_diffusion_audio.py",
        "silent = masked.any(1)",
        "silent = masked.all(1)",
        (f"{_TESTS}::test_callbacks",),
    ),
    Mutant(
        "audio-one-window-for-all",
        "all clips of a batch have the windows of the first of them",
        _WINDOWS,
        "starts = (first - context).clamp(min=0, max=num_frames - length)",
        "starts = (first - context)[:1].expand(len(masked)).clamp(min=0, max=num_frames - length)",
        (f"{_TESTS}::test_windows_cover_every_mask_once_each_row_by_itself",),
    ),
    Mutant(
        "audio-chunks-without-context",
        "the codec does not see what lies behind a chunk",
        _CODECS,
        "min(end + MARGIN, num_frames)",
        "end",
        (f"{_TESTS}::test_chunks_of_the_codec_are_the_whole",),
    ),
    Mutant(
        "audio-fine-sees-the-input",
        "the fine model is given another window of the coarse codes than it draws",
        _RUN,
        "seen(codes[:, self.given], starts, length)",
        "codes[:, self.given, :length]",
        (f"{_TESTS}::test_the_fine_model_is_given_the_codes_of_its_window",),
    ),
    Mutant(
        "audio-fine-steps",
        "the fine model takes as many steps as the coarse one",
        _RUN,
        "call.scheduler.set_timesteps(stage.num_inference_steps, temperature)",
        "call.scheduler.set_timesteps(stages[0].num_inference_steps, temperature)",
        (f"{_TESTS}::test_the_fine_model_is_given_the_coarse_codes",),
    ),
]
