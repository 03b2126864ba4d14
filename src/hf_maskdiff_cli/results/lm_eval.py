"""Files of lm-evaluation-harness, as results of this package: a sampler is the model with its arguments."""

from __future__ import annotations

from typing import Any

from .schema import SCHEMA


def is_of_lm_eval(content: Any) -> bool:
    """Whether a JSON file has the keys of the harness's `results_*.json`."""
    return isinstance(content, dict) and {"results", "configs", "config"} <= set(content)


def of_lm_eval(content: dict[str, Any]) -> dict[str, Any]:
    """The same as the content of a file of results.

    A task's metric `exact_match,strict-match` is the measure `gsm8k, exact_match (strict-match)`; its standard error is
    the harness's, over the task's questions. The harness has one row for all that it was asked.
    """
    settings = content["config"]
    arguments = settings.get("model_args") or {}
    if isinstance(arguments, str):
        arguments = dict(pair.partition("=")[::2] for pair in arguments.split(",") if pair)
    measures: dict[str, Any] = {}
    values: dict[str, Any] = {}
    for task, found in content["results"].items():
        for key, value in found.items():
            metric, _, kind = key.partition(",")
            if metric.endswith("_stderr") or not kind or not _is_number(value):
                continue
            name = f"{task}, {metric}" + (f" ({kind})" if kind != "none" else "")
            error = found.get(f"{metric}_stderr,{kind}")
            is_higher = content.get("higher_is_better", {}).get(task, {}).get(metric)
            measures[name] = {"better": {True: "more", False: "less"}.get(is_higher, "")}
            values[name] = {"value": value, "error": error if _is_number(error) else None}
    sampler = str(arguments.get("scheduler") or settings.get("model") or "model")
    model = str(arguments.get("pretrained") or content.get("model_name") or settings.get("model"))
    steps = str(arguments.get("num_inference_steps", ""))
    return {
        "schema": SCHEMA,
        "command": "lm_eval",
        "about": "measures of lm-evaluation-harness; errors are over questions",
        "model": model,
        "data": ", ".join(content["results"]),
        "measures": measures,
        "samplers": {sampler: {"made_with": arguments}},
        "records": [{"sampler": sampler, "steps": int(steps) if steps.isdigit() else 0, "measures": values}],
        "settings": {name: settings[name] for name in ("limit", "random_seed", "batch_size") if name in settings},
    }


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
