"""Runs a candidate program against asserts. Executed inside the sandbox as a script; never imported by the package.

Standard input: 16 hexadecimal digits (the length of the job), the job as JSON, then 32 hexadecimal digits, the *nonce*. The
job has ``code``, ``setup``, ``imports`` (texts), ``asserts`` (list of texts) and ``names`` (which of the program's names the
asserts may use). Standard output: ``<nonce> ready``, then ``<nonce> {"passed": …, "error": …}``.

The program and the asserts run in a forked child without standard streams; this process alone knows the nonce, which it
reads after the fork. Before each assert the child is sent a fresh token that it has to return when the assert held: leaving
early, printing or killing proves nothing. Asserts see pristine built-ins and the named functions only, and call
``__plain__`` on what they compare, which refuses results whose equality is the program's own. What this does not stop: a
program that knows this file, finds the child's socket among its open files and answers on it from within an assert.
"""

import array
import builtins
import collections
import contextlib
import datetime
import decimal
import fractions
import json
import os
import signal
import socket
import sys
import types


def read_exactly(descriptor, count):
    """``count`` bytes from a file descriptor."""
    chunks = []
    while count:
        chunk = os.read(descriptor, count)
        if not chunk:
            raise EOFError
        chunks.append(chunk)
        count -= len(chunk)
    return b"".join(chunks)


class Forged(Exception):
    """A value that decides itself what it is equal to."""


# What asserts do with a value has to be done by these classes, not by the program's.
NATIVE = (
    object, type, int, float, complex, bool, str, bytes, bytearray, range, list, tuple, set, frozenset, dict, type({}.keys()),
    type({}.items()), collections.deque, collections.OrderedDict, collections.defaultdict, array.array, decimal.Decimal,
    datetime.date, datetime.datetime, datetime.time, datetime.timedelta, datetime.timezone,
)  # fmt: skip
# The standard library's classes in Python that are results now and then. They can be patched, hence the copies.
WRITTEN = {kind: dict(vars(kind)) for kind in (collections.Counter, fractions.Fraction)}
CODES = [(m, m.__code__) for members in WRITTEN.values() for m in members.values() if type(m) is types.FunctionType]
DECIDING = (
    "__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__", "__contains__", "__add__", "__radd__", "__sub__", "__rsub__",
    "__mul__", "__rmul__", "__truediv__", "__rtruediv__", "__floordiv__", "__rfloordiv__", "__mod__", "__rmod__", "__pow__",
    "__rpow__", "__and__", "__rand__", "__or__", "__ror__", "__xor__", "__rxor__", "__neg__", "__pos__", "__invert__",
    "__abs__", "__round__",
)  # fmt: skip
# Classes are told by identity: a metaclass can have equality, hash and attributes of its own.
NATIVE_IDS = frozenset(map(id, NATIVE))
LEAVES = frozenset(map(id, (int, float, str, bool, type(None), complex, bytes, range, types.FunctionType)))
ITERATED = {
    id(kind): kind.__iter__ for kind in (list, tuple, set, frozenset, collections.deque, type({}.keys()), type({}.items()))
}
FRACTION = fractions.Fraction
bases_of = type.__dict__["__mro__"].__get__
members_of = type.__dict__["__dict__"].__get__


def plain(value):
    """``value``, where neither it nor anything in it has operators of its own.

    Raises:
        Forged: a class of the program's (or ``unittest.mock.ANY``, a patched class, a proxy, …) would decide.
    """
    pending, seen = [value], {}
    while pending:
        item = pending.pop()
        kind = type(item)
        if id(kind) in LEAVES or id(item) in seen:
            continue
        seen[id(item)] = item  # kept alive: another could get its id
        bases = bases_of(kind)
        if id(kind) not in NATIVE_IDS and not is_pristine(kind):
            for name in DECIDING:
                base = next((base for base in bases if name in members_of(base)), object)
                if id(base) not in NATIVE_IDS:
                    raise Forged(f"the result defines its own {name}")
        pending.extend(contents(item, bases))
    return value


def is_pristine(kind):
    """Whether it is one of the ``WRITTEN`` classes, as it was before the program."""
    members = next((members for written, members in WRITTEN.items() if written is kind), None)
    if members is None or any(method.__code__ is not code for method, code in CODES):
        return False
    current = members_of(kind)
    return len(current) == len(members) and all(current.get(name) is member for name, member in members.items())


def contents(item, bases):
    """What the equality of ``item`` compares."""
    for base in bases:
        if base is dict:
            return [*dict.keys(item), *dict.values(item)]
        if id(base) in ITERATED:
            return ITERATED[id(base)](item)
        if base is FRACTION:
            return [item._numerator, item._denominator]
    return ()


def describe(error):
    """One short line for the transcript."""
    try:
        return f"{type(error).__name__}: {error}"[:200].encode("utf-8", "replace").decode()
    except BaseException:
        return "error"


def child(link, job):
    """Runs the program, then assert after assert for as long as they hold."""
    stage = "program"
    pristine = dict(vars(builtins))
    tests = {"__name__": "tests", "__builtins__": dict(pristine), "__plain__": plain}
    try:
        compiled = [compile(text, f"<assert {n}>", "exec", optimize=0) for n, text in enumerate(job["asserts"], 1)]
        exec(compile(job["imports"], "<imports>", "exec"), tests)
        modules = [(vars(m), dict(vars(m))) for m in tests.values() if type(m) is type(builtins)]
        namespace = {"__name__": "__main__"}
        exec(compile(job["code"], "<program>", "exec", optimize=0), namespace)
        stage = "setup"
        exec(compile(job["setup"], "<setup>", "exec"), namespace)
        for current, before in [(vars(builtins), pristine), *modules]:
            current.update(before)
        tests.update((name, namespace[name]) for name in job["names"] if name in namespace)
        for number, code in enumerate(compiled, 1):
            stage = f"assert {number}"
            link.sendall(b"?")
            token = link.recv(64)
            exec(code, tests)
            link.sendall(token)
    except BaseException as error:
        with contextlib.suppress(OSError):
            link.sendall(b"!" + json.dumps([stage, describe(error)]).encode())
    os._exit(0)


def unreadable():
    """Bars other processes of the same user from this one's memory and open files."""
    with contextlib.suppress(Exception):
        import ctypes

        ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)  # PR_SET_DUMPABLE


def main():
    """Judges the job on standard input."""
    job = json.loads(read_exactly(0, int(read_exactly(0, 16), 16)))
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)
        ours.close()
        if theirs.recv(2) == b"go":
            child(theirs, job)
        os._exit(1)
    theirs.close()
    nonce = read_exactly(0, 32).decode()
    unreadable()
    print(nonce, "ready", flush=True)
    passed, error = 0, None  # an error of None with asserts left: it ended before the verdict
    with contextlib.suppress(OSError, ValueError, TypeError):
        ours.sendall(b"go")
        for _ in job["asserts"]:
            token = os.urandom(16)
            answer = ours.recv(4096)
            if answer == b"?":
                ours.sendall(token)
                answer = ours.recv(4096)
            if answer != token:
                if answer[:1] == b"!":
                    stage, text = json.loads(answer[1:])
                    error = [str(stage)[:40], str(text)[:200]]
                break
            passed += 1
    with contextlib.suppress(OSError):
        os.kill(pid, signal.SIGKILL)
    print(nonce, json.dumps({"passed": passed, "error": error}), flush=True)
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
