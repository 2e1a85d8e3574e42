"""What is trained on Beauty to show reinforcement learning. All of it starts from what `make reasoner` has left."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from benchmarks.reasoner.quality import BASE, VARIANTS
from benchmarks.rl.jobs import COPIES, FOLDER, Job

__all__ = [
    "BRIEF", "BYPASSED", "COPIER", "FOUR", "GAMED", "JOBS", "PLAIN", "QUALITY", "RANKING", "REWARDED", "TAUGHT",
    "TEACHER",
]  # fmt: skip

PROMPT = {"max_history": 8, "title_words": 4}
ALONE = PROMPT | {"reasoning": False, "knowledge": False}
EVALUATED = {
    "validation_lists": 0, "test_lists": -1, "threads": 1, "copy_limit": 1.0, "idle_steps": 0,
    "checkpoint_seconds": 20.0,
}  # fmt: skip


def _tuned(sampling: str, *, knowledge: bool) -> Path:
    return next(each.folder for each in VARIANTS if (each.sampling, each.knowledge) == (sampling, knowledge))


# The model that all rewards start from: fine-tuned to answer with the ranking alone.
RANKING = Job(
    "ranking",
    "SFT, ranking alone",
    _tuned("rejection", knowledge=True),
    (
        (
            "sft",
            ALONE | {"epochs": 4, "batch": 8, "learning_rate": 2e-3, "dropout": 0.1, "threads": 1}
            | {"validation_lists": 0, "test_lists": -1},
        ),
    ),
    "traces",
)  # fmt: skip
SHORT = ALONE | EVALUATED | {
    "steps": 300, "groups": 8, "samples": 8, "batch": 64, "answer_batch": 64, "redraws": 1, "learning_rate": 1e-4,
}  # fmt: skip
SMALL_SFT = ALONE | {
    "list_size": 4, "batch": 8, "learning_rate": 2e-3, "dropout": 0.1, "threads": 1, "validation_lists": 0,
    "test_lists": -1,
}  # fmt: skip
SHUFFLED = {"shuffle": True, "incoming_rank": True}
# Of ten candidates a model of this size names some twice when nothing holds it; of four, each once now and then.
FOUR = Job(
    "four", "SFT, ranking alone, lists of four", BASE,
    (("traces", {"sampling": "rejection", "list_size": 4}), ("sft", SMALL_SFT | {"epochs": 6})),
    "midtrain",
)  # fmt: skip
# One that has seen copies as well can write a valid answer without thought.
COPIER = Job(
    "copier", "SFT, ranking alone, half of it copies", FOUR.folder, (("sft", SMALL_SFT | {"epochs": 3}),), COPIES
)  # fmt: skip
SMALL = SHORT | {"list_size": 4, "learning_rate": 3e-4}
FREE = {"constrained": False}
GAMED = {
    start.name: tuple(
        Job(f"{start.name}-{name}", title, start.folder, (("rl", SMALL | keys),))
        for name, title, keys in (
            ("unconditional", "unconditional, free answers", FREE | {"reward": "unconditional"}),
            ("conditional", "conditional, free answers", FREE | {"reward": "conditional"}),
            ("default", "default, free answers", FREE),
            ("constrained", "default, constrained", {}),
            ("ours", "ours: default, constrained, shuffled with ranks", SHUFFLED),
        )
    )
    for start in (COPIER, FOUR)
}
REWARDED = tuple(
    Job(name, title, RANKING.folder, (("rl", settings),))
    for name, title, settings in (
        ("free", "unconditional, free answers", SHORT | {"constrained": False, "reward": "unconditional", "steps": 20}),
        ("conditional-constrained", "conditional, constrained", SHORT | {"reward": "conditional"}),
        ("default-constrained", "default, constrained", SHORT),
        ("ours", "ours: default, constrained, shuffled with ranks", SHORT | SHUFFLED),
        ("withheld", "default, constrained, order withheld", SHORT | SHUFFLED | {"incoming_rank": False}),
        ("half", "default, constrained, half the steps", SHORT | {"steps": 150}),
    )
)
PLAIN, TEACHER = (next(job for job in REWARDED if job.name == name) for name in ("half", "default-constrained"))
LONG = PROMPT | EVALUATED | {
    "steps": 40, "groups": 8, "samples": 8, "batch": 64, "answer_batch": 64, "redraws": 0, "learning_rate": 1e-4,
}  # fmt: skip
QUALITY = tuple(
    Job(
        f"rl-{sampling}-{'kp' if knowledge else 'plain'}",
        f"RL {sampling}, {'KP' if knowledge else 'no KP'}",
        _tuned(sampling, knowledge=knowledge),
        (("rl", LONG | {"knowledge": knowledge}),),
    )
    for sampling in ("targeted", "rejection")
    for knowledge in (True, False)
)
# On-policy distillation needs a teacher: the same model after a longer training.
TAUGHT = tuple(
    Job(name, title, RANKING.folder, stages, teacher=TEACHER.folder)
    for name, title, stages in (
        (
            "opd-then-rl",
            "OPD, then RL",
            (
                ("opd", SHORT | {"steps": 75, "form": "reverse", "test_lists": 0}),
                ("rl", SHORT | {"steps": 75, "start": "opd"}),
            ),
        ),
        ("opd", "OPD alone", (("opd", SHORT | {"steps": 150, "form": "reverse"}),)),
        ("opd-task", "OPD with the reward", (("opd", SHORT | {"steps": 150, "kl": 1.0}),)),
    )
)
# The second pass, from the model of the papers' best recipe, and for want of long trainings with explanations from each
# of the fine-tuned ones.
DROPPED = {name: value for name, value in SHORT.items() if name not in ("reasoning", "knowledge")} | {"steps": 150}
BYPASSED = Job("bypass", "the second pass", FOLDER / "rl-rejection-kp", (("bypass", DROPPED),), "rl")
BRIEF = tuple(
    replace(
        job,
        name=job.name.replace("rl-", "brief-"),
        title=f"{job.title}, reasoning dropped",
        stages=(("bypass", DROPPED | {"start": "sft", "knowledge": job.name.endswith("kp")}),),
    )
    for job in QUALITY
)
JOBS = (RANKING, FOUR, COPIER, *GAMED[COPIER.name], *GAMED[FOUR.name], *REWARDED, *BRIEF, *QUALITY, *TAUGHT, BYPASSED)
