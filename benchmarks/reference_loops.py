"""The decoding loops that language models of this kind are published with, restated in as few lines as possible.

Each takes a `ReferenceModel` and a prompt `(batch_size, length)`, and returns the prompt with its new tokens. Passes,
caches, rules and number formats are the originals'; tests run them against recorded runs of these.
"""

from __future__ import annotations

import torch
from reference_model import ReferenceModel, Stored
from reference_rules import (
    above_threshold,
    by_factor,
    drawn_and_confidence,
    even_counts,
    shares_of_the_rest,
    top_count,
    top_k_top_p,
)
from torch import Tensor


def canvas_of(prompt: Tensor, new_tokens: int, mask_id: int) -> Tensor:
    return torch.cat([prompt, prompt.new_full((len(prompt), new_tokens), mask_id)], 1)


def fast_dllm(
    model: ReferenceModel,
    prompt: Tensor,
    new_tokens: int,
    block_length: int,
    steps: int,
    mask_id: int,
    cache: str | None = None,
    threshold: float | None = None,
    temperature: float = 0.0,
    random_order: bool = False,
) -> Tensor:
    """NVlabs/Fast-dLLM, arXiv 2505.22618, without a cache LLaDA's own loop; `cache` is None, "prefix" or "dual".

    With a cache, a block whose first pass fills it costs another one.
    """
    canvas = canvas_of(prompt, new_tokens, mask_id)
    steps_a_block = steps // (new_tokens // block_length)
    for start in range(prompt.shape[1], canvas.shape[1], block_length):
        end, stored = start + block_length, Stored()
        counts = even_counts((canvas[:, start:end] == mask_id).sum(1), steps_a_block)
        for step in range(canvas.shape[1]):
            first = 0
            if step == 0 or cache is None:
                logits = model(canvas, keep=stored.all) if cache else model(canvas)
            else:
                first, last = start, end if cache == "dual" else canvas.shape[1]
                if cache == "prefix":
                    stored.cut(start)
                keep = stored.replace(start, end) if cache == "dual" else stored.after
                logits = model(canvas[:, first:last], torch.arange(first, last, device=canvas.device)[None], keep)
            part = canvas[:, first : first + logits.shape[1]]
            masked = part == mask_id
            masked[:, end - first :] = False
            drawn, confidence = drawn_and_confidence(logits, temperature, torch.float64, random_order)
            confidence = confidence.masked_fill(~masked, -torch.inf)
            if threshold is None:
                chosen = top_count(confidence, counts[:, min(step, counts.shape[1] - 1)])
            else:
                chosen = above_threshold(confidence, masked.sum(1), threshold)
            part[chosen] = drawn[chosen]
            if not (canvas[:, start:end] == mask_id).any() and (step > 0 or cache is None):
                break
    return canvas


