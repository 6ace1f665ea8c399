"""The torch backend's model: text encoders, U-Net and autoencoder behind the face of `backend.Model`."""

from __future__ import annotations

import contextlib
import gc
import logging
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel, UNet2DModel, VQModel
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor, nn

from ..config import BertConfig, ClipTextConfig, VqConfig
from ..errors import UserError
from .adapt import TokenTable
from .blocks import text_attentions
from .seamless import make_seamless

if TYPE_CHECKING:
    from ..adapters import Word
    from ..clip import ClipFolder
    from ..folder import Manifest
    from ..plan import Machine
    from ..prompt import Chunk, Reader, Tokens
    from .adapt import TorchWeights
    from .clip import TorchClip
    from .told import ClassEmbedder, Rescaler

log = logging.getLogger(__name__)

SCORES = 1 << 25  # bytes of distances to codes to hold at a time
KEPT = 4  # captured calls, for pictures of one shape
WARM_UP = 2  # U-Net calls before a capture: the first chooses kernels and compiles, the second finds all of it ready


@dataclass(frozen=True)
class TextEncoder:
    """A text encoder."""

    net: nn.Module
    config: ClipTextConfig | BertConfig

    def __call__(self, texts: Sequence[Sequence[Chunk]], clip_skip: int | None) -> tuple[Tensor, Tensor | None]:
        """The hidden states (N, chunks * length, D) of N texts of as many chunks each, and the summaries (N, P) of
        their first chunks where the model projects one."""
        chunks = [chunk for text in texts for chunk in text]
        hidden, summary = self.read([chunk.ids for chunk in chunks], clip_skip)
        hidden = weighed(hidden, [chunk.weights for chunk in chunks])
        return hidden.reshape(len(texts), -1, hidden.shape[-1]), None if summary is None else summary[:: len(texts[0])]

    def read(self, tokens: Sequence[Sequence[int]], clip_skip: int | None = None) -> tuple[Tensor, Tensor | None]:
        """The hidden states (N, length, D) of N rows of tokens, and their summaries (N, P)."""
        ids = torch.tensor(tokens, device=next(self.net.parameters()).device)
        layer = -1 if isinstance(self.config, BertConfig) else self.config.layer(clip_skip)
        out = self.net(ids, output_hidden_states=layer != -1, return_dict=True)
        hidden = out.last_hidden_state
        if layer != -1:
            assert isinstance(self.config, ClipTextConfig)
            hidden = out.hidden_states[layer]
            if self.config.skip == -1:  # then the layers before the last go through its norm, too
                hidden = getattr(self.net, "text_model", self.net).final_layer_norm(hidden)
        return hidden, getattr(out, "text_embeds", None)


def weighed(hidden: Tensor, weights: Sequence[Sequence[float]]) -> Tensor:
    """Hidden states (N, length, D) times the weights of their tokens, each row's mean as it was."""
    if all(weight == 1 for row in weights for weight in row):
        return hidden
    factors = torch.tensor(weights, dtype=torch.float32, device=hidden.device)[:, :, None]
    states = hidden.float()
    heavy = states * factors
    return (heavy * (states.mean(dim=(1, 2), keepdim=True) / heavy.mean(dim=(1, 2), keepdim=True))).to(hidden.dtype)


@dataclass(frozen=True, eq=False)
class Cond:
    """What `predict` is told about the text: row 0 is the prompt, row 1 (if there) the negative prompt."""

    context: Tensor | None  # (rows, T, E); None for a U-Net that reads no text
    texts: list[tuple[Tensor, Tensor]]  # keys and values of every layer that reads the text
    added: dict[str, Tensor] | None  # SDXL: text_embeds (rows, P), time_ids (rows, 6; the refiner's 5)
    labels: Tensor | None = None  # (rows,) whole numbers
    guidance: Tensor | None = None  # (rows, waves)

    @property
    def rows(self) -> int:
        return 1 if self.context is None else self.context.shape[0]

    def tensors(self) -> list[Tensor]:
        """All of them, in a fixed order."""
        single = [tensor for tensor in (self.context, self.labels, self.guidance) if tensor is not None]
        return [*single, *(t for pair in self.texts for t in pair), *(self.added or {}).values()]

    def clone(self) -> Cond:
        added = None if self.added is None else {name: t.clone() for name, t in self.added.items()}
        context, *more = (None if t is None else t.clone() for t in (self.context, self.labels, self.guidance))
        return Cond(context, [(k.clone(), v.clone()) for k, v in self.texts], added, *more)


