"""The one clear error for an environment that cannot work."""

from importlib.metadata import PackageNotFoundError, version

# The oldest release of each package that the code relies on.
SUPPORTED = {"torch": "2.6", "diffusers": "0.41", "transformers": "5.0"}


def require_supported_versions() -> None:
    """Raise `ImportError` unless torch, diffusers and transformers are installed and recent enough."""
    for package, oldest in SUPPORTED.items():
        try:
            installed = version(package)
        except PackageNotFoundError:
            installed = "none"
        numbers = [int(part) for part in installed.split("+")[0].split(".")[:2] if part.isdigit()]
        if numbers < [int(part) for part in oldest.split(".")]:
            raise ImportError(
                f"hf_maskdiff needs {package} {oldest} or newer, found {installed}. Run `pip install -U {package}`."
            )
