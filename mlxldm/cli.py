"""The command line: generate, pull, models, adapters, merge, show, tokens, backends, doctor, worker.

Results go to stdout, everything else to stderr. Exit code 0: done; 2: the person can fix it, one sentence says how;
1: our fault, with a traceback; 130: interrupted. Nothing heavy is imported before the arguments are read.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import UserError
from .terminal import Bar, Parser, guarded, real, size, whole

if TYPE_CHECKING:
    from .adapters import Adapter, Inversion
    from .folder import Folder
    from .job import Job
    from .plan import MemoryPlan
    from .prompt import Reader, Words

# Spelled out so that `--help` imports no numerics; a test holds them equal to SAMPLERS and SPACINGS.
SAMPLERS = (
    "ddim ddpm euler euler_a heun lms pndm dpm2 dpm2_a dpmpp_2s dpmpp_2m dpmpp_2m_sde dpmpp_sde dpmpp_3m_sde unipc "
    "deis lcm tcd ddim_cfgpp euler_cfgpp euler_a_cfgpp dpmpp_2m_cfgpp"
).split()
SPACINGS = "model leading trailing linspace karras exponential sgm_uniform beta ays".split()


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""

    def run() -> int:
        args = _parsed(list(sys.argv[1:] if argv is None else argv))
        code: int = args.run(args)
        return code

    return guarded("mlxldm", run, "finished pictures are kept, nothing is half-written")


def say(message: str) -> None:
    """One line for the person, on stderr."""
    print(f"mlxldm: {message}", file=sys.stderr, flush=True)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1))


# The arguments.


def _parsed(argv: list[str]) -> argparse.Namespace:
    parser, commands = _parser()
    args, rest = parser.parse_known_args(argv)
    quotes = " Put the prompt in quotes." if args.command == "generate" else ""
    (commands[args.command] if args.command else parser).refuse(rest, quotes)
    if args.version:
        args.run = _version
    elif args.command is None:
        args.run = _help
    return args


def _parser() -> tuple[Parser, dict[str, Parser]]:
    parser = Parser(
        prog="mlxldm",
        description="Latent diffusion on your own computer: MLX on Apple silicon and CPUs, PyTorch on NVIDIA.",
        epilog='Begin with:  mlxldm generate "a red lighthouse by the sea at dusk"',
    )
    parser.add_argument("--version", action="store_true", help="print the version")
    subs = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    commands: dict[str, Parser] = {}

    def command(name: str, run: Any, summary: str, **more: Any) -> Parser:
        commands[name] = subs.add_parser(name, help=summary, description=f"{summary[:1].upper()}{summary[1:]}.", **more)
        commands[name].set_defaults(run=run)
        return commands[name]

    _generate_arguments(
        command(
            "generate",
            _generate,
            "draw pictures from words",
            epilog="What is not given is the model's own default. With --job, what is given here wins over the file.",
        )
    )
    pull = command("pull", _pull, "download a model from the Hugging Face hub and remember it")
    pull.add_argument(
        "id",
        metavar="HUB-ID",
        help="owner/name, as the hub has it; owner/name/FILE: one checkpoint of several; or the web address of either",
    )
    models = command(
        "models",
        _models,
        "list the models this machine has",
        epilog="mlxldm models add FOLDER|FILE: every checkpoint and LoRA in it is listed from now on, where it is.  "
        "mlxldm models forget NAME|FOLDER|FILE: it is listed no more; the files stay.",
    )
    models.add_argument("action", nargs="?", choices=["add", "forget"])
    models.add_argument("what", nargs="?", metavar="FOLDER|FILE|NAME")
    loras = command(
        "adapters",
        _adapters,
        "list the LoRAs and textual inversions this machine has, and the words that call them",
        epilog="They come from what was added with: mlxldm models add FOLDER|FILE",
    )
    loras.add_argument("--model", metavar="MODEL", help="only those that fit it")
    merge = command("merge", _merge, "write a model with LoRAs in its weights, as a model folder")
    merge.add_argument("model", metavar="MODEL", help="name, folder, file or hub id")
    merge.add_argument("target", metavar="DST", help="the folder to write, which must not exist yet")
    _adapter_arguments(merge)
    show = command("show", _show, "say what is in a model, or which job made a picture")
    show.add_argument("what", metavar="MODEL|PNG|JSON", nargs="?", help="default: the embedded model")
    backends = command("backends", _backends, "list the backends and devices, and which one would be used")
    tokens = command(
        "tokens",
        _tokens,
        "show what a model reads of a prompt: tokens, their weights, and the chunks they are read in",
        epilog="Exactly as generate reads it: (weights:1.2), BREAK, [schedules:of:0.5], AND, and {choices|of|words}.",
    )
    tokens.add_argument("prompt", help="in quotes")
    tokens.add_argument("--model", metavar="MODEL", help="whose tokens; default: the embedded model, scenes")
    tokens.add_argument("--prompt-2", metavar="TEXT", help="what a second text encoder reads instead (SDXL)")
    _words(tokens)
    _embedding_argument(tokens)
    tokens.add_argument("--steps", type=whole, metavar="N", help="what schedules count in; default: the model's")
    tokens.add_argument("--seed", type=whole, default=0, metavar="N", help="what choices are made from; default: 0")
    doctor = command("doctor", _doctor, "check with the embedded model that this machine computes right, and how fast")
    _where(doctor)
    worker = command("worker", _worker, "draw for another program: messages on stdin and stdout (docs/worker.md)")
    _where(worker)
    worker.add_argument("--idle", type=real, metavar="SECONDS", help="let the model go after so long; default 600")
    for sub in (pull, models, loras, merge, show, backends, tokens, doctor):
        _json_flag(sub)
    return parser, commands


def _words(parser: argparse._ActionsContainer) -> None:
    parser.add_argument("--emphasis", metavar="NAME", help="what (word) and [word] do: original (the default) or none")
    parser.add_argument("--wildcards", metavar="FOLDER", help="text files: __name__ in a prompt becomes a line of one; "
                        "default: the folder wildcards beside that of the models")  # fmt: skip


def _adapter_arguments(parser: argparse._ActionsContainer) -> None:
    parser.add_argument("--lora", action="append", dest="loras", metavar="NAME[:SCALE[:TEXT-SCALE]]",
                        help="a LoRA of any kind: name or file, how strongly (1 if not said); again for each; "
                        ":lbw=1,0,... at the end weighs the U-Net's blocks")  # fmt: skip


def _embedding_argument(parser: argparse._ActionsContainer) -> None:
    parser.add_argument("--embedding", action="append", dest="embeddings", metavar="NAME|FILE",
                        help="a textual inversion, whose name prompts may use; again for each (those in the folders "
                        "that were added are found by their names)")  # fmt: skip


def _json_flag(parser: argparse._ActionsContainer) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")


def _where(parser: argparse._ActionsContainer) -> None:
    parser.add_argument("--backend", default="auto", metavar="NAME", help="auto (the default), mlx or torch")
    parser.add_argument("--device", metavar="NAME", help="mlx: cpu, gpu; torch: cpu, cuda, cuda:1, mps")
    parser.add_argument("--precision", default="auto", metavar="NAME", help="auto, float32, float16 or bfloat16")


def _generate_arguments(parser: Parser) -> None:
    parser.add_argument("prompt", nargs="?", help="what to draw, in quotes")
    out = parser.add_argument_group("output")
    out.add_argument(
        "-o",
        "--output",
        metavar="PNG",
        help="file to write (an existing one is replaced; a count adds -1, -2 ...), or a folder; "
        "default: a new file here, named after the prompt and the seed",
    )
    _json_flag(out)
    model = parser.add_argument_group("model and machine")
    model.add_argument("--model", metavar="MODEL", help="name, folder or hub id; default: the embedded model, scenes")
    _where(model)
    _adapter_arguments(model)
    _embedding_argument(model)
    model.add_argument("--memory", type=real, metavar="GB", help="how much may be used; default: what is free here")
    model.add_argument("--plan", action="store_true", help="say how much memory it will take, stage by stage, and stop")
    wish = parser.add_argument_group("picture")
    wish.add_argument("--negative", metavar="TEXT", help="what should not be there")
    wish.add_argument("--prompt-2", metavar="TEXT", help="what a second text encoder reads instead (SDXL)")
    wish.add_argument("--negative-2", metavar="TEXT")
    _words(wish)
    wish.add_argument("--clip-skip", type=whole, metavar="N", help="read the text encoder's Nth layer from its end")
    wish.add_argument("--seed", type=whole, metavar="N", help="same seed, same picture; default: a new one")
    wish.add_argument("--steps", type=whole, metavar="N")
    wish.add_argument("--guidance", type=real, metavar="F", help="how closely to follow the prompt; 1: no guidance")
    wish.add_argument("--guidance-rescale", type=real, metavar="F",
                      help="how much of the contrast that it adds to take back, 0 to 1; 0.7 is usual")  # fmt: skip
    wish.add_argument("--guidance-start", type=real, metavar="F", help="guide only from this part of the steps, 0 to 1")
    wish.add_argument("--guidance-stop", type=real, metavar="F", help="... and up to this part; the rest goes faster")
    wish.add_argument("--sampler", metavar="NAME", help=" ".join(SAMPLERS))
    wish.add_argument("--spacing", metavar="NAME", help="where the steps lie: " + " ".join(SPACINGS))
    wish.add_argument("--refiner", metavar="MODEL",
                      help="a second model that ends what the first begins: Stable Diffusion XL's refiner")  # fmt: skip
    wish.add_argument("--refiner-start", type=real, metavar="F",
                      help="which part of the way it leaves to the first, 0 to 1; default 0.8")  # fmt: skip
    wish.add_argument("--width", type=whole, metavar="N", help="pixels, a multiple of 8")
    wish.add_argument("--height", type=whole, metavar="N", help="pixels, a multiple of 8")
    wish.add_argument("--tile", type=whole, metavar="N",
                      help="make it in tiles of N pixels that overlap, for what is larger than the model was taught or "
                      "memory holds; default: upscalers above 1024")  # fmt: skip
    wish.add_argument("--count", type=whole, metavar="N", help="pictures, with the seeds N, N+1, ...")
    wish.add_argument("--noise", metavar="NAME", help="torch-cpu (the default) or nvidia: whose random numbers")
    wish.add_argument("--variation", metavar="SEED:AMOUNT", help="mix another seed in, 0 to 1; --count N counts that "
                      "seed up: --variation 100:0.1 --count 4 is four of the same")  # fmt: skip
    wish.add_argument("--seamless", metavar="AXES", help="x, y or both: the picture continues on its other side")
    wish.add_argument("--hires", type=real, metavar="F", help="then draw it over in a second pass, F times as large")
    wish.add_argument("--hires-strength", type=real, metavar="F", help="how much that changes, 0 to 1; default 0.5")
    wish.add_argument("--hires-steps", type=whole, metavar="N", help="default: as many as --steps")
    start = parser.add_argument_group("starting from a picture")
    start.add_argument("--image", metavar="FILE", help="picture to start from")
    start.add_argument("--strength", type=real, metavar="F", help="how much of it to change, 0 to 1")
    start.add_argument("--noise-level", type=whole, metavar="N",
                       help="for models that make it larger: noise to put on it first; default 20")  # fmt: skip
    start.add_argument("--image-guidance", type=real, metavar="F",
                       help="for models that edit as told: how closely to keep to it; default 1.5")  # fmt: skip
    start.add_argument("--depth", metavar="FILE", help="for models that take one: a depth map, near is white")
    part = parser.add_argument_group("painting a part of it; the rest stays as it is, to the bit")
    part.add_argument("--mask", metavar="FILE", help="white is painted anew, black stays")
    part.add_argument("--mask-grow", type=whole, metavar="N",
                      help="let its white grow, below 0 shrink, in pixels; default 0, with --extend 16")  # fmt: skip
    part.add_argument("--mask-blur", type=whole, metavar="N",
                      help="blend new and old at its edge: radius in pixels; default 0, with --extend 6")  # fmt: skip
    part.add_argument("--only-masked", action="store_true", default=None,
                      help="draw only what is around the mask, at the job's size, and put it back")  # fmt: skip
    part.add_argument("--mask-padding", type=whole, metavar="N", help="how much around it, in pixels; default 32")
    part.add_argument("--extend", metavar="L,T,R,B", help="paint so many pixels beyond left, top, right and bottom")
    other = parser.add_argument_group("for models that do not draw from words")
    other.add_argument("--class", dest="label", type=whole, metavar="N", help="for models of classes: which, from 0")
    other.add_argument("--box", action="append", metavar="LABEL:X0,Y0,X1,Y1",
                       help="for models that draw by boxes: what is where, in parts of it; again for each")  # fmt: skip
    other.add_argument("--boxes", metavar="JSON", help='a file of them: [{"label": "Dog", "box": [0, 0, 0.5, 1]}, ...]')
    other.add_argument(
        "--semantic", metavar="PNG", help="for models that take one: a map of COCO-Stuff's labels (docs/models.md)"
    )
    other.add_argument("--database", metavar="FOLDER", help="for models that look at pictures: where to find some")
    other.add_argument("--neighbours", type=whole, metavar="N", help="how many of them to look at; default 10")
    other.add_argument("--clip", metavar="FOLDER|ID", help="the CLIP that finds them: openai/clip-vit-large-patch14")
    start.add_argument("--job", metavar="JSON|PICTURE",
                       help="a job in JSON, or a picture to make again, of ours or another program's")  # fmt: skip


_WISHES = (
    "prompt", "negative", "prompt_2", "negative_2", "emphasis", "clip_skip", "wildcards", "model", "seed", "steps",
    "guidance", "sampler", "spacing", "width", "height", "count", "guidance_rescale", "guidance_start", "guidance_stop",
    "image", "strength", "image_guidance", "depth", "mask", "noise", "label", "boxes", "semantic", "database",
    "neighbours", "clip", "variation", "seamless", "hires", "hires_strength", "hires_steps", "mask_grow", "mask_blur",
    "only_masked", "mask_padding", "extend", "noise_level", "tile", "refiner", "refiner_start",
    "loras", "embeddings",
)  # fmt: skip


# generate


def _generate(args: argparse.Namespace) -> int:
    from . import __version__, backend

    wish = with_wildcards(_wish(args))
    backend.check_precision(args.precision)
    choice = backend.choose(args.backend, args.device)
    folder = find(wish.model)

    from mlxldm_convert import look

    from .adapters import Effect, worn
    from .generate import Step, generate, remarks, resolve, walks
    from .picture import check_writable, save_png
    from .plan import Beside, plan
    from .recall import fingerprints, with_words
    from .tasks import task_of

    if args.prompt is None and args.job is None and "prompt" not in task_of(folder.manifest).LEAVES:
        raise UserError('What should be drawn? Give a prompt: mlxldm generate "a lighthouse at dusk".')
    second = None if wish.refiner is None else find(wish.refiner)
    refined = second.manifest if second else None
    job = resolve(wish, folder.manifest, refined)
    job = with_words(job, folder, find_adapter, look, walks(job, folder.manifest, refined))
    for line in remarks(job):
        say(line)
    adapters = worn(job, folder.manifest, find_adapter)
    memory = _memory(args.memory)
    beside = Beside(refined, adapters)
    if args.plan:
        return _plan(args, plan(folder.manifest, backend.machine(choice, args.precision), job, memory, beside))
    outputs = _outputs(args.output, job)
    for path in outputs:
        check_writable(path)

    bar = Bar()
    done: list[dict[str, Any]] = []
    told: list[dict[str, Any]] = []  # what adapters did
    try:
        bar.show("loading the model")
        model = backend.load(folder, choice.backend, choice.device, args.precision)
        refiner = None if second is None else backend.load(second, choice.backend, choice.device, args.precision)
        bar.clear()
        say(f"{model.description}: {choice.why}.")
        short = plan(folder.manifest, model.machine, job, memory, beside).short
        if short:
            say(short)
        made_by: dict[str, Any] = {"mlxldm": __version__, "backend": model.description}
        if hashes := fingerprints(job, adapter_path, look):
            made_by["hashes"] = hashes
        started = time.perf_counter()
        bar.show("reading the prompt")
        for event in generate(model, job, memory, refiner, adapters):
            if isinstance(event, Effect):
                bar.clear()
                for line in event.lines() if event.to_json() not in told else ():
                    say(line)
                told.append(event.to_json())
                made_by |= {"adapters": told[-1]}
                continue
            if isinstance(event, Step):
                several = f"picture {event.index + 1}/{job.count}, " if job.count > 1 else ""
                bar.move((event.index + event.step / event.of) / job.count, f"{several}step {event.step}/{event.of}")
                continue
            path = outputs[event.index]
            save_png(path, event.pixels, event.job, made_by)
            bar.clear()
            done.append({"path": str(path), "seed": event.job.seed, "seconds": round(event.seconds, 3)})
            if told and told[-1] != told[0]:
                done[-1]["adapters"] = told[-1]
            if not args.json:
                print(path, flush=True)
        seconds = time.perf_counter() - started
    finally:
        bar.clear()
    if args.json:
        _print_json(
            {
                "pictures": done,
                "job": job.to_json(),
                "adapters": told[0] if told else None,
                "backend": {"name": choice.backend, "device": choice.device, "why": choice.why},
                "made_by": made_by,
                "seconds": round(seconds, 3),
                "memory": model.memory(),
            }
        )
    return 0


def _memory(gigabytes: float | None) -> int | None:
    """--memory in bytes."""
    if gigabytes is None:
        return None
    if not 0 < gigabytes < 1e6:  # false for NaN too
        raise UserError(f"--memory is {gigabytes}, but it must be a number of gigabytes above 0, such as 8.")
    return round(gigabytes * 1e9)


def _plan(args: argparse.Namespace, plan: MemoryPlan) -> int:
    """What --plan prints."""
    if args.json:
        _print_json(plan.to_json())
        return 0
    rows = [["stage", "peak memory", "what is done"]]
    rows += [[stage.name, size(stage.bytes), stage.what] for stage in plan.stages]
    free = "unknown" if plan.available is None else size(plan.available)
    where = f"{plan.machine.backend} {plan.machine.device}, {plan.machine.precision}"
    _table([*rows, ["in all", size(plan.peak), f"of {free} on {where}"]])
    if plan.short:
        say(plan.short)
    return 0


def _wish(args: argparse.Namespace) -> Job:
    """The job of --job, if any, with what the flags say on top."""
    from .job import Job

    given = {name: getattr(args, name) for name in _WISHES if getattr(args, name) is not None}
    given |= {name: tuple(given[name]) for name in ("loras", "embeddings") if name in given}
    if args.boxes is not None or args.box is not None:
        from . import boxes

        given["boxes"] = (boxes.read(args.boxes) if args.boxes else ()) + tuple(map(boxes.from_text, args.box or ()))
    if args.job is not None:
        return _recorded(args.job, given)
    return Job(**given)


def _recorded(path: str, given: dict[str, Any]) -> Job:
    """The job in a file, with what is `given` on top; of another program's picture, what cannot be done is said."""
    from mlxldm_convert import look

    from . import store
    from .job import Job
    from .picture import read_record
    from .recall import recalled
    from .wildcards import TEMPLATES

    record = read_record(path)
    replaced = {name: getattr(Job(), name) for name in ("prompt", "prompt_2", "loras", "embeddings") if name in given}
    record.job = record.job.replace(**replaced)
    record.job, left = recalled(record, look, adapter_path)
    record.left += left
    if "prompt" in given or "negative" in given:
        given = {**dict.fromkeys(TEMPLATES.values()), **given}
    job = record.job.replace(**given)
    if record.program == "mlxldm":
        if left:
            say(f"{path}: {'; '.join(left)}")
        return job
    say(f"{path}: a job of {record.program}")
    if job.strength is not None and job.image is None:
        record.left.append(f"strength {job.strength:g}: give the picture it started from with --image")
        job = job.replace(strength=None)
    if record.left:
        say(f"not taken over: {'; '.join(record.left)}")
    if job.model is not None and "model" not in given:
        found = store.recall(job.model, record.model_hash)
        if found is None:
            known_as = f" (hash {record.model_hash})" if record.model_hash else ""
            raise UserError(
                f"{path!r} was made with the model {job.model!r}{known_as}, which is not here by name or hash: give "
                f"one with --model, or add the folder it is in with: mlxldm models add FOLDER."
            )
        job = job.replace(model=found)
    return job


