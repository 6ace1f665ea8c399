"""LoRAs and textual inversions that prompts name, <lora:name:0.8> and words: the pictures of the same job with flags,
on both backends; and those of other programs' pictures, found by name and by hash."""

from __future__ import annotations

import hashlib
import json
import shutil

import numpy as np
import pytest
from conftest import has, needs_torch
from PIL import Image
from test_embeddings import vectors
from test_lora import APART, BACKENDS, JOB, Studio, psnr, weights_of

from mlxldm import store
from mlxldm.adapters import worn
from mlxldm.cli import adapter_path, find_adapter
from mlxldm.errors import UserError
from mlxldm.generate import Picture, generate, remarks, resolve
from mlxldm.others import Found
from mlxldm.picture import parameters, read_record, save_png
from mlxldm.prompt import Pass, Reader
from mlxldm.recall import fingerprints, recalled, with_words

pytestmark = [needs_torch, pytest.mark.skipif(not has("mlx"), reason="MLX is missing")]


@pytest.fixture(scope="module")
def studio(tiny_folder, tmp_path_factory):
    return Studio(tiny_folder, tmp_path_factory.mktemp("networks"))


@pytest.fixture
def disk(studio, tmp_path):
    """An added folder with the LoRAs "style" and "Ink Wash" and the textual inversion "zorg"."""
    folder = tmp_path / "disk"
    folder.mkdir()
    shutil.copy(studio.lora("sd1").path, folder / "style.safetensors")
    shutil.copy(studio.lora("sd1", "full", seed=6).path, folder / "Ink Wash.safetensors")
    shutil.copy(vectors(studio, "sd1")[0], folder / "zorg.safetensors")
    store.add_folder(folder)
    return folder


def look(path):
    from mlxldm_convert import look

    return look(path)


def draw(studio, backend, job):
    """Every picture of a job."""
    model = studio.model(backend, "sd1")
    job = resolve(job, model.manifest)
    adapters = worn(job, model.manifest, find_adapter)
    return [event for event in generate(model, job, adapters=adapters) if isinstance(event, Picture)]


# Tags


@pytest.mark.parametrize("tags, loras", [
    ("<lyco:STYLE:0.3>", ["style:0.3"]),  # capitals count where they tell two apart
    ("<lora:style:0.4:0.2>", ["style:0.2:0.4"]),  # A1111's order: the text encoders first
    ("<lora:style:0.3:lbw=1,0,0,0,0,0,0,1,0,0,0,0,0,0,0,0,0>", ["style:0.3:lbw=1,0,0,0,0,0,0,1,0,0,0,0,0,0,0,0,0"]),
    ("<lora:style:0.2> <lora:ink wash.safetensors:0.2>", ["style:0.2", "Ink Wash:0.2"]),
])  # fmt: skip
def test_a_tag_is_what_the_flag_is(studio, disk, tags, loras):
    for backend in BACKENDS:
        (flagged,) = draw(studio, backend, JOB.replace(loras=tuple(loras)))
        (tagged,) = draw(studio, backend, JOB.replace(prompt=f"a red {tags}house at dusk"))
        assert np.array_equal(tagged.pixels, flagged.pixels)
        assert tagged.job.prompt == f"a red {tags}house at dusk" and tagged.job.loras == ()
    assert psnr(flagged.pixels, studio.plain("sd1")) < APART


def test_tags_and_flags_add_up(studio, disk):
    """Also of the same one. (A1111 counts the last number of a name that comes twice for both.)"""
    (whole,) = draw(studio, "torch", JOB.replace(loras=("style:0.3:0.3",)))
    for job in (
        JOB.replace(loras=("style:0.1", "style:0.2")),
        JOB.replace(loras=("style:0.1",), prompt=f"{JOB.prompt}<lora:style:0.2>"),
        JOB.replace(prompt=f"{JOB.prompt}<lora:style:0.1><lora:style:0.2>"),
        JOB.replace(prompt=f"{JOB.prompt}<lora:style:0.15><lora:style:0.15>"),
    ):
        (found,) = draw(studio, "torch", job)
        assert psnr(found.pixels, whole.pixels) >= 75, job.prompt


