"""Masked diffusion through `transformers.pipeline(...)`: what its tasks share, and those for text and images."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable, Iterator, Sequence, Sized
from functools import cached_property, singledispatch
from itertools import islice
from typing import Any

from diffusers import DiffusionPipeline
from transformers import AutoConfig, Pipeline, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.pipelines import PIPELINE_REGISTRY

from .. import schedulers
from ..hub_access import stop_out_of_reach
from ..integers import as_integer
from ..models import MDLMConfig, MDLMForMaskedLM, MDLMTransformer
from ..published import PUBLISHED_TYPES, open_tokenizer
from ..published.malformed import settings_of
from ..sampling import check_generators
from ..schedulers import AncestralScheduler, MaskedDiffusionScheduler
from .pipeline_masked_diffusion_text import MaskedDiffusionTextPipeline
from .pipeline_masked_diffusion_text_to_image import MaskedDiffusionTextToImagePipeline
from .pipeline_maskgit import MaskGITPipeline
from .pipeline_mdlm import PUBLISHED_TOKENIZER, MDLMPipeline
from .task_inputs import as_inputs
from .text_prompts import MASK_SPAN

ImagePipeline = MaskGITPipeline | MaskedDiffusionTextToImagePipeline
Scheduler = MaskedDiffusionScheduler | type[MaskedDiffusionScheduler] | str
_LOCATION = ("revision", "token", "local_files_only", "cache_dir")
# Of what `transformers.pipeline` passes on, what only its own models read.
_NOT_FOR_DIFFUSERS = ("trust_remote_code", "code_revision", "_from_pipeline", "_commit_hash")


class MaskedDiffusionPipelineConfig(PreTrainedConfig):
    """What the `config.json` beside a `model_index.json` tells transformers: this is a pipeline of diffusers."""

    model_type = "masked_diffusion_pipeline"


AutoConfig.register(MaskedDiffusionPipelineConfig.model_type, MaskedDiffusionPipelineConfig, exist_ok=True)
for model_type in PUBLISHED_TYPES:  # else transformers would ask whether to run the repository's code
    settings = type("PublishedConfig", (PreTrainedConfig,), {"model_type": model_type})
    AutoConfig.register(model_type, settings, exist_ok=True)


class Repository:
    """A folder or a repository of the Hub that is opened later, once tokenizer and scheduler are known."""

    config = MaskedDiffusionPipelineConfig()  # which `transformers.pipeline` of 5.12 and before reads

    def __init__(self, name: str, location: dict[str, Any], loading: dict[str, Any]) -> None:
        self.name, self.location, self.loading = name, location, loading

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike, dtype: Any = None, **kwargs: Any
    ) -> Repository:
        given = {name: value for name, value in kwargs.items() if value is not None and name not in _NOT_FOR_DIFFUSERS}
        location = {name: given.pop(name) for name in _LOCATION if name in given}
        # transformers' "auto" is the type of the file, often half precision; diffusers' default is float32.
        loading = given if dtype in (None, "auto") else {"dtype": dtype, **given}
        return cls(str(pretrained_model_name_or_path), location, loading)

    @cached_property
    def pipeline_name(self) -> str:
        """The class of the pipeline that it holds, or that opens the model that it holds."""
        try:
            index = settings_of(
                f"model_index.json in {self.name!r}", lambda: DiffusionPipeline.load_config(self.name, **self.location)
            )
            return str(index.get("_class_name"))
        except OSError as error:  # no pipeline: a model, perhaps in the layout of MDLM's authors
            stop_out_of_reach(error, self.name, self.location.get("cache_dir"))
            config = settings_of(
                f"config.json in {self.name!r}",
                lambda: PreTrainedConfig.get_config_dict(self.name, **self.location)[0],
            )
            is_mdlm = config.get("model_type") == MDLMConfig.model_type
            return (MDLMPipeline if is_mdlm else MaskedDiffusionTextPipeline).__name__

    def open(self, *expected: type[DiffusionPipeline], **components: Any) -> Any:
        """The pipeline; `ValueError` where the repository holds anything else."""
        name = self.pipeline_name
        found = next((pipeline for pipeline in expected if pipeline.__name__ == name), None)
        if found is None:
            raise ValueError(
                f"`model` must be a repository of type {expected[0].__name__} for this task, got {self.name!r}, which "
                f"is of type {name}. The tasks of this package are {_tasks()}."
            )
        pipe = found.from_pretrained(self.name, trust_remote_code=False, **self.location, **self.loading, **components)
        pipe.set_progress_bar_config(disable=True)
        return pipe


def _tasks() -> list[str]:
    return [task for task in PIPELINE_REGISTRY.supported_tasks if task.startswith("masked-diffusion-")]


# --- what may stand for `model` ---------------------------------------------------------------------------------------


@singledispatch
def text_pipeline(model: Any, tokenizer: PreTrainedTokenizerBase | str | None) -> MaskedDiffusionTextPipeline:
    """The pipeline that a task's `model` stands for."""
    raise ValueError(
        "`model` must be a text model: a Hub id, a folder, a MaskedDiffusionTextPipeline, or a model with "
        f"`tokenizer=`, got {type(model).__name__}. For images use the task 'masked-diffusion-image-generation'."
    )


