"""Measures a server under load: latencies, rates, failures and memory; prints JSON, or a Markdown table.

python scripts/bench_serve.py [--clients 64] [--seconds 120] [--model MODEL] [--markdown]

The server is a process of its own: `cycleqd serve`, of a small random model unless --model names one. Clients are of five
kinds, in turn: streams, whole replies, streams that are left after a few tokens, streams that are read slowly, and bodies that
are malformed or too large. A request that is refused with status 429 is repeated after a pause and is not counted as lost.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
KINDS = ("stream", "whole", "cancelled", "slow", "bad")
SLOW_S = 0.02
"""Pause of a slow reader after every piece."""


@dataclasses.dataclass
class Load:
    """What the clients saw.

    Attributes:
        first: seconds until the first text of a stream.
        whole: seconds until the end of streams and whole replies; slow readers are not counted.
        done: requests that ended as they should, by kind.
        lost: what went wrong otherwise.
        tokens: generated for streams and whole replies.
        refused: answers with status 429.
    """

    first: list[float] = dataclasses.field(default_factory=list)
    whole: list[float] = dataclasses.field(default_factory=list)
    done: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    lost: list[str] = dataclasses.field(default_factory=list)
    tokens: int = 0
    refused: int = 0


def make_model(folder: Path) -> None:
    """Writes a random model of about 100,000 parameters."""
    import jax

    from cycleqd_jax.models import llama
    from cycleqd_jax.models.files import hf
    from cycleqd_jax.models.tokenizer import train_tiny_tokenizer

    tokenizer = train_tiny_tokenizer(["def f(x): return x", "SELECT a FROM b", "hello world"] * 4, 300)
    size = tokenizer.vocab_size
    config = llama.LlamaConfig(size, 64, 128, 2, 4, 2, 16, max_position_embeddings=256, initializer_range=0.4)
    hf.save(folder, config, llama.init_params(config, jax.random.key(0)), tokenizer=tokenizer)


@contextlib.contextmanager
def server(model: str, *options: str) -> Iterator[tuple[str, int]]:
    """Starts a server; its address and its process id. It must stop with code 0."""
    command = [sys.executable, "-m", "cycleqd_jax.cli", "serve", model, "--port", "0", *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if found := re.search(r"^serving .* at (http://\S+) ", line):
                break
        else:
            raise SystemExit("expected a server, got:\n" + "".join(lines))
        yield found[1], process.pid
        process.send_signal(signal.SIGTERM)
        _, rest = process.communicate(timeout=120)
        if process.returncode != 0:
            raise SystemExit(f"expected the server to exit with 0, got {process.returncode}:\n{rest}")
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def resident(pid: int) -> float:
    """MiB of memory that a process has in use."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def request_of(model: str, kind: str, number: int) -> dict:
    """A chat completion; every other one is greedy."""
    text = f"request {number} " + "word " * (number % 20)
    found = {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 8 + number % 33}
    return (
        found
        | {"temperature": number % 2, "seed": number, "stream": kind != "whole"}
        | ({"stream_options": {"include_usage": True}} if kind != "whole" else {})
    )


async def ask(client: httpx.AsyncClient, model: str, kind: str, number: int, load: Load) -> bool:
    """One request; returns whether it was refused because the queue is full."""
    start = time.monotonic()
    path, request = "/v1/chat/completions", request_of(model, kind, number)
    if kind == "bad":
        content = [b'{"model":', b"\xff\xfe", b"[" * 50_000, b'{"x": "' + b"y" * 2**21 + b'"}'][number % 4]
        answer = await client.post(path, content=content, headers={"Content-Type": "application/json"})
        expected = 413 if number % 4 == 3 else 400
        if answer.status_code != expected or set(answer.json()["error"]) != {"message", "type", "param", "code"}:
            load.lost.append(f"bad body: status {answer.status_code}")
    elif kind == "whole":
        answer = await client.post(path, json=request)
        if answer.status_code == 429:
            return True
        answer.raise_for_status()
        load.tokens += answer.json()["usage"]["completion_tokens"]
        load.whole.append(time.monotonic() - start)
    else:
        async with client.stream("POST", path, json=request) as answer:
            if answer.status_code == 429:
                return True
            answer.raise_for_status()
            pieces, last, tokens = 0, "", 0
            async for line in answer.aiter_lines():
                if not line.startswith("data: "):
                    continue
                last = line[6:]
                if last == "[DONE]":
                    break
                chunk = json.loads(last)
                if "error" in chunk:
                    raise RuntimeError(chunk["error"]["message"])
                if chunk["usage"]:
                    tokens = chunk["usage"]["completion_tokens"]
                if any(choice["delta"].get("content") for choice in chunk["choices"]):
                    pieces += 1
                    if pieces == 1 and kind == "stream":
                        load.first.append(time.monotonic() - start)
                if kind == "slow":
                    await asyncio.sleep(SLOW_S)
                if kind == "cancelled" and pieces == 2:
                    break
            if kind != "cancelled" and (last != "[DONE]" or tokens < 1):
                load.lost.append(f"{kind}: the stream ended with {last[:60]!r}")
            if kind == "stream":
                load.tokens += tokens
                load.whole.append(time.monotonic() - start)
    load.done[kind] += 1
    return False


