r"""Train a masked diffusion language model (MDLM) on texts, and write the whole pipeline folder.

    accelerate launch examples/train_mdlm.py --dataset karpathy/tiny_shakespeare --output_dir runs/shakespeare \
        --mixed_precision bf16

`--data_dir FOLDER` reads local .txt files instead. The tokens are the characters of the training text, byte pairs
learned from it (`--vocab_size 1024`), or those of any tokenizer on the Hub (`--tokenizer gpt2`). With `--block_size 16`
the model learns to write such blocks from left to right (block diffusion, arXiv 2503.09573), each from the finished
ones before it, whose keys and values are then cached exactly. `--start_from FOLDER` goes on from a trained pipeline,
also from one without blocks, at any length. Add `--resume_from_checkpoint latest` to continue after a stop. Then:

    pipe = MDLMPipeline.from_pretrained("runs/shakespeare")
    print(pipe("ROMEO:", num_inference_steps=32).texts[0])
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import torch
from accelerate.utils import set_seed
from diffusers.training_utils import EMAModel
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from torch import Tensor, nn
from training_utils import (
    Clock,
    add_training_arguments,
    errors_in_one_line,
    load_checkpoint,
    make_accelerator,
    make_optimizer,
    save_checkpoint,
    training_batches,
)
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from hf_maskdiff import MDLMPipeline, MDLMTransformer, MomentScheduler
from hf_maskdiff.evaluation.block_likelihood import NoisyAndClean, block_nelbo
from hf_maskdiff.evaluation.text_data import load_documents

SMALLEST_TIME = 1e-3


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_training_arguments(parser)
    tokens = parser.add_mutually_exclusive_group()
    tokens.add_argument("--tokenizer", help="folder or Hub name of a tokenizer; default: one token per character")
    tokens.add_argument("--vocab_size", type=int, help="instead: number of byte pairs to learn from the training text")
    tokens.add_argument(
        "--start_from",
        type=Path,
        help="instead: folder of a trained pipeline; takes its tokenizer, sizes and weights, for rows of any length",
    )
    parser.add_argument("--model_length", type=int, default=128, help="tokens per row")
    parser.add_argument(
        "--block_size", type=int, help="tokens per block, written from left to right; default: no blocks"
    )
    parser.add_argument("--hidden_dim", type=int, default=192)
    parser.add_argument("--cond_dim", type=int, default=32)
    parser.add_argument("--n_blocks", type=int, default=5)
    parser.add_argument("--n_heads", type=int, default=4)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--time_conditioning", action="store_true", help="give the model the time as an input")
    parser.add_argument("--compile", action="store_true", help="compile the blocks: a third faster on a CPU")
    parser.add_argument("--max_train_steps", type=int, default=4000)
    parser.add_argument("--learning_rate", type=float, default=2e-3)
    parser.add_argument("--ema_decay", type=float, default=0.999, help="decay of the averaged weights, which are saved")
    return parser.parse_args(argv)


def character_tokenizer(documents: Sequence[str]) -> PreTrainedTokenizerFast:
    """A tokenizer with one token per character of the documents: byte pair encoding without merges."""
    characters = sorted(set().union("\n", *documents))
    vocabulary = {token: i for i, token in enumerate([*characters, "[UNK]", "[PAD]"])}
    tokenizer = Tokenizer(BPE(vocabulary, merges=[], unk_token="[UNK]"))
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", clean_up_tokenization_spaces=False
    )


def byte_pair_tokenizer(documents: Sequence[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A tokenizer of frequent pieces of the documents: byte pair encoding with `vocab_size` tokens."""
    learner = Tokenizer(BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    learner.train_from_iterator(documents, BpeTrainer(vocab_size=vocab_size, show_progress=False))
    learned = json.loads(learner.to_str())["model"]
    vocabulary = learned["vocab"] | {"[UNK]": len(learned["vocab"])}
    merges = [tuple(pair) for pair in learned["merges"]]
    tokenizer = Tokenizer(BPE(vocabulary, merges, unk_token="[UNK]", fuse_unk=True))
    tokenizer.pre_tokenizer, tokenizer.decoder = learner.pre_tokenizer, decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[UNK]", clean_up_tokenization_spaces=False
    )


