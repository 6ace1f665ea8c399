"""A worker that draws gradients, for tests of the app: speaks docs/worker.md, standard library only.

The first word of a prompt says how a job goes: `slow`, `hang` (deaf to cancel), `crash`, `oom` (killed as the
system does it), `late` (the same, after the last picture and before the end), `line` (as ssh leaves when it breaks),
`garbage`, `flood` (stderr), `wish`, `memory`, `numbers` or `fault` (errors of that kind); anything else is fine.
Arguments: `--pace SECONDS` of a step, `--name NAME` (of the backend), `--shade N` (of its pictures), `--refuse` (no
backend), `--die` (at once), `--silent` (no pong), `--loras` (it has some; a file called `*lora*` that is added is one
more, for SD 1).
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import signal
import struct
import sys
import threading
import time
import zlib
from typing import Any

SIDE = 64


def png(width: int, height: int, seed: int, texts: dict[str, str]) -> bytes:
    """A gradient as PNG, with texts."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = rgb(width, height, seed)
    lines = b"".join(b"\0" + rows[y * width * 3 : (y + 1) * width * 3] for y in range(height))
    said = b"".join(chunk(b"tEXt", key.encode() + b"\0" + text.encode("latin-1")) for key, text in texts.items())
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + said
        + chunk(b"IDAT", zlib.compress(lines, 1))
        + chunk(b"IEND", b"")
    )


