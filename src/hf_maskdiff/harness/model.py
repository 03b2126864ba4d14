"""The model `hf_maskdiff` of lm-evaluation-harness: any text pipeline, any scheduler, any cache."""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed
from accelerate import PartialState
from accelerate.utils import gather
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from tqdm import tqdm

from hf_maskdiff.caching import CacheConfig, DelayedCacheConfig, DualCacheConfig, PartialCacheConfig, PrefixCacheConfig
from hf_maskdiff.harness.room import Room
from hf_maskdiff.harness.texts import HarnessTexts, Row, settings_of_task
from hf_maskdiff.hub_access import require_hub
from hf_maskdiff.likelihood.named import estimator_of
from hf_maskdiff.pipelines import MaskedDiffusionTextPipeline, MDLMPipeline
from hf_maskdiff.pipelines.transformers_tasks import Repository
from hf_maskdiff.sets.loading import set_scheduler
from hf_maskdiff_cli.names import did_you_mean

CACHES: dict[str, Callable[[], CacheConfig]] = {
    "prefix": PrefixCacheConfig,
    "dual": DualCacheConfig,
    "delayed": DelayedCacheConfig,
    "partial": lambda: PartialCacheConfig(num_substeps=2),
}
_OF_SCHEDULER = "scheduler."
# Of `from_pretrained`.
_OF_LOADING = (
    *("revision", "cache_dir", "token", "local_files_only", "variant", "device_map", "attn_implementation"),
    *("tokenizer", "attention", "block_size", "blocks_from", "shift_logits"),
)
# Of a task's `generation_kwargs`, or `--gen_kwargs`, what a call of a pipeline is told.
_OF_CALL = ("num_inference_steps", "block_length", "guidance_scale", "repetition_penalty")
_TOGETHER = 32  # requests whose likelihoods are computed before the harness's cache is told of them

log = logging.getLogger(__name__)