def load_tokenizer(name: str | None, vocab_size: int | None, documents: Sequence[str]) -> PreTrainedTokenizerBase:
    """Load or learn a tokenizer whose last token is the mask, like the last row of the model."""
    if name is not None:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    elif vocab_size is not None:
        tokenizer = byte_pair_tokenizer(documents, vocab_size)
    else:
        tokenizer = character_tokenizer(documents)
    if tokenizer.mask_token_id != len(tokenizer) - 1:
        tokenizer.add_special_tokens({"mask_token": "[MASK]" if tokenizer.mask_token is None else "<|mask|>"})
    return tokenizer


def codebook_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """Number of tokens that may be generated: those before the mask, without special tokens at their end."""
    never = {tokenizer.unk_token_id, tokenizer.pad_token_id} - {tokenizer.eos_token_id, tokenizer.bos_token_id}
    size = len(tokenizer) - 1
    while size - 1 in never:
        size -= 1
    return size


def encode(tokenizer: PreTrainedTokenizerBase, documents: Sequence[str]) -> Tensor:
    """All documents in one sequence, each followed by the end-of-text token or a line break: int64 `(length,)`."""
    end = tokenizer.eos_token or "\n"
    rows = tokenizer([text + end for text in documents], add_special_tokens=False, verbose=False).input_ids
    return torch.tensor(list(chain.from_iterable(rows)))


def make_model(args: argparse.Namespace, vocab_size: int) -> MDLMTransformer:
    """A new model of the sizes asked for, or the trained one of `--start_from` for rows of another length."""
    if args.start_from is not None:
        return MDLMTransformer.from_pretrained(
            args.start_from,
            subfolder="transformer",
            torch_dtype=torch.float32,
            model_length=args.model_length,
            dropout=args.dropout,
            block_size=args.block_size,
        )
    return MDLMTransformer(
        vocab_size=vocab_size,
        model_length=args.model_length,
        hidden_dim=args.hidden_dim,
        cond_dim=args.cond_dim,
        n_blocks=args.n_blocks,
        n_heads=args.n_heads,
        dropout=args.dropout,
        time_conditioning=args.time_conditioning,
        block_size=args.block_size,
    )


