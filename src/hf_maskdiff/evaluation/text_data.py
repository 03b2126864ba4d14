"""Texts as lists of documents, from the Hub or from local files."""

from __future__ import annotations

from pathlib import Path


def load_documents(split: str, dataset: str | None = None, data_dir: str | Path | None = None) -> list[str]:
    """Reads one split of a set of texts into memory.

    Example:
        >>> documents = load_documents("test", data_dir="tinyshakespeare")
        >>> len(documents), len(documents[0])
        (1, 111540)

    Args:
        split (`str`): "train" or "test". If a source has no test split, its validation split is used; if it has
            neither, the last tenth of the documents is held out, or of the document if there is only one.
        dataset (`str`, *optional*): name of a data set on the Hub, `name` or `name:configuration`, with a column
            "text" or only one column of strings; each row is a document.
        data_dir (`str` or `Path`, *optional*): a local folder of `.txt` files instead; each file is a document.

    Raises:
        ValueError: if not exactly one source is given, or the source has no such texts.
    """
    if (dataset is None) == (data_dir is None):
        raise ValueError(
            f"exactly one of `dataset` and `data_dir` must be given, got {dataset!r} and {data_dir!r}. "
            "Pass a data set of the Hub, such as dataset='karpathy/tiny_shakespeare', or a local folder."
        )
    if split not in ("train", "test"):
        raise ValueError(f"`split` must be 'train' or 'test', got {split!r}.")
    if data_dir is not None:
        files = sorted(Path(data_dir).glob("*.txt"))
        if not files:
            raise ValueError(f"`data_dir` must be a folder with .txt files, got {str(data_dir)!r}. Check the path.")
        return _hold_out([path.read_text(encoding="utf-8") for path in files], split)

    # Imported here, because the import takes a second and local files do not need it.
    import datasets

    name, _, configuration = str(dataset).partition(":")
    splits = datasets.load_dataset(name, configuration or None)
    held_out = next((key for key in ("test", "validation") if key in splits), None)
    rows = splits[held_out if split == "test" and held_out is not None else "train"]
    columns = [name for name, feature in rows.features.items() if feature == datasets.Value("string")]
    if "text" not in columns and len(columns) != 1:
        raise ValueError(f'the data set must have a column "text" or one column of strings, got {rows.features}.')
    documents = list(rows["text" if "text" in columns else columns[0]])
    return documents if held_out is not None else _hold_out(documents, split)


def _hold_out(documents: list[str], split: str) -> list[str]:
    if len(documents) == 1:
        cut = len(documents[0]) * 9 // 10
        return [documents[0][:cut] if split == "train" else documents[0][cut:]]
    cut = len(documents) * 9 // 10
    return documents[:cut] if split == "train" else documents[cut:]
