"""How fast a single file of Stable Diffusion 1.5 or XL size opens and becomes a model folder, beside copying it.

    python benchmarks/convert.py [sd1] [sdxl] [--ckpt] [--diffusers] [--place DIR] > convert.json

Files of random float16 weights with the original's names are made in DIR (SD 1.5 2.1 GB, SDXL 6.9 GB; three times that
must be free). Each job runs in a process of its own: copying the file with fsync, opening a view, converting (float16
as it is, and with --quantize 8), and, if asked, diffusers' `from_single_file` and `save_pretrained`. Prints a table to
stderr and one JSON object to stdout. Copy and conversion are taken in turns, and all --rounds of each count together:
a disk with much unwritten behind it is two to three times slower.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT)]
from convert import original  # noqa: E402
from mlxldm.config import ClipTextConfig, UNetConfig, VaeConfig  # noqa: E402
from mlxldm.parameters import parameters  # noqa: E402
from mlxldm.tensors import Tensor, header  # noqa: E402

CLIP = ClipTextConfig(vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12,
                      num_attention_heads=12, max_position_embeddings=77)  # fmt: skip
BIG = ClipTextConfig(vocab_size=49408, hidden_size=1280, intermediate_size=5120, num_hidden_layers=32,
                     projection_dim=1280, num_attention_heads=20, hidden_act="gelu", skip=-2)  # fmt: skip
# convolutions there, matrices here
ONE_BY_ONE = {"sdxl": r"skip_connection|nin_shortcut|attn_1\.(q|k|v|proj)|quant_conv"}
ONE_BY_ONE["sd1"] = ONE_BY_ONE["sdxl"] + r"|\.proj_(in|out)\.weight"
VAE = VaeConfig.from_dict({
    "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2,
    "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
})  # fmt: skip
SD1 = UNetConfig.from_dict({"heads": [8] * 4, "cross_attention_dim": 768})
SDXL = UNetConfig.from_dict({
    "block_out_channels": [320, 640, 1280], "heads": [5, 10, 20], "cross_attention_dim": 2048,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "transformer_layers_per_block": [1, 2, 10], "use_linear_projection": True, "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
})  # fmt: skip

# kind: for each part the prefix in a single file, its config, and who gives its names
KINDS = {
    "sd1": [
        ("model.diffusion_model.", SD1, original.unet_name),
        ("first_stage_model.", VAE, original.vae_name),
        ("cond_stage_model.transformer.", CLIP, original.clip_name),
    ],
    "sdxl": [
        ("model.diffusion_model.", SDXL, original.unet_name),
        ("first_stage_model.", VAE, original.vae_name),
        ("conditioner.embedders.0.transformer.", CLIP, original.clip_name),
        ("conditioner.embedders.1.model.", BIG, original.openclip_name),
    ],
}
BLOCK = 16 << 20


def shapes(kind: str) -> dict[str, Tensor]:
    """Names and shapes of a whole single file, as the original code has them."""
    found = {}
    for prefix, config, theirs in KINDS[kind]:
        for name, shape in parameters(config).items():
            key, cut = theirs(name, config)
            if len(shape) == 4:
                shape = (shape[0], shape[3], shape[1], shape[2])
            elif cut.startswith("rows"):
                shape = (3 * shape[0], *shape[1:])
            elif cut == "transposed":
                shape = shape[::-1]
            elif len(shape) == 2 and re.search(ONE_BY_ONE[kind], key):
                shape = (*shape, 1, 1)
            found[prefix + key] = Tensor("F16", shape)
    return found


def make(kind: str, path: Path) -> None:
    """A safetensors file of small random numbers, or a torch checkpoint by its name's end."""
    rng = np.random.default_rng(0)
    noise = (0.02 * rng.standard_normal(1 << 22, np.float32)).astype(np.float16)
    tensors = shapes(kind)
    if path.suffix == ".ckpt":
        import torch

        repeated = {name: torch.from_numpy(np.resize(noise, tensor.shape)) for name, tensor in tensors.items()}
        torch.save({"state_dict": repeated}, path)
        return
    with open(path, "wb") as file:
        file.write(header(tensors, {"format": "pt"}, align=8))
        for tensor in tensors.values():
            left = math.prod(tensor.shape)
            start = int(rng.integers(0, 1 << 20))
            while left:
                some = noise[start : start + left]
                file.write(some.data)
                left, start = left - len(some), 0


def copy(source: Path, target: Path) -> None:
    """What the disk alone takes: the same bytes, through to the disk."""
    with open(source, "rb") as read, open(target, "wb") as written:
        shutil.copyfileobj(read, written, BLOCK)
        written.flush()
        os.fsync(written.fileno())


