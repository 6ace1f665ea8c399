"""From a model folder to torch modules: no second copy of the weights, nothing missing, nothing left over.

U-Net and autoencoder are built on torch's meta device, without storage, and every tensor of the folder is put in place
as it is read: cast, moved and seen as channels_last. A folder's convolutions are OHWI, and permuting such a tensor to
OIHW is channels_last already, so nothing is copied for the layout.
"""

from __future__ import annotations

import functools
import logging
import time
import warnings
from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel, UNet2DModel, VQModel
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from ..clip import ClipFolder
from ..config import BertConfig, ClipTextConfig, UNetConfig, VqConfig
from ..errors import UserError
from ..folder import Folder, Manifest
from ..plan import Machine
from ..prompt import Reader
from ..tokenizer import open_tokenizer
from .adapt import TokenTable, TorchWeights
from .blocks import quicken_unet, quicken_vae
from .clip import TorchClip
from .model import TextEncoder, TorchModel
from .told import ClassEmbedder, Rescaler

log = logging.getLogger(__name__)


def build(folder: Folder, device: str | None, precision: str) -> TorchModel:
    """The model of `folder` on a torch device, ready to predict. Peak memory is the model's plus one tensor's."""
    manifest = folder.manifest
    _check(manifest)
    where = _device(device)
    found, dtype, why = machine(device, precision)
    try:
        model = _build(folder, where, dtype, why)
    except torch.cuda.OutOfMemoryError:
        raise UserError(
            f"The GPU's memory is not enough for {manifest.name}: close what else uses it, or take --device cpu."
        ) from None
    model.machine = found
    return model


def machine(device: str | None, precision: str) -> tuple[Machine, torch.dtype, str]:
    """Where a model would compute, if it were loaded now; in which numbers, and why in these."""
    where = _device(device)
    dtype, why = _dtype(where, precision)
    memory = None
    if where.type == "cuda":  # what this process has reserved from the GPU is not free, but ours
        memory = torch.cuda.mem_get_info(where)[0] + torch.cuda.memory_reserved(where)
    return Machine("torch", str(where), str(dtype).split(".")[-1], memory), dtype, why


def _build(folder: Folder, where: torch.device, dtype: torch.dtype, why: str) -> TorchModel:
    manifest = folder.manifest
    # A CPU reads the prompt once a job: float32 costs nothing there. On a GPU the text is half precision as well.
    text_dtype = torch.float32 if where.type == "cpu" else dtype
    reader = Reader(folder)
    encoders = [_text(folder, part, where, text_dtype) for part in manifest.texts]
    classes = rescaler = None
    with torch.device("meta"):
        unet = _unet(manifest.denoiser)
        vae = (VQModel if isinstance(manifest.vae, VqConfig) else AutoencoderKL)(**manifest.vae.to_diffusers())
        if "classes" in manifest.parts:
            classes = ClassEmbedder(manifest.classes)
        if "rescaler" in manifest.parts:
            rescaler = Rescaler(manifest.rescaler)
    _fill(unet, folder, "denoiser", where, dtype)
    _fill(vae, folder, "vae", where, _vae_dtype(manifest, dtype))
    if classes is not None:
        _fill(classes, folder, "classes", where, text_dtype)
    if rescaler is not None:  # a few numbers, used once a job
        _fill(rescaler, folder, "rescaler", where, torch.float32)
    modules = {"denoiser": dict(unet.named_modules())}  # their names, before they are replaced
    quicken_unet(unet)
    quicken_vae(vae)
    for part, encoder in zip(manifest.texts, encoders, strict=True):
        modules[part] = dict(encoder.net.named_modules())
    weights = TorchWeights(modules, where)
    return TorchModel(manifest, reader, encoders, classes, rescaler, unet, vae, where, dtype, why, weights)


def _unet(config: UNetConfig) -> UNet2DConditionModel | UNet2DModel:
    if config.diffusers == "UNet2DConditionModel":
        return UNet2DConditionModel(**config.to_diffusers())
    unet = UNet2DModel(**config.to_diffusers())
    for name, heads in config.picture_attention().items():
        unet.get_submodule(name).heads = heads
    return unet


