"""The audio pipeline with tiny codecs and models of random weights: what is kept, windows, codecs, stages, calls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_audio
import torch
from diffusers import DiffusionPipeline
from tiny_audio import COARSE, CODEBOOKS, CODES, HOP, MASK, RATE, clips, seeds
from torch import Tensor
from transformers import DacModel, pipeline

from hf_maskdiff import (
    DelayedCacheConfig,
    GreedyCacheConfig,
    HaltonScheduler,
    MaskedDiffusionAudioPipeline,
    MaskedDiffusionScheduler,
    PartialCacheConfig,
    UniformScheduler,
    VampNetTransformer,
)
from hf_maskdiff.audio_masks import keep_codebooks, keep_every, keep_outside
from hf_maskdiff.pipelines.audio_codecs import MARGIN, audio_codec, decode, encode
from hf_maskdiff.pipelines.audio_windows import put, seen, windows


@pytest.fixture
def pipe() -> MaskedDiffusionAudioPipeline:
    return tiny_audio.pipeline()


def codes_of(pipe: MaskedDiffusionAudioPipeline, **call: Any) -> Tensor:
    return pipe(**({"num_inference_steps": 4, "output_type": "codes"} | call)).codes


def random_codes(num_clips: int, num_frames: int, seed: int = 0) -> Tensor:
    return torch.randint(CODES, (num_clips, CODEBOOKS, num_frames), generator=seeds(seed)[0])


# --- what is kept, and what a clip depends on -------------------------------------------------------------------------


def test_known_codes_never_change_and_a_clip_alone_is_the_clip_in_a_batch(
    pipe: MaskedDiffusionAudioPipeline, scheduler_class: type[MaskedDiffusionScheduler]
) -> None:
    """Random masks in clips of several windows; one clip has few masks, and so another number of windows."""
    pipe.scheduler = scheduler_class.from_config(pipe.scheduler.config)
    codes, keep = random_codes(2, 9), torch.rand(2, CODEBOOKS, 9, generator=seeds(0)[0]) > 0.5
    keep[0, :, :6] = True
    call = {"chunk_length_s": 0.6, "num_inference_steps": 3}
    made = codes_of(pipe, codes=codes, keep=keep, generator=seeds(5, 6), **call)
    assert torch.equal(made[keep], codes[keep])
    assert ((made >= 0) & (made < CODES)).all()
    assert not torch.equal(made[~keep], codes[~keep])
    for row in range(2):
        given = {"codes": codes[[row]], "keep": keep[[row]], "generator": seeds(5 + row)}
        assert torch.equal(codes_of(pipe, **given, **call), made[[row]])


def test_inpainting_gives_back_what_lies_outside(pipe: MaskedDiffusionAudioPipeline) -> None:
    audio = clips(2)
    codes = pipe.encode_audio(audio, RATE)
    assert len(codes.unique()) > 8
    keep = keep_outside(0.4, 0.9, 12, pipe.frame_rate)
    out = pipe(audio=audio, sampling_rate=RATE, keep=keep, num_inference_steps=4, generator=seeds(1, 2))
    outside = keep.expand(CODEBOOKS, 12)
    assert torch.equal(out.codes[:, outside], codes[:, outside])
    assert (out.codes[:, ~outside] != codes[:, ~outside]).any(-1).all()
    assert out.audios.shape == audio.shape
    assert torch.equal(out.audios, pipe.decode_codes(out.codes))
    assert torch.equal(codes_of(pipe, codes=codes, keep=keep, generator=seeds(1, 2)), out.codes)
    given = codes.masked_fill(~outside, MASK)
    assert torch.equal(codes_of(pipe, codes=given, generator=seeds(1, 2)), out.codes)


def test_all_kept_calls_no_model(pipe: MaskedDiffusionAudioPipeline) -> None:
    codes = random_codes(1, 12)
    pipe.transformer = pipe.fine_transformer = tiny_audio.transformer(num_conditioning_codebooks=COARSE)
    pipe.transformer = tiny_audio.transformer()
    for model in (pipe.transformer, pipe.fine_transformer):
        model.forward = lambda *_, **__: pytest.fail("a model was called")
    assert torch.equal(codes_of(pipe, codes=codes), codes)
    assert pipe(codes=codes).audios.abs().sum() > 0


# --- long clips -------------------------------------------------------------------------------------------------------


def test_windows_cover_every_mask_once_each_row_by_itself() -> None:
    noise = seeds(0)[0]
    for _ in range(60):
        num_frames, share = int(torch.randint(1, 40, (1,), generator=noise)), float(torch.rand(1, generator=noise))
        length = int(torch.randint(1, num_frames + 1, (1,), generator=noise))
        overlap = int(torch.randint(length, (1,), generator=noise))
        masked = torch.rand(3, num_frames, generator=noise) < share
        found = windows(masked, length, overlap)
        for row in range(3):
            left, alone = masked[row].clone(), windows(masked[[row]], length, overlap)
            assert [int(starts[row]) for starts in found[: len(alone)]] == [int(starts) for starts in alone]
            for start in [int(starts) for starts in alone]:
                first = int(left.int().argmax())
                assert left.any()
                assert 0 <= start <= num_frames - length
                assert start <= max(first - overlap, 0)
                assert start + length > first
                left[start : start + length] = False
            assert not left.any()


def test_a_short_gap_stands_in_the_middle_of_its_window() -> None:
    masked = torch.zeros(1, 100, dtype=torch.bool)
    masked[0, 50:54] = True
    (starts,) = windows(masked, 20, 5)
    assert starts.tolist() == [42]
    masked[:] = True
    assert [starts.tolist() for starts in windows(masked, 40, 10)] == [[0], [30], [60]]


def test_windows_are_cut_out_and_put_back() -> None:
    codes, starts = random_codes(2, 12), torch.tensor([0, 7])
    cut = seen(codes, starts, 5)
    assert torch.equal(cut, torch.stack([codes[0, :, 0:5], codes[1, :, 7:12]]))
    changed = put(codes, starts, cut + 1)
    assert torch.equal(changed[1, :, 7:], codes[1, :, 7:] + 1)
    assert torch.equal(changed[1, :, :7], codes[1, :, :7])


def test_a_chunk_that_covers_the_clip_changes_nothing(pipe: MaskedDiffusionAudioPipeline) -> None:
    whole = codes_of(pipe, audio_length_in_s=2.0, generator=seeds(3))
    for chunk in (2.0, 30.0):
        call = {"audio_length_in_s": 2.0, "chunk_length_s": chunk, "chunk_overlap_s": 1.5, "generator": seeds(3)}
        assert torch.equal(codes_of(pipe, **call), whole)
    assert not torch.equal(codes_of(pipe, **(call | {"chunk_length_s": 1.9})), whole)


def test_a_window_sees_what_the_one_before_has_drawn(pipe: MaskedDiffusionAudioPipeline) -> None:
    begun: list[Tensor] = []

    def record(_: Any, args: tuple) -> None:
        begun.append(args[0].clone())

    pipe.transformer.register_forward_pre_hook(record)
    call = {"chunk_length_s": 1.0, "chunk_overlap_s": 0.3, "num_inference_steps": 1, "generator": seeds(3)}
    made = codes_of(pipe, audio_length_in_s=2.4, **call)
    assert [tuple(sample.shape) for sample in begun] == [(1, COARSE, 10)] * 3
    for sample, start, drawn in zip(begun, (0, 7, 14), (0, 10, 17), strict=True):
        known = drawn - start
        assert torch.equal(sample[..., :known], made[:, :COARSE, start:drawn]) or known <= 0
        assert (sample[..., max(known, 0) :] == MASK).all()


# --- codecs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [9, 30])
def test_chunks_of_the_codec_are_the_whole(length: int) -> None:
    """Each is seen with more context than DAC's convolutions reach."""
    codec = audio_codec(tiny_audio.dac())
    audio = clips(2, 61)
    with torch.no_grad():
        codes = codec.model.encode(audio).audio_codes
        assert torch.equal(encode(codec, audio, length), codes)
        whole = codec.model.decode(audio_codes=codes).audio_values
        made = decode(codec, codes, length)
    assert made.shape == (2, 1, 61 * HOP)
    torch.testing.assert_close(made[:, 0], whole, atol=1e-5, rtol=1e-4)
    assert MARGIN + 9 < 61  # so that the first of the short chunks does not see the whole


