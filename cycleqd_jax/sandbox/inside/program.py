"""Runs Python source as ``python -I -S -B main.py`` would, in a forked interpreter that then exits."""

from __future__ import annotations

import atexit
import builtins
import contextlib
import gc
import io
import os
import sys
import threading
import types

__all__ = ["preload", "run"]

_exit = os._exit  # a program may replace that of the module

# fmt: off
_PRELOADED = (
    "argparse", "ast", "base64", "bisect", "cmath", "collections", "contextlib", "copy", "csv", "dataclasses", "datetime",
    "decimal", "enum", "fractions", "functools", "hashlib", "heapq", "inspect", "itertools", "json", "keyword",
    "linecache", "math", "numbers", "operator", "pprint", "queue", "random", "re", "sqlite3", "statistics",
    "string", "struct", "textwrap", "time", "timeit", "traceback", "typing", "unicodedata", "unittest", "uuid",
    "warnings", "zlib",
)
# fmt: on


def preload() -> None:
    """Imports modules that programs often import, so that forks have them already."""
    for name in _PRELOADED:
        try:
            __import__(name)
        except ImportError:  # such as in a Python built without SQLite
            continue


def run(source: str, path: str) -> None:
    """Runs ``source`` as ``__main__`` with the process's standard streams, and ends the process.

    Args:
        source: the program.
        path: where to write the program, for tracebacks; the folder must be writable.
    """
    # Make the sandbox's own modules unavailable to the program.
    for name in [name for name in sys.modules if name == "inside" or name.startswith("inside.")]:
        del sys.modules[name]
    _open_streams()
    main = types.ModuleType("__main__")
    main.__dict__.update(__file__=path, __builtins__=builtins)
    sys.modules["__main__"] = main
    sys.argv = sys.orig_argv = [path]
    gc.enable()  # objects from before the fork stay frozen, so collections skip them
    code = 1
    try:
        data = source.encode("utf-8", "surrogatepass")
        with open(path, "wb") as file:
            file.write(data)
        exec(compile(data, path, "exec", dont_inherit=True), main.__dict__)
        code = 0
    except SystemExit as exit_:
        code = _exit_code(exit_.code)
    except BaseException as error:
        _report(error)
    try:
        threading._shutdown()  # pyright: ignore[reportAttributeAccessIssue]
        atexit._run_exitfuncs()
    except BaseException as error:
        _report(error)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BaseException:
            code = code or 120  # as in the interpreter
    _exit(code)


def _open_streams() -> None:
    sys.stdin = sys.__stdin__ = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)), "utf-8")
    # Line-buffered, so that both streams keep their order in one pipe.
    for fd, name in ((1, "stdout"), (2, "stderr")):
        raw = io.BufferedWriter(io.FileIO(fd, "wb", closefd=False))
        stream = io.TextIOWrapper(raw, "utf-8", errors="backslashreplace" if fd == 2 else "strict", line_buffering=True)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def _exit_code(code: object) -> int:
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF
    try:
        print(code, file=sys.stderr)
    except BaseException:  # its text is made by the program, and sys.stderr may be
        return 1
    return 1


def _report(error: BaseException) -> None:
    frames = error.__traceback__
    if frames is not None and frames.tb_frame.f_code is run.__code__:
        frames = frames.tb_next
    with contextlib.suppress(BaseException):  # the program may have broken sys.excepthook
        sys.excepthook(type(error), error.with_traceback(frames), frames)
