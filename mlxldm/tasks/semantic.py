"""Pictures by a map of labels: what is at each pixel (Rombach et al. 2022)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import UserError
from ..job import Job
from ..picture import size_of
from ..samplers import Array
from ..semantic import load_labels, read_labels
from .told import Told

if TYPE_CHECKING:
    from ..folder import Manifest


class Semantic(Told):
    """Beside the latents, the network takes the map, brought to their size."""

    DRAWS = "draws by a map of labels (--semantic)"
    TAKES = frozenset(("semantic",))

    @classmethod
    def channels(cls, manifest: Manifest) -> int:
        return manifest.vae.latent_channels + manifest.rescaler.out_channels

    @classmethod
    def check(cls, job: Job, manifest: Manifest) -> Job:
        rescaler = manifest.rescaler
        if rescaler.multiplier**rescaler.stages * manifest.vae.factor != 1:
            raise UserError(
                f"{manifest.name} makes maps of labels and pictures small by different factors: the model folder is "
                f"damaged, convert it again."
            )
        if job.semantic is None:
            raise UserError(
                f"{manifest.name} {cls.DRAWS}: give a PNG whose pixels are numbers of labels, from 0 to "
                f"{rescaler.in_channels - 1}."
            )
        read_labels(job.semantic, rescaler.in_channels)
        return super().check(job, manifest)

    @classmethod
    def like(cls, job: Job, manifest: Manifest) -> tuple[int, int] | None:
        assert job.semantic is not None
        return size_of(job.semantic)

    def beside(self) -> Array:
        assert self.job.semantic is not None
        labels = self.model.manifest.rescaler.in_channels
        model = self.model
        return model.rescale(model.array(load_labels(self.job.semantic, self.width, self.height, labels)))