@pytest.mark.parametrize("backend", BACKENDS)
def test_pictures_of_one_count_wear_what_their_choices_say(studio, disk, backend):
    model = studio.model(backend, "sd1")
    draw(studio, backend, JOB)
    before = weights_of(model, backend)
    job = JOB.replace(prompt="a {<lora:style:0.3>|<lora:Ink Wash:0.2>|zorg} house", seed=4, count=4,
                      embeddings=("zorg",))  # fmt: skip
    pictures = draw(studio, backend, job)
    assert len({picture.job.prompt for picture in pictures}) == 3
    flags = {"a <lora:style:0.3> house": ("style:0.3",), "a <lora:Ink Wash:0.2> house": ("Ink Wash:0.2",)}
    for picture in pictures:
        own = picture.job
        assert own.template == job.prompt
        by_hand = own.replace(loras=flags.get(own.prompt, ()), template=None,
                              prompt="a zorg house" if "zorg" in own.prompt else "a house")  # fmt: skip
        assert np.array_equal(draw(studio, backend, by_hand)[0].pixels, picture.pixels)
        assert np.array_equal(draw(studio, backend, own)[0].pixels, picture.pixels)
    draw(studio, backend, JOB)
    assert weights_of(model, backend) == before


def test_each_change_is_told_once_it_happens(studio, disk):
    model = studio.model("mlx", "sd1")
    job = resolve(JOB.replace(prompt="{<lora:style:0.3>|} a house", seed=14, count=4), model.manifest)
    worn_now: list[str] = []
    for event in generate(model, job, adapters=worn(job, model.manifest, find_adapter)):
        if hasattr(event, "loras"):
            worn_now = [lora["text"] for lora in event.loras]
        elif isinstance(event, Picture):
            assert worn_now == (["style:0.3"] if "<lora" in event.job.prompt else [])


def test_in_a_negative_prompt_it_is_words(studio, disk):
    """As in A1111's, whose negative prompts are never asked for networks."""
    job = JOB.replace(negative="snow <lora:style:1>")
    assert remarks(job) == [
        "<lora:style:1> in a negative prompt changes nothing: it is read as words there, as A1111's web UI does"
    ]
    for backend in BACKENDS:
        (picture,) = draw(studio, backend, job)
        literal = draw(studio, backend, JOB.replace(negative=r"snow <lora:style\:1>"))[0]
        assert not np.array_equal(picture.pixels, draw(studio, backend, JOB)[0].pixels)
        assert not np.array_equal(picture.pixels, literal.pixels)  # another text
    assert remarks(JOB) == []


@pytest.mark.parametrize("prompt, said", [
    ("<lora:stile:1>", "no LoRA or textual inversion 'stile' here. Did you mean 'style'"),
    ("{<lora:nowhere:1>|<lora:nowhere:1>}", "no LoRA or textual inversion 'nowhere' here"),
    ("<lora:zorg:1>", "zorg is a textual inversion and no LoRA"),
    ("<lora:style:200>", "strength beyond 100"),
])  # fmt: skip
def test_what_cannot_be_worn_is_one_sentence(studio, disk, prompt, said):
    with pytest.raises(UserError, match=said) as error:
        draw(studio, "mlx", JOB.replace(prompt=prompt))
    assert "\n" not in str(error.value)


def test_a_name_may_be_the_trainers_or_a_hash(studio, disk):
    from safetensors.numpy import load_file, save_file

    named = disk / "x-000010.safetensors"
    save_file(load_file(disk / "style.safetensors"), named, {"ss_output_name": "Painter"})
    assert adapter_path("Painter") == adapter_path("painter") == named
    assert adapter_path(hashlib.sha256(named.read_bytes()).hexdigest()[:10]) == named
    for digest in store.digests(disk / "Ink Wash.safetensors"):
        assert adapter_path(digest[:12]) == adapter_path(digest[:12].upper()) == disk / "Ink Wash.safetensors"
    other = disk / "y.safetensors"
    save_file(load_file(disk / "style.safetensors"), other, {"ss_output_name": "painter"})
    assert adapter_path("painter") == other and adapter_path("Painter") == named
    with pytest.raises(UserError, match="'PAINTER' is the name of 2 files"):
        adapter_path("PAINTER")
    with pytest.raises(UserError, match="no LoRA or textual inversion 'abcdefabcdef'"):
        adapter_path("abcdefabcdef")


