"""Two passes: a picture at the size that the model knows best, then the same drawn over where it is enlarged.

The second pass is a job like any other that starts from a picture. Doing it by hand, with the first picture's PNG as
`--image`, gives the same bytes.
"""

from __future__ import annotations

from .errors import UserError
from .job import Job

LARGEST = 8.0  # times as large
STRENGTH = 0.5


def resolved(job: Job) -> Job:
    """`job` with the usual strength of its second pass, or a `UserError` where it makes no sense."""
    if job.hires is None:
        if job.hires_strength is not None or job.hires_steps is not None:
            raise UserError("The job says how to draw the picture over but not how large: give --hires, usually 2.")
        return job
    if job.masked:
        raise UserError("A part of a picture is not drawn twice: leave out --hires, or the mask and the extension.")
    if not 1 < job.hires <= LARGEST:  # false for NaN too
        raise UserError(f"The job's hires is {job.hires}, but it must be above 1 and at most {LARGEST:g}; 2 is usual.")
    strength = STRENGTH if job.hires_strength is None else job.hires_strength
    if not 0 < strength <= 1:
        raise UserError(f"The second pass's strength is {strength}, but it must be above 0 and at most 1.")
    if job.hires_steps is not None and job.hires_steps < 1:
        raise UserError(f"The second pass has {job.hires_steps} steps, but at least 1 is needed.")
    return job.replace(hires_strength=strength)


def passes(job: Job, unit: int) -> list[Job]:
    """The job of each pass, of a job that has a size and steps. Sides are multiples of `unit` pixels.

    The second says what the first does but for a size, steps and a strength of its own, and has the picture still to
    come. Its random numbers are the seed's from their beginning.
    """
    first = job.replace(hires=None, hires_strength=None, hires_steps=None)
    if job.hires is None:
        return [first]
    assert job.width is not None and job.height is not None
    width, height = (round(side * job.hires / unit) * unit for side in (job.width, job.height))
    steps = job.steps if job.hires_steps is None else job.hires_steps
    return [first, first.replace(width=width, height=height, strength=job.hires_strength, steps=steps)]
