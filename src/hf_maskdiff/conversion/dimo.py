"""Di[M]O's one-step MaskGIT (yuanzhi-zhu/DiMO, arXiv 2503.15457) as `MaskGITTransformer2DModel`.

It was distilled from Maskgit-pytorch v1.0, whose weights' names and image tokenizer it has.
"""

from __future__ import annotations

from hf_maskdiff.conversion.checkpoints import require_tensors
from hf_maskdiff.conversion.maskgit_pytorch_v1 import are_of_transformer, convert_transformer, is_vqgan, widths_of
from hf_maskdiff.conversion.upstream import Preset, Tree, Upstream
from hf_maskdiff.conversion.vqgan import taming_vqgan
from hf_maskdiff.schedulers import OneStepScheduler

_WHERE = "The checkpoint"


def dimo(codebook_size: int = 1024) -> Preset:
    """Di[M]O's sampler at the settings of its command line: 60 % masks, noise of 0.1, one pass without guidance."""
    scheduler = OneStepScheduler(
        mask_token_id=codebook_size, codebook_size=codebook_size, initial_mask_ratio=0.6, embedding_noise=0.1
    )
    return Preset(scheduler, 1)


def _contents(tree: Tree) -> set[str]:
    if are_of_transformer(map(str, tree)):
        return {"transformer"}
    return {"vqvae"} if is_vqgan(tree) else set()


UPSTREAM = Upstream(
    name="yuanzhi-zhu/DiMO",
    licence="unknown",
    contents=_contents,
    transformer=lambda tree, codebook_size, heads: convert_transformer(
        require_tensors(tree, _WHERE), codebook_size, heads
    ),
    vqvae=lambda tree: taming_vqgan(require_tensors(tree["state_dict"], '"state_dict"')),
    preset=lambda transformer: dimo(transformer.config.codebook_size),
    widths=lambda tree: widths_of(require_tensors(tree, _WHERE)),
    notes=(
        "One pass makes an image: `num_inference_steps` is 1. It starts from masks at 60 % of the positions and random "
        "codes at the others, with noise in their embeddings, and draws all codes. The original may draw the mask "
        "itself as a token, and takes the last code in its place; here it is never drawn."
    ),
    tokenizer_source="llvictorll/Maskgit-pytorch/pretrained_maskgit/VQGAN/last.ckpt",
    do_normalize=True,
    terms=(
        "The licence is unknown: its publishers state none, neither for the weights nor for the code. Ask them before "
        "you pass it on."
    ),
)
