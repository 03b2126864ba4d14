"""diffusers' own generic tests, unchanged, on our pipeline, model and schedulers, and on its aMUSEd pipeline with them.

They are not part of the installed package: `HF_MASKDIFF_DIFFUSERS` names a checkout of diffusers near the installed
version, of which only `tests/` is read.

    git clone --depth 1 https://github.com/huggingface/diffusers
    HF_MASKDIFF_DIFFUSERS=$PWD/diffusers pytest tests/test_diffusers_suites.py

What does not apply is left out by name, with the reason, in `without(...)`; what upstream skips on a CPU runs where
there is an accelerator.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import pytest
import torch
from concrete import SCHEDULERS
from diffusers import AmusedPipeline

from hf_maskdiff import (
    HaltonMaskGITTransformer2DModel,
    MaskedDiffusionScheduler,
    MaskedDiffusionTextToImagePipeline,
    MaskGITPipeline,
)

CHECKOUT = os.environ.get("HF_MASKDIFF_DIFFUSERS")
if CHECKOUT is None:
    reason = "HF_MASKDIFF_DIFFUSERS is not set: it names a diffusers checkout, whose generic tests are run"
    pytest.skip(reason, allow_module_level=True)

sys.path.insert(0, CHECKOUT)


def peer(name: str) -> ModuleType:
    """A module of the checkout's tests; never `from ... import`, which would collect its classes here."""
    return importlib.import_module(f"tests.{name}")


pipelines, models, schedulers = (
    peer("pipelines.testing_utils"),
    peer("models.testing_utils"),
    peer("schedulers.test_schedulers"),
)
pipeline_params, DEVICE = peer("pipelines.pipeline_params"), peer("testing_utils").torch_device


needs_accelerator = pytest.mark.skipif(DEVICE == "cpu", reason="upstream runs these tests on accelerators only")


def without(**reasons: str) -> Callable[[type], type]:
    """Class decorator: report these upstream tests as skipped, each with the reason it does not apply."""

    def decorate(cls: type) -> type:
        for name, reason in reasons.items():

            def left_out(self: object) -> None:
                pass

            setattr(cls, name, pytest.mark.skip(reason=reason)(left_out))
        return cls

    return decorate


# --- the image pipeline -----------------------------------------------------------------------------------------------


class MaskGITConfig(pipelines.BasePipelineTesterConfig):
    pipeline_class = MaskGITPipeline
    required_input_params_in_call_signature = pipeline_params.CLASS_CONDITIONED_IMAGE_GENERATION_PARAMS
    batch_input_params = pipeline_params.CLASS_CONDITIONED_IMAGE_GENERATION_BATCH_PARAMS
    output_shape = (1, 8, 8)

    @pytest.fixture(scope="class", autouse=True)
    def tiny_pipeline(self, request: pytest.FixtureRequest, make_pipeline: Callable[..., MaskGITPipeline]) -> None:
        request.cls.make_pipeline = staticmethod(make_pipeline)

    def get_dummy_components(self, num_layers: int = 2) -> dict[str, object]:
        return self.make_pipeline(num_layers=num_layers).components

    def get_dummy_inputs(self) -> dict[str, object]:
        inputs = {"class_labels": 1, "num_inference_steps": 4, "guidance_scale": 2.0, "output_type": "pt"}
        return inputs | {"generator": self.get_generator()}


class TestMaskGITPipeline(MaskGITConfig, pipelines.PipelineTesterMixin):
    pass


class TestMaskGITPipelineMemory(
    MaskGITConfig,
    pipelines.PipelineOffloadTesterMixin,
    pipelines.GroupOffloadTesterMixin,
    pipelines.LayerwiseCastingTesterMixin,
):
    pass


class TestMaskGITPipelineFirstBlockCache(MaskGITConfig, pipelines.FirstBlockCacheTesterMixin):
    pass


class TestMaskGITPipelineMagCache(MaskGITConfig, pipelines.MagCacheTesterMixin):
    pass


class TestMaskGITPipelineTaylorSeerCache(MaskGITConfig, pipelines.TaylorSeerCacheTesterMixin):
    def test_taylorseer_cache_inference(self) -> None:
        """With the tolerance upstream gives random models elsewhere: one other code is 0.12 here."""
        super().test_taylorseer_cache_inference(expected_atol=0.2)


class TestMaskGITPipelinePyramidAttentionBroadcast(MaskGITConfig, pipelines.PyramidAttentionBroadcastTesterMixin):
    """Its steps are counted by calls of the model: without guidance. Its range of times is ours, in (0, 1]."""

    PAB_CONFIG = pipelines.PyramidAttentionBroadcastTesterMixin.PAB_CONFIG | {
        "spatial_attention_timestep_skip_range": (0.1, 0.8)
    }

    def get_dummy_inputs(self) -> dict[str, object]:
        return super().get_dummy_inputs() | {"guidance_scale": 1.0}