def _outputs(output: str | None, job: Job) -> list[Path]:
    """Where the pictures go. Only a file that was named by -o is ever replaced."""
    if output is None or output.endswith(("/", os.sep)) or os.path.isdir(output):
        folder = Path(output or "")
        return [_free(folder / f"{_slug(job.prompt)}-{_number(job.numbered(i))}.png") for i in range(job.count)]
    path = Path(output)
    if path.suffix.lower() != ".png" and (path.is_file() or not path.exists()):
        raise UserError(f"Pictures are written as PNG, but {output!r} does not end in .png.")
    if job.count == 1:
        return [path]
    return [path.with_name(f"{path.stem}-{i + 1}{path.suffix}") for i in range(job.count)]


def _number(job: Job) -> str:
    """What tells a job's pictures apart."""
    from .job import variation_of

    return str(job.seed) if job.variation is None else f"{job.seed}-{variation_of(job.variation)[0]}"


def _slug(prompt: str, longest: int = 48) -> str:
    """A file name's worth of the prompt: its letters and digits, whole words, hyphens between."""
    from .prompt import networks

    words = "".join(letter if letter.isalnum() else " " for letter in networks(prompt)[0].lower()).split()
    name = words[0][:longest] if words else "picture"
    for word in words[1:]:
        if len(name) + 1 + len(word) > longest:
            break
        name += "-" + word
    while len(name.encode("utf-8", "replace")) > 200:  # file systems count bytes, up to 255
        name = name[:-1]
    return name


