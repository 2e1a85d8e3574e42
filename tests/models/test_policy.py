from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers import Gemma2Config, Gemma2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from gr2.errors import ConfigError
from gr2.models import policy
from gr2.models.policy import Anchor, Choices, add_choice_scores, anchor_of, choice_scores

VOCABULARY, DIM, ROWS = 11, 6, 7


def choices() -> Choices:
    """Seven choices: two over the vocabulary, one over most of it, four among two to four tokens."""
    sets = [[], [3, 5], [], [1, 2, 9, 10], [], [0, 10], [4, 7, 8]]
    tokens = [2, 5, 7, 9, 0, 0, 7]
    allowed = torch.zeros(ROWS, 4, dtype=torch.int64)
    for row, members in enumerate(sets):
        allowed[row, : len(members)] = torch.tensor(members, dtype=torch.int64)
    counts = torch.tensor([len(members) for members in sets])
    counts[4] = -1
    return Choices(torch.tensor(tokens), allowed, counts, torch.ones(ROWS, dtype=torch.bool), outside(VOCABULARY, 3, 8))


def outside(vocabulary: int, *tokens: int) -> Tensor:
    """Nothing is outside of the first set; `tokens` are outside of the second."""
    rows = torch.zeros(2, vocabulary, dtype=torch.bool)
    rows[1, list(tokens)] = True
    return rows


def by_definition(logits: Tensor, other: Tensor, made: Choices, form: str) -> tuple[Tensor, Tensor, Tensor]:
    columns = []
    for row in range(ROWS):
        count = int(made.counts[row])
        members = made.allowed[row, :count] if count > 0 else (~made.outside[-count]).nonzero()[:, 0]
        p, q = (each[row, members].log_softmax(0) for each in (logits, other))
        token = int((members == made.tokens[row]).nonzero())
        left, right = (p, q) if form == "reverse" else (q, p)
        columns.append((p[token], -(p.exp() * p).sum(), (left.exp() * (left - right)).sum()))
    first, second, third = zip(*columns, strict=True)
    return torch.stack(first), torch.stack(second), torch.stack(third)


@pytest.fixture
def parts() -> tuple[nn.Linear, nn.Linear, Tensor, Tensor]:
    torch.manual_seed(0)
    head, teacher = nn.Linear(DIM, VOCABULARY, bias=False), nn.Linear(3, VOCABULARY, bias=False)
    return head, teacher.requires_grad_(False), torch.randn(ROWS, DIM, requires_grad=True), torch.randn(ROWS, 3)


@pytest.mark.parametrize("form", ["reverse", "forward"])
@pytest.mark.parametrize("logits", [policy.LOGITS, 2 * VOCABULARY, 1])
def test_scores_are_those_of_the_softmax_over_each_set(
    parts: tuple[nn.Linear, nn.Linear, Tensor, Tensor], form: str, logits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    head, teacher, hidden, other = parts
    monkeypatch.setattr(policy, "LOGITS", logits)
    made = choices()
    anchor = Anchor(teacher, other, form)  # type: ignore[arg-type]
    found = choice_scores(head, hidden, made, temperature=0.7, anchor=anchor)
    expected = by_definition(head(hidden) / 0.7, teacher(other) / 0.7, made, form)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs.detach() if not ours.requires_grad else theirs)
    wanted = [hidden, head.weight]
    weights = torch.linspace(-1, 1, ROWS)
    ours = torch.autograd.grad((weights * (found[0] + 2 * found[2])).sum(), wanted)
    theirs = torch.autograd.grad((weights * (expected[0] + 2 * expected[2])).sum(), wanted)
    torch.testing.assert_close(ours, theirs)


class Counting(nn.Linear):
    """Notes how many logits it made at a time."""

    made: list[int]

    def forward(self, hidden: Tensor) -> Tensor:
        logits = super().forward(hidden)
        self.made.append(logits.numel())
        return logits


def test_no_more_logits_exist_at_a_time_than_stated_nor_are_any_kept_for_the_way_back(
    parts: tuple[nn.Linear, nn.Linear, Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, teacher, hidden, other = parts
    monkeypatch.setattr(policy, "LOGITS", 2 * VOCABULARY)
    head = Counting(DIM, VOCABULARY, bias=False)
    head.made = []
    kept: list[tuple[int, ...]] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: (kept.append(tuple(tensor.shape)), tensor)[1], lambda x: x
    ):
        scores = choice_scores(head, hidden, choices(), anchor=Anchor(teacher, other))
    (scores[0].sum() + scores[2].sum()).backward()
    # Two rows a block, of three choices among many and four among few; there and back.
    assert len(head.made) == 2 * 4
    assert max(head.made) == 2 * VOCABULARY
    assert not [shape for shape in kept if len(shape) == 2 and shape[1] == VOCABULARY]


def test_a_set_of_all_tokens_is_the_whole_vocabulary(parts: tuple[nn.Linear, nn.Linear, Tensor, Tensor]) -> None:
    head, _, hidden, _ = parts
    every = torch.arange(VOCABULARY).expand(ROWS, -1)
    tokens = choices().tokens
    made = torch.ones(ROWS, dtype=torch.bool)
    none = outside(VOCABULARY)
    whole = choice_scores(head, hidden, Choices(tokens, every, torch.zeros(ROWS, dtype=torch.int64), made, none))
    listed = choice_scores(head, hidden, Choices(tokens, every, torch.full((ROWS,), VOCABULARY), made, none))
    torch.testing.assert_close(whole[:2], listed[:2])


def tiny(vocabulary: int = 40, dim: int = 16, seed: int = 0) -> Qwen3ForCausalLM:
    torch.manual_seed(seed)
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=vocabulary, hidden_size=dim, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=1, head_dim=8, tie_word_embeddings=True, bos_token_id=None, eos_token_id=1,
            pad_token_id=0,
        )
    ).eval()  # fmt: skip


