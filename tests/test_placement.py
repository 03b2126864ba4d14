"""Where weights live, in which dtype, and what runs them: the same images with each option, and again without it.

The table of docs/placement.md, row by row, on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import CpuOffload
from diffusers import (
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
)
from diffusers.hooks import HookRegistry
from diffusers.models import attention_dispatch

from hf_maskdiff import MaskGITPipeline

CPU = torch.device("cpu")
MakePipeline = Callable[..., MaskGITPipeline]
Images = tuple[torch.Tensor, torch.Tensor]


@pytest.fixture
def pipe(make_pipeline: MakePipeline) -> MaskGITPipeline:
    return make_pipeline()


@pytest.fixture(scope="module")
def expected(make_pipeline: MakePipeline) -> Images:
    return generate(make_pipeline())


@pytest.fixture(scope="module")
def folder(make_pipeline: MakePipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pipeline")
    make_pipeline().save_pretrained(path)
    return path


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def load(folder: Path, **kwargs: object) -> MaskGITPipeline:
    pipe = MaskGITPipeline.from_pretrained(folder, **kwargs)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generate(pipe: MaskGITPipeline) -> Images:
    """Codes of three new images, and pictures of two edited ones: every component, guided, a generator per image."""
    arguments = {"guidance_scale": 2.0, "num_inference_steps": 4}
    codes = pipe([0, 1, 2], generator=seeded(0, 1, 2), output_type="latent", **arguments).images
    original = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    arguments |= {"image": original, "strength": 0.5, "generator": seeded(4, 5), "output_type": "pt"}
    return codes.cpu(), pipe([2, 0], **arguments).images.float().cpu()


def assert_same(images: Images, expected: Images, tolerance: float = 1e-5) -> None:
    assert torch.equal(images[0], expected[0])
    torch.testing.assert_close(images[1], expected[1], atol=tolerance, rtol=0)


def hooked(pipe: MaskGITPipeline) -> list[str]:
    """The modules that carry a hook of accelerate or of diffusers."""
    modules = [*pipe.transformer.modules(), *pipe.vqvae.modules()]
    accelerate_hooks = [type(m._hf_hook).__name__ for m in modules if hasattr(m, "_hf_hook")]
    registries = [m._diffusers_hook for m in modules if hasattr(m, "_diffusers_hook")]
    return accelerate_hooks + [name for registry in registries for name in registry.hooks]


# --- dtypes and loading -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_at_loading_and_after(
    pipe: MaskGITPipeline, folder: Path, expected: Images, dtype: torch.dtype
) -> None:
    images = generate(load(folder, dtype=dtype))
    assert_same(generate(pipe.to(dtype=dtype)), images, tolerance=0)
    assert (images[0] == expected[0]).float().mean() > 0.6  # rounded logits move some codes
    exact = pipe.to(dtype=torch.float32)
    assert exact.transformer.dtype == exact.vqvae.dtype == torch.float32


def test_a_dtype_for_each_component(folder: Path) -> None:
    pipe = load(folder, dtype={"transformer": torch.bfloat16, "default": torch.float32})
    assert (pipe.transformer.dtype, pipe.vqvae.dtype) == (torch.bfloat16, torch.float32)
    codes, pictures = generate(pipe)
    assert (codes < 16).all()
    assert 0 <= pictures.min() < pictures.max() <= 1


@pytest.mark.parametrize(
    "kwargs", [{"use_safetensors": True}, {"low_cpu_mem_usage": False}, {"low_cpu_mem_usage": True}]
)
def test_ways_of_loading(folder: Path, expected: Images, kwargs: dict[str, object]) -> None:
    assert_same(generate(load(folder, **kwargs)), expected)


@pytest.mark.parametrize("safe_serialization", [True, False])
def test_variants_shards_and_pickles(
    pipe: MaskGITPipeline, expected: Images, tmp_path: Path, safe_serialization: bool
) -> None:
    pipe.save_pretrained(tmp_path, variant="other", safe_serialization=safe_serialization, max_shard_size="20KB")
    assert len(list((tmp_path / "transformer").glob("*-of-*"))) > 1
    loaded = load(tmp_path, variant="other", use_safetensors=safe_serialization)
    assert_same(generate(loaded), expected)
    with pytest.raises((OSError, ValueError), match=r"diffusion_pytorch_model|variant"):
        load(tmp_path)


# --- devices ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device_map", ["balanced", "cpu"])
def test_device_map(folder: Path, expected: Images, device_map: str) -> None:
    pipe = load(folder, device_map=device_map)
    assert pipe.device == pipe._execution_device == CPU
    assert_same(generate(pipe), expected)
    assert hooked(pipe) == []  # without an accelerator there is nothing to dispatch to
    pipe.reset_device_map()
    assert pipe.hf_device_map is None
    assert_same(generate(pipe), expected)


def test_device_map_that_diffusers_does_not_know(folder: Path) -> None:
    with pytest.raises(NotImplementedError, match="auto not supported"):
        load(folder, device_map="auto")


def test_model_offload(pipe: MaskGITPipeline, expected: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, pre_forward = [], CpuOffload.pre_forward

    def note(hook: CpuOffload, module: torch.nn.Module, *args: object, **kwargs: object) -> object:
        loaded.append(type(module).__name__)
        return pre_forward(hook, module, *args, **kwargs)

    monkeypatch.setattr(CpuOffload, "pre_forward", note)
    pipe.enable_model_cpu_offload(device="cpu")
    pipe(1, num_inference_steps=2)
    # `decode` is not `forward`, and the weights are fetched for it all the same.
    assert loaded == ["HaltonMaskGITTransformer2DModel"] * 2 + ["VQModel"]
    assert_same(generate(pipe), expected)
    assert hooked(pipe) == ["CpuOffload"] * 2
    pipe.remove_all_hooks()
    assert hooked(pipe) == []
    assert_same(generate(pipe), expected)


def test_weights_that_are_loaded_module_by_module(pipe: MaskGITPipeline, expected: Images) -> None:
    """What sequential offload does on an accelerator, with the CPU in its place: accelerate's own function is used."""
    for component in (pipe.transformer, pipe.vqvae):
        cpu_offload(component, execution_device=CPU)
    assert all(parameter.is_meta for parameter in pipe.transformer.parameters())
    assert_same(generate(pipe), expected)
    assert all(parameter.is_meta for parameter in pipe.vqvae.parameters())