def test_odd_strides_lose_samples_at_the_end_alone() -> None:
    """Chunks stay where they belong though each of them is short by some."""
    model = tiny_audio.dac(downsampling_ratios=[3, 2], sampling_rate=60)
    codec, codes = audio_codec(model), random_codes(1, 61)
    assert codec.hop_length == 6
    with torch.no_grad():
        whole = model.decode(audio_codes=codes).audio_values
        made = decode(codec, codes, 10)
    assert made.shape[-1] == whole.shape[-1] < 61 * 6
    torch.testing.assert_close(made[:, 0], whole, atol=1e-5, rtol=1e-4)


def test_encodec() -> None:
    model, audio = tiny_audio.encodec(), clips(2)
    pipe = tiny_audio.pipeline(model)
    codes = pipe.encode_audio(audio, RATE)
    with torch.no_grad():
        assert torch.equal(codes, model.encode(audio).audio_codes[0])
        expected = model.decode(codes[None], [None]).audio_values
    assert codes.shape == (2, CODEBOOKS, 12)
    assert len(codes.unique()) > 4
    torch.testing.assert_close(pipe.decode_codes(codes), expected)
    keep = keep_every(3, 12) & keep_codebooks(1, CODEBOOKS)
    made = codes_of(pipe, audio=audio, sampling_rate=RATE, keep=keep)
    assert torch.equal(made[:, keep], codes[:, keep])
    pipe.codec = torch.compile(model, backend="eager")
    assert torch.equal(pipe.encode_audio(audio, RATE), codes)
    torch.testing.assert_close(pipe.decode_codes(codes), expected)
    for codec in (of_loudness := tiny_audio.encodec(normalize=True), torch.compile(of_loudness, backend="eager")):
        with pytest.raises(ValueError, match="facebook/encodec_24khz"):
            _ = tiny_audio.pipeline(codec).sampling_rate


