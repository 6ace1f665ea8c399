"""The MLX text tower computes what transformers' CLIPTextModel computes."""

from __future__ import annotations

import numpy as np
import pytest
from weights import ArrayFolder, assert_same, of_torch

from mlxldm.config import ClipTextConfig

pytest.importorskip("mlxldm.on_mlx", reason="MLX is not installed")
import mlxldm.on_mlx  # noqa: E402, F401, I001  (before mlx.core: brings the fast BLAS)
import mlx.core as mx  # noqa: E402
from mlxldm.on_mlx.clip import ClipText  # noqa: E402
from mlxldm.on_mlx.model import fill  # noqa: E402

EOS = 98
TINY = {
    "vocab_size": 99, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
    "max_position_embeddings": 77, "bos_token_id": 97, "eos_token_id": EOS, "pad_token_id": EOS,
}  # fmt: skip


def both(act: str, projection: int | None, skip: int, eos: int = EOS):
    torch = pytest.importorskip("torch", reason="torch is not installed: nothing to compare with")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: nothing to compare with")
    torch.manual_seed(3)
    settings = TINY | {"hidden_act": act, "eos_token_id": eos}
    kind = transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel
    model = kind(transformers.CLIPTextConfig(**settings, projection_dim=projection or 512)).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            parameter.add_(0.1 * torch.randn_like(parameter))
        elif "embedding" in name:
            parameter.mul_(20)
    config = ClipTextConfig(**(TINY | {"hidden_act": act, "projection_dim": projection, "skip": skip}))
    return model, fill(ClipText(config), ArrayFolder({"text": of_torch(model)}), "text", mx.float32)


def rows() -> list[list[int]]:
    """A short text padded with its end mark, a full one, one padded with another token."""
    words = np.random.RandomState(1).randint(0, 96, 90).tolist()
    return [
        [97, *words[:5], EOS, *[EOS] * 70],
        [97, *words[:75], EOS],
        [97, *words[75:78], EOS, *[0] * 72],
    ]


@pytest.mark.parametrize("eos", [EOS, 2])
@pytest.mark.parametrize("skip", [-1, -2, -3])
@pytest.mark.parametrize("projection", [None, 24])
@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
def test_hidden_states_and_pooled_text_are_transformers(act, projection, skip, eos):
    model, found = both(act, projection, skip, eos)
    import torch

    with torch.no_grad():
        out = model(torch.tensor(rows()), output_hidden_states=True)
    expected = out.last_hidden_state if skip == -1 else out.hidden_states[skip]
    answer = found(rows())
    assert_same(answer.hidden, expected.numpy())
    assert_same(answer.pooled, (out.text_embeds if projection else out.pooler_output).numpy())


def test_half_precision_stays_half_precision():
    config = ClipTextConfig(**TINY)
    from weights import random

    tower = fill(ClipText(config), ArrayFolder({"text": random(config, 2)}), "text", mx.float16)
    answer = tower(rows())
    assert answer.hidden.dtype == answer.pooled.dtype == mx.float16
