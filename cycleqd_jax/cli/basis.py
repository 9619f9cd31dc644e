"""``cycleqd basis``: formats the summary of a basis as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["basis_text"]


def basis_text(facts: Mapping[str, Any], experts: Sequence[str]) -> str:
    """A table of the leaves, and the similarity of every pair of experts.

    Args:
        facts: the content of ``basis.json`` (see :class:`~cycleqd_jax.runs.basis.decomposition.StoredBasis`).
        experts: their names.
    """
    kept = "all directions" if facts["rank"] is None else f"{facts['rank']} directions"
    lines = [f"{facts['method']}, {kept} of every matrix: {facts['bytes'] / 1e6:.1f} MB, built in {facts['seconds']:.1f} s"]
    lines.append(f"  {'leaf':24} {'matrices':>18} {'rank':>6} {'energy: min':>14} {'mean':>9} {'seconds':>9}")
    for path, leaf in facts["leaves"].items():
        m, n = leaf["shape"]
        shape = f"{leaf['matrices']} × {m} × {n}"
        shares = ["–", "–"] if leaf["retained"] is None else [f"{leaf['retained'][key]:.4%}" for key in ("min", "mean")]
        lines.append(f"  {path:24} {shape:>18} {leaf['rank']:>6} {shares[0]:>14} {shares[1]:>9} {leaf['seconds']:>9.2f}")
    note = "" if facts["rank"] is None else ", of the directions kept"
    lines.append(f"similarity of experts: cosine of singular values (the paper's{note}), and cosine of task vectors")
    tables = [facts["similarity"][key] for key in ("singular_values", "task_vectors")]
    for a in range(len(experts)):
        for b in range(a + 1, len(experts)):
            shown = ["–" if table[a][b] is None else f"{table[a][b]:.4f}" for table in tables]
            lines.append(f"  {experts[a]} and {experts[b]}: {shown[0]}, {shown[1]}")
    return "\n".join(lines)
