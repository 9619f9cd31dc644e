"""The engine's thread, without HTTP: what clients get is what the engine generates, and whatever they do it goes on."""

from __future__ import annotations

import gc
import threading
import time
import weakref

import numpy as np
import pytest

from cycleqd_jax.serve import Job, QueueFull, ServerClosed
from cycleqd_jax.types import NonFiniteError

from .small_server import NAMES, SLOTS, SeveralModels, make_worker

WAIT_S = 120


@pytest.fixture
def worker(catalog):
    worker = make_worker(catalog)
    worker.start()
    yield worker
    worker.close(0)


def jobs_of(tokenizer, n, seed=0, model="one", **options):
    rng = np.random.default_rng(seed)
    size = tokenizer.vocab_size
    return [
        Job(model, tuple(rng.integers(0, size, rng.integers(1, 30)).tolist()), int(rng.integers(1, 25)), **options)
        for _ in range(n)
    ]


def text_of(tokenizer, ids):
    return tokenizer.decode(ids[:-1] if ids[-1] in tokenizer.stop_ids else ids)


def drain(worker):
    """Steps without a thread, so that the order does not depend on time."""
    for _ in range(2000):
        state = worker.state()
        if not state.running and not state.waiting:
            return
        worker.step()
    raise AssertionError("the worker does not end")


def test_replies_that_have_ended_are_forgotten(catalog, tokenizer):
    worker = make_worker(catalog)
    complete, cancelled = worker.submit(jobs_of(tokenizer, 2, seed=9))
    worker.step()
    worker.cancel([cancelled])
    drain(worker)
    assert complete.done
    assert not cancelled.done
    left = [weakref.ref(complete), weakref.ref(cancelled)]
    del complete, cancelled
    gc.collect()
    assert [ticket() for ticket in left] == [None, None]


@pytest.mark.exhaustive
@pytest.mark.parametrize("options", [{}, {"temperature": 0.9, "top_p": 0.8, "seed": 5}], ids=["greedy", "sampled"])
def test_replies_equal_those_of_the_engine(catalog, tokenizer, worker, options, reference):
    jobs = jobs_of(tokenizer, 10, **options)
    for ticket in worker.submit(jobs):
        news, expected = ticket.wait(WAIT_S), reference(ticket.job)
        assert (news.text, news.tokens, news.finish) == (
            text_of(tokenizer, expected.ids),
            len(expected.ids),
            expected.finish,
        )


def test_pieces_of_a_stream_are_the_reply(catalog, tokenizer, reference):
    worker, (job,) = make_worker(catalog), jobs_of(tokenizer, 1, seed=3)
    (ticket,) = worker.submit([job])
    pieces = []
    while not ticket.done:
        worker.step()
        pieces.append(ticket.take())
    assert len([one for one in pieces if one.text]) > 1
    assert "".join(one.text for one in pieces) == text_of(tokenizer, reference(job).ids)


def test_a_reader_that_does_not_read_holds_back_nobody_and_gets_everything_later(catalog, tokenizer, reference):
    worker, jobs = make_worker(catalog), jobs_of(tokenizer, 6, seed=4)
    tickets = worker.submit(jobs)
    drain(worker)
    for ticket in tickets:
        assert ticket.take().text == text_of(tokenizer, reference(ticket.job).ids)


