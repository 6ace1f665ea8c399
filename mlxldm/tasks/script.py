"""A job's prompts, read by a model: what it is told at each step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..guidance import Told
from ..job import Job
from ..prompt import Line, Pass, Words, script

if TYPE_CHECKING:
    from .base import Task


def lines(job: Job, walk: Pass) -> tuple[list[Line], list[Words]]:
    """What a job says at each step of a walk, and what it says against it."""
    told = script(job.prompt, job.prompt_2, walk)
    against = script(job.negative or "", job.negative_2, walk, composed=False)
    return told, [words for ((words, _),) in against]


class Script:
    """The texts of a task in tokens, each in as many chunks as the longest.

    `composed`: several prompts lead together; they need the negative one whether the task guides or not.
    """

    def __init__(self, task: Task):
        self._task = task
        self._prompts, self._negatives = lines(task.job, task.plan.walk)
        self.composed = any(len(line) > 1 for line in self._prompts)
        self.guided = task.guides or self.composed
        words = [words for line in self._prompts for words, _ in line] + (self._negatives if self.guided else [])
        emphasis, skip, reader = task.job.emphasis or "original", task.job.clip_skip, task.model.reader
        read = {each: reader(each, emphasis, skip) for each in dict.fromkeys(words)}
        self._texts = dict(zip(read, reader.level(*read.values()), strict=True))

    def both(self) -> Told:
        """The prompts, and the negative ones where there is anything to guide away from."""
        return self._read(self._prompts, self._negatives if self.guided else None)

    def alone(self) -> Told:
        """The prompts without negative ones."""
        return self._read(self._prompts, None)

    def negative(self) -> Told:
        """The negative prompts without others."""
        return self._read([((words, 1.0),) for words in self._negatives], None, blank=self._task.zeros)

    def _read(self, prompts: Sequence[Line], negatives: Sequence[Words] | None, blank: bool = False) -> Told:
        """Every two texts that meet in a step go through the text encoders once. `blank`: zeros stand for the first.

        Only the first prompt of a step is paired with the negative one, whose answer serves them all.
        """
        conds: dict[tuple[Words, Words | None], Any] = {}
        steps = []
        for step, line in enumerate(prompts):
            told = []
            for i, (words, weight) in enumerate(line):
                pair = words, None if negatives is None or i else negatives[step]
                if pair not in conds:
                    conds[pair] = self._encoded(*pair, blank)
                told.append((conds[pair], weight))
            steps.append(told)
        return Told(steps)

    def _encoded(self, words: Words, negative: Words | None, blank: bool) -> Any:
        task = self._task
        text, against = None if blank else self._texts[words], None if negative is None else self._texts[negative]
        return task.model.encode_text(text, against, task.width, task.height, task.zeros, **task.more_told)