def _check(manifest: Manifest) -> None:
    """Refuse what would otherwise run and draw something wrong."""
    config: UNetConfig = manifest.denoiser
    if config.class_embed_type is not None or (config.num_class_embeds and manifest.task != "upscale"):
        raise UserError(f"{manifest.name} wants a class with every picture, which this version cannot give.")
    if config.addition_embed_type == "text_time" and manifest.text_2 is None and manifest.task != "refine":
        raise UserError(f"{manifest.name} wants a second text encoder's summary, but the folder has no part text_2.")


# Where, and in which numbers.


def _device(name: str | None) -> torch.device:
    if name is None:
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"torch has no device {name!r}; it knows cpu, cuda, cuda:1 and mps.") from None
    here = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not here.get(device.type, False):
        raise UserError(f"torch finds no device {name!r} on this machine; --device cpu always works.")
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


def _dtype(device: torch.device, precision: str) -> tuple[torch.dtype, str]:
    """The dtype of U-Net and autoencoder, and why, in a few words.

    On CUDA `auto` is float16, not bfloat16: tensor cores run both at the same speed, float16 has three more bits (a
    picture about 15 dB closer to float32's), and its small range, the reason to prefer bfloat16 elsewhere, only
    matters for SDXL's autoencoder, which runs in float32 (see `_vae_dtype`). Chips before Volta have neither.
    """
    if precision != "auto":
        return {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[precision], "asked for"
    if device.type == "cuda":
        if torch.cuda.get_device_capability(device) >= (7, 0):
            return torch.float16, "tensor cores"
        return torch.float32, "no tensor cores"
    if device.type == "mps":
        return torch.float16, "a GPU"
    gain = bfloat16_gain()
    log.info("bfloat16 measured %.1f times as fast as float32 on this CPU", gain)
    if gain >= 1.3:
        return torch.bfloat16, "measured to be faster than float32 here"
    return torch.float32, "bfloat16 measured to be no faster here"


def _vae_dtype(manifest: Manifest, dtype: torch.dtype) -> torch.dtype:
    """float32 where float16 overflows. SD 1.x and 2.x configs lack `force_upcast` (diffusers' default is true), yet
    their autoencoders are fine in float16 and diffusers' pipelines run them so; what counts is SDXL's."""
    upcast = manifest.vae.force_upcast and manifest.family not in ("sd1", "sd2")
    return torch.float32 if dtype == torch.float16 and upcast else dtype


@functools.cache
def bfloat16_gain() -> float:
    """How many times faster this CPU is in bfloat16 than in float32, at a convolution and a matrix product of a
    U-Net's size. Measured once a process, on one core in about 50 ms: flags of the processor do not tell the speed,
    and several threads on a busy machine measure how busy it is."""
    threads, times = torch.get_num_threads(), {}
    torch.set_num_threads(1)
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(1, 320, 12, 12).to(dtype).contiguous(memory_format=torch.channels_last)
        w = torch.randn(320, 320, 3, 3).to(dtype).contiguous(memory_format=torch.channels_last)
        a, b = torch.randn(192, 640).to(dtype), torch.randn(640, 640).to(dtype)
        laps = []
        with torch.no_grad():
            for _ in range(5):  # the first lap chooses kernels
                start = time.perf_counter()
                F.conv2d(x, w, padding=1)
                F.linear(a, b)
                laps.append(time.perf_counter() - start)
        times[dtype] = min(laps[1:])
    torch.set_num_threads(threads)
    return times[torch.float32] / times[torch.bfloat16]


# The parts.


def _text(folder: Folder, part: str, device: torch.device, dtype: torch.dtype) -> TextEncoder:
    config = folder.manifest.texts[part]
    with torch.device("meta"):
        net = _bert(config) if isinstance(config, BertConfig) else _clip(config)
    _number(net, device)
    _fill(net, folder, part, device, dtype, dialect="model." if isinstance(config, BertConfig) else "text_model.")
    if isinstance(config, ClipTextConfig):
        name, table = next((name, module) for name, module in net.named_modules() if isinstance(module, nn.Embedding))
        assert name.endswith("token_embedding"), name
        net.set_submodule(name, TokenTable(table))
    return TextEncoder(net, config)


def _clip(config: ClipTextConfig) -> nn.Module:
    values = config.to_dict()
    del values["skip"]
    kind = CLIPTextModel if config.projection_dim is None else CLIPTextModelWithProjection
    if config.projection_dim is None:
        del values["projection_dim"]
    return kind(CLIPTextConfig(**values))


def _bert(config: BertConfig) -> nn.Module:
    # not at the top: it brings a whole pipeline along, which few models need
    from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertEncoder

    return LDMBertEncoder(LDMBertConfig(**config.to_diffusers()))


def build_clip(folder: ClipFolder, device: torch.device) -> TorchClip:
    """Both towers of a CLIP, in float32: they are asked once a job."""
    with torch.device("meta"):
        vision = CLIPVisionModelWithProjection(CLIPVisionConfig(**folder.vision.to_transformers()))
    _number(vision, device)
    _fill(vision, folder, "vision", device, torch.float32, dialect="vision_model.")
    tokenizer = open_tokenizer(folder.text, folder.tokenizer_files())
    return TorchClip(tokenizer, _text(folder, "text", device, torch.float32), vision, device)


def _number(clip: nn.Module, device: torch.device) -> None:
    """The positions 0, 1, 2 ... that CLIP's modules keep in a buffer, which no file holds. Left on the meta device they
    would give wrong numbers without an error."""
    for module in clip.modules():
        for name, buffer in module.named_buffers(recurse=False):
            assert name == "position_ids", name
            setattr(module, name, torch.arange(buffer.shape[-1], device=device).expand(1, -1))


def _fill(
    module: nn.Module, folder: Folder, part: str, device: torch.device, dtype: torch.dtype, dialect: str = ""
) -> None:
    """Put every tensor of a part in its place; both sides must be used up, and shapes must agree.

    `dialect` is a prefix that folders write and that some versions of the module lack.
    """
    parameters = dict(module.named_parameters())
    lacks = dialect and not any(name.startswith(dialect) for name in parameters)
    names = {name.removeprefix(dialect) if lacks else name: name for name in folder.names(part)}
    _complain(part, "lacks", parameters.keys() - names.keys())
    _complain(part, "has unknown", names.keys() - parameters.keys())
    for name, parameter in parameters.items():
        stored = names[name]
        tensor = _oihw(_to_torch(folder.read(part, stored)), parameter.ndim)
        if tensor.shape != parameter.shape:
            raise UserError(
                f"The model's {part} has {stored} of shape {tuple(tensor.shape)}, but its config asks for "
                f"{tuple(parameter.shape)}: the folder is damaged or its config belongs to another model."
            )
        owner, _, leaf = name.rpartition(".")
        place = module.get_submodule(owner)
        place.register_parameter(leaf, nn.Parameter(tensor.to(device, dtype), requires_grad=False))
    left = [name for name, tensor in (*module.named_parameters(), *module.named_buffers()) if tensor.is_meta]
    assert not left, f"never filled: {left[:5]}"
    module.eval()


def _to_torch(array: np.ndarray) -> torch.Tensor:
    with warnings.catch_warnings():  # a read-only array is fine: nothing writes into weights
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def _oihw(tensor: torch.Tensor, ndim: int) -> torch.Tensor:
    """A folder's tensor as torch wants it: OHWI seen as OIHW, a matrix as the 1x1 convolution it is."""
    if ndim == 4 and tensor.ndim == 4:
        return tensor.permute(0, 3, 1, 2)
    if ndim == 4 and tensor.ndim == 2:
        return tensor[:, :, None, None]
    return tensor


def _complain(part: str, verb: str, names: Iterable[str]) -> None:
    found = sorted(names)
    if found:
        more = f" and {len(found) - 5} more" if len(found) > 5 else ""
        raise UserError(
            f"The model's {part} {verb} tensors: {', '.join(found[:5])}{more}; the folder is damaged or its config "
            f"belongs to another model."
        )
