"""Opens this repository with the installed package: `pip install hf-maskdiff`."""

try:
    from hf_maskdiff import MaskGITPipeline
except ImportError as error:
    raise ImportError("This pipeline needs the package hf_maskdiff. Run `pip install hf-maskdiff`.") from error
