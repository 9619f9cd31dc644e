"""Tokenizers and chat templates: conversations to token ids and back.

``transformers`` renders and tokenises with the checkpoint's own template, so ids equal those of every other tool that reads
the folder. It is imported when first needed, because the import is slow. Torch is not required.
"""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from cycleqd_jax.models.folder import read_json, tokenizer_files
from cycleqd_jax.models.tokenizer_files import (
    is_token,
    open_tokenizer,
    pad_below,
    read_stop_tokens,
    set_parts,
    shortened,
    stop_ids_of,
    transformers,
)
from cycleqd_jax.models.tool_templates import (
    MessageKey,
    ToolSupport,
    conversation_for_template,
    message_key,
    messages_of,
    tool_support,
)
from cycleqd_jax.types import InputError, Message

__all__ = [
    "LLAMA3_TEMPLATE",
    "ChatTokenizer",
    "train_tiny_tokenizer",
]

LLAMA3_TEMPLATE = (
    "{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + "
    "message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}"
    "{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
"""Llama 3's chat template."""

_SPECIAL = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")

# Llama 3's pattern with two changes for small models, which should see one spelling of each word: every digit is a token, and
# a word includes a leading space but no other sign, so that a name has the same tokens after a quote or a bracket.
_PATTERN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)(?!\p{L})| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

_CACHED_PROMPTS = 8192