def rgb(width: int, height: int, seed: int) -> bytes:
    """Rows of three bytes; other seeds have other colours."""
    red, blue = seed * 53 % 200, seed * 97 % 200
    across = [x * 255 // max(1, width - 1) for x in range(width)]
    down = [y * 255 // max(1, height - 1) for y in range(height)]
    return b"".join(bytes(part for x in across for part in ((x + red) % 256, y, (255 - x + blue) % 256)) for y in down)


class Fake:
    """Its reader thread answers and cancels, this one draws."""

    def __init__(self, asked: argparse.Namespace):
        self.asked = asked
        self.todo: queue.Queue[tuple[dict[str, Any], bytes] | None] = queue.Queue()
        self.cancelled: set[str] = set()
        self.lock = threading.Lock()
        self.preview = "rgb8"
        self.loaded = False
        self.added: list[str] = []

    def send(self, event: str, payload: bytes | None = None, **fields: Any) -> None:
        message = {"ev": event, **fields, **({"bytes": len(payload)} if payload is not None else {})}
        with self.lock:
            sys.stdout.buffer.write(json.dumps(message).encode() + b"\n" + (payload or b""))
            sys.stdout.buffer.flush()

    def models(self) -> list[dict[str, Any]]:
        small = {"width": SIDE, "height": SIDE, "steps": 4, "guidance": 3.0, "sampler": "euler", "spacing": "model"}
        large = {"width": 512, "height": 512, "steps": 25, "guidance": 7.5, "sampler": "ddim", "spacing": "model"}
        rows = [("scenes", "sd1", "text-to-image", "ready", small),
                ("dreamshaper-8", "sd1", "text-to-image", "ready", large),
                ("a-turbo", "sdxl", "text-to-image", "ready", {**large, "steps": 4, "guidance": 1.0}),
                ("celebahq", "ldm", "unconditional", "ready", large),
                ("upscaler-x4", "upscaler", "upscale", "ready", large),
                ("on-another-disk", "sd1", "text-to-image", "not there", large)]  # fmt: skip
        return [{"name": name, "family": family, "task": task, "state": state, "path": f"/models/{name}",
                 "bytes": 2 * 10**9, "defaults": defaults} for name, family, task, state, defaults in rows] + [
                {"name": os.path.basename(path).partition(".")[0], "family": "sd1", "task": "text-to-image",
                 "state": "ready", "path": path, "folder": path, "origin": "added", "bytes": 10**9, "defaults": large}
                for path in self.added if "lora" not in os.path.basename(path)]  # fmt: skip

    def adapters(self, model: str) -> list[dict[str, Any]]:
        family = {"a-turbo": "sdxl", "celebahq": None}.get(model, "sd1")
        rows: list[tuple] = [
            ("ink wash", "LoRA", "lora", "sd1", ["ink wash style", "old paper"], 0.8),
            ("Detail tweaker (more of everything, v2)", "LoRA", "locon", "sd1", [], None),
            ("soft light", "LoRA", "loha", "sd1", ["ohwx light"], None),
            ("xl-film", "LoRA", "lora", "sdxl", ["film grain"], None),
            ("bad-hands", "textual inversion", "textual inversion", "sd1", ["bad-hands"], None),
            ("<sks>", "textual inversion", "textual inversion", "sd1", ["<sks>", "cat-toy"], None),
        ]
        rows = rows if self.asked.loras else []
        paths = {os.path.basename(path).partition(".")[0]: path for path in self.added}
        loras = [name for name in paths if "lora" in name]
        rows += [(name, "LoRA", "lora", "sdxl" if "xl" in name else "sd1", [], None) for name in loras]
        why = "It was made for Stable Diffusion {}."
        return [{"name": name, "what": what, "kind": kind, "family": made_for, "bytes": 36_000_000, "words": words,
                 "path": paths.get(name, f"/loras/{name}.safetensors"), "weight": weight, "state": what,
                 "fits": made_for == family, "why": None if made_for == family else why.format(made_for[2:].upper())}
                for name, what, kind, made_for, words, weight in rows]  # fmt: skip

    def read(self) -> None:
        source = sys.stdin.buffer
        while line := source.readline():
            message = json.loads(line)
            payload = source.read(message.get("bytes", 0))
            op, name = message["op"], message.get("id")
            if op == "hello":
                self.preview = message["preview"]
                sys.stderr.write(line.decode())
                sys.stderr.flush()
            elif op == "generate":
                self.todo.put((message, payload))
            elif op == "cancel":
                self.cancelled.add(name)
            elif op == "ping" and not self.asked.silent:
                self.send("pong", id=name)
            elif op == "estimate":
                self.send("estimate", id=name, seconds=9.0, memory=3_100_000_000, available=16_000_000_000, known=True)
            elif op == "tokens":
                job = message["job"]
                counts = {key: len((job.get(key) or "").split()) for key in ("prompt", "negative")}
                self.send("tokens", id=name, **counts, limit=75)
            elif op == "models":
                self.send("models", json.dumps(self.models()).encode(), id=name)
            elif op == "adapters":
                self.send("adapters", json.dumps(self.adapters(message["model"])).encode(), id=name)
            elif op == "wildcards":
                names = ["colour", "animals/bird"] if self.asked.loras else []
                self.send("wildcards", json.dumps(names).encode(), id=name, folder="/wildcards")
            elif op == "unload":
                self.send("unloaded")
            elif op == "backends":
                row = {"name": "torch", "ready": True, "version": "2", "devices": ["cpu"], "device_name": "Gradients"}
                self.send(
                    "backends", id=name, backends=[row], auto={"backend": "torch", "device": "cpu", "why": "a test"}
                )
            elif op in ("pull", "convert"):
                threading.Thread(target=self.fetch, args=(op, name), daemon=True).start()
            elif op == "look":
                lora = {"what": "LoRA"} if "lora" in os.path.basename(message["path"]) else {}
                self.send("looked", id=name, says={"state": "ready", **lora})
            elif op == "add":
                self.added.append(message["path"])
                self.send("done", id=name, seconds=0.0)
        os._exit(0)

    def fetch(self, op: str, name: str) -> None:
        """A download or a conversion in ten parts."""
        for part in range(11):
            if name in self.cancelled:
                self.cancelled.discard(name)
                self.send("cancelled", id=name)
                return
            self.send("progress", id=name, fraction=part / 10, message=f"{part} of 10")
            time.sleep(self.asked.pace)
        if op == "convert":
            made = {"bytes": 10**6, "values": 10**6, "sha256": "ab" * 32}
            self.send("converted", id=name, path="/models/small", parts={"denoiser": made})
        self.send("done", id=name, seconds=1.0)

    def run(self) -> None:
        if self.asked.refuse:
            self.send("error", id=None, kind="wish", message="There is no backend here.", details=None)
            sys.exit(2)
        if self.asked.die:
            sys.exit(3)
        self.send("ready", protocol=1, version="0", backend=self.asked.name, device="cpu", device_name="Gradients",
                  why="a test", memory=16 * 10**9, models=self.models()[:1],
                  samplers="ddim euler euler_a dpmpp_2m heun lms".split(),
                  spacings="model karras trailing".split(), pid=os.getpid())  # fmt: skip
        threading.Thread(target=self.read, daemon=True).start()
        while True:
            message, payload = self.todo.get()  # type: ignore[misc]
            end = self.draw(message["id"], message["job"], message.get("files") or {}, payload)
            self.send(end.pop("ev"), id=message["id"], **end)

    def draw(self, name: str, job: dict[str, Any], files: dict[str, int], payload: bytes) -> dict[str, Any]:
        how = (job.get("prompt") or "fine").split()[0]
        if how in ("wish", "memory", "numbers", "fault"):
            return {"ev": "error", "kind": how, "message": f"This is a {how}.", "details": "Traceback: …"}
        if sum(files.values()) != len(payload):
            return {"ev": "error", "kind": "protocol", "message": "bytes", "details": None}
        if not self.loaded:
            self.send("loading", id=name, model="Fake 1.5")
            time.sleep(self.asked.load)
            self.loaded = True
        steps, pace = job.get("steps") or 4, self.asked.pace * (10 if how == "slow" else 1)
        width, height, seed = job.get("width") or SIDE, job.get("height") or SIDE, job.get("seed") or 0
        left = {"lora_te_x.alpha and 2 more": "belongs to no module"}
        loras = [{"text": text, "name": f"{text.partition(':')[0]}.safetensors", "kind": "lora", "weights": 0.0123,
                  "modules": {"denoiser": 128}, "unmatched": 3 * ("soft" in text),
                  "left": left if "soft" in text else {}}
                 for text in job.get("loras", [])]  # fmt: skip
        effect = {"loras": loras, "answer": 0.2, "words": job.get("embeddings", [])}
        if effect["loras"] or effect["words"]:
            self.send("effect", id=name, **effect)
        for index in range(job.get("count", 1)):
            for step in range(1, steps + 1):
                time.sleep(pace)
                if name in self.cancelled and how != "hang":
                    return {"ev": "cancelled"}
                self.send("step", id=name, index=index, step=step, of=steps, seconds=pace)
                small = width // 8, height // 8
                self.send("preview", rgb(*small, seed + index + step), id=name, index=index, step=step, width=small[0],
                          height=small[1], encoding="rgb8")  # fmt: skip
                if step == 2 and index == (1 if "second" in job.get("prompt", "") else 0):
                    self.mischief(how)
            own = {**job, "seed": seed + index, "width": width, "height": height, "count": 1}
            worn = {"adapters": effect} if effect["loras"] or effect["words"] else {}
            record = json.dumps({"job": own, "made_by": {"mlxldm": "0", "backend": self.asked.name, **worn}})
            whole = png(width, height, seed + index + self.asked.shade, {"mlxldm": record})
            self.send("picture", whole, id=name, index=index, seed=seed + index, seconds=pace * steps, job=own)
        if how == "late":
            os.kill(os.getpid(), signal.SIGKILL)
        return {"ev": "done", "seconds": 1.0}

    def mischief(self, how: str) -> None:
        if how == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        elif how == "oom":
            os.kill(os.getpid(), signal.SIGKILL)
        elif how == "line":
            sys.stderr.write("Timeout, server studio.local not responding.\n")
            sys.stderr.flush()
            os._exit(255)
        elif how == "garbage":
            sys.stdout.buffer.write(b"\xff\x00 this is no message\n")
            sys.stdout.buffer.flush()
        elif how == "hang":
            time.sleep(600)
        elif how == "flood":
            sys.stderr.write("a line of a log that nobody asked for\n" * 20_000)
            sys.stderr.flush()


def options(arguments: list[str] | None = None) -> argparse.Namespace:
    """What the module's docstring lists."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pace", type=float, default=0.01)
    parser.add_argument("--load", type=float, default=0.0)
    parser.add_argument("--name", default="fake")
    parser.add_argument("--shade", type=int, default=0)
    for flag in ("--refuse", "--die", "--silent", "--loras"):
        parser.add_argument(flag, action="store_true")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    Fake(options()).run()