def test_a_stop_string_ends_the_reply(catalog, tokenizer, reference):
    (job,) = jobs_of(tokenizer, 1, seed=3)
    whole = text_of(tokenizer, reference(job).ids)
    stop = whole[len(whole) // 2 : len(whole) // 2 + 2]
    worker = make_worker(catalog)
    (ticket,) = worker.submit([Job(job.model, job.prompt, job.max_new_tokens, stop=(stop,))])
    drain(worker)
    news = ticket.take()
    assert (news.text, news.finish) == (whole[: whole.index(stop)], "stop")


def test_a_request_that_the_engine_does_not_take_fails_alone(catalog, tokenizer, worker, monkeypatch):
    submit = worker._engine.submit

    def broken(prompt, *args, **options):
        if tuple(prompt) == (5,):
            raise RuntimeError("no memory")
        return submit(prompt, *args, **options)

    monkeypatch.setattr(worker._engine, "submit", broken)
    bad, good = worker.submit([Job("one", (5,), 3), Job("one", (6,), 3)])
    assert str(bad.wait(WAIT_S).error) == "no memory"
    assert good.wait(WAIT_S).error is None
    assert worker.open


@pytest.mark.exhaustive
def test_each_model_answers_with_its_weights_in_turns(catalog, tokenizer, reference):
    worker = make_worker(catalog, turn=2)
    jobs = [job for seed, name in enumerate(NAMES * 3) for job in jobs_of(tokenizer, 2, seed=seed, model=name)]
    tickets = worker.submit(jobs)
    drain(worker)
    switches = list(catalog.expressed)
    assert set(switches[:3]) == set(NAMES)  # every model had a turn before one had a second
    assert worker.state().switches == len(switches)
    for ticket in tickets:
        assert ticket.take().text == text_of(tokenizer, reference(ticket.job).ids)


def test_models_are_swapped_without_compiling(catalog, tokenizer, compilations):
    worker = make_worker(catalog)
    worker.submit(jobs_of(tokenizer, 3))
    drain(worker)

    def swap():
        for name in ("two", "three", "one"):
            worker.submit(jobs_of(tokenizer, 3, model=name))
            drain(worker)

    assert compilations(swap) == 0


def test_cancelled_requests_leave_the_engine(catalog, tokenizer):
    worker = make_worker(catalog)
    tickets = worker.submit([Job("one", (5, 6), 80) for _ in range(SLOTS + 3)])
    worker.step()
    worker.cancel([tickets[0], tickets[-1]])  # one is running, one waits
    worker.step()
    state = worker.state()
    assert (state.running, state.waiting, state.cancelled) == (SLOTS, 1, 2)
    drain(worker)
    worker.cancel(tickets)  # complete ones stay
    assert (worker.state().served, worker.state().cancelled) == (SLOTS + 1, 2)
    assert not tickets[0].done


def test_too_many_requests_are_refused_all_or_none(catalog, tokenizer):
    worker = make_worker(catalog, waiting=2)
    worker.submit(jobs_of(tokenizer, SLOTS + 1))
    with pytest.raises(QueueFull, match="at most 6 replies at a time"):
        worker.submit(jobs_of(tokenizer, 2))
    assert worker.state().waiting == SLOTS + 1
    worker.submit(jobs_of(tokenizer, 1))
    drain(worker)
    worker.submit(jobs_of(tokenizer, SLOTS + 2))
    drain(worker)


def test_a_model_that_cant_be_had_fails_alone(catalog, tokenizer):
    worker = make_worker(catalog)
    broken = worker.submit(jobs_of(tokenizer, 2, model="broken"))
    fine = worker.submit(jobs_of(tokenizer, 2))
    drain(worker)
    assert all(isinstance(ticket.take().error, ValueError) for ticket in broken)
    assert all(ticket.take().finish for ticket in fine)
    assert (worker.state().failed, worker.state().served) == (2, 2)


def test_a_model_that_computes_nan_fails_alone(models, tokenizer):
    import dataclasses

    import jax.numpy as jnp

    params = models["two"].params
    bad = dataclasses.replace(models["two"], params=params | {"norm": jnp.full_like(params["norm"], jnp.nan)})
    catalog = SeveralModels({**models, "two": bad})
    worker = make_worker(catalog)
    broken, fine = worker.submit(jobs_of(tokenizer, 2, model="two")), worker.submit(jobs_of(tokenizer, 2))
    drain(worker)
    assert all(isinstance(ticket.take().error, NonFiniteError) for ticket in broken)
    assert all(ticket.take().finish for ticket in fine)
    (ticket,) = worker.submit([Job("two", (5, 6), 0, logprobs=1, echo="")])
    drain(worker)
    assert isinstance(ticket.take().error, NonFiniteError)
    assert (worker.state().failed, worker.state().served) == (3, 2)


def test_scores_and_replies_do_not_disturb_each_other(catalog, tokenizer, reference):
    worker = make_worker(catalog)
    jobs = jobs_of(tokenizer, 2 * SLOTS, seed=6)
    scored = [Job("one", job.prompt, 0, logprobs=2, echo="x") for job in jobs]
    tickets = worker.submit([job for pair in zip(jobs, scored, strict=True) for job in pair])
    drain(worker)
    for ticket in tickets:
        news = ticket.take()
        if ticket.job.max_new_tokens:
            assert news.text == text_of(tokenizer, reference(ticket.job).ids)
            assert news.scored is None
        else:
            assert (news.text, news.tokens, news.finish) == ("x", 0, "length")
            assert news.scored.ids == ticket.job.prompt
            assert len(news.scored.logprobs) == len(news.scored.top) == len(ticket.job.prompt)


def test_closing_finishes_what_was_accepted(catalog, tokenizer):
    worker = make_worker(catalog)
    worker.start()
    tickets = worker.submit(jobs_of(tokenizer, 9))
    assert worker.close(WAIT_S)
    assert all(ticket.take().finish for ticket in tickets)
    assert not worker.open
    with pytest.raises(ServerClosed, match="stopping"):
        worker.submit(jobs_of(tokenizer, 1))


def test_closing_ends_what_takes_too_long(catalog, tokenizer):
    worker = make_worker(catalog, slots=1)
    worker.start()
    tickets = worker.submit([Job("one", (5, 6), 80) for _ in range(40)])
    assert not worker.close(0)
    assert isinstance(tickets[-1].wait(WAIT_S).error, ServerClosed)


@pytest.mark.exhaustive
def test_requests_come_and_go_from_many_threads(catalog, tokenizer, worker, reference):
    found, failures = [], []

    def client(number):
        try:
            for job in jobs_of(tokenizer, 3, seed=number, model=NAMES[number % len(NAMES)]):
                (ticket,) = worker.submit([job])
                if number % 4 == 3:
                    time.sleep(0.005)
                    worker.cancel([ticket])
                else:
                    found.append((job, ticket.wait(WAIT_S).text))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(found) == 18
    for job, text in found:
        assert text == text_of(tokenizer, reference(job).ids)