@pytest.mark.parametrize("enable", ["enable_model_cpu_offload", "enable_sequential_cpu_offload"])
def test_offload_without_an_accelerator_is_refused(pipe: MaskGITPipeline, enable: str) -> None:
    if torch.accelerator.is_available():
        pytest.skip("there is an accelerator")
    with pytest.raises(RuntimeError, match="requires accelerator"):
        getattr(pipe, enable)()


@pytest.mark.parametrize("to_disk", [False, True])
@pytest.mark.parametrize(
    "kwargs", [{"offload_type": "leaf_level"}, {"offload_type": "block_level", "num_blocks_per_group": 1}]
)
def test_group_offload(
    pipe: MaskGITPipeline, expected: Images, tmp_path: Path, kwargs: dict[str, object], to_disk: bool
) -> None:
    kwargs = kwargs | ({"offload_to_disk_path": str(tmp_path)} if to_disk else {})
    with pytest.raises(ValueError, match="VQModel does not support group offloading"):
        pipe.enable_group_offload(CPU, **kwargs)
    pipe.enable_group_offload(CPU, exclude_modules="vqvae", **kwargs)
    assert set(hooked(pipe)) >= {"group_offloading"}
    assert_same(generate(pipe), expected)
    assert_same(generate(pipe), expected)
    registry = HookRegistry.check_if_exists_or_initialize(pipe.transformer)
    for name in set(hooked(pipe)):
        registry.remove_hook(name, recurse=True)
    assert hooked(pipe) == []
    if not to_disk:  # else the weights are in the files
        assert_same(generate(pipe), expected)


