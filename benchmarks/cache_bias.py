r"""What each cache changes in the law of the sequences, exactly: every sequence that can be written is enumerated.

    python benchmarks/cache_bias.py --output_dir out/cache_bias

Exact conditionals alone say nothing of a cache: what is stale in it are keys and values, which only a model with
attention has. So a small transformer is trained here on all conditionals of a Markov chain, which are known for every
mask pattern, until hardly any error is left; its attention is what caches then reuse. Positions are chosen without
randomness (bit-reversed order, or the surest first), so that a sequence determines the steps that write it, and its
probability is the product of those of its tokens. All `num_states ** length` sequences are written as one batch, each
with its own tokens forced, by the pipeline with the cache switched on. The measures:

bias: KL divergence of the law with the cache from the law without, KL(none || cache), in nats per sequence, and their
    total variation. Partial caching, which draws a step in groups, is compared with the same groups drawn from full
    passes, so that the bias is that of stale keys and values alone.
error: KL divergence of the law from the chain itself, KL(chain || law): what the number of steps costs besides.
model: KL divergence of the model from the conditionals, in nats per masked position.

Errors are standard errors over seeds, each with its own chain and model. Writes `results.json` and `cache_bias.png`.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from arguments import new_parser
from looks import BLACK, BLUE, BROWN, GREEN, GREY, ORANGE, PURPLE, VERMILLION
from plots import add_legend, draw_curve, figure
from tables import print_table, with_error, write_json
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerFast

from hf_maskdiff import (
    Choice,
    ChooseThenSampleScheduler,
    ConfidenceScheduler,
    DelayedCacheConfig,
    DualCacheConfig,
    GreedyCacheConfig,
    HaltonScheduler,
    MDLMPipeline,
    MDLMTransformer,
    PartialCacheConfig,
    PrefixCacheConfig,
)
from hf_maskdiff.caching import CacheConfig
from hf_maskdiff.evaluation.markov_chain import MarkovChain
from hf_maskdiff.evaluation.report import mean_and_error
from hf_maskdiff.sampling import Marginals

PARTIAL = PartialCacheConfig(num_substeps=2, full_pass_threshold=1.0)
GROUPS = PartialCacheConfig(num_substeps=2, full_pass_threshold=0.0)  # the same groups, with nothing that is stale
CACHES: dict[str, CacheConfig | None] = {
    "none": None,
    "partial": PARTIAL,
    "prefix": PrefixCacheConfig(),
    "dual": DualCacheConfig(),
    "dual, afresh every 2": DualCacheConfig(refresh_every=2),
    "delayed": DelayedCacheConfig(refresh_every=None),
    "delayed, afresh every 3": DelayedCacheConfig(refresh_every=3),
    "greedy, window 1": GreedyCacheConfig(refresh_every=None, window=1),
    "dual + partial": DualCacheConfig(partial=PARTIAL),
}
SKY = "#56B4E9"  # of the same palette
COLOURS = dict(zip(CACHES, (BLACK, BLUE, GREEN, VERMILLION, ORANGE, PURPLE, BROWN, GREY, SKY), strict=True))
NUM_BLOCKS = {"half": 2, "whole": 1}  # the share of a sequence that a block is
OF_BLOCKS = ("prefix", "dual", "dual, afresh every 2", "dual + partial")  # these do nothing where there is one block


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = new_parser(__doc__)
    parser.add_argument("--length", type=int, default=6)
    parser.add_argument("--num_states", type=int, default=3)
    parser.add_argument("--sharpness", type=float, default=2.0)
    parser.add_argument("--steps", type=int, nargs="+", default=[2, 4, 6], help="of a whole sequence")
    parser.add_argument("--orders", nargs="+", choices=list(ORDERS), default=list(ORDERS))
    parser.add_argument("--caches", nargs="+", choices=list(CACHES), default=list(CACHES))
    parser.add_argument("--num_seeds", type=int, default=3)
    parser.add_argument("--train_steps", type=int, default=1500)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--num_layers", type=int, default=3)
    parser.add_argument("--output_dir", type=Path, required=True)
    return parser.parse_args(argv)


# --- the model --------------------------------------------------------------------------------------------------------


def stationary(length: int, num_states: int, sharpness: float, seed: int) -> MarkovChain:
    """A random chain that is the same everywhere, as a model is whose attention knows relative positions alone."""
    step = MarkovChain.random(2, num_states, sharpness, seed).transitions[0]
    return MarkovChain(torch.linalg.matrix_power(step, 1000)[0], step.expand(length - 1, -1, -1))


def trained(chain: MarkovChain, width: int, num_layers: int, num_steps: int, seed: int) -> MDLMTransformer:
    """A transformer that has learned the conditionals of a chain for every mask pattern."""
    torch.manual_seed(seed)
    sizes = {"hidden_dim": width, "cond_dim": 16, "n_blocks": num_layers, "n_heads": 4, "dropout": 0.0}
    model = MDLMTransformer(chain.mask_token_id + 1, chain.length, **sizes)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3, betas=(0.9, 0.98), weight_decay=0)
    warmup = max(num_steps // 20, 1)
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda n: min((n + 1) / warmup, 0.5 + 0.5 * math.cos(math.pi * n / num_steps))
    )
    generator = torch.Generator().manual_seed(seed)
    for _ in tqdm(range(num_steps), desc="training", leave=False, disable=None):
        sample = masked_sample(chain, 64, generator)
        optimizer.zero_grad()
        divergence(chain, model, sample).mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rate.step()
    return model.eval()


def masked_sample(chain: MarkovChain, num: int, generator: torch.Generator) -> Tensor:
    """Sequences, half of the chain and half uniform, of which any number of tokens is masked, int64 `(num, L)`."""
    seed = int(torch.randint(2**31, (1,), generator=generator))
    uniform = torch.randint(chain.mask_token_id, (num - num // 2, chain.length), generator=generator)
    tokens = torch.cat([chain.draw(num // 2, seed), uniform])
    order = torch.rand(tokens.shape, generator=generator).argsort(-1)
    shown = torch.randint(chain.length, (num, 1), generator=generator)
    return torch.where(order < shown, tokens, chain.mask_token_id)


def divergence(chain: MarkovChain, model: MDLMTransformer, sample: Tensor) -> Tensor:
    """KL divergence of the model from the chain's conditionals at each masked position, in nats."""
    exact = chain(sample)
    found = model(sample).logits[..., :-1].double().log_softmax(-1)
    return (exact.exp() * (exact - found)).sum(-1)[sample == chain.mask_token_id]


