"""Models of the released sizes with random weights, each in its pipeline, and passes and whole runs of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import VQModel
from models import llamagen_vq
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from hf_maskdiff import (
    HaltonMaskGITTransformer2DModel,
    MaskedDiffusionTextPipeline,
    MaskGITPipeline,
    MDLMPipeline,
    MDLMTransformer,
    MomentScheduler,
    PartialCacheConfig,
)

from .measures import Bench, building


@dataclass(frozen=True)
class Subject:
    """A pipeline, and its model as the loop calls it.

    Args:
        length: L, the positions that the model sees; the last `new` of them are filled in.
        run: a whole call that ends with ids, given the number of steps, the batch size and options of the pipeline.
        apply: logits of a pass, given tokens and, in a partial pass, their positions.
        unit: what the pipeline makes, "tokens" or "images".
    """

    name: str
    pipe: Any
    mask_token_id: int
    length: int
    new: int
    run: Callable[..., Any]
    apply: Callable[..., Tensor]
    unit: str = "tokens"

    def masked(self, batch_size: int, device: torch.device) -> Tensor:
        """Tokens before the first step, int64 `(batch_size, L)`."""
        tokens = torch.zeros(batch_size, self.length, dtype=torch.int64, device=device)
        tokens[:, self.length - self.new :] = self.mask_token_id
        return tokens

    @contextmanager
    def in_groups(self, num_substeps: int, **config: Any) -> Iterator[None]:
        """Switch partial caching on inside this context; with one group it stays off."""
        if num_substeps == 1:
            yield
            return
        self.pipe.enable_cache(PartialCacheConfig(num_substeps=num_substeps, **config))
        try:
            yield
        finally:
            self.pipe.disable_cache()


def subjects(bench: Bench) -> dict[str, Callable[[], Subject]]:
    """Their builders, the smallest model first."""
    return {
        "MDLM": lambda: mdlm(bench),
        "Halton-MaskGIT large": lambda: halton(bench),
        "LLaDA-8B": lambda: llada(bench),
    }


def moment(mask_token_id: int, masking_schedule: str = "linear") -> MomentScheduler:
    config = {"codebook_size": mask_token_id, "choice_temperature": 4.0, "masking_schedule": masking_schedule}
    return MomentScheduler(mask_token_id=mask_token_id, **config)


def tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of one word, since no run here reads text."""
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 0}, unk_token="a")))


def randomised(model: nn.Module) -> nn.Module:
    """Give a new model random weights, because its blocks are the identity and its logits all equal."""
    for weight in model.parameters():
        nn.init.normal_(weight, std=0.02)
    return model.eval()


def generator(device: torch.device) -> torch.Generator:
    return torch.Generator(device).manual_seed(0)


def mdlm(bench: Bench, dtype: torch.dtype = torch.bfloat16) -> Subject:
    """The sizes of mdlm-owt: width 768, 12 layers, 1024 tokens."""
    sizes = {"vocab_size": 50258, "model_length": 1024, "hidden_dim": 768, "cond_dim": 128, "n_blocks": 12}
    small = {"vocab_size": 30, "model_length": 16, "hidden_dim": 16, "cond_dim": 8, "n_blocks": 2}
    with building(bench.device, dtype):
        model = randomised(MDLMTransformer(**bench.pick(sizes, small), n_heads=bench.pick(12, 2)))
    mask, length = model.config.vocab_size - 1, model.config.model_length
    pipe = MDLMPipeline(tokenizer(), model, moment(mask))
    pipe.set_progress_bar_config(disable=True)

    def run(steps: int, batch_size: int, **options: Any) -> Any:
        options = {"generator": generator(bench.device), "output_type": "ids", **options}
        return pipe(num_inference_steps=steps, num_return_sequences=batch_size, **options)

    cache = model.new_cache()

    def apply(tokens: Tensor, **positions: Tensor) -> Tensor:
        return model(tokens, return_dict=False, cache=cache, **positions)[0]

    return Subject("MDLM", pipe, mask, length, length, run, apply)


