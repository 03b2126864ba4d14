"""What people hand to a text pipeline: special tokens, masks in texts, padded ids, adapters, temperatures, copies."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tiny_weights import draw_weights
from tokenizers import Tokenizer, decoders, processors
from tokenizers.models import BPE, WordLevel
from tokenizers.pre_tokenizers import ByteLevel, Split, WhitespaceSplit
from tokenizers.trainers import BpeTrainer
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    PreTrainedTokenizerFast,
    pipeline,
)

from hf_maskdiff import (
    ConfidenceScheduler,
    HaltonScheduler,
    MaskedDiffusionTextPipeline,
    MaskGITPipeline,
    MomentScheduler,
    PartialCacheConfig,
    UniformScheduler,
)

PAD, UNK, CLS, SEP, MASK = range(5)
LETTERS = "ACDEFGHIKLMNPQRSTVWY"


def protein_tokenizer() -> PreTrainedTokenizerFast:
    """One letter is one token, between [CLS] and [SEP], as in protein language models."""
    words = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS])}
    core = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    core.pre_tokenizer = Split("", "isolated")
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=core, mask_token="[MASK]", **names)


def chat_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes, a mask that no `mask_token` names (as LLaDA's), and a template; no special tokens around a text."""
    core = Tokenizer(BPE())
    core.pre_tokenizer = ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(vocab_size=300, initial_alphabet=ByteLevel.alphabet(), special_tokens=["<|end|>", "<|mdm|>"])
    core.train_from_iterator(["what is the mask of the singer?"] * 10, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|end|>", pad_token="<|end|>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|mdm|>"]})
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<|end|>{% endfor %}answer:"
    return tokenizer


def model_of(name: str, tokenizer: PreTrainedTokenizerFast, mask_token_id: int) -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    special = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": None, "mask_token_id": mask_token_id}
    extra = {"emb_layer_norm_before": True, "token_dropout": False} if name == "esm" else {}
    config = AutoConfig.for_model(
        name, vocab_size=len(tokenizer), max_position_embeddings=128, **sizes, **special, **extra
    )
    auto = AutoModelForCausalLM if name == "llama" else AutoModelForMaskedLM
    model = auto.from_config(config).eval()
    draw_weights(model, bias=0.1)
    return model


def pipe_of(name: str, scheduler: Any = None) -> MaskedDiffusionTextPipeline:
    if name == "llama":
        tokenizer = chat_tokenizer()
        mask = tokenizer.convert_tokens_to_ids("<|mdm|>")
    else:
        tokenizer, mask = protein_tokenizer(), MASK
    pipe = MaskedDiffusionTextPipeline.from_model(model_of(name, tokenizer, mask), tokenizer, scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


class Seen:
    """What the model is given in every full pass."""

    def __init__(self, pipe: MaskedDiffusionTextPipeline) -> None:
        self.ids: list[Tensor] = []
        pipe.transformer.register_forward_pre_hook(self.note, with_kwargs=True)

    def note(self, module: Any, inputs: tuple, options: dict) -> None:
        self.ids.append(options["input_ids"].clone())


@pytest.fixture(params=["bert", "esm"])
def protein(request: pytest.FixtureRequest) -> MaskedDiffusionTextPipeline:
    return pipe_of(request.param)


@pytest.fixture
def chatty() -> MaskedDiffusionTextPipeline:
    return pipe_of("llama")


# --- special tokens ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", ["ACDE", "AC[MASK:3]DE", "[MASK]", "[MASK:2]A[MASK]"])
def test_a_prompt_is_what_the_tokenizer_builds(protein: MaskedDiffusionTextPipeline, prompt: str) -> None:
    for count in (1, 2, 3):
        prompt = prompt.replace(f"[MASK:{count}]", "[MASK]" * count)
    assert protein.encode_prompt(prompt).tolist() == protein.tokenizer(prompt).input_ids


def test_new_tokens_stand_before_what_the_tokenizer_adds_behind(protein: MaskedDiffusionTextPipeline) -> None:
    protein.denoiser(torch.tensor([[CLS, 5, SEP]]))  # the probe has been before
    seen = Seen(protein)
    output = protein("ACD", max_new_tokens=4, num_inference_steps=2)
    assert seen.ids[0].tolist() == [[CLS, 5, 6, 7, MASK, MASK, MASK, MASK, SEP]]
    sequence = output.sequences[0].tolist()
    assert (sequence[0], sequence[-1], len(sequence)) == (CLS, SEP, 9)
    assert len(output.texts[0].replace(" ", "")) <= 7
    assert "[CLS]" not in output.texts[0]
    assert "[SEP]" not in output.texts[0]


def test_from_nothing_there_are_special_tokens_too(protein: MaskedDiffusionTextPipeline) -> None:
    protein.denoiser(torch.tensor([[CLS, 5, SEP]]))
    seen = Seen(protein)
    protein(max_new_tokens=3, num_inference_steps=1)
    assert seen.ids[0].tolist() == [[CLS, MASK, MASK, MASK, SEP]]


def test_fill_mask_of_transformers_sees_the_same(protein: MaskedDiffusionTextPipeline) -> None:
    """Its best guess is our greedy token."""
    best = pipeline("fill-mask", model=protein.transformer, tokenizer=protein.tokenizer)("ACD[MASK]EFG", top_k=1)
    (sequence,) = protein("ACD[MASK]EFG", num_inference_steps=1).sequences
    assert int(sequence[4]) == best[0]["token"]


def test_ids_with_special_tokens_are_that_prompt(protein: MaskedDiffusionTextPipeline) -> None:
    written = protein("ACD", max_new_tokens=3, num_inference_steps=3).sequences[0]
    by_ids = protein(**protein.tokenizer("ACD", return_tensors="pt"), max_new_tokens=3, num_inference_steps=3)
    assert torch.equal(by_ids.sequences[0], written)


def test_a_tokenizer_that_adds_nothing_stays_as_it_is(chatty: MaskedDiffusionTextPipeline) -> None:
    assert chatty.encode_prompt("what is").tolist() == chatty.tokenizer("what is").input_ids
    text = chatty.tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    expected = chatty.tokenizer(text, add_special_tokens=False).input_ids
    assert chatty.encode_prompt([{"role": "user", "content": "hi"}]).tolist() == expected


def test_guidance_leaves_special_tokens_in_place(protein: MaskedDiffusionTextPipeline) -> None:
    protein.denoiser(torch.tensor([[CLS, 5, SEP]]))
    seen = Seen(protein)
    protein("ACD", max_new_tokens=2, num_inference_steps=1, guidance_scale=2.0)
    assert seen.ids[1].tolist() == [[CLS, MASK, MASK, MASK, MASK, MASK, SEP]]


# --- masks come from spans alone --------------------------------------------------------------------------------------

TEXTS = ["what is <|mdm|>?", "<|mdm|>", "a<|mdm|><|mdm|>b", "<|mdm|> the mask"]


@pytest.mark.parametrize("text", TEXTS)
def test_the_tokenizer_s_mask_in_a_text_is_text(chatty: MaskedDiffusionTextPipeline, text: str) -> None:
    """It was filled in, and an answer began inside the question."""
    for prompt in (text, [{"role": "user", "content": text}]):
        ids = chatty.encode_prompt(prompt)
        assert chatty.mask_token_id not in ids.tolist()
        assert text in chatty.tokenizer.decode(ids)
    chat = [{"role": "user", "content": text}]
    (sequence,), (answer,) = chatty(chat, max_new_tokens=4, num_inference_steps=2)[:2]
    start = len(chatty.encode_prompt(chat))
    assert sequence[:start].tolist() == chatty.encode_prompt(chat).tolist()
    assert answer == chatty.tokenizer.decode(sequence[start:], skip_special_tokens=True)


def test_beside_a_span_the_tokenizer_s_mask_is_text(chatty: MaskedDiffusionTextPipeline) -> None:
    ids = chatty.encode_prompt("is <|mdm|> a [MASK:2] mask").tolist()
    assert ids.count(chatty.mask_token_id) == 2
    first = ids.index(chatty.mask_token_id)
    assert chatty.tokenizer.decode(ids[:first]) == "is <|mdm|> a "


@pytest.mark.parametrize("text", ["the [MASKED] singer", "[MASK_2]", "[masK]", "a [MASKs"])
def test_words_that_look_like_a_span_are_words(chatty: MaskedDiffusionTextPipeline, text: str) -> None:
    """One of them refused the whole batch."""
    assert chatty.tokenizer.decode(chatty.encode_prompt(text)) == text


@pytest.mark.parametrize(("text", "meant"), [(r"say \[MASK]", "say [MASK]"), (r"\[MASK:3] now", "[MASK:3] now")])
def test_a_backslash_makes_a_span_a_text(chatty: MaskedDiffusionTextPipeline, text: str, meant: str) -> None:
    assert chatty.tokenizer.decode(chatty.encode_prompt(text)) == meant
    ids = chatty.encode_prompt(f"{text} and [MASK:2]").tolist()
    assert ids[-2:] == [chatty.mask_token_id] * 2
    assert ids.count(chatty.mask_token_id) == 2


def test_a_mask_that_cannot_be_written_as_text_is_one_clear_error() -> None:
    words = {"[UNK]": 0, "w": 1, "[MASK]": 2}
    core = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    core.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]")
    model = model_of("bert", tokenizer, 2)
    pipe = MaskedDiffusionTextPipeline.from_model(model, tokenizer)
    with pytest.raises(ValueError, match=r"`prompt` must not hold the tokenizer's mask as text, got '\[MASK\] w'"):
        pipe(r"\[MASK] w", max_new_tokens=1)


# --- padded ids -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_padded_ids_are_rows_of_their_own(name: str, side: str) -> None:
    """`pipe(**tokenizer(texts, padding=True))` gives each row what it gives alone; pads were read as text."""
    pipe = pipe_of(name)
    pipe.tokenizer.padding_side = side
    texts = ["ACDEFG", "AC", "W"] if name == "bert" else ["what is the mask", "of", "the singer?"]
    call = {"max_new_tokens": 4, "num_inference_steps": 2, "stop_at_eos": False}
    padded = pipe.tokenizer(texts, padding=True, return_tensors="pt")
    assert not padded["attention_mask"].bool().all()
    together = pipe(**padded, **call).sequences
    for text, row in zip(texts, together, strict=True):
        assert torch.equal(row, pipe(text, **call).sequences[0])


def test_ids_as_lists_and_arrays(protein: MaskedDiffusionTextPipeline) -> None:
    call = {"max_new_tokens": 3, "num_inference_steps": 2}
    rows = [protein.tokenizer(text).input_ids for text in ("ACD", "W")]
    expected = [protein(text, **call).sequences[0] for text in ("ACD", "W")]
    for given in (rows, tuple(rows), [np.array(row) for row in rows], [torch.tensor(row) for row in rows]):
        found = protein(input_ids=given, **call).sequences
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    array = protein(input_ids=np.array(rows[:1]), **call).sequences
    assert torch.equal(array[0], expected[0])


WRONG = [
    ({"attention_mask": torch.ones(1, 3)}, "`attention_mask` must be 0 or 1 of the shape of `input_ids`"),
    ({"attention_mask": torch.zeros(1, 4)}, "`attention_mask` must leave a token in each row"),
    ({"mask": torch.zeros(1, 4)}, "`mask` must be bool, got torch.float32"),
    ({"mask": torch.zeros(1, 3, dtype=torch.bool)}, "`mask` must be bool of the shape of `input_ids`"),
    ({"token_type_ids": torch.ones(1, 4, dtype=torch.long)}, "`token_type_ids` must be 0 everywhere"),
    ({"input_ids": [[1.5, 2.0]]}, "`input_ids` must be int64 of shape"),
    ({"input_ids": "ids"}, "`input_ids` must hold rows of numbers"),
    ({"input_ids": [[1, 2], []]}, "`input_ids` must be int64 of shape"),
    ({"input_ids": [5, 6]}, "`input_ids` must be int64 of shape"),
    ({"input_ids": [[5, 999]]}, "`input_ids` must hold ids in 0"),
    ({"input_ids": None, "attention_mask": torch.ones(1, 4)}, "`attention_mask` must come with `input_ids`"),
]


@pytest.mark.parametrize(("given", "message"), WRONG)
def test_ids_that_do_not_fit_are_one_clear_error(
    protein: MaskedDiffusionTextPipeline, given: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        protein(**{"input_ids": torch.tensor([[5, 6, 7, 8]]), "max_new_tokens": 2, **given})


# --- temperatures and guidance ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheduler_class", [ConfidenceScheduler, UniformScheduler, HaltonScheduler])
def test_a_choice_temperature_that_would_do_nothing_is_refused(scheduler_class: type, make_pipeline: Any) -> None:
    pipe = pipe_of("bert", scheduler_class(mask_token_id=MASK))
    match = rf"`temperature` must be left out with a {scheduler_class.__name__} .* Pass `sampling_temperature`"
    with pytest.raises(ValueError, match=match):
        pipe("ACD", max_new_tokens=2, temperature=0.7)
    images: MaskGITPipeline = make_pipeline(scheduler_class(mask_token_id=16, codebook_size=16))
    with pytest.raises(ValueError, match=match):
        images(class_labels=[0], temperature=0.7)


@pytest.mark.parametrize("scheduler_class", [ConfidenceScheduler, MomentScheduler, UniformScheduler])
def test_the_sampling_temperature_of_a_call(scheduler_class: type) -> None:
    """0 is greedy, whatever the seed; at a high one all tokens are drawn; the scheduler stays as it was."""
    pipe = pipe_of("bert", scheduler_class(mask_token_id=MASK))
    before = dict(pipe.scheduler.config)

    def tokens(seed: int, **more: Any) -> list[int]:
        generator = torch.Generator().manual_seed(seed)
        output = pipe("A", max_new_tokens=40, num_inference_steps=1, generator=generator, **more)
        return output.sequences[0][2:-1].tolist()

    assert tokens(0, sampling_temperature=0) == tokens(1, sampling_temperature=0)
    logits = pipe.denoiser(torch.tensor([[CLS, 5, *[MASK] * 40, SEP]]))[0, 2:-1]
    logits[:, MASK] = -torch.inf
    assert tokens(2, sampling_temperature=0) == logits.argmax(-1).tolist()
    assert len(set(tokens(0, sampling_temperature=100.0))) > len(set(tokens(0, sampling_temperature=0)))
    assert len(set(tokens(0, sampling_temperature=100.0))) > 12  # of 24
    assert dict(pipe.scheduler.config) == before
    with pytest.raises(ValueError, match="`sampling_temperature` must be a number of at least 0, got -1"):
        tokens(0, sampling_temperature=-1)


def test_guidance_ramps_for_texts_as_for_images(protein: MaskedDiffusionTextPipeline) -> None:
    call = {"max_new_tokens": 6, "num_inference_steps": 3}
    one = protein("ACD", guidance_scale=2.0, **call).sequences[0]
    assert torch.equal(protein("ACD", guidance_scale=(2.0, 2.0), **call).sequences[0], one)
    scales: list[float] = []

    def note(pipe: Any, step: int, timestep: Tensor, tensors: dict) -> dict:
        scales.append(pipe.guidance_scale_at(timestep))
        return tensors

    protein("ACD", guidance_scale=(1.0, 3.0), callback_on_step_end=note, **call)
    assert scales == [1.0, 2.0, 3.0]
    for wrong in (-1.0, (1.0, -2.0), float("nan"), "2", (1.0,)):
        with pytest.raises(ValueError, match="`guidance_scale` must be a finite number or a pair"):
            protein("ACD", guidance_scale=wrong, **call)


# --- copies keep what a pipeline is -----------------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["scheduler", "tokenizer", "device_map", "nothing"])
def test_a_task_keeps_the_settings_of_its_pipeline(chatty: MaskedDiffusionTextPipeline, change: str) -> None:
    """`shift_logits` and the ends of text were lost."""
    parts = (chatty.tokenizer, chatty.transformer, chatty.scheduler)
    shifted = MaskedDiffusionTextPipeline(*parts, shift_logits=True, eos_token_ids=[3, 4])
    shifted.set_progress_bar_config(disable=True)
    given: dict[str, Any] = {
        "scheduler": {"scheduler": "ConfidenceScheduler"},
        "tokenizer": {"tokenizer": chatty.tokenizer},
        "device_map": {},
        "nothing": {},
    }[change]
    if change == "device_map":
        shifted.hf_device_map = "cpu"
    write = pipeline("masked-diffusion-text-generation", model=shifted, **given)
    assert write.model.config.shift_logits is True
    assert write.model.config.eos_token_ids == [3, 4]
    expected = shifted("what is", max_new_tokens=6, num_inference_steps=2).texts[0]
    assert write("what is", max_new_tokens=6, num_inference_steps=2)[0]["generated_text"] == expected


def test_from_pipe_keeps_them_too(chatty: MaskedDiffusionTextPipeline) -> None:
    parts = (chatty.tokenizer, chatty.transformer, chatty.scheduler)
    shifted = MaskedDiffusionTextPipeline(*parts, shift_logits=True, eos_token_ids=[3])
    copied = MaskedDiffusionTextPipeline.from_pipe(shifted)
    assert (copied.config.shift_logits, copied.config.eos_token_ids) == (True, [3])


def test_partial_passes_are_counted_too(chatty: MaskedDiffusionTextPipeline) -> None:
    chatty.scheduler = MomentScheduler.from_config(chatty.scheduler.config)
    call = {"max_new_tokens": 8, "num_inference_steps": 2, "stop_at_eos": False}
    assert chatty("what is", **call).num_partial_passes == [0]
    chatty.enable_cache(PartialCacheConfig(num_substeps=2, full_pass_threshold=1.0))
    output = chatty("what is", **call)
    assert (output.num_model_passes, output.num_partial_passes) == ([2], [2])