@text_pipeline.register
def _(model: Repository, tokenizer: PreTrainedTokenizerBase | str | None) -> MaskedDiffusionTextPipeline:
    given = {} if tokenizer is None else {"tokenizer": _load_tokenizer(tokenizer)}
    return model.open(MDLMPipeline, MaskedDiffusionTextPipeline, **given)


@text_pipeline.register
def _(
    model: MaskedDiffusionTextPipeline, tokenizer: PreTrainedTokenizerBase | str | None
) -> MaskedDiffusionTextPipeline:
    return model if tokenizer is None else replaced(model, tokenizer=_load_tokenizer(tokenizer))


@text_pipeline.register
def _(model: MDLMTransformer, tokenizer: PreTrainedTokenizerBase | str | None) -> MaskedDiffusionTextPipeline:
    _require_tokenizer(tokenizer)
    mask = model.config.vocab_size - 1
    scheduler = AncestralScheduler(mask_token_id=mask, codebook_size=mask)
    return MDLMPipeline(_load_tokenizer(tokenizer), model, scheduler)


@text_pipeline.register
def _(model: MDLMForMaskedLM, tokenizer: PreTrainedTokenizerBase | str | None) -> MaskedDiffusionTextPipeline:
    return text_pipeline(model.backbone, tokenizer)


@text_pipeline.register
def _(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | str | None) -> MaskedDiffusionTextPipeline:
    _require_tokenizer(tokenizer)
    pipe = MaskedDiffusionTextPipeline.from_model(model, _load_tokenizer(tokenizer))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _require_tokenizer(tokenizer: PreTrainedTokenizerBase | str | None) -> None:
    if tokenizer is None:
        raise ValueError(
            f"`tokenizer` must be given with a model that is loaded, got None. Pass the model's, for example "
            f"tokenizer={PUBLISHED_TOKENIZER!r}."
        )


@singledispatch
def image_pipeline(model: Any) -> ImagePipeline:
    """The pipeline that a task's `model` stands for."""
    raise ValueError(
        f"`model` must be an image model: a Hub id, a folder or a MaskGITPipeline, got {type(model).__name__}. For "
        "text use the task 'masked-diffusion-text-generation'."
    )


@image_pipeline.register
def _(model: Repository) -> ImagePipeline:
    return model.open(MaskGITPipeline, MaskedDiffusionTextToImagePipeline)


@image_pipeline.register(MaskGITPipeline)
@image_pipeline.register(MaskedDiffusionTextToImagePipeline)
def _(model: ImagePipeline) -> ImagePipeline:
    return model


