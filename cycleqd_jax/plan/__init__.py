"""What a run needs before it starts: memory, disk and time by stage, from shapes or from compiled programs."""

from cycleqd_jax.plan.collectives import Collective
from cycleqd_jax.plan.compiled import Program, compile_programs, topology
from cycleqd_jax.plan.device import DEVICES, Device, this_machine
from cycleqd_jax.plan.estimate import Stage, estimate
from cycleqd_jax.plan.evaluations import Evaluations, evaluations_of
from cycleqd_jax.plan.flops import UTILISATION, ModelFlops, express_flops, mixed_flops, product_flops
from cycleqd_jax.plan.images import ImageWorkload, decoder_flops, encoder_flops, image_workload
from cycleqd_jax.plan.mesh import USABLE_MEMORY, alternatives, choose_mesh, configured_mesh, fits, peak_stage
from cycleqd_jax.plan.shapes import base_shape, sam_shape
from cycleqd_jax.plan.summary import as_text, image_summary, summary
from cycleqd_jax.plan.workload import Workload, workload_of

__all__ = [
    "DEVICES",
    "USABLE_MEMORY",
    "UTILISATION",
    "Collective",
    "Device",
    "Evaluations",
    "ImageWorkload",
    "ModelFlops",
    "Program",
    "Stage",
    "Workload",
    "alternatives",
    "as_text",
    "base_shape",
    "choose_mesh",
    "compile_programs",
    "configured_mesh",
    "decoder_flops",
    "encoder_flops",
    "estimate",
    "evaluations_of",
    "express_flops",
    "fits",
    "image_summary",
    "image_workload",
    "mixed_flops",
    "peak_stage",
    "product_flops",
    "sam_shape",
    "summary",
    "this_machine",
    "topology",
    "workload_of",
]
