"""Published models in their authors' layouts: where their weights are, what they are called, how they are read."""

from hf_maskdiff.published.families import PUBLISHED_TYPES
from hf_maskdiff.published.mdlm_weights import published_weights
from hf_maskdiff.published.text_models import PublishedText, load_published_text
from hf_maskdiff.published.tokenizer_files import check_ids, open_tokenizer

__all__ = [
    "PUBLISHED_TYPES",
    "PublishedText",
    "check_ids",
    "load_published_text",
    "open_tokenizer",
    "published_weights",
]