def test_clips_end_where_the_audio_ends(pipe: MaskedDiffusionAudioPipeline) -> None:
    """The last frame is filled up with silence."""
    audio = clips()[0, 0, :91]
    assert torch.equal(pipe.encode_audio(audio, RATE), pipe.encode_audio(torch.nn.functional.pad(audio, (0, 5)), RATE))
    out = pipe(audio=audio.numpy(), sampling_rate=RATE, keep=keep_every(2, 12), output_type="np", num_inference_steps=2)
    assert isinstance(out.audios, np.ndarray)
    assert (out.audios.shape, out.audios.dtype) == ((1, 1, 91), np.float32)
    given = {"audio": [audio, audio.double().numpy()[None]], "sampling_rate": np.int64(RATE), "keep": keep_every(1, 12)}
    audios, codes = pipe(**given, return_dict=False)
    assert torch.equal(audios[0], audios[1])
    assert torch.equal(codes[1:], pipe.encode_audio(audio, RATE))


# --- coarse, then fine ------------------------------------------------------------------------------------------------


def test_the_fine_model_is_given_the_coarse_codes(pipe: MaskedDiffusionAudioPipeline) -> None:
    given: list[Tensor] = []
    steps: list[Tensor] = []
    pipe.transformer.register_forward_pre_hook(lambda _, args: steps.append(args[0]))
    pipe.fine_transformer.register_forward_pre_hook(
        lambda _, args, kwargs: given.append(kwargs["conditioning_codes"]), with_kwargs=True
    )
    shown: list[tuple[int, int]] = []
    bar = pipe.progress_bar

    def progress_bar(total: int) -> Any:
        shown.append((total, len(given)))
        return bar(total=total)

    pipe.progress_bar = progress_bar
    made = codes_of(pipe, audio_length_in_s=1.2, num_inference_steps=5, num_fine_inference_steps=2, generator=seeds(0))
    assert (len(steps), len(given), pipe.num_timesteps) == (5, 2, 7)
    assert all(torch.equal(codes, made[:, :COARSE]) for codes in given)
    assert shown == [(10, 0)]  # one bar, whose total is put right as the second run begins
    pipe.register_to_config(call_defaults={"num_inference_steps": 3, "num_fine_inference_steps": 1})
    del steps[:], given[:]
    pipe(audio_length_in_s=1.2, output_type="codes")
    assert (len(steps), len(given)) == (3, 1)