# --- attention, projections, casting ----------------------------------------------------------------------------------


@pytest.fixture
def default_attention_backend() -> Iterator[None]:
    registry = attention_dispatch._AttentionBackendRegistry
    before = registry._active_backend  # `set_attention_backend` also changes the process's default
    yield
    registry._active_backend = before


@pytest.mark.parametrize("backend", ["native", "_native_math", "_native_flash", "flex"])
def test_attention_backends(
    pipe: MaskGITPipeline, expected: Images, default_attention_backend: None, backend: str
) -> None:
    pipe.transformer.set_attention_backend(backend)
    assert {processor._attention_backend for processor in pipe.transformer.attn_processors.values()} == {backend}
    assert_same(generate(pipe), expected)
    pipe.transformer.reset_attention_backend()
    assert {processor._attention_backend for processor in pipe.transformer.attn_processors.values()} == {None}
    assert_same(generate(pipe), expected)


def test_attention_slicing_is_accepted_and_has_nothing_to_slice(pipe: MaskGITPipeline, expected: Images) -> None:
    pipe.enable_attention_slicing()
    assert_same(generate(pipe), expected)
    pipe.disable_attention_slicing()
    assert_same(generate(pipe), expected)


def test_xformers_asks_for_the_package(pipe: MaskGITPipeline) -> None:
    with pytest.raises(ModuleNotFoundError, match="xformers"):
        pipe.enable_xformers_memory_efficient_attention()


def test_fused_projections(pipe: MaskGITPipeline, expected: Images) -> None:
    pipe.transformer.fuse_qkv_projections()
    assert_same(generate(pipe), expected)
    pipe.transformer.unfuse_qkv_projections()
    assert not any("to_qkv" in name for name in pipe.transformer.state_dict())
    assert_same(generate(pipe), expected)


@pytest.mark.parametrize("storage_dtype", [torch.float16, torch.float8_e4m3fn])
def test_layerwise_casting(pipe: MaskGITPipeline, make_pipeline: MakePipeline, storage_dtype: torch.dtype) -> None:
    """The images of a model whose projections were rounded to the storage dtype; embeddings and norms are not."""
    rounded = make_pipeline()
    for module in rounded.transformer.modules():
        if isinstance(module, torch.nn.Linear):
            for parameter in module.parameters():
                parameter.data = parameter.data.to(storage_dtype).float()
    transformer = pipe.transformer
    transformer.enable_layerwise_casting(storage_dtype=storage_dtype, compute_dtype=torch.float32)
    assert transformer.transformer_blocks[0].ff.up_proj.weight.dtype == storage_dtype
    assert transformer.modulation_out.weight.dtype == storage_dtype
    assert transformer.token_embedding.weight.dtype == transformer.norm_out.weight.dtype == torch.float32
    assert_same(generate(pipe), generate(rounded))
    assert transformer.transformer_blocks[0].ff.up_proj.weight.dtype == storage_dtype


def test_gradient_checkpointing_and_training_mode_do_not_change_sampling(
    pipe: MaskGITPipeline, expected: Images
) -> None:
    pipe.transformer.train().enable_gradient_checkpointing()
    assert_same(generate(pipe), expected)


# --- compilation ------------------------------------------------------------------------------------------------------


@pytest.fixture
def graphs() -> Iterator[list[torch.fx.GraphModule]]:
    """Graphs that a backend of torch.compile was given, through `torch.compile(..., backend=graphs.append)`."""
    torch.compiler.reset()
    yield []
    torch.compiler.reset()


def noting(graphs: list[torch.fx.GraphModule]) -> Callable[..., Callable]:
    return lambda graph, inputs: graphs.append(graph) or graph.forward


def test_compiled_model(pipe: MaskGITPipeline, expected: Images, graphs: list, tmp_path: Path) -> None:
    pipe.transformer.compile(backend=noting(graphs), fullgraph=True, dynamic=True)
    assert_same(generate(pipe), expected)
    compiled = len(graphs)
    assert compiled <= 2  # batches of 3 and of 2, with guidance
    for batch_size in (5, 7):
        pipe([0] * batch_size, num_inference_steps=2)
    assert len(graphs) == compiled
    pipe.save_pretrained(tmp_path)
    assert_same(generate(load(tmp_path)), expected)


