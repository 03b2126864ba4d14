"""Editing: what is kept comes back code by code, what is drawn anew is what the mask and the strength say."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from hf_maskdiff import HaltonScheduler, MaskedDiffusionScheduler, MaskGITPipeline, MomentScheduler
from hf_maskdiff.evaluation.digit_classifier import DigitClassifier
from hf_maskdiff.evaluation.image_data import load_labelled_images

MASK, SIDE, CODES, CLASSES = 16, 4, 16, 3  # codes of two by two pixels
TRAINED = Path(__file__).parents[2] / "pipelines" / "maskgit-mnist"
MakePipeline = Callable[..., MaskGITPipeline]


@pytest.fixture
def pipe(make_pipeline: MakePipeline) -> MaskGITPipeline:
    pipe = make_pipeline()
    # A new codebook's entries are all but equal; these are vectors of an image, so that images use them all.
    vectors = pipe.vqvae.encode(torch.rand(1, 1, 8, 8, generator=seeded(1))).latents
    pipe.vqvae.quantize.embedding.weight.data = vectors.detach()[0].flatten(1).T.contiguous()
    return pipe


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(3, 1, 8, 8, generator=seeded(0))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def each(*seeds: int) -> list[torch.Generator]:
    return [seeded(seed) for seed in seeds]


def edit(pipe: MaskGITPipeline, class_labels: object = None, **kwargs: object) -> torch.Tensor:
    kwargs = {"generator": seeded(0), "num_inference_steps": 5} | kwargs
    return pipe(class_labels, output_type="latent", **kwargs).images


def white(*areas: tuple[slice, slice]) -> torch.Tensor:
    """A mask of 8 x 8 pixels for each area."""
    masks = torch.zeros(len(areas), 1, 8, 8)
    for mask, area in zip(masks, areas, strict=True):
        mask[0][area] = 1
    return masks


ALL, HALF = slice(None), slice(4, 8)
THREE = white((HALF, ALL), (ALL, slice(0, 4)), (slice(2, 7), slice(5, 8)))
EDITABLE = THREE.unflatten(2, (4, 2)).unflatten(4, (4, 2)).amax((3, 5))[:, 0] == 1  # a code changes if any pixel may


def count_calls(pipe: MaskGITPipeline) -> list[int]:
    calls: list[int] = []
    pipe.transformer.register_forward_pre_hook(lambda *_: calls.append(1))
    return calls


# --- what is kept and what is drawn -----------------------------------------------------------------------------------


@pytest.mark.covering(1)  # other pairs are in test_image_combinations
@pytest.mark.parametrize(("strength", "guidance_scale"), [(1.0, 1.0), (1.0, 3.0), (0.6, (1.0, 3.0))])
def test_kept_codes_come_back(
    pipe: MaskGITPipeline,
    images: torch.Tensor,
    scheduler_class: type[MaskedDiffusionScheduler],
    strength: float,
    guidance_scale: float,
) -> None:
    """A mask of its own for each image of the batch."""
    pipe.scheduler = scheduler_class.from_config(pipe.scheduler.config)
    codes = pipe.encode_image(images)
    assert len(codes.unique()) > 8
    before = images.clone(), THREE.clone()
    arguments = {"strength": strength, "guidance_scale": guidance_scale}
    latents = edit(pipe, [0, 1, 2], image=images, mask_image=THREE, **arguments)
    assert torch.equal(latents[~EDITABLE], codes[~EDITABLE])
    assert (latents < CODES).all()
    for row in range(3):
        assert not torch.equal(latents[row][EDITABLE[row]], codes[row][EDITABLE[row]])
    assert torch.equal(images, before[0])
    assert torch.equal(THREE, before[1])


@pytest.mark.covering(1)
@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_an_edit_alone_is_the_edit_in_a_batch(
    pipe: MaskGITPipeline, images: torch.Tensor, scheduler_class: type[MaskedDiffusionScheduler], strength: float
) -> None:
    """Also beside images with other masks: one row ends earlier than the others."""
    pipe.scheduler = scheduler_class.from_config(pipe.scheduler.config)
    masks = THREE.clone()
    masks[1] = 0
    masks[1, 0, 3, 3] = 1
    batch = edit(pipe, [0, 1, 2], image=images, mask_image=masks, strength=strength, generator=each(5, 6, 7))
    for row in range(3):
        arguments = {"image": images[[row]], "mask_image": masks[[row]], "generator": each(5 + row)}
        assert torch.equal(edit(pipe, row, strength=strength, **arguments), batch[[row]])


@pytest.mark.covering(1)
@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_a_full_mask_is_plain_generation(
    pipe: MaskGITPipeline, images: torch.Tensor, scheduler_class: type[MaskedDiffusionScheduler], guidance_scale: float
) -> None:
    pipe.scheduler = scheduler_class.from_config(pipe.scheduler.config)
    plain = edit(pipe, [0, 1, 2], guidance_scale=guidance_scale)
    for mask in ({"mask_image": torch.ones(1, 1, 3, 5)}, {}):
        assert torch.equal(edit(pipe, [0, 1, 2], image=images, guidance_scale=guidance_scale, **mask), plain)


@pytest.mark.parametrize("strength", [1.0, 0.4])
def test_an_empty_mask_calls_no_model(pipe: MaskGITPipeline, images: torch.Tensor, strength: float) -> None:
    calls = count_calls(pipe)
    arguments = {"image": images, "mask_image": PIL.Image.new("L", (3, 9)), "strength": strength}
    assert torch.equal(edit(pipe, **arguments), pipe.encode_image(images))
    pictures = pipe([0, 1, 2], output_type="pt", **arguments).images
    assert torch.equal(pictures, pipe.decode_latents(pipe.encode_image(images)))
    assert calls == []
    assert pipe.num_timesteps == 0


# --- image-to-image ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "strength", "run"), [(8, 1.0, 8), (8, 0.5, 4), (8, 0.3, 2), (5, 0.5, 2), (10, 0.35, 4), (3, 0.99, 3)]
)
def test_strength_is_the_share_of_steps(
    pipe: MaskGITPipeline, images: torch.Tensor, steps: int, strength: float, run: int
) -> None:
    """The last steps of the run, each at its own time; the counts follow from the size of the editable region."""
    seen: list[tuple[int, float, list[int]]] = []

    def callback(pipeline: MaskGITPipeline, step: int, t: torch.Tensor, tensors: dict) -> dict:
        seen.append((step, float(t), (tensors["latents"] == MASK).flatten(1).sum(1).tolist()))
        return tensors

    calls, totals, bar = count_calls(pipe), [], pipe.progress_bar
    pipe.progress_bar = lambda total: totals.append(total) or bar(total=total)
    arguments = {"image": images, "strength": strength, "callback_on_step_end": callback}
    edit(pipe, [0, 1, 2], num_inference_steps=steps, **arguments)
    assert len(calls) == totals[0] == len(seen) == pipe.num_timesteps == run
    assert [step for step, _, _ in seen] == list(range(run))
    assert [t for _, t, _ in seen] == pytest.approx([(run - n) / steps for n in range(run)])
    start = pipe.scheduler.add_noise(pipe.encode_image(images), run / steps, seeded(0)) if run < steps else None
    left = [16] * 3 if start is None else (start == MASK).flatten(1).sum(1).tolist()
    for n, (_, _, masks) in enumerate(seen):
        target = int(16 * np.cos(np.pi / 2 * (1 - (run - n - 1) / steps)) + 1e-9)
        left = [max(0, min(masked - 1, target)) for masked in left]
        assert masks == left


def test_strength_masks_as_add_noise_does(pipe: MaskGITPipeline, images: torch.Tensor) -> None:
    """Within the mask only; with the same seed a weaker edit masks a part of what a stronger one does."""
    codes, masked = pipe.encode_image(images), []
    for strength in (0.2, 0.4, 0.6, 0.8):
        pipe.scheduler.set_timesteps(5)
        first_step = 5 - round(5 * strength)
        latents, initial = pipe.prepare_image_latents(codes, EDITABLE, first_step, each(1, 2, 3))
        noisy = pipe.scheduler.add_noise(codes, strength, each(1, 2, 3))
        assert torch.equal(latents, torch.where(EDITABLE, noisy, codes))
        assert initial.tolist() == [8, 8, 6]
        masked.append(latents == MASK)
    assert all((weak <= strong).all() and not torch.equal(weak, strong) for weak, strong in pairwise(masked))
    latents = edit(pipe, image=images, mask_image=THREE, strength=0.4, generator=each(1, 2, 3))
    assert torch.equal(latents[~masked[1]], codes[~masked[1]])
    assert not torch.equal(latents, codes)


def test_callbacks(pipe: MaskGITPipeline, images: torch.Tensor) -> None:
    """One may fix codes within the region that is drawn anew, and one may stop."""
    codes = pipe.encode_image(images)

    def fix(pipeline: MaskGITPipeline, step: int, t: torch.Tensor, tensors: dict) -> dict:
        assert torch.equal(tensors["latents"][~EDITABLE], codes[~EDITABLE])
        return {"latents": tensors["latents"].masked_fill(EDITABLE, 5)}

    calls = count_calls(pipe)
    latents = edit(pipe, image=images, mask_image=THREE, callback_on_step_end=fix)
    assert torch.equal(latents, codes.masked_fill(EDITABLE, 5))
    assert len(calls) == 1

    def stop(pipeline: MaskGITPipeline, step: int, t: torch.Tensor, tensors: dict) -> dict:
        pipeline._interrupt = True
        return tensors

    latents = edit(pipe, image=images, mask_image=THREE, callback_on_step_end=stop)
    assert torch.equal(latents[~EDITABLE], codes[~EDITABLE])
    assert (latents == MASK).any()


# --- what may be given ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(8, 8), (16, 8), (4, 4), (3, 3), (5, 7), (9, 2), (1, 1), (30, 33)])
def test_a_code_is_drawn_anew_if_any_of_its_pixels_is_white(pipe: MaskGITPipeline, size: tuple[int, int]) -> None:
    """A white pixel of a mask of any size frees just the codes that it overlaps."""
    height, width = size
    for y in range(height):
        for x in range(width):
            mask = torch.full(size, 0.49)
            mask[y, x] = 0.5
            rows = [row * height < (y + 1) * SIDE and y * SIDE < (row + 1) * height for row in range(SIDE)]
            columns = [column * width < (x + 1) * SIDE and x * SIDE < (column + 1) * width for column in range(SIDE)]
            expected = torch.tensor(rows)[:, None] & torch.tensor(columns)
            assert torch.equal(pipe.preprocess_mask(mask)[0], expected)


def test_an_image_and_a_mask_of_other_sizes(pipe: MaskGITPipeline) -> None:
    large = PIL.Image.effect_noise((50, 31), 90)
    small = large.resize((8, 8), PIL.Image.Resampling.LANCZOS)
    mask = PIL.Image.new("L", (13, 5))
    mask.paste(255, (7, 0, 13, 5))  # pixel 7 of 13 begins within the third of four columns
    latents = edit(pipe, image=large, mask_image=mask)
    assert torch.equal(latents[..., :2], pipe.encode_image(pipe.preprocess_image(small))[..., :2])
    assert torch.equal(latents, edit(pipe, image=small, mask_image=white((ALL, HALF))))


def test_every_form_of_an_image(pipe: MaskGITPipeline, images: torch.Tensor) -> None:
    """What diffusers' image processors accept, and for the image what they make of it."""
    picture = PIL.Image.fromarray((images[0, 0].numpy() * 255).round().astype("uint8"))
    array = np.asarray(picture) / 255
    tensor = torch.from_numpy(array).float()
    forms = [picture, picture.convert("RGB"), array, array[..., None], array[None, ..., None]]
    forms += [tensor, tensor[None], tensor[None, None], tensor.double(), tensor.half().float()]
    for form in forms[:-1]:
        for given in (form, [form], (form,)):
            assert torch.equal(pipe.preprocess_image(given), tensor[None, None])
    assert pipe.preprocess_image([picture, array, tensor]).shape == (3, 1, 8, 8)
    assert pipe.preprocess_image(images[:, 0]).shape == (3, 1, 8, 8)  # a batch without channels

    on = THREE[0, 0] == 1
    picture = PIL.Image.fromarray(on.numpy().astype("uint8") * 255)
    forms = [picture, picture.convert("1"), picture.convert("RGB"), on, on.long(), on.half(), on.numpy(), on[None]]
    for form in [*forms, on.numpy()[..., None].astype("float64")]:
        for given in (form, [form]):
            assert torch.equal(pipe.preprocess_mask(given), EDITABLE[:1])
    assert torch.equal(pipe.preprocess_mask([picture, THREE[1], THREE[2, 0].numpy()]), EDITABLE)
    assert torch.equal(pipe.preprocess_mask([picture.resize((80, 40)), THREE[1], THREE[2]]), EDITABLE)


