"""A model folder in MLX's memory, behind the `Model` interface of `backend.py`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from ..config import BertConfig
from ..errors import UserError
from ..plan import CACHE, PICTURE_CACHE, Machine
from ..prompt import Reader, Tokens
from . import BLAS, VERSION, cpu
from .adapt import MlxWeights
from .bert import BertText
from .clip import ClipText, TextOutput
from .layers import FUSED_HEADS, Conv2d, PackedLinear
from .told import ClassEmbedder, Rescaler
from .unet import KeysValues, UNet, guidance_waves
from .vae import autoencoder

if TYPE_CHECKING:
    from ..adapters import Word
    from ..clip import ClipFolder
    from ..folder import Folder
    from .clip_vision import MlxClip

DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}
M = TypeVar("M", bound=nn.Module)


@dataclass
class Text:
    """A prompt, ready for every step: keys and values of all cross-attentions, and what `UNet.embed` takes."""

    keys_values: list[KeysValues]
    added: tuple[mx.array, np.ndarray] | None = None  # SDXL's pooled text and sizes
    labels: mx.array | None = None
    condition: mx.array | None = None


@dataclass
class Cond:
    """What `predict` needs to know about the texts: batches to run, and whether there is a negative one.

    A U-Net that reads no text has one batch, of no keys and values.
    """

    batches: list[Text]
    guided: bool


def machine(device: str | None = None, precision: str = "auto") -> Machine:
    """Where a model would compute, and in what, if it were loaded now; a UserError for what is not here."""
    if device not in (None, "cpu", "gpu"):
        raise UserError(f"MLX has no device {device!r}: say cpu or gpu, or leave it out.")
    if device == "gpu" and not mx.is_available(mx.gpu):
        raise UserError("MLX found no GPU on this machine: leave --device out, or say cpu.")
    if precision not in ("auto", *DTYPES):
        raise UserError(f"MLX has no precision {precision!r}: say {', '.join(DTYPES)} or auto.")
    gpu = mx.default_device() == mx.gpu if device is None else device == "gpu"
    if precision == "auto":
        precision = "float16" if gpu else "float32"
    memory = mx.device_info().get("max_recommended_working_set_size") if gpu else None
    return Machine("mlx", "gpu" if gpu else "cpu", precision, None if memory is None else int(memory))


class MlxModel:
    """All parts of a folder, loaded; see `mlxldm.backend.Model` for what each method does.

    precision: "float32", "float16", "bfloat16", or "auto": float16 on a GPU, float32 on a CPU.
    """

    def __init__(self, folder: Folder, device: str | None = None, precision: str = "auto"):
        self.machine = machine(device, precision)
        precision = self.machine.precision
        self._gpu = self.machine.device == "gpu"
        if device is not None:
            mx.set_default_device(mx.Device(mx.gpu if self._gpu else mx.cpu))
        mx.set_cache_limit(0)  # while loading, what is freed is not needed again
        mx.reset_peak_memory()

        self.manifest = manifest = folder.manifest
        config = manifest.denoiser
        if config.class_embed_type is not None or (config.num_class_embeds and manifest.task != "upscale"):
            raise UserError(f"{manifest.name} wants a class with every picture, which this version cannot give.")
        self.precision = precision
        dtype = DTYPES[precision]
        # SDXL's autoencoder overflows in float16, and its config says so; those of SD 1.x and 2.x say so and do not
        careful = manifest.vae.force_upcast and manifest.family not in ("sd1", "sd2") and dtype == mx.float16
        text_dtype = dtype if self._gpu else mx.float32  # a CPU is no slower in it, and reads the prompt once a job
        self.reader = Reader(folder)
        self._texts: list[ClipText | BertText] = []
        for part, text in manifest.texts.items():
            encoder = BertText(text) if isinstance(text, BertConfig) else ClipText(text)
            self._texts.append(fill(encoder, folder, part, text_dtype, self._gpu))
        self._classes = self._rescaler = None
        if "classes" in manifest.parts:
            self._classes = fill(ClassEmbedder(manifest.classes), folder, "classes", text_dtype)
        if "rescaler" in manifest.parts:  # a few numbers, used once a job
            self._rescaler = fill(Rescaler(manifest.rescaler), folder, "rescaler", mx.float32)
        self._unet = fill(UNet(config), folder, "denoiser", dtype, self._gpu)
        self._vae = fill(autoencoder(manifest.vae), folder, "vae", mx.float32 if careful else dtype)
        if self._gpu:
            pad_heads(self._unet)
        self.weights = MlxWeights({"denoiser": self._unet, **dict(zip(manifest.texts, self._texts, strict=True))})
        mx.set_cache_limit(CACHE)
        where = f"the GPU ({mx.device_info().get('device_name', 'GPU')})" if self._gpu else f"the CPU ({BLAS.name})"
        self.description = f"MLX {VERSION} on {where}, {precision}"

    def learn(self, words: Sequence[Word]) -> None:
        """Words that prompts may use from now on, and no others."""
        self.reader.learn([(word.names, word.count) for word in words])
        for part, encoder in zip(self.manifest.texts, self._texts, strict=True):
            if isinstance(encoder, ClipText):
                table = encoder.text_model.embeddings
                vectors = [mx.array(word.vectors[part]) for word in words]
                table.learn(mx.concatenate(vectors).astype(table.token_embedding.weight.dtype) if vectors else None)

    def array(self, x: np.ndarray) -> mx.array:
        """`x` as a float32 array on the device."""
        return mx.array(np.asarray(x, dtype=np.float32))

    def numpy(self, x: mx.array) -> np.ndarray:
        """`x` as float32 NumPy."""
        return np.array(x.astype(mx.float32))

    def encode_text(
        self,
        prompt: Tokens | str | None,
        negative: Tokens | str | None,
        width: int,
        height: int,
        zeros: bool = False,
        *,
        scores: tuple[float, float] | None = None,
        level: int | None = None,
        guidance: float | None = None,
    ) -> Cond:
        """Both texts through the text encoders and into keys and values; width and height of the picture in pixels."""
        prompts = [prompt] if negative is None else [prompt, None if zeros else negative]
        read = self.reader.level(*(self.reader("" if text is None else text) for text in prompts))
        given = [text is not None for text in prompts]
        # SDXL is told the size of its training picture, the corner it was cut at, and the size wanted or a score
        wanted = [[height, width]] * 2 if scores is None else [[score] for score in scores]
        sizes = np.array([[height, width, 0, 0, *last] for last in wanted[: len(prompts)]], np.float32)
        # two batches of one run side by side on a CPU; a GPU wants one batch of two
        parts = [slice(None)] if self._gpu else [slice(row, row + 1) for row in range(len(prompts))]
        texts = [self._text(read[part], given[part], sizes[part], level, guidance) for part in parts]
        return self._cond(texts, guided=negative is not None)

    def condition(self, told: mx.array | None, without: mx.array | None) -> Cond:
        """What is told, in place of a text, and what is told where nothing is: each (1, L, width) of one length."""
        if told is None:
            return Cond([Text([])], guided=False)
        rows = [told] if without is None else [told, without]
        if self._gpu:
            rows = [mx.concatenate(rows)]
        return self._cond([Text(self._unet.keys_values(row)) for row in rows], guided=without is not None)

    @staticmethod
    def _cond(batches: list[Text], guided: bool) -> Cond:
        mx.eval([text.keys_values for text in batches], [text.added[0] for text in batches if text.added])
        mx.eval([told for text in batches for told in (text.labels, text.condition) if told is not None])
        return Cond(batches, guided)

    def text_states(self, prompt: Tokens | str) -> mx.array:
        """What the cross attentions read of a prompt: (1, positions, width)."""
        return mx.concatenate([output.hidden for output in self._encode([self.reader(prompt)])], axis=-1)

    def embed_ids(self, ids: Sequence[int]) -> mx.array:
        """Numbers of tokens through the text encoder: (1, L, width)."""
        self.manifest.part("text", BertConfig).check(ids)
        return self._texts[0]([list(ids)]).hidden.astype(mx.float32)

    def embed_class(self, label: int) -> mx.array:
        """What stands for a class: (1, 1, width)."""
        self.manifest.classes.check(label)
        assert self._classes is not None
        return self._classes([label]).astype(mx.float32)

    def rescale(self, labels: mx.array) -> mx.array:
        """A map of labels, (1, H, W, labels), as the U-Net takes it: (1, h, w, c)."""
        assert self._rescaler is not None, "this model has no rescaler"
        return self._rescaler(labels)

    def _encode(self, texts: Sequence[Tokens]) -> list[TextOutput]:
        """What each text encoder makes of texts of as many chunks each."""
        outputs: list[TextOutput] = []
        for i, encoder in enumerate(self._texts):
            chunks = [chunk for text in texts for chunk in text.encoders[i]]
            ids, skip = [chunk.ids for chunk in chunks], texts[0].skip
            output = encoder(ids) if isinstance(encoder, BertText) else encoder(ids, skip)
            hidden = weighed(output.hidden, [chunk.weights for chunk in chunks])
            hidden = hidden.reshape(len(texts), -1, hidden.shape[-1])
            outputs.append(TextOutput(hidden, None if output.pooled is None else output.pooled[:: texts[0].chunks]))
        return outputs

    def _text(
        self, texts: Sequence[Tokens], given: list[bool], sizes: np.ndarray, level: int | None, guidance: float | None
    ) -> Text:
        """Of each text; where none is `given`, it is zeros before the U-Net makes anything of it."""
        outputs = self._encode(texts)
        there = mx.array(given)[:, None]
        hidden = mx.concatenate([output.hidden for output in outputs], axis=-1) * there[..., None]
        added = labels = condition = None
        if self.manifest.denoiser.addition_embed_type == "text_time":
            pooled = outputs[-1].pooled
            assert pooled is not None
            added = (pooled * there, sizes)
        if level is not None:
            labels = mx.array([level] * len(texts))
        if guidance is not None:
            condition = guidance_waves([guidance] * len(texts), self.manifest.denoiser.time_cond_proj_dim or 0)
        return Text(self._unet.keys_values(hidden), added, labels, condition)

    def predict(
        self, x: mx.array, timestep: float, cond: Cond, more: mx.array | None = None
    ) -> tuple[mx.array, mx.array | None]:
        """The U-Net's raw output with the prompt and, if there is one, with the negative prompt."""
        if more is not None:
            x = mx.concatenate([x, more], axis=-1)
        if not cond.guided:
            return self._guess(x, timestep, cond.batches[0]), None
        if self._gpu:
            both = self._guess(mx.concatenate([x, x]), timestep, cond.batches[0])
            return both[:1], both[1:]
        return self._side_by_side(x, timestep, cond)

    def glance(self, x: mx.array, timestep: float, cond: Cond) -> mx.array:
        """One answer with the prompt alone."""
        return self.predict(x, timestep, cond)[0]

    def _guess(self, x: mx.array, timestep: float, text: Text) -> mx.array:
        time = self._unet.embed(timestep, labels=text.labels, added=text.added, condition=text.condition)
        return self._unet(x, time, text.keys_values)

    def _side_by_side(self, x: mx.array, timestep: float, cond: Cond) -> tuple[mx.array, mx.array]:
        """Both guesses at once on a CPU, each in its own thread with half the cores.

        A matrix product alone keeps all cores busy, but most else in MLX runs on one. Threads of MLX may share arrays
        that are computed, and nothing else: each thread gets finished arrays and hands back a finished one.
        """
        mx.eval(x)

        def compute(text: Text) -> mx.array:
            with cpu.alone():
                guess = self._guess(x, timestep, text)
                mx.eval(guess)
                return guess

        BLAS.threads(max(1, cpu.cores() // 2))
        try:
            other = cpu.team().submit(compute, cond.batches[1])
            return compute(cond.batches[0]), other.result()
        finally:
            BLAS.threads(cpu.cores())

    def deviation(self, x: mx.array) -> mx.array:
        """The standard deviation of all of `x`."""
        return mx.std(x, axis=(1, 2, 3), keepdims=True)

    def encode_image(self, pixels: mx.array) -> tuple[mx.array, mx.array]:
        """Mean and standard deviation of the picture's latent, scaled for the U-Net."""
        config = self.manifest.vae
        with _little_cache():
            mean, deviation = self._vae.encode(pixels)
            mx.eval(mean, deviation)
        offset, scale = _channels(config.offset), _channels(config.scale)
        return (mean - offset) * scale, deviation * scale

    def decode(self, latent: mx.array) -> mx.array:
        """Pixels of a latent of the U-Net's scale."""
        config = self.manifest.vae
        with _little_cache():
            pixels = self._vae.decode(latent / _channels(config.scale) + _channels(config.offset))
            mx.eval(pixels)
        return pixels

    def seamless(self, axes: str) -> None:
        """Pictures continue on their other side from now on, along "x", "y" or "both"; "" ends it."""
        for part in (self._unet, self._vae):
            for module in part.modules():
                if isinstance(module, Conv2d):
                    module.seamless = axes

    def evaluate(self, x: mx.array) -> mx.array:
        """`x`, computed."""
        mx.eval(x)
        return x

    def load_clip(self, folder: ClipFolder) -> MlxClip:
        """Both towers of a CLIP, in float32."""
        from .clip_vision import MlxClip

        return MlxClip(folder)

    def memory(self) -> dict[str, int]:
        """Bytes of the weights, and the most MLX ever held since loading began."""
        parts = [*self._texts, self._classes, self._rescaler, self._unet, self._vae]
        trees = [part.parameters() for part in parts if part is not None]
        weights = sum(array.nbytes for tree in trees for _, array in tree_flatten(tree))
        return {"weights": weights, "peak": mx.get_peak_memory()}

    def unload(self) -> None:
        """Let go of every weight; the model cannot be used afterwards."""
        self._texts, self._classes, self._rescaler = [], None, None
        self._unet = self._vae = self.weights = None  # type: ignore[assignment]
        mx.clear_cache()


def _channels(numbers: float | tuple[float, ...]) -> float | mx.array:
    """One number for all channels as it is, one for each as what is broadcast over them."""
    return numbers if isinstance(numbers, float | int) else mx.array(numbers)


@contextmanager
def _little_cache() -> Iterator[None]:
    """While the autoencoder works: its arrays are too large and too few for a large cache to save time."""
    mx.set_cache_limit(PICTURE_CACHE)
    mx.clear_cache()
    try:
        yield
    finally:
        mx.set_cache_limit(CACHE)


def weighed(hidden: mx.array, weights: Sequence[Sequence[float]]) -> mx.array:
    """Hidden states (B, L, width) times the weights of their tokens (B, L), each row's mean as it was."""
    if all(weight == 1 for row in weights for weight in row):
        return hidden
    states = hidden.astype(mx.float32)
    heavy = states * mx.array(np.array(weights, np.float32))[..., None]
    mean, heavier = (mx.mean(x, axis=(1, 2), keepdims=True) for x in (states, heavy))
    return (heavy * (mean / heavier)).astype(hidden.dtype)


def fill(module: M, folder: Folder, part: str, dtype: mx.Dtype, packed: bool = False) -> M:
    """Every weight of `part` into its place in `module`, as `dtype`, one tensor at a time; `module`.

    `packed`: matrices that the folder stores quantized stay so; otherwise they are weights again.

    Raises UserError naming the first five weights that have no place, or places that no weight fills, or fits.
    """
    places = {name: tuple(array.shape) for name, array in tree_flatten(module.parameters())}
    weights = {name: tuple(tensor.shape) for name, tensor in folder.names(part).items()}
    complaints = {
        "weights without a place": sorted(weights.keys() - places.keys()),
        "no weights for": sorted(places.keys() - weights.keys()),
        "weights of the wrong shape": [
            f"{name} {weights[name]} instead of {places[name]}"
            for name in sorted(weights.keys() & places.keys())
            if weights[name] != places[name]
        ],
    }
    for complaint, names in complaints.items():
        if names:
            shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
            raise UserError(
                f"{folder.manifest.name}'s {part} has {complaint}: {shown}; "
                "the folder is damaged or of another family, so convert the model again."
            )
    stays = folder.groups(part) if packed else {}
    for name in weights:
        *path, last = name.split(".")
        if name in stays:
            codes = folder.packed(part, name)
            three = (mx.array(codes.codes), mx.array(codes.scales).astype(dtype), mx.array(codes.biases).astype(dtype))
            mx.eval(three)
            layer = PackedLinear(*three, codes.bits, codes.group)
            old = _at(module, path)
            if "bias" in old:
                layer.bias = old.bias  # filled before or after, in its own turn
            _at(module, path[:-1])[int(path[-1]) if path[-1].isdigit() else path[-1]] = layer
            continue
        owner = _at(module, path)
        # evaluated at once, so that neither the file's copy nor a cast waits in memory
        value = mx.array(folder.read(part, name)).astype(dtype)
        mx.eval(value)
        owner[last] = value
    return module


def _at(module: nn.Module, path: list[str]) -> Any:
    """What lies at a parameter's path: a module, or a list of them."""
    owner: Any = module
    for step in path:
        owner = owner[int(step)] if isinstance(owner, list) else owner[step]
    return owner


def pad_heads(unet: UNet, sizes: tuple[int, ...] = FUSED_HEADS) -> None:
    """Pad every head that is just below a size with a fused kernel up to it (Stable Diffusion 1.x: 40 to 64).

    Sizes less than half of the next are left: they belong to tiny models, where padding costs more than it saves.
    """
    for attention in unet.attentions():
        bigger = [size for size in sizes if attention.head <= size <= 2 * attention.head]
        if bigger and bigger[0] != attention.head:
            attention.pad_heads(bigger[0])
