"""A sampler of one's own: from the centre outwards, a cell further for every nat of certainty that a position lacks.

    python examples/custom_scheduler.py --pipeline pipelines/maskgit-mnist --output centre_out.png

An order is one method: a score for every position, the largest first. Counts, noise, tokens, checks, saving and loading
are inherited. What decides the law belongs in `__init__`, so that it is saved with the scheduler.
"""

import argparse

import torch
from diffusers import SchedulerMixin  # noqa: F401 - diffusers looks for a component's base class in the module defining it
from diffusers.configuration_utils import register_to_config

from hf_maskdiff import ChooseThenSampleScheduler, MaskGITPipeline, StepContext
from hf_maskdiff.orders import log_confidence
from hf_maskdiff.sampling import Marginals


class CentreOutScheduler(ChooseThenSampleScheduler):
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

    def score_positions(self, marginals: Marginals, context: StepContext) -> torch.Tensor:
        axes = [torch.arange(n, device=context.keys.device).double() - (n - 1) / 2 for n in context.grid]
        distance = torch.stack(torch.meshgrid(*axes, indexing="ij")).norm(dim=0).flatten()
        return marginals.score(log_confidence, context.masked).to(distance.device) - distance


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipeline", required=True)
    parser.add_argument("--output", default="centre_out.png")
    args = parser.parse_args()
    pipe = MaskGITPipeline.from_pretrained(args.pipeline)
    pipe.scheduler = CentreOutScheduler.from_config(pipe.scheduler.config)
    pipe(class_labels=3, generator=torch.Generator().manual_seed(0)).images[0].save(args.output)