def test_a_colour_model_reads_colours(make_pipeline: MakePipeline) -> None:
    tiny = make_pipeline()
    vqvae = type(tiny.vqvae).from_config(tiny.vqvae.config, in_channels=3, out_channels=3)
    pipe = MaskGITPipeline(vqvae.eval(), tiny.transformer, tiny.scheduler)
    for mode, channels in (("L", 3), ("RGBA", 3), ("P", 3), ("CMYK", 3)):
        assert pipe.preprocess_image(PIL.Image.new(mode, (20, 30))).shape == (1, channels, 8, 8)
    pipe.set_progress_bar_config(disable=True)
    assert edit(pipe, image=torch.rand(2, 3, 9, 9), strength=0.6).shape == (2, SIDE, SIDE)
    with pytest.raises(ValueError, match=r"`image` must hold images of 3 channel\(s\), got \[\(1, 8, 8\)\]. Pass PIL"):
        pipe(image=torch.rand(1, 8, 8))


def test_one_for_all_or_one_for_each(pipe: MaskGITPipeline, images: torch.Tensor) -> None:
    """Labels, images and masks each count once for all rows, or row by row; each row comes as often as is wanted."""

    def rows(class_labels: object, seeds: int, **kwargs: object) -> torch.Tensor:
        return edit(pipe, class_labels, generator=each(*range(seeds)), **kwargs)

    expected = rows([1, 1, 1], 3, image=images, mask_image=THREE)
    assert torch.equal(rows(1, 3, image=images, mask_image=THREE), expected)
    assert torch.equal(rows([1], 3, image=list(images), mask_image=list(THREE)), expected)
    assert not torch.equal(rows(None, 3, image=images, mask_image=THREE), expected)
    one_image = rows([0, 1, 2], 3, image=images[0], mask_image=THREE)
    assert torch.equal(one_image, rows([0, 1, 2], 3, image=images[[0, 0, 0]], mask_image=THREE))
    one_mask = rows([0, 1, 2], 3, image=images, mask_image=THREE[2])
    assert torch.equal(one_mask, rows([0, 1, 2], 3, image=images, mask_image=THREE[[2, 2, 2]]))
    twice = rows([0, 1, 2], 6, image=images, mask_image=THREE, num_images_per_prompt=2, strength=0.6)
    repeated = [0, 0, 1, 1, 2, 2]
    arguments = {"image": images[repeated], "mask_image": THREE[repeated], "strength": 0.6}
    assert torch.equal(twice, rows(repeated, 6, **arguments))


