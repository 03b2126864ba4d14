"""What `reproduce.py` can run: an entry is one sampler of one model at one number of steps, or one task of LLaDA."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

TERA_HOUR = 3600e12  # operations of an hour at a teraflop a second
# Operations of a pass and of decoding a sample, by `budget.py`: the table of docs/reproduce.md.
GFLOP = {"mage": (78, 187), "mdlm": (292, 0), "sdtt": (292, 0), "halton": (53, 253)}
LLADA = 16.0  # a token of a pass: two for each of 8 billion weights


@dataclass(frozen=True)
class Source:
    """Something that is downloaded, or that the user brings.

    Args:
        gigabytes: about, by the number of weights; 0 for what the user brings.
        licence: of the weights or data, as far as their owners state one.
    """

    name: str
    gigabytes: float
    licence: str


SOURCES: Mapping[str, Source] = {
    "mage": Source("MAGE ViT-B, --mage", 0, "MIT, as the repository LTH14/mage"),
    "halton": Source("--halton, llvictorll/Halton-Maskgit", 0.6, "MIT for the code; none stated for the weights"),
    "llamagen": Source("--llamagen, FoundationVision/LlamaGen, image tokenizer", 0.3, "MIT for the code"),
    "mdlm": Source("--mdlm, kuleshov-group/mdlm-owt", 0.7, "Apache-2.0"),
    "sdtt": Source("--sdtt, jdeschena/sdtt", 0.7, "none stated"),
    "llada": Source("--llada, GSAI-ML/LLaDA-8B-Base", 16, "MIT"),
    "inception": Source("torch-fidelity's Inception network", 0.1, "Apache-2.0"),
    "judge": Source("--judge, gpt2-large", 3.1, "MIT"),
    "openwebtext": Source("--openwebtext, for MAUVE", 13, "CC0-1.0, texts of the web"),
    "imagenet": Source("--imagenet_val, ImageNet's validation images", 0, "for research, ask image-net.org"),
    "adm": Source("--adm_statistics, of openai/guided-diffusion", 0, "MIT"),
    "tasks": Source("data of lm-evaluation-harness's tasks", 0.1, "gsm8k MIT; piqa AFL-3.0"),
}


@dataclass(frozen=True)
class Step:
    """A command of `hf-maskdiff`.

    Args:
        words: those behind the program's name.
        product: what it writes in one piece and may be kept from an earlier run; None for a command that goes on by
            itself where it was stopped.
        is_launched: whether many processes may share it.
    """

    words: Sequence[str]
    product: Path | None = None
    is_launched: bool = False


@dataclass(frozen=True)
class Entry:
    """A run.

    Args:
        name: of the entry; its files are called so.
        family: which models and claims it belongs to.
        needs: keys of `SOURCES`.
        teraflop: operations, in 10^12.
        steps: the commands, from the arguments of `reproduce.py`.
        results: where the last command writes its file of results, a pattern inside the output folder.
    """

    name: str
    family: str
    needs: Sequence[str]
    teraflop: Callable[[argparse.Namespace], float]
    steps: Callable[[argparse.Namespace], list[Step]]
    results: str

    def hours(self, args: argparse.Namespace) -> float:
        """By the speed that was assumed, `--teraflops`."""
        return self.teraflop(args) * 1e12 / (args.teraflops * TERA_HOUR)


# --- images and texts -------------------------------------------------------------------------------------------------


def pipeline_of(args: argparse.Namespace, family: str) -> Path:
    """The folder of a model's pipeline: the source itself, if it is one already."""
    source = Path(getattr(args, family) or "")
    return source if (source / "model_index.json").exists() else args.output_dir / "models" / family


def convert(args: argparse.Namespace, family: str, *more: str) -> list[Step]:
    """A source may follow other words of `convert`; one that is a pipeline's folder needs none."""
    source, folder = getattr(args, family), pipeline_of(args, family)
    if folder == Path(source):
        return []
    return [Step(["convert", *more, *shlex.split(source), str(folder)], folder)]


def imagenet_statistics(args: argparse.Namespace) -> Step:
    path = args.output_dir / "models" / "imagenet-val.npz"
    words = ["evaluate", str(args.imagenet_val), "--image_size", "256", "--network", args.network]
    return Step([*words, "--save_statistics", str(path)], path)