def _free(path: Path) -> Path:
    """`path`, or the first of path-2, path-3 ... that nothing has."""
    number, found = 2, path
    while found.exists():
        found = path.with_name(f"{path.stem}-{number}{path.suffix}")
        number += 1
    return found


def find(name: str | None) -> Folder:
    """The model of that name, folder or hub id; other programs' folders are seen through the converter."""
    from mlxldm_convert import view

    from . import store

    return store.find(name, view)


def with_wildcards(job: Job) -> Job:
    """A job whose prompts have wildcards and that says no folder with their files: with this machine's own, if any."""
    from . import store
    from .wildcards import asks_for_files

    folder = store.wildcards()
    return job.replace(wildcards=str(folder)) if asks_for_files(job) and folder.is_dir() else job


def find_adapter(name: str, parts: Mapping[str, Any]) -> Adapter | Inversion:
    """The LoRA or textual inversion of that name or file, as it changes a model of these parts."""
    from mlxldm_convert import adapter

    return adapter(adapter_path(name), parts)


def adapter_path(name: str) -> Path:
    """The file of the LoRA or textual inversion of that name."""
    from mlxldm_convert import is_adapter, look

    from . import store

    return store.locate_adapter(name, look, is_adapter)


def add(path: str) -> Path:
    """List from now on what is at `path`: a folder of checkpoints and LoRAs, one of them, or a model folder."""
    from mlxldm_convert import is_adapter

    from . import store

    target = Path(os.path.abspath(os.path.expanduser(path)))
    if target.is_dir():
        return store.add_folder(target)
    if is_adapter(target):
        return store.add_file(target)
    store.register(target.stem, target)
    return target