# --- the tokenizer ----------------------------------------------------------------------------------------------------


def test_codes_are_the_nearest_entries(pipe: MaskGITPipeline, images: torch.Tensor) -> None:
    vectors = pipe.vqvae.encode(images).latents.permute(0, 2, 3, 1)
    distances = (vectors[..., None, :] - pipe.vqvae.quantize.embedding.weight).square().sum(-1)
    assert torch.equal(pipe.encode_image(images), distances.argmin(-1))


@pytest.mark.parametrize("force_upcast", [True, False])
def test_half_precision(pipe: MaskGITPipeline, images: torch.Tensor, force_upcast: bool) -> None:
    """A tokenizer that asks for it encodes and decodes in float32, and is left as it was, also after an error."""
    pipe.vqvae.register_to_config(force_upcast=force_upcast)
    pipe.vqvae.half()
    dtypes = []
    pipe.vqvae.encoder.register_forward_pre_hook(lambda module, args: dtypes.append(args[0].dtype))
    pipe.vqvae.decoder.register_forward_pre_hook(lambda module, args: dtypes.append(args[0].dtype))
    pictures = pipe(image=images, mask_image=THREE, output_type="pt").images
    assert pictures.shape == images.shape
    assert dtypes == [torch.float32 if force_upcast else torch.float16] * 2
    assert pipe.vqvae.dtype == torch.float16
    with pytest.raises(RuntimeError):
        pipe.encode_image(torch.zeros(1, 7, 8, 8))
    assert pipe.vqvae.dtype == torch.float16