def test_generate_is_not_given_what_a_prompt_asks_for(studio):
    with pytest.raises(UserError, match="generate was not given it"):
        generate(studio.model("mlx", "sd1"), JOB.replace(prompt="<lora:style:1> a house"))


# Words


def named(studio, **job):
    return with_words(JOB.replace(**job), studio.folder("sd1"), find_adapter, look, [Pass(JOB.steps)]).embeddings


def test_words_in_prompts_are_found_without_a_flag(studio, disk):
    assert named(studio, prompt="a zorg house") == ("zorg",)
    assert named(studio, negative="(ZORG:1.2), snow") == ("zorg",)
    assert named(studio, prompt="a [house:zorg:0.5]") == named(studio, prompt="{a|b} zorg {c|d}") == ("zorg",)
    assert named(studio, prompt="a house") == named(studio, prompt="<lora:zorg:1>") == ()
    assert named(studio, prompt="a zorg", embeddings=("zorg",)) == ("zorg",)
    for backend in BACKENDS:
        job = JOB.replace(prompt="a zorg house")
        (plain,), (found,) = draw(studio, backend, job), draw(studio, backend, job.replace(embeddings=("zorg",)))
        assert psnr(plain.pixels, found.pixels) < APART


def test_words_are_found_where_their_tokens_stand(studio, disk):
    """A1111's rule: the tokens of the name, one after the other, whatever white space and capitals are in the text;
    for CLIP, each digit and each run of signs is a word, and tokens say where a word ends, not where it begins.
    """
    stream = vectors(studio, "sd1", "bad-hands-5", 2)[0]
    shutil.copy(stream, disk)
    for text in ("bad-hands-5", "Bad-Hands-5", "bad - hands - 5", "x,bad-hands-5,y", "bad-hands-55x"):
        assert named(studio, prompt=text) == ("bad-hands-5",), text
    for text in ("bad hands 5", "bad-hands", "bad--hands-5", "zorgs"):
        assert named(studio, prompt=text) == (), text
    assert named(studio, prompt="azorg") == ("zorg",)


def test_words_of_other_models_do_not_count(studio, disk):
    from safetensors.numpy import save_file

    save_file({"emb_params": np.ones((2, 768), np.float32)}, disk / "house.safetensors")
    save_file({"something": np.ones((2, 2), np.float32)}, disk / "dusk.safetensors")
    (disk / "red.pt").write_bytes(b"no such thing")
    assert named(studio) == ()
    (disk / "deep").mkdir()
    shutil.copy(disk / "zorg.safetensors", disk / "deep" / "house.safetensors")
    assert named(studio) == (str(disk / "deep" / "house.safetensors"),)  # two have the name, one fits


def test_a_word_and_a_lora_may_have_one_name(studio, disk):
    """Then the word is recorded by its path; and it comes before one of its name that a LoRA brings along."""
    from safetensors.numpy import load_file, save_file

    brings = load_file(disk / "style.safetensors")
    brings["bundle_emb.zorg.string_to_param.*"] = np.full((1, 32), 0.5, np.float32)
    (disk / "deep").mkdir()
    save_file(brings, disk / "deep" / "zorg.safetensors")
    (found,) = named(studio, prompt="a zorg house")
    assert found == str(disk / "zorg.safetensors")
    manifest = studio.folder("sd1").manifest
    wears = worn(JOB.replace(loras=(str(disk / "deep" / "zorg.safetensors"),), embeddings=(found,)), manifest,
                 find_adapter)  # fmt: skip
    assert [(word.names[0], word.count) for word in wears.words] == [("zorg", 3), ("zorg", 1)]
    reader = Reader(studio.folder("sd1"))
    reader.learn([(word.names, word.count) for word in wears.words])
    assert sum(token < 0 for token in reader("a zorg house").encoders[0][0].ids) == 3


