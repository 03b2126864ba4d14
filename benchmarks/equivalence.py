r"""How far apart MaskGIT and the moment sampler are: in one round, in a whole generation, and by the general bound.

    python benchmarks/equivalence.py --output_dir out/equivalence

Three tables.

1. A chain of 6 positions and 3 tokens, small enough to enumerate: the exact total variation between the two samplers'
   distributions after T steps, and its bound, which is the sum over steps of the expected distance of their rounds.
2. N positions that share a marginal: the exact distance of a round, and the closed form C k^1.5 / N.
3. The shipped models, along trajectories of the moment sampler: each step's expected distance, with standard errors
   over trajectories, the sum over the steps, and the sum of the closed forms. The distance of a step is an exact
   integral, averaged over outcomes drawn from the round. A total variation is at most 1; if the sum is larger, the
   table says "vacuous". `--kinds antibody` is AntiBERTy, a folder that `hf-maskdiff convert` wrote.

`evaluation.equivalence` and docs/theory.md explain these quantities. Needs no data.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from arguments import add_pipeline_arguments, new_parser
from looks import GREY
from passes import draw_codes, draw_ids, everywhere, generators_from, open_pipeline
from plots import End, draw_curve, figure, label_ends, set_ticks
from tables import print_table, with_error, write_json
from torch import Tensor, nn
from tqdm.auto import tqdm

from hf_maskdiff import MaskedDiffusionTextPipeline, MaskGITPipeline, MDLMPipeline, MomentScheduler
from hf_maskdiff.evaluation import laws
from hf_maskdiff.evaluation.equivalence import Rounds, leading_constant, symmetric_distance
from hf_maskdiff.evaluation.markov_chain import MarkovChain
from hf_maskdiff.evaluation.report import mean_and_error
from hf_maskdiff.masking import planned_counts

SHADES = ("#08306B", "#1F6FB4", "#4A9FD8", "#8CC4E8")  # from a low choice temperature to a high one


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = new_parser(__doc__)
    add_pipeline_arguments(parser)
    parser.add_argument("--antibody_pipeline", default="antiberty", help="folder or Hub name; chains of 118 residues")
    parser.add_argument("--kinds", nargs="*", choices=["image", "text", "antibody"], default=["image", "text"])
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 8, 16, 32, 64])
    parser.add_argument("--choice_temperatures", type=float, nargs="+", default=[1.0, 4.0, 6.0, 16.0])
    parser.add_argument("--num_trajectories", type=int, default=8)
    parser.add_argument("--num_draws", type=int, default=64, help="outcomes per step and trajectory")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output_dir", type=Path, help="for equivalence.json and equivalence.png")
    return parser.parse_args(argv)


def annealed(alpha: float, steps: int) -> list[float]:
    """MaskGIT's linear schedule of choice temperatures; the last step does not use its value."""
    return [alpha * (1 - (n + 1) / steps) for n in range(steps)]


# --- 1. enumeration ---------------------------------------------------------------------------------------------------


def enumerated(alphas: Sequence[float]) -> list[dict[str, Any]]:
    """Exact distances of whole generations, and their bounds."""
    rows = []
    for sharpness in (1.0, 3.0):
        chain = MarkovChain.random(length=6, num_states=3, sharpness=sharpness)

        @cache
        def denoiser(state: laws.State, chain: MarkovChain = chain) -> np.ndarray:
            sample = torch.tensor([[chain.mask_token_id if x == laws.MASK else x for x in state]])
            return chain(sample)[0].exp().numpy()

        for schedule in ("cosine", "linear"):
            for steps in (2, 3, 6):
                counts = planned_counts(torch.tensor([6]), steps, schedule, "floor_masked").flatten().tolist()
                for alpha in alphas:
                    temperatures = [max(a, 1e-3) for a in annealed(alpha, steps)]
                    moment, maskgit = (
                        [lambda p, k, masked, a=a, law=law: _round(law, p, k, a) for a in temperatures]
                        for law in (laws.moment_round_law, laws.maskgit_round_law)
                    )
                    start = (laws.MASK,) * 6
                    true = laws.total_variation(
                        laws.generation_law(denoiser, moment, counts, start),
                        laws.generation_law(denoiser, maskgit, counts, start),
                    )
                    terms = laws.step_distances(denoiser, moment, maskgit, counts, start)
                    keys = {"sharpness": sharpness, "schedule": schedule, "steps": steps, "alpha": alpha}
                    rows.append(keys | {"true": true, "bound": sum(terms), "terms": terms})
    return rows


def _round(law: Any, marginals: np.ndarray, k: int, alpha: float) -> laws.Law:
    return laws.plain_round_law(marginals) if k == len(marginals) else law(marginals, k, alpha)