JOBS = {
    "copy": "import sys, pathlib; from benchmarks.convert import copy; copy(*map(pathlib.Path, sys.argv[1:3]))",
    "view": "import sys; from convert import view; f = view(sys.argv[1]); [f.names(p) for p in f.manifest.parts]",
    "convert": "import sys; from convert import view, write; write(view(sys.argv[1]), sys.argv[2])",
    "quantize": "import sys; from convert import view, write; write(view(sys.argv[1]), sys.argv[2], bits=8)",
    "diffusers": """
import sys, torch
import diffusers
kind = {"sd1": diffusers.StableDiffusionPipeline, "sdxl": diffusers.StableDiffusionXLPipeline}[sys.argv[3]]
pipe = kind.from_single_file(sys.argv[1], config=sys.argv[4], torch_dtype=torch.float16, local_files_only=True)
pipe.save_pretrained(sys.argv[2])
""",
}
# On Linux ru_maxrss would begin with what the parent had before the new program was loaded.
TIMED = """
import resource, sys, time
start = time.perf_counter()
{code}
seconds = time.perf_counter() - start
if sys.platform == "linux":
    peak = next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
else:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(f"TIMED {{seconds}} {{peak}}")
"""


def job(name: str, *arguments: str) -> tuple[float, float]:
    """Seconds and peak resident bytes of a job in its own process, imports included."""
    os.sync()  # the last job's bytes are not this one's burden
    done = subprocess.run(
        [sys.executable, "-c", TIMED.format(code=JOBS[name]), *arguments], cwd=ROOT, capture_output=True, text=True
    )
    found = re.search(r"TIMED (\S+) (\S+)", done.stdout)
    if done.returncode or not found:
        raise SystemExit(f"{name} failed: {done.stderr[-2000:]}")
    return float(found[1]), float(found[2])


def configs(kind: str, place: Path) -> Path:
    """A diffusers folder without weights: what `from_single_file` would get from a hub."""
    import diffusers
    import transformers

    sys.path.insert(0, str(ROOT / "tests"))
    import tiny

    folder = place / f"{kind}-config"
    unet, vae = (SD1 if kind == "sd1" else SDXL).to_diffusers(), VAE.to_diffusers()
    unet["layers_per_block"] = unet["layers_per_block"][0]  # from_single_file counts with it
    for name, cls, values in (("unet", "UNet2DConditionModel", unet), ("vae", "AutoencoderKL", vae)):
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text(json.dumps({"_class_name": cls, **values}))
    texts = [("text_encoder", CLIP, "CLIPTextModel")]
    texts += [("text_encoder_2", BIG, "CLIPTextModelWithProjection")] if kind == "sdxl" else []
    index = {"_class_name": "StableDiffusionPipeline" if kind == "sd1" else "StableDiffusionXLPipeline"}
    for name, config, cls in texts:
        values = {key: value for key, value in config.to_dict().items() if key != "skip" and value is not None}
        transformers.CLIPTextConfig(**values).save_pretrained(folder / name)
        number = name.replace("text_encoder", "tokenizer")
        tiny.tokenizer().save_pretrained(folder / number)
        index |= {name: ["transformers", cls], number: ["transformers", "CLIPTokenizer"]}
    diffusers.DDIMScheduler(beta_schedule="scaled_linear").save_pretrained(folder / "scheduler")
    index |= {"unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"]}
    index |= {"scheduler": ["diffusers", "DDIMScheduler"]}
    index |= {"safety_checker": [None, None], "feature_extractor": [None, None]} if kind == "sd1" else {}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", choices=[*KINDS, []], default=["sd1"])
    parser.add_argument("--place", default=".", help="a folder on the disk that is measured")
    parser.add_argument("--ckpt", action="store_true", help="torch checkpoints instead of safetensors")
    parser.add_argument("--diffusers", action="store_true", help="measure diffusers too")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    place = Path(args.place) / "convert-benchmark"
    place.mkdir()
    results: dict[str, dict] = {}
    try:
        for kind in args.kinds:
            results[kind] = measure(kind, place, args)
    finally:
        shutil.rmtree(place)
    print(json.dumps(results, indent=2))


def measure(kind: str, place: Path, args: argparse.Namespace) -> dict:
    source = place / f"{kind}.{'ckpt' if args.ckpt else 'safetensors'}"
    make(kind, source)
    os.sync()
    size = source.stat().st_size
    print(f"{kind}: {source.suffix} of {size / 1e9:.2f} GB", file=sys.stderr, flush=True)
    runs: dict[str, list[tuple[float, float]]] = {}
    jobs = ["view", *["copy", "convert"] * args.rounds, "view", "quantize"]
    more = [kind, str(configs(kind, place))] if args.diffusers else []
    for name in jobs + ["diffusers"] * args.diffusers:
        target = place / "target"
        runs.setdefault(name, []).append(job(name, str(source), str(target), *more))
        seconds, peak = runs[name][-1]
        print(f"  {name:10} {seconds:7.2f} s   peak {peak / 1e6:7.0f} MB", file=sys.stderr, flush=True)
        if target.is_dir():
            shutil.rmtree(target)
        else:
            target.unlink(missing_ok=True)
    source.unlink()
    best = {name: {"seconds": min(s for s, _ in some), "peak": max(p for _, p in some)} for name, some in runs.items()}
    together = {name: sum(seconds for seconds, _ in runs[name]) for name in ("copy", "convert")}
    ratio = together["convert"] / together["copy"]
    least = best["convert"]["seconds"] / best["copy"]["seconds"]
    print(f"  converting takes {ratio:.2f} x copying (the best of each {least:.2f})", file=sys.stderr, flush=True)
    return {"bytes": size, "jobs": best, "convert/copy": ratio, "convert/copy, best of each": least}


if __name__ == "__main__":
    main()
