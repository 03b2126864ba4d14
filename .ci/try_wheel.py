"""Tries an installed hf_maskdiff as somebody would who has no checkout: samples images and texts, and runs the command.

    python .ci/try_wheel.py PIPELINES SITE

Args: the folder of the shipped pipelines, and the folder that both packages must be imported from. Prints the version.
"""

import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import hf_maskdiff
import hf_maskdiff_cli
from hf_maskdiff import MaskGITPipeline, MDLMPipeline

pipelines, site = (Path(argument).resolve() for argument in sys.argv[1:])
for package in (hf_maskdiff, hf_maskdiff_cli):
    assert Path(package.__file__).resolve().is_relative_to(site), package.__file__
assert version("hf-maskdiff") == hf_maskdiff.__version__

pipe = MaskGITPipeline.from_pretrained(pipelines / "maskgit-mnist").to("cpu")
pipe.set_progress_bar_config(disable=True)
image = pipe(class_labels=3, num_inference_steps=2, output_type="pt").images
assert image.shape == (1, 1, 28, 28)
write = MDLMPipeline.from_pretrained(pipelines / "mdlm-shakespeare").to("cpu")
write.set_progress_bar_config(disable=True)
assert write("ROMEO:", num_inference_steps=2).texts[0].startswith("ROMEO:")

command = shutil.which("hf-maskdiff", path=str(site / "bin")) or shutil.which("hf-maskdiff")
assert command is not None
done = subprocess.run([command, "generate", "--pipeline", "nowhere"], capture_output=True, text=True)
assert done.returncode != 0, done.stdout
assert "hf-maskdiff generate" in done.stderr, done.stderr
print(hf_maskdiff.__version__)