def test_the_fine_model_is_given_the_codes_of_its_window(pipe: MaskedDiffusionAudioPipeline) -> None:
    codes = random_codes(1, 24)
    given: list[Tensor] = []
    pipe.fine_transformer.register_forward_pre_hook(
        lambda _, args, kwargs: given.append(kwargs["conditioning_codes"]), with_kwargs=True
    )
    keep = keep_codebooks(COARSE, CODEBOOKS)
    codes_of(pipe, codes=codes, keep=keep, chunk_length_s=1.0, num_inference_steps=1)
    assert len(given) == 3
    for seen_codes, start in zip(given, (0, 8, 14), strict=True):
        assert torch.equal(seen_codes, codes[:, :COARSE, start : start + 10])


def test_one_transformer_alone() -> None:
    pipe = tiny_audio.pipeline(fine=False)
    assert pipe.num_codebooks == COARSE
    out = pipe(audio_length_in_s=1.2, num_inference_steps=3, generator=seeds(0))
    assert out.codes.shape == (1, COARSE, 12)
    with torch.no_grad():
        assert torch.equal(out.audios[:, 0], pipe.codec.decode(audio_codes=out.codes).audio_values)
    both = tiny_audio.pipeline()
    assert torch.equal(
        codes_of(both, audio_length_in_s=1.2, num_inference_steps=3, generator=seeds(0))[:, :2], out.codes
    )


def classed(pipe: MaskedDiffusionAudioPipeline) -> MaskedDiffusionAudioPipeline:
    """Its coarse model knows three classes, which favour codes of their own."""
    model, forward = pipe.transformer, pipe.transformer.forward
    model.register_to_config(num_classes=3, id2label={"0": "yes", "1": "no", "2": "maybe"})
    favour = torch.randn(4, CODES, generator=seeds(0)[0])

    def with_class(sample: Tensor, class_labels: Tensor, **kwargs: Any) -> tuple[Tensor]:
        return (forward(sample, **kwargs)[0] + favour[class_labels][:, None],)

    model.forward = with_class
    pipe.favour = favour
    return pipe


def test_classes_and_guidance() -> None:
    pipe = classed(tiny_audio.pipeline(fine=False))
    logits = pipe.transformer(torch.full((2, COARSE, 12), MASK), torch.tensor([3, 3]), return_dict=False)[0]
    logits = logits - pipe.favour[3]
    for scale in (1.0, 3.0):
        expected = logits + pipe.favour[3] + scale * (pipe.favour[[0, 2]] - pipe.favour[3])[:, None]
        call = {"num_inference_steps": 1, "sampling_temperature": 0.0, "guidance_scale": scale}
        made = codes_of(pipe, class_labels=["yes", 2], audio_length_in_s=1.2, **call)
        assert torch.equal(made.flatten(1), expected.argmax(-1))
    plain = codes_of(pipe, audio_length_in_s=1.2, **(call | {"guidance_scale": 3.0}))
    assert torch.equal(plain.flatten(1), (logits + pipe.favour[3]).argmax(-1)[:1])


def test_a_fine_model_of_other_classes_is_refused() -> None:
    known = {"num_conditioning_codebooks": tiny_audio.COARSE}
    pipe = classed(tiny_audio.pipeline(fine_transformer=tiny_audio.transformer(num_classes=2, **known)))
    with pytest.raises(ValueError, match="must have the classes of the `transformer`, 3, or none, got 2"):
        pipe(class_labels=1, audio_length_in_s=1.2)


