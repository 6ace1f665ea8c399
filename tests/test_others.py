"""Jobs in other programs' pictures: what each of them writes, made here by hand after their formats."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from mlxldm import others, store
from mlxldm.errors import UserError
from mlxldm.job import Job
from mlxldm.others import Found, parse_parameters
from mlxldm.picture import parameters, read_record, save_png

A1111 = """a (red:1.2) house, oil painting
on a hill
Negative prompt: blurry,
bad: worse
Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 6.5, Seed: 123, Size: 512x768, Model hash: 6ce0161689, \
Model: v1-5-pruned, Lora hashes: "one: 1a, two: 2b", Version: v1.9.3"""
COMFY = {
    "3": {"class_type": "KSampler", "inputs": {
        "seed": ["11", 0], "steps": 25, "cfg": 7.5, "sampler_name": "dpmpp_2m", "scheduler": "karras", "denoise": 1.0,
        "model": ["10", 0], "positive": ["6", 0], "negative": ["7", 0], "latent_image": ["5", 0]}},
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "folder\\dream.safetensors"}},
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "height": 640, "batch_size": 1}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a boat", "clip": ["4", 1]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": ["12", 0], "clip": ["4", 1]}},
    "8": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["4", 2]}},
    "9": {"class_type": "SaveImage", "inputs": {"images": ["8", 0], "filename_prefix": "x"}},
    "10": {"class_type": "LoraLoader", "inputs": {
        "model": ["4", 0], "clip": ["4", 1], "lora_name": "style.safetensors", "strength_model": 0.8}},
    "11": {"class_type": "Seed", "inputs": {"seed": 987}},
    "12": {"class_type": "PrimitiveString", "inputs": {"value": "rain"}},
}  # fmt: skip
INVOKE = {
    "app_version": "5.0.0", "generation_mode": "txt2img", "positive_prompt": "a tree", "negative_prompt": "fog",
    "width": 768, "height": 512, "seed": 5, "rand_device": "cpu", "cfg_scale": 7.0, "steps": 30,
    "scheduler": "dpmpp_2m_k", "model": {"name": "Dream XL", "hash": "blake3:00", "base": "sdxl"}, "clip_skip": 1,
    "loras": [{"model": {"name": "ink"}, "weight": 0.5}],
}  # fmt: skip
MFLUX = {
    "mflux_version": "0.9.0", "model": "black-forest-labs/FLUX.1-schnell", "seed": 9, "steps": 4, "guidance": None,
    "height": 512, "width": 1024, "prompt": "a lighthouse", "lora_paths": ["/a/ink.safetensors"], "lora_scales": [0.7],
}  # fmt: skip
DRAW_THINGS = {
    "c": "a \"red\" fox & a hen", "uc": "blur", "model": "sd_v1.5_f16.ckpt", "sampler": "DPM++ 2M Karras", "scale": 8,
    "seed": 77, "size": "512x576", "steps": 22, "strength": 1,
}  # fmt: skip


def test_a1111s_text():
    found = others.read({"parameters": A1111})
    assert found is not None and found.program == "A1111's web UI" and found.model_hash == "6ce0161689"
    assert found.job == Job(
        "a (red:1.2) house, oil painting\non a hill", "blurry,\nbad: worse", "v1-5-pruned", seed=123, steps=20,
        guidance=6.5, sampler="dpmpp_2m", spacing="karras", width=512, height=768, noise="nvidia",
    )  # fmt: skip
    assert found.left == [] and found.hashes == {"lora:one": "1a", "lora:two": "2b"}


@pytest.mark.parametrize(
    ("settings", "job", "left"),
    [
        ("Sampler: DPM++ 2M Karras", {"sampler": "dpmpp_2m", "spacing": "karras"}, []),
        ("Sampler: DPM++ 2M, Schedule type: Automatic", {"sampler": "dpmpp_2m", "spacing": "karras"}, []),
        ("Sampler: Euler, Schedule type: Automatic", {"sampler": "euler", "spacing": None}, []),
        ("Sampler: DPM adaptive", {"sampler": None}, ["sampler DPM adaptive"]),
        ("Sampler: Euler, RNG: CPU", {"noise": "torch-cpu"}, []),
        ("Variation seed: 77, Variation seed strength: 0.25", {"variation": "77:0.25"}, []),
        ("Variation seed: 77, Variation seed strength: 9", {"variation": None}, ["variation 77:9"]),
        ("Denoising strength: 0.6, Hires upscale: 1.5, Hires steps: 0, Hires upscaler: Lanczos",
         {"hires": 1.5, "hires_strength": 0.6, "hires_steps": None, "strength": None}, []),
        ("Hires upscale: 2, Hires steps: 10, Hires upscaler: Latent", {"hires": 2.0, "hires_steps": 10},
         ["Hires upscaler Latent"]),
        ("Tiling: True", {"seamless": "both"}, []),
        ("Schedule type: KL Optimal", {"spacing": None}, ["schedule type kl optimal"]),
        ("Seed: 1e400", {"seed": None}, ["seed 1e400"]),
        ("Seed: -3", {"seed": None}, ["seed -3"]),
        ("CFG scale: nan", {"guidance": None}, ["guidance nan"]),
        ('Model: "a, b: c"', {"model": "a, b: c"}, []),
        ("Clip skip: 2", {"clip_skip": 2}, []),
        ("Emphasis: None", {"emphasis": "none"}, []),
        ("Emphasis: No norm", {"emphasis": None}, ["emphasis No norm"]),
        ('Template: "a {b|c}", Negative Template: d', {"template": "a {b|c}", "negative_template": "d"}, []),
        ("ENSD: 31337", {}, ["ENSD 31337"]),
        ("Lora hashes: \"a: 1a2b3c4d5e6f\", TI hashes: \"b: 2b, c d: 3c\"", {"embeddings": ("b", "c d")}, []),
        ('Hashes: {"model": "1a", "lora:a": "1b", "embed:b": "2b"}, Clip skip: 2',
         {"embeddings": ("b",), "clip_skip": 2}, []),
        ('Clip skip: 2, Civitai resources: [{"type":"checkpoint","modelVersionId":1,"modelName":"Dream, XL"},{"type":'
         '"lora","weight":0.8,"modelVersionId":2,"modelName":"Ink: Wash"},{"type":"lora","modelVersionId":3}], '
         'Civitai metadata: {}', {"loras": ("Ink Wash:0.8",), "model": "Dream, XL", "clip_skip": 2},
         ["lora 3 of Civitai, which has no name"]),
        ("Civitai resources: [{]", {"loras": ()}, []),
        ("Sampler: DDIM CFG++, CFG scale: 7", {"sampler": "ddim_cfgpp", "guidance": None},
         ["guidance 7, which CFG++ counts otherwise there"]),
    ],
)
def test_settings_of_a1111(settings, job, left):
    found = others.read({"parameters": f"x\nSteps: 20, {settings}, Size: 64x64"})
    assert found is not None and found.left == left
    for name, value in job.items():
        assert getattr(found.job, name) == value


def test_a_text_that_is_no_settings_is_no_job():
    assert others.read({"parameters": "a photo, of: something"}) is None
    assert others.read({"comment": A1111}) is None


def test_what_we_write_for_others_reads_back_the_same():
    job = Job('a "cat", (red:1.2)\nsecond line', "no: dogs", "v1,5", seed=3, steps=8, guidance=2.5, sampler="euler_a",
              spacing="karras", width=64, height=96, clip_skip=2, emphasis="none", template="a {cat|dog}\n: __x__",
              negative_template="no: {a|b}", prompt_2="a, dog", negative_2="cats", template_2="a, {dog|cat}",
              negative_template_2="{cats|dogs}")  # fmt: skip
    found = others.read({"parameters": parameters(job, {"mlxldm": "1.0"})})
    assert found is not None and found.program == "mlxldm" and found.left == []
    assert found.job == job


def test_every_name_we_write_is_read_as_the_same_sampler_and_spacing():
    from mlxldm.samplers import SAMPLERS
    from mlxldm.schedule import SPACINGS

    for sampler in SAMPLERS:
        found = others.read({"parameters": parameters(Job("x", steps=3, seed=1, sampler=sampler, width=8, height=8))})
        assert found is not None and found.job.sampler == sampler, sampler
    for spacing in SPACINGS:
        job = Job("x", steps=3, seed=1, sampler="euler", spacing=spacing, width=8, height=8, noise="nvidia")
        found = others.read({"parameters": parameters(job)})
        assert found is not None and found.job.noise == "nvidia"
        assert found.job.spacing == (None if spacing == "model" else spacing)


def test_comfys_graph():
    found = others.read({"prompt": json.dumps(COMFY)})
    assert found is not None and found.program == "ComfyUI"
    assert found.job == Job("a boat", "rain", "dream", seed=987, steps=25, guidance=7.5, sampler="dpmpp_2m",
                            spacing="karras", width=512, height=640, loras=("style:0.8",))  # fmt: skip
    assert found.left == []


def test_comfys_newer_sampler_and_second_pass():
    graph = {
        "1": {"class_type": "SamplerCustomAdvanced", "inputs": {
            "noise": ["2", 0], "guider": ["3", 0], "sampler": ["4", 0], "sigmas": ["5", 0], "latent_image": ["6", 0]}},
        "2": {"class_type": "RandomNoise", "inputs": {"noise_seed": 4}},
        "3": {"class_type": "CFGGuider", "inputs": {"cfg": 5.0, "positive": ["7", 0], "negative": ["8", 0],
                                                    "model": ["9", 0]}},
        "4": {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "euler"}},
        "5": {"class_type": "BasicScheduler", "inputs": {"scheduler": "simple", "steps": 12}},
        "6": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 4}},
        "7": {"class_type": "ControlNetApply", "inputs": {"conditioning": ["10", 0]}},
        "8": {"class_type": "ConditioningZeroOut", "inputs": {"conditioning": ["10", 0]}},
        "9": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "x.ckpt"}},
        "10": {"class_type": "CLIPTextEncode", "inputs": {"text": "a boat"}},
        "11": {"class_type": "LatentUpscaleBy", "inputs": {"samples": ["1", 0], "scale_by": 2}},
        "12": {"class_type": "KSampler", "inputs": {"seed": 1, "steps": 3, "latent_image": ["11", 0]}},
        "13": {"class_type": "SaveImage", "inputs": {"images": ["14", 0]}},
        "14": {"class_type": "VAEDecode", "inputs": {"samples": ["12", 0]}},
    }  # fmt: skip
    found = others.read({"prompt": json.dumps(graph)})
    assert found is not None
    assert found.job == Job("a boat", None, "x", seed=4, steps=12, guidance=5.0, sampler="euler", spacing="trailing",
                            width=64, height=64)  # fmt: skip
    left = "\n".join(found.left)
    assert "second pass" in left and "ControlNetApply" in left and "one batch" in left


def test_invokes_metadata():
    found = others.read({"invokeai_metadata": json.dumps(INVOKE)})
    assert found is not None and found.model_hash is None
    assert found.job == Job("a tree", "fog", "Dream XL", seed=5, steps=30, guidance=7.0, sampler="dpmpp_2m",
                            spacing="karras", width=768, height=512, loras=("ink:0.5",))  # fmt: skip
    assert found.left == ["clip_skip 1"]


def xmp(values: dict) -> str:
    from html import escape

    return f"""<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF><rdf:Description><exif:UserComment><rdf:Alt>
    <rdf:li xml:lang="x-default">{escape(json.dumps(values))}</rdf:li>
    </rdf:Alt></exif:UserComment></rdf:Description></rdf:RDF></x:xmpmeta>"""


def test_clip_skip_of_invoke_counts_what_is_left_out():
    values = {**INVOKE, "clip_skip": 2, "model": {"name": "Dream", "base": "sd-1"}}
    found = others.read({"invokeai_metadata": json.dumps(values)})
    assert found is not None and found.job.clip_skip == 3 and found.left == []
    found = others.read({"invokeai_metadata": json.dumps({**values, "clip_skip": 0})})
    assert found is not None and found.job.clip_skip is None and found.left == []


def test_loras_and_words_of_other_programs():
    several = {"on": True, "lora": "wide\\ink.safetensors", "strength": 0.5, "strengthTwo": 0.25}
    graph = {
        **COMFY,
        "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a (embedding:zorg:1.2), embedding:sub/b.pt boat"}},
        "10": {"class_type": "LoraLoader", "inputs": {
            "model": ["13", 0], "lora_name": "a.safetensors", "strength_model": 0.8, "strength_clip": 0.4}},
        "13": {"class_type": "LoraLoaderModelOnly", "inputs": {
            "model": ["14", 0], "lora_name": "b.pt", "strength_model": 1}},
        "14": {"class_type": "Power Lora Loader (rgthree)", "inputs": {
            "model": ["4", 0], "lora_1": several, "lora_2": {**several, "on": False}, "lora_3": {"on": True}}},
    }  # fmt: skip
    found = others.read({"prompt": json.dumps(graph)})
    assert found is not None and found.left == []
    assert found.job.loras == ("a:0.8:0.4", "b:1:0", "ink:0.5:0.25") and found.job.embeddings == ("zorg", "b")
    assert found.job.prompt == "a (zorg:1.2), b boat"
    found = others.read({"invokeai_metadata": json.dumps({**INVOKE, "loras": [
        {"model": {"name": "ink", "hash": "sha256:0123456789ab"}, "weight": 0.5},
        {"lora": {"model_name": "x"}, "weight": 9e9},
    ]})})  # fmt: skip
    assert found is not None and found.job.loras == ("ink:0.5",) and found.hashes == {"lora:ink": "0123456789ab"}
    assert "LoRA x at 9000000000.0" in found.left
    found = others.read({"invokeai_metadata": json.dumps({**INVOKE, "positive_prompt": "a <cat-toy> <3"})})
    assert found is not None and found.job.prompt == "a cat-toy <3" and found.job.embeddings == ("cat-toy",)
    found = others.read({"xmp": xmp({**DRAW_THINGS, "lora": [
        {"model": "ink_lora_f16.ckpt", "weight": 0.6}, {"model": "other.ckpt", "weight": 1}, {"model": None}, "x",
    ]})})  # fmt: skip
    assert found is not None and found.job.loras == ("ink:0.6", "other:1") and found.left == [
        "LoRA without a name at None"
    ]


def test_draw_things_and_mflux():
    found = others.read({"xmp": xmp(DRAW_THINGS)})
    assert found is not None and found.program == "Draw Things" and found.left == []
    assert found.job == Job('a "red" fox & a hen', "blur", "sd_v1.5_f16", seed=77, steps=22, guidance=8.0,
                            sampler="dpmpp_2m", spacing="karras", width=512, height=576)  # fmt: skip
    found = others.read({"exif": json.dumps(MFLUX)})
    assert found is not None and found.program == "mflux"
    assert found.job == Job("a lighthouse", None, "FLUX.1-schnell", seed=9, steps=4, width=1024, height=512,
                            loras=("ink:0.7",))  # fmt: skip
    assert found.left == ["its noise, which comes from MLX itself"]


def picture(path: Path, texts: dict[str, str] | None = None, comment: bytes | None = None) -> Path:
    image = Image.fromarray(np.zeros((8, 8, 3), np.uint8))
    exif = Image.Exif()  # as bytes below: one with nothing but inner tables counts as empty
    if comment is not None:
        exif.get_ifd(0x8769)[0x9286] = comment
    info = PngInfo()
    for key, text in (texts or {}).items():
        info.add_itxt(key, text)
    image.save(path, exif=exif.tobytes(), **({"pnginfo": info} if path.suffix == ".png" else {}))
    return path


def test_pictures_of_every_program_are_read(tmp_path):
    unicode = b"UNICODE\0" + A1111.encode("utf-16-be")
    files = {
        "A1111's web UI": [
            picture(tmp_path / "a.png", {"parameters": A1111}), picture(tmp_path / "a.jpg", comment=unicode),
            picture(tmp_path / "a.webp", comment=unicode),
        ],
        "ComfyUI": [picture(tmp_path / "c.png", {"prompt": json.dumps(COMFY), "workflow": "{}"})],
        "InvokeAI": [picture(tmp_path / "i.png", {"invokeai_metadata": json.dumps(INVOKE)})],
        "mflux": [picture(tmp_path / "m.png", comment=b"ASCII\0\0\0" + json.dumps(MFLUX).encode())],
        "Draw Things": [picture(tmp_path / "d.png", {"XML:com.adobe.xmp": xmp(DRAW_THINGS)})],
    }  # fmt: skip
    for program, paths in files.items():
        for path in paths:
            assert read_record(path).program == program, path
    both = save_png(tmp_path / "ours.png", np.zeros((8, 8, 3), np.uint8), Job("x", seed=1))
    assert read_record(both).program == "mlxldm"
    with pytest.raises(UserError, match="has no job inside"):
        read_record(picture(tmp_path / "none.png"))


def test_damaged_texts_are_no_traceback():
    """Cut, mixed and changed texts: a job, or nothing; and quickly."""
    texts = {"parameters": A1111, "prompt": json.dumps(COMFY), "invokeai_metadata": json.dumps(INVOKE),
             "exif": json.dumps(MFLUX), "xmp": xmp(DRAW_THINGS)}  # fmt: skip
    dice = random.Random(0)
    for _ in range(3000):
        key = dice.choice(list(texts))
        text = list(texts[key])
        for _ in range(dice.randint(1, 6)):
            i = dice.randrange(len(text))
            text[i : i + dice.randint(0, 9)] = dice.choice(["9" * 400, "\0", "null", "", *'"[]{}:,'])
        found = others.read({key: "".join(text)})
        assert found is None or isinstance(found, Found)
    knot = {"1": {"class_type": "KSampler", "inputs": {"positive": ["1", 0], "model": ["1", 0], "seed": ["1", 0],
                                                       "latent_image": ["1", 0]}}}  # fmt: skip
    assert isinstance(others.read({"prompt": json.dumps(knot)}), Found)
    assert others.read({"prompt": "[" * 100_000}) is None
    assert parse_parameters("x\n" + "a:" * 100_000) == ("x\n" + "a:" * 100_000, "", {})


def test_models_are_found_by_name_and_by_hash(tmp_path, monkeypatch):
    monkeypatch.setenv("MLXLDM_HOME", str(tmp_path / "home"))
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    data = random.Random(1).randbytes(0x110000 + 7)
    (folder / "Dream_Shaper 8.safetensors").write_bytes(data)
    store.add_folder(folder)
    path = str(folder / "Dream_Shaper 8.safetensors")
    assert store.recall("dreamshaper8", None) == path
    (folder / "夢.safetensors").write_bytes(b"")
    assert store.recall("夢", None) == str(folder / "夢.safetensors")
    assert store.recall("船", None) is None and store.recall("...", None) is None
    assert store.recall("other", hashlib.sha256(data).hexdigest()[:10]) == path
    assert store.recall("other", hashlib.sha256(data[0x100000:0x110000]).hexdigest()[:8]) == path
    assert store.recall("other", "0" * 10) is None and store.recall("other", None) is None
    (folder / "Dream_Shaper 8.safetensors").write_bytes(data[::-1])
    assert store.recall("other", hashlib.sha256(data).hexdigest()[:10]) is None
    assert store.recall("other", hashlib.sha256(data[::-1]).hexdigest()[:10]) == path