def test_model_offload(pipe: MaskGITPipeline, images: torch.Tensor) -> None:
    plain = edit(pipe, image=images, mask_image=THREE, strength=0.6)
    pipe.enable_model_cpu_offload(device="cpu")
    for _ in range(2):
        assert torch.equal(edit(pipe, image=images, mask_image=THREE, strength=0.6), plain)
    pipe.remove_all_hooks()
    assert torch.equal(edit(pipe, image=images, mask_image=THREE, strength=0.6), plain)


# --- bad input --------------------------------------------------------------------------------------------------------

IMAGE = torch.zeros(1, 1, 8, 8)
NAN = torch.full((1, 1, 8, 8), torch.nan)
COUNTS = r"`class_labels`, `image`.* must hold one each, or as many as the others, got .*: 2, .*3.*\. Pass one"
CALLS = {
    "mask without image": ({"mask_image": IMAGE}, "`mask_image` must come with an `image`, got none. Pass the image"),
    "strength without image": ({"strength": 0.5}, "`strength` must come with an `image`, got none. Pass the image"),
    "image and latents": (
        {"image": IMAGE, "latents": torch.full((1, 4, 4), MASK)},
        "`latents` must be None where an `image` is given, got both. Pass",
    ),
    "two labels, three images": ({"class_labels": [0, 1], "image": IMAGE.expand(3, -1, -1, -1)}, COUNTS),
    "two labels, three masks": (
        {"class_labels": [0, 1], "image": IMAGE, "mask_image": IMAGE.expand(3, -1, -1, -1)},
        COUNTS,
    ),
    "no images": ({"image": []}, r"`image` must hold images of 1 channel\(s\), got \[\]. Pass PIL"),
    "no masks": ({"image": IMAGE, "mask_image": []}, r"`mask_image` must hold images of 1 channel\(s\), got \[\]"),
    "a path": ({"image": "digit.png"}, r"`image` must be a PIL image, .*, got \['digit.png'\]. Pass"),
    "bytes as integers": ({"image": IMAGE.long()}, r"`image` must be a PIL image, a float array or tensor, .*\(1, 1"),
    "colours": ({"image": torch.zeros(1, 3, 8, 8)}, r"`image` must hold images of 1 channel\(s\), got \[\(1, 3, 8, 8"),
    "four channels": ({"image": torch.zeros(1, 4, 8, 8)}, r"`image` must hold images of 1 channel\(s\), got \[\(1, 4"),
    "NaN": ({"image": NAN}, r"`image` must hold values in \[0, 1\], got values from nan to nan. Divide"),
    "normalised": ({"image": IMAGE - 1}, r"`image` must hold values in \[0, 1\], got values from -1 to -1. Divide"),
    "bytes": ({"image": np.full((8, 8), 255, "uint8")}, r"`image` must hold values in \[0, 1\], got .*255. Divide"),
    "NaN in the mask": ({"image": IMAGE, "mask_image": NAN}, r"`mask_image` must hold values in \[0, 1\], got .*nan"),
    "mask above 1": ({"image": IMAGE, "mask_image": IMAGE + 2}, r"`mask_image` must hold values in \[0, 1\], got .*2"),
    "mask in colours": (
        {"image": IMAGE, "mask_image": torch.zeros(1, 3, 8, 8)},
        r"`mask_image` must hold images of 1 channel\(s\), got \[\(1, 3, 8, 8\)\]. Pass PIL",
    ),
    "strength 0": ({"image": IMAGE, "strength": 0}, r"`strength` must be in \(0, 1\], got 0. Pass the share"),
    "strength 1.1": ({"image": IMAGE, "strength": 1.1}, r"`strength` must be in \(0, 1\], got 1.1"),
    "strength NaN": ({"image": IMAGE, "strength": float("nan")}, r"`strength` must be in \(0, 1\], got nan"),
    "strength as text": ({"image": IMAGE, "strength": "1"}, r"`strength` must be in \(0, 1\], got '1'"),
    "no steps left": (
        {"image": IMAGE, "strength": 0.05},
        "`strength` must leave a step to run, got 0.05 of 8 steps. Pass at least 0.12, or more steps",
    ),
    "generators": (
        {"image": IMAGE, "generator": each(1, 2)},
        "generators must hold one per row, got 2 for a batch of 1",
    ),
}