def adapters_for(model: str | None) -> list[dict[str, Any]]:
    """The LoRAs and textual inversions among what was added, and which of them `model` can wear (None: the embedded).

    Rows: `name`, by which a job finds it; `what`, "LoRA" or "textual inversion"; `kind`, `family`, `bytes`, `path`;
    the `words` that call it and the `weight` it is meant with (or None); `state`, as in the list of models; `fits`,
    and `why` not.
    """
    from mlxldm_convert import look, misfit

    from . import store
    from .adapters import changeable

    parts = changeable(find(model).manifest)
    rows = [row for row in store.scan(look) if row.get("what")]
    names = [row["name"] for row in rows]
    for row in rows:
        why = misfit(row["path"], row["family"], parts) if parts else "No LoRA is made for models of this kind."
        if row["state"] == "no":  # it fits no family: the model may be of none
            row["state"], why = (row["what"], None) if why is None else ("no", row["why"])
        name = row["name"] if names.count(row["name"]) == 1 else row["path"]
        row |= {"name": name, "weight": row.get("weight"), "fits": why is None, "why": why}
    return rows


# pull, models, show, backends, doctor


def _pull(args: argparse.Namespace) -> int:
    from . import hub

    name = hub.wanted(args.id).name
    bar = Bar()
    try:
        bar.show("asking the hub")
        path = hub.pull(args.id, bar.move)
    finally:
        bar.clear()
    if name != args.id:
        say(f"its name here: {name}")
    if args.json:
        _print_json({"id": name, "path": str(path)})
    else:
        print(path)
    return 0


