"""Prompts of every kind as pictures, on both backends, against a dense computation with transformers' text encoders and
diffusers' U-Net, scheduler and autoencoder, and against compel where its language coincides with A1111's."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from conftest import needs_torch
from weights import assert_same

pytestmark = needs_torch
pytest.importorskip("mlxldm.on_mlx", reason="MLX is not installed")

BAR, APART = 55.0, 40.0
STEPS, GUIDANCE, SEED, SIZE = 4, 4.0, 11, 64
BACKENDS = ("mlx", "torch")
WORDS = "a the red blue house boat tree at dusk dawn with sea mountain under night snow lighthouse balloon".split()
NEGATIVE = "snow at night"

Runs = list[tuple[str, float]]  # one chunk: text and its weight


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """dB between two 8-bit pictures."""
    error = np.mean((a.astype(np.float64) - b) ** 2)
    return float("inf") if error == 0 else 10 * np.log10(255**2 / error)


def many(count: int, seed: int) -> str:
    """So many words, each a token, in no order."""
    return " ".join(np.random.RandomState(seed).choice(WORDS, count))


class Dense:
    """What a pipeline draws of chunks that were cut by hand."""

    def __init__(self, kind: str):
        import tiny

        self.pipe = tiny.KINDS[kind]()
        self.xl = kind.startswith("sdxl")
        two = [(self.pipe.tokenizer_2, self.pipe.text_encoder_2)] if self.xl else []
        self.encoders = [(self.pipe.tokenizer, self.pipe.text_encoder), *two]

    def states(self, tokenizer, encoder, chunks: list[Runs], layer: int | None = None):
        """Hidden states of chunks, weighed, and what stands for the first of them."""
        import torch

        found, pooled = [], None
        for runs in chunks:
            ids, weights = [tokenizer.bos_token_id], [1.0]
            for text, weight in runs:
                tokens = tokenizer(text, add_special_tokens=False).input_ids
                ids, weights = ids + tokens, weights + [weight] * len(tokens)
            rest = 77 - len(ids)
            assert rest > 0
            ids = ids + [tokenizer.eos_token_id] + [tokenizer.pad_token_id] * (rest - 1)
            with torch.no_grad():
                out = encoder(torch.tensor([ids]), output_hidden_states=True)
            hidden = out.hidden_states[layer or -2] if self.xl else out.last_hidden_state
            if layer is not None and not self.xl:
                hidden = getattr(encoder, "text_model", encoder).final_layer_norm(out.hidden_states[layer])
            states = hidden.detach().numpy().astype(np.float64)[0]
            heavy = states * np.array(weights + [1.0] * rest)[:, None]
            found.append(heavy * states.mean() / heavy.mean())
            pooled = out.text_embeds if pooled is None and self.xl and "text_embeds" in out else pooled
        return np.concatenate(found), pooled

    def context(self, *texts: list[Runs], layer: int | None = None):
        """For the U-Net: (1, positions, width) and what is added. `texts` are one for each encoder, or one for all."""
        import torch

        texts = texts if len(texts) == len(self.encoders) else texts * len(self.encoders)
        read = [self.states(*encoder, text, layer) for encoder, text in zip(self.encoders, texts, strict=True)]
        hidden = torch.tensor(np.concatenate([states for states, _ in read], axis=-1)[None], dtype=torch.float32)
        if not self.xl:
            return hidden, None
        sizes = torch.tensor([[SIZE, SIZE, 0, 0, SIZE, SIZE]], dtype=torch.float32)
        return hidden, {"text_embeds": read[-1][1], "time_ids": sizes}

    def draw(self, steps: list[list[tuple[tuple, float]]], without: tuple) -> np.ndarray:
        """DDIM, in each step led by contexts with weights against one without."""
        import diffusers
        import torch

        scheduler = diffusers.DDIMScheduler.from_config(self.pipe.scheduler.config)
        scheduler.set_timesteps(STEPS)
        x = torch.randn(1, 4, SIZE // 8, SIZE // 8, generator=torch.Generator("cpu").manual_seed(SEED))

        def ask(context, added):
            return self.pipe.unet(x, time, context, added_cond_kwargs=added).sample

        with torch.no_grad():
            for time, prompts in zip(scheduler.timesteps, steps, strict=True):
                free = ask(*without)
                said = free + GUIDANCE * sum(weight * (ask(*context) - free) for context, weight in prompts)
                x = scheduler.step(said, time, x).prev_sample
            picture = self.pipe.vae.decode(x / self.pipe.vae.config.scaling_factor).sample
        return np.round((picture[0].permute(1, 2, 0).numpy() / 2 + 0.5).clip(0, 1) * 255).astype(np.uint8)


@pytest.fixture(scope="module")
def dense():
    """`dense(kind)`, made once."""
    return functools.cache(Dense)


@pytest.fixture(scope="module")
def model(tiny_folder):
    """`model(kind, backend)`, loaded once."""
    from mlxldm import backend
    from mlxldm_convert import view

    return functools.cache(lambda kind, which: backend.load(view(tiny_folder(kind)), which, "cpu", "float32"))


@pytest.fixture(scope="module")
def draw(model):
    from mlxldm.generate import generate
    from mlxldm.job import Job

    def run(kind: str, which: str, prompt: str, **wishes) -> np.ndarray:
        size = {"width": SIZE, "height": SIZE, "steps": STEPS, "guidance": GUIDANCE, "sampler": "ddim", "seed": SEED}
        job = Job(prompt, **({"negative": NEGATIVE} | size | wishes))
        return next(event.pixels for event in generate(model(kind, which), job) if hasattr(event, "pixels"))

    return functools.cache(run)


def test_the_mean_is_restored():
    """By hand: the states 1 2 / 3 6 have the mean 3; with the second token twice as strong it is 21 / 4, so that all
    come times 4 / 7.
    """
    import mlx.core as mx
    import torch

    from mlxldm.on_mlx import model as on_mlx
    from mlxldm.on_torch import model as on_torch

    states = np.array([[[1, 2], [3, 6]]] * 2, np.float32)
    weights = [[1.0, 2.0], [1.0, 1.0]]
    wanted = [[[4 / 7, 8 / 7], [24 / 7, 48 / 7]], [[1, 2], [3, 6]]]  # each text by itself
    assert np.allclose(np.array(on_mlx.weighed(mx.array(states), weights)), wanted)
    assert np.allclose(on_torch.weighed(torch.tensor(states), weights).numpy(), wanted)


RED: list[Runs] = [[("a red house at dusk", 1.0)]]
BLUE: list[Runs] = [[("a blue boat at dusk", 1.0)]]
NO: list[Runs] = [[(NEGATIVE, 1.0)]]
EMPTY: list[Runs] = [[]]
LONG = [many(75, 1), many(75, 2), many(30, 3)]

# name: the prompt, the chunks of each step by hand (a list of those that lead, with weights), and of the negative one
CASES = {
    "weights": (
        "a (red:1.4) house ((at)) [dusk]",
        [[([[("a", 1.0), ("red", 1.4), ("house", 1.0), ("at", 1.1 * 1.1), ("dusk", 1 / 1.1)]], 1.0)]] * STEPS,
        NO,
    ),
    "long": (" ".join(LONG), [[([[(text, 1.0)] for text in LONG], 1.0)]] * STEPS, NO + EMPTY * 2),
    "long and weighted": (
        f"({LONG[0]} {LONG[1]}:1.2) BREAK {LONG[2]}",
        [[([[(LONG[0], 1.2)], [(LONG[1], 1.2)], [(LONG[2], 1.0)]], 1.0)]] * STEPS,
        NO + EMPTY * 2,
    ),
    "changing": ("a [red house:blue boat:0.25] at dusk", [[(RED, 1.0)]] + [[(BLUE, 1.0)]] * 3, NO),
    "turns": ("a [red house|blue boat] at dusk", [[(RED, 1.0)], [(BLUE, 1.0)]] * 2, NO),
    "together": (
        "a red house at dusk :1.2 AND a blue boat at dusk :-0.4",
        [[(RED, 1.2), (BLUE, -0.4)]] * STEPS,
        NO,
    ),
}


@pytest.mark.parametrize("kind, case", [*(("sd1", case) for case in CASES), *(("sdxl", case) for case in CASES),
                                        ("sd2", "long and weighted")])  # fmt: skip
def test_pictures_are_those_of_a_dense_computation(dense, draw, kind, case):
    prompt, steps, negative = CASES[case]
    by_hand = dense(kind)
    lines = [[(by_hand.context(text), weight) for text, weight in line] for line in steps]
    wanted = by_hand.draw(lines, by_hand.context(negative))
    found = {which: draw(kind, which, prompt) for which in BACKENDS}
    decibels = {which: psnr(picture, wanted) for which, picture in found.items()}
    decibels["each other"] = psnr(found["mlx"], found["torch"])
    assert min(decibels.values()) >= BAR, decibels
    plain = draw(kind, "torch", "a red house at dusk")
    assert psnr(found["torch"], plain) <= APART, "the prompt's signs change too little"


def test_a_long_prompt_is_what_diffusers_draws_of_its_states(dense, draw):
    by_hand = dense("sd1")
    context, _ = by_hand.context([[(text, 1.0)] for text in LONG])
    without, _ = by_hand.context(NO + EMPTY * 2)
    import diffusers
    import torch

    pipe = by_hand.pipe
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    picture = pipe(
        prompt_embeds=context, negative_prompt_embeds=without, num_inference_steps=STEPS, guidance_scale=GUIDANCE,
        width=SIZE, height=SIZE, generator=torch.Generator("cpu").manual_seed(SEED), output_type="np",
    ).images[0]  # fmt: skip
    wanted = np.round(picture * 255).astype(np.uint8)
    for which in BACKENDS:
        assert psnr(draw("sd1", which, " ".join(LONG)), wanted) >= BAR


@pytest.mark.parametrize("kind, skip, layer", [("sd1", 2, -2), ("sd2", 2, -2), ("sd2", 3, -3), ("sdxl", 3, -3)])
def test_clip_skip(dense, draw, kind, skip, layer):
    by_hand = dense(kind)
    context, without = by_hand.context(RED, layer=layer), by_hand.context(NO, layer=layer)
    wanted = by_hand.draw([[(context, 1.0)]] * STEPS, without)
    for which in BACKENDS:
        found = draw(kind, which, "a red house at dusk", clip_skip=skip)
        assert psnr(found, wanted) >= BAR
        assert psnr(found, draw(kind, which, "a red house at dusk")) <= APART


@pytest.mark.parametrize("kind, skip", [("sd1", 1), ("sdxl", 1), ("sdxl", 2)])
def test_no_clip_skip_is_the_model_s_own_layer(draw, kind, skip):
    for which in BACKENDS:
        plain, said = draw(kind, which, "a red house"), draw(kind, which, "a red house", clip_skip=skip)
        assert np.array_equal(plain, said)


def test_second_prompts_are_diffusers_own(dense, draw):
    by_hand = dense("sdxl")
    context, without = by_hand.context(RED, BLUE), by_hand.context(NO, [[("tree", 1.0)]])
    wanted = by_hand.draw([[(context, 1.0)]] * STEPS, without)
    for which in BACKENDS:
        more = {"prompt_2": "a blue boat at dusk", "negative_2": "tree"}
        found = draw("sdxl", which, "a red house at dusk", **more)
        assert psnr(found, wanted) >= BAR
        assert psnr(found, draw("sdxl", which, "a red house at dusk")) <= APART


@pytest.mark.parametrize("which", BACKENDS)
def test_signs_that_say_nothing_change_nothing(draw, which):
    plain = draw("sd1", which, "a red house at dusk")
    for same in ("a (red:1.0) house at dusk", "a [red|red] house at dusk", "a [red:red:2] house at dusk"):
        assert np.array_equal(draw("sd1", which, same), plain), same
    literal = draw("sd1", which, "a (red:1.4) house", emphasis="none")
    assert np.array_equal(literal, draw("sd1", which, r"a \(red:1.4\) house"))
    assert psnr(literal, draw("sd1", which, "a (red:1.4) house")) <= APART


@pytest.mark.parametrize("wish", [{"guidance": 1.0}, {"sampler": "heun", "steps": 3}, {"guidance_stop": 0.5}], ids=str)
def test_prompts_that_lead_together_always_have_a_negative_one(draw, wish):
    one, both = "a red house at dusk", "a red house at dusk :0.9 AND a blue boat :0.6"
    pictures = [draw("sd1", "torch", text, **wish) for text in (one, both, f"{one} :1 AND a blue boat :0")]
    assert psnr(pictures[1], pictures[0]) <= APART
    assert psnr(pictures[2], pictures[0]) >= BAR  # what weighs nothing says nothing
    assert psnr(draw("sd1", "torch", both, **wish, negative="a blue boat"), pictures[1]) <= APART


def test_a_second_pass_has_schedules_of_its_own(model, draw, tmp_path):
    """As if the two were drawn by hand, one after the other."""
    from mlxldm.job import Job
    from mlxldm.picture import save_png

    together = draw("sd1", "torch", "a [red house:blue boat:1.0] at dusk", hires=1.5, hires_strength=0.6)
    first = tmp_path / "first.png"
    save_png(first, draw("sd1", "torch", "a red house at dusk"), Job())
    by_hand = {"image": str(first), "strength": 0.6, "width": 96, "height": 96}
    assert np.array_equal(together, draw("sd1", "torch", "a blue boat at dusk", **by_hand))
    assert not np.array_equal(together, draw("sd1", "torch", "a red house at dusk", **by_hand))


def test_choices_are_made_anew_for_each_picture_and_kept(model, tmp_path):
    from mlxldm.generate import generate
    from mlxldm.job import Job
    from mlxldm.picture import read_job, save_png

    (tmp_path / "thing.txt").write_text("house\nboat\ntree\n")
    job = Job("a __thing__ at {dusk|dawn}", negative="{snow|night}", seed=3, count=4, steps=2, width=SIZE, height=SIZE,
              wildcards=str(tmp_path))  # fmt: skip
    pictures = [event for event in generate(model("sd1", "torch"), job) if hasattr(event, "pixels")]
    prompts = [picture.job.prompt for picture in pictures]
    assert len(set(prompts)) > 1 and not any(set("_{|}") & set(prompt) for prompt in prompts)
    for picture in pictures:
        assert picture.job.template == job.prompt and picture.job.negative_template == job.negative
        save_png(tmp_path / "picture.png", picture.pixels, picture.job)
        again = read_job(tmp_path / "picture.png")
        assert again == picture.job and again.wildcards is None
        (drawn,) = (event for event in generate(model("sd1", "torch"), again) if hasattr(event, "pixels"))
        assert np.array_equal(drawn.pixels, picture.pixels) and drawn.job == again


# compel weighs otherwise (it moves what a token says away from what nothing says, and does not restore the mean), so
# that weighted states differ; the tokens with their weights, and long prompts without weights, coincide.


@pytest.fixture(scope="module")
def compel():
    return pytest.importorskip("compel", reason="compel is not installed")


@pytest.mark.parametrize("text, fragments", [
    ("a (red house:1.3) at [dusk]", [("a", 1.0), ("red house", 1.3), ("at", 1.0), ("dusk", 1 / 1.1)]),
    (f"({LONG[0]}:0.8) {LONG[1]}", [(LONG[0], 0.8), (LONG[1], 1.0)]),
])  # fmt: skip
def test_tokens_and_their_weights_are_compel_s(compel, dense, model, text, fragments):
    pipe = dense("sd1").pipe
    theirs = compel.EmbeddingsProvider(
        pipe.tokenizer, pipe.text_encoder, truncate=False, split_long_text_mode=compel.SplitLongTextMode.BRUTAL
    )
    texts, weights = zip(*fragments, strict=True)
    ids, factors, _ = theirs.get_token_ids_and_expand_weights(list(texts), list(weights), "cpu")
    (chunks,) = model("sd1", "torch").reader(text).encoders
    assert [token for chunk in chunks for token in chunk.ids] == ids.tolist()
    assert np.allclose([factor for chunk in chunks for factor in chunk.weights], factors.numpy())


def test_long_prompts_are_compel_s(compel, dense, model):
    pipe, text = dense("sd1").pipe, " ".join(LONG)
    theirs = compel.Compel(
        pipe.tokenizer, pipe.text_encoder, truncate_long_prompts=False,
        split_long_text_mode=compel.SplitLongTextMode.BRUTAL,
    )(text)  # fmt: skip
    for which in BACKENDS:
        found = model("sd1", which)
        assert_same(found.numpy(found.text_states(text)), theirs.detach().numpy(), at_least=80)