# --- 2. the closed form -----------------------------------------------------------------------------------------------


def closed_forms(alphas: Sequence[float]) -> list[dict[str, float]]:
    """Exact distances of one round, and the closed form's constants for the same k and for large k."""
    marginal = np.array([0.4, 0.3, 0.2, 0.1])
    return [
        {
            "alpha": alpha,
            "k": k,
            "N": number,
            "exact": symmetric_distance(marginal, number, k, alpha),
            "closed": leading_constant(marginal, alpha, k) * k**1.5 / number,
            "limit": leading_constant(marginal, alpha) * k**1.5 / number,
        }
        for alpha in alphas
        for k in (1, 2, 4, 8)
        for number in (32, 128, 512)
    ]


# --- 3. the shipped models --------------------------------------------------------------------------------------------


class Passes:
    """Records the inputs and outputs of a denoiser."""

    def __init__(self, model: nn.Module, scheduler: MomentScheduler) -> None:
        self.config, self.samples, self.logits = scheduler.config, [], []
        self.handle = model.register_forward_hook(self._see, with_kwargs=True)

    def _see(self, _: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any], output: Any) -> None:
        sample = (inputs[0] if inputs else options["input_ids"]).flatten(1)
        self.samples.append(sample)
        # Masked positions are all it takes.
        self.logits.append(self.marginals(everywhere(output[0], options.get("logits_at"), sample.shape[1])))

    def marginals(self, logits: Tensor) -> np.ndarray:
        return logits[..., : self.config.codebook_size].double().log_softmax(-1).numpy()

    def masked(self, step: int, row: int) -> np.ndarray:
        """Which positions of a row are masked before a step; none after the last."""
        if step == len(self.samples):
            return np.zeros(self.samples[0].shape[1], dtype=bool)
        return (self.samples[step][row] == self.config.mask_token_id).numpy()


def trajectory_terms(kind: str, pipe: Any, steps: int, alpha: float, args: argparse.Namespace) -> list[list[Any]]:
    """The distance of every step of every trajectory: `[[RoundDistance, ...], ...]`."""
    pipe.scheduler = MomentScheduler.from_config(
        pipe.scheduler.config, choice_temperature=alpha, choice_temperature_schedule="linear"
    )
    number = args.num_trajectories
    passes = Passes(pipe.transformer, pipe.scheduler)
    draw = {"image": draw_codes, "text": draw_ids, "antibody": partial(draw_ids, prompt="[MASK:118]")}[kind]
    draw(pipe, generators_from(args.seed, number), num_inference_steps=steps)
    passes.handle.remove()
    if kind == "antibody":  # whose passes do not say where their logits belong
        with torch.no_grad():
            passes.logits = [passes.marginals(pipe.denoiser(sample)) for sample in passes.samples]
    generator = np.random.default_rng(args.seed)
    temperatures = annealed(alpha, steps)
    terms: list[list[Any]] = [[] for _ in range(number)]
    for step, logits in enumerate(passes.logits):
        for row in range(number):
            masked, left = passes.masked(step, row), passes.masked(step + 1, row)
            if masked.any():
                rounds = Rounds(logits[row][masked], max(temperatures[step], 1e-6))
                terms[row].append(rounds.distance(int(masked.sum() - left.sum()), args.num_draws, generator))
    return terms


def along_trajectories(args: argparse.Namespace) -> list[dict[str, Any]]:
    pipes = {"image": MaskGITPipeline, "text": MDLMPipeline, "antibody": MaskedDiffusionTextPipeline}
    rows = []
    for kind in args.kinds:
        pipe = open_pipeline(pipes[kind], getattr(args, f"{kind}_pipeline"))
        if kind == "antibody":
            pipe("[MASK:4]", num_inference_steps=1)  # the first call tries out how the model takes its arguments
        wanted = [(steps, alpha) for steps in args.steps for alpha in args.choice_temperatures]
        for steps, alpha in tqdm(wanted, desc=kind):
            terms = trajectory_terms(kind, pipe, steps, alpha, args)
            by_step = [[row[n] for row in terms if n < len(row)] for n in range(max(map(len, terms)))]
            rows.append(
                {
                    "model": kind,
                    "steps": steps,
                    "alpha": alpha,
                    "bound": mean_and_error([sum(d.total_variation for d in row) for row in terms]),
                    "terms": [mean_and_error([d.total_variation for d in step]) for step in by_step],
                    "closed": mean_and_error([sum(d.first_order for d in row) for row in terms]),
                }
            )
    return rows


# --- what is printed --------------------------------------------------------------------------------------------------