def _load_tokenizer(tokenizer: Any) -> PreTrainedTokenizerBase:
    return open_tokenizer(tokenizer) if isinstance(tokenizer, str) else tokenizer


def _load_scheduler(scheduler: Scheduler, present: Any) -> MaskedDiffusionScheduler:
    """From an object, a class or its name (with the present settings), or a folder or Hub id (for the present mask)."""
    found: Any = scheduler
    config, own = present, {}
    if isinstance(found, str) and found not in schedulers.__all__:
        name, own = found, dict(present)
        config = settings_of(f"the scheduler in {name!r}", lambda: MaskedDiffusionScheduler.load_config(name))
        found = config.get("_class_name")
    if isinstance(found, str):
        found = getattr(schedulers, found, None)
    if isinstance(found, type) and issubclass(found, MaskedDiffusionScheduler):
        found = found.from_config(config, **{k: own[k] for k in ("mask_token_id", "codebook_size") if k in own})
    if not isinstance(found, MaskedDiffusionScheduler):
        raise ValueError(
            "`scheduler` must be a MaskedDiffusionScheduler, the class or name of one, or a folder or Hub id, got "
            f"{scheduler!r}. Pass for example scheduler='HybridScheduler'."
        )
    return found


def replaced(pipe: DiffusionPipeline, **components: Any) -> Any:
    """The pipeline with other components and the same settings; the one that was given stays as it is."""
    settings = {name: value for name, value in pipe.config.items() if name in inspect.signature(type(pipe)).parameters}
    copied = type(pipe)(**{**settings, **pipe.components, **components})
    copied.set_progress_bar_config(**getattr(pipe, "_progress_bar_config", {}))
    config = _caching(pipe).cache_config
    if config != _caching(copied).cache_config:  # that of some models is on by default
        copied.disable_cache() if config is None else copied.enable_cache(config)
    return copied


def _caching(pipe: Any) -> Any:
    """What holds a pipeline's cache."""
    return pipe.denoiser if hasattr(pipe, "denoiser") else pipe._cache_switch


# --- the tasks --------------------------------------------------------------------------------------------------------