# --- laws -------------------------------------------------------------------------------------------------------------


class Forcing(ChooseThenSampleScheduler):
    """Writes the tokens that it is told instead of drawing any, and adds up their log-probabilities."""

    def force(self, targets: Tensor, block_length: int) -> Forcing:
        """Write `targets`, int64 `(num, L)`, block by block; a run's copies of the scheduler share the sum."""
        self.targets, self.block_length, self.num_written = targets, block_length, [0]
        self.log_probs = torch.zeros(len(targets), dtype=torch.float64)
        return self

    def _sample(self, marginals: Marginals, choice: Choice, rows: Tensor, group: Tensor | None) -> Tensor:
        wanted = choice.valid if group is None else choice.valid & group
        # All rows write as many tokens in every step, so that all are in the same block.
        start = self.num_written[0] // self.block_length * self.block_length
        self.num_written[0] += int(wanted[0].sum())
        tokens = self.targets.gather(1, start + choice.positions)
        (log_probs,) = marginals.reduce(lambda logits: (logits.double().log_softmax(-1),), rows.flatten())
        found = log_probs.view(*rows.shape, -1).gather(-1, tokens[..., None])[..., 0]
        self.log_probs += torch.where(wanted, found, 0.0).sum(-1)
        return torch.where(wanted, tokens, choice.tokens)


class ForcedHalton(Forcing, HaltonScheduler):
    """In bit-reversed order."""


class ForcedConfidence(Forcing, ConfidenceScheduler):
    """The surest first."""


ORDERS: dict[str, type[Forcing]] = {"bit-reversed": ForcedHalton, "surest first": ForcedConfidence}


@dataclass
class Enumeration:
    """All sequences of a chain's length, and the pipeline that writes them."""

    chain: MarkovChain
    model: MDLMTransformer

    def __post_init__(self) -> None:
        size = self.chain.mask_token_id
        self.sequences = torch.tensor(list(product(range(size), repeat=self.chain.length)))
        self.of_chain = self.chain.log_evidence(self.sequences)
        words = {**{str(token): token for token in range(size)}, "<mask>": size}
        self.tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(WordLevel(words, unk_token="0")), mask_token="<mask>"
        )

    def log_law(self, order: str, cache: CacheConfig | None, block_length: int, steps: int) -> tuple[Tensor, float]:
        """The log-probability of each sequence, float64 `(num,)`, and the positions computed, in whole sequences.

        Args:
            steps: of each block.
        """
        scheduler = ORDERS[order](mask_token_id=self.chain.mask_token_id, masking_schedule="linear")
        scheduler.force(self.sequences, block_length)
        pipe = MDLMPipeline(self.tokenizer, self.model, scheduler)
        pipe.set_progress_bar_config(disable=True)
        if cache is not None:
            pipe.enable_cache(cache)
        computed = 0

        def count(_: Any, inputs: tuple[Tensor, ...]) -> None:
            nonlocal computed
            computed += inputs[0].numel()

        handle = self.model.register_forward_pre_hook(count)
        masks = torch.full_like(self.sequences, self.chain.mask_token_id)
        call = {"num_inference_steps": steps, "block_length": block_length, "max_new_tokens": None}
        written = pipe(input_ids=masks, mask=torch.ones_like(masks, dtype=torch.bool), **call, output_type="ids")
        handle.remove()
        assert torch.equal(torch.stack(written.sequences), self.sequences)
        return scheduler.log_probs, computed / self.sequences.numel()


