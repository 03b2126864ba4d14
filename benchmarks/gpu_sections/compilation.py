"""torch.compile on the model, alone and in whole runs of its pipeline, and on a step; CUDA graphs of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from hf_maskdiff import MaskedDiffusionScheduler, MomentScheduler

from .measures import Bench, Case, Row, milliseconds
from .models import Subject, llama, mdlm

# Before torch records a CUDA graph, it runs the work a few times.
WARM_UP = 4


def cases(bench: Bench) -> Iterator[Case]:
    # An error while torch compiles may leave it unable to go on, so what is surest comes first.
    small = mdlm(bench)
    yield "MDLM, reduce-overhead", partial(of_model, small, "reduce-overhead", bench)
    yield "runs of MDLM", partial(of_runs, small, bench.pick(32, 2), bench)
    yield "runs of Llama", partial(of_runs, llama(bench), bench.pick(16, 2), bench)
    yield "MDLM, blocks", partial(of_model, small, "blocks", bench)
    yield "moment step", partial(of_step, MomentScheduler, "default", bench)


def options_of(how: str, bench: Bench) -> dict[str, Any]:
    """Arguments of torch.compile; if code cannot or need not be generated, the traced graph is run directly."""
    if bench.tiny or not bench.on_gpu:
        return {"backend": "eager"}
    return {"mode": how} if how == "reduce-overhead" else {}


@torch.no_grad()
def of_model(subject: Subject, how: str, bench: Bench) -> Iterator[Row]:
    torch.compiler.reset()
    tokens = subject.masked(1, bench.device)
    eager = milliseconds(lambda: subject.apply(tokens), bench.device)
    expected, model, skipped = subject.apply(tokens), subject.pipe.transformer, graphs_skipped()
    forward = model.forward
    if how == "blocks":
        model.compile_repeated_blocks(fullgraph=True, **options_of(how, bench))
    else:
        model.forward = torch.compile(forward, **options_of(how, bench))
    try:
        started = perf_counter()
        logits = subject.apply(tokens).clone()  # a graph's output is overwritten by its next run
        yield {
            "what": f"a pass of {subject.name}",
            "compiled": how,
            "ms before": eager,
            **after(lambda: subject.apply(tokens), started, eager, bench),
            "graphs skipped": graphs_skipped() - skipped,
            "largest difference / largest logit": float((logits - expected).abs().amax() / expected.abs().amax()),
        }
    finally:
        model.__dict__.pop("forward", None)
        leave_compiled(model)


def leave_compiled(model: nn.Module) -> None:
    for module in model.modules():
        module._compiled_call_impl = None


def of_runs(subject: Subject, steps: int, bench: Bench) -> Iterator[Row]:
    """A call of the pipeline with one sample, whose model becomes CUDA graphs."""
    torch.compiler.reset()
    model, how = subject.pipe.transformer, "reduce-overhead"

    def run() -> Tensor:
        return torch.stack([torch.as_tensor(row) for row in subject.run(steps, 1).sequences])

    eager, expected, skipped = milliseconds(run, bench.device, repeats=3), run(), graphs_skipped()
    model.compile(**options_of(how, bench))
    try:
        started = perf_counter()
        tokens = run()
        new = tokens[:, subject.length - subject.new :] == expected[:, subject.length - subject.new :]
        yield {
            "what": f"a call of {subject.name}'s pipeline, batch 1, {steps} steps",
            "compiled": how,
            "ms before": eager,
            **after(run, started, eager, bench, repeats=3),
            "graphs skipped": graphs_skipped() - skipped,
            "share of equal tokens": float(new.double().mean()),
        }
    finally:
        leave_compiled(model)


@torch.no_grad()
def of_step(scheduler_class: Callable[..., MaskedDiffusionScheduler], how: str, bench: Bench) -> Iterator[Row]:
    torch.compiler.reset()
    batch_size, length, vocabulary = bench.pick((16, 256, 1024), (2, 16, 40))
    scheduler = scheduler_class(mask_token_id=vocabulary)
    scheduler.set_timesteps(8)
    logits = 3 * torch.randn(batch_size, length, vocabulary, device=bench.device)
    sample = torch.full((batch_size, length), vocabulary, device=bench.device)
    generator = torch.Generator(bench.device)
    first, max_count = scheduler.timesteps[0], int(scheduler.planned_counts(torch.tensor([length]))[0])

    def work(step: Callable[..., Any]) -> Any:
        generator.manual_seed(0)
        return step(logits, first, sample, generator=generator, return_dict=False, max_count=max_count)[0]

    eager, skipped = milliseconds(lambda: work(scheduler.step), bench.device), graphs_skipped()
    step, started = torch.compile(scheduler.step, **options_of(how, bench)), perf_counter()
    tokens = work(step).clone()
    yield {
        "what": f"a step of {scheduler_class.__name__}",
        "compiled": how,
        "ms before": eager,
        **after(lambda: work(step), started, eager, bench),
        "graphs skipped": graphs_skipped() - skipped,
        "share of equal tokens": float((tokens == work(scheduler.step)).double().mean()),
    }


def after(work: Callable[[], Any], started: float, eager: float, bench: Bench, repeats: int = 5) -> Row:
    """The cost and the gain of a compilation that began at `started`."""
    work()
    compiling = perf_counter() - started
    compiled = milliseconds(work, bench.device, repeats, warm_up=WARM_UP)
    return {"seconds to compile": compiling, "ms after": compiled, "times faster": eager / compiled}


def graphs_skipped() -> int:
    """How often torch could not make a CUDA graph."""
    from torch._dynamo.utils import counters

    return counters["inductor"]["cudagraph_skips"]