# --- the model --------------------------------------------------------------------------------------------------------


class RandomHaltonMaskGIT(HaltonMaskGITTransformer2DModel):
    """A new model's blocks are the identity: nothing done to them would show."""

    def _initialise_weights(self) -> None:
        for parameter in self.parameters():
            torch.nn.init.normal_(parameter, std=0.3)


class HaltonMaskGITConfig(models.BaseModelTesterConfig):
    model_class = RandomHaltonMaskGIT
    main_input_name = "sample"
    output_shape = (16, 11)
    model_split_percents = (0.5, 0.7)

    def get_init_dict(self) -> dict[str, int]:
        config = {"sample_size": 4, "codebook_size": 10, "num_classes": 3, "hidden_size": 32, "num_layers": 2}
        return config | {"num_attention_heads": 3, "intermediate_size": 48}

    def get_dummy_inputs(self) -> dict[str, torch.Tensor]:
        sample = torch.randint(0, 11, (2, 4, 4), generator=torch.Generator().manual_seed(0))
        return {"sample": sample.to(DEVICE), "class_labels": torch.tensor([1, 3], device=DEVICE)}


class TestHaltonMaskGIT(HaltonMaskGITConfig, models.ModelTesterMixin):
    pass


class TestHaltonMaskGITAttention(HaltonMaskGITConfig, models.AttentionTesterMixin):
    pass


class TestHaltonMaskGITAttentionBackend(HaltonMaskGITConfig, models.AttentionBackendTesterMixin):
    pass


class TestHaltonMaskGITTraining(HaltonMaskGITConfig, models.TrainingTesterMixin):
    def test_gradient_checkpointing_is_applied(self) -> None:
        super().test_gradient_checkpointing_is_applied(expected_set={"RandomHaltonMaskGIT"})


class TestHaltonMaskGITCompile(HaltonMaskGITConfig, models.TorchCompileTesterMixin):
    pass


@needs_accelerator
class TestHaltonMaskGITOffload(HaltonMaskGITConfig, models.CPUOffloadTesterMixin, models.GroupOffloadTesterMixin):
    pass


class TestHaltonMaskGITLayerwiseCasting(HaltonMaskGITConfig, models.LayerwiseCastingTesterMixin):
    pass


class TestHaltonMaskGITLora(HaltonMaskGITConfig, models.LoraTesterMixin):
    pass


TOKENS_TAKE_NO_NOISE = "it adds Gaussian noise to the input, which here is tokens; test_placement tries the caches"


@without(test_fbc_cache_inference=TOKENS_TAKE_NO_NOISE)
class TestHaltonMaskGITFirstBlockCache(HaltonMaskGITConfig, models.FirstBlockCacheTesterMixin):
    pass


@without(test_mag_cache_inference=TOKENS_TAKE_NO_NOISE)
class TestHaltonMaskGITMagCache(HaltonMaskGITConfig, models.MagCacheTesterMixin):
    pass


@without(test_taylorseer_cache_inference=TOKENS_TAKE_NO_NOISE)
class TestHaltonMaskGITTaylorSeerCache(HaltonMaskGITConfig, models.TaylorSeerCacheTesterMixin):
    pass


@without(test_pab_cache_inference=TOKENS_TAKE_NO_NOISE)
class TestHaltonMaskGITPyramidAttentionBroadcast(HaltonMaskGITConfig, models.PyramidAttentionBroadcastTesterMixin):
    pass


# --- the text-to-image pipeline ---------------------------------------------------------------------------------------


class TextToImageConfig(pipelines.BasePipelineTesterConfig):
    pipeline_class = MaskedDiffusionTextToImagePipeline
    required_input_params_in_call_signature = pipeline_params.TEXT_TO_IMAGE_PARAMS - {"cross_attention_kwargs"}
    batch_input_params = pipeline_params.TEXT_TO_IMAGE_BATCH_PARAMS

    @pytest.fixture(scope="class", autouse=True)
    def folder(self, request: pytest.FixtureRequest, golden_folder: Path) -> None:
        request.cls.folder = golden_folder / "amused" / "pipeline"
        request.cls.output_shape = (3, *[pixels_of(request.cls.folder)] * 2)

    def get_dummy_components(self) -> dict[str, object]:
        return MaskedDiffusionTextToImagePipeline.from_pretrained(type(self).folder).components

    def get_dummy_inputs(self) -> dict[str, object]:
        inputs = {"prompt": "A painting of a squirrel eating a burger", "num_inference_steps": 2, "output_type": "pt"}
        return inputs | {"generator": self.get_generator()}