def dllm_fast_dllm(
    model: ReferenceModel,
    prompt: Tensor,
    new_tokens: int,
    block_length: int,
    steps: int,
    mask_id: int,
    cache: str | None = None,
    threshold: float | None = None,
    factor: float | None = None,
) -> Tensor:
    """dLLM's version of it (ZHZisZZ/dllm): batches of equal prompts, `factor`, no superfluous pass."""
    canvas = canvas_of(prompt, new_tokens, mask_id)
    steps_a_block = -(-steps // -(-new_tokens // block_length))
    for start in range(prompt.shape[1], canvas.shape[1], block_length):
        end, stored = min(start + block_length, canvas.shape[1]), Stored()
        counts = shares_of_the_rest((canvas[:, start:end] == mask_id).sum(1), steps_a_block)
        for step in range(canvas.shape[1]):
            if not (canvas[:, start:end] == mask_id).any():
                break
            first = 0
            if step == 0 or cache is None:
                logits = model(canvas, keep=stored.all) if cache else model(canvas)
            else:
                first, last = start, end if cache == "dual" else canvas.shape[1]
                if cache == "prefix":
                    stored.cut(start)
                keep = stored.replace(start, end) if cache == "dual" else stored.after
                logits = model(canvas[:, first:last], torch.arange(first, last, device=canvas.device)[None], keep)
            part = canvas[:, first : first + logits.shape[1]]
            masked = part == mask_id
            masked[:, end - first :] = False
            drawn, confidence = drawn_and_confidence(logits, 0.0, torch.float32)
            confidence = confidence.masked_fill(~masked, -torch.inf)
            if factor is not None:
                chosen = by_factor(confidence, masked.sum(1), factor)
            elif threshold is not None:
                chosen = above_threshold(confidence, masked.sum(1), threshold)
            else:
                chosen = top_count(confidence, counts[:, min(step, counts.shape[1] - 1)])
            part[chosen] = drawn[chosen]
    return canvas


def dllm_mdlm(
    model: ReferenceModel,
    prompts: list[Tensor],
    new_tokens: int,
    block_length: int,
    steps: int,
    mask_id: int,
    eos_id: int,
    temperature: float = 0.0,
) -> Tensor:
    """dLLM's MDLM sampler: prompts `(length,)` of any lengths, padded with the end of text at the right."""
    ends = [len(prompt) + new_tokens for prompt in prompts]
    canvas = prompts[0].new_full((len(prompts), max(ends)), eos_id)
    for row, (prompt, end) in enumerate(zip(prompts, ends, strict=True)):
        canvas[row, : len(prompt)], canvas[row, len(prompt) : end] = prompt, mask_id
    columns = torch.arange(canvas.shape[1], device=canvas.device)
    real = columns < torch.tensor(ends, device=canvas.device)[:, None]
    attention = None if bool(real.all()) else real[:, None, None]
    num_blocks = -(-new_tokens // block_length)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=canvas.device)[:, None]
    for block in range(num_blocks):
        last = (lengths + (block + 1) * block_length).clamp(max=lengths + new_tokens)
        window = (columns >= lengths + block * block_length) & (columns < last)
        counts = shares_of_the_rest(((canvas == mask_id) & window).sum(1), -(-steps // num_blocks))
        for step in range(counts.shape[1]):
            masked = (canvas == mask_id) & (columns < last)
            logits = model(canvas, mask=attention)
            drawn, confidence = drawn_and_confidence(logits, temperature, torch.float32)
            chosen = top_count(confidence.masked_fill(~masked, -torch.inf), counts[:, step])
            canvas[chosen] = drawn[chosen]
    return canvas


def klass(
    model: ReferenceModel,
    prompt: Tensor,
    new_tokens: int,
    block_length: int,
    steps: int,
    mask_id: int,
    conf_threshold: float = 0.9,
    kl_threshold: float = 0.01,
    history: int = 2,
) -> Tensor:
    """shkim0116/KLASS, arXiv 2511.05664: reveals what is sure and did not change in the last passes. One row."""
    canvas = canvas_of(prompt, new_tokens, mask_id)
    steps_a_block = steps // (new_tokens // block_length)
    before: Tensor | None = None
    changes = torch.zeros(*canvas.shape, history, dtype=torch.float64, device=canvas.device)
    for start in range(prompt.shape[1], canvas.shape[1], block_length):
        end = start + block_length
        counts = even_counts((canvas[:, start:end] == mask_id).sum(1), steps_a_block)
        for step in range(steps_a_block):
            masked = canvas == mask_id
            masked[:, end:] = False
            if not masked[:, start:end].any():
                break
            logits = model(canvas)
            probs = logits.to(torch.float64).softmax(-1)
            drawn = probs.argmax(-1)
            confidence = probs.gather(-1, drawn[..., None])[..., 0]
            before = torch.zeros_like(probs) if before is None else before
            change = (probs * ((probs + 1e-12).log() - (before + 1e-12).log())).sum(-1)
            changes, before = torch.cat([changes[..., 1:], change[..., None]], -1), probs.clone()
            stable = (changes < kl_threshold).all(-1) if step >= history - 1 else torch.zeros_like(masked)
            chosen = stable & (confidence > conf_threshold) & masked
            if not chosen.any():
                chosen = top_count(confidence.masked_fill(~masked, -torch.inf), counts[:, step])
            canvas[chosen] = drawn[chosen]
    return canvas


def dkv_decode(
    model: ReferenceModel,
    prompt: Tensor,
    new_tokens: int,
    block_length: int,
    steps: int,
    mask_id: int,
    refresh_every: int,
    temperature: float = 0.0,
    random_order: bool = False,
) -> Tensor:
    """horseee/dKV-Cache, arXiv 2505.15781, decode: keys and values are kept one step after their token was drawn.

    Rows must know equal numbers of tokens.
    """
    canvas, rows = canvas_of(prompt, new_tokens, mask_id), len(prompt)
    steps_a_block = steps // (new_tokens // block_length)
    whole = torch.arange(canvas.shape[1], device=canvas.device).expand(rows, -1)
    for start in range(prompt.shape[1], canvas.shape[1], block_length):
        end, stored = start + block_length, Stored()
        counts = even_counts((canvas[:, start:end] == mask_id).sum(1), steps_a_block)
        for step in range(steps_a_block):
            known = canvas != mask_id
            places, held = whole, whole[:, :0]
            if step > 1 and step % refresh_every and stored.places is not None:
                held = stored.places
                places = whole[torch.ones_like(known).scatter(1, held, False)].view(rows, -1)
            fresh = Stored()

            def keep(layer: int, keys: Tensor, values: Tensor, old: Tensor = held, new: Stored = fresh) -> tuple:
                both = (keys, values) if old.shape[1] == 0 else stored.after(layer, keys, values)  # noqa: B023
                return new.all(layer, *both)

            logits = model(canvas.gather(1, places), places, keep)
            if step > 0:
                order = torch.cat([held, places], 1)
                index = known.gather(1, order).nonzero()[:, 1].view(rows, -1)
                stored.places = order.gather(1, index)
                for layer, both in fresh.layers.items():
                    wide = index[:, None, :, None].expand(-1, both[0].shape[1], -1, both[0].shape[3])
                    stored.layers[layer] = both[0].gather(2, wide), both[1].gather(2, wide)
            drawn, confidence = drawn_and_confidence(logits, temperature, torch.float64, random_order)
            confidence = confidence.masked_fill(known.gather(1, places) | (places >= end), -torch.inf)
            chosen = top_count(confidence, counts[:, step])
            canvas.scatter_(1, places, torch.where(chosen, drawn, canvas.gather(1, places)))
    return canvas


def sdar(
    model: ReferenceModel,
    prompt: Tensor,
    new_tokens: int,
    block_length: int,
    denoising_steps: int,
    mask_id: int,
    strategy: str = "low_confidence_dynamic",
    threshold: float = 0.85,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    stop_ids: list[int] | None = None,
) -> Tensor:
    """JetAstra/SDAR: a block-causal model, whose finished blocks are stored by one more pass. One row."""
    num_prompt = prompt.shape[1]
    num_blocks = -(-(num_prompt + new_tokens) // block_length)
    canvas = canvas_of(prompt, num_blocks * block_length - num_prompt, mask_id)
    places = torch.arange(canvas.shape[1], device=canvas.device)[None]
    blocks, stored = places[0] // block_length, Stored()
    ready = num_prompt // block_length * block_length
    if ready:
        model(canvas[:, :ready], places[:, :ready], stored.append, blocks[:ready, None] >= blocks[:ready])
    counts = even_counts(torch.tensor([block_length]), denoising_steps)[0]
    for start in range(ready, canvas.shape[1], block_length):
        part, where = canvas[:, start : start + block_length], places[:, start : start + block_length]
        for step in range(denoising_steps + 1):
            masked = part == mask_id
            if not masked.any():
                model(part, where, stored.append)
                break
            logits = model(part, where, stored.after)[0]
            logits = top_k_top_p(logits if temperature == 1 else logits / temperature, top_k, top_p)
            probs = logits.softmax(-1)
            drawn = torch.multinomial(probs, 1)
            confidence = probs.gather(-1, drawn)[:, 0].where(masked[0], -torch.inf)
            count = int(counts[step])
            sure = confidence > threshold
            chosen = torch.zeros_like(masked)
            if strategy == "sequential":
                first = int(masked[0].nonzero()[0])
                chosen[0, first : first + count] = True
            elif strategy == "low_confidence_dynamic" and int(sure.sum()) >= count:
                chosen[0] = sure
            else:
                chosen[0, confidence.topk(count).indices] = True
            part[chosen] = drawn[:, 0][chosen[0]]
        if stop_ids and torch.isin(canvas[:, num_prompt:], torch.tensor(stop_ids, device=canvas.device)).any():
            break
    return canvas
