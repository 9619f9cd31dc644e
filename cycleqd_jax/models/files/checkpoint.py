"""Opens a model by its config and headers alone: a local folder, a GGUF file, or a repository on the hub."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from cycleqd_jax.models.files import gguf, hub
from cycleqd_jax.models.files.names import EMBEDDING, HEAD, hf_shapes, is_unused, recognise
from cycleqd_jax.models.files.safetensors import DTYPES, Tensor, read_headers, row_chunks
from cycleqd_jax.models.folder import read_json
from cycleqd_jax.models.llama.config import LlamaConfig
from cycleqd_jax.models.tokenizer import ChatTokenizer
from cycleqd_jax.types import InputError

__all__ = ["Checkpoint", "check_tied", "equal_head", "load_tokenizer", "open_checkpoint", "with_head"]


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A model whose weights have not been read; its config and tensors match.

    Attributes:
        where: the folder or file; for a repository whose weights are not downloaded, the folder of its small files.
        name: the path or name that was opened.
        config: the model's config, with the dtype of the tensors.
        tensors: the tensors by Hugging Face's name.
    """

    where: Path
    name: str
    config: LlamaConfig
    tensors: Mapping[str, Tensor]

    @property
    def nbytes(self) -> int:
        """The bytes of the weights; a tied head counts once."""
        return sum(math.prod(self.tensors[name].shape) * DTYPES[self.tensors[name].dtype].itemsize for name in self.names)

    @property
    def here(self) -> bool:
        """Whether the weights are on this machine."""
        return all(isinstance(tensor.file, Path) for tensor in self.tensors.values())

    @property
    def names(self) -> list[str]:
        """The names of the model's tensors, in the order of Hugging Face's modules."""
        return list(hf_shapes(self.config))

    @property
    def rounded(self) -> list[str]:
        """The names of the tensors that the dtype of most parameters can't hold exactly, such as float32 norms."""
        most = np.dtype(self.config.dtype)
        kinds = {name: DTYPES[self.tensors[name].dtype] for name in self.names}
        return [name for name, kind in kinds.items() if kind != most and most != np.dtype(np.float32)]


def open_checkpoint(model: str | Path, *, weights: bool = True) -> Checkpoint:
    """Finds a model, and reads its config and headers.

    Args:
        model: a Hugging Face folder with safetensors in one file or sharded, a ``.gguf`` file, or a repository of the hub
            (``owner/name`` or ``owner/name@revision``), which is downloaded.
        weights: download the weights too. Otherwise, for a repository that is not in the local cache, only the headers are
            read, over the network; its tensors can't be read.

    Raises:
        InputError: there is no such model; it is not supported; or tensors are missing, unknown, corrupt, or of another shape
            than in the config.
    """
    path = Path(model)
    if path.suffix == ".gguf":
        raw, tensors = gguf.read_gguf(path)
        return _fit(path, str(model), LlamaConfig.from_hf(raw, str(path)), tensors)
    if _is_local(model):
        return _fit(path, str(model), _read_config(path, str(model)), read_headers(path))
    name = str(model)
    folder = hub.download(name)
    config = _read_config(folder, name)
    checkpoint = _fit(folder, name, config, hub.headers(name, folder))
    if not weights:
        return checkpoint
    hub.download_weights(name, folder, checkpoint.nbytes)
    return _fit(folder, name, config, hub.headers(name, folder))


def load_tokenizer(model: str | Path) -> ChatTokenizer:
    """The tokenizer and chat template of a model (see :func:`open_checkpoint`); no weights are downloaded.

    Raises:
        InputError: there is no tokenizer, no chat template or no stop token.
    """
    path = Path(model)
    if path.suffix == ".gguf":
        return gguf.gguf_tokenizer(path)
    return ChatTokenizer.load(path if _is_local(model) else hub.download(str(model)))


def _is_local(model: str | Path) -> bool:
    """Whether this is a folder and not the name of a repository.

    Raises:
        InputError: it is neither.
    """
    try:
        kind = "folder" if (path := Path(model)).is_dir() else "file" if path.exists() else "none"
    except OSError as error:  # a name that is too long, or a folder without permission
        raise InputError(
            f"expected a readable model, got {error.strerror} for {str(model)[:200]}; correct the path or its permissions"
        ) from error
    if kind == "folder" and str(model):  # an empty name would be the current folder
        return True
    if kind == "none" and hub.is_repository(model):
        return False
    what = {"file": "another kind of file", "none": "no such folder"}
    raise InputError(
        "expected a Hugging Face model folder, a .gguf file or a repository owner/name, got "
        f"{f'{what[kind]}: {model}' if str(model) else 'an empty name'}; correct the path"
    )


def _read_config(folder: Path, name: str) -> LlamaConfig:
    path = folder / "config.json"
    if not path.is_file():
        what, advice = "no config.json", "correct the name, or give the path of a .gguf file"
        if (folder / "adapter_config.json").is_file():
            what, advice = "a LoRA adapter", "give a whole model, for example the adapter merged into its base"
        raise InputError(f"expected a Hugging Face model, got {what} in {name}; {advice}")
    return LlamaConfig.from_hf(read_json(path), str(Path(name) / path.name))


