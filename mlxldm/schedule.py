"""How much noise there is at every step: what a job's steps, spacing and sampler mean for one model.

A sampler works with x = clean + sigma * noise. diffusers keeps one half of its schedulers in that form and the other
half, the variance-preserving one, at x / sqrt(sigma² + 1); both are the same walk, and `Plan` carries the two factors
by which they differ at the ends. A plan gives what diffusers' scheduler of that sampler's name, made with
`from_config(the model's scheduler config)`, does: its timesteps, sigmas, last sigma, first noise and orders.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import UserError, nearest
from .prompt import Pass
from .samplers import CFGPP, GAMMA, Call, plms_calls

if TYPE_CHECKING:
    from .config import ScheduleConfig

# Where the steps stand: as the model's config says; on timesteps spread in one of three ways; on sigmas along a curve
# between the ends of that spread; or ("SGM uniform" of the web UIs) on timesteps spread evenly, short of the last; or
# where "Align Your Steps" found them best for a family of models.
SPACINGS = ("model", "leading", "trailing", "linspace", "karras", "exponential", "sgm_uniform", "beta", "ays")


@dataclass(frozen=True)
class Plan:
    """The walk of one picture from noise to clean.

    `sigmas` are Python floats: the level every step starts from, then the level the last one ends at. `timesteps` say
    what the model is told at each of them but the last. The walk starts at `start_scale` * noise (or, with a picture,
    at picture + sigmas[0] * noise) and the latent is `end_scale` * the last x. `options` are the sampler's own.
    """

    sigmas: list[float]
    timesteps: list[float]
    start_scale: float
    end_scale: float
    prediction: str
    options: dict[str, Any] = field(default_factory=dict)
    both: bool = False  # `denoise` is to return the guided guess and the one without the prompt: see `samplers`
    before: int = 0  # steps of the pass before this one
    more: bool = False  # another pass follows
    sigma_data: float | None = None  # of a model that was trained as EDM is, which is told the level, not a timestep
    log_sigmas: np.ndarray = field(default_factory=lambda: np.zeros(0), repr=False)  # of all training timesteps

    @property
    def steps(self) -> int:
        """How many steps the sampler takes (it may call the model twice in one)."""
        return len(self.sigmas) - 1

    @property
    def walk(self) -> Pass:
        """What the schedules in prompts count in."""
        return Pass(self.steps, self.before, self.more)

    def step(self, sigma: float) -> int:
        """In which step, from 0, a model is asked at `sigma`; at the level between two it is the later one."""
        return sum(sigma <= level for level in self.sigmas[1:-1])

    def timestep(self, sigma: float) -> float:
        """What the model is told at `sigma`: as planned, and interpolated in log sigma between plan and training.

        A model of EDM is told c_noise of Karras et al. 2022 (https://arxiv.org/abs/2206.00364), table 1.
        """
        if self.sigma_data is not None:
            return math.log(sigma) / 4
        if sigma in self.sigmas[:-1]:
            return self.timesteps[self.sigmas.index(sigma)]
        return _timestep(sigma, self.log_sigmas)


@dataclass(frozen=True)
class _Habits:
    """How the diffusers scheduler of a sampler lays out its steps."""

    spacing: str  # where the config does not say
    one_more: bool = False  # spreads steps + 1 timesteps and leaves out the last
    whole: bool = False  # rounds timesteps to whole numbers
    preserving: bool = False  # keeps latents at x / sqrt(sigma² + 1), so the first noise has unit size
    zero_snr: str = "no"  # "capped": the last sigma is 4096; "exact": it is infinite, see _ALMOST_INFINITE
    curved: bool = True  # heeds use_karras_sigmas and its like in the model's config
    full_range: bool = False  # ... and they go over the whole training range, not the steps' own
    distilled: bool = False  # knows only the timesteps the model was taught to jump from

    @property
    def exact(self) -> bool:
        """Thinks in timesteps alone, so that no sigma is ever rounded to float32."""
        return self.whole and not self.one_more


_HABITS = {
    "ddim": _Habits("leading", whole=True, preserving=True, zero_snr="exact", curved=False),
    "ddpm": _Habits("leading", whole=True, preserving=True, zero_snr="exact", curved=False),
    "euler": _Habits("linspace", zero_snr="capped"),
    "euler_a": _Habits("linspace", zero_snr="capped", curved=False),
    "heun": _Habits("linspace"),
    "lms": _Habits("linspace"),
    "pndm": _Habits("leading", whole=True, preserving=True, curved=False),
    "dpm2": _Habits("linspace"),
    "dpm2_a": _Habits("linspace"),
    "dpmpp_2s": _Habits("linspace", one_more=True, whole=True, preserving=True, full_range=True),
    "dpmpp_2m": _Habits("linspace", one_more=True, whole=True, preserving=True, zero_snr="capped", full_range=True),
    "dpmpp_2m_sde": _Habits("linspace", one_more=True, whole=True, preserving=True, zero_snr="capped", full_range=True),
    "dpmpp_sde": _Habits("linspace"),
    "dpmpp_3m_sde": _Habits("linspace", one_more=True, whole=True, preserving=True, zero_snr="capped", full_range=True),
    "unipc": _Habits("linspace", one_more=True, whole=True, preserving=True, zero_snr="capped", full_range=True),
    "deis": _Habits("linspace", one_more=True, whole=True, preserving=True, full_range=True),
    "lcm": _Habits("leading", whole=True, preserving=True, zero_snr="exact", curved=False, distilled=True),
    "tcd": _Habits("leading", whole=True, preserving=True, zero_snr="exact", curved=False, distilled=True),
}

_MULTISTEP = ("dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m_sde")  # DPMSolverMultistepScheduler is the class of all three

# "Align Your Steps" (Sabour et al. 2024, https://arxiv.org/abs/2404.14507): the timesteps of ten steps and their end.
_ALIGNED = {
    "sd1": [999, 850, 736, 645, 545, 455, 343, 233, 124, 24, 0],
    "sdxl": [999, 845, 730, 587, 443, 310, 193, 116, 53, 13, 0],
}

_OF_EACH_STEP = ("landings", "boundary", "downs", "orders")  # options that have an entry for each

_CAP = 2.0**-24  # diffusers' alphas_cumprod at the end of a zero-SNR schedule, in the schedulers that need a sigma
_ALMOST_INFINITE = 1e-12  # the same where diffusers leaves 0: sigma is 10^6, one float32 rounding from its limit

# Keys of a diffusers config that would change the steps and that nothing here does.
_UNSUPPORTED = {
    "interpolation_type": "linear",
    "timestep_type": "discrete",
    "predict_x0": True,
}


class Schedule:
    """The noise schedule a model was trained with (its `ScheduleConfig`), and the plans that follow from it.

    `family` is the model's (of `folder.FAMILIES`), which the spacing ays asks for.
    """

    def __init__(self, config: ScheduleConfig, family: str = "") -> None:
        for key, only in _UNSUPPORTED.items():
            if config.options.get(key, only) not in (only, None):
                raise UserError(
                    f"The model's scheduler config has {key} = {config.options[key]!r}, which this version cannot do."
                )
        self.config = config
        self.family = family
        self._betas = _betas(config)
        self.alphas_cumprod = self._alphas("exact" if config.zero_snr else "no")  # float64, index = timestep

    def plan(
        self,
        steps: int,
        spacing: str = "model",
        sampler: str = "ddim",
        strength: float = 1.0,
        part: tuple[float, float] = (0.0, 1.0),
    ) -> Plan:
        """The plan of a job; `strength` below 1 leaves out the first steps, as diffusers' image to image does.

        `part` is from where to where of the training timesteps to go, the noisiest first, for a walk that one model
        begins and another ends: (0, 0.8) ends where (0.8, 1) begins (diffusers' denoising_end and denoising_start).
        Raises UserError for a name it does not know and for numbers that leave nothing to do or fit no schedule.
        The samplers of CFG++ are planned as those that they are made of. dpmpp_2s, lcm and tcd have one spacing of
        timesteps of their own: like diffusers, they take no notice of leading, trailing and linspace.
        """
        both = sampler in CFGPP
        sampler = sampler.removesuffix("_cfgpp") if both else sampler
        self._check(steps, spacing, sampler, strength)
        habits = _HABITS[sampler]
        if self.config.sigma_data is not None:
            return self._edm_plan(steps, spacing, sampler, strength, part, both)
        if sampler == "pndm" and part != (0.0, 1.0):
            raise UserError("The steps of pndm cannot be shared by two models; take ddim or another sampler.")
        if sampler == "pndm" and self._is_plain(spacing, sampler):
            return self._pndm_plan(steps, spacing, strength)
        table = self._sigmas(habits)
        timesteps, sigmas = self._points(table, steps, spacing, sampler, habits)
        if any(a <= b for a, b in zip(sigmas, sigmas[1:], strict=False)):
            raise UserError(
                f"{steps} steps are too many for {sampler} with the spacing {spacing}: some would have the same noise; "
                f"take fewer."
            )
        begin, end = self._between(timesteps, part)
        begin = max(begin, _begin(steps, strength))
        if begin >= end:
            raise UserError(
                f"Of {steps} steps none is left from {part[0]:g} to {part[1]:g} of the way: take more, or another part."
            )
        full = [*sigmas, self._last_sigma(table, sampler, sigmas, spacing)]
        options = self._options(sampler, full, timesteps, table, steps, begin, spacing)
        levels, told = full[begin:], timesteps[begin:]
        if "landings" in options:
            levels[-1] = options["landings"][-1]
        if "calls" in options:
            told = [told[levels.index(call[1])] for call in options["calls"]]
            levels = [*(call[1] for call in options["calls"]), levels[-1]]
        if end < len(timesteps):
            count = end - begin
            levels, told = levels[: count + 1], told[:count]
            options = {key: value[:count] if key in _OF_EACH_STEP else value for key, value in options.items()}
        return Plan(
            sigmas=levels,
            timesteps=told,
            start_scale=self._start_scale(habits, spacing, sigmas),
            end_scale=1 / math.sqrt(1 + levels[-1] ** 2) if habits.preserving else 1.0,
            prediction=self.config.prediction,
            options=options,
            both=both,
            log_sigmas=_log(table),
        )

    def _edm_plan(
        self, steps: int, spacing: str, sampler: str, strength: float, part: tuple[float, float], both: bool
    ) -> Plan:
        """The plan for a model that knows no timesteps: levels along a curve over all that it was trained on."""
        name = self._option("sigma_schedule", "") if spacing == "model" else spacing
        if name not in ("karras", "exponential"):
            raise UserError(
                f"The spacing {spacing} is made for timesteps, which this model does not know (it was trained on EDM's "
                f"noise levels); take karras or exponential."
            )
        if sampler == "pndm" or _HABITS[sampler].distilled:
            raise UserError(
                f"{sampler} steps from timestep to timestep, which this model does not know (it was trained on EDM's "
                f"noise levels); take {self.config.sampler} or another."
            )
        if part != (0.0, 1.0):
            raise UserError("A model that was trained on EDM's noise levels has no timesteps to share with a refiner.")
        low, high = self._option("sigma_min", 0.0), self._option("sigma_max", 0.0)
        rho = self._option("rho", 7.0)
        curve = _karras(high, low, steps, rho) if name == "karras" else _CURVES[name](high, low, steps)
        sigmas = curve.astype(np.float32).astype(np.float64).tolist()
        begin = _begin(steps, strength)
        full = [*sigmas, low if self._option("final_sigmas_type", "zero") == "sigma_min" and sigmas[-1] > low else 0.0]
        options = self._options(sampler, full, sigmas, np.array([low, high]), steps, begin, name)
        levels = full[begin:]
        return Plan(
            sigmas=levels,
            timesteps=[math.log(sigma) / 4 for sigma in levels[:-1]],
            start_scale=math.sqrt(sigmas[0] ** 2 + 1),  # diffusers' init_noise_sigma
            end_scale=1.0,
            prediction=self.config.prediction,
            options=options,
            both=both,
            sigma_data=self.config.sigma_data,
        )

    # What every plan needs.

    def _check(self, steps: int, spacing: str, sampler: str, strength: float) -> None:
        if sampler not in _HABITS:
            names = [*_HABITS, *sorted(CFGPP)]
            raise UserError(f"There is no sampler {sampler!r}.{nearest(sampler, names)} There are {', '.join(names)}.")
        if spacing not in SPACINGS:
            raise UserError(
                f"There is no spacing {spacing!r}.{nearest(spacing, SPACINGS)} There are {', '.join(SPACINGS)}."
            )
        if _HABITS[sampler].distilled and spacing in (*_CURVES, "sgm_uniform", "ays"):
            raise UserError(
                f"{sampler} knows only the timesteps it was trained at, so it cannot take the spacing {spacing}."
            )
        config = self.config
        usual = config.prediction == "epsilon" and not config.zero_snr and config.num_train_timesteps == 1000
        if spacing == "ays" and not (usual and self.family in _ALIGNED):
            raise UserError(
                "The spacing ays is a table for Stable Diffusion 1 and XL as they were first trained, and this model "
                "is neither; take karras or another."
            )
        if not 1 <= steps <= self.config.num_train_timesteps:
            raise UserError(
                f"The job has {steps} steps, but this model can do 1 to {self.config.num_train_timesteps}."
            )
        if not 0 <= strength <= 1:
            raise UserError(f"The job's strength is {strength}, but it must lie between 0 and 1.")
        if _begin(steps, strength) == steps:
            raise UserError(
                f"A strength of {strength} leaves none of the {steps} steps to do; raise one of the two."
            )
        if sampler == "ddpm" and self._option("variance_type", "fixed_small") not in ("fixed_small", "fixed_small_log"):
            raise UserError(
                f"The model's scheduler config has variance_type = {self.config.options['variance_type']!r}, which the "
                f"ddpm sampler cannot do; take another sampler."
            )

    def _between(self, timesteps: list[float], part: tuple[float, float]) -> tuple[int, int]:
        """The first step of a part of the way, and the one after its last."""
        train = self.config.num_train_timesteps
        first, end = (sum(t >= round(train - share * train) for t in timesteps) for share in part)
        return first, end

    def _option(self, key: str, default: Any) -> Any:
        value = self.config.options.get(key)
        return default if value is None else value

    def _alphas(self, zero_snr: str) -> np.ndarray:
        """alphas_cumprod (training steps,) in float64, with the float32 roundings that diffusers makes on the way."""
        betas = self._betas
        if zero_snr != "no":
            betas = _zero_terminal_snr(betas)
        alphas = _cumprod(np.float32(1) - betas).astype(np.float64)
        if zero_snr == "capped":
            alphas[-1] = _CAP
        return alphas

    def _sigmas(self, habits: _Habits) -> np.ndarray:
        """sqrt((1 - a) / a) of all training timesteps, float64; rounded to float32 where diffusers rounds it."""
        alphas = self._alphas(habits.zero_snr if self.config.zero_snr else "no")
        if habits.exact:
            alphas = np.maximum(alphas, _ALMOST_INFINITE)
            return np.sqrt((1 - alphas) / alphas)
        small = alphas.astype(np.float32)
        return np.sqrt((np.float32(1) - small) / small).astype(np.float64)

    def _points(
        self, table: np.ndarray, steps: int, spacing: str, sampler: str, habits: _Habits
    ) -> tuple[list[float], list[float]]:
        """Timesteps and sigmas that the steps start from, the noisiest first."""
        if habits.distilled:
            timesteps = self._distilled_timesteps(steps, sampler)
            return timesteps, [float(table[int(t)]) for t in timesteps]
        if spacing == "sgm_uniform":
            last = len(table) - 1
            spread = np.linspace(last, 0, steps + 1)[:-1]
            sigmas = np.exp(np.interp(spread, np.arange(len(table)), np.log(table)))
            return spread.tolist(), sigmas.tolist()
        if spacing == "ays":
            return self._aligned(table, steps, habits)

        spread = self._spread(steps, spacing, sampler, habits)
        curve = self._curve(spacing, sampler)
        sigmas = np.interp(spread, np.arange(len(table)), table)
        if curve:
            high, low = (table[-1], table[0]) if habits.full_range else (sigmas[0], sigmas[-1])
            if not (curve == "lu" or curve == "karras" and sampler in ("lms", "dpmpp_sde")):  # which take no limits
                high, low = self._option("sigma_max", high), self._option("sigma_min", low)
            sigmas = _CURVES[curve](float(high), float(low), steps)
            logs = _log(table)
            spread = np.array([_timestep(sigma, logs) for sigma in sigmas])
            cosine = sampler in _MULTISTEP and self.config.beta_schedule == "squaredcos_cap_v2"
            if curve in ("karras", "lu") and (habits.one_more or sampler in ("dpm2", "dpm2_a")) and not cosine:
                spread = np.round(spread)
            if habits.one_more:  # these classes keep timesteps in whole numbers, and cut off what they do not round
                spread = np.trunc(spread)
        if not habits.exact:
            sigmas = sigmas.astype(np.float32).astype(np.float64)
        return spread.tolist(), sigmas.tolist()

    def _spread(self, steps: int, spacing: str, sampler: str, habits: _Habits) -> np.ndarray:
        """The timesteps of leading, trailing and linspace (Lin et al. 2023, https://arxiv.org/abs/2305.08891, tab. 2).

        Descending. Which of the three: the job's, else the model's, else the diffusers class's own.
        """
        train = self.config.num_train_timesteps
        named = self._spacing_of_timesteps(spacing, habits)
        clipped = self._clipped(habits) if sampler in ("dpmpp_2s", *_MULTISTEP) else 0
        if sampler == "dpmpp_2s":
            named = "linspace"  # diffusers' class knows no other
        count = steps + 1 if habits.one_more else steps
        if named == "linspace":
            spread = np.linspace(0, train - 1 - clipped, count)[::-1]
            spread = spread.round() if habits.whole else spread.astype(np.float32).astype(np.float64)
            spread = spread[: -1 if habits.one_more else None]
        elif named == "leading":
            stride = (train - clipped) // count
            spread = (np.arange(count) * stride)[::-1][: -1 if habits.one_more else None].astype(np.float64)
            spread = spread + self.config.steps_offset
        else:
            spread = np.arange(train - clipped, 0, -train / steps).round() - 1
            # For 62 of the first 1000 step counts (61, 103, 121 ...) a rounding error adds one more here, at -1, which
            # diffusers runs the model at; that is left out.
            spread = spread[spread >= 0]
        if spread[0] > train - 1:
            raise UserError(f"{steps} steps do not fit into the model's {train} with the spacing leading; take fewer.")
        return spread

    def _spacing_of_timesteps(self, spacing: str, habits: _Habits) -> str:
        if spacing in ("leading", "trailing", "linspace"):
            return spacing
        return self.config.spacing or habits.spacing

    def _curve(self, spacing: str, sampler: str) -> str:
        """A name of _CURVES or "": the job's, else with "model" what the config says."""
        if spacing != "model":
            return spacing if spacing in _CURVES else ""
        if not _HABITS[sampler].curved:
            return ""
        said = {name for name in _CURVES if self.config.options.get(f"use_{name}_sigmas")}
        if sampler in _MULTISTEP and self.config.options.get("use_lu_lambdas"):
            said |= {"lu"}
        return next((name for name in _CURVES if name in said), "")

    def _is_plain(self, spacing: str, sampler: str) -> bool:
        """Whether the steps stand at whole timesteps, as diffusers' DDIM and PNDM know them."""
        return spacing not in ("sgm_uniform", "ays") and not self._curve(spacing, sampler)

    def _aligned(self, table: np.ndarray, steps: int, habits: _Habits) -> tuple[list[float], list[float]]:
        """Timesteps and sigmas of ays: for ten steps the published table, for others log sigma interpolated in it.

        So its authors advise (https://research.nvidia.com/labs/toronto-ai/AlignYourSteps/howto.html).
        """
        logs = np.log(table)
        published = logs[_ALIGNED[self.family]]
        chosen = np.interp(np.linspace(0, 1, steps + 1), np.linspace(0, 1, len(published)), published)[:-1]
        spread, sigmas = np.interp(chosen, logs, np.arange(len(logs))), np.exp(chosen)
        if not habits.exact:
            sigmas = sigmas.astype(np.float32).astype(np.float64)
        return spread.tolist(), sigmas.tolist()

    def _clipped(self, habits: _Habits) -> int:
        """How many of the noisiest timesteps the config's `lambda_min_clipped` shuts out."""
        lowest = self._option("lambda_min_clipped", -math.inf)
        return int((-np.log(self._sigmas(habits)) < lowest).sum())

    def _distilled_timesteps(self, steps: int, sampler: str) -> list[float]:
        original = int(self._option("original_inference_steps", 50))
        if steps > original:
            raise UserError(
                f"{sampler} takes at most {original} steps with this model (1 to 8 are usual); take fewer."
            )
        trained = (np.arange(1, original + 1) * (self.config.num_train_timesteps // original) - 1)[::-1]
        chosen = np.floor(np.linspace(0, len(trained), steps, endpoint=False)).astype(int)
        return [float(t) for t in trained[chosen]]

    def _last_sigma(self, table: np.ndarray, sampler: str, sigmas: list[float], spacing: str) -> float:
        """Where the last step ends: at no noise, or at the least that was trained (where it may stand already)."""
        if sampler not in ("deis", "tcd"):  # which always end at the least
            if sampler not in ("euler", "dpmpp_2s", *_MULTISTEP, "unipc"):
                return 0.0
            if self._option("final_sigmas_type", "zero") != "sigma_min":
                return 0.0
        return sigmas[-1] if sampler in ("unipc", "deis") and self._curve(spacing, sampler) else float(table[0])

    def _start_scale(self, habits: _Habits, spacing: str, sigmas: list[float]) -> float:
        """diffusers' init_noise_sigma, for x = clean + sigma * noise."""
        named = self._spacing_of_timesteps(spacing, habits)
        if not habits.preserving and (named in ("linspace", "trailing") or spacing == "sgm_uniform"):
            return sigmas[0]
        return math.sqrt(sigmas[0] ** 2 + 1)

    # What single samplers need.

    def _options(
        self,
        sampler: str,
        sigmas: list[float],
        timesteps: list[float],
        table: np.ndarray,
        steps: int,
        begin: int,
        spacing: str,
    ) -> dict[str, Any]:
        total = len(timesteps)
        order = int(self._option("solver_order", 2))
        if sampler in ("dpmpp_2s", "dpmpp_2m", "dpmpp_2m_sde", "unipc", "deis") and not 1 <= order <= 3:
            raise UserError(f"The model's scheduler config has solver_order = {order}, but {sampler} can do 1 to 3.")
        to_zero = sigmas[-1] == 0
        idle = sigmas[-1] == sigmas[-2]  # the last step does nothing, which only order 1 knows how to do
        kind = self._option("solver_type", "midpoint")
        if sampler == "pndm":
            return {"calls": plms_calls(sigmas[begin:]), "velocity": self.config.prediction == "v"}
        if sampler == "ddim" and self._is_plain(spacing, sampler):
            stride = self.config.num_train_timesteps // steps
            return {"landings": [self._level(table, t - stride, True) for t in timesteps[begin:]]}
        if sampler == "lms":
            return {"earlier": sigmas[max(0, begin - 3) : begin]}
        if sampler == "lcm":
            return {"boundary": [self._boundary(t) for t in timesteps[begin:]]}
        if sampler == "tcd":
            # float32, as in diffusers, because of the floor
            further = [int(np.float32(1 - GAMMA) * np.float32(t)) for t in [*timesteps[begin + 1 :], 0.0]]
            return {"downs": [float(table[t]) for t in further]}
        if sampler == "dpmpp_3m_sde":
            orders = [3] * (total - 1) + [1 if to_zero or idle else 3]
            return {"orders": _with_history(orders[begin:])}
        if sampler == "dpmpp_2s":
            orders = _singlestep_orders(steps, order, bool(self._option("lower_order_final", False)), to_zero)
            return {"orders": _with_history(orders[begin:]), "kind": kind if kind == "heun" else "midpoint"}
        if sampler in ("dpmpp_2m", "dpmpp_2m_sde", "deis"):
            lower = bool(self._option("lower_order_final", True)) and total < 15
            first = to_zero or idle or lower or (sampler != "deis" and bool(self._option("euler_at_final", False)))
            orders = [order] * total
            orders[-1] = 1 if first else order
            if total > 1 and lower:
                orders[-2] = min(order, 2)
            orders = _with_history(orders[begin:])
            return {"orders": orders} | ({} if sampler == "deis" else {"kind": kind if kind == "heun" else "midpoint"})
        if sampler == "unipc":
            lower = to_zero or idle or bool(self._option("lower_order_final", True))
            orders = [min(order, total - i) if lower else order for i in range(total)]
            return {"orders": _with_history(orders[begin:]), "kind": kind if kind == "bh1" else "bh2"}
        return {}

    def _level(self, table: np.ndarray, timestep: float, one: bool) -> float:
        """Sigma at a whole timestep; below 0, what DDIM and PNDM end with (`one`: set_alpha_to_one's default)."""
        if timestep >= 0:
            return float(table[int(timestep)])
        to_one = one if self.config.set_alpha_to_one is None else self.config.set_alpha_to_one
        return 0.0 if to_one else float(table[0])

    def _boundary(self, timestep: float) -> tuple[float, float]:
        """LCM's c_skip and c_out (Luo et al. 2023, https://arxiv.org/abs/2310.04378)."""
        scaled = timestep * float(self._option("timestep_scaling", 10.0))
        return 0.25 / (scaled**2 + 0.25), scaled / math.sqrt(scaled**2 + 0.25)

    def _pndm_plan(self, steps: int, spacing: str, strength: float) -> Plan:
        """PNDM in diffusers' order of model calls; a step here is one call (steps + 1 with PLMS).

        Every call has a role, the level the model is told, and the levels between which the sample then moves; with
        spacings other than leading they differ, and so they do when a strength starts the walk in its second step.
        """
        habits = _HABITS["pndm"]
        if self._option("skip_prk_steps", False):
            order, warm = "plms", 0
        else:
            order, warm = "prk", 12
            if steps < 4:
                raise UserError(
                    f"pndm needs at least 4 steps for its Runge-Kutta start with this model, not {steps}; take more, "
                    f"or another sampler."
                )
        table = self._sigmas(habits)
        train = self.config.num_train_timesteps
        stride = train // steps
        up = self._spread(steps, spacing, "pndm", habits)[::-1]
        if order == "plms":
            calls_at = np.concatenate([up[:-1], up[-2:-1], up[-1:]])[::-1]
        else:
            fine = up[-4:].repeat(2) + np.tile([0, stride // 2], 4)
            runge = fine[:-1].repeat(2)[1:-1][::-1]
            calls_at = np.concatenate([runge, up[:-3][::-1]])
        begin = _begin(steps, strength)
        calls: list[Call] = []
        for count, timestep in enumerate(calls_at[begin:]):
            if count < warm:
                role = f"prk{count % 4}"
                start, end = runge[count // 4 * 4], timestep - (0 if count % 2 else stride // 2)
            elif order == "plms" and count == 1:
                role, start, end = "again", timestep + stride, timestep
            else:
                role, start, end = "first" if order == "plms" and count == 0 else "next", timestep, timestep - stride
            if max(start, timestep) > train - 1:
                raise UserError(f"pndm cannot do {steps} steps with the spacing {spacing}; take another number.")
            told, *move = (self._level(table, t, one=False) for t in (timestep, start, end))
            calls.append((role, told, move[0], move[1]))
        sigmas, last = [call[1] for call in calls], calls[-1][3]
        return Plan(
            sigmas=[*sigmas, last],
            timesteps=[float(t) for t in calls_at[begin:]],
            start_scale=math.sqrt(sigmas[0] ** 2 + 1),
            end_scale=1 / math.sqrt(1 + last**2),
            prediction=self.config.prediction,
            options={"calls": calls, "velocity": self.config.prediction == "v"},
            log_sigmas=_log(table),
        )


def _begin(steps: int, strength: float) -> int:
    """How many steps a strength leaves out (diffusers' get_timesteps)."""
    return max(steps - min(int(steps * strength), steps), 0)


def _karras(high: float, low: float, steps: int, rho: float = 7) -> np.ndarray:
    """Karras et al. 2022 (https://arxiv.org/abs/2206.00364), eq. 5."""
    return (high ** (1 / rho) + np.linspace(0, 1, steps) * (low ** (1 / rho) - high ** (1 / rho))) ** rho


def _exponential(high: float, low: float, steps: int) -> np.ndarray:
    return np.exp(np.linspace(math.log(high), math.log(low), steps))


def _beta(high: float, low: float, steps: int) -> np.ndarray:
    """Quantiles of the beta distribution with both parameters 0.6 (Lee et al. 2024, https://arxiv.org/abs/2407.12173).

    The paper spreads timesteps so; this, like diffusers, spreads sigmas.
    """
    return low + _beta_quantiles(1 - np.linspace(0, 1, steps), 0.6) * (high - low)


def _beta_quantiles(shares: np.ndarray, shape: float) -> np.ndarray:
    """Where the beta distribution with both parameters `shape` (0 to 1) reaches `shares` (0 to 1), in float64.

    Newton's method on its power series in x, written for y = x ** shape, of which it is almost a multiple. The series
    is for the lower half; the upper is its mirror image.
    """
    lower = np.minimum(shares, 1 - shares)
    factors = np.cumprod([1.0] + [(n - shape) / n for n in range(1, 60)]) * shape / (shape + np.arange(60))
    whole = shape * math.gamma(shape) ** 2 / math.gamma(2 * shape)
    y = lower * whole
    for _ in range(8):
        x = y ** (1 / shape)
        y = y - (y * np.polyval(factors[::-1], x) - lower * whole) * (1 - x) ** (1 - shape)
    x = y ** (1 / shape)
    return np.where(shares > 0.5, 1 - x, x)


# In the order in which diffusers asks for them. Lu's are the exponential ones, at timesteps rounded in another way.
_CURVES = {"karras": _karras, "lu": _exponential, "exponential": _exponential, "beta": _beta}


def _log(table: np.ndarray) -> np.ndarray:
    """Rounded as diffusers rounds it, because some of its classes cut timesteps found in it off to whole numbers."""
    return np.log(table.astype(np.float32)).astype(np.float64)


def _timestep(sigma: float, log_sigmas: np.ndarray) -> float:
    return float(np.interp(math.log(sigma), log_sigmas, np.arange(len(log_sigmas))))


def _singlestep_orders(steps: int, order: int, lower_final: bool, to_zero: bool) -> list[int]:
    """DPM-Solver's rounds of 1 to `order` calls, ending lower where the steps do not divide or the noise ends at 0."""
    if to_zero or steps % order:
        lower_final = True
    rounds, rest = divmod(steps, order)
    whole = list(range(1, order + 1))
    if not lower_final or order == 1:
        orders = whole * rounds
    elif rest == 0:
        orders = whole * (rounds - 1) + [*whole[:-1], 1]
    else:
        orders = whole * rounds + whole[:rest]
    if to_zero:
        orders[-1] = 1
    return orders


def _with_history(orders: Sequence[int]) -> list[int]:
    """The orders that can be had when nothing came before the first step."""
    return [min(order, i + 1) for i, order in enumerate(orders)]


def _betas(config: ScheduleConfig) -> np.ndarray:
    """Betas (training steps,), float32."""
    count = config.num_train_timesteps
    if config.trained_betas is not None:
        return np.array(config.trained_betas, np.float32)
    if config.beta_schedule == "linear":
        return _linspace(config.beta_start, config.beta_end, count)
    if config.beta_schedule == "scaled_linear":
        return _linspace(math.sqrt(config.beta_start), math.sqrt(config.beta_end), count) ** 2
    if config.beta_schedule == "squaredcos_cap_v2":  # Nichol and Dhariwal 2021, https://arxiv.org/abs/2102.09672
        bar = [math.cos((i / count + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(count + 1)]
        return np.array([min(1 - b / a, 0.999) for a, b in zip(bar, bar[1:], strict=False)], np.float32)
    raise ValueError(f"no beta schedule {config.beta_schedule!r}")


def _linspace(start: float, end: float, count: int) -> np.ndarray:
    """torch.linspace in float32, to the last bit: from both ends to the middle, each product and sum rounded once."""
    first, last = np.float32(start), np.float32(end)
    step = np.float64(np.float32((last - first) / np.float32(count - 1))) if count > 1 else np.float64(0)
    i = np.arange(count)
    lower, upper = np.float64(first) + step * i, np.float64(last) - step * (count - 1 - i)
    return np.where(i < count // 2, lower, upper).astype(np.float32) if count > 1 else np.array([first])


def _cumprod(alphas: np.ndarray) -> np.ndarray:
    """torch.cumprod of float32: it multiplies in float64 and rounds the results."""
    return np.cumprod(alphas.astype(np.float64)).astype(np.float32)


def _zero_terminal_snr(betas: np.ndarray) -> np.ndarray:
    """Betas whose last alphas_cumprod is 0 (Lin et al. 2023, https://arxiv.org/abs/2305.08891, algorithm 1)."""
    root = np.sqrt(_cumprod(np.float32(1) - betas))
    first, last = root[0], root[-1]
    bar = ((root - last) * (first / (first - last))) ** 2
    return np.float32(1) - np.concatenate([bar[:1], bar[1:] / bar[:-1]])
