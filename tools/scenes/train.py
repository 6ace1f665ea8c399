"""Train the embedded model from nothing: pictures, text encoder, judge, autoencoder, decoder, denoiser, folder.

    python tools/scenes/train.py --work DIR [--size 256] [--minutes 9] [--out FOLDER]

Each stage trains for a share of time that depends on the machine (STAGES; `--seconds` sets one, `--scale` stretches all
of them), its learning rate falling along a cosine over that time, and is saved as it goes: a run that was cut off, or
that `--minutes` or a TERM signal ended, goes on where it stopped. What to watch is told beside each stage. The result
is a diffusers folder, which `mlxldm-convert` turns into the package data.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch._dynamo
import torch.nn.functional as F
from diffusers.models.attention_processor import AttnProcessor

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
import bpe
import networks
import pictures as drawn
from pictures import ATTRIBUTES, CAPTIONS

from mlxldm.folder import open_folder

# Seconds of each stage, on an accelerator and on a small CPU.
STAGES = {
    "cuda": {"text": 25, "autoencoder": 280, "decoder": 50, "judge": 70, "denoiser": 580},
    "cpu": {"text": 240, "autoencoder": 4200, "decoder": 240, "judge": 420, "denoiser": 6000},
}
PICTURES = {"cuda": 100_000, "cpu": 24_000}
BATCH = {
    "cuda": {"text": 2048, "autoencoder": 32, "judge": 128, "decoder": 32, "denoiser": 512},
    "cpu": {"text": 64, "autoencoder": 8, "judge": 32, "decoder": 4, "denoiser": 32},
}
RATE = {"text": 1e-3, "autoencoder": 2e-3, "judge": 1e-3, "decoder": 6e-4, "denoiser": 1e-3}
OBJECT_NAMES = ("object", "color", "position")


class Run:
    """Where things are, on what they run, and when to stop."""

    def __init__(self, args: argparse.Namespace):
        self.work, self.size = Path(args.work), args.size
        self.device = torch.device(args.device)
        self.kind = self.device.type
        self.end = time.time() + 60 * args.minutes if args.minutes else math.inf
        self.start = args.start
        self.scale, self.part_mb, self.compile, self.threads = args.scale, args.part_mb, args.compile, args.threads
        self.seconds = {k: v * self.scale for k, v in STAGES[self.kind].items()} | settings(args.seconds)
        self.rates = RATE | settings(args.rates)
        # Measured forward and backward: channels last is the faster layout on CUDA, the slower one on CPUs.
        self.layout = torch.channels_last if self.kind == "cuda" else torch.contiguous_format
        self.work.mkdir(parents=True, exist_ok=True)
        bpe.write(self.work / "tokenizer")
        self.tokens = drawn.tokenizer(self.work / "tokenizer")
        self.vocab_size = len(json.loads((self.work / "tokenizer/vocab.json").read_text()))
        self.pictures = drawn.Pictures(
            self.work / "pictures",
            args.pictures or PICTURES[self.kind],
            self.size,
            networks.LENGTH,
            self.work / "tokenizer",
        )
        self.copied = 0
        self.batch = {k: max(2, int(v * args.batch_scale)) for k, v in BATCH[self.kind].items()}

    def say(self, *words) -> None:
        print(f"[{time.strftime('%H:%M:%S')}]", *words, flush=True)

    def adapt(self) -> None:
        """On a CPU that others use too, one thread is faster than several that wait for each other at every step."""
        cores = os.cpu_count() or 1
        if self.kind == "cpu":
            torch.set_num_threads(self.threads or (cores if os.getloadavg()[0] < cores + 0.6 else 1))

    def autocast(self):
        return torch.autocast(self.kind, torch.bfloat16)

    def upload(self, at_least: int = 0, pixels: bool = True) -> int:
        """Bring what is drawn so far to the device; waits until `at_least` pictures are there. Returns their number."""
        while (ready := self.pictures.ready()) < min(at_least, self.pictures.count):
            if self.pictures.failed():
                raise RuntimeError("a drawing process failed; its message is above")
            time.sleep(0.5)
        if pixels and self.kind == "cuda":
            if not hasattr(self, "pixels"):
                self.pixels = torch.empty(self.pictures.pixels.shape, dtype=torch.uint8, device=self.device)
            for start in range(self.copied, ready, 2048):
                stop = min(start + 2048, ready)
                self.pixels[start:stop] = torch.from_numpy(np.ascontiguousarray(self.pictures.pixels[start:stop]))
            self.copied = ready
        elif pixels:
            self.pixels, self.copied = torch.from_numpy(self.pictures.pixels), ready
        self.labels = torch.from_numpy(np.array(self.pictures.labels[:ready])).to(self.device).long()
        self.ids = torch.from_numpy(np.array(self.pictures.ids[:ready])).to(self.device).long()
        self.mentions = torch.from_numpy(np.array(self.pictures.mentions[:ready])).to(self.device).long()
        return ready

    def images(self, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Pictures (n, 3, s, s) in [-1, 1] and object masks (n, 1, s, s)."""
        x, mask = to_images(self.pixels[index.to(self.pixels.device)].to(self.device))
        return x.contiguous(memory_format=self.layout), mask

    def place(self, module: torch.nn.Module) -> torch.nn.Module:
        """The module on the device, in its layout, with the attention that is fastest to train there."""
        module.to(self.device, memory_format=self.layout)
        if self.kind == "cpu" and hasattr(module, "set_attn_processor"):
            # For the 64 positions of these networks the fused kernel's backward pass takes five times as long.
            module.set_attn_processor(AttnProcessor())
        return module

    def held(self) -> dict[str, torch.Tensor]:
        if not hasattr(self, "_held"):
            count = 1024 if self.kind == "cuda" else 256
            path = self.work / f"held-{count}.npz"
            if not path.exists():
                np.savez(path, **drawn.held_out(count, self.size, self.work / "tokenizer", networks.LENGTH))
            with np.load(path) as file:
                self._held = {k: torch.from_numpy(file[k]).to(self.device) for k in file if not k.endswith("texts")}
            for name in ("labels", "ids", "mentions", "wrong"):
                self._held[name] = self._held[name].long()
        return self._held


