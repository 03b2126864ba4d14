"""How fast the law of a sampler comes to the true one with more passes, by exact enumeration: methods of second order.

    python benchmarks/second_order.py --output_dir out/second_order

Three positions, two tokens, and a model that knows every conditional of a joint law, so that all error is the
sampler's: KL(true || sampler) in nats, the mean over `--num_joints` joint laws drawn from a Dirichlet distribution. Its
parameter says how much the positions depend on one another: 8 little, 1 more, 0.3 much. All methods are compared at
equal passes; "trapezoidal" is the method in log-time, "rates times time" the published form of it. After the table
comes one of planned counts, on `--num_positions` positions. Derivations: docs/theory.md.

Prints both tables in millionths of a nat, and writes `second_order.json` and `second_order.png`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from math import isfinite
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from arguments import new_parser
from looks import BLACK, BLUE, BROWN, GREEN, ORANGE, VERMILLION
from plots import End, draw_curve, figure, label_ends, set_ticks
from tables import print_table, write_json
from tqdm.auto import tqdm

from hf_maskdiff.evaluation.second_order_laws import (
    ancestral_law,
    conditionals_of,
    counted_law,
    intervals_of,
    kl_divergence,
    runge_kutta_law,
    trapezoidal_law,
)

DEPENDENCE = {8.0: "weak", 1.0: "medium", 0.3: "strong"}
PASSES = (4, 8, 16, 32, 64)
# (conditionals, mask ratios before each pass and at the end) -> law
METHODS: Mapping[str, Callable[[np.ndarray, Sequence[float]], np.ndarray]] = {
    "ancestral": ancestral_law,
    "theta-RK-2": lambda model, left: runge_kutta_law(model, intervals_of(left)),
    "rates times time": lambda model, left: trapezoidal_law(model, intervals_of(left), log_time=False),
    "plain last pass": lambda model, left: trapezoidal_law(model, intervals_of(left), plain_end=True),
    "trapezoidal, 1/3": lambda model, left: trapezoidal_law(model, intervals_of(left, 1 / 3)),
    "trapezoidal": lambda model, left: trapezoidal_law(model, intervals_of(left)),
}
COLOURS = dict(zip(METHODS, (BLACK, BROWN, ORANGE, VERMILLION, GREEN, BLUE), strict=True))
PLANS = ((3, 2), (2, 2, 1), (2, 1, 1, 1), (1, 1, 1, 2))


def in_order(masked: tuple[int, ...], count: int) -> dict[tuple[int, ...], float]:
    """From left to right."""
    return {masked[:count]: 1.0}


COUNTED: Mapping[str, Callable[[np.ndarray, Sequence[int]], np.ndarray]] = {
    "uniform order": partial(counted_law, weight=lambda first, second: 1.0),
    "extrapolated": counted_law,
    "extrapolated, weight of the limit": partial(counted_law, weight=lambda n, m: (n + m) ** 2 / (2 * n * m)),
    "fixed order": partial(counted_law, weight=lambda first, second: 1.0, subsets=in_order),
    "fixed order, extrapolated": partial(counted_law, subsets=in_order),
}


def joint_laws(dependence: float, num_positions: int, num_joints: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    shape = (2,) * num_positions
    return [rng.dirichlet([dependence] * 2**num_positions).reshape(shape) for _ in range(num_joints)]


def mean_divergence(joints: Sequence[np.ndarray], law: Callable[[np.ndarray], np.ndarray]) -> list[float | None]:
    """Millionths of a nat, to three digits, or None where it is infinite; and that no error is known."""
    value = 1e6 * fmean(kl_divergence(joint, law(conditionals_of(joint))) for joint in joints)
    return [float(f"{value:.3g}") if isfinite(value) else None, None]


def measure(passes: Sequence[int], num_joints: int) -> Iterator[dict[str, Any]]:
    for dependence in DEPENDENCE:
        joints = joint_laws(dependence, 3, num_joints)
        for name, method in METHODS.items():
            for number in passes:
                left = [1 - n / number for n in range(number)] + [0.0]
                value = mean_divergence(joints, lambda model, method=method, left=left: method(model, left))
                yield {"dependence": dependence, "sampler": name, "passes": number, "kl": value}


def measure_counted(num_joints: int) -> Iterator[dict[str, Any]]:
    for dependence in DEPENDENCE:
        joints = joint_laws(dependence, 5, num_joints)
        for plan in PLANS:
            for name, method in COUNTED.items():
                value = mean_divergence(joints, lambda model, method=method, plan=plan: method(model, plan))
                yield {"dependence": dependence, "sampler": name, "plan": " ".join(map(str, plan)), "kl": value}


def print_rows(rows: Sequence[dict[str, Any]], column: str) -> None:
    columns, table = list(dict.fromkeys(row[column] for row in rows)), {}
    for row in rows:
        table.setdefault((DEPENDENCE[row["dependence"]], row["sampler"]), {})[row[column]] = row["kl"][0]
    lines = [(*key, *(written(values[name]) for name in columns)) for key, values in table.items()]
    print_table(["dependence", "sampler", *columns], lines, left=(0, 1))


def written(value: float | None) -> str:
    """Three digits, and always a decimal point."""
    if value is None:
        return "inf"
    return f"{value:.1f}" if value >= 100 else f"{value:.3g}" if "." in f"{value:.3g}" else f"{value:.1f}"


def plot(rows: Sequence[dict[str, Any]], path: Path, title: str = "Error of the law by passes") -> None:
    with figure(path, title=title, figsize=(11, 4.8)) as page:
        panels, ends = page.subplots(1, len(DEPENDENCE), sharey=True), {}
        for axis, (dependence, name) in zip(panels, DEPENDENCE.items(), strict=True):
            ends[axis] = []
            for method, colour in COLOURS.items():
                own = [row for row in rows if (row["dependence"], row["sampler"]) == (dependence, method)]
                points = [(row["passes"], row["kl"][0] * 1e-6, np.nan) for row in own]
                draw_curve(axis, points, method, color=colour)
                ends[axis].append(End(method, *points[-1][:2], colour))
            axis.set(xscale="log", yscale="log", xlabel="passes", title=f"{name} dependence")
            set_ticks(axis.xaxis, sorted({row["passes"] for row in rows}))
        panels[0].set_ylabel("KL(true || sampler), nats")
        for axis in panels[:-1]:
            del ends[axis]
        label_ends(page, ends)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = new_parser(__doc__)
    parser.add_argument("--passes", type=int, nargs="+", default=list(PASSES))
    parser.add_argument("--num_joints", type=int, default=5)
    parser.add_argument("--output_dir", type=Path, required=True)
    args = parser.parse_args(argv)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    rows = list(tqdm(measure(args.passes, args.num_joints), total=len(DEPENDENCE) * len(METHODS) * len(args.passes)))
    counted = list(measure_counted(args.num_joints))
    print_rows(rows, "passes")
    print()
    print_rows(counted, "plan")
    results = {"rows": rows, "counted": counted}
    write_json(results, args.output_dir / "second_order.json")
    plot(rows, args.output_dir / "second_order.png")
    return results


if __name__ == "__main__":
    main()
