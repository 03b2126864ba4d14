"""Designs for the third loop (CDR-H3) of an antibody's heavy chain, by six samplers: a list, a table and a picture.

    python examples/design_antibody.py
    python examples/design_antibody.py --schedulers moment --steps 13 --num_designs 32
    python examples/design_antibody.py --prompt "[MASK:120]" --schedulers moment --steps 60 --num_designs 4
    python examples/design_antibody.py --score

The first draws thirteen residues of trastuzumab anew. A design is printed with its pseudo-likelihood: the mean over its
residues, each masked alone, in nats; lower is what the model finds more natural. The third writes whole chains from
nothing. `--score` says how likely trastuzumab's own chain is, with and without `[CLS]` and `[SEP]` around it.

It needs a pipeline folder, by default `antiberty`, which `hf-maskdiff convert` writes; a protein language model of the
Hub, such as `facebook/esm2_t6_8M_UR50D`, will do as well. The picture needs `pip install -e ".[logo]"`.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from generate_text import SAMPLERS as TEXT_SAMPLERS

from hf_maskdiff import ConfidenceScheduler, MaskedDiffusionTextPipeline
from hf_maskdiff.evaluation.pseudo_likelihood import pseudo_log_likelihood

# The heavy chain of trastuzumab before and after its third loop.
BEFORE = "EVQLVESGGGLVQPGGSLRLSCAASGFNIKDTYIHWVRQAPGKGLEWVARIYPTNGYTRYADSVKGRFTISADTSKNTAYLQMNSLRAEDTAVYYC"
LOOP = "SRWGGDGFYAMDY"
AFTER = "WGQGTLVTVSS"
RESIDUES = "ACDEFGHIKLMNPQRSTVWY"
CLASSES = {
    "nonpolar": ("AILMVPG", "#5b6770"),
    "aromatic": ("FWY", "#8e44ad"),
    "polar": ("NQSTC", "#2e8b57"),
    "positive": ("KRH", "#1f5fbf"),
    "negative": ("DE", "#c0392b"),
}
MOST_COLUMNS = 60  # of a picture
SAMPLERS = TEXT_SAMPLERS | {
    "greedy": lambda config: ConfidenceScheduler.from_config(config, choice_temperature=None, token_temperature=0.0)
}


def parse_args(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    parser.add_argument("--pipeline", default="antiberty", help="folder or Hub name of the pipeline")
    parser.add_argument("--prompt", default=f"{BEFORE}[MASK:{len(LOOP)}]{AFTER}", help="a chain with [MASK:n] in it")
    parser.add_argument("--natural", help="what nature has in the masked places; default: trastuzumab's loop")
    default = ["greedy", "uniform", "confidence", "maskgit", "moment", "first-hitting"]
    parser.add_argument("--schedulers", nargs="+", choices=SAMPLERS, default=default)
    parser.add_argument("--steps", type=int, default=4, help="first-hitting takes one for every residue")
    parser.add_argument("--choice_temperature", type=float, help="default: the pipeline's, or 6")
    parser.add_argument("--num_designs", type=int, default=12, help="of each sampler")
    parser.add_argument("--score", action="store_true", help="score trastuzumab's chain and stop")
    parser.add_argument("--seed", type=int, default=0, help="of the first design; the next ones follow")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=Path("designs.png"))
    return parser.parse_args(argv)


def template_of(prompt: str, tokenizer: Any) -> str:
    """The chain with `_` where a residue is to be drawn; `ValueError` for letters that the model does not know."""
    template = re.sub(r"\[MASK(?::(\d+))?\]", lambda span: "_" * int(span[1] or 1), prompt)
    known = tokenizer.get_vocab().keys() & set(RESIDUES)
    unknown = sorted(set(template) - known - {"_"})
    if unknown:
        raise ValueError(
            f"`prompt` must be a chain of the amino acids' letters {''.join(sorted(known))} with [MASK:n] in it, got "
            f"{''.join(unknown)!r}. Write a residue that is not known as [MASK]."
        )
    if "_" not in template:
        raise ValueError(f"`prompt` must say what is to be drawn, got {prompt!r}. Write [MASK:13] for 13 residues.")
    return template


def nats(pipe: MaskedDiffusionTextPipeline, chains: Sequence[str], places: Sequence[int], special: bool) -> list[float]:
    """Pseudo-likelihood of each chain, over the residues at `places`, in nats per residue."""
    encoded = pipe.tokenizer(list(chains), add_special_tokens=special, return_special_tokens_mask=True)
    residues = [row.index(0) for row in encoded.special_tokens_mask]  # where each chain begins
    ids = torch.tensor(encoded.input_ids, device=pipe.device)
    positions = torch.tensor([[start + place for place in places] for start in residues], device=pipe.device)
    return (-pseudo_log_likelihood(pipe.denoiser, ids, positions, pipe.mask_token_id).mean(1)).tolist()


def draw(pipe: MaskedDiffusionTextPipeline, args: argparse.Namespace, length: int) -> tuple[list[str], int]:
    """Whole chains, and the model passes that one takes."""
    generators = [torch.Generator().manual_seed(args.seed + i) for i in range(args.num_designs)]
    output = pipe(
        args.prompt, num_inference_steps=args.steps, num_return_sequences=args.num_designs, generator=generators
    )
    chains = [text.replace(" ", "") for text in output.texts]  # some tokenizers put spaces between residues
    whole = [chain for chain in chains if len(chain) == length and set(chain) <= set(RESIDUES)]
    if len(whole) < len(chains):
        print(f"({len(chains) - len(whole)} with tokens that are no residues are left out)")
    return whole, max(output.num_model_passes)


def with_error(values: Sequence[float]) -> str:
    """The mean, and its standard error where there is one."""
    error = f" +- {stdev(values) / len(values) ** 0.5:.2f}" if len(values) > 1 else ""
    return f"{mean(values):.2f}{error}"


def draw_logos(rows: Sequence[tuple[str, Sequence[str]]], places: Sequence[int], output: Path) -> None:
    """A sequence logo for each row of designs: a letter is as high as its share in its column."""
    import logomaker
    import matplotlib.pyplot as plt
    import pandas as pd
    from matplotlib.patches import Patch

    colours = {letter: colour for letters, colour in CLASSES.values() for letter in letters}
    width = max(7.0, 0.45 * len(places) + 2.2)
    figure, axes = plt.subplots(len(rows), 1, figsize=(width, 1.05 * len(rows) + 0.9), squeeze=False, sharex=True)
    for axis, (title, designs) in zip(axes[:, 0], rows, strict=True):
        counts = [Counter(column) for column in zip(*designs, strict=True)]
        shares = [[count[letter] / len(designs) for letter in RESIDUES] for count in counts]
        frame = pd.DataFrame(shares, columns=list(RESIDUES))
        logomaker.Logo(frame, ax=axis, color_scheme=colours, show_spines=False, width=0.94, vpad=0.02)
        axis.set_ylabel(title, rotation=0, ha="right", va="center", fontsize=9)
        axis.set(yticks=[], ylim=(0, 1), xticks=range(len(places)))
        axis.tick_params(length=0, labelsize=8)
    axes[-1, 0].set_xticklabels([str(place + 1) for place in places])
    axes[-1, 0].set_xlabel("residue of the chain", fontsize=9)
    patches = [Patch(color=colour, label=name) for name, (_, colour) in CLASSES.items()]
    figure.legend(handles=patches, loc="upper center", ncols=len(patches), frameon=False, fontsize=9)
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.35 / figure.get_figheight()))
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=110, pil_kwargs={"optimize": True})
    plt.close(figure)


def score(pipe: MaskedDiffusionTextPipeline) -> None:
    chain = BEFORE + LOOP + AFTER
    loop = range(len(BEFORE), len(BEFORE) + len(LOOP))
    print(f"trastuzumab's heavy chain, {len(chain)} residues, each masked alone, in nats per residue:")
    for name, special in (("with", True), ("without", False)):
        (whole,), (third,) = (nats(pipe, [chain], places, special) for places in (range(len(chain)), loop))
        print(f"{name:>8} special tokens: chain {whole:.3f}, third loop {third:.3f}", flush=True)


def design(pipe: MaskedDiffusionTextPipeline, args: argparse.Namespace) -> None:
    template = template_of(args.prompt, pipe.tokenizer)
    places = [i for i, letter in enumerate(template) if letter == "_"]
    natural = LOOP if args.natural is None and template == f"{BEFORE}{'_' * len(LOOP)}{AFTER}" else args.natural
    if natural is not None and (len(natural) != len(places) or set(natural) - set(RESIDUES)):
        raise ValueError(f"`natural` must be {len(places)} residues, as many as are masked, got {natural!r}.")
    config = dict(pipe.scheduler.config)
    config["choice_temperature"] = args.choice_temperature or config.get("choice_temperature") or 6.0

    def drawn(chain: str) -> str:
        return "".join(chain[place] for place in places)

    rows = []
    if natural is not None:
        letters = iter(natural)
        (own,) = nats(pipe, ["".join(next(letters) if c == "_" else c for c in template)], places, True)
        print(f"natural: {natural}  {own:.2f} nats per residue")
        rows.append((f"natural\n{own:.2f} nats", [natural]))
    for sampler in args.schedulers:
        pipe.scheduler = SAMPLERS[sampler](config)
        chains, passes = draw(pipe, args, len(template))
        if not chains:
            continue
        distinct = sorted(set(chains))
        scores = dict(zip(distinct, nats(pipe, distinct, places, True), strict=True))
        nats_each, share = with_error([scores[chain] for chain in chains]), len(distinct) / len(chains)
        print(f"{sampler}: {passes} passes, {nats_each} nats per residue, {share:.0%} distinct")
        for chain in sorted(distinct, key=scores.__getitem__):
            print(f"    {drawn(chain)}  {scores[chain]:.2f}", flush=True)
        rows.append((f"{sampler}\n{nats_each} nats\n{share:.0%} distinct", [drawn(chain) for chain in chains]))
    if len(places) > MOST_COLUMNS:
        print(f"no picture: more than {MOST_COLUMNS} residues")
    elif rows:
        draw_logos(rows, places, args.output)
        print(f"{args.output}: {len(rows)} rows of {len(places)} residues")


def run(args: argparse.Namespace) -> None:
    if not args.score:
        require_logomaker()
    try:
        pipe = MaskedDiffusionTextPipeline.from_pretrained(args.pipeline).to(args.device)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"`pipeline` must be a pipeline folder or a Hub name, got {args.pipeline!r}. Write one with `pip download "
            "--no-deps antiberty==0.1.3` and `hf-maskdiff convert antiberty-0.1.3-py3-none-any.whl antiberty`, or pass "
            f"--pipeline FOLDER. ({error})"
        ) from error
    pipe.set_progress_bar_config(disable=True)
    if args.score:
        score(pipe)
    else:
        design(pipe, args)


def require_logomaker() -> None:
    """Before any work is done."""
    try:
        import logomaker  # noqa: F401
    except ImportError as error:
        raise ValueError(f"the picture needs logomaker ({error}). Run `pip install -e '.[logo]'`.") from error


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args = parse_args(parser, argv)
    try:
        run(args)
    except ValueError as error:  # the package's say rule, value and remedy
        parser.error(str(error))


if __name__ == "__main__":
    main()
