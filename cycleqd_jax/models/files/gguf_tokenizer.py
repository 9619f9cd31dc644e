"""The tokenizers of GGUF files as ``transformers`` tokenizers.

A file names its way of cutting text (``tokenizer.ggml.pre``) without describing it: the ways that are known here are those of
the published tokenizers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from cycleqd_jax.models.files.gguf_file import Head, read_head
from cycleqd_jax.models.tokenizer import ChatTokenizer
from cycleqd_jax.types import InputError

__all__ = ["gguf_tokenizer"]

_NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED, _BYTE = range(1, 7)
_LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2_PATTERN = _LLAMA3_PATTERN.replace("{1,3}", "")


class _Pre(NamedTuple):
    """How a family cuts text before byte-level BPE, as in its published ``tokenizer.json``.

    Attributes:
        pattern: of the pieces; ``None`` is GPT-2's, with every digit alone.
        ignore_merges: a piece that is a token is taken whole, however the merges would build it.
        add_bos: whether a text begins with the bos token, where the file does not say.
        nfc: whether text is composed first, which llama.cpp leaves out.
        stops: tokens that end a reply besides those that the metadata names.
    """

    pattern: str | None
    ignore_merges: bool = False
    add_bos: bool = False
    nfc: bool = False
    stops: tuple[str, ...] = ()


_LLAMA3 = _Pre(_LLAMA3_PATTERN, ignore_merges=True, add_bos=True, stops=("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"))
_QWEN2 = _Pre(_QWEN2_PATTERN, nfc=True, stops=("<|endoftext|>", "<|im_end|>"))
_PRE = {
    "smollm": _Pre(None),
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2._replace(stops=()),
}


def gguf_tokenizer(path: str | Path) -> ChatTokenizer:
    """The tokenizer of a GGUF file, with its chat template and the tokens that end a reply.

    Ids equal llama.cpp's for that file; only Qwen's composes Unicode (NFC) first, as the published one does.

    Args:
        path: a file whose ``tokenizer.ggml.model`` is ``llama`` (sentencepiece BPE), or ``gpt2`` with the pre-tokenizer smollm,
            llama-bpe or qwen2.

    Raises:
        InputError: the file is broken, its tokenizer is of another kind or incomplete, or it has no chat template or no token
            that ends a reply.
    """
    head = read_head(Path(path))
    tokens = _strings(head, "tokenizer.ggml.tokens")
    types = head.get("tokenizer.ggml.token_type", list, [_NORMAL] * len(tokens))
    if len(types) != len(tokens):
        raise InputError(
            f"expected a type for each of {len(tokens)} tokens under tokenizer.ggml.token_type in {head.path}, got "
            f"{len(types)}: convert the model again"
        )
    model = head.get("tokenizer.ggml.model", str)
    if model == "gpt2":
        pre = _pre(head)
        build: Callable[..., Any] = _byte_level
    elif model == "llama":
        pre = _Pre(None, add_bos=True)
        build = _sentencepiece
    else:
        raise InputError(
            f"expected tokenizer.ggml.model gpt2 or llama in {head.path}, got {model!r}: take the tokenizer from the original "
            "checkpoint"
        )
    template = head.get("tokenizer.chat_template", str, None)
    if not template:
        raise InputError(
            f"expected a chat template under tokenizer.chat_template in {head.path}, got none: use an instruct checkpoint"
        )

    special: dict[str, int] = {}
    for name in ("bos", "eos", "eot", "eom", "unknown", "padding"):
        token = head.get(f"tokenizer.ggml.{name}_token_id", int, None)
        if token is not None and not 0 <= token < len(tokens):
            raise InputError(
                f"expected an id below {len(tokens)} for tokenizer.ggml.{name}_token_id in {head.path}, got {token}: convert "
                "the model again"
            )
        if token is not None:
            special[name] = token
    control = {token: i for i, (token, kind) in enumerate(zip(tokens, types, strict=True)) if kind == _CONTROL}
    stops = {special[name] for name in ("eos", "eot", "eom") if name in special}
    stops |= {control[token] for token in pre.stops if token in control}
    if not stops:
        raise InputError(
            f"expected tokenizer.ggml.eos_token_id in {head.path}, got none: say which token ends a reply when converting"
        )
    try:
        tokenizer = build(head, tokens, types, pre)
    except InputError:
        raise
    except Exception as error:  # tokenizers raises bare Exceptions
        raise InputError(
            f"expected merges of known tokens in {head.path}, got {error}: convert the model again with a current llama.cpp"
        ) from error
    return _wrap(head, tokenizer, tokens, types, special, stops, template, pre.add_bos)


def _pre(head: Head) -> _Pre:
    name = head.get("tokenizer.ggml.pre", str)
    if name not in _PRE:
        raise InputError(
            f"expected one of {', '.join(_PRE)} for tokenizer.ggml.pre in {head.path}, got {name!r}: take the tokenizer from "
            "the original checkpoint"
        )
    return _PRE[name]


def _strings(head: Head, key: str) -> list[str]:
    values = head.get(key, list)
    if not values or not all(isinstance(value, str) for value in values):
        raise InputError(f"expected strings under {key} in {head.path}, got other values: convert the model again")
    return values


def _vocabulary(head: Head, tokens: list[str], types: list[int]) -> dict[str, int]:
    """Token → id, without those that only fill up the embedding matrix."""
    vocabulary: dict[str, int] = {}
    for i, (token, kind) in enumerate(zip(tokens, types, strict=True)):
        if kind == _UNUSED:
            continue
        if token in vocabulary:
            raise InputError(
                f"expected every token once under tokenizer.ggml.tokens in {head.path}, got {token!r} as {vocabulary[token]} "
                f"and {i}: convert the model again"
            )
        vocabulary[token] = i
    return vocabulary


def _byte_level(head: Head, tokens: list[str], types: list[int], pre: _Pre) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    merges = [
        (merge[:at], merge[at + 1 :]) for merge in _strings(head, "tokenizer.ggml.merges") if (at := merge.find(" ", 1)) > 0
    ]
    bpe = models.BPE(vocab=_vocabulary(head, tokens, types), merges=merges, ignore_merges=pre.ignore_merges)
    tokenizer = Tokenizer(bpe)
    if pre.pattern is None:
        steps = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    else:
        split = pre_tokenizers.Split(Regex(pre.pattern), "isolated")
        steps = [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)  # type: ignore[assignment]
    if pre.nfc:
        tokenizer.normalizer = normalizers.NFC()  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    return tokenizer


def _sentencepiece(head: Head, tokens: list[str], types: list[int], pre: _Pre) -> Any:
    """Sentencepiece merges whichever neighbours make the token of the highest score; BPE needs that as a list of merges."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    scores = head.get("tokenizer.ggml.scores", list)
    if len(scores) != len(tokens):
        raise InputError(
            f"expected a score for each of {len(tokens)} tokens under tokenizer.ggml.scores in {head.path}, got "
            f"{len(scores)}: convert the model again"
        )
    vocabulary = _vocabulary(head, tokens, types)
    merges: list[tuple[str, str]] = []
    for token, i in sorted(vocabulary.items(), key=lambda item: (-scores[item[1]], item[1])):
        if types[i] == _NORMAL:
            splits = [(token[:at], token[at:]) for at in range(1, len(token))]
            known = [(left, right) for left, right in splits if left in vocabulary and right in vocabulary]
            merges += sorted(known, key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
    unknown = head.get("tokenizer.ggml.unknown_token_id", int, 0)
    bpe = models.BPE(vocab=vocabulary, merges=merges, unk_token=tokens[unknown], fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(bpe)
    steps: list[Any] = [normalizers.Replace(" ", "▁")]
    strip = []
    if head.get("tokenizer.ggml.add_space_prefix", bool, True):
        steps.insert(0, normalizers.Prepend("▁"))
        strip = [decoders.Strip(content=" ", left=1)]
    tokenizer.normalizer = normalizers.Sequence(steps)  # type: ignore[assignment]
    decoding = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    tokenizer.decoder = decoders.Sequence(decoding)  # type: ignore[assignment]
    return tokenizer


def _wrap(
    head: Head,
    tokenizer: Any,
    tokens: list[str],
    types: list[int],
    special: Mapping[str, int],
    stops: set[int],
    template: str,
    add_bos: bool,
) -> ChatTokenizer:
    from tokenizers import AddedToken, processors
    from transformers import PreTrainedTokenizerFast

    # Whole wherever they stand in a text, special tokens without trace in what is decoded.
    added = [i for i, kind in enumerate(types) if kind in (_UNKNOWN, _CONTROL, _USER)]
    tokenizer.add_tokens([AddedToken(tokens[i], special=types[i] != _USER, normalized=False) for i in added])
    if head.get("tokenizer.ggml.add_bos_token", bool, add_bos) and "bos" in special:
        bos = tokens[special["bos"]]
        tokenizer.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
            single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, special["bos"])]
        )
    roles = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=template,
        clean_up_tokenization_spaces=False,
        model_max_length=head.get(f"{head.get('general.architecture', str)}.context_length", int),
        **{name: tokens[special[key]] for name, key in roles.items() if key in special},
    )
    return ChatTokenizer(wrapped, stops, special.get("padding", min(stops)))