def _merge(args: argparse.Namespace) -> int:
    from mlxldm_convert import write

    from .adapters import Merged, worn
    from .job import Job

    if not args.loras:
        raise UserError("What should be merged? Give at least one LoRA with --lora NAME:0.8.")
    folder = find(args.model)
    adapters = worn(Job(loras=tuple(args.loras)), folder.manifest, find_adapter)
    model = Merged(folder, adapters)
    bar = Bar()
    try:
        bar.show("merging")
        written = write(model, args.target, progress=lambda done, of, part: bar.move(done / of, part))
    finally:
        bar.clear()
    effect = model.effect()
    for line in effect.lines():
        say(line)
    if args.json:
        _print_json({"path": str(written.path), "adapters": effect.to_json()})
    else:
        print(written.path)
    return 0


def _models(args: argparse.Namespace) -> int:
    from mlxldm_convert import look

    from . import store

    if args.action and args.what is None:
        what = "a folder or file" if args.action == "add" else "a name"
        raise UserError(f"mlxldm models {args.action}: {what} is missing.")
    if args.action == "forget":
        store.forget(args.what)
        say(f"{args.what} is listed no more; its files stay where they are")
        return 0
    rows = store.models()
    if args.action == "add":
        added = add(args.what)
        rows = [row for row in [*rows, *store.scan(look)] if Path(row["path"]).is_relative_to(added)]
        if added.is_dir():
            say(f"{added}: {len(rows)} checkpoints")
    else:
        rows += store.scan(look)
    if args.json:
        _print_json({"models": rows})
        return 0
    for row in rows:
        row["size"] = size(row["bytes"]) if row["bytes"] else ""
    columns = ("name", "family", "prediction", "dtypes", "size", "state", "path")
    _table([[str(row.get(key) or "") for key in columns] for row in rows])
    for row in rows:
        if row.get("why"):
            say(row["why"])
    return 0


