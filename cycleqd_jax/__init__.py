"""CycleQD in JAX: evolve fine-tuned experts that share a base model into one model with all their skills.

The rooms of the house, each importable alone:

- ``cycleqd_jax.operators``: task vectors, SVD, crossover, mutation, merge, jitted and for any pytree;
- ``cycleqd_jax.genome``: what evolution works on, and how it becomes weights;
- ``cycleqd_jax.algorithms``: MAP-Elites archives (QDax), selection, and the ``CycleQD`` ask/tell algorithm;
- ``cycleqd_jax.models`` and ``cycleqd_jax.engine``: Llama-3 in JAX and greedy batched decoding;
- ``cycleqd_jax.tasks`` and ``cycleqd_jax.sandbox``: what is scored, and where untrusted output is executed;
- ``cycleqd_jax.search``, ``cycleqd_jax.training``, ``cycleqd_jax.report``: the loop, its rivals, its results.
"""

__version__ = "0.1.0"
