"""Audio through `transformers.pipeline(...)`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import singledispatch
from typing import Any

from .pipeline_masked_diffusion_audio import MaskedDiffusionAudioPipeline
from .task_inputs import as_inputs
from .transformers_tasks import MaskedDiffusionTask, Repository, Scheduler


@singledispatch
def audio_pipeline(model: Any) -> MaskedDiffusionAudioPipeline:
    """The pipeline that the task's `model` stands for."""
    raise ValueError(
        "`model` must be an audio model: a Hub id, a folder or a MaskedDiffusionAudioPipeline, got "
        f"{type(model).__name__}. For others use the tasks for text and images."
    )


@audio_pipeline.register
def _(model: Repository) -> MaskedDiffusionAudioPipeline:
    return model.open(MaskedDiffusionAudioPipeline)


@audio_pipeline.register
def _(model: MaskedDiffusionAudioPipeline) -> MaskedDiffusionAudioPipeline:
    return model


class MaskedDiffusionAudioGenerationPipeline(MaskedDiffusionTask):
    """Makes and varies audio, with any model and scheduler, the way transformers' pipelines do.

    Example:

        import hf_maskdiff
        from transformers import pipeline

        play = pipeline("masked-diffusion-audio-generation", model="me/music")
        new = play(audio_length_in_s=5.0)  # {"audio": (channels, num_samples), "sampling_rate": 44100}
        varied = play({"array": audio, "sampling_rate": 44100}, keep=keep)

    Args:
        model: a Hub id or folder of a `MaskedDiffusionAudioPipeline`, or one that is loaded.
        scheduler: an object, a class or its name (takes over the present scheduler's settings), or a Hub id or folder.

    Called with a clip, as data sets hold them, it returns a dictionary with "audio", a float32 array
    `(channels, num_samples)`, and "sampling_rate"; with a label of a model with classes, or without an input, it makes
    a clip of `audio_length_in_s` seconds. Where `num_waveforms_per_prompt` is given it returns a list, and for a list
    of inputs a list of these. The other arguments are those of the pipeline.
    """

    _own_arguments = (*MaskedDiffusionTask._own_arguments, "class_labels", "audio", "sampling_rate", "codes")
    _outputs, _num_outputs = "audios", "num_waveforms_per_prompt"

    def __init__(self, model: Any, scheduler: Scheduler | None = None, **kwargs: Any) -> None:
        super().__init__(audio_pipeline(model), scheduler=scheduler, **kwargs)

    def __call__(self, inputs: Any = None, **kwargs: Any) -> Any:
        """What the class says, for one input or several, clips as dictionaries; None is no condition."""
        listed = as_inputs(inputs)
        given = [listed] if isinstance(listed, Mapping) else listed
        made = super().__call__(given, **kwargs)
        return made[0] if isinstance(listed, Mapping) else made

    def _sanitize_parameters(self, num_waveforms_per_prompt: int | None = None, **kwargs: Any) -> tuple:
        if num_waveforms_per_prompt is None:
            return super()._sanitize_parameters(**kwargs)
        counted = {"num_waveforms_per_prompt": num_waveforms_per_prompt}
        preprocess, forward, _ = super()._sanitize_parameters(**counted, **kwargs)
        return preprocess, forward, {"as_list": True}

    def _forward(self, model_inputs: dict[str, list], **kwargs: Any) -> dict[str, list]:
        """For each input a list of outputs."""
        inputs = model_inputs["inputs"]
        clips = [one for one in inputs if isinstance(one, Mapping)]
        if not clips:
            return super()._forward(model_inputs, **kwargs, output_type="np")
        rates = {clip.get("sampling_rate") for clip in clips}
        if len(clips) != len(inputs) or len(rates) != 1 or any("array" not in clip for clip in clips):
            raise ValueError(
                "clips must be dictionaries of `array` and `sampling_rate`, all of one rate, got "
                f"{[sorted(clip) for clip in clips]} among {len(inputs)} input(s). Pass them as data sets hold them."
            )
        audio, num = [clip["array"] for clip in clips], kwargs.get(self._num_outputs, 1)
        made = self.model(audio=audio, sampling_rate=rates.pop(), **kwargs, output_type="np").audios
        return {"inputs": inputs, "outputs": [made[i : i + num] for i in range(0, len(made), num)]}

    def postprocess(self, model_outputs: dict[str, list], as_list: bool = False) -> Any:
        (audios,) = model_outputs["outputs"]
        found = [{"audio": audio, "sampling_rate": self.model.sampling_rate} for audio in audios]
        return found if as_list else found[0]