class MaskedDiffusionTask(Pipeline):
    """What the tasks share: batches without padding, arguments of the diffusers pipeline, saving as a repository."""

    _load_processor = _load_image_processor = _load_video_processor = _load_feature_extractor = _load_tokenizer = False
    # Arguments of the diffusers pipeline that are decided here.
    _own_arguments: tuple[str, ...] = ("self", "output_type", "return_dict")
    # What the diffusers pipeline calls the outputs, and how many of them there are for an input.
    _outputs: str
    _num_outputs: str

    def __init__(
        self, model: DiffusionPipeline, tokenizer: Any = None, scheduler: Scheduler | None = None, **kwargs: Any
    ) -> None:
        placed = getattr(model, "hf_device_map", None)
        if scheduler is not None:
            model = replaced(model, scheduler=_load_scheduler(scheduler, model.scheduler.config))
        if isinstance(placed, str):  # diffusers' way to say that all is on one device, which transformers cannot read
            model, kwargs["device"] = replaced(model), placed
        super().__init__(model=model, tokenizer=tokenizer, **kwargs)

    def __call__(self, inputs: Any = None, **kwargs: Any) -> Any:
        """What the class says, for one input or several; None is no condition.

        Several inputs are a list, a tuple or an array, which give a list; or a column of a data set, a `Dataset` of
        torch, a generator or another iterable, of which the results come one by one.
        """
        listed = as_inputs(inputs)
        return [] if isinstance(listed, list) and not listed else super().__call__(listed, **kwargs)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({type(self.model).__name__}, {type(self.model.scheduler).__name__})"

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Save as a diffusers pipeline, which this task, `DiffusionPipeline` and our own classes open again."""
        self.model.save_pretrained(save_directory, **kwargs)

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> str:
        """Push as a diffusers pipeline, with a model card; `kwargs` are those of diffusers' `push_to_hub`."""
        return self.model.push_to_hub(repo_id, **kwargs)

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict, dict, dict]:
        known = [name for name in inspect.signature(self.model.__call__).parameters if name not in self._own_arguments]
        unknown = sorted(kwargs.keys() - set(known))
        if unknown:
            inputs = {"prompt", "class_labels", "audio"} & set(unknown) & set(self._own_arguments)
            remedy = f"Pass {min(inputs)} first, and without a name." if inputs else "Check their spelling."
            raise ValueError(f"arguments must be among {known}, got {unknown}. {remedy}")
        return {}, kwargs, {}

    def preprocess(self, inputs: Any) -> dict[str, list]:
        return {"inputs": [inputs]}

    def _forward(self, model_inputs: dict[str, list], **kwargs: Any) -> dict[str, list]:
        """For each input a list of outputs."""
        inputs = [getattr(one, "messages", one) for one in model_inputs["inputs"]]  # transformers wraps chats
        num = as_integer(kwargs.pop(self._num_outputs, 1))
        if inputs == [None] * len(inputs):  # the diffusers pipelines take None, not a list of it
            made = self.model(**{self._num_outputs: num * len(inputs)}, **kwargs)[self._outputs]
        else:
            made = self.model(inputs, **{self._num_outputs: num}, **kwargs)[self._outputs]
        if len(made) != num * len(inputs):
            raise ValueError(
                f"`image`, `mask_image` and `latents` must be one for all inputs, got enough for {len(made)} outputs "
                f"where {num * len(inputs)} are due. Call the pipeline once for each."
            )
        return {"inputs": inputs, "outputs": [made[i : i + num] for i in range(0, len(made), num)]}

    def get_iterator(
        self,
        inputs: Iterable,
        num_workers: int,
        batch_size: int,
        preprocess_params: dict,
        forward_params: dict,
        postprocess_params: dict,
    ) -> Iterator[Any]:
        """Results one by one; a list of generators is dealt out, one or more for each input."""
        generators, per_input = forward_params.get("generator"), as_integer(forward_params.get(self._num_outputs, 1))
        size = len(inputs) if isinstance(inputs, Sized) else None
        if size is not None:
            check_generators(generators, size * per_input)
        source: Any = inputs  # a data set may have no more than a length and items
        items = iter(source) if size is None else (source[i] for i in range(size))
        done = 0
        while chunk := list(islice(items, batch_size)):
            rows = slice(done, done + len(chunk) * per_input)
            dealt = {"generator": generators[rows]} if isinstance(generators, Sequence) else {}
            results = self.forward({"inputs": chunk}, **{**forward_params, **dealt})
            done = rows.stop
            for given, made in zip(results["inputs"], results["outputs"], strict=True):
                yield self.postprocess({"inputs": [given], "outputs": [made]}, **postprocess_params)