def pixels_of(folder: Path) -> int:
    """Per side of the images of an aMUSEd."""
    configs = [json.loads((folder / part / "config.json").read_text()) for part in ("transformer", "vqvae")]
    return configs[0]["sample_size"] * 2 ** (len(configs[1]["block_out_channels"]) - 1)


@without(
    test_save_load_optional_components="without the text encoder a prompt must come encoded, which the call says",
    test_encode_prompt_works_in_isolation="the class is looked for among diffusers' own pipelines",
)
class TestTextToImagePipeline(TextToImageConfig, pipelines.PipelineTesterMixin):
    pass


class TestTextToImagePipelineMemory(
    TextToImageConfig,
    pipelines.PipelineOffloadTesterMixin,
    pipelines.GroupOffloadTesterMixin,
    pipelines.LayerwiseCastingTesterMixin,
):
    pass


# --- the schedulers, and diffusers' aMUSEd pipeline with each of them -------------------------------------------------


class SchedulerConfig(dict):
    """Ours, with the one entry that the discrete branch of the upstream tests reads."""

    def __missing__(self, key: str) -> int:
        assert key == "num_vec_classes"
        return 17


class SchedulerSuite(schedulers.SchedulerCommonTest):
    """Upstream's branch for discrete samples is that of VQDiffusionScheduler: ours takes its name."""

    forward_default_kwargs = (("num_inference_steps", 5),)
    default_num_inference_steps = 5
    __test__ = False

    def setUp(self) -> None:
        patch = mock.patch.object(schedulers, "VQDiffusionScheduler", self.scheduler_classes[0])
        patch.start()
        self.addCleanup(patch.stop)

    def get_scheduler_config(self, **config: Any) -> SchedulerConfig:
        return SchedulerConfig({"mask_token_id": 16, **config})

    def dummy_sample(self, num_tokens: int) -> torch.Tensor:
        sample = torch.randint(0, num_tokens, (4, 36), generator=torch.Generator().manual_seed(0))
        return sample.masked_fill(torch.rand(4, 36, generator=torch.Generator().manual_seed(1)) < 0.7, 16)

    def dummy_model(self, num_tokens: int) -> Callable[..., torch.Tensor]:
        return lambda sample, t: torch.randn(*sample.shape, num_tokens, generator=torch.Generator().manual_seed(2))

    def test_configs(self) -> None:
        for config in ({"masking_schedule": "linear"}, {"rounding": "even"}, {"top_k": 3}, {"top_p": 0.9}):
            self.check_over_configs(**config)

    def test_forward(self) -> None:
        for time_step in (1.0, 0.6, 0.2, 0.0):
            self.check_over_forward(time_step=time_step)


class AmusedConfig(pipelines.BasePipelineTesterConfig):
    pipeline_class = AmusedPipeline
    required_input_params_in_call_signature = pipeline_params.TEXT_TO_IMAGE_PARAMS - {"cross_attention_kwargs"}
    batch_input_params = pipeline_params.TEXT_TO_IMAGE_BATCH_PARAMS
    scheduler_class: type[MaskedDiffusionScheduler]

    @pytest.fixture(autouse=True)
    def skip_if_deprecated(self) -> None:
        """aMUSEd is deprecated upstream and still shipped: it is run all the same."""

    @pytest.fixture(scope="class", autouse=True)
    def folder(self, request: pytest.FixtureRequest, golden_folder: Path) -> None:
        request.cls.folder = golden_folder / "amused" / "pipeline"
        request.cls.output_shape = (3, *[pixels_of(request.cls.folder)] * 2)

    def get_dummy_components(self) -> dict[str, object]:
        components = AmusedPipeline.from_pretrained(type(self).folder).components
        return components | {"scheduler": self.scheduler_class.from_config(components["scheduler"].config)}

    def get_dummy_inputs(self) -> dict[str, object]:
        inputs = {"prompt": "A painting of a squirrel eating a burger", "num_inference_steps": 2, "output_type": "pt"}
        return inputs | {"generator": self.get_generator()}


for scheduler_class in SCHEDULERS:
    name = f"Test{scheduler_class.__name__}"
    globals()[name] = without(test_add_noise_device="it adds Gaussian noise with `scale_model_input`")(
        type(name, (SchedulerSuite,), {"scheduler_classes": (scheduler_class,), "__test__": True})
    )
    name = f"TestAmusedPipelineWith{scheduler_class.__name__}"
    bases = (AmusedConfig, pipelines.PipelineTesterMixin)
    globals()[name] = type(name, bases, {"scheduler_class": scheduler_class})