def to_images(rgba: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x = rgba.permute(0, 3, 1, 2).float()
    return (x[:, :3] / 127.5 - 1).contiguous(), x[:, 3:] / 255


def settings(text: str) -> dict[str, float]:
    """"denoiser=600,text=60" -> {"denoiser": 600.0, "text": 60.0}; names of stages only."""
    pairs = [part.split("=") for part in text.split(",") if part]
    unknown = [pair for pair in pairs if len(pair) != 2 or pair[0] not in RATE]
    if unknown:
        raise SystemExit(f"{'='.join(unknown[0])!r} is not STAGE=NUMBER with a stage of {', '.join(RATE)}")
    return {name: float(number) for name, number in pairs}


def begin(run: Run, module: torch.nn.Module, part: str) -> None:
    """Fill a module with the weights of the model folder `--start` names; a checkpoint, if there is one, wins later."""
    if not run.start:
        return
    folder = open_folder(run.start)
    stored, filled = folder.names(part), {}
    for name, value in module.state_dict().items():
        array = folder.read(part, name if name in stored else f"text_model.{name}").astype(np.float32)
        if array.ndim == 4:  # channels last on disk
            array = np.ascontiguousarray(array.transpose(0, 3, 1, 2))
        filled[name] = torch.from_numpy(array).reshape(value.shape)  # 1x1 convolutions are matrices on disk
    module.load_state_dict(filled)


class Stage:
    """One stage's clock, optimizer and checkpoint.

    `for step in stage:` runs until the stage's time is used up or the run must stop; `stage.finished` tells which.
    """

    def __init__(self, run: Run, name: str, parts: dict[str, torch.nn.Module], ema: float = 0):
        self.run, self.name, self.parts = run, name, parts
        self.rate, self.budget = run.rates[name], run.seconds[name]
        self.spent, self.steps, self.finished = 0.0, 0, False
        trained = [p for part in parts.values() for p in part.parameters() if p.requires_grad]
        self.trained = trained
        self.optimizer = torch.optim.AdamW(
            trained, lr=self.rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True
        )
        self.ema_rate, self.ema = ema, [p.detach().clone() for p in trained] if ema else []
        self.path = run.work / f"{name}.pt"
        state = load_parts(self.path)
        if state:
            for key, part in parts.items():
                part.load_state_dict(state["parts"][key])
            self.spent, self.steps, self.finished = state["spent"], state["steps"], state["finished"]
            if "optimizer" in state and not self.finished:
                self.optimizer.load_state_dict(state["optimizer"])
            for mine, saved in zip(self.ema, state["ema"], strict=True):
                mine.copy_(saved)

    def __iter__(self):
        if self.finished:
            return
        for part in self.parts.values():
            part.train()
        last, saved, said = time.time(), time.time(), self.spent
        while True:
            now = time.time()
            self.spent += min(now - last, 30)  # a run that was put to sleep for a while loses nothing
            last = now
            if self.spent >= self.budget:
                self.finished = True
                break
            if now > self.run.end:
                break
            progress = self.spent / self.budget
            warm = min(1.0, (self.steps + 1) / 300)
            rate = self.rate * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.report = self.spent - said > max(5.0, self.budget / 15)
            if self.report:
                said = self.spent
                self.run.adapt()
            yield self.steps
            self.steps += 1
            if now - saved > 600:
                self.save()
                saved = time.time()
        if self.run.kind == "cuda":
            torch.cuda.synchronize()
        self.save()
        done = "finished" if self.finished else "to be continued"
        self.run.say(f"{self.name}: {self.steps} steps, {self.spent:.0f} of {self.budget:.0f} s, {done}")

    def learn(self, loss: torch.Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        if self.ema:
            rate = min(self.ema_rate, (1 + self.steps) / (10 + self.steps))
            torch._foreach_lerp_(self.ema, [p.detach() for p in self.trained], 1 - rate)

    @contextlib.contextmanager
    def averaged(self):
        """The parameters replaced by their moving average, and the parts in evaluation mode, for a while."""
        kept = [p.detach().clone() for p in self.trained]
        with torch.no_grad():
            for p, e in zip(self.trained, self.ema, strict=False):
                p.copy_(e)
        modes = {key: part.training for key, part in self.parts.items()}
        for part in self.parts.values():
            part.eval()
        yield
        with torch.no_grad():
            for p, k in zip(self.trained, kept, strict=True):
                p.copy_(k)
        for key, part in self.parts.items():
            part.train(modes[key])

    def save(self) -> None:
        state = {
            "parts": {key: part.state_dict() for key, part in self.parts.items()},
            "spent": self.spent, "steps": self.steps, "finished": self.finished, "ema": self.ema,
        }  # fmt: skip
        if not self.finished:
            state["optimizer"] = self.optimizer.state_dict()
        save_parts(self.path, state, self.run.part_mb)


def save_parts(path: Path, state: dict, part_mb: float) -> None:
    """Write a checkpoint, in pieces of at most `part_mb` MB (0: one piece): name.pt, or name.pt.0 name.pt.1 ..."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    data = buffer.getvalue()
    step = int(part_mb * 1e6) or len(data)
    pieces = [data[i : i + step] for i in range(0, len(data), step)]
    for old in path.parent.glob(path.name + ".*"):
        old.unlink()
    for k, piece in enumerate(pieces):
        target = path if len(pieces) == 1 else path.with_name(f"{path.name}.{k}")
        new = target.with_name(target.name + "~")
        new.write_bytes(piece)
        new.replace(target)
    if len(pieces) > 1:
        path.unlink(missing_ok=True)


def load_parts(path: Path) -> dict | None:
    pieces = sorted(path.parent.glob(path.name + ".[0-9]*"), key=lambda p: int(p.suffix[1:]))
    if not path.exists() and not pieces:
        return None
    data = b"".join(p.read_bytes() for p in ([path] if path.exists() else pieces))
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def compiled(run: Run, function):
    return torch.compile(function, dynamic=False) if run.compile else function


# --- text encoder -----------------------------------------------------------------------------------------------------


def train_text(run: Run) -> torch.nn.Module:
    """Teach the text encoder, alone, to name what a caption mentions; afterwards it is frozen.

    Trained together with the denoiser from nothing it collapses to the one attribute that matters most to the loss
    (the time of day), while the loss looks healthy.
    """
    encoder = networks.text_encoder(run.vocab_size, run.tokens.bos, run.tokens.eos)
    begin(run, encoder, "text")
    reader = networks.Reader(encoder, ATTRIBUTES).to(run.device)
    stage = Stage(run, "text", {"reader": reader})
    if not stage.finished:
        run.upload(min(4096, run.pictures.count), pixels=False)
        for _ in stage:
            if stage.report:
                run.upload(pixels=False)
            ids, mentions = run.ids.flatten(0, 1), run.mentions.flatten(0, 1)
            pick = torch.randint(0, len(ids), (run.batch["text"],), device=run.device)
            guesses = reader(ids[pick])
            loss = sum(F.cross_entropy(guesses[n], mentions[pick, a]) for a, n in enumerate(ATTRIBUTES))
            stage.learn(loss)
            if stage.report:
                run.say(f"text {stage.steps}: loss {loss.item():.4f}")
    reader.eval()
    held = run.held()
    with torch.no_grad():
        guesses = reader(held["ids"])
        right = {n: guesses[n].argmax(1) == held["mentions"][:, a] for a, n in enumerate(ATTRIBUTES)}
    rates = {n: rows.float().mean().item() for n, rows in right.items()}
    run.say("text encoder on held-out captions:", table(rates))
    return encoder.eval().requires_grad_(False)


def table(rates: dict[str, float]) -> str:
    return " ".join(f"{name} {rate:.3f}" for name, rate in rates.items())


# --- judge ------------------------------------------------------------------------------------------------------------


def train_judge(run: Run) -> torch.nn.Module:
    judge = run.place(networks.Judge(ATTRIBUTES))
    stage = Stage(run, "judge", {"judge": judge})
    if not stage.finished:
        run.upload(min(8192, run.pictures.count))
        for _ in stage:
            if stage.report:
                run.upload()
            pick = torch.randint(0, run.copied, (run.batch["judge"],), device=run.device)
            x, _ = run.images(pick)
            # Blurred, dimmed and noisy copies, so that the judge looks at things, not at the renderer's last detail.
            if stage.steps % 2:
                small = F.interpolate(x, scale_factor=0.5, mode="area")
                x = F.interpolate(small, size=x.shape[-2:], mode="bilinear")
            x = x * (1 + 0.1 * torch.randn(len(x), 1, 1, 1, device=x.device)) + 0.03 * torch.randn_like(x)
            with run.autocast():
                guesses = judge(x)
            label = run.labels[pick]
            loss = sum(
                F.cross_entropy(guesses[n].float(), label[:, a], ignore_index=-1) for a, n in enumerate(ATTRIBUTES)
            )
            stage.learn(loss)
            if stage.report:
                run.say(f"judge {stage.steps}: loss {loss.item():.4f}")
    judge.eval()
    held = run.held()
    run.say("judge on real pictures:", table(judged(run, judge, held["pixels"], held["labels"])))
    return judge


@torch.no_grad()
def judged(run: Run, judge, rgba: torch.Tensor, labels: torch.Tensor, change=None) -> dict[str, float]:
    """The rate at which the judge names each attribute right, on pictures or on what `change` makes of them."""
    right = {name: [] for name in ATTRIBUTES}
    for start in range(0, len(rgba), 64):
        x, _ = to_images(rgba[start : start + 64])
        guesses = judge(change(x) if change else x)
        for a, name in enumerate(ATTRIBUTES):
            label = labels[start : start + 64, a]
            right[name].append((guesses[name].argmax(1) == label)[label >= 0])
    return {name: torch.cat(rows).float().mean().item() for name, rows in right.items()}


# --- autoencoder ------------------------------------------------------------------------------------------------------


def picture_loss(guess: torch.Tensor, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """L1, squared error, edges at three scales and colour, with the object counting twice.

    Without the last two a coloured object washes out towards the scene around it at a PSNR that looks fine.
    """
    weight = 1 + mask
    weight = weight / weight.mean()
    difference = guess - x
    loss = (difference.abs() * weight).mean() + 4 * (difference**2 * weight).mean()
    chroma = difference - difference.mean(1, keepdim=True)
    loss = loss + 0.5 * (chroma.abs() * weight).mean()
    for scale in range(3):
        d = F.avg_pool2d(difference, 2**scale) if scale else difference
        w = F.avg_pool2d(weight, 2**scale) if scale else weight
        loss = loss + 0.15 * ((d[..., 1:] - d[..., :-1]).abs() * w[..., 1:]).mean()
        loss = loss + 0.15 * ((d[..., 1:, :] - d[..., :-1, :]).abs() * w[..., 1:, :]).mean()
    return loss


def split_posterior(moments: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    mean, log_variance = moments.float().chunk(2, 1)
    return mean, log_variance.clamp(-30, 20)


def train_autoencoder(run: Run) -> torch.nn.Module:
    """Everything downstream is bounded by this: it is trained first and gated."""
    vae = run.place(networks.autoencoder(run.size))
    begin(run, vae, "vae")
    stage = Stage(run, "autoencoder", {"vae": vae}, ema=0.999)

    def forward(x, mask):
        with run.autocast():
            moments = vae.quant_conv(vae.encoder(x))
        mean, log_variance = split_posterior(moments)
        z = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
        with run.autocast():
            guess = vae.decoder(vae.post_quant_conv(z))
        kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).mean()
        return picture_loss(guess.float(), x, mask) + 1e-5 * kl, kl

    if not stage.finished:
        fast = compiled(run, forward)
        run.upload(min(4096, run.pictures.count))
        for _ in stage:
            if stage.report:
                run.upload()
            # Quarters first, more of them for the time; whole pictures at the end.
            whole = run.kind == "cuda" or stage.spent > 0.8 * stage.budget
            n = run.batch["autoencoder"] // (1 if run.kind == "cuda" else 4 if whole else 1)
            x, mask = run.images(torch.randint(0, run.copied, (n,), device=run.device))
            if not whole:
                side = run.size // 2
                top, left = torch.randint(0, side + 1, (2,)).tolist()
                x, mask = (a[..., top : top + side, left : left + side] for a in (x, mask))
                x = x.contiguous(memory_format=run.layout)
            loss, kl = fast(x, mask)
            stage.learn(loss)
            if stage.report:
                with stage.averaged():
                    decibel = psnr(run, vae)
                run.say(f"autoencoder {stage.steps}: loss {loss.item():.4f} kl {kl.item():.1f} psnr {decibel:.2f}")
    use_average(vae, stage)
    return vae


def use_average(part: torch.nn.Module, stage: Stage) -> None:
    with torch.no_grad():
        for p, e in zip(stage.trained, stage.ema, strict=True):
            p.copy_(e)
    part.eval()


@torch.no_grad()
def reconstruct(vae, x: torch.Tensor) -> torch.Tensor:
    return vae.decode(vae.encode(x).latent_dist.mean).sample.clamp(-1, 1)


@torch.no_grad()
def psnr(run: Run, vae, count: int = 64) -> float:
    """Mean over held-out pictures, in dB."""
    values = []
    for start in range(0, count, 32):
        x, _ = to_images(run.held()["pixels"][start : start + 32])
        error = ((reconstruct(vae, x) - x) / 2).square().mean((1, 2, 3))
        values.append(-10 * error.log10())
    return torch.cat(values).mean().item()


def train_decoder(run: Run, vae) -> torch.nn.Module:
    """The decoder alone, encoder frozen: gains most of a decibel and cannot disturb the latents."""
    vae.requires_grad_(False)
    vae.decoder.requires_grad_(True)
    vae.post_quant_conv.requires_grad_(True)
    stage = Stage(run, "decoder", {"vae": vae}, ema=0.999)

    def forward(x, mask):
        with torch.no_grad(), run.autocast():
            mean, _ = split_posterior(vae.quant_conv(vae.encoder(x)))
        # A little noise, as the denoiser's guesses are not exact latents either.
        z = mean + 0.03 * mean.std() * torch.randn_like(mean)
        with run.autocast():
            guess = vae.decoder(vae.post_quant_conv(z))
        # Edges are there by now; what the squared error still finds is worth more than what the edges do.
        return picture_loss(guess.float(), x, mask) + 16 * F.mse_loss(guess.float(), x)

    if not stage.finished:
        fast = compiled(run, forward)
        run.upload(min(8192, run.pictures.count))
        for _ in stage:
            pick = torch.randint(0, run.copied, (run.batch["decoder"],), device=run.device)
            loss = fast(*run.images(pick))
            stage.learn(loss)
            if stage.report:
                with stage.averaged():
                    run.say(f"decoder {stage.steps}: loss {loss.item():.4f} psnr {psnr(run, vae):.2f}")
    use_average(vae, stage)
    return vae.requires_grad_(False)


# --- denoiser ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def latents(run: Run, vae) -> tuple[torch.Tensor, float]:
    """Every picture's posterior mean, scaled to unit variance, and that scale."""
    count = run.upload(run.pictures.count, pixels=False)
    path = run.work / "latents.pt"
    if path.exists():
        saved = torch.load(path, map_location=run.device, weights_only=True)
        if len(saved["latents"]) == count:
            return saved["latents"], saved["scale"]
    run.upload()
    rows = []
    for start in range(0, count, 256):
        x, _ = run.images(torch.arange(start, min(start + 256, count)))
        with run.autocast():
            rows.append(split_posterior(vae.quant_conv(vae.encoder(x)))[0].to(torch.float16))
    z = torch.cat(rows)
    deviations = z.float().std((0, 2, 3))
    scale = 1 / z.float().std().item()
    run.say("latents: deviation by channel", [f"{d:.2f}" for d in deviations.tolist()], f"scale {scale:.5f}")
    z = (z.float() * scale).to(torch.float16)
    torch.save({"latents": z, "scale": scale}, path)
    return z, scale


BETAS = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def alphas(device) -> torch.Tensor:
    betas = torch.linspace(BETAS["beta_start"] ** 0.5, BETAS["beta_end"] ** 0.5, 1000, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, 0).float().to(device)


def v_loss(run: Run, unet, z, t, noise, text, alpha, weight=1.0) -> torch.Tensor:
    """Squared error of the velocity (Salimans & Ho 2022), one number for each picture.

    `weight` (n, 1, h, w), with mean 1, is what each place counts.
    """
    a, s = alpha[t].sqrt().view(-1, 1, 1, 1), (1 - alpha[t]).sqrt().view(-1, 1, 1, 1)
    with run.autocast():
        guess = unet(a * z + s * noise, t, text, return_dict=False)[0]
    return ((guess.float() - (a * noise - s * z)).square() * weight).mean((1, 2, 3))


@torch.no_grad()
def places(run: Run, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """How much of each latent position the object covers, and sun or moon: twice (count, 1, h, w) in [0, 1]."""
    run.upload(count)
    parts = torch.arange(count).split(512)
    objects = torch.cat([F.avg_pool2d(run.images(part)[1], 8) for part in parts])
    x, y, r = torch.from_numpy(np.array(run.pictures.lights[:count])).to(run.device).view(count, 3, 1, 1).unbind(1)
    at = (torch.arange(run.size // 8, device=run.device) + 0.5) / (run.size // 8)
    away = ((at.view(1, 1, -1) - x).square() + (at.view(1, -1, 1) - y).square()).sqrt()
    return objects, ((away < r + 0.02) & (r > 0)).float().unsqueeze(1)


def train_denoiser(run: Run, encoder, vae, judge) -> tuple[torch.nn.Module, float]:
    z, scale = latents(run, vae)
    unet = run.place(networks.denoiser(run.size))
    begin(run, unet, "denoiser")
    stage = Stage(run, "denoiser", {"unet": unet}, ema=0.9995 if run.kind == "cuda" else 0.999)
    alpha = alphas(run.device)
    empty = torch.tensor([run.tokens.ids("", networks.LENGTH)], device=run.device)
    if not stage.finished:
        objects, lights = places(run, len(z))
        fast = compiled(run, lambda *values: v_loss(run, unet, *values).mean())
        n = run.batch["denoiser"]
        reports = 0
        for _ in stage:
            pick = torch.randint(0, len(z), (n,), device=run.device)
            ids = run.ids[pick, torch.randint(0, CAPTIONS, (n,), device=run.device)]
            ids = torch.where(torch.rand(n, 1, device=run.device) < 0.1, empty, ids)
            with torch.no_grad():
                text = encoder(ids).last_hidden_state
            # One time from each of n equal strata: less noise in the loss than n independent ones. The power puts
            # somewhat more of them where the picture's contents are decided.
            t = torch.randperm(n, device=run.device) + torch.rand(n, device=run.device)
            t = ((t / n) ** 0.75 * 1000).long().clamp(max=999)
            zs = z[pick].float().contiguous(memory_format=run.layout)
            # The object is a twentieth of the picture and most of what people ask for, sun and moon a fiftieth: they
            # count more than their size, the object less so with time, the lights only where the noise does not hide
            # them: a place that counts more is also taken for more likely, and they would be everywhere.
            seen = (t < 500).view(-1, 1, 1, 1)
            weight = 1 + 4 * (1 - stage.spent / stage.budget) * objects[pick] + 4 * seen * lights[pick]
            loss = fast(zs, t, torch.randn_like(zs), text, alpha, weight / weight.mean())
            stage.learn(loss)
            if stage.report:
                with stage.averaged():
                    ratios = wrong_captions(run, unet, encoder, vae, scale)
                    run.say(f"denoiser {stage.steps}: loss {loss.item():.4f}", ratios)
                    reports += 1
                    if judge and reports % 3 == 0:
                        run.say("  generated:", table(generated(run, unet, encoder, vae, judge, scale, 128)[0]))
    use_average(unet, stage)
    return unet, scale


@torch.no_grad()
def wrong_captions(run: Run, unet, encoder, vae, scale: float, count: int = 128) -> str:
    """Held-out v-loss with the true caption, with none, and with one attribute wrong that it names. What to watch."""
    held, alpha = run.held(), alphas(run.device)
    count = min(count, len(held["ids"]))
    x, _ = to_images(held["pixels"][:count])
    z = torch.cat([vae.encode(part).latent_dist.mean for part in x.split(32)]) * scale
    generator = torch.Generator("cpu").manual_seed(1)
    noise = torch.randn(z.shape, generator=generator).to(run.device)
    t = torch.randint(300, 1000, (count,), generator=generator).to(run.device)
    empty = torch.tensor([run.tokens.ids("", networks.LENGTH)], device=run.device).expand(count, -1)

    def loss(ids, rows=slice(None)):
        return v_loss(run, unet, z, t, noise, encoder(ids).last_hidden_state, alpha)[rows].mean().item()

    true = held["ids"][:count]
    cells = [f"true {loss(true):.4f}", f"empty {loss(empty):.4f}"]
    for a, name in enumerate(ATTRIBUTES):
        ids = held["wrong"][a, :count]
        rows = (ids != true).any(1) & (held["mentions"][:count, a] < ATTRIBUTES[name])
        if rows.any():
            cells.append(f"{name} {loss(ids, rows) / loss(true, rows):.3f}x")
    return " ".join(cells)


@torch.no_grad()
def generated(run: Run, unet, encoder, vae, judge, scale, count, steps=12, guidance=3.0):
    """Rates at which pictures drawn from held-out captions show what these mention. Returns the rates and pictures."""
    from diffusers import DPMSolverMultistepScheduler

    held = run.held()
    ids, mentions = held["ids"][:count], held["mentions"][:count]
    empty = torch.tensor([run.tokens.ids("", networks.LENGTH)], device=run.device).expand(len(ids), -1)
    text = torch.cat([encoder(empty).last_hidden_state, encoder(ids).last_hidden_state])
    scheduler = DPMSolverMultistepScheduler(**BETAS, prediction_type="v_prediction", timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    generator = torch.Generator("cpu").manual_seed(2)
    x = torch.randn(len(ids), 4, run.size // 8, run.size // 8, generator=generator).to(run.device)
    for t in scheduler.timesteps:
        with run.autocast():
            both = unet(torch.cat([x, x]), t, text, return_dict=False)[0].float()
        negative, positive = both.chunk(2)
        x = scheduler.step(negative + guidance * (positive - negative), t, x, return_dict=False)[0]
    images = torch.cat([vae.decode(part / scale).sample.clamp(-1, 1) for part in x.split(32)])
    guesses = [judge(part) for part in images.split(32)]
    choices = {name: torch.cat([g[name].argmax(1) for g in guesses]) for name in ATTRIBUTES}
    right = {name: choices[name] == mentions[:, a] for a, name in enumerate(ATTRIBUTES)}
    mentioned = {name: mentions[:, a] < n for a, (name, n) in enumerate(ATTRIBUTES.items())}
    rates = {name: right[name][mentioned[name]].float().mean().item() for name in ATTRIBUTES}
    rows = torch.stack([mentioned[n] for n in OBJECT_NAMES]).all(0)
    rates["all three"] = torch.stack([right[n][rows] for n in OBJECT_NAMES]).all(0).float().mean().item()
    return rates, ((images.permute(0, 2, 3, 1) + 1) * 127.5).round().to(torch.uint8).cpu().numpy()


# --- the result -------------------------------------------------------------------------------------------------------


def export(run: Run, folder: Path, encoder, vae, unet, scale: float) -> None:
    """Write a diffusers folder in float16."""
    from diffusers import DDIMScheduler

    vae.register_to_config(scaling_factor=round(scale, 6))
    vae.to(torch.float16).save_pretrained(folder / "vae")
    unet.to(torch.float16).save_pretrained(folder / "unet")
    encoder.to(torch.float16).save_pretrained(folder / "text_encoder")
    DDIMScheduler(
        **BETAS, prediction_type="v_prediction", timestep_spacing="trailing", clip_sample=False, set_alpha_to_one=False
    ).save_pretrained(folder / "scheduler")
    bpe.write(folder / "tokenizer")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", required=True, help="folder for pictures and checkpoints")
    parser.add_argument("--out", help="write the result here as a diffusers folder")
    parser.add_argument("--start", help="begin with the weights of this model folder, for example mlxldm/scenes")
    parser.add_argument("--size", type=int, default=256, choices=(128, 256))
    parser.add_argument("--minutes", type=float, help="stop after this long; run again to go on")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--pictures", type=int, help=f"how many to draw (default {PICTURES})")
    parser.add_argument("--scale", type=float, default=1.0, help="stretch every stage's time")
    parser.add_argument("--seconds", default="", help="of some stages, as in autoencoder=1800,denoiser=4800")
    parser.add_argument("--rates", default="", help="highest learning rate of some stages, as in autoencoder=1e-3")
    parser.add_argument("--batch-scale", type=float, default=1.0)
    parser.add_argument("--part-mb", type=float, default=0, help="write checkpoints in pieces of this size")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (default: all, or one on a busy machine)")
    parser.add_argument("--stages", default="decoder,judge,denoiser", help="of what follows the autoencoder, do these")
    parser.add_argument("--compile", action="store_true", help="torch.compile the training steps")
    args = parser.parse_args()

    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True
    torch._dynamo.config.suppress_errors = True  # a step that cannot be compiled runs as it is
    run = Run(args)
    run.say(f"{run.device}, {run.size} px, {run.pictures.count} pictures, {run.pictures.ready()} of them drawn")
    run.adapt()
    signal.signal(signal.SIGTERM, lambda *_: setattr(run, "end", 0.0))
    run.pictures.start()

    def goes_on(*stages: str) -> bool:
        """Whether these stages are finished, so that the next may begin."""
        states = [load_parts(run.work / f"{name}.pt") for name in stages]
        return all(state and state["finished"] for state in states)

    wanted = args.stages.split(",")
    encoder = train_text(run)
    vae = train_autoencoder(run)
    if goes_on("autoencoder") and ("decoder" in wanted or goes_on("decoder")):
        vae = train_decoder(run, vae)
    judge = None
    if goes_on("autoencoder") and ("judge" in wanted or goes_on("judge")):
        judge = train_judge(run)
    if judge:
        held = run.held()
        run.say(f"autoencoder: {psnr(run, vae, len(held['ids'])):.2f} dB; judge on reconstructions:",
                table(judged(run, judge, held["pixels"], held["labels"], lambda x: reconstruct(vae, x))))  # fmt: skip
    if goes_on("text", "autoencoder") and "denoiser" in wanted:
        unet, scale = train_denoiser(run, encoder, vae, judge)
    if "denoiser" in wanted and goes_on("denoiser"):
        if judge:
            torch.save({"judge": judge.half().state_dict()}, run.work / "judge-half.pt")
            judge.float()
        for guidance in (2.0, 3.0, 4.5) if judge else ():
            rates, images = generated(run, unet, encoder, vae, judge, scale, 256, guidance=guidance)
            run.say(f"guidance {guidance}:", table(rates))
            np.save(run.work / f"generated-{guidance}.npy", images[:32])
        run.say(wrong_captions(run, unet, encoder, vae, scale))
        if args.out:
            export(run, Path(args.out), encoder, vae, unet, scale)
            run.say("wrote", args.out)
    for process in run.pictures.processes:
        process.terminate()


if __name__ == "__main__":
    main()