def _adapters(args: argparse.Namespace) -> int:
    rows = adapters_for(args.model)
    if args.model is not None:
        rows = [row for row in rows if row["fits"]]
    if args.json:
        _print_json({"adapters": rows})
        return 0
    for row in rows:
        row["size"] = size(row["bytes"]) if row["bytes"] else ""
        row["says"] = row["why"] if row["state"] == "no" else ", ".join(row["words"])
    columns = ("name", "what", "kind", "family", "size", "says", "path")
    _table([[str(row.get(key) or "") for key in columns] for row in rows])
    return 0


def _show(args: argparse.Namespace) -> int:
    what = args.what
    pictures = (".png", ".jpg", ".jpeg", ".webp")
    if what is not None and os.path.isfile(what) and Path(what).suffix.lower() in (*pictures, ".json"):
        return _show_job(args)
    folder = find(what)
    about = describe(folder)
    if args.json:
        _print_json(about)
        return 0
    parts = {**about.pop("parts"), "in all": {**about, "dtypes": []}}
    source = about.pop("source")
    del about["parameters"], about["bytes"]
    _table([[name, _plain(value)] for name, value in {**about, "source": source.get("name")}.items() if value])
    print()
    _table([["part", "parameters", "stored as", "size"]] + [
        [name, f"{part['parameters'] / 1e6:.3g} M", " ".join(part["dtypes"]), size(part["bytes"])]
        for name, part in parts.items()
    ])  # fmt: skip
    return 0