@pytest.mark.parametrize("case", CALLS)
def test_what_cannot_work_is_refused_before_any_model_call(pipe: MaskGITPipeline, case: str) -> None:
    wrong, message = CALLS[case]
    calls = []
    for module in (pipe.transformer, pipe.vqvae.encoder, pipe.vqvae.decoder):
        module.register_forward_pre_hook(lambda *_: calls.append(1))
    with pytest.raises(ValueError, match=message):
        pipe(**wrong)
    assert calls == []
    pipe(image=IMAGE, num_inference_steps=1)
    assert calls == [1, 1, 1]


# --- the trained model ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained() -> MaskGITPipeline:
    if not TRAINED.exists():
        pytest.skip(f"{TRAINED.name} is not there")
    pipe = MaskGITPipeline.from_pretrained(TRAINED)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("scheduler_type", [MomentScheduler, HaltonScheduler])
def test_digits_are_completed_and_changed(
    trained: MaskGITPipeline, data_folder: Path, scheduler_type: type[MaskedDiffusionScheduler]
) -> None:
    """Real digits: with its lower part drawn anew one is still that digit; a stronger edit gets closer to another."""
    pipe = MaskGITPipeline(**(trained.components | {"scheduler": scheduler_type.from_config(trained.scheduler.config)}))
    pipe.set_progress_bar_config(disable=True)
    digits = load_labelled_images("test", data_dir=data_folder / "mnist")
    images, labels = digits.images[:64].float() / 255, digits.labels[:64]
    judge = DigitClassifier.from_pretrained(TRAINED / "digit_classifier").eval()

    def is_a(pictures: torch.Tensor, wanted: torch.Tensor) -> float:
        with torch.no_grad():
            return float((judge(pictures).logits.argmax(-1) == wanted).float().mean())

    mask = torch.zeros(28, 28)
    mask[16:] = 1
    arguments = {"image": images, "generator": seeded(0), "output_type": "pt", "num_inference_steps": 10}
    completed = pipe(labels, mask_image=mask, **arguments).images
    assert is_a(completed, labels) > 0.85
    assert (completed[:, :, :12] - images[:, :, :12]).square().mean() < 0.005
    assert (completed[:, :, 16:] - images[:, :, 16:]).square().mean() > 0.02

    wanted = (labels + 5) % 10
    edits = [pipe(wanted, strength=strength, **arguments).images for strength in (0.2, 0.6, 1.0)]
    accuracy = [is_a(pictures, wanted) for pictures in edits]
    distance = [float((pictures - images).square().mean()) for pictures in edits]
    assert accuracy == sorted(accuracy)
    assert accuracy[0] < 0.3
    assert accuracy[2] > 0.8
    assert distance == sorted(distance)
    assert distance[2] > 2 * distance[0]
