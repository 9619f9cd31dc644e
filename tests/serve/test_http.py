"""The server over HTTP: OpenAI's own client, errors in its form, access, and clients that misbehave."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time

import httpx
import openai
import pytest
from starlette.datastructures import URL
from starlette.requests import Request

from cycleqd_jax.serve import Job
from cycleqd_jax.serve.errors import ApiError
from cycleqd_jax.serve.http import Access, EventStream, read_body
from cycleqd_jax.types import InputError

from .small_server import MAX_LEN, NAMES, SeveralModels, serving

WAIT_S = 120
HELLO = [{"role": "user", "content": "hello world"}]


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0, timeout=WAIT_S) as client:
        yield client


def expected(reference, tokenizer, model="one", tokens=20, messages=HELLO):
    found = reference(Job(model, tuple(tokenizer.encode(messages)), tokens))
    ids = found.ids
    return tokenizer.decode(ids[:-1] if ids[-1] in tokenizer.stop_ids else ids), found


def until(condition):
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def post(server, path="/v1/chat/completions", **request):
    return httpx.post(server.address + path, timeout=WAIT_S, **request)


def body(**changes):
    return {"model": "one", "messages": HELLO, "temperature": 0, "max_tokens": 5, **changes}


def test_models(client):
    assert [one.id for one in client.models.list()] == list(NAMES)
    assert client.models.retrieve("two").id == "two"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("four/five:6")
    assert caught.value.code == "model_not_found"


@pytest.mark.exhaustive
@pytest.mark.parametrize("model", NAMES)
def test_chat_equals_the_engine(client, reference, tokenizer, model):
    reply = client.chat.completions.create(model=model, messages=HELLO, temperature=0, max_tokens=20)
    text, found = expected(reference, tokenizer, model)
    assert reply.choices[0].message.content == text
    assert reply.choices[0].finish_reason == found.finish
    assert reply.usage.completion_tokens == len(found.ids)
    assert reply.usage.prompt_tokens == len(tokenizer.encode(HELLO))
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens


def test_a_stream_equals_the_engine(client, reference, tokenizer):
    options = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(client.chat.completions.create(model="one", messages=HELLO, temperature=0, max_tokens=20, **options))
    text, found = expected(reference, tokenizer)
    choices = [chunk.choices[0] for chunk in chunks[:-1]]
    assert "".join(one.delta.content or "" for one in choices) == text
    assert [one.finish_reason for one in choices][-1] == found.finish
    assert choices[0].delta.role == "assistant"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == len(found.ids)


def test_the_asynchronous_client(server, reference, tokenizer):
    async def ask():
        async with openai.AsyncOpenAI(base_url=f"{server.address}/v1", api_key="none", timeout=WAIT_S) as client:

            async def one(model):
                request = client.chat.completions.create
                stream = await request(model=model, messages=HELLO, temperature=0, max_tokens=20, stream=True)
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

            return await asyncio.gather(*map(one, NAMES * 2))

    assert asyncio.run(ask()) == [expected(reference, tokenizer, model)[0] for model in NAMES * 2]


def test_several_choices_have_seeds_of_their_own(client):
    options = {"model": "one", "messages": HELLO, "temperature": 1.5, "max_tokens": 20}
    several = client.chat.completions.create(**options, n=3, seed=4)
    singles = [client.chat.completions.create(**options, seed=4 + i).choices[0] for i in range(3)]
    assert [one.index for one in several.choices] == [0, 1, 2]
    assert [one.message.content for one in several.choices] == [one.message.content for one in singles]
    assert len({one.message.content for one in several.choices}) > 1


def test_completions(client, reference, tokenizer):
    ids = [[5, 6, 7], [9, 8]]
    found = client.completions.create(model="one", prompt=ids, temperature=0, max_tokens=9)
    for choice, prompt in zip(found.choices, ids, strict=True):
        generation = reference(Job("one", tuple(prompt), 9))
        kept = [i for i in generation.ids if i not in tokenizer.stop_ids]
        assert (choice.text, choice.finish_reason) == (tokenizer.decode(kept), generation.finish)
    assert found.usage.prompt_tokens == 5
    whole = client.completions.create(model="one", prompt="hello", temperature=0).choices[0].text
    chunks = client.completions.create(model="one", prompt="hello", temperature=0, stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole != ""


def test_a_stop_string(client, reference, tokenizer):
    text, _ = expected(reference, tokenizer)
    stop = text[3:5]
    for stream in (False, True):
        reply = client.chat.completions.create(
            model="one", messages=HELLO, temperature=0, max_tokens=20, stop=[stop, "never"], stream=stream
        )
        if stream:
            choices = [chunk.choices[0] for chunk in reply]
            got, finish = "".join(one.delta.content or "" for one in choices), choices[-1].finish_reason
        else:
            got, finish = reply.choices[0].message.content, reply.choices[0].finish_reason
        assert (got, finish) == (text[: text.index(stop)], "stop")


def test_a_prompt_that_is_too_long(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="one", prompt=[5] * MAX_LEN)
    assert caught.value.code == "context_length_exceeded"
    assert caught.value.param == "prompt"
    found = client.completions.create(model="one", prompt=[5] * (MAX_LEN - 1), max_tokens=50)
    assert found.usage.completion_tokens == 1


def test_errors_have_the_form_of_the_api(server):
    for status, answer in [
        (400, post(server, content=b"{", headers={"Content-Type": "application/json"})),
        (400, post(server, json=[])),
        (400, post(server, json=body(nothing=1))),
        (400, post(server, json=body(messages=[]))),
        (400, post(server, json=body(top_logprobs=1))),
        (400, post(server, "/v1/completions", json={"model": "one", "prompt": [10**6], "echo": True, "max_tokens": 0})),
        (400, post(server, json=body(n=17))),
        (400, post(server, "/v1/completions", json={"model": "one", "prompt": [10**6]})),
        (404, post(server, json=body(model="four"))),
        (404, post(server, "/v1/nothing", json={})),
        (405, httpx.get(f"{server.address}/v1/completions")),
        (413, post(server, json=body(user="x" * 2**20))),
        (413, post(server, content=b"x" * 2**23, headers={"Content-Type": "application/json"})),
        (413, post(server, content=iter([b"x" * 2**19] * 3), headers={"Content-Type": "application/json"})),
        (415, post(server, content=json.dumps(body()), headers={"Content-Type": "text/plain"})),
        (500, post(server, json=body(model="broken"))),
    ]:
        assert answer.status_code == status
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert isinstance(error["message"], str)
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert httpx.get(f"{server.address}/v1/completions").headers["allow"] == "POST"
    assert post(server, json=body()).status_code == 200  # the server goes on


def test_a_run_that_is_damaged_meanwhile_is_named(server, monkeypatch):
    def damaged(*_):
        raise InputError("expected a line of the journal, got other text in history.jsonl; restore the file")

    monkeypatch.setattr(SeveralModels, "entries", damaged)
    monkeypatch.setattr(SeveralModels, "resolve", damaged)
    for answer in (httpx.get(f"{server.address}/v1/models"), post(server, json=body())):
        assert answer.status_code == 503
        assert "got other text in history.jsonl" in answer.json()["error"]["message"]


def test_a_body_that_breaks_off_is_no_fault_of_the_server():
    async def receive():
        return {"type": "http.disconnect"}

    scope = {"type": "http", "headers": [(b"content-type", b"application/json")]}
    with pytest.raises(ApiError, match="a part of it"):
        asyncio.run(read_body(Request(scope, receive), 100))


def test_too_many_prompts_are_refused_before_they_are_encoded(server, monkeypatch):
    encoded = []
    monkeypatch.setattr(type(server.catalog.tokenizer), "encode_text", lambda self, text: encoded.append(text))
    answer = post(server, "/v1/completions", json={"model": "one", "prompt": ["a"] * 1000})
    assert answer.status_code == 400
    assert "replies for one request, got 1000" in answer.json()["error"]["message"]
    assert not encoded


def test_the_path_that_needs_a_key_is_that_of_the_router(monkeypatch):
    passed, statuses = [], []

    async def app(scope, receive, send):
        passed.append(scope)

    async def send(message):
        statuses.append(message.get("status"))

    # Older releases of Starlette put the header Host before the path without a check.
    monkeypatch.setattr(Request, "url", URL("http://localhost:80/static/x?/v1/models"))
    scope = {"type": "http", "path": "/v1/models", "headers": [(b"host", b"localhost:80/static/x?")]}
    asyncio.run(Access(app, key="secret", local_only=True)(scope, None, send))
    assert not passed
    assert statuses[0] == 401


def test_connections_that_send_no_request_are_closed(models, monkeypatch):
    monkeypatch.setattr("cycleqd_jax.serve.server.HEAD_S", 0.3)
    with serving(SeveralModels(models)) as server, httpx.Client(base_url=server.address) as client:
        assert client.get("/health").status_code == 200
        for sent in (b"", b"GET /health HTTP/1.1\r\nHost: loc"):
            with socket.create_connection(("127.0.0.1", server.port), timeout=WAIT_S) as connection:
                connection.sendall(sent)
                assert connection.recv(1) == b""
        assert client.get("/health").status_code == 200  # on the connection that has had a request
        with socket.create_connection(("127.0.0.1", server.port), timeout=WAIT_S) as connection:
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /hea")  # a second head that stays a part
            time.sleep(0.1)
            connection.sendall(b"lth HT")
            with connection.makefile("rb") as answer:
                assert answer.read().count(b"HTTP/1.1 200") == 1


def test_connections_beyond_the_limit_get_an_error_of_the_api(models, monkeypatch):
    monkeypatch.setattr("cycleqd_jax.serve.server.CONNECTIONS", 2)
    with serving(SeveralModels(models)) as server:
        with httpx.Client(base_url=server.address) as first, httpx.Client(base_url=server.address) as second:
            assert [client.get("/health").status_code for client in (first, second)] == [200, 200]
            answer = httpx.get(f"{server.address}/v1/models")
            assert answer.status_code == 503
            assert answer.json()["error"]["code"] == "unavailable"
            assert answer.headers["connection"] == "close"
            assert answer.headers["retry-after"] == "5"
            assert first.get("/health").status_code == 200
        until(lambda: httpx.get(f"{server.address}/health").status_code == 200)


def test_an_error_within_a_stream(client):
    with pytest.raises(openai.APIError, match="an unexpected error in the server"):
        list(client.chat.completions.create(model="broken", messages=HELLO, stream=True))


def test_names_of_other_machines_are_refused(server):
    answer = post(server, json=body(), headers={"Host": "example.org"})
    assert answer.status_code == 403
    for name in ("127.0.0.1.example.org", "[::2]", "128.0.0.1", "[::1", "::1", ""):
        assert httpx.get(f"{server.address}/health", headers={"Host": name}).status_code in (400, 403)
    for name in ("localhost", "LOCALHOST:8000", "127.0.0.1:1", "127.8.9.10", "[::1]:80"):
        assert httpx.get(f"{server.address}/health", headers={"Host": name}).status_code == 200


def raw(server, request):
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=WAIT_S)
    content = json.dumps(request).encode()
    head = ["POST /v1/chat/completions HTTP/1.1", "Host: localhost", "Content-Type: application/json", "Connection: close"]
    connection.sendall("\r\n".join([*head, f"Content-Length: {len(content)}", "", ""]).encode() + content)
    return connection


class Gated(SeveralModels):
    """Its models can be had once ``gate`` is set."""

    def __init__(self, models):
        super().__init__(models)
        self.gate = threading.Event()

    def express(self, key):
        assert self.gate.wait(WAIT_S)
        return super().express(key)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_leaves_the_queue(models, stream):
    catalog = Gated(models)
    with serving(catalog) as server:
        clients = [raw(server, body(stream=stream)) for _ in range(3)]
        until(lambda: server.worker.state().waiting == 3)
        for client in clients[:2]:
            client.close()
        until(lambda: server.worker.state().cancelled == 2)
        catalog.gate.set()
        with clients[2] as client, client.makefile("rb") as answer:
            assert answer.readline().startswith(b"HTTP/1.1 200")
        until(lambda: server.worker.state().running == 0)


def test_a_client_that_goes_away_leaves_the_engine(models, monkeypatch):
    with serving(SeveralModels(models)) as server:
        advance = server.worker._engine.advance
        monkeypatch.setattr(server.worker._engine, "advance", lambda: time.sleep(0.3) or advance())
        with raw(server, body(max_tokens=80, stream=True)) as client, client.makefile("rb") as stream:
            while b'"content":"' not in (line := stream.readline()) or b'"content":""' in line:
                assert line
            assert server.worker.state().running == 1
        until(lambda: server.worker.state().cancelled == 1)
        assert server.worker.state().running == 0


def test_a_slow_reader_stops_nobody_and_gets_everything(server, reference, tokenizer):
    slow = raw(server, body(max_tokens=20, stream=True))
    time.sleep(0.1)
    assert post(server, json=body()).status_code == 200
    received = b""
    while b"[DONE]" not in received:
        part = slow.recv(40)
        assert part
        received += part
    slow.close()
    events = [line[6:] for line in received.decode().splitlines() if line.startswith("data: {")]
    text = "".join(json.loads(event)["choices"][0]["delta"].get("content", "") for event in events)
    assert text == expected(reference, tokenizer)[0]


def test_a_key(models):
    with serving(SeveralModels(models), key="secret") as server:
        assert httpx.get(f"{server.address}/health").status_code == 200
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "secret"}, {"Cookie": "cycleqd_session=x"}):
            answer = httpx.get(f"{server.address}/v1/models", headers=headers)
            assert answer.status_code == 401
            assert answer.json()["error"]["code"] == "invalid_api_key"
            assert "secret" not in answer.text
        with openai.OpenAI(base_url=f"{server.address}/v1", api_key="secret") as client:
            assert [one.id for one in client.models.list()] == list(NAMES)
        with httpx.Client(base_url=server.address) as client:
            assert client.post("/session", json={"key": "wrong"}).status_code == 401
            cookie = client.post("/session", json={"key": "secret"}).headers["set-cookie"]
            assert "HttpOnly" in cookie
            assert "SameSite=strict" in cookie
            assert "secret" not in cookie
            assert client.get("/v1/models").status_code == 200


@pytest.mark.exhaustive
def test_a_full_queue_says_when_to_come_back(models):
    catalog = Gated(models)
    with serving(catalog, slots=1, waiting=1) as server:
        clients = [raw(server, body(stream=True)) for _ in range(2)]
        until(lambda: server.worker.state().waiting == 2)
        answer = post(server, json=body())
        assert answer.status_code == 429
        assert answer.headers["retry-after"] == "1"
        assert answer.json()["error"]["code"] == "queue_full"
        catalog.gate.set()
        for client in clients:
            with client, client.makefile("rb") as stream:
                assert b"data: [DONE]\n" in iter(stream.readline, b"")
        assert post(server, json=body()).status_code == 200


def test_a_reply_that_the_end_of_the_server_cuts_off(models):
    catalog = Gated(models)
    with serving(catalog) as server, raw(server, body(stream=True, max_tokens=80)) as client:
        until(lambda: server.worker.state().waiting == 1)
        server.worker.abandon()
        catalog.gate.set()
        with client.makefile("rb") as stream:
            events = [line for line in iter(stream.readline, b"") if line.startswith(b"data: ")]
            assert json.loads(events[-2][6:])["error"]["code"] == "unavailable"


def test_a_server_that_stops_refuses_new_requests(models):
    with serving(SeveralModels(models)) as server:
        assert server.worker.close(WAIT_S)
        answer = post(server, json=body())
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "unavailable"
        assert httpx.get(f"{server.address}/health").json()["status"] == "stopping"


def test_a_client_that_never_reads_is_dropped():
    closed = []

    async def values():
        while True:
            yield {"text": "x"}

    async def receive():
        await asyncio.Event().wait()

    async def send(message):
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()  # the socket is full

    stream = EventStream(values(), 0.05, lambda: closed.append(True))
    asyncio.run(asyncio.wait_for(stream({"type": "http"}, receive, send), WAIT_S))
    assert closed == [True]