def test_a_word_is_not_cut_in_two(studio, disk):
    """Its vectors go to the next chunk together, as A1111's do."""
    reader = Reader(studio.folder("sd1"))
    reader.learn([(("zorg",), 3)])
    for before, sizes in ((72, [75]), (73, [73, 3]), (74, [74, 3]), (75, [75, 3])):
        (chunks,) = reader(f"{'a ' * before}zorg").encoders
        assert [chunk.used for chunk in chunks] == sizes
        (chunks,) = reader(f"{'a ' * before}(zorg:1.3) house").encoders
        (whole,) = (chunk for chunk in chunks if any(token < 0 for token in chunk.ids))
        assert sum(token < 0 for token in whole.ids) == whole.weights.count(1.3) == 3


def test_tokens_counts_vectors(studio, disk, capsys):
    from mlxldm.cli import main

    folder = str(studio.tiny_folder("sd1", "today"))
    assert main(["tokens", "a zorg house", "--model", folder, "--json"]) == 0
    about = json.loads(capsys.readouterr().out)
    tokens = about["told"][0]["prompts"][0]["encoders"]["text"][0]
    assert about["embeddings"] == {"zorg": 3} and sum(token["id"] < 0 for token in tokens) == 3
    assert tokens[0]["token"] == "a</w>" and tokens[1]["token"] == "zorg</w>" and tokens[4]["token"] == "house</w>"
    assert main(["tokens", "a zorg house", "--model", folder]) == 0
    assert "textual inversion: zorg, 3 vectors" in capsys.readouterr().out


# Metadata


def test_a_picture_says_what_it_wore_and_is_made_again_from_either_text(studio, disk, tmp_path):
    """From our own record, and as A1111's text, where flags have become tags."""
    job = JOB.replace(prompt="a <lora:style:0.2:0.4> zorg house", loras=("Ink Wash:0.1",), embeddings=("zorg",))
    (drawn,) = draw(studio, "torch", job)
    made_by = {"mlxldm": "1", "hashes": fingerprints(drawn.job, adapter_path, look)}
    whole = {name: store.digests(disk / f"{name}.safetensors") for name in ("style", "Ink Wash", "zorg")}
    assert made_by["hashes"] == {"lora:Ink Wash": whole["Ink Wash"][1][:12], "lora:style": whole["style"][1][:12],
                                 "embed:zorg": whole["zorg"][0][:12]}  # fmt: skip
    text = parameters(drawn.job, made_by)
    assert text.startswith("a <lora:style:0.2:0.4> zorg house <lora:Ink Wash:0.1>\nNegative prompt: snow\nSteps: 2")
    said = f'Lora hashes: "style: {whole["style"][1][:12]}, Ink Wash: {whole["Ink Wash"][1][:12]}"'
    assert said in text and f'TI hashes: "zorg: {whole["zorg"][0][:12]}"' in text

    path = tmp_path / "ours.png"
    save_png(path, drawn.pixels, drawn.job, made_by)
    record = read_record(path)
    assert recalled(record, look, adapter_path) == (drawn.job, [])
    with Image.open(path) as picture:
        assert picture.info["parameters"] == text
    from mlxldm import others

    found = others.read({"parameters": text})
    again, left = recalled(found, look, adapter_path)
    assert left == [] and again.prompt == "a <lora:style:0.2:0.4> zorg house <lora:Ink Wash:0.1>"
    (picture,) = draw(studio, "torch", again.replace(model=None))
    assert psnr(picture.pixels, drawn.pixels) >= 75  # they are added in another order
    assert parameters(picture.job, made_by) == text  # and so on

    (disk / "style.safetensors").rename(disk / "renamed.safetensors")  # found by its hash, by both
    (disk / "zorg.safetensors").rename(disk / "bleep.safetensors")
    for record in (read_record(path), others.read({"parameters": text})):
        again, left = recalled(record, look, adapter_path)
        assert again.prompt.startswith("a <lora:renamed:0.2:0.4> bleep house") and left == []
        (picture,) = draw(studio, "torch", again.replace(model=None))
        assert psnr(picture.pixels, drawn.pixels) >= 75
    shutil.copy(disk / "Ink Wash.safetensors", disk / "style.safetensors")  # has the name and is another
    again, left = recalled(read_record(path), look, adapter_path)
    assert "<lora:renamed:" in again.prompt and left == []
    (disk / "renamed.safetensors").unlink()
    again, left = recalled(read_record(path), look, adapter_path)
    assert again.prompt == drawn.job.prompt.replace("zorg", "bleep")
    assert left == [f"the very LoRA style: the one here has another hash than {whole['style'][1][:12]}"]


