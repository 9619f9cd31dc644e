"""Episodes of all tasks and of several individuals, played together: environments act while the model generates."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

from cycleqd_jax.tool_calls import reply_message
from cycleqd_jax.types import Episode, Generator, Message, Outcome, Reply, Score

__all__ = ["rollout"]

T = TypeVar("T")


def rollout(
    episodes: Sequence[Episode],
    generator: Generator,
    max_new_tokens: Sequence[int],
    *,
    workers: int = 8,
    overlap: bool = True,
    relatives: Sequence[Sequence[Sequence[Sequence[int]]]] = (),
) -> list[Outcome]:
    """Plays every episode to its end.

    All first replies are requested at once, those of single-turn episodes last. When some replies are complete, ``workers``
    threads apply them to their environments while the generator continues with the others. The results are collected after
    the generator's next call, in a fixed order, so the batches do not depend on how long environments take. The scores of
    single-turn episodes are collected whenever they are ready, because no request depends on them. A prompt that the generator
    refuses scores 0. Every episode is closed, also after an exception.

    Args:
        episodes: fresh episodes of any tasks.
        generator: generates the replies; episode i is its conversation i.
        max_new_tokens: for each episode, the most tokens of a reply.
        workers: number of threads in which environments start, step and close.
        overlap: whether the generator continues while environments act.
        relatives: for each episode, the replies (token ids) of every relative that played it; none by default. They are drafts:
            those of the same turn, and first of them those of relatives whose replies before it were the same.

    Returns:
        An outcome for each episode, in order.

    Raises:
        ValueError: ``episodes``, ``max_new_tokens`` and ``relatives`` differ in length.
        TypeError: the first reply did not end a single-turn episode.
        InfraError: a sandbox failed; this is never a score.
    """
    if len(episodes) != len(max_new_tokens):
        raise ValueError(
            f"expected as many max_new_tokens as episodes ({len(episodes)}), got {len(max_new_tokens)}; "
            "give one for each episode"
        )
    known = relatives or [()] * len(episodes)
    if len(known) != len(episodes):
        raise ValueError(
            f"expected the relatives' replies to each of {len(episodes)} episodes, got those to {len(known)}; give an entry, "
            "which may be empty, for each"
        )
    plays = [
        _Play(i, episode, limit, replies)
        for i, (episode, limit, replies) in enumerate(zip(episodes, max_new_tokens, known, strict=True))
    ]
    _Rollout(plays, generator, workers, overlap).run()
    return [play.outcome() for play in plays]


@dataclasses.dataclass
class _Play:
    """The state of one episode."""

    conversation: int
    episode: Episode
    max_new_tokens: int
    relatives: Sequence[Sequence[Sequence[int]]] = ()
    replies: list[tuple[int, ...]] = dataclasses.field(default_factory=list)
    messages: list[Message] = dataclasses.field(default_factory=list)
    tokens: int = 0
    rounds: int = 0
    dropped: int = 0
    score: Score | None = None

    @property
    def single_turn(self) -> bool:
        return getattr(self.episode, "single_turn", False)

    def outcome(self) -> Outcome:
        assert self.score is not None, "the episode has not ended"
        replies = tuple(self.replies) if any(self.replies) else ()
        return Outcome(self.score, tuple(self.messages), self.tokens, self.rounds, self.dropped, replies)

    def add(self, reply: Reply) -> None:
        self.rounds += 1
        self.replies.append(reply.ids)
        self.messages.append(reply_message(self.messages, reply.text))

    def drafts(self) -> list[Sequence[int]]:
        """The relatives' replies of the next turn; first those of relatives whose replies so far are the same."""
        turn = self.rounds
        found = [replies for replies in self.relatives if len(replies) > turn]
        found.sort(key=lambda replies: [tuple(reply) for reply in replies[:turn]] != self.replies)
        return [replies[turn] for replies in found]


_Step = Future[list[Message] | Score]


