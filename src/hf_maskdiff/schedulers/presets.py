"""From a configuration to a scheduler: which class it names, and which settings may be given beside it."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Collection, Iterable, Mapping
from functools import cache
from inspect import signature
from typing import Any

from ..integers import plain

# What loaders hand to every component alike; a scheduler has no use for it.
_OF_WEIGHTS = ("torch_dtype", "variant", "use_safetensors", "low_cpu_mem_usage")


def class_named(config: Mapping[str, Any], classes: Iterable[type]) -> type | None:
    """The class that a configuration names, None where it is not among them."""
    return next((found for found in classes if found.__name__ == config.get("_class_name")), None)


def require_named(base: type, config: Any, classes: Iterable[type]) -> type:
    """The class that a configuration names, which must be a kind of `base`."""
    named = class_named(config, classes) if isinstance(config, Mapping) else None
    if named is None or not issubclass(named, base):
        got = config.get("_class_name") if isinstance(config, Mapping) else config
        raise ValueError(
            f"The configuration for {base.__name__}, a base, must name one of its schedulers as `_class_name`, "
            f"got {got!r}. Call the scheduler you want, for example `MomentScheduler`."
        )
    return named


def check_keywords(class_name: str, given: Iterable[str], known: Collection[str]) -> None:
    """Raise `ValueError` for a keyword that is not known."""
    for name in given:
        if name in known or name in _OF_WEIGHTS:
            continue
        settings = sorted(key for key in known if not key.startswith("_"))
        close = difflib.get_close_matches(name, settings, n=1)
        remedy = f"Did you mean `{close[0]}`?" if close else "Leave it out."
        raise ValueError(f"settings of {class_name} must be among {settings}, got `{name}`. {remedy}")


@cache
def settings_of(found: type) -> frozenset[str]:
    """The settings that a class knows: arguments of its `__init__`, and of those that it hands on to."""
    return frozenset(name for base in found.__mro__ for name in signature(base.__init__).parameters)  # type: ignore[misc]


def counting_given(found: type, config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a scheduler just made, in which what was given by position counts as given.

    diffusers takes all that was not given by name for a default, which another class would not take over.
    """
    defaults = {name: plain(known.default) for name, known in signature(found.__init__).parameters.items()}  # type: ignore[misc]
    name = "_use_default_values"
    left = [key for key in config.get(name, []) if key not in defaults or config[key] == defaults[key]]
    return {**config, **({name: left} if name in config else {})}


def with_settings(config: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with other values for some of its keys, which then count as given."""
    given = {name: value for name, value in settings.items() if name in config}
    defaults = [name for name in config.get("_use_default_values", []) if name not in given]
    return {**config, **given, **({"_use_default_values": defaults} if defaults else {})}


def warn_of_another_class(found: type, named: type | None, preset: object) -> None:
    """Say that a preset was made for another scheduler; to take over its settings is allowed, and often not meant."""
    if named is None or issubclass(found, named):
        return
    warnings.warn(
        f"{str(preset)!r} is a preset of {named.__name__}; {found.__name__} takes over the settings they share. "
        f"`{named.__name__}.from_pretrained`, or `MaskedDiffusionScheduler.from_pretrained`, opens it as it is.",
        stacklevel=3,
    )
