"""Upload the folders under pipelines/ and schedulers/ to the Hub, each to a repository of its own.

    python examples/push_to_hub.py --namespace me --dry_run
    python examples/push_to_hub.py --namespace me --private pipelines/maskgit-mnist

Needs `hf auth login` or `HF_TOKEN`. Files are uploaded unchanged, except for the card, which says how to load the new
repository. `--refresh_cards` uploads nothing; it updates what is generated in the folders, parts of their cards and
`pipeline.py`, and keeps what was written by hand.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from huggingface_hub import ModelCard, create_repo, upload_folder

import hf_maskdiff

ROOT = Path(__file__).parents[1]
INDICES = ("model_index.json", "scheduler_config.json")


def index_of(folder: Path) -> Path:
    """The file that says which class opens a folder."""
    found = [folder / name for name in INDICES if (folder / name).is_file()]
    if not found:
        raise ValueError(f"A folder must hold one of {INDICES}, got {str(folder)!r}. Pass one that was saved.")
    return found[0]


def open_folder(folder: Path) -> Any:
    """The pipeline or scheduler in a folder."""
    cls = getattr(hf_maskdiff, json.loads(index_of(folder).read_text())["_class_name"])
    return cls.from_pretrained(folder)


def card_for(thing: Any, folder: Path, repo_id: str) -> ModelCard:
    """The folder's card, with its generated parts written for `repo_id`."""
    card = folder / "README.md"
    return thing.generate_model_card(repo_id, ModelCard.load(card) if card.exists() else None)


def refresh(folder: Path) -> None:
    """Writes anew what is generated in a folder: parts of its card, and a pipeline's `pipeline.py`."""
    thing = open_folder(folder)
    card_for(thing, folder, f"{folder.parent.name}/{folder.name}").save(folder / "README.md")
    if isinstance(thing, DiffusionPipeline):
        thing.save_pipeline_file(folder)


def push(folder: Path, repo_id: str, private: bool) -> str:
    """Uploads a folder in one commit and returns its address."""
    with tempfile.TemporaryDirectory() as temporary:
        copy = shutil.copytree(folder, Path(temporary, folder.name))
        card_for(open_folder(folder), folder, repo_id).save(copy / "README.md")
        create_repo(repo_id, private=private, exist_ok=True)
        return upload_folder(repo_id=repo_id, folder_path=copy, commit_message=f"Upload {folder.name}").commit_url


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, help="default: all under pipelines/ and schedulers/")
    parser.add_argument("--namespace", help="user or organisation that will own the repositories")
    parser.add_argument("--private", action="store_true", help="make new repositories private")
    parser.add_argument("--dry_run", action="store_true", help="say what would be uploaded")
    parser.add_argument("--refresh_cards", action="store_true")
    args = parser.parse_args(argv)
    if args.namespace is None and not args.refresh_cards:
        parser.error("`--namespace` must name the owner of the repositories, got none. Pass your user name.")
    everything = (*ROOT.glob(f"pipelines/*/{INDICES[0]}"), *ROOT.glob(f"schedulers/*/{INDICES[1]}"))
    folders = [folder.resolve() for folder in args.folders or sorted(path.parent for path in everything)]
    try:
        for folder in folders:
            index_of(folder)
    except ValueError as error:
        parser.error(str(error))

    for folder in folders:
        repo_id = f"{args.namespace}/{folder.name}"
        if args.refresh_cards:
            refresh(folder)
        elif args.dry_run:
            sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
            print(f"{repo_id}: {len(sizes)} files, {sum(sizes):,} bytes")
        else:
            print(f"{repo_id}: {push(folder, repo_id, args.private)}")


if __name__ == "__main__":
    main()
