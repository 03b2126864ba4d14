"""What the model card of a converted checkpoint says: source, revision, licence, and how the sampler differs."""

from __future__ import annotations

from dataclasses import dataclass

from huggingface_hub import ModelCard, ModelCardData

from hf_maskdiff.conversion.sources import Source


@dataclass(frozen=True)
class Description:
    """What a model card says of where a model comes from.

    Args:
        upstream: the repository of its code.
        licence: of that code, an id of the Hub's.
        notes: sentences on its sampler.
        terms: a sentence on the licence, where the repository on the Hub names none.
        tokenizer: where its tokenizer comes from, if from elsewhere.
        about: sentences on what the model is, where its class does not say enough.
        licence_text: the licence itself, where it has to go with the weights.
    """

    upstream: str
    licence: str
    notes: str
    terms: str | None = None
    tokenizer: str | None = None
    about: str | None = None
    licence_text: str | None = None


def card_of(found: Source, description: Description) -> ModelCard:
    """What a card says of where a model comes from; the rest is generated around it."""
    upstream, licence = description.upstream, description.licence
    sentences = [f"Converted from {found.origin}, a model of {upstream}."]
    if description.about:
        sentences.append(description.about)
    if description.tokenizer:
        sentences.append(f"Its tokenizer is that of {description.tokenizer}.")
    code = f"The code of {upstream} is under {licence}; whether its weights are too is for their publisher to say."
    stated = found.licence and f"The licence is that of the repository, {found.licence}."
    sentences.append(stated or description.terms or code)
    data = ModelCardData(license=found.licence or licence, base_model=found.repo_id)
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{' '.join(sentences)}\n\n## Sampling\n\n{description.notes}\n")
