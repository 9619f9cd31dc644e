"""The methods of the class that lm-eval registers; lm-eval itself is not imported."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from cycleqd_jax.engine import TextScorer
from cycleqd_jax.lm_eval import loading as ours
from cycleqd_jax.types import InputError

__all__ = ["HarnessModel"]


_LOG = logging.getLogger(__name__)

_NEW_TOKENS = 256
"""The most new tokens, where neither the arguments nor a task say, as in lm-eval."""


class HarnessModel:
    """The model ``cycleqd``: lm-eval's requests, computed by the engine. Its numbers are those of lm-eval's model ``hf``.

    The registered class has lm-eval's ``TemplateLM`` as its second base.

    Args:
        pretrained: a Hugging Face folder, a ``.gguf`` file, or a repository of the hub.
        run: instead, the folder of a run.
        child: the id of an individual of the run; by default the model of ``export.method``.
        dtype: the dtype of the weights; by default that of the model.
        batch_size: contexts that are computed at the same time; ``auto`` is 16.
        max_length: the most tokens of a text; by default the model's positions.
        max_gen_toks: the most new tokens, where a task does not say.
        add_bos_token: whether special tokens are added to texts; by default the tokenizer's choice.
        prefix_token_id: the token before a text without context; by default bos, or else eos.
        max_batch_size: ignored; lm-eval passes it on.
        device: ignored; JAX chooses the device (``JAX_PLATFORMS``).
        **others: refused.

    Raises:
        InputError: an argument is unknown or has a wrong value, or the model can't be read.
    """

    cache_hook: Any  # of lm-eval

    def __init__(
        self,
        pretrained: str | None = None,
        *,
        run: str | None = None,
        child: object = None,
        dtype: str | None = None,
        batch_size: int | str | None = None,
        max_length: object = None,
        max_gen_toks: object = _NEW_TOKENS,
        add_bos_token: object = None,
        prefix_token_id: object = None,
        max_batch_size: int | None = None,
        device: str | None = None,
        **others: Any,
    ) -> None:
        super().__init__()
        ours.check_arguments(ours.parameters_of(HarnessModel.__init__), others)
        slots = _slots(batch_size)
        individual, longest = _number("child", child), _number("max_length", max_length)
        new_tokens, prefix = _number("max_gen_toks", max_gen_toks), _number("prefix_token_id", prefix_token_id)
        if add_bos_token not in (None, True, False):
            raise InputError(f"expected True or False as add_bos_token, got {add_bos_token!r} in --model_args; correct it")
        special = None if add_bos_token is None else bool(add_bos_token)
        model = ours.load(
            pretrained=None if pretrained is None else str(pretrained),
            run=None if run is None else str(run),
            child=individual,
            dtype=None if dtype in (None, "auto") else dtype,
        )
        if prefix is not None and not 0 <= prefix < model.config.vocab_size:
            raise InputError(
                f"expected a prefix_token_id below {model.config.vocab_size}, got {prefix} in --model_args; correct it"
            )
        self.batch_size = slots or ours.SLOTS
        self.max_gen_toks = _NEW_TOKENS if new_tokens is None else new_tokens
        self.tokenizer = model.tokenizer
        engine = ours.make_engine(model, slots=slots, max_length=longest)
        self._refuses_system = False  # whether it was said that the template does
        self._scorer = TextScorer(engine, model.tokenizer, special=special, prefix=prefix)
        self._name = str(pretrained) if pretrained is not None else f"{run}#{'export' if individual is None else individual}"

    @property
    def eot_token_id(self) -> int | None:
        """The eos token; None if the tokenizer has none."""
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """The token before a text without context."""
        return self._scorer.prefix

    @property
    def max_length(self) -> int:
        """The most tokens of a text."""
        return self._scorer.engine.max_len

    @property
    def tokenizer_name(self) -> str:
        """Names the tokenizer in lm-eval's cache of requests."""
        return (str(self.tokenizer.name_or_path) or Path(self._name).name).replace("/", "__")

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval's results say of the model."""
        config = self._scorer.engine.config
        return {"model_dtype": config.dtype, "model_name": self._name, "max_length": self.max_length}

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """The token ids of a text."""
        return self._scorer.encode(string, special=add_special_tokens)

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        return self._scorer.encode_pair(context, continuation)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        found = self._scorer.engine.score([(context, continuation) for _, context, continuation in requests])
        results = [(one.logprob, one.greedy) for one in found]
        for (texts, *_), result in zip(requests, results, strict=True):
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, result)
        return results

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihoods of whole texts."""
        texts = [request.args[0] for request in requests]
        results = [one.logprob for one in self._scorer.score_rolling(texts)]
        for text, result in zip(texts, results, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), result)
        return results

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Continues texts up to a stop string; requests with the same options together."""
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(repr(sorted(request.args[1].items())), []).append(number)
        results: dict[int, str] = {}
        for numbers in groups.values():
            options = _generation(requests[numbers[0]].args[1], self.max_gen_toks)
            eos = "" if self.eot_token_id is None else self.tokenizer.decode([self.eot_token_id])
            options["stop"] = [*options["stop"], *([eos] if eos and eos not in options["stop"] else [])]
            texts = self._scorer.generate([requests[i].args[0] for i in numbers], options.pop("max_new_tokens"), **options)
            for number, text in zip(numbers, texts, strict=True):
                results[number] = text
                self.cache_hook.add_partial("generate_until", requests[number].args, text)
        return [results[i] for i in range(len(requests))]

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as text, by the tokenizer's template; without system messages if the template refuses them."""
        options = {"add_generation_prompt": add_generation_prompt, "continue_final_message": not add_generation_prompt}
        others = [message for message in chat_history if message["role"] != "system"]
        for messages in (chat_history, others):
            try:
                return self.tokenizer.apply_chat_template(messages, tokenize=False, **options)
            except jinja2.TemplateError as error:
                if messages is others or len(others) == len(chat_history):
                    raise InputError(
                        f"expected a chat template that renders the conversations, got {error}; correct it"
                    ) from error
                if not self._refuses_system:
                    self._refuses_system = True
                    _LOG.warning("the chat template refuses a conversation (%s); system messages are left out", error)
        raise AssertionError


