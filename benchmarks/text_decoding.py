r"""Times our cache plans and threshold decoding against the loops they were published with, on the same models.

    python benchmarks/text_decoding.py --output_dir out/text_decoding
    python benchmarks/text_decoding.py --output_dir out/text_decoding --vocab_sizes 126464 --prompt_lengths 64 1024 \
        --contests "Fast-dLLM, dual" "dLLM, dual" --batch_sizes 1 4 --resume

The models have the layers of LLaDA (a Llama) and of Qwen3, 512 wide, and random weights; a large head makes some of
their tokens sure. The published loops (`reference_loops.py`) run on a model of a few lines with the same layers; tests
run them against recorded runs of the originals. Both make the same passes and, up to rounding, write the same tokens,
whose share is shown; SDAR's are drawn, by each with noise of its own. The two take turns in one process on one thread.
"time" is ours divided by theirs, the median over repeats, with the smallest and the largest; on a CPU it is the time
that the process computes, so that other work on the machine does not count. "passes" and "positions" are model calls
and the positions computed in them, a row. "memory" is the peak that a run allocates besides the model, ours divided by
theirs.

`--parts` tells what the time is spent on: matrix products and attention, which nobody can leave out, and all passes of
the model, with the norms, rotations and sums around these. "least ratio" is what "time" would be if ours took no more
than its products and attention, and no more than its passes.

Prints a table, and writes `text_decoding.json` after every line of it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from itertools import product
from statistics import median
from time import process_time
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from arguments import add_cell_arguments, add_machine_arguments, new_parser
from memory import extra_memory
from reference_model import ReferenceModel
from tables import print_table, write_json
from text_contests import CONTESTS, SHAPES, Setting, make_model, pipeline_of
from timing import now, take_turns
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from hf_maskdiff.denoisers import transformers_denoiser

OURS, THEIRS = "ours", "theirs"
Result = dict[str, Any]


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = new_parser(__doc__)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--vocab_sizes", type=int, nargs="+", default=[32_000])
    parser.add_argument("--prompt_lengths", type=int, nargs="+", default=[64])
    parser.add_argument("--new_tokens", type=int, nargs="+", default=[128])
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--block_length", type=int, default=32)
    parser.add_argument("--steps_a_block", type=int, default=8, help="where the number of steps is planned")
    parser.add_argument("--contests", nargs="+", choices=CONTESTS, default=list(CONTESTS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--parts", action="store_true", help="add what the time is spent on")
    parser.add_argument("--hidden_size", type=int, default=512)
    parser.add_argument("--num_layers", type=int, default=8)
    add_machine_arguments(parser)
    add_cell_arguments(parser)
    return parser.parse_args(argv)


class CountedPasses:
    """Counts the passes of our model, and the positions of a row computed in them, by the tokens that are embedded."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.calls = self.positions = 0
        self.handle = model.get_input_embeddings().register_forward_pre_hook(self._count)

    def _count(self, embedding: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.calls, self.positions = self.calls + 1, self.positions + inputs[0].shape[1]


def add_parts(
    runs: list[dict[str, float]], work: Callable[[], Any], holder: Any, name: str, seconds: Callable[[], float]
) -> None:
    """Run, and note the seconds of the run, and of these what its products, its attention and its passes take.

    Args:
        runs: what was noted of others.
        work: the run.
        holder, name: where the function stands that makes a pass.
        seconds: the clock.
    """
    parts = dict.fromkeys(("all", "passes", "products", "attention"), 0.0)

    def timed(function: Callable[..., Any], part: str) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            started = seconds()
            made = function(*args, **options)
            parts[part] += seconds() - started
            return made

        return call

    places = {"products": (F, "linear"), "attention": (F, "scaled_dot_product_attention"), "passes": (holder, name)}
    with ExitStack() as stack:
        for part, (where, what) in places.items():
            stack.enter_context(patch.object(where, what, timed(getattr(where, what), part)))
        timed(work, "all")()
    runs.append(parts)


def measure(name: str, setting: Setting, model: PreTrainedModel, repeats: int, with_parts: bool = False) -> Result:
    """One line of the table."""
    contest, device = CONTESTS[name], model.device
    steps = setting.block_length if contest.as_needed else setting.steps_a_block
    arguments = setting.arguments
    if contest.as_needed:
        arguments["steps"] = setting.new_tokens
    prompt, pipe = setting.prompt().to(device), pipeline_of(model, setting, contest)
    call = {"max_new_tokens": setting.new_tokens, "block_length": setting.block_length, "output_type": "ids"}

    reference = ReferenceModel(model)

    def theirs() -> Tensor:
        return contest.loop(reference, prompt, **arguments)

    def ours() -> Tensor:
        return torch.stack(pipe(input_ids=prompt, num_inference_steps=steps, **call).sequences)

    pipe(input_ids=prompt[:, :1], num_inference_steps=1, **call | {"max_new_tokens": setting.block_length})  # the probe
    written: dict[str, Tensor] = {}
    counted = CountedPasses(model)
    memory = {OURS: extra_memory(lambda: written.update({OURS: ours()}), device)}
    counted.handle.remove()  # theirs runs the same layers
    memory[THEIRS] = extra_memory(lambda: written.update({THEIRS: theirs()}), device)
    passes = {OURS: counted.calls, THEIRS: reference.calls}
    positions = {OURS: counted.positions, THEIRS: reference.positions}
    clock = process_time if device.type == "cpu" else now
    parts: dict[str, list[dict[str, float]]] = {OURS: [], THEIRS: []}
    works = {OURS: ours, THEIRS: theirs}
    if with_parts:
        passes_of = {OURS: (transformers_denoiser, "run_pass"), THEIRS: (ReferenceModel, "__call__")}
        works = {who: partial(add_parts, parts[who], work, *passes_of[who], clock) for who, work in works.items()}
    times = take_turns(works, repeats, clock=clock, warm_up=False)
    ratios = [own / other for own, other in zip(times[OURS], times[THEIRS], strict=True)]
    more: Result = {}
    if with_parts:
        shown = {who: {part: median(run[part] for run in runs) for part in runs[0]} for who, runs in parts.items()}
        turns = list(zip(parts[OURS], times[THEIRS], strict=True))
        needed = {"products and attention": ("products", "attention"), "passes": ("passes",)}
        least = {
            name: median(sum(own[part] for part in of) / other for own, other in turns) for name, of in needed.items()
        }
        more = {"parts": shown, "least ratio": least}
    new = slice(setting.prompt_length, setting.prompt_length + setting.new_tokens)
    return {
        "contest": name,
        **asdict(setting),
        "ratio": median(ratios),
        "least": min(ratios),
        "most": max(ratios),
        "seconds": {who: median(seconds) for who, seconds in times.items()},
        "passes": passes,
        "positions": positions,
        "memory": memory,
        "same tokens": None
        if contest.draws
        else (written[OURS][:, new] == written[THEIRS][:, new]).double().mean().item(),
        **more,
    }


def table_row(row: Result) -> list[str]:
    sizes = [row["contest"], row["shape"], f"{row['vocab_size']:,}", row["prompt_length"], row["new_tokens"]]
    time = f"{row['ratio']:.2f} ({row['least']:.2f} to {row['most']:.2f})"
    counts = [f"{row[name][OURS]:,} / {row[name][THEIRS]:,}" for name in ("passes", "positions")]
    memory = row["memory"][OURS] / row["memory"][THEIRS]
    same = "drawn" if row["same tokens"] is None else f"{row['same tokens']:.3f}"
    least = " / ".join(f"{ratio:.2f}" for ratio in row.get("least ratio", {}).values())
    return [*map(str, sizes), str(row["batch_size"]), time, *counts, f"{memory:.2f}", same, least]


def settings_of(args: argparse.Namespace) -> list[Setting]:
    lists = (args.shapes, args.vocab_sizes, args.prompt_lengths, args.new_tokens, args.batch_sizes)
    return [Setting(*sizes, args.block_length, args.steps_a_block) for sizes in product(*lists)]


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> list[Result]:
    args = parse_args(argv)
    torch.set_num_threads(args.num_threads)
    path = args.output_dir / "text_decoding.json"
    results: list[Result] = json.loads(path.read_text()) if args.resume and path.exists() else []
    done = {(row["contest"], *(row[name] for name in asdict(settings_of(args)[0]))) for row in results}
    for setting in tqdm(settings_of(args), desc="settings"):
        names = [name for name in args.contests if setting.batch_size == 1 or CONTESTS[name].batches]
        wanted = [name for name in names if (name, *asdict(setting).values()) not in done]
        if not wanted:
            continue
        model = make_model(setting, args.hidden_size, args.num_layers).to(args.device)
        for name in wanted:
            results.append(measure(name, setting, model, args.repeats, args.parts))
            write_json(results, path)
    headings = ["loop", "layers", "V", "prompt", "new", "batch", "time, ours / theirs", "passes", "positions"]
    print_table([*headings, "memory", "same tokens", "least ratio"], map(table_row, results), left=(0, 1))
    return results


if __name__ == "__main__":
    main()
