"""The tokenizers of GGUF files as ``transformers`` tokenizers.

A file has only the name of its pre-tokenizer (``tokenizer.ggml.pre``), which splits text into pieces. The definitions here
are those of the published tokenizers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from cycleqd_jax.models.files.gguf_file import Header, read_header
from cycleqd_jax.models.tokenizer import ChatTokenizer
from cycleqd_jax.models.tokenizer_files import set_parts, transformers
from cycleqd_jax.types import InputError

__all__ = ["gguf_tokenizer"]

_NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED, _BYTE = range(1, 7)
_LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2_PATTERN = _LLAMA3_PATTERN.replace("{1,3}", "")


class _Pre(NamedTuple):
    """The pre-tokenizer of a family for byte-level BPE, as in its published ``tokenizer.json``.

    Attributes:
        pattern: the regular expression of a piece; ``None`` is GPT-2's with every digit as a piece.
        ignore_merges: a piece that is a token is encoded as that token, whatever the merges give.
        add_bos: whether a text begins with the bos token, if the file has no such key.
        nfc: whether text is normalised to NFC first, which llama.cpp leaves out.
        stops: tokens that end a reply, in addition to those of the metadata.
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


def gguf_tokenizer(path: str | Path, *, template_required: bool = True) -> ChatTokenizer:
    """The tokenizer of a GGUF file, with its chat template and the tokens that end a reply.

    Ids equal those of llama.cpp, except that Qwen's tokenizer normalises text to NFC, like the published one.

    Args:
        path: a file whose ``tokenizer.ggml.model`` is ``llama`` (sentencepiece BPE), or ``gpt2`` with the pre-tokenizer smollm,
            llama-bpe or qwen2.
        template_required: whether a file without a chat template is refused; the tokenizer can't encode conversations then.

    Raises:
        InputError: the file is corrupt, its tokenizer is of another kind or incomplete, or there is no chat template or no
            token that ends a reply.
    """
    header = read_header(Path(path))
    tokens = _strings(header, "tokenizer.ggml.tokens")
    types = header.get("tokenizer.ggml.token_type", list, [_NORMAL] * len(tokens))
    if len(types) != len(tokens):
        raise InputError(
            f"expected a type for each of {len(tokens)} tokens under tokenizer.ggml.token_type in {header.path}, got "
            f"{len(types)}; convert the model again"
        )
    model = header.get("tokenizer.ggml.model", str)
    if model == "gpt2":
        pre = _pre(header)
        build: Callable[..., Any] = _byte_level
    elif model == "llama":
        pre = _Pre(None, add_bos=True)
        build = _sentencepiece
    else:
        raise InputError(
            f"expected tokenizer.ggml.model gpt2 or llama in {header.path}, got {model!r}; use the tokenizer of the original "
            "checkpoint"
        )
    template = header.get("tokenizer.chat_template", str, None)
    if not template and template_required:
        raise InputError(
            f"expected a chat template under tokenizer.chat_template in {header.path}, got none; use an instruct checkpoint"
        )

    special: dict[str, int] = {}
    for name in ("bos", "eos", "eot", "eom", "unknown", "padding"):
        token = header.get(f"tokenizer.ggml.{name}_token_id", int, None)
        if token is not None and not 0 <= token < len(tokens):
            raise InputError(
                f"expected an id below {len(tokens)} for tokenizer.ggml.{name}_token_id in {header.path}, got {token}; convert "
                "the model again"
            )
        if token is not None:
            special[name] = token
    control = {token: i for i, (token, kind) in enumerate(zip(tokens, types, strict=True)) if kind == _CONTROL}
    stops = {special[name] for name in ("eos", "eot", "eom") if name in special}
    stops |= {control[token] for token in pre.stops if token in control}
    if not stops:
        raise InputError(
            f"expected tokenizer.ggml.eos_token_id in {header.path}, got none; name the token that ends a reply when converting"
        )
    try:
        tokenizer = build(header, tokens, types, pre)
    except InputError:
        raise
    except Exception as error:  # tokenizers raises bare Exceptions
        raise InputError(
            f"expected merges of known tokens in {header.path}, got {error}; convert the model again with a current llama.cpp"
        ) from error
    return _wrap(header, tokenizer, tokens, types, special, stops, template, pre.add_bos)


def _pre(header: Header) -> _Pre:
    name = header.get("tokenizer.ggml.pre", str)
    if name not in _PRE:
        raise InputError(
            f"expected one of {', '.join(_PRE)} for tokenizer.ggml.pre in {header.path}, got {name!r}; use the tokenizer of "
            "the original checkpoint"
        )
    return _PRE[name]


