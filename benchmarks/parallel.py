"""The gain from more processes, and the share of time that a set spends outside its model: two tables.

    python benchmarks/parallel.py --tables scaling overhead
    python benchmarks/parallel.py --tables released --num_layers 24 --hidden_size 768

`scaling` runs one and two single-threaded processes of `accelerate launch` in turn, on a CPU. Timing starts with the
first batch of each process, so loading is left out. `overhead` is the share of wall time outside transformer and
tokenizer on the shipped image model; `released` is the same with random weights of a released size. Ratios are medians
over repeats in one run. On a busy machine, compare samples per second of CPU time.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

import psutil
import torch
from arguments import new_parser
from diffusers import VQModel
from models import halton
from timing import Clock, now

from hf_maskdiff import MaskGITPipeline, MomentScheduler
from hf_maskdiff.generation import ImageSource, add_arguments
from hf_maskdiff.parallel import generate, start_processes

ROOT = Path(__file__).resolve().parents[1]


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = new_parser(__doc__)
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=["scaling", "overhead"])
    parser.add_argument("--pipeline", default=str(ROOT / "pipelines" / "maskgit-mnist"))
    parser.add_argument("--num_samples", type=int, default=1024)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--block_size", type=int, default=8, help="for `overhead`; the default is that of a CPU")
    parser.add_argument("--num_inference_steps", type=int, default=8)
    parser.add_argument("--num_layers", type=int, default=24, help="for `released`, like the next three")
    parser.add_argument("--hidden_size", type=int, default=768)
    parser.add_argument("--sample_size", type=int, default=16)
    parser.add_argument("--codebook_size", type=int, default=16384)
    parser.add_argument("--repeats", type=int, default=3)
    return parser.parse_args(argv)


# --- scaling ----------------------------------------------------------------------------------------------------------


class Speed(NamedTuple):
    per_second: float
    per_cpu_second: float  # does not depend on other programs on the same cores


def speed_of(args: argparse.Namespace, num_processes: int) -> Speed:
    """Samples per second, from the time when every process has made its first batch to the last batch."""
    launcher = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    several = ["--multi_gpu", "--num_processes", "2"] if num_processes == 2 else ["--cpu", "--num_processes", "1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "set")
        wanted = ["--pipeline", args.pipeline, "--num_samples", str(args.num_samples), "--output_dir", str(output)]
        wanted += ["--num_inference_steps", str(args.num_inference_steps), "--batch_size", str(args.batch_size)]
        command = [sys.executable, "-m", "accelerate.commands.launch", *several, *launcher]
        command += [str(ROOT / "examples" / "generate_dataset.py"), *wanted, "--shard_size", str(args.num_samples)]
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        at: list[tuple[int, float, float]] = []  # number of samples, time, CPU time
        while process.poll() is None:
            done = len(list(output.glob(".generation/part-*.parquet"))) * args.batch_size
            if done >= num_processes * args.batch_size and (not at or done > at[-1][0]):
                at.append((done, time.perf_counter(), cpu_seconds(process.pid)))
            time.sleep(0.01)
        if process.returncode or len(at) < 2:
            raise RuntimeError(f"a run of {num_processes} process(es) failed, or was too short to be timed")
    samples, seconds, used = (last - first for first, last in zip(at[0], at[-1], strict=True))
    return Speed(samples / seconds, samples / used)


def cpu_seconds(pid: int) -> float:
    """CPU time of a process and of those it started."""
    tree = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    return sum(times.user + times.system for times in (process.cpu_times() for process in tree))


def scaling(args: argparse.Namespace) -> None:
    load = os.getloadavg()[0]
    pairs = [(speed_of(args, 1), speed_of(args, 2)) for _ in range(args.repeats)]
    one, two = (Speed(*map(median, zip(*speeds, strict=True))) for speeds in zip(*pairs, strict=True))
    ratios = sorted(after.per_second / before.per_second for before, after in pairs)
    print(
        f"scaling: {one.per_second:.1f} samples/s on one process, {two.per_second:.1f} on two, ratio "
        f"{median(ratios):.2f} ({', '.join(f'{ratio:.2f}' for ratio in ratios)}); per second of CPU time "
        f"{one.per_cpu_second:.1f} and {two.per_cpu_second:.1f}; load before {load:.1f}"
    )


# --- overhead ---------------------------------------------------------------------------------------------------------


def share_outside(pipe: MaskGITPipeline, args: argparse.Namespace, num_samples: int, block_size: int) -> float:
    """The share of a set's wall time spent outside the transformer and the tokenizer, without loading."""
    parser, clock = argparse.ArgumentParser(), Clock()
    add_arguments(parser)
    pipe.set_progress_bar_config(disable=True)
    call = {"num_inference_steps": args.num_inference_steps}
    configuration = {
        "num_samples": num_samples,
        "block_size": block_size,
        "shard_size": -(-1024 // block_size) * block_size,
    }
    transformer, decode = pipe.transformer.forward, pipe.vqvae.decode
    pipe.transformer.forward, pipe.vqvae.decode = clock.timed(transformer), clock.timed(decode)
    try:
        with tempfile.TemporaryDirectory() as folder:
            defaults = parser.parse_args(["--pipeline", "-", "--num_samples", "1", "--output_dir", folder])
            source, batch_size = ImageSource(pipe, defaults, call), args.batch_size
            source.sample(range(block_size), range(block_size))  # warms up
            clock.seconds, started = 0.0, now()
            generate(source, folder, configuration, base_seed=0, batch_size=batch_size, state=start_processes())
            return 1 - clock.seconds / (now() - started)
    finally:
        pipe.transformer.forward, pipe.vqvae.decode = transformer, decode


def overhead(args: argparse.Namespace) -> None:
    pipe = MaskGITPipeline.from_pretrained(args.pipeline)
    shares = [share_outside(pipe, args, args.num_samples, args.block_size) for _ in range(args.repeats)]
    print(
        f"overhead: {median(shares):.1%} of the wall time outside model and tokenizer, batch {args.batch_size}, "
        f"blocks of {args.block_size}"
    )


def released(args: argparse.Namespace) -> None:
    torch.manual_seed(0)
    vqvae = VQModel(
        down_block_types=("DownEncoderBlock2D",) * 5,
        up_block_types=("UpDecoderBlock2D",) * 5,
        block_out_channels=(32, 64, 64, 128, 128),
        latent_channels=8,
        num_vq_embeddings=args.codebook_size,
        lookup_from_codebook=True,
    )
    width, sizes = args.hidden_size, {"codebook_size": args.codebook_size}
    transformer = halton(args.sample_size, width, args.num_layers, width // 64, 4 * width, **sizes)
    scheduler = MomentScheduler(mask_token_id=args.codebook_size, codebook_size=args.codebook_size)
    share = share_outside(MaskGITPipeline(vqvae.eval(), transformer.eval(), scheduler), args, 4, 2)
    print(
        f"released: {share:.1%} of the wall time outside model and tokenizer, {args.num_layers} layers of width "
        f"{args.hidden_size}, blocks of 2"
    )


TABLES = {"scaling": scaling, "overhead": overhead, "released": released}


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    torch.set_num_threads(1)
    for table in args.tables:
        TABLES[table](args)


if __name__ == "__main__":
    main()
