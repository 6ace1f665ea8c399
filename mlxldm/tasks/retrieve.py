"""Pictures of a text and of what is found for it (Blattmann et al. 2022, https://arxiv.org/abs/2204.11824)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import retrieval
from ..clip import open_clip
from ..errors import UserError
from ..job import Job
from ..samplers import Array
from ..tokenizer import open_tokenizer
from .base import GUIDANCE, USUAL
from .told import Told

if TYPE_CHECKING:
    from ..folder import Manifest

NEIGHBOURS = 10  # what the original's script takes


class Retrieve(Told):
    """Attends to CLIP's vector of the prompt, and of the pictures in a folder that are nearest to it.

    Guided away from as many zeros. As in scripts/knn2img.py of https://github.com/CompVis/latent-diffusion.
    """

    DRAWS = "draws from a prompt and from pictures that it looks at (--database)"
    LEAVES = frozenset(USUAL) - {"prompt"}
    TAKES = GUIDANCE | {"database", "neighbours", "clip"}
    GUIDED = True

    @classmethod
    def check(cls, job: Job, manifest: Manifest) -> Job:
        if job.clip is None:
            raise UserError(
                f"{manifest.name} sees texts and pictures through a CLIP that it does not bring along: give it with "
                f"--clip openai/clip-vit-large-patch14, or the folder it is in."
            )
        clip = open_clip(job.clip)
        wide = manifest.denoiser.cross_attention_dim[0]
        if clip.vision.projection_dim != wide:
            raise UserError(
                f"The CLIP in {job.clip!r} gives {clip.vision.projection_dim} numbers, but {manifest.name} looks at "
                f"{wide}: give the one it was made with, openai/clip-vit-large-patch14."
            )
        open_tokenizer(clip.text, clip.tokenizer_files()).check(job.prompt, clip.text.max_position_embeddings)
        if job.database is None:
            if job.neighbours is not None:
                raise UserError("The job has a number of neighbours, but no folder to find them in: give --database.")
            return job
        there = len(retrieval.pictures(job.database))
        count = min(NEIGHBOURS, there) if job.neighbours is None else job.neighbours
        if not 1 <= count <= there:
            raise UserError(
                f"The job asks for {count} neighbours, but of the {there} pictures in {job.database!r} it can be 1 to "
                f"{there}."
            )
        return job.replace(neighbours=count)

    def told(self) -> tuple[Array, Array]:
        assert self.job.clip is not None
        opened = open_clip(self.job.clip)
        clip = self.model.load_clip(opened)
        rows = None
        if self.job.database is not None:
            _, rows = retrieval.vectors(self.job.database, clip, opened)
        context = retrieval.context(self.job.prompt, clip, rows, self.job.neighbours or 0)
        return self.model.array(context), self.model.array(context * 0)
