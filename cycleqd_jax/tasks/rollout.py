"""Episodes of all tasks, and of several individuals, played together: one batch of replies per round."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from cycleqd_jax.types import Episode, Generator, Message, Outcome, Progress, Score, no_progress

__all__ = ["rollout"]

T = TypeVar("T")


def rollout(
    episodes: Sequence[Episode],
    generator: Generator,
    max_new_tokens: Sequence[int],
    *,
    workers: int = 8,
    progress: Progress = no_progress,
) -> list[Outcome]:
    """Plays every episode to its end.

    All conversations that wait for a reply are generated as one batch; environments work in ``workers`` threads. A prompt
    that the generator refuses scores 0. Every episode is closed, whatever happens.

    Args:
        episodes: fresh ones, of any tasks.
        generator: says what the model says.
        max_new_tokens: for each episode, the most tokens of a reply.
        workers: threads in which environments start, step and close.
        progress: called after each round with the episodes done, and as figures the round and the tokens so far.

    Returns:
        An outcome for each episode, in order.

    Raises:
        ValueError: where the lengths of the arguments differ.
        InfraError: where a sandbox is broken; it is never a score.
    """
    if len(episodes) != len(max_new_tokens):
        raise ValueError(f"expected as many max_new_tokens as episodes ({len(episodes)}), got {len(max_new_tokens)}")
    messages: list[list[Message]] = [[] for _ in episodes]
    tokens = [0] * len(episodes)
    rounds = [0] * len(episodes)
    scores: list[Score | None] = [None] * len(episodes)
    began = time.monotonic()
    pool = ThreadPoolExecutor(max(1, workers), thread_name_prefix="rollout")
    try:
        for index, opening in enumerate(_all(pool, [episode.start for episode in episodes])):
            messages[index] = list(opening)
        waiting = list(range(len(episodes)))
        number = 0
        while waiting:
            number += 1
            replies = generator.generate([messages[i] for i in waiting], [max_new_tokens[i] for i in waiting])
            calls: list[Callable[[], list[Message] | Score]] = []
            playing: list[int] = []
            for index, reply in zip(waiting, replies, strict=True):
                tokens[index] += reply.tokens
                if reply.finish == "refused":
                    scores[index] = Score(0.0, "the prompt does not fit the cache")
                    continue
                rounds[index] += 1
                messages[index].append({"role": "assistant", "content": reply.text})
                playing.append(index)
                calls.append(_step(episodes[index], reply.text))
            finished: list[int] = []
            for index, result in zip(playing, _all(pool, calls), strict=True):
                if isinstance(result, Score):
                    scores[index] = result
                    finished.append(index)
                else:
                    messages[index].extend(result)
            # Boxes go as soon as they can: hundreds of episodes must not hold hundreds of boxes to the end.
            _all(pool, [episodes[index].close for index in finished])
            waiting = [index for index in waiting if scores[index] is None]
            figures = {"round": number, "tokens": sum(tokens), "seconds": time.monotonic() - began}
            progress("rollout", len(episodes) - len(waiting), len(episodes), figures)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        _close_all(episodes, workers)
    return [
        Outcome(score, tuple(said), count, spoken)
        for score, said, count, spoken in zip(scores, messages, tokens, rounds, strict=True)
        if score is not None
    ]


def _step(episode: Episode, reply: str) -> Callable[[], list[Message] | Score]:
    return lambda: episode.step(reply)


def _all(pool: ThreadPoolExecutor, calls: Sequence[Callable[[], T]]) -> list[T]:
    """The results of all calls, in order; the first exception ends it, what hasn't begun is dropped."""
    futures: list[Future[T]] = [pool.submit(call) for call in calls]
    try:
        return [future.result() for future in futures]
    except BaseException:
        for future in futures:
            future.cancel()
        raise


def _close_all(episodes: Sequence[Episode], workers: int) -> None:
    """Closes every episode, though some fail to; then raises what the first of them raised."""
    with ThreadPoolExecutor(max(1, workers), thread_name_prefix="close") as pool:
        failures = [future.exception() for future in [pool.submit(episode.close) for episode in episodes]]
    for failure in failures:
        if failure is not None:
            raise failure
