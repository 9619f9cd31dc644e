"""``python -m cycleqd_jax.lm_eval``: the command line of lm-eval, with the model ``cycleqd``."""

import sys

from cycleqd_jax.lm_eval import main

if __name__ == "__main__":
    sys.exit(main())