def set_entry(name: str, family: str, passes: int, words: Sequence[str]) -> Entry:
    """One set of samples and its scores."""
    is_image = family in ("mage", "halton")
    models = {"halton": ["halton", "llamagen"]}.get(family, [family])
    judged_by = {"mage": ["inception", "imagenet"], "halton": ["inception", "adm"]}.get(
        family, ["judge", "openwebtext"]
    )

    def number(args: argparse.Namespace) -> int:
        return args.images if is_image else args.texts

    def teraflop(args: argparse.Namespace) -> float:
        a_pass, decoding = GFLOP[family]
        return number(args) * (passes * a_pass + decoding) / 1000

    def steps(args: argparse.Namespace) -> list[Step]:
        tokenizer = ["--tokenizer", args.llamagen] if family == "halton" else []
        samples = str(args.output_dir / "sets" / name)
        made = ["generate", "--pipeline", str(pipeline_of(args, family)), *words, "--output_dir", samples]
        made += ["--num_samples", str(number(args)), "--batch_size", str(args.batch_size), "--dtype", args.dtype]
        scores = ["evaluate", samples, "--output_dir", str(args.output_dir / "reports" / name)]
        before = convert(args, family, *tokenizer)
        if is_image:
            reference = args.output_dir / "models" / "imagenet-val.npz" if family == "mage" else args.adm_statistics
            before += [imagenet_statistics(args)] if family == "mage" else []
            scores += ["--network", args.network, "--reference", str(reference)]
        else:
            scores += ["--judge", args.judge, "--max_length", "1024"]
            if args.openwebtext:
                scores += ["--reference", args.openwebtext, "--max_reference", str(args.texts)]
        return [*before, Step(made, is_launched=True), Step(scores)]

    return Entry(name, family, [*models, *judged_by], teraflop, steps, f"reports/{name}/report.json")


def scheduler(name: str, steps: int, *config: str, groups: int = 1) -> list[str]:
    words = ["--scheduler", f"{name}Scheduler", "--num_inference_steps", str(steps)]
    words += ["--scheduler_config", *config] if config else []
    return words + (["--num_substeps", str(groups)] if groups > 1 else [])


def image_entries() -> list[Entry]:
    found = []
    for steps in (20, 8):
        names = {"MaskGIT": (), "Moment": (), "Hybrid": (), "Halton": (), "Uniform": ("choice_temperature=null",)}
        for name, config in names.items():
            words = scheduler(name, steps, *config)
            found.append(set_entry(f"mage-{name.lower()}-{steps}", "mage", steps, words))
        words = scheduler("Hybrid", steps, groups=2)
        found.append(set_entry(f"mage-hybrid-r2-{steps}", "mage", steps + 1, words))
    guided = ["--guidance_scale", "3"]  # two passes a step
    own = ["--num_inference_steps", "32", *guided]
    found.append(set_entry("halton-published-32", "halton", 64, own))
    for name in ("Moment", "Hybrid"):
        words = scheduler(name, 16, "choice_temperature=6")
        found.append(set_entry(f"halton-{name.lower()}-16", "halton", 32, [*words, *guided]))
    return found


def text_entries() -> list[Entry]:
    found = []
    for steps in (1024, 128):
        words = scheduler("Ancestral", steps, "top_p=0.9")
        found.append(set_entry(f"mdlm-ancestral-{steps}", "mdlm", steps, words))
    for steps in (32, 128):
        for name in ("MaskGIT", "Moment", "Hybrid"):
            words = scheduler(name, steps, "choice_temperature=16")
            found.append(set_entry(f"mdlm-{name.lower()}-{steps}", "mdlm", steps, words))
    found += [
        set_entry(f"sdtt-ancestral-{steps}", "sdtt", steps, scheduler("Ancestral", steps)) for steps in (32, 64, 16)
    ]
    return found


# --- LLaDA ------------------------------------------------------------------------------------------------------------


def task_entry(name: str, task: str, tokens: float, model: str, *more: str) -> Entry:
    """A task of lm-evaluation-harness.

    Args:
        tokens: of all passes together, of the whole task.
        model: further `--model_args`.
    """

    def steps(args: argparse.Namespace) -> list[Step]:
        own = f"pretrained={args.llada},dtype={args.dtype},{model}"
        folder = args.output_dir / "reports" / name
        words = ["lm_eval", "--tasks", task, "--batch_size", "auto", "--model_args", own, *more]
        words += ["--output_path", str(folder), "--use_cache", str(args.output_dir / "sets" / name)]
        return [Step([*words, *(["--limit", str(args.limit)] if args.limit else [])], is_launched=True)]

    needs = ["llada", "tasks"]
    return Entry(name, "llada", needs, lambda args: tokens * LLADA / 1000, steps, f"reports/{name}/**/results_*.json")


QUESTIONS, PROMPT = 1319, 900  # of GSM8K; tokens of a prompt, about
ENTRIES: Sequence[Entry] = [
    *image_entries(),
    *text_entries(),
    task_entry(
        "llada-gsm8k-dual",
        "gsm8k",
        QUESTIONS * 8 * (PROMPT + 256 + 31 * 32),
        "sampling_temperature=0,block_length=32,cache=dual",
        *("--gen_kwargs", "max_gen_toks=256"),
    ),
    task_entry(
        "llada-piqa",
        "piqa",
        1838 * 2 * 128 * 2 * 50,
        "estimator=llada,num_samples=128,group_size=8,mask_counts=True,guidance_scale=1.5",
    ),
    task_entry(
        "llada-gsm8k",
        "gsm8k",
        QUESTIONS * 1024 * (PROMPT + 1024),
        "sampling_temperature=0",
        *("--gen_kwargs", "max_gen_toks=1024"),
    ),
]