def print_tables(results: dict[str, list[dict[str, Any]]]) -> None:
    print("A chain of 6 positions, 3 tokens, enumerated: true total variation of whole generations, and its bound\n")
    headings = ["sharpness", "schedule", "steps", "alpha", "true", "bound", "true / bound", "terms"]
    print_table(headings, map(enumerated_row, results["enumerated"]), left=range(8))
    print("\nN positions that share the marginal 0.4, 0.3, 0.2, 0.1: exact distance of a round, and C k^1.5 / N\n")
    headings = ["alpha", "k", "N", "exact", "C of this k", "exact / closed form", "C of large k"]
    print_table(headings, map(closed_form_row, results["closed forms"]), left=range(7))
    print("\nAlong trajectories of the moment sampler: sum of the steps' distances, each step's, and closed forms\n")
    headings = ["model", "steps", "alpha", "bound", "", "largest step", "sum of closed forms", "steps"]
    print_table(headings, map(trajectory_row, results["trajectories"]), left=range(8))


def enumerated_row(row: dict[str, Any]) -> list[Any]:
    share = f"{row['true'] / row['bound']:.2f}" if row["bound"] else ""
    numbers = [f"{row['true']:.4f}", f"{row['bound']:.4f}", share, " ".join(f"{x:.4f}" for x in row["terms"])]
    return [f"{row['sharpness']:g}", row["schedule"], row["steps"], f"{row['alpha']:g}", *numbers]


def closed_form_row(row: dict[str, float]) -> list[Any]:
    scale = row["N"] / row["k"] ** 1.5
    numbers = [f"{row['closed'] * scale:.4f}", f"{row['exact'] / row['closed']:.4f}", f"{row['limit'] * scale:.4f}"]
    return [f"{row['alpha']:g}", row["k"], row["N"], f"{row['exact']:.3e}", *numbers]


def trajectory_row(row: dict[str, Any]) -> list[Any]:
    largest = max(range(len(row["terms"])), key=lambda n: row["terms"][n][0])
    numbers = [
        with_error(row["bound"], 3),
        "vacuous" if row["bound"][0] > 1 else "",
        f"{with_error(row['terms'][largest], 3)} (step {largest + 1})",
        with_error(row["closed"], 2),
        " ".join(f"{term[0]:.3f}" for term in row["terms"]),
    ]
    return [row["model"], row["steps"], f"{row['alpha']:g}", *numbers]


def plot(rows: list[dict[str, Any]], path: Path, title: str = "How far MaskGIT and moment may be apart") -> None:
    """Plot bounds against steps, with a line per choice temperature and a panel per model."""
    kinds = list(dict.fromkeys(row["model"] for row in rows)) or [""]
    alphas = sorted({row["alpha"] for row in rows})
    steps = sorted({row["steps"] for row in rows})
    with figure(path, title=title, figsize=(max(4.8 * len(kinds), 6), 4.8)) as page:
        panels = page.subplots(1, len(kinds), squeeze=False, sharey=True)[0]
        ends = {}
        for axis, kind in zip(panels, kinds, strict=True):
            axis.set(xscale="log", yscale="log", xlabel="steps", title=f"{kind} (alpha: choice temperature)")
            ends[axis] = []
            for colour, alpha in zip(SHADES[-len(alphas) :], alphas, strict=False):
                found = [row for row in rows if (row["model"], row["alpha"]) == (kind, alpha)]
                points = sorted((row["steps"], *row["bound"]) for row in found)
                draw_curve(axis, points, f"{alpha:g}", color=colour)
                ends[axis].append(End(f"alpha {alpha:g}", *points[-1][:2], colour))
            set_ticks(axis.xaxis, steps)
        for axis in panels:
            low, high = axis.get_ylim()
            set_ticks(axis.yaxis, (0.03, 0.1, 0.3, 1, 3, 10, 30))
            axis.axhspan(1, max(high, 1.5), color="#EEEEEE", zorder=0)
            axis.set_ylim(low, max(high, 1.5))
            axis.text(0.03, 0.97, "above 1: says nothing", transform=axis.transAxes, va="top", color=GREY)
        panels[0].set_ylabel("bound on the total variation")
        label_ends(page, ends)


def main(argv: Sequence[str] | None = None) -> dict[str, list[dict[str, Any]]]:
    args = parse_args(argv)
    results = {
        "enumerated": enumerated(args.choice_temperatures),
        "closed forms": closed_forms(args.choice_temperatures),
        "trajectories": along_trajectories(args),
    }
    print_tables(results)
    if args.output_dir is not None:
        write_json(results, args.output_dir / "equivalence.json")
        plot(results["trajectories"], args.output_dir / "equivalence.png")
    return results


if __name__ == "__main__":
    main()
