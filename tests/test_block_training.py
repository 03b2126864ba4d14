"""Training a language model that writes block by block: its bound, and that it learns."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from test_training_examples import ALPHABET, MDLM_ARGUMENTS, fresh_programs, program, text_folder  # noqa: F401 - fixtures
from torch import Tensor

from hf_maskdiff import MDLMTransformer, MomentScheduler
from hf_maskdiff.evaluation.block_likelihood import NoisyAndClean, block_nelbo, noisy_and_clean_mask

BLOCK, MASK = 4, 12


def random_model(block_size: int | None = BLOCK, **changes: object) -> MDLMTransformer:
    torch.manual_seed(0)
    sizes = {"model_length": 16, "hidden_dim": 32, "cond_dim": 8, "n_blocks": 2, "n_heads": 2, "block_size": block_size}
    model = MDLMTransformer(vocab_size=MASK + 1, **sizes, **changes).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return model


def noisy(tokens: Tensor, times: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    blocks = tokens.view(times.numel(), -1)
    return (
        MomentScheduler(mask_token_id=MASK, masking_schedule="linear")
        .add_noise(blocks, times.flatten(), generator)
        .view_as(tokens)
    )


@torch.no_grad()
def test_one_pass_predicts_every_block_from_its_finished_predecessors() -> None:
    """The loss is the bound taken block by block, each in a pass of its own over what sampling would see."""
    model, generator = random_model(), torch.Generator().manual_seed(1)
    tokens = torch.randint(MASK, (3, 16), generator=generator)
    times = 0.2 + 0.8 * torch.rand(3, 4, generator=generator)
    sample = noisy(tokens, times)
    assert 0 < (sample == MASK).sum() < sample.numel()
    logits = NoisyAndClean(model, BLOCK)(sample, tokens)
    loss = block_nelbo(logits, sample, tokens, times, MASK)
    by_hand = torch.zeros_like(loss)
    for block in range(4):
        part = slice(block * BLOCK, (block + 1) * BLOCK)
        seen = torch.cat([tokens[:, : part.start], sample[:, part]], 1)
        own = model(seen).logits[:, part]
        torch.testing.assert_close(logits[:, part], own, atol=1e-5, rtol=1e-5)
        for row in range(3):
            for place in range(BLOCK):
                if sample[row, part][place] == MASK:
                    log_probs = own[row, place, :MASK].log_softmax(-1)
                    by_hand[row, block * BLOCK + place] = -log_probs[tokens[row, part][place]] / times[row, block]
    torch.testing.assert_close(loss, by_hand, atol=1e-4, rtol=1e-4)
    # Not what a model sees that reads the whole row.
    assert not torch.allclose(random_model(None)(sample).logits, logits, atol=1e-2)


def test_the_mask_of_a_pass_by_hand() -> None:
    noisy_rows = ["1100 0000", "1100 0000", "0011 1100", "0011 1100"]
    clean_rows = ["0000 1100", "0000 1100", "0000 1111", "0000 1111"]
    wanted = torch.tensor([[c == "1" for c in row.replace(" ", "")] for row in noisy_rows + clean_rows])
    assert torch.equal(noisy_and_clean_mask(4, 2)[0, 0], wanted)


def test_what_cannot_be_trained_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a model without `time_conditioning`"):
        NoisyAndClean(random_model(time_conditioning=True), BLOCK)
    with pytest.raises(ValueError, match="must have a multiple of `block_size` = 4 tokens, got 6"):
        NoisyAndClean(random_model(), BLOCK)(torch.zeros(1, 6, dtype=torch.long), torch.zeros(1, 6, dtype=torch.long))


def test_a_block_model_learns_its_text(text_folder: Path, tmp_path: Path) -> None:  # noqa: F811
    arguments = ["--data_dir", str(text_folder), *MDLM_ARGUMENTS, "--ema_decay", "0.99", "--block_size", "4"]
    main = program("train_mdlm").main
    untrained = main([*arguments, "--output_dir", str(tmp_path / "short"), "--max_train_steps", "1"])
    trained = main([*arguments, "--output_dir", str(tmp_path / "long"), "--max_train_steps", "300"])
    # After the first block of four letters in a row of 16, all is known.
    assert trained < 0.3 * untrained
    model = MDLMTransformer.from_pretrained(tmp_path / "long", subfolder="transformer")
    assert model.config.block_size == 4
    ids = {letter: i for i, letter in enumerate(["\n", *ALPHABET])}
    sample = torch.full((1, 8), model.config.vocab_size - 1)
    sample[0, :4] = torch.tensor([ids[letter] for letter in "cdef"])
    with torch.no_grad():
        guess = model(sample).logits[0, 4:].argmax(-1)
    assert guess.tolist() == [ids[letter] for letter in "ghij"]


def test_training_goes_on_from_a_trained_pipeline(text_folder: Path, tmp_path: Path) -> None:  # noqa: F811
    """At another length, with blocks or without; the first bound is a trained one's."""
    main, data = program("train_mdlm").main, ["--data_dir", str(text_folder), "--batch_size", "16"]
    first = ["--output_dir", str(tmp_path / "first"), "--max_train_steps", "200", "--ema_decay", "0.99"]
    main([*data, *MDLM_ARGUMENTS, *first])
    for number, more in enumerate((["--model_length", "24"], ["--model_length", "16", "--block_size", "8"])):
        start = ["--start_from", str(tmp_path / "first"), "--max_train_steps", "1", "--warmup_steps", "2"]
        again = main([*data, *start, *more, "--output_dir", str(tmp_path / f"again-{number}")])
        assert again < 0.6 * math.log(15)  # an untrained one has log(15), see the test of learning
        saved = MDLMTransformer.from_pretrained(tmp_path / f"again-{number}", subfolder="transformer").config
        assert (saved.model_length, saved.block_size) == ((24, None), (16, 8))[number]
        assert saved.hidden_dim == 32


def test_training_computes_in_the_precision_asked_for(
    text_folder: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module, seen = program("train_mdlm"), set()
    make = module.make_model

    def watched(*arguments: object) -> MDLMTransformer:
        model = make(*arguments)
        model.blocks[0].mlp[0].register_forward_hook(lambda layer, inputs, output: seen.add(output.dtype))
        return model

    monkeypatch.setattr(module, "make_model", watched)
    arguments = ["--data_dir", str(text_folder), *MDLM_ARGUMENTS, "--max_train_steps", "2", "--mixed_precision", "bf16"]
    for blocks in ([], ["--block_size", "8"]):
        seen.clear()
        module.main([*arguments, *blocks, "--output_dir", str(tmp_path / f"run{len(blocks)}")])
        assert seen == {torch.bfloat16}


def test_blocks_must_fill_the_rows(text_folder: Path, tmp_path: Path) -> None:  # noqa: F811
    arguments = ["--data_dir", str(text_folder), "--output_dir", str(tmp_path / "out"), *MDLM_ARGUMENTS]
    with pytest.raises(ValueError, match="`block_size` must divide `model_length` = 16, got 5"):
        program("train_mdlm").main([*arguments, "--block_size", "5"])
