"""Episodes of all tasks, and of several individuals, played together; environments work while the model decodes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
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
    overlap: bool = True,
    progress: Progress = no_progress,
) -> list[Outcome]:
    """Plays every episode to its end.

    The generator is asked for all replies at once, for those of single-turn episodes last. Where some are complete, their
    environments act on them in ``workers`` threads while the generator goes on with the others; what they say is taken in after
    that. Nothing but this order decides what is generated with what: it does not depend on how long environments take. Scores
    of single-turn episodes, which nothing depends on, are taken in when they are there. A prompt that the generator refuses
    scores 0. Every episode is closed, whatever happens.

    Args:
        episodes: fresh ones, of any tasks.
        generator: says what the model says; episode i is its conversation i.
        max_new_tokens: for each episode, the most tokens of a reply.
        workers: threads in which environments start, step and close.
        overlap: whether the generator goes on while environments work.
        progress: called where episodes ended, with the episodes done, and as figures the round and the tokens so far.

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
    dropped = [0] * len(episodes)
    scores: list[Score | None] = [None] * len(episodes)
    began = time.monotonic()
    pool = ThreadPoolExecutor(max(1, workers), thread_name_prefix="rollout")
    judges = ThreadPoolExecutor(max(1, workers // 2), thread_name_prefix="judge")  # others must not queue behind them
    acting: list[tuple[int, Future[list[Message] | Score]]] = []
    judging: list[tuple[int, Future[list[Message] | Score]]] = []  # of single-turn episodes
    closing: list[Future[None]] = []
    speaking = 0

    def single(index: int) -> bool:
        return getattr(episodes[index], "single_turn", False)

    def end(index: int, score: Score) -> None:
        scores[index] = score
        generator.release(index)
        # Boxes go as soon as they can: hundreds of episodes must not hold hundreds of boxes to the end.
        closing.append(pool.submit(episodes[index].close))

    def judged() -> list[tuple[int, Future[list[Message] | Score]]]:
        """Takes in the scores that are there, and returns those that are not yet."""
        for index, future in judging:
            if future.done():
                result = future.result()
                if not isinstance(result, Score):
                    raise TypeError(f"{type(episodes[index]).__name__} is single-turn, but its first reply did not end it")
                end(index, result)
        return [(index, future) for index, future in judging if not future.done() or scores[index] is None]

    def ask(index: int) -> None:
        nonlocal speaking
        generator.submit(index, messages[index], max_new_tokens[index])
        speaking += 1

    try:
        for index, opening in enumerate(_all(pool, [episode.start for episode in episodes])):
            messages[index] = list(opening)
        for index in sorted(range(len(episodes)), key=single):  # the long ones first: the others fill what they leave
            ask(index)
        number = 0
        while speaking or acting or judging:
            number += 1
            if judging and not speaking and not acting:
                wait([future for _, future in judging], return_when=FIRST_COMPLETED)
            done = len(closing)
            judging = judged()
            earlier, acting = acting, []
            for key, reply in generator.advance() if speaking else ():
                index: int = key  # type: ignore[assignment]
                speaking -= 1
                tokens[index] += reply.tokens
                dropped[index] += reply.dropped
                if reply.finish == "refused":
                    end(index, Score(0.0, "the prompt does not fit the cache"))
                    continue
                rounds[index] += 1
                messages[index].append({"role": "assistant", "content": reply.text})
                if single(index) and overlap:
                    generator.release(index)
                    judging.append((index, judges.submit(episodes[index].step, reply.text)))
                else:
                    acting.append((index, pool.submit(episodes[index].step, reply.text)))
            if not overlap:
                earlier, acting = [*earlier, *acting], []
            for index, future in earlier:
                result = future.result()
                if isinstance(result, Score):
                    end(index, result)
                else:
                    messages[index].extend(result)
                    ask(index)
            if len(closing) > done or not (speaking or acting or judging):
                figures = {"round": number, "tokens": sum(tokens), "seconds": time.monotonic() - began}
                progress("rollout", len(closing), len(episodes), figures)
        for future in closing:
            future.result()
    finally:
        for index, score in enumerate(scores):
            if score is None:
                generator.release(index)
        for executor in (judges, pool):
            executor.shutdown(wait=True, cancel_futures=True)
        _close_all(episodes, workers)
    return [
        Outcome(score, tuple(said), count, spoken, lost)
        for score, said, count, spoken, lost in zip(scores, messages, tokens, rounds, dropped, strict=True)
        if score is not None
    ]


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