def _strings(header: Header, key: str) -> list[str]:
    values = header.get(key, list)
    if not values or not all(isinstance(value, str) for value in values):
        raise InputError(f"expected strings under {key} in {header.path}, got other values; convert the model again")
    return values


def _vocabulary(header: Header, tokens: list[str], types: list[int]) -> dict[str, int]:
    """Token → id, without the tokens that pad the embedding matrix."""
    vocabulary: dict[str, int] = {}
    for i, (token, kind) in enumerate(zip(tokens, types, strict=True)):
        if kind == _UNUSED:
            continue
        if token in vocabulary:
            raise InputError(
                f"expected every token once under tokenizer.ggml.tokens in {header.path}, got {token!r} as {vocabulary[token]} "
                f"and {i}; convert the model again"
            )
        vocabulary[token] = i
    return vocabulary


def _byte_level(header: Header, tokens: list[str], types: list[int], pre: _Pre) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    merges = [
        (merge[:at], merge[at + 1 :]) for merge in _strings(header, "tokenizer.ggml.merges") if (at := merge.find(" ", 1)) > 0
    ]
    bpe = models.BPE(vocab=_vocabulary(header, tokens, types), merges=merges, ignore_merges=pre.ignore_merges)
    tokenizer = Tokenizer(bpe)
    if pre.pattern is None:
        steps = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    else:
        split = pre_tokenizers.Split(Regex(pre.pattern), "isolated")
        steps = [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    set_parts(tokenizer, pre_tokenizer=pre_tokenizers.Sequence(steps), decoder=decoders.ByteLevel())
    if pre.nfc:
        set_parts(tokenizer, normalizer=normalizers.NFC())
    return tokenizer


def _sentencepiece(header: Header, tokens: list[str], types: list[int], pre: _Pre) -> Any:
    """Builds the list of merges that BPE needs: sentencepiece first merges the neighbours whose token has the highest score."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    scores = header.get("tokenizer.ggml.scores", list)
    if len(scores) != len(tokens):
        raise InputError(
            f"expected a score for each of {len(tokens)} tokens under tokenizer.ggml.scores in {header.path}, got "
            f"{len(scores)}; convert the model again"
        )
    vocabulary = _vocabulary(header, tokens, types)
    merges: list[tuple[str, str]] = []
    for token, i in sorted(vocabulary.items(), key=lambda item: (-scores[item[1]], item[1])):
        if types[i] == _NORMAL:
            splits = [(token[:at], token[at:]) for at in range(1, len(token))]
            known = [(left, right) for left, right in splits if left in vocabulary and right in vocabulary]
            merges += sorted(known, key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
    unknown = header.get("tokenizer.ggml.unknown_token_id", int, 0)
    bpe = models.BPE(vocab=vocabulary, merges=merges, unk_token=tokens[unknown], fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(bpe)
    steps: list[Any] = [normalizers.Replace(" ", "▁")]
    strip = []
    if header.get("tokenizer.ggml.add_space_prefix", bool, True):
        steps.insert(0, normalizers.Prepend("▁"))
        strip = [decoders.Strip(content=" ", left=1)]
    decoding = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    set_parts(tokenizer, normalizer=normalizers.Sequence(steps), decoder=decoders.Sequence(decoding))
    return tokenizer


def _wrap(
    header: Header,
    tokenizer: Any,
    tokens: list[str],
    types: list[int],
    special: Mapping[str, int],
    stops: set[int],
    template: str | None,
    add_bos: bool,
) -> ChatTokenizer:
    from tokenizers import AddedToken, processors

    # Added tokens are never split, and special ones are left out of decoded text.
    added = [i for i, kind in enumerate(types) if kind in (_UNKNOWN, _CONTROL, _USER)]
    tokenizer.add_tokens([AddedToken(tokens[i], special=types[i] != _USER, normalized=False) for i in added])
    if header.get("tokenizer.ggml.add_bos_token", bool, add_bos) and "bos" in special:
        bos = tokens[special["bos"]]
        bos_first = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, special["bos"])]
        )
        set_parts(tokenizer, post_processor=bos_first)
    roles = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    wrapped = transformers().PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=template,
        clean_up_tokenization_spaces=False,
        model_max_length=header.get(f"{header.get('general.architecture', str)}.context_length", int),
        **{name: tokens[special[key]] for name, key in roles.items() if key in special},
    )
    found = ChatTokenizer(wrapped, stops, special.get("padding", min(stops)))
    if template is not None:
        found.check_template(str(header.path))
    return found