class TorchModel:
    """A model on one torch device. Faces outwards as `backend.Model` says: float32, NHWC, one picture."""

    machine: Machine  # `build` says it

    def __init__(
        self,
        manifest: Manifest,
        reader: Reader,
        encoders: list[TextEncoder],
        classes: ClassEmbedder | None,
        rescaler: Rescaler | None,
        unet: UNet2DConditionModel | UNet2DModel,
        vae: AutoencoderKL | VQModel,
        device: torch.device,
        dtype: torch.dtype,
        why: str,
        weights: TorchWeights,
    ):
        self.manifest, self.reader = manifest, reader
        self.weights = weights
        self.device, self.dtype = device, dtype
        self.precision = str(dtype).split(".")[-1]
        self.description = f"torch {torch.__version__} on {_called(device)}, {self.precision} ({why})"
        self._encoders, self._classes, self._rescaler = encoders, classes, rescaler
        self._unet, self._vae = unet, vae
        self._readers = text_attentions(unet)
        self._capture = device.type == "cuda"
        self._captured: list[Captured] = []  # the last one used first
        self._seams: list[Callable[[], None]] = []  # what brings them back

    def learn(self, words: Sequence[Word]) -> None:
        self.reader.learn([(word.names, word.count) for word in words])
        for part, encoder in zip(self.manifest.texts, self._encoders, strict=True):
            for table in encoder.net.modules():
                if isinstance(table, TokenTable):
                    table.learn([torch.from_numpy(word.vectors[part]) for word in words])

    # Arrays in and out.

    def array(self, x: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(np.array(x, dtype=np.float32))
        if self.device.type == "cuda":  # from pinned memory, or fresh noise would wait for the step before it
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)

    def numpy(self, x: Tensor) -> np.ndarray:
        return x.detach().float().cpu().numpy()

    def seamless(self, axes: str) -> None:
        for restore in self._seams:
            restore()
        self._seams = [make_seamless(net, axes) for net in (self._unet, self._vae)] if axes else []
        self._captured = []  # they are of the convolutions as they were

    def evaluate(self, x: Tensor) -> Tensor:
        return x  # torch has started already; waiting here would leave a GPU idle between two steps

    # The parts.

    @torch.no_grad()
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
        prompts = [prompt] if negative is None else [prompt, None if zeros else negative]
        texts = self.reader.level(*(self.reader("" if text is None else text) for text in prompts))
        read = [
            encoder([text.encoders[i] for text in texts], texts[0].skip) for i, encoder in enumerate(self._encoders)
        ]
        context = torch.cat([hidden for hidden, _ in read], dim=-1).to(self.dtype)
        blank = [row for row, text in enumerate(prompts) if text is None]
        context[blank] = 0
        added = None
        if self.manifest.denoiser.addition_embed_type == "text_time":
            summary = read[-1][1]
            assert summary is not None, "the second text encoder has no projection"
            summary[blank] = 0
            # original size, crop, and the wanted size or a score (Podell et al. 2023)
            wanted = [[height, width]] * 2 if scores is None else [[score] for score in scores]
            sizes = [[height, width, 0, 0, *last] for last in wanted[: len(texts)]]
            added = {
                "text_embeds": summary.to(self.dtype),
                "time_ids": torch.tensor(sizes, device=self.device, dtype=self.dtype),
            }
        labels = waves = None
        if level is not None:
            labels = torch.tensor([level] * len(texts), device=self.device)
        if guidance is not None:  # in the paper's terms (Meng et al. 2022, arXiv:2210.03142) no guidance is 0
            scales = torch.full((len(texts),), guidance - 1, device=self.device) * 1000
            size = self.manifest.denoiser.time_cond_proj_dim or 0
            waves = get_timestep_embedding(scales, size, downscale_freq_shift=1).to(self.dtype)
        return Cond(context, [reader.read(context) for reader in self._readers], added, labels, waves)

    @torch.no_grad()
    def condition(self, told: Tensor | None, without: Tensor | None) -> Cond:
        if told is None:
            return Cond(None, [], None)
        context = torch.cat([told] if without is None else [told, without]).to(self.dtype)
        return Cond(context, [reader.read(context) for reader in self._readers], None)

    @torch.no_grad()
    def embed_ids(self, ids: Sequence[int]) -> Tensor:
        self.manifest.part("text", BertConfig).check(ids)
        return self._encoders[0].read([list(ids)])[0].float()

    @torch.no_grad()
    def embed_class(self, label: int) -> Tensor:
        self.manifest.classes.check(label)
        assert self._classes is not None
        return self._classes(torch.tensor([label], device=self.device)).float()

    @torch.no_grad()
    def rescale(self, labels: Tensor) -> Tensor:
        assert self._rescaler is not None, "this model has no rescaler"
        return _nhwc(self._rescaler(_nchw(labels, torch.float32)))

    def text_states(self, prompt: Tokens | str) -> Tensor:
        context = self.encode_text(prompt, None, 0, 0).context
        assert context is not None
        return context

    @torch.no_grad()
    def predict(
        self, x: Tensor, timestep: float, cond: Cond, more: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        with self._here():
            if more is not None:
                x = torch.cat([x, more], dim=-1)
            if self._capture:
                out = self._replay(x, timestep, cond)
            else:
                out = self._net(x, torch.full((1,), timestep, dtype=torch.float32, device=self.device), cond)
        return out[:1], (out[1:] if cond.rows == 2 else None)

    @torch.no_grad()
    def glance(self, x: Tensor, timestep: float, cond: Cond) -> Tensor:
        with self._here():  # not recorded: this size will not come again
            return self._net(x, torch.full((1,), timestep, dtype=torch.float32, device=self.device), cond)[:1]

    def deviation(self, x: Tensor) -> Tensor:
        return x.std(dim=(1, 2, 3), correction=0, keepdim=True)

    @torch.no_grad()
    def encode_image(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        vae, config = self._vae, self.manifest.vae
        offset, scale = (self._channels(numbers) for numbers in (config.offset, config.scale))
        with self._here():
            moments = vae.encoder(_nchw(pixels, _dtype_of(vae)))
            if vae.quant_conv is not None:
                moments = vae.quant_conv(moments)
        if isinstance(config, VqConfig):
            latent = _nhwc(moments) * scale
            return latent, torch.zeros_like(latent)
        mean, log_variance = _nhwc(moments).chunk(2, dim=-1)
        std = torch.exp(0.5 * log_variance.clamp(-30, 20))  # the clamp is the training code's
        return (mean - offset) * scale, std * scale

    def _channels(self, numbers: float | tuple[float, ...]) -> float | Tensor:
        """One number for all channels as it is, one for each as what is broadcast over them."""
        return numbers if isinstance(numbers, float | int) else torch.tensor(numbers, device=self.device)

    @torch.no_grad()
    def decode(self, latent: Tensor) -> Tensor:
        picture = self._decode(latent)
        if _dtype_of(self._vae) == torch.float16 and not bool(torch.isfinite(picture).all()):
            log.warning("the autoencoder overflowed in float16; it runs in float32 from now on")
            self._vae.to(torch.float32)
            picture = self._decode(latent)
        return picture

    def _decode(self, latent: Tensor) -> Tensor:
        vae, config = self._vae, self.manifest.vae
        with self._here():
            latent = latent / self._channels(config.scale) + self._channels(config.offset)
            if isinstance(config, VqConfig):
                latent = nearest(latent, vae.quantize.embedding.weight.float())
            z = _nchw(latent, _dtype_of(vae))
            if vae.post_quant_conv is not None:
                z = vae.post_quant_conv(z)
            return _nhwc(vae.decoder(z))

    def load_clip(self, folder: ClipFolder) -> TorchClip:
        from .build import build_clip

        return build_clip(folder, self.device)

    def memory(self) -> dict[str, int]:
        modules = [encoder.net for encoder in self._encoders]
        modules += [self._classes, self._rescaler, self._unet, self._vae]
        weights = sum(p.nbytes for module in modules if module is not None for p in module.parameters())
        if self.device.type == "cuda":
            return {"weights": weights, "peak": torch.cuda.max_memory_allocated(self.device)}
        if sys.platform == "win32":
            return {"weights": weights}  # Python's standard library cannot tell there
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return {"weights": weights, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}

    def unload(self) -> None:
        self._captured = []
        self._encoders, self._readers = [], []
        self._classes = self._rescaler = self._unet = self._vae = None
        self.weights = None  # type: ignore[assignment]
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    # The U-Net.

    def _net(self, x: Tensor, timestep: Tensor, cond: Cond) -> Tensor:
        """The raw output (rows, h, w, c), float32, for x (1, h, w, c) and timestep (1,)."""
        for reader, text in zip(self._readers, cond.texts, strict=True):
            reader.use(text)
        sample = _nchw(torch.cat([x] * cond.rows), self.dtype)
        times = timestep.expand(cond.rows)
        if cond.context is None:
            return _nhwc(self._unet(sample, times, return_dict=False)[0])
        told = {"class_labels": cond.labels, "timestep_cond": cond.guidance, "added_cond_kwargs": cond.added}
        return _nhwc(self._unet(sample, times, cond.context, **told, return_dict=False)[0])

    def _replay(self, x: Tensor, timestep: float, cond: Cond) -> Tensor:
        """`_net`, as one launch of a CUDA graph: an SD 1.x U-Net is a thousand small kernels, and launching them one
        by one takes longer than computing them. Captured again when the shape of a picture or of a text changes; a
        few are kept for pictures of one shape, since steps may take turns with one text and with two."""
        known = next((one for one in self._captured if one.fits(x, cond)), None)
        if known is None:
            kept = [one for one in self._captured if one.draws(x)][: KEPT - 1]
            self._captured = kept  # the others give their memory back first
            try:
                known = Captured(self._net, x, timestep, cond, kept[0].pool if kept else None)
            except torch.cuda.OutOfMemoryError:
                raise
            except RuntimeError as error:
                log.warning("CUDA graph capture failed, every step will be slower: %s", error)
                self._capture = False
                return self._net(x, torch.full((1,), timestep, dtype=torch.float32, device=self.device), cond)
        self._captured = [known, *(one for one in self._captured if one is not known)]
        return known(x, timestep, cond)

    @contextlib.contextmanager
    def _here(self) -> Iterator[None]:
        """Compute on this model's GPU, and float32 as float32: cuDNN would take TF32 (10 bits of mantissa)."""
        if self.device.type != "cuda":
            yield
            return
        with torch.cuda.device(self.device), contextlib.ExitStack() as exact:
            if self.dtype == torch.float32:
                cudnn = torch.backends.cudnn
                exact.enter_context(cudnn.flags(enabled=True, benchmark=cudnn.benchmark, allow_tf32=False))
            try:
                yield
            except torch.cuda.OutOfMemoryError:
                raise UserError(
                    "The GPU's memory is not enough for this picture: ask for a smaller one, or close what else runs."
                ) from None


class Captured:
    """A U-Net call recorded as a CUDA graph, with the memory it reads from and writes to."""

    def __init__(
        self,
        net: Callable[[Tensor, Tensor, Cond], Tensor],
        x: Tensor,
        timestep: float,
        cond: Cond,
        pool: tuple[int, int] | None = None,
    ):
        """`pool` is that of another one: no two compute at a time, and what they return is copied out at once."""
        self._x, self._cond = x.clone(), cond.clone()
        self._timestep = torch.full((1,), timestep, dtype=torch.float32, device=x.device)
        self._told = cond
        side = torch.cuda.Stream(x.device)
        side.wait_stream(torch.cuda.current_stream(x.device))
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                net(self._x, self._timestep, self._cond)
        torch.cuda.current_stream(x.device).wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
            self._out = net(self._x, self._timestep, self._cond)

    @property
    def pool(self) -> tuple[int, int]:
        """The memory it computes in."""
        return self._graph.pool()

    def draws(self, x: Tensor) -> bool:
        """Whether it is for pictures of this shape."""
        return self._x.shape == x.shape

    def fits(self, x: Tensor, cond: Cond) -> bool:
        mine, given = [self._x, *self._cond.tensors()], [x, *cond.tensors()]
        return [t.shape for t in mine] == [t.shape for t in given]

    def __call__(self, x: Tensor, timestep: float, cond: Cond) -> Tensor:
        if cond is not self._told:
            for mine, given in zip(self._cond.tensors(), cond.tensors(), strict=True):
                mine.copy_(given)
            self._told = cond
        self._x.copy_(x)
        self._timestep.fill_(timestep)
        self._graph.replay()
        return self._out.clone()  # the next step writes where this one did


def nearest(x: Tensor, table: Tensor) -> Tensor:
    """Of each place of x (..., channels) the nearest code of the table (codes, channels), both float32.

    |p - c|² is least where p·c - |c|²/2 is largest; without a matrix product, which may be of fewer bits on a GPU.
    """
    half = 0.5 * table.square().sum(dim=-1)
    found = []
    for places in x.reshape(-1, x.shape[-1]).split(max(1, SCORES // (4 * len(table)))):
        products = sum(places[:, i, None] * table[:, i] for i in range(table.shape[1]))
        found.append(table[(products - half).argmax(dim=-1)])
    return torch.cat(found).reshape(x.shape)


def _nchw(x: Tensor, dtype: torch.dtype) -> Tensor:
    """An NHWC array as torch's modules want it: (N, C, H, W), channels_last, `dtype`."""
    return x.permute(0, 3, 1, 2).to(dtype).contiguous(memory_format=torch.channels_last)


def _nhwc(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).float().contiguous()


def _dtype_of(module: nn.Module) -> torch.dtype:
    return next(module.parameters()).dtype


def _called(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return "Apple's GPU (MPS)" if device.type == "mps" else f"the CPU ({platform.machine()})"