def spread_times(num: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """Random times, one in each of `num` equal parts of (0, 1): the loss varies less than with independent times."""
    times = (torch.rand(1, generator=generator, device=device) + torch.arange(num, device=device)) / num % 1
    return SMALLEST_TIME + (1 - SMALLEST_TIME) * times


def times_of_blocks(num_rows: int, num_blocks: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """Times of the blocks of rows, `(num_rows, num_blocks)`, of all blocks together evenly spread."""
    times = spread_times(num_rows * num_blocks, generator, device)
    if num_blocks > 1:
        times = times[torch.randperm(len(times), generator=generator, device=device)]
    return times.view(num_rows, num_blocks)


def bound(
    network: nn.Module, scheduler: MomentScheduler, tokens: Tensor, times: Tensor, generator: torch.Generator
) -> Tensor:
    """The bound of each token in nats, `(batch_size, length)`, for masks drawn at the times of the blocks of a row.

    Training uses the same scheduler as sampling.

    Args:
        network: an MDLMTransformer, for one block a row, or a NoisyAndClean.
        times: `(batch_size, number of blocks)`.
    """
    blocks = tokens.reshape(times.numel(), -1)
    sample = scheduler.add_noise(blocks, times.flatten(), generator).view_as(tokens)
    logits = network(sample, times[:, 0]).logits if times.shape[1] == 1 else network(sample, tokens)
    return block_nelbo(logits, sample, tokens, times, scheduler.config.mask_token_id)


@torch.no_grad()
def evaluate(
    network: nn.Module, scheduler: MomentScheduler, rows: Tensor, num_blocks: int, args: argparse.Namespace
) -> float:
    """Mean bound in nats per token, with the same times and masks in every evaluation."""
    generator = torch.Generator(rows.device).manual_seed(args.seed)
    times = spread_times(len(rows) * num_blocks, generator, rows.device)
    times = times[torch.randperm(len(times), generator=generator, device=rows.device)].view(len(rows), -1)
    total = 0.0
    for tokens, t in zip(rows.split(args.batch_size), times.split(args.batch_size), strict=True):
        total += bound(network, scheduler, tokens, t, generator).sum().item()
    return total / rows.numel()


def main(argv: Sequence[str] | None = None) -> float:
    """Trains, saves the pipeline at every checkpoint, and returns the bound on the test split."""
    args = parse_args(argv)
    accelerator = make_accelerator(args)
    device, length = accelerator.device, args.model_length
    set_seed(args.seed)
    clock = Clock(args)
    with accelerator.main_process_first(), errors_in_one_line():
        documents, test_documents = (load_documents(s, args.dataset, args.data_dir) for s in ("train", "test"))
        name = args.tokenizer if args.start_from is None else str(args.start_from)
        tokenizer = load_tokenizer(name, args.vocab_size, documents)
    tokens, test_tokens = (encode(tokenizer, texts).to(device) for texts in (documents, test_documents))
    if min(len(tokens) // 2, len(test_tokens)) < length:
        raise ValueError(
            f"`model_length` must be at most {min(len(tokens) // 2, len(test_tokens))} for this text, got {length}."
        )
    if args.block_size is not None and (args.block_size < 1 or length % args.block_size):
        raise ValueError(
            f"`block_size` must divide `model_length` = {length}, got {args.block_size}. Pass whole blocks a row."
        )
    test_rows = test_tokens[: len(test_tokens) // length * length].view(-1, length)

    mask_token_id = len(tokenizer) - 1
    scheduler = MomentScheduler(
        mask_token_id=mask_token_id,
        codebook_size=codebook_size(tokenizer),
        masking_schedule="linear",
        choice_temperature=4.0,
    )
    model = make_model(args, len(tokenizer)).to(device)
    if device.type == "cpu" and args.mixed_precision == "bf16" and length <= 128:
        # Only there are plain matrix products faster than the fused kernel: by a tenth per step.
        model.set_attention_backend("_native_math")
    if args.compile:
        model.compile_repeated_blocks()
    ema = EMAModel(model.parameters(), decay=args.ema_decay, foreach=True)
    optimizer, schedule = make_optimizer(model.parameters(), args, clock)
    # What learns, in however many processes; without blocks, the row is the only one.
    num_blocks = 1 if args.block_size is None else length // args.block_size
    network = model if num_blocks == 1 else NoisyAndClean(model, args.block_size)
    network, optimizer = accelerator.prepare(network, optimizer)
    accelerator.register_for_checkpointing(ema, schedule)
    start = load_checkpoint(accelerator, args.output_dir, args.resume_from_checkpoint)
    ema.to(device)
    learner = accelerator.unwrap_model(network)  # still computes in the precision asked for

    # Each row starts at a random place in its part of the text, so that every epoch cuts the text differently.
    num_rows, offsets = len(tokens) // length - 1, torch.arange(length, device=device)
    test_loss = float("nan")

    def keep(step: int) -> None:
        """Save the state, and evaluate and save the averaged weights; training continues with the current ones."""
        nonlocal test_loss
        save_checkpoint(accelerator, args.output_dir, step)
        ema.store(model.parameters())
        ema.copy_to(model.parameters())
        test_loss = evaluate(learner.eval(), scheduler, test_rows, num_blocks, args)
        if accelerator.is_main_process:
            MDLMPipeline(tokenizer, model, scheduler).save_pretrained(args.output_dir)
        ema.restore(model.parameters())
        progress.write(f"step {step}, test split: {test_loss:.4f} nats per token")

    progress = training_batches("mdlm", num_rows, start, args, accelerator, clock, keep)
    for step, indices, generator in progress:
        network.train()
        starts = indices * length + torch.randint(length, indices.shape, generator=generator, device=device)
        rows = tokens[starts[:, None] + offsets]
        times = times_of_blocks(len(rows), num_blocks, generator, device)
        loss = bound(network, scheduler, rows, times, generator).mean()
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(network.parameters(), args.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        ema.step(model.parameters())
        if step % 50 == 0:
            progress.set_postfix(loss=f"{loss.item():.3f}")
    accelerator.print(f"{model.num_parameters():,} parameters, saved in {args.output_dir}")
    return test_loss


if __name__ == "__main__":
    main()
