"""Tasks of the first latent diffusion models: what they take and refuse, and that they draw what was meant."""

from __future__ import annotations

import pytest
from little import Little

from mlxldm.errors import UserError
from mlxldm.generate import resolve
from mlxldm.job import Box, Job


@pytest.mark.parametrize(
    "given",
    [
        {"label": 0},
        {"boxes": (Box(1, (0.0, 0.0, 1.0, 1.0)),)},
        {"semantic": "map.png"},
        {"database": "pictures"},
        {"neighbours": 3},
        {"clip": "clip"},
    ],
    ids=lambda given: next(iter(given)),
)
def test_a_model_of_words_refuses_what_it_cannot_use(given):
    with pytest.raises(UserError, match=r"The job has .*, which only models .*; little is none: leave it out\.") as e:
        resolve(Job("x", **given), Little().manifest)
    assert "\n" not in str(e.value)