def test_a_class_of_the_coarse_model_does_not_reach_the_fine_one() -> None:
    pipe = classed(tiny_audio.pipeline())
    assert codes_of(pipe, class_labels=1, audio_length_in_s=1.2, guidance_scale=2.0).max() < CODES


# --- calls ------------------------------------------------------------------------------------------------------------


def test_several_clips_of_each_input(pipe: MaskedDiffusionAudioPipeline) -> None:
    codes, keep = random_codes(2, 12), keep_every(4, 12)
    call = {"codes": codes, "keep": keep, "num_waveforms_per_prompt": 2, "generator": seeds(0, 1, 2, 3)}
    made = codes_of(pipe, **call)
    assert made.shape == (4, CODEBOOKS, 12)
    kept = keep.expand(CODEBOOKS, 12)
    assert torch.equal(made[:, kept], codes.repeat_interleave(2, 0)[:, kept])
    assert torch.equal(codes_of(pipe, codes=codes[1:], keep=keep, generator=seeds(3)), made[3:])
    of_each = codes_of(pipe, codes=codes[:1], keep=torch.stack([kept, ~kept]), generator=seeds(0, 1))
    assert torch.equal(of_each[1][~kept], codes[0][~kept])


def test_callbacks(pipe: MaskedDiffusionAudioPipeline) -> None:
    """One may fix codes, and one may stop; what is still masked then is silent."""
    steps: list[int] = []

    def fix(_: Any, step: int, t: Tensor, given: dict) -> dict:
        steps.append(step)
        return {"codes": torch.full_like(given["codes"], 5)}

    assert (codes_of(pipe, audio_length_in_s=1.2, callback_on_step_end=fix) == 5).all()
    assert steps == [0, 1]

    def stop(pipeline: MaskedDiffusionAudioPipeline, step: int, t: Tensor, given: dict) -> dict:
        pipeline._interrupt = True
        return given

    codes = random_codes(1, 12)
    keep = keep_outside(0.5, 1.2, 12, 10.0)
    out = pipe(codes=codes, keep=keep, num_inference_steps=4, callback_on_step_end=stop)
    assert (out.codes[:, COARSE:, 5:] == MASK).all()
    assert torch.equal(out.codes[..., :5], codes[..., :5])
    assert out.audios[..., 5 * HOP :].abs().sum() == 0
    assert (out.audios[..., : 5 * HOP] != 0).all()
    assert pipe.num_timesteps == 1


@pytest.mark.parametrize(
    ("cache", "scheduler", "num_partial"),
    [
        (PartialCacheConfig(num_substeps=2), None, 6),
        (DelayedCacheConfig(refresh_every=1), None, 0),
        (DelayedCacheConfig(refresh_every=3), None, 2),
        (GreedyCacheConfig(refresh_every=2), HaltonScheduler, 2),
    ],
)
def test_caches_of_both_models(
    pipe: MaskedDiffusionAudioPipeline, cache: Any, scheduler: type[MaskedDiffusionScheduler] | None, num_partial: int
) -> None:
    if scheduler is not None:
        pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    codes, keep = random_codes(2, 12), torch.stack([keep_every(3, 12), keep_every(5, 12)])
    call = {"codes": codes, "keep": keep, "num_inference_steps": 3}
    plain = codes_of(pipe, generator=seeds(0, 1), **call)
    passes: list[bool] = []
    for model in (pipe.transformer, pipe.fine_transformer):
        model.register_forward_pre_hook(lambda _, args, kw: passes.append("positions" in kw), with_kwargs=True)
    pipe.enable_cache(cache)
    made = codes_of(pipe, generator=seeds(0, 1), **call)
    assert sum(passes) == num_partial
    assert num_partial or torch.equal(made, plain)
    kept = keep.expand(2, CODEBOOKS, 12)
    assert torch.equal(made[kept], codes[kept])
    assert (made < CODES).all()
    alone = codes_of(pipe, generator=seeds(1), **(call | {"codes": codes[1:], "keep": keep[1:]}))
    assert torch.equal(alone, made[1:])
    pipe.disable_cache()
    assert torch.equal(codes_of(pipe, generator=seeds(0, 1), **call), plain)


