"""The engine that runs Hugging Face causal and sequence-to-sequence models with transformers, on CPU or GPU.

Prompts are sorted by length and batched by padded tokens; a batch that fails is split until the prompt at fault stands
alone. Sampling uses the Gumbel-max trick (argmax of logits / temperature + Gumbel noise is a draw from the softmax) with a
noise stream per prompt, so a sampled answer does not depend on which prompts share its batch.
"""

from __future__ import annotations

import copy
import hashlib
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import transformers
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from raydistill.errors import TeacherError, first_line
from raydistill.model_source import resolve_model
from raydistill.teachers.engine import Choices, Failure, Generation, Sampling

logger = logging.getLogger("raydistill")
_DEAD_ENGINE = ("CUDA error", "device-side assert", "illegal memory access", "NCCL error")


class ModelTokenizer:
    """The tokenizer of a model with what rendering and generation need."""

    def __init__(self, model: str, revision: str | None = None, trust_remote_code: bool = False) -> None:
        """Load it. Raises TeacherError."""
        try:
            self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(
                resolve_model(model), revision=revision, trust_remote_code=trust_remote_code
            )
        except Exception as error:
            raise load_error(model, revision, error) from error
        if self.tokenizer.pad_token_id is None:
            # Padding is masked, so any token will do.
            self.tokenizer.pad_token = self.tokenizer.eos_token or self.tokenizer.convert_ids_to_tokens(0)
        self.tokenizer.padding_side = "left"

    @property
    def has_chat_template(self) -> bool:
        """Whether the tokenizer comes with a chat template."""
        return bool(getattr(self.tokenizer, "chat_template", None))

    def as_chat(self, message: str) -> str:
        """Return a user message in the chat template with the cue for the answer; only with a chat template."""
        # enable_thinking: templates of reasoning models leave the reasoning out; the others ignore it.
        rendered = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": message}], tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        return str(rendered)

    def count_tokens(self, prompt: str) -> int:
        """Return the length of a prompt in tokens, special tokens included."""
        return len(self.token_ids(prompt))

    def token_ids(self, prompt: str) -> list[int]:
        """Return a prompt's token ids. Special tokens are added unless a chat template wrote them into the prompt."""
        start = self.tokenizer.bos_token
        written = self.has_chat_template and (not start or prompt.startswith(start))
        ids: list[int] = self.tokenizer(prompt, add_special_tokens=not written)["input_ids"]
        return ids