class MaskedDiffusionTextGenerationPipeline(MaskedDiffusionTask):
    """Writes and fills in text with any masked diffusion model and scheduler, the way transformers' pipelines do.

    Example:

        import hf_maskdiff
        from transformers import pipeline

        write = pipeline("masked-diffusion-text-generation", model="kuleshov-group/mdlm-owt")
        write("Once upon a time", num_inference_steps=64)  # [{"generated_text": "Once upon a time ..."}]
        write(["The cat", "To be, or [MASK:6] question"], batch_size=2, num_return_sequences=3)

    Args:
        model: a Hub id or folder (a text pipeline of this package, MDLM's published layout, LLaDA, Dream, a masked
            language model), a `MaskedDiffusionTextPipeline`, or a model that is loaded.
        tokenizer: an object or a name; the model's own, or for MDLM's published layout gpt2's, by default.
        scheduler: an object, a class or its name (takes over the present scheduler's settings), or a Hub id or folder.

    Called with a prompt it returns a list with a dictionary `{"generated_text": ...}` for each of
    `num_return_sequences`, with a list of prompts a list of such lists, without a prompt it writes from nothing.
    For a chat, the generated "text" is the chat with the answer as its last message. The other arguments are those of
    `MaskedDiffusionTextPipeline`; `return_full_text=False` leaves out a prompt that is continued, and a chat's
    messages.
    """

    _own_arguments = (*MaskedDiffusionTask._own_arguments, "prompt", "input_ids", "mask")
    _outputs, _num_outputs = "texts", "num_return_sequences"

    def __init__(self, model: Any, tokenizer: Any = None, scheduler: Scheduler | None = None, **kwargs: Any) -> None:
        pipe = text_pipeline(model, tokenizer)
        super().__init__(pipe, pipe.tokenizer, scheduler, **kwargs)

    def _sanitize_parameters(self, return_full_text: bool | None = None, **kwargs: Any) -> tuple[dict, dict, dict]:
        preprocess, forward, postprocess = super()._sanitize_parameters(**kwargs)
        if return_full_text is not None:
            postprocess["return_full_text"] = return_full_text
        return preprocess, forward, postprocess

    def postprocess(self, model_outputs: dict[str, list], return_full_text: bool = True) -> list[dict[str, Any]]:
        (prompt,), (texts,) = model_outputs["inputs"], model_outputs["outputs"]
        if prompt is not None and not isinstance(prompt, str):  # of a chat the pipeline gives the answer alone
            chats = [[*prompt, {"role": "assistant", "content": text}] for text in texts]
            return [{"generated_text": made} for made in (chats if return_full_text else texts)]
        start = 0
        if not return_full_text and prompt is not None and not MASK_SPAN.search(prompt):
            # As it reads when decoded: not every tokenizer gives back what it was given.
            start = len(self.model.decode_sequences([self.model.encode_prompt(prompt)])[0])
        return [{"generated_text": text[start:]} for text in texts]


class MaskedDiffusionImageGenerationPipeline(MaskedDiffusionTask):
    """Draws images of classes or from text, with any model and scheduler, the way transformers' pipelines do.

    Example:

        import hf_maskdiff
        from transformers import pipeline

        draw = pipeline("masked-diffusion-image-generation", model="pipelines/maskgit-mnist")
        image = draw(3, num_inference_steps=8, guidance_scale=2.0)
        images = draw([3, 8, "7"], batch_size=3)

    Args:
        model: a Hub id or folder of a pipeline of this package, or a `MaskGITPipeline` or
            `MaskedDiffusionTextToImagePipeline`.
        scheduler: an object, a class or its name (takes over the present scheduler's settings), or a Hub id or folder.

    Called with a label (an id or a name) or a prompt it returns a PIL image, or a list where `num_images_per_prompt` is
    given; with a list of them, a list of these; without a label an image of no class. The other arguments are those of
    the pipeline.
    """

    _own_arguments = (*MaskedDiffusionTask._own_arguments, "class_labels", "prompt")
    _outputs, _num_outputs = "images", "num_images_per_prompt"

    def __init__(self, model: Any, scheduler: Scheduler | None = None, **kwargs: Any) -> None:
        super().__init__(image_pipeline(model), scheduler=scheduler, **kwargs)

    def _sanitize_parameters(self, num_images_per_prompt: int | None = None, **kwargs: Any) -> tuple[dict, dict, dict]:
        if num_images_per_prompt is None:
            return super()._sanitize_parameters(**kwargs)
        preprocess, forward, _ = super()._sanitize_parameters(num_images_per_prompt=num_images_per_prompt, **kwargs)
        return preprocess, forward, {"as_list": True}

    def postprocess(self, model_outputs: dict[str, list], as_list: bool = False) -> Any:
        (images,) = model_outputs["outputs"]
        return images if as_list else images[0]