def _show_job(args: argparse.Namespace) -> int:
    from .picture import read_record

    record = read_record(args.what)
    job, made_by = record.job.to_json(), record.made_by
    if record.program != "mlxldm":
        made_by = {"program": record.program, "model_hash": record.model_hash, "not_taken_over": record.left}
    if args.json:
        _print_json({"job": job, "made_by": made_by})
        return 0
    _table([[name, _plain(value)] for name, value in {**job, **made_by}.items() if value not in ("", None, [])])
    return 0


def describe(folder: Folder) -> dict[str, Any]:
    """What `mlxldm show` says about a model, ready for JSON."""
    import math

    manifest = folder.manifest
    parts = {}
    for part in manifest.parts:
        tensors, packed = folder.names(part), folder.groups(part)
        kinds = {tensor.dtype for name, tensor in tensors.items() if name not in packed}
        if packed and manifest.quantization:
            kinds.add(f"{manifest.quantization['bits']}-bit")
        parts[part] = {
            "parameters": sum(math.prod(tensor.shape) for tensor in tensors.values()),
            "dtypes": sorted(kinds),
            "bytes": folder.nbytes(part),
        }
    return {
        "name": manifest.name,
        "family": manifest.family,
        "task": manifest.task,
        "parameters": sum(part["parameters"] for part in parts.values()),
        "bytes": sum(part["bytes"] for part in parts.values()),
        "parts": parts,
        "defaults": manifest.defaults.to_dict(),
        "schedule": {key: value for key, value in manifest.schedule.to_dict().items() if value is not None},
        "source": manifest.source,
        "license": manifest.license,
        "quantization": manifest.quantization,
    }


def _tokens(args: argparse.Namespace) -> int:
    from mlxldm_convert import look

    from .generate import check_words
    from .job import Job
    from .prompt import Pass, Reader
    from .recall import with_words, words_of
    from .tasks.script import lines
    from .wildcards import chosen

    folder = find(args.model)
    reader = Reader(folder)
    if not reader.tokenizers:
        raise UserError(f"{folder.manifest.name} reads no words.")
    steps = folder.manifest.defaults.steps if args.steps is None else args.steps
    if steps < 1:
        raise UserError(f"There are {steps} steps, but at least 1 is needed.")
    wish = Job(args.prompt, prompt_2=args.prompt_2, emphasis=args.emphasis, seed=args.seed, wildcards=args.wildcards,
               embeddings=tuple(args.embeddings or ()))  # fmt: skip
    wish = with_wildcards(wish)
    asked = check_words(wish, folder.manifest, [Pass(steps)])
    job = with_words(chosen(wish), folder, find_adapter, look, [Pass(steps)])
    words = words_of(job, folder.manifest, find_adapter)
    reader.learn([(word.names, word.count) for word in words])
    told: dict[Any, list[int]] = {}
    for step, line in enumerate(lines(job, Pass(steps))[0], 1):
        told.setdefault(line, []).append(step)
    about: list[dict[str, Any]] = [
        {"steps": at, "prompts": [_read(reader, words, weight, job.emphasis) for words, weight in line]}
        for line, at in told.items()
    ]
    if args.json:
        taken, vectors = [str(network) for network in asked], {word.names[0]: word.count for word in words}
        _print_json({"model": folder.manifest.name, "prompt": job.prompt, "taken_out": taken, "embeddings": vectors,
                     "told": about})  # fmt: skip
        return 0
    for network in asked:
        print(f"taken out: {network}")
    for word in words:
        print(f"textual inversion: {word.names[0]}, {word.count} vector{'s' if word.count > 1 else ''}")
    for each in about:
        if len(about) > 1:
            print(f"at {_steps(each['steps'])} of {steps}:")
        for text in each["prompts"]:
            _print_read(text, composed=len(each["prompts"]) > 1)
    return 0