def test_compiled_blocks(pipe: MaskGITPipeline, expected: Images, graphs: list) -> None:
    pipe.transformer.compile_repeated_blocks(backend=noting(graphs), fullgraph=True, dynamic=True)
    assert_same(generate(pipe), expected)
    num_blocks = len(pipe.transformer.transformer_blocks)
    assert len(graphs) == 1 or (torch.__version__ < (2, 13) and len(graphs) == num_blocks)  # one graph for all blocks


def test_component_replaced_by_its_compiled_self(pipe: MaskGITPipeline, expected: Images, graphs: list) -> None:
    plain = pipe.transformer
    pipe.transformer = torch.compile(plain, backend=noting(graphs))
    assert_same(generate(pipe), expected)
    assert graphs
    pipe.transformer = plain
    assert_same(generate(pipe), expected)


@pytest.mark.exhaustive
def test_compiled_by_inductor(pipe: MaskGITPipeline, expected: Images) -> None:
    pipe.transformer.compile_repeated_blocks(fullgraph=True, dynamic=True)
    assert_same(generate(pipe), expected)
    torch.compiler.reset()


# --- diffusers' caches, and calls that raise --------------------------------------------------------------------------


def caches(pipe: MaskGITPipeline) -> dict[str, object]:
    time_range = {"spatial_attention_timestep_skip_range": (0.1, 0.9)}
    return {
        "first_block": FirstBlockCacheConfig(threshold=10.0),
        "mag": MagCacheConfig(num_inference_steps=4, mag_ratios=[1.0] * 4, threshold=10.0, retention_ratio=0.25),
        "taylorseer": TaylorSeerCacheConfig(cache_interval=2, disable_cache_before_step=1, max_order=0),
        "pyramid_attention": PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=2, current_timestep_callback=lambda: pipe.current_timestep, **time_range
        ),
    }


@pytest.mark.parametrize("name", ["first_block", "mag", "taylorseer", "pyramid_attention"])
def test_caches_skip_work_and_leave_nothing_behind(pipe: MaskGITPipeline, expected: Images, name: str) -> None:
    calls = []
    pipe.transformer.transformer_blocks[1].attn.to_q.register_forward_hook(lambda *_: calls.append(1))
    arguments = {"class_labels": 1, "num_inference_steps": 4, "output_type": "latent"}
    pipe(generator=seeded(0), **arguments)
    assert len(calls) == 4
    calls.clear()
    pipe.transformer.enable_cache(caches(pipe)[name])
    first = pipe(generator=seeded(0), **arguments).images
    assert 0 < len(calls) < 4
    skipped = 4 - len(calls)

    def fail(pipe: MaskGITPipeline, step: int, timestep: torch.Tensor, tensors: dict) -> dict:
        if step == 1:
            raise RuntimeError("stop here")
        return tensors

    with pytest.raises(RuntimeError, match="stop here"):
        pipe(generator=seeded(0), callback_on_step_end=fail, **arguments)
    calls.clear()
    assert torch.equal(pipe(generator=seeded(0), **arguments).images, first)  # nothing left of the call that raised
    assert 4 - len(calls) == skipped

    pipe.transformer.disable_cache()
    assert hooked(pipe) == []
    assert_same(generate(pipe), expected)


def test_model_offload_after_a_call_that_raised(pipe: MaskGITPipeline, expected: Images) -> None:
    pipe.enable_model_cpu_offload(device="cpu")

    def fail(*_: object) -> dict:
        raise RuntimeError("stop here")

    with pytest.raises(RuntimeError, match="stop here"):
        pipe(1, callback_on_step_end=fail)
    assert hooked(pipe) == ["CpuOffload"] * 2
    assert_same(generate(pipe), expected)
