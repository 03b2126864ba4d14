"""Untrained models of the published sizes, for measurements that depend on sizes alone."""

from __future__ import annotations

from diffusers import VQModel
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from hf_maskdiff import (
    AncestralScheduler,
    HaltonMaskGITTransformer2DModel,
    MaskGITTransformer2DModel,
    MDLMPipeline,
    MDLMTransformer,
)


def mage() -> MaskGITTransformer2DModel:
    heads = {"num_attention_heads": 12, "num_decoder_attention_heads": 16}
    sizes = {"sample_size": 16, "codebook_size": 1024, "num_classes": 0, "hidden_size": 768, "num_layers": 12}
    decoder = {"num_decoder_layers": 8, "decoder_hidden_size": 768, "decoder_intermediate_size": 3072}
    tokens = {"mask_token_id": 2024, "class_token_offset": 1100, "vocab_size": 2025}
    return MaskGITTransformer2DModel(**sizes, **heads, **decoder, **tokens, intermediate_size=3072)


def halton(
    sample_size: int, hidden_size: int, num_layers: int, num_heads: int, intermediate_size: int, **tokens: int
) -> HaltonMaskGITTransformer2DModel:
    sizes = {"hidden_size": hidden_size, "num_layers": num_layers, "num_attention_heads": num_heads}
    sizes |= {"sample_size": sample_size, "intermediate_size": intermediate_size}
    return HaltonMaskGITTransformer2DModel(**sizes, **({"codebook_size": 16384, "num_classes": 1000} | tokens))


def llamagen_vq() -> VQModel:
    """LlamaGen's tokenizer, with stride 16."""
    attention = [False] * 4 + [True]
    return VQModel(
        down_block_types=["AttnDownEncoderBlock2D" if there else "DownEncoderBlock2D" for there in attention],
        up_block_types=["AttnUpDecoderBlock2D" if there else "UpDecoderBlock2D" for there in attention[::-1]],
        block_out_channels=[128, 128, 256, 256, 512],
        layers_per_block=2,
        latent_channels=256,
        num_vq_embeddings=16384,
        vq_embed_dim=8,
        lookup_from_codebook=True,
    )


def mdlm(**others: int) -> MDLMTransformer:
    sizes = {"hidden_dim": 768, "cond_dim": 128, "n_blocks": 12, "n_heads": 12}
    return MDLMTransformer(**({"vocab_size": 50258, "model_length": 1024} | sizes | others))


def mdlm_pipeline(transformer: MDLMTransformer, device: str) -> MDLMPipeline:
    """A pipeline whose last token is the mask, with a tokenizer of one word."""
    nn.init.normal_(transformer.output_layer.linear.weight, std=0.05)  # in a new model all logits are equal
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 0}, unk_token="a")))
    mask = transformer.config.vocab_size - 1
    scheduler = AncestralScheduler(mask_token_id=mask, codebook_size=mask)
    pipe = MDLMPipeline(tokenizer, transformer.to(device).eval(), scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def gpt2_large() -> GPT2LMHeadModel:
    return GPT2LMHeadModel(GPT2Config(n_embd=1280, n_layer=36, n_head=20))
