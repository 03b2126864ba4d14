"""Opens this repository with the installed package hf_maskdiff."""

# diffusers runs every local `pipeline.py` in one module, and allows that module one pipeline.
for name in [name for name in globals() if name.endswith("Pipeline")]:
    del globals()[name]

try:
    from hf_maskdiff import MaskedDiffusionAudioPipeline
except ImportError as error:
    raise ImportError(
        "This pipeline needs the package hf_maskdiff. "
        "Run `pip install .` in hf_maskdiff's repository, or `pip install hf_maskdiff-*.whl` if you have its wheel."
    ) from error