def kl(log_p: Tensor, log_q: Tensor) -> float:
    return float((log_p.exp() * (log_p - log_q)).sum())


def measured(args: argparse.Namespace, seed: int) -> list[dict[str, Any]]:
    """The biases of all caches on one chain, for every order, length of blocks and number of steps."""
    chain = stationary(args.length, args.num_states, args.sharpness, seed)
    started = time.monotonic()
    model = trained(chain, args.width, args.num_layers, args.train_steps, seed).requires_grad_(False)
    unseen = masked_sample(chain, 4096, torch.Generator().manual_seed(1000 + seed))
    model_error = float(divergence(chain, model, unseen).mean())
    print(f"seed {seed}: trained in {time.monotonic() - started:.0f} s to {model_error:.2e} nats", flush=True)
    laws, rows = Enumeration(chain, model), []
    for order, (blocks, num_blocks), steps in product(args.orders, NUM_BLOCKS.items(), args.steps):
        run = (args.length // num_blocks, steps // num_blocks)
        if run[1] < 2:  # then every pass is the first of its block, which computes everything
            continue
        plain_law, law_of_groups = (laws.log_law(order, cache, *run)[0] for cache in (None, GROUPS))
        for name in args.caches:
            if (num_blocks == 1 and name in OF_BLOCKS) or (name.startswith("greedy") and order != "bit-reversed"):
                continue
            found, positions = laws.log_law(order, CACHES[name], *run)
            plain = law_of_groups if "partial" in name else plain_law
            rows.append(
                {
                    "seed": seed,
                    "order": order,
                    "blocks": blocks,
                    "steps": steps,
                    "cache": name,
                    "positions": positions,
                    "bias": kl(plain, found),
                    "variation": float((plain.exp() - found.exp()).abs().sum()) / 2,
                    "error": kl(laws.of_chain, found),
                    "mass": float(found.exp().sum()),
                    "model": model_error,
                }
            )
    return rows


# --- what is shown ----------------------------------------------------------------------------------------------------

KEY = ("order", "blocks", "steps", "cache")


Summary = dict[tuple[Any, ...], dict[str, tuple[float, float]]]  # by KEY


def summarised(rows: Sequence[dict[str, Any]]) -> Summary:
    """Mean and standard error over seeds of every measure."""
    seeds: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        seeds.setdefault(tuple(row[name] for name in KEY), []).append(row)
    measures = ("positions", "bias", "variation", "error")
    return {
        key: {name: mean_and_error([row[name] for row in same]) for name in measures} for key, same in seeds.items()
    }


def report(summary: Summary) -> None:
    headings = [*KEY, "positions", "bias, nats", "total variation", "error, nats"]
    lines = []
    for key, row in summary.items():
        values = [with_error(row[name], 4) for name in ("bias", "variation", "error")]
        lines.append((*key, f"{row['positions'][0]:.2f}", *values))
    print_table(headings, lines, left=(0, 1, 3))


def plot(summary: Summary, path: Path, title: str = "What stale keys and values change in the law") -> None:
    """The bias of each cache in each setting that it is used in, on one line."""
    cases = list(dict.fromkeys(key[:3] for key in summary))
    with figure(path, title=title, figsize=(10, 5)) as page:
        axis = page.subplots()
        for i, name in enumerate(CACHES):
            points = []
            for place, case in enumerate(cases):
                row = summary.get((*case, name))
                if row is not None and row["bias"][0] > 1e-6:
                    points.append((place + 0.06 * (i - len(CACHES) / 2), *row["bias"]))
            if points:
                draw_curve(axis, points, name, color=COLOURS[name], linestyle="none", markersize=8)
        labels = [f"{order},\n{blocks},\n{steps} steps" for order, blocks, steps in cases]
        axis.set_xticks(range(len(cases)), labels, fontsize=8)
        axis.set(yscale="log", ylabel="KL(none || cache), nats per sequence")
        add_legend(page)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    args = parse_args(argv)
    settings = {name: value for name, value in vars(args).items() if name != "output_dir"}
    rows: list[dict[str, Any]] = []
    results = {"settings": settings, "rows": rows}
    for seed in range(args.num_seeds):
        rows += measured(args, seed)
        write_json(results, args.output_dir / "results.json")
    summary = summarised(rows)
    report(summary)
    plot(summary, args.output_dir / "cache_bias.png")
    return results


if __name__ == "__main__":
    main()