class TransformersEngine:
    """Generates with one model. `stop_at_newline` ends an answer with its first line that has something in it."""

    def __init__(
        self,
        model: str,
        tokenizer: ModelTokenizer,
        revision: str | None = None,
        dtype: str = "auto",
        batch_tokens: int = 8192,
        stop_at_newline: bool = False,
        trust_remote_code: bool = False,
        device: str | None = None,
    ) -> None:
        """Load the model.

        Args:
            model: hub id or folder of a causal or sequence-to-sequence language model.
            dtype: "auto" is bfloat16 on a GPU and float32 on a CPU.
            batch_tokens: bound on padded prompt tokens of a batch, times beams; a longer prompt makes a batch of its own.
            device: None takes the GPU when there is one.

        Raises:
            TeacherError: the model cannot be loaded; names it and what to do.
        """
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.tokenizer = tokenizer
        self.batch_tokens = batch_tokens
        self.stop_at_newline = stop_at_newline
        options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
        try:
            folder = resolve_model(model)
            config = transformers.AutoConfig.from_pretrained(folder, **options)
            self.is_encoder_decoder = bool(config.is_encoder_decoder)
            kind: Any = transformers.AutoModelForSeq2SeqLM if self.is_encoder_decoder else transformers.AutoModelForCausalLM
            loaded = kind.from_pretrained(folder, dtype=_dtype(dtype, self.device), **options)
            self.model: Any = loaded.eval().to(self.device)
        except Exception as error:
            raise load_error(model, revision, error) from error
        own_ends = self.model.generation_config.eos_token_id
        ends = {*(own_ends if isinstance(own_ends, list) else [own_ends]), tokenizer.tokenizer.eos_token_id}
        self._end_ids = sorted(each for each in ends if each is not None)
        self._tables: tuple[torch.Tensor, torch.Tensor] | None = None
        for name in ("temperature", "top_p", "top_k"):
            setattr(self.model.generation_config, name, None)  # sampling is ours; leftovers would only warn

    def generate(self, prompts: Sequence[str], sampling: Sampling) -> list[Generation]:
        """Return one Generation a prompt, in order; temperature > 0 samples with one beam, whatever `num_beams` says.

        A prompt that is empty, too long for the model's positions, or fails alone becomes a failed Generation.
        Raises TeacherError when the GPU context is lost.
        """
        answers: list[Generation | None] = [None] * len(prompts)
        ids = [self.tokenizer.token_ids(prompt) for prompt in prompts]
        for n, prompt_ids in enumerate(ids):
            answers[n] = self._unanswerable(len(prompt_ids), sampling.max_new_tokens)
        waiting = [n for n in range(len(prompts)) if answers[n] is None]
        beams = 1 if sampling.temperature > 0 else sampling.num_beams
        for batch in token_budget_batches([len(ids[n]) for n in waiting], max(1, self.batch_tokens // beams)):
            rows = [waiting[n] for n in batch]
            generations = self._answers([prompts[n] for n in rows], [ids[n] for n in rows], sampling)
            for n, generation in zip(rows, generations, strict=True):
                answers[n] = generation
        return [answer for answer in answers if answer is not None]

    @torch.inference_mode()
    def choose(self, prompts: Sequence[str], options: Sequence[str]) -> Choices:
        """Return the log-probability of every option, a single token each, after every prompt; causal models only.

        A prompt that is empty or too long is an ENGINE_ERROR. Raises TeacherError for an option of several tokens.
        """
        if self.is_encoder_decoder:
            raise TeacherError("choosing needs a causal model, and this one has an encoder; take another model")
        tokens = torch.tensor(option_ids(self.tokenizer, options), device=self.device)
        ids = [self.tokenizer.token_ids(prompt) for prompt in prompts]
        values = np.full((len(prompts), len(options)), np.nan)
        refused = [self._unanswerable(len(each), 0) for each in ids]
        waiting = [n for n in range(len(ids)) if refused[n] is None]
        for batch in token_budget_batches([len(ids[n]) for n in waiting], self.batch_tokens):
            rows = [waiting[n] for n in batch]
            padded = self.tokenizer.tokenizer.pad({"input_ids": [ids[n] for n in rows]}, return_tensors="pt").to(self.device)
            mask = padded["attention_mask"]
            positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
            output = self.model(input_ids=padded["input_ids"], attention_mask=mask, position_ids=positions, logits_to_keep=1)
            values[rows] = output.logits[:, -1].float().log_softmax(dim=-1)[:, tokens].double().cpu().numpy()
        return Choices(values, tuple(one.failure if one else None for one in refused))

    def _unanswerable(self, tokens: int, max_new_tokens: int) -> Generation | None:
        positions = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return unanswerable(tokens, max_new_tokens, positions, shares_positions=not self.is_encoder_decoder)

    def _answers(self, prompts: list[str], ids: list[list[int]], sampling: Sampling) -> list[Generation]:
        """Generate for one batch; on failure for its halves, down to the single prompt that fails."""
        try:
            return self._generate_batch(prompts, ids, sampling)
        except (RuntimeError, ValueError, IndexError) as error:
            if any(sign in str(error) for sign in _DEAD_ENGINE) and not isinstance(error, torch.OutOfMemoryError):
                raise TeacherError(
                    f"the GPU context of the teacher is lost ({first_line(error)}); resubmit to go on"
                ) from error
            message = first_line(error)
            out_of_memory = isinstance(error, torch.OutOfMemoryError)
        # Outside the handler, where the failed batch's tensors are no longer held by the traceback.
        if out_of_memory and self.device.type == "cuda":
            torch.cuda.empty_cache()
        if len(prompts) == 1:
            return [_failed(message)]
        if out_of_memory:
            self.batch_tokens = max(1, self.batch_tokens // 2)
            logger.warning("the teacher ran out of memory; batches hold %d tokens from now on", self.batch_tokens)
        half = len(prompts) // 2
        return self._answers(prompts[:half], ids[:half], sampling) + self._answers(prompts[half:], ids[half:], sampling)

    @torch.inference_mode()
    def _generate_batch(self, prompts: list[str], ids: list[list[int]], sampling: Sampling) -> list[Generation]:
        padded = self.tokenizer.tokenizer.pad({"input_ids": ids}, padding=True, return_tensors="pt").to(self.device)
        start = 1 if self.is_encoder_decoder else padded["input_ids"].shape[1]
        processors, criteria = LogitsProcessorList(), StoppingCriteriaList()
        if sampling.temperature > 0:
            processors.append(_GumbelSampler(prompts, sampling, self.device))
        if self.stop_at_newline:
            criteria.append(_StopAtNewline(*self._line_tables(), start))
        output = self.model.generate(
            input_ids=padded["input_ids"],
            attention_mask=padded["attention_mask"],
            generation_config=self._generation_config(sampling),
            logits_processor=processors,
            stopping_criteria=criteria,
        )
        answers = output[:, start:].cpu()
        return [self._generation(row, len(prompt), sampling) for row, prompt in zip(answers, ids, strict=True)]

    def _generation_config(self, sampling: Sampling) -> Any:
        config = copy.deepcopy(self.model.generation_config)
        config.do_sample = False
        config.max_length = None
        config.num_beams = 1 if sampling.temperature > 0 else sampling.num_beams
        config.max_new_tokens = sampling.max_new_tokens
        config.pad_token_id = self.tokenizer.tokenizer.pad_token_id
        config.eos_token_id = self._end_ids or None
        return config

    def _generation(self, row: torch.Tensor, prompt_tokens: int, sampling: Sampling) -> Generation:
        """Cut a row of new tokens, int64 [L], at its end-of-sequence token and, where asked for, at its line's end."""
        stops = torch.isin(row, torch.tensor(self._end_ids, dtype=row.dtype))
        if self.stop_at_newline:
            stops |= _line_ends(row[None], *(table.cpu() for table in self._line_tables()))[0]
        first = int(stops.int().argmax()) if bool(stops.any()) else None
        kept = row[:first].tolist()
        text = self.tokenizer.tokenizer.decode(kept, skip_special_tokens=True)
        if self.stop_at_newline and first is not None:
            # A token can hold the line break and text before it.
            text = self.tokenizer.tokenizer.decode(row[: first + 1].tolist(), skip_special_tokens=True)
            text = text.lstrip().partition("\n")[0]
        return Generation(text, prompt_tokens, len(kept), "length" if first is None else "stop")

    def _line_tables(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (holds a line break, holds text before any line break) of every token id: bool [V] each."""
        if self._tables is None:
            tokenizer = self.tokenizer.tokenizer
            size = max(len(tokenizer), self.model.get_output_embeddings().weight.shape[0])
            texts = tokenizer.batch_decode([[token] for token in range(len(tokenizer))], skip_special_tokens=True)
            texts += [""] * (size - len(texts))
            breaks = torch.tensor(["\n" in text for text in texts], device=self.device)
            words = torch.tensor([bool(text.partition("\n")[0].strip()) for text in texts], device=self.device)
            self._tables = breaks, words
        return self._tables


class _StopAtNewline(StoppingCriteria):
    """Ends a row with the first line break that follows some text."""

    def __init__(self, breaks: torch.Tensor, words: torch.Tensor, start: int) -> None:
        self._tables, self._start = (breaks, words), start

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        return _line_ends(input_ids[:, self._start :], *self._tables).any(dim=1)


class _GumbelSampler(LogitsProcessor):
    """Turns the argmax into a draw from the softmax at a temperature, restricted to the nucleus of `top_p`."""

    def __init__(self, prompts: Sequence[str], sampling: Sampling, device: torch.device) -> None:
        self._sampling = sampling
        self._noise = [torch.Generator(device).manual_seed(_seed(prompt, sampling.seed)) for prompt in prompts]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = scores.float() / self._sampling.temperature
        if self._sampling.top_p < 1:
            ordered, order = scores.sort(dim=-1, descending=True)
            before = ordered.softmax(dim=-1).cumsum(dim=-1) - ordered.softmax(dim=-1)
            outside = torch.zeros_like(scores, dtype=torch.bool).scatter(1, order, before >= self._sampling.top_p)
            scores = scores.masked_fill(outside, -torch.inf)
        uniform = torch.stack([torch.rand(scores.shape[1], generator=one, device=scores.device) for one in self._noise])
        return scores - (-uniform.clamp(1e-20, 1 - 1e-7).log()).log()


def token_budget_batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Yield batches of indices, longest first, each of padded size max length x rows within the budget, at least one row."""
    batch: list[int] = []
    for n in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        if batch and (len(batch) + 1) * lengths[batch[0]] > budget:
            yield batch
            batch = []
        batch.append(n)
    if batch:
        yield batch


def unanswerable(tokens: int, max_new_tokens: int, positions: int | None, shares_positions: bool) -> Generation | None:
    """Return the failure of a prompt of so many tokens that a model cannot take, or None.

    Args:
        positions: of the model; None: no limit.
        shares_positions: whether the answer takes positions of the prompt's.
    """
    if tokens == 0:
        return _failed("the prompt is empty")
    if positions and tokens + (max_new_tokens if shares_positions else 0) > positions:
        return _failed(
            f"prompt ({tokens} tokens) and answer do not fit the model's {positions} positions; lower max_prompt_tokens"
        )
    return None


def option_ids(tokenizer: ModelTokenizer, options: Sequence[str]) -> list[int]:
    """Return the token id of every option. Raises TeacherError where an option is not a single token."""
    found = []
    for option in options:
        ids = tokenizer.tokenizer(option, add_special_tokens=False)["input_ids"]
        if len(ids) != 1:
            raise TeacherError(
                f"the option {option!r} is {len(ids)} tokens in this model's vocabulary, and must be one; take another word"
            )
        found.append(int(ids[0]))
    return found


def model_positions(model: str, revision: str | None, trust_remote_code: bool) -> tuple[int | None, bool]:
    """Return how many positions a model has (None: no limit) and whether prompt and answer share them (causal models do).

    Reads the model's configuration, not its weights. Raises TeacherError when it cannot be read.
    """
    try:
        config = transformers.AutoConfig.from_pretrained(
            resolve_model(model), revision=revision, trust_remote_code=trust_remote_code
        )
    except Exception as error:
        raise load_error(model, revision, error) from error
    return getattr(config.get_text_config(), "max_position_embeddings", None), not config.is_encoder_decoder


def load_error(model: str, revision: str | None, error: Exception) -> TeacherError:
    """Return the sentence for a model or tokenizer that cannot be loaded."""
    name = model if revision is None else f"{model} at revision {revision}"
    return TeacherError(
        f"teacher model {name} cannot be loaded ({first_line(error)}); check the name, that the folder or the hub can be "
        "reached from every node, and whether the model needs trust_remote_code: true"
    )


def _line_ends(tokens: torch.Tensor, breaks: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
    """Return bool [B, L]: which tokens (int64 [B, L]) hold a line break with text before it in the row."""
    return breaks[tokens] & (words[tokens].cumsum(dim=1) > 0)


def _seed(prompt: str, seed: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}\0{prompt}".encode("utf-8", "surrogatepass")).digest()[:8], "big") >> 1


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def _failed(detail: str) -> Generation:
    return Generation("", 0, 0, "error", Failure.ENGINE_ERROR, detail)