class _Rollout:
    """One call of :func:`rollout`. All methods run in the caller's thread; only the environments run in others."""

    def __init__(self, plays: Sequence[_Play], generator: Generator, workers: int, overlap: bool) -> None:
        self.plays = plays
        self.by_conversation: dict[Hashable, _Play] = {play.conversation: play for play in plays}
        self.generator = generator
        self.workers = workers
        self.overlap = overlap
        self.generating = 0  # requests whose replies are not complete
        self.pool = ThreadPoolExecutor(max(1, workers), thread_name_prefix="rollout")
        self.stepping: list[tuple[_Play, _Step]] = []
        # Single-turn episodes have threads of their own: their scores may be slow, and other episodes must not queue for them.
        self.scoring_pool = ThreadPoolExecutor(max(1, workers // 2), thread_name_prefix="score")
        self.scoring: list[tuple[_Play, _Step]] = []
        self.closing: list[Future[None]] = []

    def run(self) -> None:
        """Plays all episodes, and closes them whatever happens."""
        try:
            openings = _call_all(self.pool, [play.episode.start for play in self.plays])
            for play, opening in zip(self.plays, openings, strict=True):
                play.messages = list(opening)
            for play in sorted(self.plays, key=lambda play: play.single_turn):  # short episodes fill slots that become free
                self.submit(play)
            while self.generating or self.stepping or self.scoring:
                self.play_round()
            for future in self.closing:
                future.result()
        finally:
            for play in self.plays:
                if play.score is None:
                    self.generator.release(play.conversation)
            for executor in (self.scoring_pool, self.pool):
                executor.shutdown(wait=True, cancel_futures=True)
            _close_all([play.episode for play in self.plays], self.workers)

    def play_round(self) -> None:
        """Collects scores, lets the generator advance once, and collects the steps that were running meanwhile."""
        if self.scoring and not self.generating and not self.stepping:
            wait([future for _, future in self.scoring], return_when=FIRST_COMPLETED)
        self.collect_scores()
        earlier, self.stepping = self.stepping, []
        for conversation, reply in self.generator.advance() if self.generating else ():
            self.receive(self.by_conversation[conversation], reply)
        if not self.overlap:
            earlier, self.stepping = [*earlier, *self.stepping], []
        self.collect_steps(earlier)

    def submit(self, play: _Play) -> None:
        """Requests the next reply."""
        drafts = play.drafts()
        options: dict[str, Any] = {"drafts": drafts} if drafts else {}
        self.generator.submit(play.conversation, play.messages, play.max_new_tokens, **options)
        self.generating += 1

    def receive(self, play: _Play, reply: Reply) -> None:
        """Starts the environment's step on a complete reply."""
        self.generating -= 1
        play.tokens += reply.tokens
        play.dropped += reply.dropped
        if reply.finish == "refused":
            self.end(play, Score(0.0, "the prompt does not fit the cache"))
            return
        play.add(reply)
        if play.single_turn and self.overlap:
            self.generator.release(play.conversation)
            self.scoring.append((play, self.scoring_pool.submit(play.episode.step, reply.text)))
        else:
            self.stepping.append((play, self.pool.submit(play.episode.step, reply.text)))

    def collect_steps(self, steps: Sequence[tuple[_Play, _Step]]) -> None:
        """Waits for steps in order; each ends its episode or leads to the next request."""
        for play, future in steps:
            result = future.result()
            if isinstance(result, Score):
                self.end(play, result)
            elif play.single_turn:
                raise _continues(play)
            else:
                play.messages.extend(result)
                self.submit(play)

    def collect_scores(self) -> None:
        """Ends the single-turn episodes whose scores are ready, without waiting."""
        remaining = []
        for play, future in self.scoring:
            if not future.done():
                remaining.append((play, future))
                continue
            result = future.result()
            if not isinstance(result, Score):
                raise _continues(play)
            self.end(play, result)
        self.scoring = remaining

    def end(self, play: _Play, score: Score) -> None:
        """Records the score and frees what the episode holds, at once: hundreds of sandboxes must not stay open to the end."""
        play.score = score
        self.generator.release(play.conversation)
        self.closing.append(self.pool.submit(play.episode.close))


def _continues(play: _Play) -> TypeError:
    name = type(play.episode).__name__
    return TypeError(f"expected the first reply to end {name}, got messages in its step; set {name}.single_turn = False")


def _call_all(pool: ThreadPoolExecutor, calls: Sequence[Callable[[], T]]) -> list[T]:
    """Results of all calls, in order; the first exception is raised and cancels the calls that have not started."""
    futures: list[Future[T]] = [pool.submit(call) for call in calls]
    try:
        return [future.result() for future in futures]
    except BaseException:
        for future in futures:
            future.cancel()
        raise


def _close_all(episodes: Sequence[Episode], workers: int) -> None:
    """Closes every episode, then raises the first exception among them."""
    with ThreadPoolExecutor(max(1, workers), thread_name_prefix="close") as pool:
        failures = [future.exception() for future in [pool.submit(episode.close) for episode in episodes]]
    for failure in failures:
        if failure is not None:
            raise failure