def halton(bench: Bench, dtype: torch.dtype = torch.bfloat16) -> Subject:
    """The large model for images of 384 pixels: width 1024, 24 layers, 24 x 24 codes, with LlamaGen's tokenizer."""
    sizes = {"sample_size": 24, "codebook_size": 16384, "num_classes": 1000, "hidden_size": 1024}
    sizes |= {"num_layers": 24, "num_attention_heads": 16, "intermediate_size": 2816}
    small = {"sample_size": 4, "codebook_size": 20, "num_classes": 10, "hidden_size": 16}
    small |= {"num_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    with building(bench.device, dtype):
        model = randomised(HaltonMaskGITTransformer2DModel(**bench.pick(sizes, small)))
        vqvae = vq(bench).eval()
    mask, length = model.config.codebook_size, model.config.sample_size**2
    pipe = MaskGITPipeline(vqvae, model, moment(mask, "cosine"))
    pipe.set_progress_bar_config(disable=True)

    def run(steps: int, batch_size: int, **options: Any) -> Any:
        options = {"generator": generator(bench.device), "output_type": "latent", **options}
        return pipe(class_labels=1, num_images_per_prompt=batch_size, num_inference_steps=steps, **options)

    cache = model.new_cache()

    def apply(tokens: Tensor, **positions: Tensor) -> Tensor:
        labels = torch.ones(len(tokens), dtype=torch.int64, device=bench.device)
        return model(tokens, labels, return_dict=False, cache=cache, **positions)[0]

    return Subject("Halton-MaskGIT large", pipe, mask, length, length, run, apply, "images")


def vq(bench: Bench) -> VQModel:
    """LlamaGen's tokenizer, with stride 16."""
    if bench.tiny:
        return VQModel(block_out_channels=(8,), norm_num_groups=4, num_vq_embeddings=20, lookup_from_codebook=True)
    return llamagen_vq()


def llada(bench: Bench, dtype: torch.dtype = torch.bfloat16) -> Subject:
    """The sizes of LLaDA-8B, a Llama with bidirectional attention: a prompt of 512 tokens and 256 new ones."""
    sizes = {"vocab_size": 126464, "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 32}
    sizes |= {"num_attention_heads": 32, "max_position_embeddings": 4096, "mask_token_id": 126336}
    return _bidirectional_llama("LLaDA-8B", sizes, bench, dtype)


def llama(bench: Bench, dtype: torch.dtype = torch.bfloat16) -> Subject:
    """The sizes of Llama 3.2 1B, with bidirectional attention; prompt and text as above."""
    sizes = {"vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16}
    sizes |= {"num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 4096}
    return _bidirectional_llama("Llama 1B", {**sizes, "mask_token_id": 128255}, bench, dtype)


def _bidirectional_llama(name: str, sizes: dict[str, int], bench: Bench, dtype: torch.dtype) -> Subject:
    small = {"vocab_size": 30, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    small |= {"num_attention_heads": 2, "max_position_embeddings": 64, "mask_token_id": 29}
    sizes, (prompt, new) = bench.pick((sizes, (512, 256)), (small, (8, 8)))
    rope, ends = {"rope_type": "default", "rope_theta": 5e5}, {"bos_token_id": None, "eos_token_id": 1}
    config = LlamaConfig(**sizes, **ends, pad_token_id=1, tie_word_embeddings=False, rope_parameters=rope)
    config._attn_implementation = "sdpa"
    with building(bench.device, dtype):
        model = LlamaForCausalLM(config).eval()
    mask, length = config.mask_token_id, prompt + new
    pipe = MaskedDiffusionTextPipeline(tokenizer(), model, moment(mask))
    pipe.set_progress_bar_config(disable=True)

    def run(steps: int, batch_size: int, **options: Any) -> Any:
        options = {"generator": generator(bench.device), "output_type": "ids", **options}
        ids = subject.masked(batch_size, bench.device)
        return pipe(input_ids=ids, block_length=new, num_inference_steps=steps, **options)

    cache = pipe.denoiser.new_cache()

    def apply(tokens: Tensor, **positions: Tensor) -> Tensor:
        places = torch.arange(prompt, length, device=bench.device).expand(len(tokens), -1)
        options = positions or {"logits_at": places}
        return pipe.denoiser(tokens, cache=cache, **options)

    subject = Subject(name, pipe, mask, length, new, run, apply)
    return subject
