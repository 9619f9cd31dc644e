"""A small random model, and a server of it in a thread."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import jax

from cycleqd_jax.engine import Engine, Model
from cycleqd_jax.models import llama
from cycleqd_jax.models.tokenizer import ChatTokenizer, train_tiny_tokenizer
from cycleqd_jax.serve import EngineWorker, Entry, UnknownModel
from cycleqd_jax.serve.api import Limits
from cycleqd_jax.serve.app import make_app
from cycleqd_jax.serve.catalog import OneModel
from cycleqd_jax.serve.server import _Server, server_config

SLOTS, MAX_LEN = 4, 96
NAMES = ("one", "two", "three")


def tiny_tokenizer() -> ChatTokenizer:
    return train_tiny_tokenizer(["SELECT a FROM b", "def f(x): return x", "hello world"] * 4, 300)


def tiny_model(tokenizer: ChatTokenizer, seed: int = 0, positions: int = 128) -> Model:
    size = tokenizer.vocab_size
    config = llama.LlamaConfig(size, 32, 64, 2, 4, 2, 8, max_position_embeddings=positions, initializer_range=0.4)
    return Model(config, llama.init_params(config, jax.random.key(seed)), tokenizer)


class SeveralModels:
    """A catalog of several random models of one architecture, and of one whose weights can't be had."""

    def __init__(self, models: dict[str, Model], run: Path | None = None) -> None:
        first = next(iter(models.values()))
        self.name = "several"
        self.run = run
        self.tokenizer = first.tokenizer
        self.config = first.config
        self._models = models
        self.expressed: list[str] = []

    def entries(self):
        return [Entry(name, "model") for name in self._models]

    def resolve(self, name):
        if name not in (*self._models, "broken") and not name.startswith("child:"):
            raise UnknownModel(f"expected one of {', '.join(self._models)}, got {name!r}; name one of them")
        return name

    def express(self, key):
        if key == "broken":
            raise ValueError("no such weights")
        self.expressed.append(key)
        return self._models.get(key, self._models["one"]).params, False

    def engine(self, slots: int, max_len: int) -> Engine:
        return OneModel("one", self._models["one"]).engine(slots, max_len)


def make_worker(catalog: SeveralModels, slots: int = SLOTS, max_len: int = MAX_LEN, **options) -> EngineWorker:
    engine = catalog.engine(slots, max_len)

    def load(key) -> None:
        engine.load(catalog.express(key)[0])

    return EngineWorker(engine, catalog.tokenizer, load, **options)


class Serving:
    """A running server.

    Attributes:
        address: its URL.
        worker: its worker.
        catalog: its models.
    """

    def __init__(self, catalog: SeveralModels, worker: EngineWorker, address: str) -> None:
        self.catalog, self.worker, self.address = catalog, worker, address

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])


@contextlib.contextmanager
def serving(
    catalog: SeveralModels, *, max_len: int = MAX_LEN, key: str | None = None, limits: dict | None = None, **options
) -> Iterator[Serving]:
    worker = make_worker(catalog, max_len=max_len, **options)
    app = make_app(catalog, worker, Limits(max_len, **(limits or {})), key=key)
    listener = socket.create_server(("127.0.0.1", 0))
    server = _Server(server_config(app))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])), name="server")
    worker.start()
    thread.start()
    try:
        yield Serving(catalog, worker, f"http://127.0.0.1:{listener.getsockname()[1]}")
    finally:
        worker.close(0)
        server.should_exit = True
        thread.join(30)
        listener.close()
        assert not thread.is_alive()
