"""A sampler of your own that takes tokens back: what the model doubts is masked again, and drawn anew later.

    python examples/custom_remasking.py --pipeline pipelines/maskgit-mnist

Three methods: an order for the masked positions, an order for the revealed ones, and how many of these go back. The
counts of masks, given tokens (a prompt, pixels to keep), noise, checks, saving and loading are inherited.

`SchedulerMixin` is imported here because diffusers looks up a component's base class in the module that defines the
component.
"""

import argparse

import torch
from diffusers import SchedulerMixin  # noqa: F401
from diffusers.configuration_utils import register_to_config

from hf_maskdiff import MaskGITPipeline, RevisingScheduler, StepContext, sampling


class SecondThoughtsScheduler(RevisingScheduler):
    @register_to_config
    def __init__(
        self,
        mask_token_id: int,
        codebook_size: int | None = None,
        masking_schedule: str | list[int] = "cosine",
        rounding: str = "floor_masked",
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
    ) -> None:
        self.check_config()

    def score_positions(self, marginals: sampling.Marginals, context: StepContext) -> torch.Tensor:
        return context.uniform(sampling.Purpose.CHOICE)  # in random order

    def score_revealed(self, marginals: sampling.Marginals, context: StepContext) -> torch.Tensor:
        return marginals.log_prob_of(context.tokens, context.revealed)  # the least probable first

    def count_put_back(self, scores: torch.Tensor, context: StepContext) -> torch.Tensor:
        return (0.1 * context.revealed.sum(-1)).long()  # a tenth of them in every step


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipeline", required=True, help="folder or Hub name of the pipeline")
    pipe = MaskGITPipeline.from_pretrained(parser.parse_args().pipeline)
    pipe.scheduler = SecondThoughtsScheduler.from_config(pipe.scheduler.config)
    pipe(class_labels=2, generator=torch.Generator().manual_seed(0)).images[0].save("second_thoughts.png")
