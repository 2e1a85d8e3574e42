"""The settings of the stage `traces`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gr2.config import refuse_below
from gr2.training.teachers.endpoint_keys import EndpointKeys, incidental

__all__ = ["TracesConfig"]


@dataclass(frozen=True)
class TracesConfig(EndpointKeys):
    """Which lists, which teacher, and how it is asked (see `EndpointKeys`).

    Attributes:
        lists: the stage whose training lists are used, `midtrain` or `prerank`; those that lack their target are not.
        list_size: candidates a list, the first ones.
        limit: lists to use, drawn with the seed; 0 is all.
        teacher: `evidence` needs no model; `endpoint` is an OpenAI-compatible server; `local` a model in a folder.
        sampling: `rejection` hides the target and asks again until it comes first; `targeted` shows it.
        attempts: at each list, until an answer is accepted.
        temperature: of the sampling, for the evidence teacher of its scores.
        neighbours: co-purchased items of each item that the evidence teacher counts.
        folds: divisions of the users; the evidence about a list is from users of other folds.
        batch: prompts that the local model answers at once.
        workers: processes of a Ray Data job that share the lists; 0 is none, and the stage asks itself.
        address: a Ray cluster, "auto" for the one this machine is part of; "" starts one here.
    """

    lists: Literal["midtrain", "prerank"] = "midtrain"
    list_size: int = 10
    limit: int = 0
    teacher: Literal["evidence", "endpoint", "local"] = "evidence"
    sampling: Literal["rejection", "targeted"] = "rejection"
    attempts: int = 4
    temperature: float = 1.0
    neighbours: int = 64
    folds: int = 5
    batch: int = incidental(8)
    workers: int = incidental(0)
    address: str = incidental("")

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_below(self, 1, "attempts", "neighbours", "batch")
        refuse_below(self, 0, "limit", "workers")
        refuse_below(self, 2, "list_size", "folds")
        if self.temperature < 0 or (self.temperature == 0 and self.teacher != "endpoint"):
            raise ValueError(f"temperature must be above 0, got {self.temperature}")
        if self.teacher == "endpoint" and not (self.base_url and self.model):
            raise ValueError("teacher = 'endpoint' needs base_url (http://HOST:PORT/v1) and model (its name there)")
        if self.compressor:
            raise ValueError("compressor: a teacher explains whole histories; leave it out here")
        if self.teacher == "local" and not self.model:
            raise ValueError("teacher = 'local' needs model, a folder with a causal language model")

    @property
    def rounds(self) -> int:
        """Attempts that may differ: shown the target, the evidence teacher always says the same."""
        return 1 if (self.teacher, self.sampling) == ("evidence", "targeted") else self.attempts