def _fit(where: Path, name: str, config: LlamaConfig, tensors: Mapping[str, Tensor]) -> Checkpoint:
    """Checks that config and tensors match."""
    if config.num_hidden_layers > len(tensors):  # a huge number would take long below
        raise InputError(
            f"expected tensors for {config.num_hidden_layers} layers, as in the config of {name}, got {len(tensors)} tensors; "
            "correct the config or restore the weights"
        )
    expected = hf_shapes(config)
    found = recognise(tensors, [*expected, HEAD])
    tensors = {found[tensor_name]: tensor for tensor_name, tensor in tensors.items()}
    if config.tie_word_embeddings and EMBEDDING not in tensors and HEAD in tensors:
        tensors[EMBEDDING] = tensors[HEAD]  # safetensors keeps one name of a shared tensor
    unknown = [name for name in tensors if name not in expected and not is_unused(name)]
    if config.tie_word_embeddings and HEAD in unknown:
        unknown.remove(HEAD)
    missing = [name for name in expected if name not in tensors]
    if missing or unknown:
        raise _mismatch(name, config, len(expected), missing, {name: tensors[name] for name in unknown})
    for tensor_name in (*expected, *([HEAD] if HEAD in tensors else [])):
        info = tensors[tensor_name]
        shape = expected.get(tensor_name, expected[EMBEDDING])  # a tied head that is stored too
        if info.shape != shape:
            raise InputError(
                f"expected shape {list(shape)} for tensor {tensor_name} in {info.file}, got {list(info.shape)}; correct the "
                "config or restore the weights"
            )
        if info.dtype not in DTYPES:
            raise InputError(
                f"expected dtype {', '.join(DTYPES)} for tensor {tensor_name} in {info.file}, got {info.dtype}; save "
                "the weights in one of these"
            )
    # The dtype of the model is that of most of its parameters.
    sizes: dict[str, int] = {}
    for tensor_name in expected:
        info = tensors[tensor_name]
        sizes[info.dtype] = sizes.get(info.dtype, 0) + math.prod(info.shape)
    return Checkpoint(where, name, config.replace(dtype=DTYPES[max(sizes, key=lambda kind: sizes[kind])].name), tensors)


def _mismatch(name: str, config: LlamaConfig, count: int, missing: Sequence[str], unknown: Mapping[str, Tensor]) -> InputError:
    """An error that names the tensors that the model lacks and those that it does not have."""

    def shown(names: Sequence[str]) -> str:
        return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")

    parts = [f"no {shown(missing)}"] if missing else []
    if unknown:
        parts.append(f"an unknown {shown(list(unknown))} in {next(iter(unknown.values())).file}")
    advice = "correct the config or restore the weights"
    if list(missing) == [HEAD] and not unknown:
        advice = "set tie_word_embeddings to true if the head is the embedding, or restore the weights"
    elif any("lora_" in tensor for tensor in unknown):
        advice = "merge the adapter into its base with peft, merge_and_unload(), and save the result"
    elif unknown and not missing:
        advice = "remove such tensors if the model works without them, or correct the config"
    elif unknown:
        advice = "give the tensors the names that transformers uses, or correct the config"
    return InputError(
        f"expected the {count} tensors of the {config.model_type} model in {name}, got {' and '.join(parts)} (missing: "
        f"{len(missing)}, unknown: {len(unknown)}); {advice}"
    )


# --------------------------------------------------------------------------------------------------------------------
# Output heads


def check_tied(checkpoint: Checkpoint) -> None:
    """Checks that a head which a file stores is the embedding, where the config ties them; it reads both.

    Raises:
        InputError: they differ.
    """
    if checkpoint.config.tie_word_embeddings and HEAD in checkpoint.tensors and not equal_head(checkpoint):
        raise InputError(
            f"expected {HEAD} to equal {EMBEDDING} in {checkpoint.tensors[HEAD].file}, whose config ties them, got different "
            "weights; set tie_word_embeddings to false or remove the head"
        )


def with_head(checkpoint: Checkpoint, *, tied: bool) -> Checkpoint:
    """A model with a tied or with an untied head, which computes the same.

    Args:
        checkpoint: the model; where its config unties the head and it is to be tied, both tensors are read.
        tied: whether the head is to be the embedding. Otherwise the head is a copy of it.

    Raises:
        InputError: the head is to be tied, and differs from the embedding.
    """
    if checkpoint.config.tie_word_embeddings == tied:
        return checkpoint
    if tied and checkpoint.here and not equal_head(checkpoint):
        raise InputError(
            f"expected {HEAD} to equal {EMBEDDING} in {checkpoint.name}, as in the base, whose config has "
            "tie_word_embeddings True, got a head of its own (tie_word_embeddings False); save the base with "
            "tie_word_embeddings false and a copy of its embedding as the head, or use fine-tunings of one base"
        )
    tensors = checkpoint.tensors if tied else {**checkpoint.tensors, HEAD: checkpoint.tensors[EMBEDDING]}
    return dataclasses.replace(checkpoint, config=checkpoint.config.replace(tie_word_embeddings=tied), tensors=tensors)


def equal_head(checkpoint: Checkpoint) -> bool:
    """Whether the output head that a model's files store is its embedding, bit for bit; it reads both."""
    head, embedding = checkpoint.tensors[HEAD], checkpoint.tensors[EMBEDDING]
    if head is embedding:
        return True
    return head.shape == embedding.shape and all(
        np.array_equal(head.read(start, stop), embedding.read(start, stop)) for start, stop in row_chunks(head)
    )