def _read(reader: Reader, words: Words, weight: float, emphasis: str | None) -> dict[str, Any]:
    """What each text encoder reads of a text, for JSON."""
    text = reader(words, emphasis or "original")
    encoders = {}
    for name, tokenizer, chunks in zip(reader.names, reader.tokenizers, text.encoders, strict=True):
        encoders[name] = [
            [
                {"id": token, "token": tokenizer.name(token), "weight": round(factor, 4)}
                for token, factor in zip(chunk.ids[1 : chunk.used + 1], chunk.weights[1:], strict=False)
            ]
            for chunk in chunks
        ]
    room = len(text.encoders[0][0].ids) - 2
    return {"text": words.first, "text_2": words.second, "weight": weight, "room": room, "encoders": encoders}


def _print_read(text: dict[str, Any], composed: bool) -> None:
    if composed:
        print(f"{text['text'].strip()!r}, weight {text['weight']:g}:")
    same: dict[str, list[str]] = {}
    for name, chunks in text["encoders"].items():
        same.setdefault(json.dumps(chunks), []).append(name)
    for chunks, names in same.items():
        for i, chunk in enumerate(rows := json.loads(chunks), 1):
            print(f"{' and '.join(names)}, chunk {i} of {len(rows)}: {len(chunk)} of {text['room']} tokens")
            _table([[f"{token['id']:>8}", token["token"], f"{token['weight']:g}"] for token in chunk])


def _steps(numbers: list[int]) -> str:
    """[1, 2, 3, 5] as "steps 1-3, 5"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return f"step{'s' if len(numbers) > 1 else ''} {', '.join('-'.join(map(str, run)) for run in runs)}"


def _backends(args: argparse.Namespace) -> int:
    from . import backend

    rows = backend.available()
    try:
        choice, why = backend.choose(), ""
    except UserError as error:
        choice, why = None, str(error)
    if args.json:
        taken = {"backend": choice.backend, "device": choice.device, "why": choice.why} if choice else None
        _print_json({"backends": rows, "auto": taken})
        return 0
    for row in rows:
        if not row["ready"]:
            print(f"{row['name']}: not here. {row['note']}")
            continue
        facts = [row.get("device_name"), row.get("blas"), row.get("memory") and size(row["memory"])]
        about = ", ".join(fact for fact in facts if fact)
        print(f"{row['name']} {row['version']}: {' '.join(row['devices'])}" + (f" ({about})" if about else ""))
        if row.get("note"):
            print(f"  {row['note']}")
    print(f"auto takes {choice.backend}, {choice.device or 'its own choice'}: {choice.why}." if choice else why)
    return 0


def _doctor(args: argparse.Namespace) -> int:
    from . import doctor

    bar = Bar()
    try:
        bar.show("checking")
        report = doctor.examine(args.backend, args.device, args.precision)
    finally:
        bar.clear()
    if args.json:
        _print_json(report.to_json())
    else:
        print(report)
    return 0 if report.right else 1


def _worker(args: argparse.Namespace) -> int:
    from . import worker

    return worker.run(args.backend, args.device, args.precision, worker.IDLE if args.idle is None else args.idle)


def _help(args: argparse.Namespace) -> int:
    _parser()[0].print_help()
    return 0


def _version(args: argparse.Namespace) -> int:
    from . import __version__

    print(f"mlxldm {__version__}")
    return 0


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(inner)}" for key, inner in value.items() if inner not in (None, {}))
    if isinstance(value, list):
        return "; ".join(map(_plain, value))
    return str(value)


def _table(rows: Iterable[Sequence[str]]) -> None:
    rows = list(rows)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))] if rows else []
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


if __name__ == "__main__":
    sys.exit(main())