async def clients(address: str, model: str, count: int, seconds: float, pid: int) -> tuple[Load, list[float]]:
    """Runs clients until the time is over; what they saw, and the server's memory once a second."""
    load, memory, end = Load(), [], time.monotonic() + seconds
    limits = httpx.Limits(max_connections=count + 8)

    async def one(client: httpx.AsyncClient, number: int) -> None:
        turn = 0
        while time.monotonic() < end:
            kind = KINDS[(number + turn) % len(KINDS)]
            try:
                if await ask(client, model, kind, number * 1000 + turn, load):
                    load.refused += 1
                    await asyncio.sleep(0.2)
                    continue
            except Exception as error:  # everything that is not an answer counts as lost
                load.lost.append(f"{kind}: {type(error).__name__}: {error}")
            turn += 1

    async def watch() -> None:
        while time.monotonic() < end:
            memory.append(resident(pid))
            await asyncio.sleep(1)

    async with httpx.AsyncClient(base_url=address, timeout=120, limits=limits) as client:
        await asyncio.gather(watch(), *(one(client, number) for number in range(count)))
    return load, memory


def measure(model: str | None, count: int, seconds: float, warm_up_s: float) -> dict:
    """Starts a server, warms it up, and measures it.

    Args:
        model: a model folder, or None for a small random one.
        count: clients at a time.
        seconds: of the measurement.
        warm_up_s: seconds of the same load before it.

    Returns:
        Figures, ready for JSON.
    """
    with tempfile.TemporaryDirectory() as folder:
        if model is None:
            model = f"{folder}/random"
            make_model(Path(model))
        with server(model, "--waiting", str(2 * count)) as (address, pid):
            name = httpx.get(f"{address}/v1/models").json()["data"][0]["id"]
            asyncio.run(clients(address, name, count, warm_up_s, pid))
            start = time.monotonic()
            load, memory = asyncio.run(clients(address, name, count, seconds, pid))
            took = time.monotonic() - start
            for _ in range(200):  # clients have disconnected, and their requests must end
                state = httpx.get(f"{address}/health").json()
                if state["running"] == state["waiting"] == 0:
                    break
                time.sleep(0.1)
            after = resident(pid)
    quarter = max(len(memory) // 4, 1)
    return {
        "clients": count,
        "seconds": round(took, 1),
        "requests": dict(sorted(load.done.items())),
        "lost": load.lost,
        "refused": load.refused,
        "left_running": state["running"] + state["waiting"],
        "cancelled_by_server": state["cancelled"],
        "tokens_per_s": round(load.tokens / took, 1),
        "first_text_ms": percentiles(load.first),
        "whole_ms": percentiles(load.whole),
        "memory_mib": {
            "first_quarter": round(float(np.median(memory[:quarter])), 1),
            "last_quarter": round(float(np.median(memory[-quarter:])), 1),
            "after": round(after, 1),
        },
    }


def percentiles(seconds: list[float]) -> dict[str, float]:
    """Milliseconds at several percentiles."""
    if not seconds:
        return {}
    return {f"p{p}": round(1000 * float(np.percentile(seconds, p)), 1) for p in (50, 90, 95, 99)}


def markdown(found: dict) -> str:
    """The figures as a table."""
    rows = {
        "clients": found["clients"],
        "seconds": found["seconds"],
        "requests by kind": ", ".join(f"{kind} {count}" for kind, count in found["requests"].items()),
        "lost": len(found["lost"]),
        "refused with 429, then repeated": found["refused"],
        "tokens/s of streams and whole replies": found["tokens_per_s"],
    }
    for key, label in (("first_text_ms", "first text of a stream (ms)"), ("whole_ms", "whole reply (ms)")):
        rows[label] = ", ".join(f"{name} {value:g}" for name, value in found[key].items())
    rows["memory of the server (MiB)"] = ", ".join(f"{k.replace('_', ' ')} {v:g}" for k, v in found["memory_mib"].items())
    return "\n".join(["| figure | value |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items())])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", metavar="MODEL", help="a Hugging Face folder (default: a small random model)")
    parser.add_argument("--clients", type=int, default=16, metavar="N", help="clients at a time (16)")
    parser.add_argument("--seconds", type=float, default=10, metavar="S", help="length of the measurement (10)")
    parser.add_argument("--warm-up", type=float, default=3, metavar="S", help="seconds of load before it (3)")
    parser.add_argument("--markdown", action="store_true", help="print a table instead of JSON")
    args = parser.parse_args()
    found = measure(args.model, args.clients, args.seconds, args.warm_up)
    print(markdown(found) if args.markdown else json.dumps(found, indent=2))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
