"""What a compiled program copies of its arguments."""

from __future__ import annotations

import re

from cycleqd_jax.plan.compiled import collectives


class Flow:
    """Follows the arguments of a compiled program, and lists those that are copied or sent to other devices.

    Args:
        text: HLO.
        least: bytes of the smallest argument that counts.
    """

    MOVES = (
        *("all-gather", "all-reduce", "all-to-all", "broadcast", "collective-permute", "concatenate", "convert", "copy"),
        *("dynamic-slice", "pad", "reduce-scatter", "reshape", "reverse", "select", "slice", "transpose"),
    )
    WORK = ("convolution", "custom-call", "dot", "dynamic-update-slice", "gather", "scatter")

    def __init__(self, text: str, least: int) -> None:
        self.least, self.moved, self.used = least, [], set()
        found = re.findall(r"^(ENTRY )?%?(\S+) \(.*\) -> .*\{\n((?:  .*\n)*)\}", text, re.MULTILINE)
        self.bodies = {name: lines.splitlines() for _, name, lines in found}
        [entry] = [name for is_entry, name, _ in found if is_entry]
        self.run(entry, None)

    def run(self, name: str, given: list | None):
        """The origin of a computation's root: the name of an argument, a list for a tuple, or None for a new array."""
        known: dict[str, object] = {}
        root = None
        for line in self.bodies[name]:
            match = re.match(r"\s*(ROOT )?%?(\S+) = (\(.*?\)|\S+) ([a-z][\w-]*)\((.*)", line)
            if match is None:
                continue
            is_root, out, shape, op, rest = match.groups()
            operands = re.findall(r"%([\w.-]+)", rest.split(")", 1)[0])
            values = [known.get(operand) for operand in operands]
            known[out] = self.step(op, shape, rest, values, given)
            root = known[out] if is_root else root
        return root

    def step(self, op: str, shape: str, rest: str, values: list, given: list | None):
        called = re.findall(r"(?:calls|to_apply|body|(?:true|false)_computation)=%?([\w.-]+)", rest)
        if op == "parameter":
            index = int(rest.split(")")[0])
            if given is not None:
                return given[index]
            label = re.search(r'op_name="([^"]*)"', rest)
            return label[1] if label and self.size(shape) >= self.least else None
        if op == "tuple":
            return values
        if op == "get-tuple-element":
            index = int(re.search(r"index=(\d+)", rest)[1])
            return values[0][index] if isinstance(values[0], list) else None
        if op == "bitcast":
            return values[0]
        if op == "while":
            self.run(called[0], values)
            return values[0]
        if op == "conditional":
            branches = re.search(r"branch_computations=\{([^}]*)\}", rest)
            for name, value in zip(re.findall(r"[\w.-]+", branches[1]) if branches else called, values[1:], strict=True):
                self.run(name, [value])
            return None
        if op in ("call", "async-start"):
            return self.run(called[0], values)
        whose = [value for value in values if isinstance(value, str)]
        if not whose:
            return None
        inside = " ".join(self.bodies[called[0]]) if op == "fusion" else f" {op}("
        self.used.update(whose)
        written = [name for name in whose if name.startswith("cache")]
        if any(f" {work}(" in inside for work in self.WORK):
            # a token's keys are written into the cache in place
            return written[0] if written and "scatter(" in inside else None
        if op.removesuffix("-start") in self.MOVES or op == "fusion":
            self.moved.append((op, shape, whose))
        return None

    @staticmethod
    def size(shape: str) -> int:
        return sum(c.bytes for c in collectives(f"  %x = {shape} all-reduce(%y)\n"))
