"""Models that were taught to need few steps: what a job gets from them that says nothing.

Nothing in their weights tells them from others, but for U-Nets that are told the guidance. A folder's scheduler config
says part of it; the rest is in their names: turbo (Sauer et al. 2023, https://arxiv.org/abs/2311.17042), lightning (Lin
et al. 2024, https://arxiv.org/abs/2402.13929), hyper (Ren et al. 2024, https://arxiv.org/abs/2404.13686) and LCM (Luo
et al. 2023, https://arxiv.org/abs/2310.04378).
"""

from __future__ import annotations

import dataclasses
import re

from mlxldm.config import Defaults, ScheduleConfig, UNetConfig

# kind: sampler, spacing and steps where nothing says how many
KINDS = {
    "turbo": ("euler_a", "trailing", 4),
    "lightning": ("euler", "trailing", 4),
    "hyper": ("euler", "trailing", 8),
    "lcm": ("lcm", "model", 4),
}
AFTER_HYPER = ("sd", "sdxl", "vae", "step", "steps")  # or a number: "hyper" alone is a word of many names
MOST = 16  # "30 steps" in a name is advice for an ordinary model
EMBEDDED = 8.5  # the guidance that diffusers gives latent consistency models which are told it


def of_folder(own: Defaults, name: str, schedule: ScheduleConfig, unet: UNetConfig, why: list[str]) -> Defaults:
    """The defaults of a diffusers folder: few steps where its scheduler is made for them, or says trailing and its name
    the rest."""
    if schedule.sampler in ("lcm", "tcd"):
        embedded = unet.time_cond_proj_dim is not None
        why.append(f"the scheduler is for few steps ({schedule.sampler}): 4 steps")
        return dataclasses.replace(own, steps=_count(name) or 4, guidance=EMBEDDED if embedded else 1.0)
    kind = kind_of(name)
    if kind is None or schedule.spacing != "trailing":
        return own
    steps = _steps(name, kind)
    why.append(f"the scheduler's spacing is trailing and the name says {kind}: {steps} steps, no guidance")
    return dataclasses.replace(own, steps=steps, guidance=1.0)


def of_file(own: Defaults, name: str, unet: UNetConfig, why: list[str]) -> Defaults:
    """The defaults of a single file, by its name or title."""
    kind = kind_of(name)
    if kind is None:
        return own
    sampler, spacing, _ = KINDS[kind]
    steps, embedded = _steps(name, kind), unet.time_cond_proj_dim is not None
    guidance = EMBEDDED if embedded else 1.0
    why.append(f"the name says {kind}: {steps} steps of {sampler}, guidance {guidance:g}")
    return dataclasses.replace(own, steps=steps, guidance=guidance, sampler=sampler, spacing=spacing)


def kind_of(name: str) -> str | None:
    """A name of KINDS that stands in `name` as a word: between other signs, or CapitalsLikeThese."""
    words = [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+", name)]
    for word, after in zip(words, [*words[1:], ""], strict=True):
        if word in KINDS and (word != "hyper" or after in AFTER_HYPER or after.isdecimal()):
            return word
    return None


def _count(name: str) -> int | None:
    """The number in "4step", "8-steps" and the like."""
    found = re.search(r"(?<!\d)(\d{1,2})[-_ ]?steps?(?![a-z])", name.lower())
    return int(found[1]) if found and 1 <= int(found[1]) <= MOST else None


def _steps(name: str, kind: str) -> int:
    # Stability's own turbo models are for one step; those that others made with them are not
    original = kind == "turbo" and re.search(r"(?<![a-z0-9])sd(_?xl)?[-_]turbo", name.lower())
    return _count(name) or (1 if original else KINDS[kind][2])
