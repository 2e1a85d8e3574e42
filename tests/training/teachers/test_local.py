"""A language model of transformers as a teacher, read from a folder."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gr2.errors import ArtifactError, ConfigError
from gr2.models.reasoner import SidSpec, from_scratch
from gr2.training.teachers.local import LocalTeacher
from gr2.training.teachers.teacher import Reply, TeacherRequest


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen3 that knows nothing."""
    path = tmp_path_factory.mktemp("model")
    texts = [f"the user bought item {number} and then another" for number in range(50)]
    from_scratch("tiny", texts, SidSpec(3, 8, "0" * 64), seed=0).save(path)
    return path


def requests(count: int) -> list[TeacherRequest]:
    words = ["item", "user bought another item and then", "the"]
    return [TeacherRequest(row, 0, ({"role": "user", "content": words[row % 3]},), 1) for row in range(count)]


def ask(
    folder: Path, wanted: list[TeacherRequest], *, batch: int = 4, seed: int = 0, max_tokens: int = 12
) -> list[Reply]:
    teacher = LocalTeacher(folder, batch=batch, temperature=1.0, max_tokens=max_tokens, seed=seed)
    return [reply for _, reply in teacher.answer(wanted)]


def test_every_request_is_answered_with_its_tokens(folder: Path) -> None:
    wanted = requests(7)
    replies = ask(folder, wanted)
    assert len(replies) == 7
    for reply in replies:
        assert reply.completion_tokens is not None
        assert 1 <= reply.completion_tokens <= 12
        assert reply.prompt_tokens is not None
        assert (reply.reason == "truncated") == (
            reply.completion_tokens == 12 and reply.reason != "empty"
        ) or reply.text
        assert reply.cost == 0
    assert replies[1].prompt_tokens > replies[0].prompt_tokens  # type: ignore[operator]


def test_a_prompt_and_an_answer_that_the_model_cannot_read_are_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"up to 4,096 \(max_tokens\) are more than the 4,096 that the model in"):
        ask(folder, requests(1), max_tokens=4096)


def test_what_is_drawn_does_not_depend_on_the_batch(folder: Path) -> None:
    wanted = requests(6)
    assert ask(folder, wanted, batch=1) == ask(folder, wanted, batch=6) == ask(folder, wanted, batch=4)
    assert ask(folder, wanted[3:], batch=2) == ask(folder, wanted)[3:]


def test_attempts_and_seeds_differ(folder: Path) -> None:
    wanted = requests(3)
    first = ask(folder, wanted)
    assert first != ask(folder, [replace(each, attempt=1) for each in wanted])
    assert first != ask(folder, wanted, seed=1)


def test_tokens_are_drawn_from_the_models_distribution(folder: Path) -> None:
    teacher = LocalTeacher(folder, batch=250, temperature=1.0, max_tokens=1, seed=0)
    (request,) = requests(1)
    tokenizer, model = teacher._tokenizer, teacher._model
    inputs = tokenizer.apply_chat_template(
        list(request.messages), add_generation_prompt=True, enable_thinking=False, return_dict=True, return_tensors="pt"
    )
    with torch.no_grad():
        share = model(**inputs).logits[0, -1].softmax(-1)
    drawn = Counter(
        reply.text for _, reply in teacher.answer([replace(request, attempt=number) for number in range(3000)])
    )
    texts = Counter[str]()
    for token, probability in enumerate(share.tolist()):
        texts[tokenizer.decode([token], skip_special_tokens=True)] += probability  # type: ignore[assignment]
    for text, probability in texts.most_common(20):
        assert drawn[text] / 3000 == pytest.approx(probability, abs=0.02)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"no config\.json"):
        ask(tmp_path, [])


def test_a_model_without_a_chat_template_is_refused(folder: Path, tmp_path: Path) -> None:
    for path in folder.iterdir():
        if path.name != "chat_template.jinja":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(ConfigError, match="no chat template"):
        ask(tmp_path, [])