def _number(name: str, value: object) -> int | None:
    """An argument that must be a whole number, or None."""
    if value is None or type(value) is int:
        return value
    raise InputError(f"expected a whole number as {name}, got {value!r} in --model_args; correct it")


def _slots(batch_size: int | str | None) -> int | None:
    if batch_size is None or str(batch_size).startswith("auto"):
        return None
    text = str(batch_size)
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"expected a batch_size of at least 1, or auto, got {batch_size!r}; correct it")
    return int(text)


def _generation(options: Mapping[str, Any], most: int) -> dict[str, Any]:
    """The options of :meth:`TextScorer.generate` for lm-eval's ``gen_kwargs``; without ``do_sample`` replies are greedy."""
    given = {name: value for name, value in options.items() if value is not None}

    def take(name: str, kinds: tuple[type, ...], expected: str, default: Any) -> Any:
        value = given.pop(name, default)
        if type(value) is float and value.is_integer() and kinds == (int,):
            value = int(value)
        if value is not None and (type(value) not in kinds or (float in kinds and not abs(value) < 1e300)):
            raise InputError(f"expected {expected} as {name}, got {value!r} in generation_kwargs; correct it")
        return value

    until = take("until", (str, list, tuple), "a text or a list of texts", [])
    if not all(isinstance(text, str) for text in until):
        raise InputError(f"expected a text or a list of texts as until, got {until!r} in generation_kwargs; correct it")
    names = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
    lengths = [take(name, (int,), "a whole number", None) for name in names]
    limit = next((length for length in lengths if length is not None), most)
    temperature = float(take("temperature", (int, float), "a number", 0.0))
    sample = take("do_sample", (bool,), "true or false", temperature > 0)
    found = {"top_p": float(take("top_p", (int, float), "a number", 1.0)), "seed": take("seed", (int,), "a whole number", 0)}
    if given:
        raise InputError(
            "expected generation options until, max_gen_toks, do_sample, temperature, top_p and seed, got "
            f"{', '.join(map(repr, given))}; remove them from generation_kwargs"
        )
    stop = [until] if isinstance(until, str) else list(until)
    return {"stop": stop, "max_new_tokens": limit, "temperature": temperature if sample else 0.0, **found}
