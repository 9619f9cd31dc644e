"""Greedy decoding in static slots: token ids in, token ids out.

A batch always has ``slots`` rows. Its prompts are right-padded to a bucket and prefilled at once, then one
``lax.while_loop`` on the device decodes until every row is done; the host sees nothing but the result. Which bucket a request
falls into depends on that request alone, and rows never mix: what is generated does not depend on a request's neighbours, on
the order of requests or on how many there are.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cycleqd_jax.models import llama
from cycleqd_jax.types import Array, Bool, InputError, Int, Params, tree_paths

__all__ = ["Engine", "Generation", "NonFiniteError", "default_buckets"]


class NonFiniteError(ArithmeticError):
    """The model's logits are NaN or infinite: the weights are broken, and no reply means anything."""


class Generation(NamedTuple):
    """What was generated for one prompt.

    Attributes:
        ids: the new tokens, the stop token included.
        finish: ``"stop"``, ``"length"`` or ``"refused"`` (as in :class:`cycleqd_jax.types.Reply`).
    """

    ids: tuple[int, ...]
    finish: Literal["stop", "length", "refused"]


def default_buckets(max_len: int) -> tuple[int, ...]:
    """32, 64, 96, 128, 192, 256, 384, 512, … up to and including ``max_len``: at most half again as long as needed."""
    sizes = [32]
    while sizes[-1] < max_len:
        last = sizes[-1]
        power = last & (last - 1) == 0
        sizes.append(last * 2 if last == 32 else last * 3 // 2 if power else last * 4 // 3)
    return (*(size for size in sizes if size < max_len), max_len)


class _State(NamedTuple):
    cache: llama.KVCache
    token: Int[Array, " slot"]  # the last one, not yet in the cache
    position: Int[Array, " slot"]  # where it goes
    out: Int[Array, "slot new"]
    count: Int[Array, " slot"]
    done: Bool[Array, " slot"]
    finite: Bool[Array, ""]
    step: Int[Array, ""]


def _decode(
    params: Params,
    tokens: Int[Array, "slot prompt"],
    lengths: Int[Array, " slot"],
    limits: Int[Array, " slot"],
    *,
    config: llama.LlamaConfig,
    new: int,
    stop_ids: tuple[int, ...],
    pad_id: int,
) -> tuple[Int[Array, "slot new"], Int[Array, " slot"], Bool[Array, ""]]:
    """Prefill and the whole greedy loop; rows with ``limits == 0`` are empty slots."""
    slots, width = tokens.shape
    stops = jnp.asarray(stop_ids, jnp.int32)

    def emit(state: _State, hidden: Array) -> _State:
        logits = llama.unembed(params, config, hidden)  # [slot, vocab]
        token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        finite = jnp.all(jnp.isfinite(logits).all(-1) | state.done)
        column = jnp.where(state.done, pad_id, token)
        count = state.count + ~state.done
        done = state.done | (token[:, None] == stops).any(-1) | (count >= limits)
        return state._replace(
            token=column,
            out=jax.lax.dynamic_update_slice(state.out, column[:, None], (0, state.step)),
            count=count,
            done=done,
            finite=state.finite & finite,
            step=state.step + 1,
        )

    def body(state: _State) -> _State:
        hidden, cache = llama.hidden_states(params, config, state.token[:, None], state.position[:, None], cache=state.cache)
        assert cache is not None
        return emit(state._replace(cache=cache, position=state.position + 1), hidden[:, 0])

    hidden, cache = llama.hidden_states(params, config, tokens, cache=llama.init_cache(config, slots, width), lengths=lengths)
    assert cache is not None
    last = jnp.take_along_axis(hidden, lengths[:, None, None] - 1, axis=1)[:, 0]
    state = _State(
        cache=llama.extend_cache(cache, new),
        token=jnp.zeros(slots, jnp.int32),
        position=lengths,
        out=jnp.full((slots, new), pad_id, jnp.int32),
        count=jnp.zeros(slots, jnp.int32),
        done=limits <= 0,
        finite=jnp.bool_(True),
        step=jnp.int32(0),
    )
    state = jax.lax.while_loop(lambda s: (s.step < new) & ~s.done.all() & s.finite, body, emit(state, last))
    return state.out, state.count, state.finite


class Engine:
    """Decodes prompts with the weights last loaded; nothing is compiled twice, whatever the weights.

    Args:
        config: the model.
        slots: rows of every batch. More rows use the machine better, fewer waste less on the last batch.
        max_len: most tokens of a prompt and its reply together.
        stop_ids: tokens that end a reply.
        pad_id: fills empty places; any valid token.
        buckets: prompt lengths, and reply lengths, that are compiled for; :func:`default_buckets` by default.

    Raises:
        InputError: a size is below one, ``max_len`` is beyond the model's positions, or an id is not in its vocabulary.
    """

    def __init__(
        self,
        config: llama.LlamaConfig,
        *,
        slots: int,
        max_len: int,
        stop_ids: Sequence[int],
        pad_id: int,
        buckets: Sequence[int] | None = None,
    ) -> None:
        if slots < 1 or not 2 <= max_len <= config.context_length:
            raise InputError(
                f"expected at least 1 slot and a max_len from 2 to the model's {config.context_length} positions, got "
                f"{slots} slots and max_len {max_len}: correct the engine's settings"
            )
        outside = [i for i in (*stop_ids, pad_id) if not 0 <= i < config.vocab_size]
        if outside or not stop_ids:
            raise InputError(
                f"expected one or more stop ids and a pad id below the model's vocabulary size {config.vocab_size}, got stop "
                "ids "
                f"{list(stop_ids)} and pad id {pad_id}: check that the tokenizer belongs to the model"
            )
        self.config = config
        self.slots = slots
        self.max_len = max_len
        self.stop_ids = tuple(stop_ids)
        self.pad_id = pad_id
        self.buckets = tuple(sorted(buckets)) if buckets else default_buckets(max_len)
        if self.buckets[0] < 1 or self.buckets[-1] < max_len:
            raise InputError(
                f"expected positive buckets that reach max_len {max_len}, got {list(self.buckets)}: correct the engine's "
                "settings"
            )
        self._params: Params | None = None
        self._expected = _shapes(llama.abstract_params(config))
        self._decode = jax.jit(
            functools.partial(_decode, config=config, stop_ids=self.stop_ids, pad_id=pad_id), static_argnames=("new",)
        )

    @property
    def compilations(self) -> int:
        """How many programs have been compiled so far: one for each pair of prompt and reply bucket in use."""
        return self._decode._cache_size()  # pyright: ignore[reportAttributeAccessIssue]

    def load(self, params: Params) -> None:
        """Swaps the weights.

        Args:
            params: of the engine's config.

        Raises:
            InputError: names, shapes or dtypes are not those of the config.
        """
        expected, got = self._expected, _shapes(params)
        for path in expected | got:
            if expected.get(path) != got.get(path):
                raise InputError(
                    f"expected {_describe(expected.get(path))} for the weight {path!r}, got {_describe(got.get(path))}: load "
                    "weights of the engine's own config"
                )
        self._params = params

    def generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: Sequence[int]) -> list[Generation]:
        """Decodes greedily.

        Args:
            prompts: token ids, at least one each.
            max_new_tokens: the most tokens each reply may have, at least one; less where the cache ends first.

        Returns:
            A :class:`Generation` for each prompt, in order; ``"refused"`` where a prompt leaves no room for a token.

        Raises:
            InputError: an empty prompt, a limit below one, lists of different lengths, or ids outside the vocabulary.
            NonFiniteError: the model computes NaN or infinite logits.
            RuntimeError: no weights have been loaded.
        """
        if self._params is None:
            raise RuntimeError("Engine.load(params) must come before Engine.generate")
        if len(prompts) != len(max_new_tokens):
            raise InputError(
                f"expected a token limit for each of {len(prompts)} prompts, got {len(max_new_tokens)}: give one for each"
            )
        results: list[Generation] = [Generation((), "refused")] * len(prompts)
        groups: dict[tuple[int, int], list[int]] = {}
        for i, (prompt, limit) in enumerate(zip(prompts, max_new_tokens, strict=True)):
            if not len(prompt) or limit < 1:
                raise InputError(
                    f"expected at least one prompt token and a limit of at least 1 for request {i}, got {len(prompt)} tokens "
                    "and "
                    f"limit {limit}: drop the request"
                )
            if not 0 <= min(prompt) <= max(prompt) < self.config.vocab_size:
                raise InputError(
                    f"expected token ids below {self.config.vocab_size} in request {i}, got {min(prompt)} to {max(prompt)}: "
                    "check that the tokenizer belongs to the model"
                )
            room = min(limit, self.max_len - len(prompt))
            if room > 0:
                groups.setdefault((self._bucket(len(prompt)), self._bucket(limit)), []).append(i)

        # Everything is dispatched before anything is waited for: the host prepares the next batch while the device works.
        pending = []
        for (width, new), members in sorted(groups.items()):
            for start in range(0, len(members), self.slots):
                rows = members[start : start + self.slots]
                tokens = np.full((self.slots, width), self.pad_id, np.int32)
                lengths = np.ones(self.slots, np.int32)
                limits = np.zeros(self.slots, np.int32)
                for row, i in enumerate(rows):
                    lengths[row] = len(prompts[i])
                    tokens[row, : lengths[row]] = prompts[i]
                    limits[row] = min(max_new_tokens[i], self.max_len - len(prompts[i]))
                pending.append((rows, self._decode(self._params, tokens, lengths, limits, new=new)))
        for rows, output in pending:
            out, counts, finite = jax.device_get(output)
            if not finite:
                raise NonFiniteError("the model's logits are not finite: its weights are broken")
            for row, i in enumerate(rows):
                ids = tuple(out[row, : counts[row]].tolist())
                results[i] = Generation(ids, "stop" if ids[-1] in self.stop_ids else "length")
        return results

    def _bucket(self, size: int) -> int:
        return next((bucket for bucket in self.buckets if bucket >= size), self.buckets[-1])


def _shapes(params: Params) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    return {path: (leaf.shape, leaf.dtype) for path, leaf in tree_paths(params)}


def _describe(leaf: tuple[tuple[int, ...], np.dtype] | None) -> str:
    return "none" if leaf is None else f"shape {list(leaf[0])} {leaf[1]}"
