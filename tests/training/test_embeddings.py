"""A frozen image encoder: what is kept, and what is computed again."""

import numpy as np
import pytest

from cycleqd_jax.training.embeddings import FrozenEncoder
from cycleqd_jax.training.images import Draw, flipped

from ..shapes import CONFIGS, ellipses, random_params

CONFIG = CONFIGS["tiny_vit"]
ONE = 4 * 4 * 16 * 4  # bytes of an embedding


@pytest.mark.exhaustive
@pytest.mark.parametrize(("room", "computed"), [(8 * ONE, [4, 4, 4]), (3 * ONE - 1, [2, 4, 6]), (0, [0, 3, 6])])
def test_embeddings_beyond_the_limit_are_computed_again(room, computed):
    items = ellipses(3)
    pairs = [(0, 0), (0, 1), (1, 0), (2, 1)]
    draws = [Draw(item, flip, (0, 0, 1, 1)) for item, flip in pairs]
    whole = FrozenEncoder(random_params("tiny_vit")["vision"], CONFIG, 2, 8 * ONE)
    frozen = FrozenEncoder(random_params("tiny_vit")["vision"], CONFIG, 2, room)
    for encoder in (whole, frozen):
        encoder.keep(items, [draws[:2], draws[2:]])
    found = [frozen.embedded]
    for drawn in (draws[1:], [*draws[1:], draws[1]]):
        images = [flipped(items[draw.item].image, draw.flip) for draw in drawn]
        np.testing.assert_allclose(frozen(drawn, images), whole(drawn, images), atol=1e-5)
        found.append(frozen.embedded)
    assert found == computed