class ChatTokenizer:
    """A tokenizer with a chat template.

    Args:
        tokenizer: a ``transformers`` tokenizer that has a chat template.
        stop_ids: tokens that end a reply.
        pad_id: the token for padding.
        folder: the folder it was read from, if any.

    Attributes:
        stop_ids: tokens that end a reply, ascending.
        pad_id: the token for padding.
    """

    def __init__(self, tokenizer: Any, stop_ids: Iterable[int], pad_id: int, folder: Path | None = None) -> None:
        self._tokenizer = tokenizer
        self._folder = folder
        self.stop_ids: tuple[int, ...] = tuple(sorted(set(stop_ids)))
        self.pad_id = pad_id
        # The first prompts of all episodes are encoded again for every individual.
        self._encode_cached = functools.lru_cache(_CACHED_PROMPTS)(self._encode)

    @classmethod
    def load(cls, folder: str | Path) -> ChatTokenizer:
        """Reads the tokenizer files of a Hugging Face folder.

        The stop tokens are those of :func:`~cycleqd_jax.models.tokenizer_files.read_stop_tokens`.

        Raises:
            InputError: there is no tokenizer, no chat template or no stop token; ``generation_config.json`` is corrupt or
                names a token that does not exist; or see :meth:`check_template`.
        """
        folder = Path(folder)
        if not (folder / "tokenizer_config.json").is_file():
            raise InputError(
                f"expected a Hugging Face tokenizer with tokenizer_config.json in {folder}, got no such file; copy the model's "
                "tokenizer files there"
            )
        tokenizer = open_tokenizer(folder)
        if not tokenizer.chat_template:
            raise InputError(
                f"expected a chat template with the tokenizer in {folder}, got none; use an instruct checkpoint or add "
                "chat_template.jinja"
            )
        if isinstance(tokenizer.chat_template, dict) and "default" not in tokenizer.chat_template:
            raise InputError(
                f"expected a default chat template with the tokenizer in {folder}, got templates named "
                f"{', '.join(sorted(tokenizer.chat_template))}; name one of them default, or add chat_template.jinja"
            )
        path = folder / "generation_config.json"
        generation = read_json(path) if path.is_file() else {}
        eos, source = read_stop_tokens(folder, tokenizer)
        if eos is None:
            raise InputError(
                f"expected eos_token_id in {path} or config.json, or an eos_token in tokenizer_config.json, got none; name the "
                "token that ends a reply"
            )
        stop_ids = stop_ids_of(eos, tokenizer, str(source))
        pads = (tokenizer.pad_token_id, generation.get("pad_token_id"), stop_ids[0])
        pad = next(pad for pad in pads if pad is not None)
        if not is_token(tokenizer, pad):
            raise InputError(
                f"expected the id of a token as pad_token_id in {path}, got {shortened(json.dumps(pad))} where the tokenizer "
                f"has {len(tokenizer)} tokens; correct or remove it"
            )
        found = cls(tokenizer, stop_ids, pad, folder)
        found.check_template(str(folder))
        return found

    def pad_below(self, rows: int) -> int:
        """The pad token; see :func:`~cycleqd_jax.models.tokenizer_files.pad_below`."""
        return pad_below(self.pad_id, self.stop_ids, rows)

    def check_template(self, where: str) -> None:
        """Checks that the chat template renders the message of a user.

        Args:
            where: the folder or file, for messages.

        Raises:
            InputError: it raises an error, or renders nothing.
        """
        try:
            ids = self.encode([{"role": "user", "content": "hello"}], remember=False)
        except InputError as error:
            cause = error.__cause__ or error
            raise InputError(
                f"expected a chat template that renders a user's message, got {type(cause).__name__}: {shortened(str(cause))} "
                f"in {where}; correct the template"
            ) from error
        if not ids:
            raise InputError(f"expected a chat template that renders a user's message, got no tokens in {where}; correct it")

    def save(self, folder: str | Path) -> None:
        """Writes the tokenizer files, the chat template and ``generation_config.json`` to a folder, which may not exist yet.

        Files it was read from are copied byte for byte; a ``generation_config.json`` without stop tokens gets them.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if self._folder is not None:
            for name in tokenizer_files(self._folder):
                (folder / name).parent.mkdir(exist_ok=True)
                shutil.copyfile(self._folder / name, folder / name)
            path = folder / "generation_config.json"
            if path.exists():
                settings = read_json(path)
                if settings.get("eos_token_id") is None:
                    settings["eos_token_id"] = list(self.stop_ids)
                    path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
                return
        else:
            self._tokenizer.save_pretrained(folder)
            path = folder / "tokenizer_config.json"
            settings = json.loads(path.read_text(encoding="utf-8"))
            if settings.get("tokenizer_class") == "TokenizersBackend":  # of transformers 5, unknown to 4
                settings["tokenizer_class"] = "PreTrainedTokenizerFast"
                path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        generation = {
            "bos_token_id": self.bos_id,
            "do_sample": False,
            "eos_token_id": list(self.stop_ids),
            "pad_token_id": self.pad_id,
        }
        (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n", encoding="utf-8")

    @property
    def vocab_size(self) -> int:
        """The number of ids, special tokens included; a model's ``vocab_size`` must be at least this."""
        return len(self._tokenizer)

    def token(self, i: int) -> str:
        """The token of an id, as in the vocabulary."""
        return self._tokenizer.convert_ids_to_tokens(i)

    @property
    def transformers_tokenizer(self) -> Any:
        """The tokenizer of ``transformers``."""
        return self._tokenizer

    @property
    def chat_template(self) -> str | None:
        """The Jinja template; of several, the one named default."""
        template = self._tokenizer.chat_template
        return template["default"] if isinstance(template, dict) else template

    @property
    def bos_id(self) -> int | None:
        """The id of the bos token, if there is one."""
        return self._tokenizer.bos_token_id

    def encode(self, messages: Sequence[Message], add_generation_prompt: bool = True, *, remember: bool = True) -> list[int]:
        """The token ids of a conversation, as the template renders it.

        Args:
            messages: the conversation, which may offer tools; see :attr:`tool_support`.
            add_generation_prompt: append the header of the assistant's next message.
            remember: keep the ids for the next call with this conversation.

        Raises:
            InputError: the template raises an error for the conversation.
        """
        encode = self._encode_cached if remember else self._encode
        return list(encode(tuple(map(message_key, messages)), add_generation_prompt))

    def encode_text(self, text: str) -> list[int]:
        """The token ids of a plain text, with the tokens that the tokenizer puts before every text; no template is used."""
        return list(self._tokenizer(text)["input_ids"])

    def encode_for_training(self, messages: Sequence[Message]) -> tuple[list[int], list[bool]]:
        """The token ids of a conversation, and a mask of the tokens to learn.

        The tokens before a learned one are exactly the prompt that :meth:`encode` gives when the model generates it.

        Args:
            messages: a conversation with one or more assistant messages.

        Returns:
            The ids, and a mask of the same length: true for the tokens of every assistant message and for the stop token that
            ends it.

        Raises:
            InputError: the template does not render a conversation as a continuation of its beginning, or does not end an
                assistant message with a stop token, or there is no assistant message.
        """
        ids = self.encode(messages, add_generation_prompt=False)
        mask = [False] * len(ids)
        for i, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            prompt = self.encode(messages[:i])
            end = len(prompt)
            while end < len(ids) and ids[end] not in self.stop_ids:
                end += 1
            if ids[: len(prompt)] != prompt or end == len(ids):
                raise InputError(
                    "expected a chat template that continues a conversation without rewriting it and ends every reply with a "
                    f"stop token {list(self.stop_ids)}, got a different rendering of message {i}; use a plain chat template "
                    "for training"
                )
            mask[len(prompt) : end + 1] = [True] * (end + 1 - len(prompt))
        if not any(mask):
            raise InputError("expected an assistant message in each training conversation, got none; drop the conversation")
        return ids, mask

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, without special tokens."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)

    @functools.cached_property
    def tool_support(self) -> ToolSupport:
        """What the chat template can render of conversations with tools."""
        render = functools.partial(self._tokenizer.apply_chat_template, tokenize=False, add_generation_prompt=True)
        return tool_support(lambda messages, tools: render(list(messages), tools=None if tools is None else list(tools)))

    def _encode(self, messages: tuple[MessageKey, ...], add_generation_prompt: bool) -> tuple[int, ...]:
        conversation, options = messages_of(messages), {}
        if any(len(message) > 2 for message in messages):
            conversation, options["tools"] = conversation_for_template(conversation, self.tool_support)
        try:
            ids = self._tokenizer.apply_chat_template(
                conversation, add_generation_prompt=add_generation_prompt, tokenize=True, return_dict=False, **options
            )
        except Exception as error:  # a template is a program that may raise anything
            roles = ", ".join(role for role, *_ in messages)
            raise InputError(
                f"expected a conversation that the chat template accepts, got messages of {roles}: "
                f"{type(error).__name__}: {shortened(str(error))}; change the conversation or the template"
            ) from error
        return tuple(ids)


