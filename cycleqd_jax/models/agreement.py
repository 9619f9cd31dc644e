"""Compares tokenizers and chat templates as they are used: the ids and the text of a probe, and rendered conversations.

Two files may differ and mean the same: transformers writes a tokenizer in another way than it was published, and a template may
lie in several places. What counts are the ids of a text, the text of ids, and the prompt of a conversation.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from cycleqd_jax.models.tokenizer_files import open_tokenizer, read_stop_tokens
from cycleqd_jax.models.tool_templates import PROBE_TOOL, probe_calls
from cycleqd_jax.types import InputError

__all__ = ["Difference", "UsedTokenizer", "differences"]

_TEXTS = (
    "The quick brown fox didn't jump over 12 lazy dogs, and they'll say it's 3.14159!",
    "  Leading and trailing   spaces\tand tabs \n\n and lines\r\nof both kinds \n",
    'def add(a: int, b: int = 0) -> int:\n    """Sum of a and b."""\n\treturn a+b  # 1_000 != 0x3F\n',
    "SELECT COUNT(*), name FROM `t` WHERE x >= 10 AND y LIKE '%ab_c%' ORDER BY id DESC;",
    "find / -name '*.log' -exec grep -c \"error\" {} \\; | awk '{s+=$1} END {print s}'",
    "Größe, naïve café, cafe\u0301, ﬁn, Ǆ, İstanbul, ÅÅ and \u212b; “quotes” – dashes … ½ ²",
    "日本語のテキスト、中文文本，한국어 문장. Привет, мир! مرحبا بالعالم, שלום עולם, नमस्ते दुनिया",
    "🙂👩‍💻🏳️‍🌈 \u00a0\u200b\u3000\ufeff x\u0000y \u0007",
    '{"key": ["value", null, true, -1.5e-10]}</tool_call> <think>\nHmm…\n</think>\n\nAnswer: 42',
    "https://example.org/a?b=c&d=%20#e user@example.com C:\\Users\\x ~/.bashrc $HOME",
    "a  b   c    d     e      f       g        \n\n\n\n\n    indented\n        twice",
    "iPhone HTMLParser snake_case kebab-case SCREAMING 1st 2nd 1234567890 ١٢٣",
)
"""Text of many kinds; every part of a tokenizer changes the ids of some of it."""

_SYSTEM = {"role": "system", "content": "You answer in SQL.\n"}
_USER = {"role": "user", "content": "  How old is 'Bob'?\n\nTable: people (name, age)\n"}
_ASSISTANT = {"role": "assistant", "content": "<think>\nOne row.\n</think>\n\nSELECT age FROM people;"}
_LAST = {"role": "user", "content": "[(41,)]"}
_CONVERSATIONS = ([_USER], [_SYSTEM, _USER], [_USER, _ASSISTANT, _LAST], [_SYSTEM, _USER, _ASSISTANT, _LAST, _ASSISTANT])

_GENERATION, _TOKENIZER = "generation_config.json", "tokenizer_config.json"

Kind = Literal["swapped", "missing", "renamed", "ids", "text", "template", "stops"]


class Difference(NamedTuple):
    """One difference between two tokenizers in use.

    Attributes:
        kind: ``swapped`` if a token has two ids, ``missing`` if one lacks a token, ``renamed`` if an id has two tokens, ``ids``
            or ``text`` if texts are encoded or ids are decoded differently, ``template``, or ``stops``.
        what: what was compared, in words.
        here: its value for the first, in words.
        there: its value for the second, in words.
    """

    kind: Kind
    what: str
    here: str
    there: str


@dataclasses.dataclass(frozen=True)
class UsedTokenizer:
    """A tokenizer in use.

    Attributes:
        tokenizer: a ``transformers`` tokenizer.
        stop_ids: the tokens that end a reply; None if they are not known.
        source: the name of the file that names them.
    """

    tokenizer: Any
    stop_ids: frozenset[Any] | None
    source: str = ""

    @classmethod
    def open(cls, folder: Path) -> UsedTokenizer:
        """Opens the tokenizer of a folder; one of a class that is not known is taken from its ``tokenizer.json``.

        Raises:
            InputError: transformers can't read it.
        """
        try:
            tokenizer = open_tokenizer(folder)
        except InputError:
            if not (folder / "tokenizer.json").is_file():
                raise
            tokenizer = open_tokenizer(folder, plain=True)
        stop_ids, path = read_stop_tokens(folder, tokenizer)
        as_list = stop_ids if isinstance(stop_ids, list) else [stop_ids]
        known = frozenset(i for i in as_list if isinstance(i, int))
        return cls(tokenizer, known or None, path.name)

    @functools.cached_property
    def vocabulary(self) -> Mapping[str, int]:
        """The id of every token, added ones included."""
        return self.tokenizer.get_vocab()

    def rendered(self, tools: bool = False) -> Iterator[str | None]:
        """A few conversations as the template in use renders them; None if it refuses one, or there is no template.

        Args:
            tools: render conversations with tools after those without.
        """
        probes: list[tuple[Any, dict[str, Any]]] = [(conversation, {}) for conversation in _CONVERSATIONS]
        if tools:
            probes += [(conversation, {"tools": [PROBE_TOOL]}) for conversation in (*_CONVERSATIONS, probe_calls(1))]
        for conversation, options in probes:
            for prompt in (True, False):
                try:
                    yield self.tokenizer.apply_chat_template(
                        conversation, tokenize=False, add_generation_prompt=prompt, **options
                    )
                except Exception:  # a template is a program that may raise anything
                    yield None

    def parts(self) -> Any:
        """What determines ids and text, in one spelling; None if it is not known."""
        try:
            content = _without_offsets(json.loads(self.tokenizer.backend_tokenizer.to_str()))
            model = {key: value for key, value in content["model"].items() if value}
            added = sorted(json.dumps(token, sort_keys=True) for token in content["added_tokens"])
            return [model, added, *(content[name] for name in ("normalizer", "pre_tokenizer", "decoder"))]
        except (AttributeError, KeyError, ValueError):
            return None

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of texts, without special tokens of the post-processor, as chats are encoded."""
        return self.tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []

    def decode(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """The text of ids, without special tokens, as replies are decoded."""
        decode = getattr(self.tokenizer, "backend_tokenizer", None)
        if decode is not None:
            return decode.decode_batch([list(row) for row in ids], skip_special_tokens=True)
        return [self.tokenizer.decode(list(row), skip_special_tokens=True) for row in ids]


def differences(
    ours: UsedTokenizer,
    theirs: UsedTokenizer,
    *,
    vocab_size: int | None = None,
    template: bool = True,
    tools: bool = False,
) -> Iterator[Difference]:
    """The differences between two tokenizers in use, those of the vocabulary first; of every kind at most one.

    Args:
        ours: the first.
        theirs: the second.
        vocab_size: ids from this one on are not compared; None compares all.
        template: compare rendered conversations and stop tokens too.
        tools: also compare rendered conversations with tools.
    """
    if ours.tokenizer is not theirs.tokenizer:
        known, found = ours.vocabulary, theirs.vocabulary
        yield from _vocabulary(known, found, vocab_size)
        here, there = ours.parts(), theirs.parts()
        if here is None or here != there:
            shared = {
                token: i for token, i in known.items() if found.get(token) == i and (vocab_size is None or i < vocab_size)
            }
            yield from _probe(ours, theirs, shared)
    if template:
        yield from _template(ours, theirs, tools)
        yield from _stops(ours, theirs)


def _vocabulary(known: Mapping[str, int], found: Mapping[str, int], vocab_size: int | None) -> Iterator[Difference]:
    names = ({i: token for token, i in known.items()}, {i: token for token, i in found.items()})
    first: dict[Kind, Difference] = {}
    for token in sorted(known.keys() | found.keys()):
        here, there = known.get(token), found.get(token)
        if here == there or not any(i is not None and (vocab_size is None or i < vocab_size) for i in (here, there)):
            continue
        shown = ["none" if i is None else f"id {i}" for i in (here, there)]
        kind: Kind = "swapped"
        if here is None or there is None:
            i = there if here is None else here
            assert i is not None
            other = names[here is not None].get(i)
            kind = "missing" if other is None else "renamed"
            if other is not None:
                shown[here is not None] = f"id {i} for {other!r}"
        first.setdefault(kind, Difference(kind, f"for the token {token!r}", shown[0], shown[1]))
    yield from (first[kind] for kind in ("swapped", "renamed", "missing") if kind in first)


def _probe(ours: UsedTokenizer, theirs: UsedTokenizer, shared: Mapping[str, int]) -> Iterator[Difference]:
    """Compares ids and text: of the texts, of every shared token alone, and of shared added tokens inside of text."""
    singles = [[i] for i in shared.values()]
    texts = ours.decode(singles)
    for ids, here, there in zip(singles, texts, theirs.decode(singles), strict=True):
        if here != there:
            yield Difference("text", f"as the text of the ids {ids}", repr(here), repr(there))
            return
    added = [token for token in _added(ours) | _added(theirs) if token in shared]
    around = ("{0}", " {0} ", "x{0}y", "\n{0}\n{0}", "{0}  the {0}.")
    probe = [*_TEXTS, *(pattern.format(token) for token in sorted(added) for pattern in around)]
    probe += [text for text in texts if text and "\ufffd" not in text]
    alone = (known.vocabulary.keys() - shared.keys() for known in (ours, theirs))
    unshared = [token for tokens in alone for token in tokens]
    encoded = ours.encode(probe), theirs.encode(probe)
    for text, here, there in zip(probe, *encoded, strict=True):
        if here != there and not any(token in text for token in unshared):
            start = _first_difference(here, there)
            shown = [f"{ids[max(0, start - 1) : start + 5]}" for ids in (here, there)]
            yield Difference("ids", f"as ids in the text {text[:80]!r}", shown[0], shown[1])
            return
    for ids, here, there in zip(encoded[0], ours.decode(encoded[0]), theirs.decode(encoded[0]), strict=True):
        if here != there:
            shown = _difference(here, there)
            yield Difference("text", f"as the text of the ids {ids[:8]}", shown[0], shown[1])
            return


def _without_offsets(part: Any) -> Any:
    """A part of a tokenizer's JSON without the option that changes the offsets of tokens alone."""
    if isinstance(part, dict):
        large = ("vocab", "merges")  # nothing to leave out there
        return {k: v if k in large else _without_offsets(v) for k, v in part.items() if k != "trim_offsets"}
    return [_without_offsets(item) for item in part] if isinstance(part, list) else part


def _added(used: UsedTokenizer) -> set[str]:
    return {str(token) for token in used.tokenizer.get_added_vocab()}


def _template(ours: UsedTokenizer, theirs: UsedTokenizer, tools: bool) -> Iterator[Difference]:
    templates = [_default(used.tokenizer.chat_template) for used in (ours, theirs)]
    if any(template is None for template in templates):
        here, there = ("none" if template is None else repr(str(template)[:60]) for template in templates)
        if templates[0] != templates[1]:
            yield Difference("template", "chat template", here, there)
        return
    for here, there in zip(ours.rendered(tools), theirs.rendered(tools), strict=True):
        if here != there:
            shown = ["an error for a conversation" if text is None else repr(text[:60]) for text in (here, there)]
            if here is not None and there is not None:
                shown = list(_difference(here, there))
            yield Difference("template", "chat template", shown[0], shown[1])
            return


def _default(template: Any) -> str | None:
    """The template in use: of several with names, the default one."""
    return template.get("default") if isinstance(template, dict) else template


def _stops(ours: UsedTokenizer, theirs: UsedTokenizer) -> Iterator[Difference]:
    """Stop tokens of a ``generation_config.json`` must be equal to ours if ours are from there, else among ours.

    Those of a ``config.json``, which are often older, must be among ours if ours are from a config. Those of a tokenizer alone
    count for nothing.
    """
    here, there = ours.stop_ids, theirs.stop_ids
    if here is None or there is None or theirs.source == _TOKENIZER:
        return
    if ours.source == _TOKENIZER and theirs.source != _GENERATION:
        return
    equal = ours.source == theirs.source == _GENERATION
    if here != there if equal else not there <= here:
        yield Difference("stops", "stop tokens", str(sorted(here)), str(sorted(there)))


def _first_difference(a: Sequence[Any], b: Sequence[Any]) -> int:
    """The first place where two sequences differ; the length of the shorter one if it begins the other."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _difference(ours: str, theirs: str) -> tuple[str, str]:
    """Short quotations from two texts around their first difference."""
    start = _first_difference(ours, theirs)
    return repr(ours[max(0, start - 20) : start + 40]), repr(theirs[max(0, start - 20) : start + 40])
