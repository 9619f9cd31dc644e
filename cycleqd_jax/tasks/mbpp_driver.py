"""Runs a candidate program against asserts. Executed inside the sandbox as a script; never imported by the package.

Standard input: 16 hexadecimal digits (the length of the job), the job as JSON, then 32 hexadecimal digits, the *nonce*. The
job has ``code``, ``setup``, ``imports`` (texts), ``asserts`` (list of texts) and ``names`` (which of the program's names the
asserts may use). Standard output: ``<nonce> ready``, then ``<nonce> {"passed": …, "error": …}``.

The program and the asserts run in a forked child without standard streams; this process alone knows the nonce, which it
reads after the fork. Before each assert the child is sent a fresh token that it has to return when the assert held: leaving
early, printing or killing proves nothing. Asserts see pristine built-ins and the named functions only, and results whose
equality is defined by the program itself are refused. What this does not stop: a program that knows this file, finds the
child's socket among its open files and answers on it from within an assert.
"""

import builtins
import contextlib
import json
import os
import signal
import socket
import sys
import types

CANDIDATE = "<program>"


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
    """A result that decides itself what it is equal to."""


def check_plain(value, depth=4):
    """Refuses instances whose ``__eq__`` was defined by the program."""
    kind = next(kind for kind in type(value).__mro__ if "__eq__" in vars(kind))
    method = vars(kind)["__eq__"]
    code = getattr(method, "__code__", None)
    native = isinstance(method, (types.WrapperDescriptorType, types.MethodDescriptorType))
    if not native and (code is None or code.co_filename == CANDIDATE):
        raise Forged("the result defines its own equality")
    if depth and type(value) in (list, tuple, set, frozenset):
        for item in value:
            check_plain(item, depth - 1)
    elif depth and type(value) is dict:
        for item in value.values():
            check_plain(item, depth - 1)


def checked(function):
    """``function`` with its results checked; anything that isn't a plain function is passed through."""
    if type(function) is not type(checked):
        return function

    def call(*args, **kwargs):
        result = function(*args, **kwargs)
        check_plain(result)
        return result

    return call


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
    tests = {"__name__": "tests", "__builtins__": dict(pristine)}
    try:
        compiled = [compile(text, f"<assert {n}>", "exec", optimize=0) for n, text in enumerate(job["asserts"], 1)]
        exec(compile(job["imports"], "<imports>", "exec"), tests)
        modules = [(vars(m), dict(vars(m))) for m in tests.values() if type(m) is type(builtins)]
        namespace = {"__name__": "__main__"}
        exec(compile(job["code"], CANDIDATE, "exec", optimize=0), namespace)
        stage = "setup"
        exec(compile(job["setup"], "<setup>", "exec"), namespace)
        for current, before in [(vars(builtins), pristine), *modules]:
            current.update(before)
        tests.update((name, checked(namespace[name])) for name in job["names"] if name in namespace)
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
