"""A sampler of your own: it reveals positions in reading order, but earlier if the model is more certain of them.

    python examples/custom_scheduler.py --pipeline pipelines/maskgit-mnist --output reading_order.png

An order is one method, which returns a score for every position; the largest comes first. Counts, noise, tokens,
checks, saving and loading are inherited. All settings must be arguments of `__init__`, so that they are saved.

`SchedulerMixin` is imported here because diffusers looks up a component's base class in the module that defines the
component. A pipeline saved with this sampler can be loaded after this module has been imported.
"""

import argparse

import torch
from diffusers import SchedulerMixin  # noqa: F401
from diffusers.configuration_utils import register_to_config

from hf_maskdiff import ChooseThenSampleScheduler, MaskGITPipeline, StepContext, orders, sampling


class ReadingOrderScheduler(ChooseThenSampleScheduler):
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
        nats_per_place: float = 0.1,  # the gain in certainty that moves a position one place forward
    ) -> None:
        self.check_config()

    def score_positions(self, marginals: sampling.Marginals, context: StepContext) -> torch.Tensor:
        # (batch_size, L), float64, for sequences and for images, whose rows of tokens follow one another.
        price = self.config.nats_per_place * torch.arange(context.masked.shape[1], device=context.keys.device).double()
        return marginals.score(orders.log_confidence, context.masked).to(price.device) - price


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipeline", required=True, help="folder or Hub name of the pipeline")
    parser.add_argument("--output", default="reading_order.png")
    args = parser.parse_args()
    pipe = MaskGITPipeline.from_pretrained(args.pipeline)
    pipe.scheduler = ReadingOrderScheduler.from_config(pipe.scheduler.config)
    pipe(class_labels=2, generator=torch.Generator().manual_seed(0)).images[0].save(args.output)