def test_what_other_programs_wore_is_found_or_said(studio, disk):
    def recall(job, program="A1111's web UI", **hashes):
        return recalled(Found(program, job, hashes=hashes), look, adapter_path)

    prompt = "a <lora:STYLE:0.5> <lora:gone:1:0.5> <hypernet:old:1><lora:style:1:lbw=OUTD> house"
    job = JOB.replace(prompt=prompt, loras=("ink_wash:0.3", "no:1"))
    again, left = recall(job)
    assert again.prompt == "a <lora:style:0.5>   house" and again.loras == ("Ink Wash:0.3",)
    assert left == [
        "LoRA gone at 1:0.5, which is not here by name or hash", "<hypernet:old:1>", "<lora:style:1:lbw=OUTD>",
        "LoRA no at 1, which is not here by name or hash",
    ]  # fmt: skip
    digest = store.digests(disk / "style.safetensors")[1][:12]
    again, left = recall(JOB.replace(prompt="<lora:gone:1>"), **{"lora:gone": digest.upper()})
    assert again.prompt == "<lora:style:1>" and left == []
    again, left = recall(JOB.replace(prompt="<lora:style:1>"), **{"lora:style": "0" * 12})
    assert again.prompt == "<lora:style:1>" and left == [
        f"the very LoRA style: the one here has another hash than {'0' * 12}"
    ]
    again, left = recall(JOB.replace(prompt="a bleep, (Bleep:1.2) bleeps", negative="bleep"),
                         **{"embed:bleep": store.digests(disk / "zorg.safetensors")[0][:10], "embed:other": "1" * 12})
    assert (again.prompt, again.negative, again.embeddings) == ("a zorg, (zorg:1.2) bleeps", "zorg", ("zorg",))
    assert left == ["textual inversion other (hash 111111111111), which is not here by name or hash"]
    ours = JOB.replace(prompt="<lora:gone:1>", loras=("lost:0.5",), embeddings=("away",))
    assert recall(ours, "mlxldm") == (ours, [])  # complained about when it is drawn


def test_a_job_option_takes_a_picture_with_loras(studio, disk, tmp_path, capsys):
    """The whole way through the command line: flags, our picture, and the same as A1111 would have left it."""
    from mlxldm.cli import main

    folder, out = str(studio.tiny_folder("sd1", "today")), tmp_path / "out.png"
    small = ["--steps", "2", "--width", "64", "--height", "64", "--seed", "3", "--backend", "torch"]
    prompt = "a <lora:style:0.3> zorg house"
    assert main(["generate", prompt, "--negative", "<lora:x:1>", "--model", folder, *small, "-o", str(out)]) == 0
    err = capsys.readouterr().err
    assert "style:0.3: locon" in err and "'zorg' stands for its vectors" in err and "read as words there" in err
    first = np.asarray(Image.open(out))
    again = tmp_path / "again.png"
    assert main(["generate", "--job", str(out), "--backend", "torch", "-o", str(again)]) == 0
    assert np.array_equal(np.asarray(Image.open(again)), first)
    capsys.readouterr()
    with Image.open(out) as picture:
        text = picture.info["parameters"].replace("Version: mlxldm", "Version: v1.9.3, Was:")
    theirs = tmp_path / "theirs.png"
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("parameters", text.replace(" zorg ", " zorg <lora:gone:1> "))
    Image.fromarray(first).save(theirs, pnginfo=info)
    assert main(["generate", "--job", str(theirs), "--model", folder, "--backend", "torch", "-o", str(again)]) == 0
    assert "LoRA gone at 1, which is not here by name or hash" in capsys.readouterr().err
    assert np.array_equal(np.asarray(Image.open(again)), first)
