"""The Inception network in this package's measures against torch-fidelity's own, with random weights.

The released weights cannot be fetched here: what is tested is that pixels, layers, shuffles and splits are theirs. Runs
in a child process, since torch-fidelity wants a torchvision that fits torch; where it is not installed beside this
package, HF_MASKDIFF_FIDELITY may name a folder that holds both (`pip install --target`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

# A torchvision built for CUDA does not register its operators beside a CPU torch, and then cannot be imported: nothing
# here calls them.
PRELUDE = """\
import json, sys, torch
try:
    import torchvision
except RuntimeError:
    sys.modules.pop("torchvision", None)
    for name in ("nms", "qnms"):
        torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""
WEIGHTS = """\
from torch_fidelity import FeatureExtractorInceptionV3
class Random(FeatureExtractorInceptionV3):
    def load_state_dict(self, *_):
        torch.manual_seed(0)
        for name, tensor in self.state_dict().items():
            if tensor.ndim > 1:  # so that activations keep their size through the layers
                torch.nn.init.normal_(tensor, std=(2 / tensor[0].numel()) ** 0.5)
torch.save({}, sys.argv[1])
torch.save(Random("inception-v3-compat", ["64"], feature_extractor_weights_path=sys.argv[1]).state_dict(), sys.argv[1])
"""
THEIRS = """\
from torch_fidelity import calculate_metrics
found = calculate_metrics(input1=sys.argv[2], input2=sys.argv[3], feature_extractor_weights_path=sys.argv[1],
    fid=True, isc=True, feature_layer_fid="64", cuda=False, save_cpu_ram=True, cache=False, verbose=False)
print(json.dumps(found))
"""
FEW = """\
import numpy as np
from pathlib import Path
from PIL import Image
from torch_fidelity import FeatureExtractorInceptionV3
from hf_maskdiff.evaluation.image_features import InceptionNetwork, read_features
from hf_maskdiff.evaluation.samples import ImageSamples
images = [Image.open(path) for path in sorted(Path(sys.argv[2]).glob("*.png"))[:3]]
ours = read_features(InceptionNetwork(sys.argv[1], 64), ImageSamples("made", len(images), images.__getitem__), 2)
network = FeatureExtractorInceptionV3("inception-v3-compat", ["64", "logits_unbiased"],
    feature_extractor_weights_path=sys.argv[1]).eval()
with torch.inference_mode():
    theirs = network(torch.stack([torch.tensor(np.asarray(image)).permute(2, 0, 1) for image in images]))
print(json.dumps([((a - b).abs().max() / b.abs().max()).item() for a, b in zip(ours, theirs)]))
"""
BROKEN = """\
import contextlib, io, pathlib
from hf_maskdiff.cli import main
weights, made, real, folder = sys.argv[1:4] + [pathlib.Path(sys.argv[4])]
class Bad:
    def __reduce__(self):
        return (pathlib.Path(folder / "executed").touch, ())
(folder / "text.pth").write_text("no weights")
torch.save({"x": torch.zeros(2)}, folder / "other.pth")
torch.save({"x": Bad()}, folder / "bad.pth")
def said(*options):
    with contextlib.redirect_stderr(io.StringIO()) as printed:
        assert main(["evaluate", made, *options]) == 1
    return printed.getvalue()
names = ["text.pth", "other.pth", "bad.pth", "missing.pth"]
found = {name: said("--inception_weights", str(folder / name)) for name in names}
found["few"] = said("--inception_weights", weights, "--reference", real)
(folder / "written").write_text(json.dumps(found))
"""
OURS = "from hf_maskdiff.cli import main\nsys.exit(main(sys.argv[1:]))\n"


def child(program: str, *arguments: str | Path) -> str:
    environment = dict(os.environ)
    extra = os.environ.get("HF_MASKDIFF_FIDELITY", "")
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH", ""), extra]))
    command = [sys.executable, "-c", PRELUDE + program, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    try:
        child(WEIGHTS, path)
    except AssertionError as error:
        if "ImportError" not in str(error) and "ModuleNotFoundError" not in str(error):
            raise
        pytest.skip("torch-fidelity is not installed, and HF_MASKDIFF_FIDELITY names no folder that holds it")
    return path


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two folders of 66 colour images, more than the 64 features."""
    rng, both = np.random.default_rng(0), []
    for name in ("made", "real"):
        folder = tmp_path_factory.mktemp(name)
        for i in range(66):
            pixels = rng.normal(rng.uniform(60, 200, 3), rng.uniform(5, 60), (12, 12, 3)).clip(0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i:02}.png")
        both.append(folder)
    return both[0], both[1]


def test_features_of_a_few_images_are_torch_fidelity_s(weights: Path, folders: tuple[Path, Path]) -> None:
    apart = json.loads(child(FEW, weights, folders[0]).splitlines()[-1])
    assert len(apart) == 2
    assert max(apart) < 1e-4


@pytest.mark.exhaustive  # a minute of the processor: 132 images through Inception, once by each package
def test_the_numbers_are_torch_fidelity_s(weights: Path, folders: tuple[Path, Path], tmp_path: Path) -> None:
    made, real = folders
    theirs = json.loads(child(THEIRS, weights, made, real).splitlines()[-1])
    options = ["--inception_weights", weights, "--inception_layer", "64", "--reference", real]
    child(OURS, "evaluate", made, *options, "--output_dir", tmp_path / "out")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    measures = report["records"][0]["measures"]
    assert measures["Frechet distance"]["value"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-4)
    assert measures["Inception score"]["value"] == pytest.approx(theirs["inception_score_mean"], rel=1e-4)
    assert measures["Inception score"]["error"] == pytest.approx(theirs["inception_score_std"], rel=1e-3)
    assert measures["Inception score"]["error"] > 0
    assert report["settings"]["network"] == "Inception, layer 64"
    assert "torch-fidelity" in report["versions"]


def test_what_is_refused(weights: Path, folders: tuple[Path, Path], tmp_path: Path) -> None:
    """Files that are not the weights, one that would run code, and fewer samples than FID's features."""
    made, real = folders
    written = tmp_path / "written"
    child(BROKEN, weights, made, real, tmp_path)
    said = json.loads(written.read_text())
    assert "must hold tensors only" in said["text.pth"]
    assert "must hold tensors only" in said["bad.pth"]
    assert "must be torch-fidelity's" in said["other.pth"]
    assert "must be a file" in said["missing.pth"]
    assert "in 2048 features needs more samples than that, got 66" in said["few"]
    assert not (tmp_path / "executed").exists()