@register_model("hf_maskdiff")
class HarnessModel(LM):
    """Runs the harness's tasks on a text pipeline; `--model_args` are the arguments below, `name=value`.

    A request's result depends on `seed` and on the request alone, not on the batch, the order or the process.

    Args:
        pretrained: folder or Hub id of a pipeline or a model, or a pipeline.
        scheduler: a scheduler's name, or a preset; None for the pipeline's. `scheduler.KEY=VALUE` changes a setting.
        num_inference_steps: model passes for a block at most; None for one a token.
        block_length: tokens that are filled in together, from left to right; None for all.
        max_new_tokens: length of an answer where the task does not say.
        temperature: the choice temperature; None for the scheduler's.
        sampling_temperature: at which tokens are drawn; None for what the task asks, usually 0.
        guidance_scale: of answers and likelihoods; 1 is none. It is the authors' `cfg` plus 1.
        cache: prefix, dual, delayed or partial, for answers; None for none.
        estimator: of likelihoods, see `hf_maskdiff.likelihood.named`; "llada" as LLaDA publishes.
        num_samples: random masks of each continuation.
        group_size: masks that are drawn together; None for 16.
        mask_counts: whether the mask shares the probability, as in LLaDA's program.
        check_greedy: whether to write each continuation too, at temperature 0, to tell if it is what the pipeline
            writes; it costs as much as an answer. Only tasks such as LAMBADA ask; without it the answer is no.
        add_bos_token: whether every text begins with the tokenizer's beginning of text, where it does not put one there
            itself (Dream).
        dtype: of the weights; "auto" for that of diffusers.
        max_length: tokens of the longest text; None for the model's.
        seed: of all that is drawn.
        device, batch_size, max_batch_size: as of the harness; a batch of answers, or rows of a pass for likelihoods.
        **more: further arguments of `from_pretrained`: revision, tokenizer, attention, block_size, ...

    Raises:
        ValueError: arguments that cannot work.
    """

    def __init__(
        self,
        pretrained: str | MaskedDiffusionTextPipeline,
        scheduler: str | None = None,
        num_inference_steps: int | None = None,
        block_length: int | None = None,
        max_new_tokens: int = 256,
        temperature: float | None = None,
        sampling_temperature: float | None = None,
        guidance_scale: float = 1.0,
        cache: str | None = None,
        estimator: str = "sobol",
        num_samples: int = 128,
        group_size: int | None = None,
        mask_counts: bool = False,
        check_greedy: bool = False,
        add_bos_token: bool = False,
        dtype: str = "auto",
        max_length: int | None = None,
        seed: int = 0,
        device: str | None = None,
        batch_size: int | str | None = "auto",
        max_batch_size: int | None = None,
        **more: Any,
    ) -> None:
        super().__init__()
        self._state = PartialState()
        self._rank, self._world_size = self._state.process_index, self._state.num_processes
        # The harness itself says "cuda" where nobody has said anything.
        ours = self._world_size > 1 or not device or (device.startswith("cuda") and not torch.cuda.is_available())
        self._device = self._state.device if ours else torch.device(str(device))
        settings = [name for name in more if name.startswith(_OF_SCHEDULER)]
        pairs = [f"{name.removeprefix(_OF_SCHEDULER)}={json.dumps(more.pop(name))}" for name in settings]
        self.pipe: Any = _open(pretrained, dtype, more) if isinstance(pretrained, str) else pretrained
        if not isinstance(pretrained, str) and (more or dtype != "auto"):
            name = min(more, default="dtype")
            raise ValueError(
                f"an open pipeline takes none of the arguments that open one, got {name!r}. "
                f"{did_you_mean(name, inspect.signature(HarnessModel).parameters) or 'Leave it out.'}"
            )
        set_scheduler(self.pipe, scheduler, pairs)
        if cache is not None and cache not in CACHES:
            raise ValueError(f"`cache` must be one of {', '.join(CACHES)}, got {cache!r}. Leave it out for none.")
        self._cache = None if cache is None else CACHES[cache]()
        if not hasattr(self.pipe, "hf_device_map") or self.pipe.hf_device_map is None:
            self.pipe.to(self._device)
        self.pipe.set_progress_bar_config(disable=True)
        self.estimator = estimator_of(estimator, group_size)
        if not self.estimator.is_exact:
            self.estimator.check(num_samples)
        self._likelihood: dict[str, Any] = {
            "num_samples": num_samples,
            "estimator": self.estimator,
            "mask_counts": mask_counts,
        }
        self._call: dict[str, Any] = {
            "block_length": block_length,
            "temperature": temperature,
            "guidance_scale": guidance_scale,
        }
        self._steps, self._sampling_temperature = num_inference_steps, sampling_temperature
        self.max_new_tokens, self.check_greedy, self.seed = max_new_tokens, check_greedy, seed
        self.texts = HarnessTexts(self.pipe, max_length or self.pipe.denoiser.model_length, add_bos_token)
        self.room = Room(batch_size, max_batch_size, self._device)

    # --- likelihoods --------------------------------------------------------------------------------------------------

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Of each continuation given its context, and whether it is what the pipeline itself writes."""
        rows = [self.texts.pair(*request.args) for request in requests]

        def answer(some: list[int], generators: list[torch.Generator]) -> list[tuple[float, bool]]:
            own = [rows[k] for k in some]
            values = self._log_likelihoods(own, generators)
            greedy = self._are_written(own, generators) if self.check_greedy else [False] * len(own)
            return list(zip(values, greedy, strict=True))

        return self._answered("loglikelihood", requests, [len(row.ids) for row in rows], answer, disable_tqdm)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Of whole texts; those longer than the model in pieces, each given the token before it."""
        pieces = [self.texts.pieces(request.args[0]) for request in requests]

        def answer(some: list[int], generators: list[torch.Generator]) -> list[float]:
            return [
                sum(self._log_likelihoods(pieces[k], [_child(generator) for _ in pieces[k]]))
                for k, generator in zip(some, generators, strict=True)
            ]

        lengths = [sum(len(row.ids) for row in of_text) for of_text in pieces]
        return self._answered("loglikelihood_rolling", requests, lengths, answer, disable_tqdm)

    def _log_likelihoods(self, rows: list[Row], generators: list[torch.Generator]) -> list[float]:
        if not rows:
            return []
        states = [one.get_state() for one in generators]

        def score(size: int) -> list[float]:
            for one, state in zip(generators, states, strict=True):  # also where memory ran out before
                one.set_state(state)
            return self.pipe.log_likelihood(
                input_ids=[row.ids for row in rows],
                mask=[row.mask for row in rows],
                guidance_scale=self._call["guidance_scale"],
                batch_size=size,
                generator=generators,
                **self._likelihood,
            ).log_likelihoods.tolist()

        return self.room.run(score)

    def _are_written(self, rows: list[Row], generators: list[torch.Generator]) -> list[bool]:
        """Whether the pipeline fills in each continuation as it is, at temperature 0."""
        found = []
        for row, generator in zip(rows, generators, strict=True):
            call = self._call | {
                "sampling_temperature": 0,
                "num_inference_steps": self._steps_of(row.own.stop - row.own.start, {}),
            }
            (sequence,) = self.pipe(
                input_ids=row.ids[None], mask=row.mask[None], output_type="ids", generator=[generator], **call
            ).sequences
            found.append(torch.equal(sequence.cpu(), row.ids))
        return found

    # --- answers ------------------------------------------------------------------------------------------------------

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """What the pipeline writes behind each context, up to a stop sequence or an end of text."""
        tasks = [settings_of_task(request.args[1], self.max_new_tokens) for request in requests]
        rows = [
            self.texts.context(request.args[0], length)
            for request, (_, length, _, _) in zip(requests, tasks, strict=True)
        ]

        def answer(some: list[int], generators: list[torch.Generator]) -> list[str]:
            _, length, temperature, rest = tasks[some[0]]
            sequences = self._write([rows[k] for k in some], length, temperature, rest, generators)
            return [self.texts.written(ids, rows[k], tasks[k][0]) for k, ids in zip(some, sequences, strict=True)]

        kinds = [json.dumps(task[1:], sort_keys=True, default=str) for task in tasks]
        lengths = [len(row.ids) for row in rows]
        with self._cached():
            return self._answered("generate_until", requests, lengths, answer, disable_tqdm, kinds)

    def _write(
        self,
        rows: list[Row],
        length: int,
        temperature: float,
        rest: dict[str, Any],
        generators: list[torch.Generator],
    ) -> list[torch.Tensor]:
        ignored = sorted(rest.keys() - set(_OF_CALL))
        if ignored:
            log.warning("of the task's settings, %s mean nothing to a masked diffusion model", ", ".join(ignored))
        own = {name: rest[name] for name in _OF_CALL if name in rest}
        if self._sampling_temperature is not None:
            temperature = self._sampling_temperature
        call = self._call | {"sampling_temperature": temperature} | own
        call["num_inference_steps"] = self._steps_of(length, own)
        states = [one.get_state() for one in generators]

        def write(size: int) -> list[torch.Tensor]:
            for one, state in zip(generators, states, strict=True):
                one.set_state(state)
            found = []
            for start in range(0, len(rows), size):
                part = slice(start, start + size)
                ids = [row.ids for row in rows[part]]
                given = {"max_new_tokens": length, "stop_at_eos": self.texts.ends, "generator": generators[part]}
                found += self.pipe(input_ids=ids, output_type="ids", **given, **call).sequences
            return found

        return self.room.run(write)

    def _steps_of(self, length: int, own: dict[str, Any]) -> int:
        """Passes for a block: those asked for, or one for each of its tokens."""
        steps = own.get("num_inference_steps", self._steps)
        if steps is not None:
            return int(steps)
        rule = self.pipe.denoiser.rule
        block = own.get("block_length", self._call["block_length"]) or (rule.block_size if rule else length)
        return min(int(block), length)

    @contextmanager
    def _cached(self) -> Iterator[None]:
        """Answers may be written with a cache that likelihoods, which are exact, refuse."""
        if self._cache is None:
            yield
            return
        self.pipe.enable_cache(self._cache)
        try:
            yield
        finally:
            self.pipe.disable_cache()

    # --- all kinds of requests ----------------------------------------------------------------------------------------

    def _answered(
        self,
        kind: str,
        requests: Sequence[Any],
        lengths: Sequence[int],
        answer: Callable[[list[int], list[torch.Generator]], list[Any]],
        disable_tqdm: bool,
        groups: Sequence[str] | None = None,
    ) -> list[Any]:
        """The answers to requests in their order; those of like length together, the longest first.

        Each batch of answers goes to the harness's cache (`--use_cache`), from which an interrupted run goes on.
        """
        generators = self._generators(kind, requests)
        groups = [""] * len(requests) if groups is None else groups
        order = sorted(range(len(requests)), key=lambda k: (groups[k], -lengths[k], k))
        answers: list[Any] = [None] * len(requests)
        with tqdm(total=len(requests), disable=disable_tqdm or self.rank != 0, desc=f"{kind} requests") as bar:
            while order:
                size = self.room.rows if kind == "generate_until" else _TOGETHER
                some = [k for k in order[:size] if groups[k] == groups[order[0]]]
                order = order[len(some) :]
                for k, found in zip(some, answer(some, [generators[k] for k in some]), strict=True):
                    answers[k] = found
                    self.cache_hook.add_partial(kind, requests[k].args, found)
                bar.update(len(some))
        return answers

    def _generators(self, kind: str, requests: Sequence[Any]) -> list[torch.Generator]:
        """One for each request; of one that is asked several times, another each time."""
        seen, found = Counter[str](), []
        for request in requests:
            words = json.dumps([self.seed, kind, *request.args], sort_keys=True, default=str)
            digest = hashlib.sha256(f"{words}/{seen[words]}".encode()).digest()
            seen[words] += 1
            found.append(torch.Generator().manual_seed(int.from_bytes(digest[:7], "big")))
        return found

    # --- what else the harness asks -----------------------------------------------------------------------------------

    @property
    def tokenizer_name(self) -> str:
        """By which the harness knows its stored requests."""
        return str(self.pipe.tokenizer.name_or_path).replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The tokenizer's, which the harness writes into its results."""
        self.texts.is_chat = bool(chat_template)
        found = self.pipe.tokenizer.chat_template
        return found.get(chat_template) if isinstance(found, dict) else found

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A chat as text, special tokens included, up to where the answer begins."""
        self.texts.is_chat = True
        if self.pipe.tokenizer.chat_template is None:
            raise ValueError(
                "--apply_chat_template needs a tokenizer with a `chat_template`, got one without. Leave it out."
            )
        ends = {"add_generation_prompt": add_generation_prompt, "continue_final_message": not add_generation_prompt}
        return str(self.pipe.tokenizer.apply_chat_template(chat_history, tokenize=False, **ends))

    def get_model_info(self) -> dict[str, Any]:
        """What the harness keeps beside the scores: all that decides them."""
        return {
            "model_num_parameters": sum(weight.numel() for weight in self.pipe.transformer.parameters()),
            "model_dtype": str(self.pipe.transformer.dtype),
            "scheduler": type(self.pipe.scheduler).__name__,
            "scheduler_config": {
                name: value for name, value in self.pipe.scheduler.config.items() if not name.startswith("_")
            },
            "estimator": repr(self.estimator),
        }

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """From all processes."""
        return gather(tensor)

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
        """From all processes, on the process `dst`; None on the others."""
        if self._world_size == 1:
            return [obj]
        found: list[Any] | None = [None] * self._world_size if self._rank == dst else None
        torch.distributed.gather_object(obj, found, dst=dst)
        return found

    def barrier(self) -> None:
        """Wait for all processes."""
        self._state.wait_for_everyone()


def _open(name: str, dtype: str, more: dict[str, Any]) -> MaskedDiffusionTextPipeline:
    if dtype != "auto" and not isinstance(getattr(torch, str(dtype), None), torch.dtype):
        raise ValueError(f'`dtype` must be "auto" or a type of torch, got {dtype!r}. Pass bfloat16, say.')
    kind = None if dtype == "auto" else getattr(torch, dtype)
    given = {key: value for key, value in more.items() if key != "trust_remote_code"}  # no code of a repository is run
    if unknown := sorted(given.keys() - set(_OF_LOADING)):
        arguments = [*inspect.signature(HarnessModel).parameters, *_OF_LOADING]
        raise ValueError(
            f"`model_args` must be arguments of HarnessModel, {_OF_SCHEDULER}KEY=VALUE, or {', '.join(_OF_LOADING)}, "
            f"got {unknown[0]!r}. {did_you_mean(unknown[0], arguments) or 'Leave it out.'}"
        )
    require_hub(name)
    found = Repository.from_pretrained(name, dtype=kind, trust_remote_code=False, **given)
    return found.open(MDLMPipeline, MaskedDiffusionTextPipeline)


def _child(generator: torch.Generator) -> torch.Generator:
    return torch.Generator().manual_seed(int(torch.randint(2**62, (1,), generator=generator)))