def train_tiny_tokenizer(texts: Iterable[str], vocab_size: int) -> ChatTokenizer:
    """Trains a byte-level BPE with Llama 3's special tokens and chat template; the same texts give the same tokenizer.

    Every digit is a token, and a word includes a leading space but no other sign, so that a model of a few million parameters
    sees one spelling of each word.

    Args:
        texts: contents of messages.
        vocab_size: the most tokens; at least 256 bytes and five special tokens. Short texts give fewer.

    Returns:
        The tokenizer. ``<|eot_id|>`` and ``<|end_of_text|>`` end a reply; ``<|end_of_text|>`` is also the padding.

    Raises:
        InputError: ``vocab_size`` is too small.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if vocab_size < len(alphabet) + len(_SPECIAL):
        raise InputError(
            f"expected a vocabulary of at least {len(alphabet) + len(_SPECIAL)} (every byte and the special tokens), got "
            f"{vocab_size}; choose a larger one"
        )
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(_PATTERN), "isolated")
    pieces = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    set_parts(tokenizer, pre_tokenizer=pieces, decoder=decoders.ByteLevel())
    # Role names occur in every prompt but in no message.
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=list(_SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([*texts, *["system", "user", "assistant", "\n\n"] * 100], trainer)
    bos = _SPECIAL[0]
    bos_first = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )
    set_parts(tokenizer, post_processor=bos_first)
    wrapped = transformers().PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=bos,
        eos_token="<|eot_id|>",
        pad_token="<|end_of_text|>",
        clean_up_tokenization_spaces=False,
        chat_template=LLAMA3_TEMPLATE,
    )
    end_of_text, end_of_turn = (_SPECIAL.index(token) for token in ("<|end_of_text|>", "<|eot_id|>"))
    return ChatTokenizer(wrapped, [end_of_turn, end_of_text], pad_id=end_of_text)
