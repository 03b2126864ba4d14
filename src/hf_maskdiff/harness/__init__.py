"""lm-evaluation-harness: the model `hf_maskdiff`, for which `lm_eval` must be installed.

    import lm_eval
    from hf_maskdiff.harness import HarnessModel  # which registers it

    lm_eval.simple_evaluate("hf_maskdiff", "pretrained=GSAI-ML/LLaDA-8B-Base,dtype=bfloat16", tasks=["piqa"])

On the command line, `hf-maskdiff lm_eval ...` is `lm_eval ...` with this model.
"""

from typing import Any

__all__ = ["HarnessModel"]


def __getattr__(name: str) -> Any:
    """The model, imported when somebody asks for it: the rest of this package needs no harness."""
    if name != "HarnessModel":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from hf_maskdiff.harness.model import HarnessModel

    return HarnessModel
