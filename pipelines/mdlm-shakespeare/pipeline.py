"""Opens this repository with the installed package: `pip install hf-maskdiff`."""

# diffusers runs every local `pipeline.py` in one module, and allows that module one pipeline.
for name in [name for name in globals() if name.endswith("Pipeline")]:
    del globals()[name]

try:
    from hf_maskdiff import MDLMPipeline
except ImportError as error:
    raise ImportError("This pipeline needs the package hf_maskdiff. Run `pip install hf-maskdiff`.") from error