def test_model_scores_the_same_however_far_it_is_padded() -> None:
    model = tiny()
    add_choice_scores(model)
    tokens = torch.tensor([[7, 8, 9]])
    sets = Choices(
        tokens, torch.zeros(1, 3, 1, dtype=torch.int64), torch.zeros(1, 3, dtype=torch.int64), tokens > 0, outside(40)
    )
    prompt = torch.tensor([[5, 6]])
    ids = torch.cat([prompt, tokens], 1)
    plain = model(ids, torch.ones_like(ids), choices=sets, temperature=1.0)
    padded_ids = torch.cat([torch.zeros(1, 3, dtype=torch.int64), ids], 1)
    mask = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1]])
    padded = model(padded_ids, mask, choices=sets, temperature=1.0)
    expected = model(ids).logits[:, 1:4].log_softmax(-1).gather(-1, tokens[..., None]).squeeze(-1)
    torch.testing.assert_close(plain.log_probs, expected)
    torch.testing.assert_close(padded.log_probs, expected)


def test_a_prompt_in_common_is_read_once_with_the_same_scores_and_gradients() -> None:
    model, teacher = tiny(), tiny(dim=24, seed=1)
    add_choice_scores(model)
    prompts = torch.tensor([[0, 0, 5, 6], [9, 4, 2, 7]]).repeat_interleave(3, 0)
    tokens = torch.randint(2, 40, (6, 3), generator=torch.Generator().manual_seed(0))
    made = torch.tensor([[1, 1, 1], [1, 0, 1], [1, 1, 0]] * 2, dtype=torch.bool)
    sets = Choices(tokens, torch.zeros(6, 3, 1, dtype=torch.int64), torch.zeros_like(tokens), made, outside(40))
    ids = torch.cat([prompts, tokens], 1)
    # The third answer of each prompt is shorter.
    mask = torch.cat([(prompts > 0).long(), torch.tensor([[1, 1, 1], [1, 1, 1], [1, 1, 0]] * 2)], 1)
    found = []
    for shared in (1, 3):
        anchor = anchor_of(teacher, ids, mask, sets, "reverse", shared=shared)
        scores = model(ids, mask, choices=sets, temperature=1.0, anchor=anchor, shared=shared)
        loss = (scores.log_probs * torch.linspace(-1, 1, 3)).sum() + scores.divergence.sum()
        found.append((*scores, *torch.autograd.grad(loss, list(model.parameters()))))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_what_was_not_chosen_scores_nothing_and_still_has_gradients() -> None:
    model = tiny()
    add_choice_scores(model)
    tokens = torch.tensor([[7, 8, 9]])
    made = torch.zeros_like(tokens, dtype=torch.bool)
    none = Choices(tokens, tokens[..., None], torch.ones_like(tokens), made, outside(40))
    ids = torch.cat([torch.tensor([[5, 6]]), tokens], 1)
    scores = model(ids, torch.ones_like(ids), choices=none, temperature=1.0)
    assert scores.log_probs.tolist() == [[0.0, 0.0, 0.0]]
    scores.log_probs.sum().backward()
    assert all(not weight.grad.any() for weight in model.parameters() if weight.grad is not None)


def test_generation_is_what_it_was() -> None:
    model = tiny()
    ids = torch.tensor([[5, 6, 7]])
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 5, "do_sample": False}
    before = model.generate(ids, **options)
    add_choice_scores(model)
    assert torch.equal(model.generate(ids, **options), before)


@pytest.mark.parametrize("rows", [48, 36])
def test_anchor_of_another_size_and_padded_vocabulary(rows: int) -> None:
    """Over the tokens of a set that both have rows for."""
    model, teacher = tiny(), tiny(vocabulary=rows, dim=24, seed=1)
    add_choice_scores(model)
    tokens = torch.tensor([[7, 8]])
    made = torch.ones(1, 2, dtype=torch.bool)
    sets = Choices(tokens, torch.tensor([[[7, 9], [0, 0]]]), torch.tensor([[2, -1]]), made, outside(40, 3))
    ids = torch.cat([torch.tensor([[5, 6]]), tokens], 1)
    mask = torch.ones_like(ids)
    anchor = anchor_of(teacher, ids, mask, sets, "reverse")
    assert not anchor.hidden.requires_grad
    found = model(ids, mask, choices=sets, temperature=1.0, anchor=anchor).divergence
    both = min(rows, 40)
    mine, theirs = (each(ids).logits[0, 1:3, :both] for each in (model, teacher))
    p, q = (each[0, [7, 9]].log_softmax(0) for each in (mine, theirs))
    torch.testing.assert_close(found[0, 0], (p.exp() * (p - q)).sum())
    inside = [token for token in range(both) if token != 3]
    p, q = (each[1, inside].log_softmax(0) for each in (mine, theirs))
    torch.testing.assert_close(found[0, 1], (p.exp() * (p - q)).sum())


def test_models_that_change_their_logits_are_refused() -> None:
    config = Gemma2Config(
        vocab_size=20, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, head_dim=8, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    with pytest.raises(ConfigError, match=r"final_logit_softcapping.*not supported"):
        add_choice_scores(Gemma2ForCausalLM(config))