def test_a_model_that_joins_a_cached_pipeline_is_cached_too(pipe: MaskedDiffusionAudioPipeline) -> None:
    fine, passes = pipe.fine_transformer, list[bool]()
    fine.register_forward_pre_hook(lambda _, args, kw: passes.append("positions" in kw), with_kwargs=True)
    pipe.fine_transformer = None
    pipe.enable_cache(PartialCacheConfig(num_substeps=2))
    pipe.fine_transformer = fine
    codes_of(pipe, audio_length_in_s=1.2, num_inference_steps=2, generator=seeds(0))
    assert any(passes)
    pipe.disable_cache()
    passes.clear()
    codes_of(pipe, audio_length_in_s=1.2, num_inference_steps=2, generator=seeds(0))
    assert passes
    assert not any(passes)


def test_save_load_and_share(pipe: MaskedDiffusionAudioPipeline, tmp_path: Path) -> None:
    pipe.scheduler = UniformScheduler.from_config(pipe.scheduler.config)
    pipe.register_to_config(call_defaults={"num_inference_steps": 3})
    call = {"audio_length_in_s": 1.2, "generator": seeds(0)}
    expected = pipe(**call).audios
    pipe.save_pretrained(tmp_path / "both")
    for found in (MaskedDiffusionAudioPipeline, DiffusionPipeline):
        loaded = found.from_pretrained(tmp_path / "both")
        assert type(loaded) is MaskedDiffusionAudioPipeline
        assert (type(loaded.codec), type(loaded.fine_transformer)) == (DacModel, VampNetTransformer)
        loaded.set_progress_bar_config(disable=True)
        assert torch.equal(loaded(**(call | {"generator": seeds(0)})).audios, expected)
    card = (tmp_path / "both" / "README.md").read_text()
    assert "masked-diffusion-audio-generation" in card
    shared = MaskedDiffusionAudioPipeline.from_pipe(pipe)
    assert shared.codec is pipe.codec
    coarse = MaskedDiffusionAudioPipeline.from_pretrained(tmp_path / "both", fine_transformer=None)
    coarse.save_pretrained(tmp_path / "coarse")
    again = MaskedDiffusionAudioPipeline.from_pretrained(tmp_path / "coarse")
    assert again.fine_transformer is None
    assert again.num_codebooks == COARSE


def test_without_a_codec(pipe: MaskedDiffusionAudioPipeline, tmp_path: Path) -> None:
    """Codes come in and go out, seconds are told by the configuration, and only the codec of the models is taken."""
    pipe.codec = None
    with pytest.raises(ValueError, match="`sampling_rate` and `hop_length` of one"):
        _ = pipe.frame_rate
    pipe.register_to_config(sampling_rate=RATE, hop_length=HOP)
    pipe.save_pretrained(tmp_path)
    loaded = MaskedDiffusionAudioPipeline.from_pretrained(tmp_path)
    assert (loaded.codec, loaded.frame_rate) == (None, 10.0)
    call = {"audio_length_in_s": 1.2, "num_inference_steps": 2}
    assert codes_of(loaded, **call).shape == (1, CODEBOOKS, 12)
    for needs_one in (
        lambda: loaded(**call),
        lambda: loaded.encode_audio(clips(), RATE),
        lambda: loaded.decode_codes(random_codes(1, 3)),
        lambda: codes_of(loaded, audio=clips(), sampling_rate=RATE, keep=keep_every(2, 12)),
    ):
        with pytest.raises(ValueError, match="must be there to read or make audio"):
            needs_one()
    with_codec = MaskedDiffusionAudioPipeline.from_pretrained(tmp_path, codec=tiny_audio.dac())
    assert with_codec(**call).audios.shape == (1, 1, 96)
    other = MaskedDiffusionAudioPipeline.from_pretrained(tmp_path, codec=tiny_audio.dac(downsampling_ratios=[2, 2]))
    with pytest.raises(ValueError, match=r"\(80, 8\) of the models, got \(80, 4\)"):
        other(**call)


