"""Components of pipelines as they are published, each in a folder of its own: opened, and looked through."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hf_maskdiff.conversion.parts import require_finite
from hf_maskdiff.conversion.sources import read_settings
from hf_maskdiff.published.malformed import refusing
from hf_maskdiff.published.sizes import check_sizes, shapes_of

_OTHER_WEIGHTS = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".msgpack", ".h5"}


def open_component(folder: Path, name: str, found: Any) -> Any:
    """A model of diffusers or transformers in a pipeline's folder, of the sizes that its config.json states.

    Args:
        folder: the pipeline's.
        name: of the component, and of its folder.
        found: its class.

    Raises:
        ValueError: there is no config.json, or the weights are no safetensors, missing, of other shapes than it says,
            or no numbers.
    """
    component = folder / name
    if not (component / "config.json").is_file():
        raise ValueError(f"the folder of {name!r} must hold a config.json, it does not. Fetch it again.")
    require_safetensors(component)
    check_sizes(read_settings(component / "config.json"), shapes_of(sorted(map(str, component.glob("*.safetensors")))))
    try:
        with refusing(f"{name!r}", "Fetch its files again."):
            part, info = found.from_pretrained(
                component, trust_remote_code=False, use_safetensors=True, output_loading_info=True
            )
    except ValueError as error:
        reason = str(error).split(". ")[0]
        raise ValueError(f"{name!r} must be what its config.json says: {reason}. Fetch both again.") from error
    wrong = {kind: sorted(map(str, info[kind])) for kind in ("missing_keys", "mismatched_keys") if info.get(kind)}
    if wrong:
        raise ValueError(f"The weights of {name!r} must fit its config.json, got {wrong}. Fetch both again.")
    for key, tensor in part.state_dict().items():
        require_finite(tensor, f"{name}.{key}")
    return part


def require_safetensors(component: Path) -> None:
    """Raise `ValueError` for a component whose weights are there as pickles only."""
    weights = [path for path in component.iterdir() if path.suffix in _OTHER_WEIGHTS]
    if weights and not list(component.glob("*.safetensors")):
        raise ValueError(
            f"{component.name!r} must have its weights in safetensors, got {weights[0].name!r} alone. Pass a "
            "revision that has them."
        )