def test_offload(pipe: MaskedDiffusionAudioPipeline) -> None:
    call = {"audio": clips(), "sampling_rate": RATE, "keep": keep_every(4, 12), "num_inference_steps": 2}
    expected = pipe(**call, generator=seeds(0)).audios
    pipe.enable_model_cpu_offload(device="cpu")
    assert torch.equal(pipe(**call, generator=seeds(0)).audios, expected)
    assert not hasattr(pipe.codec, "_hf_hook")
    pipe.remove_all_hooks()
    pipe.enable_group_offload(torch.device("cpu"), offload_type="leaf_level", exclude_modules="codec")
    assert torch.equal(pipe(**call, generator=seeds(0)).audios, expected)


def test_the_task_of_transformers(pipe: MaskedDiffusionAudioPipeline, tmp_path: Path) -> None:
    """Clips come as data sets hold them; without one, a new one is made."""
    pipe.save_pretrained(tmp_path)
    keep, audio = keep_every(3, 12), clips(2)
    call = {"keep": keep, "num_inference_steps": 2}
    expected = pipe(audio=audio, sampling_rate=RATE, generator=seeds(0, 1), output_type="np", **call).audios
    given = [{"array": clip.numpy(), "sampling_rate": RATE} for clip in audio[:, 0]]
    for model in (pipe, str(tmp_path)):
        play = pipeline("masked-diffusion-audio-generation", model=model, device="cpu")
        made = play(given, generator=seeds(0, 1), batch_size=2, **call)
        assert [one["sampling_rate"] for one in made] == [RATE] * 2
        assert all(np.array_equal(one["audio"], clip) for one, clip in zip(made, expected, strict=True))
    alone = play(given[1], generator=seeds(1), **call)
    assert np.array_equal(alone["audio"], expected[1])
    several = play(audio_length_in_s=1.2, num_inference_steps=2, num_waveforms_per_prompt=3)
    assert [one["audio"].shape for one in several] == [(1, 96)] * 3
    for wrong in ([given[0], 3], [given[0], given[1] | {"sampling_rate": 8000}], [{"raw": audio[0]}]):
        with pytest.raises(ValueError, match="dictionaries of `array` and `sampling_rate`"):
            play(wrong, batch_size=2, **call)
    with pytest.raises(ValueError, match="must be an audio model"):
        pipeline("masked-diffusion-audio-generation", model=pipe.codec)


def test_a_model_in_training_is_refused(pipe: MaskedDiffusionAudioPipeline) -> None:
    pipe.fine_transformer = tiny_audio.transformer(num_conditioning_codebooks=COARSE, dropout=0.1).train()
    with pytest.raises(ValueError, match="`fine_transformer` must be in evaluation mode"):
        codes_of(pipe, audio_length_in_s=1.2)


def test_what_nothing_reads_is_refused() -> None:
    pipe = tiny_audio.pipeline(fine=False)
    with pytest.raises(ValueError, match="`num_fine_inference_steps` must be left out for a pipeline without"):
        codes_of(pipe, audio_length_in_s=1.2, num_fine_inference_steps=2)
    for given in ({"codes": random_codes(1, 12)[:, :COARSE]}, {"audio_length_in_s": 1.2}):
        with pytest.raises(ValueError, match="`sampling_rate` must come with `audio`, whose rate it is, got 44100"):
            codes_of(pipe, sampling_rate=44100, **given)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codec": tiny_audio.dac(n_codebooks=3)}, "`codec` must have the 4 codebooks"),
        ({"codec": tiny_audio.dac(codebook_size=32)}, "one `codebook_size`"),
        ({"scheduler": UniformScheduler(mask_token_id=20)}, "must have the model's mask 16"),
        ({"transformer": tiny_audio.transformer(num_conditioning_codebooks=2)}, "must draw the first codebooks"),
        ({"fine_transformer": tiny_audio.transformer(num_conditioning_codebooks=1)}, "must be given the 2 codebooks"),
    ],
)
def test_parts_that_do_not_belong_together(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        codes_of(tiny_audio.pipeline(**changes), audio_length_in_s=1.2)
