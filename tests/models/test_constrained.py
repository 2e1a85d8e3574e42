import numpy as np
import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from gr2.decoding import CandidateDecoder, CandidateTrie
from gr2.decoding.reference_generate import reference_generate
from gr2.decoding.tokens import CodeVocabulary
from gr2.models.constrained import RankingProcessor, constrained_log_probs, pad_allowed

LEVELS, SIZE, EOS, PAD = 3, 4, 0, 1
PLAIN = CodeVocabulary(np.random.default_rng(3).permutation(LEVELS * SIZE).reshape(LEVELS, SIZE) + 7, EOS)
AROUND = CodeVocabulary(PLAIN.tokens, EOS, begin=(2,), end=(3, 4), separator=(5,))
PROMPTS = [[6, 8, 9, 6], [10, 6], [6, 11, 12]]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=24,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=256,
        initializer_range=0.6,
        bos_token_id=None,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
    return Qwen3ForCausalLM(config).eval()


def slates(sizes=(9, 5, 12)):
    generator = np.random.default_rng(7)
    codes = [generator.integers(0, SIZE, (size, LEVELS)).astype(np.uint16) for size in sizes]
    return codes, [CandidateTrie(each, np.ones(len(each), bool), SIZE) for each in codes]


def batch():
    width = max(len(prompt) for prompt in PROMPTS)
    ids = torch.tensor([[PAD] * (width - len(prompt)) + prompt for prompt in PROMPTS])
    return ids, (ids != PAD).long()


def generate(model, processor, vocabulary=PLAIN, items=12, **options):
    ids, attention = batch()
    torch.manual_seed(5)
    settings = {"do_sample": False, "max_new_tokens": vocabulary.length(items), "top_k": 0, **options}
    return model.generate(ids, attention_mask=attention, logits_processor=[processor], **settings)


@torch.no_grad()
def next_logits(model, tokens):
    """(N,) from a pass over all tokens, without a cache."""
    return model(torch.tensor([tokens])).logits[0, -1].float()


def written(vocabulary, codes):
    """The tokens of a ranking's codes so far, up to where the next code is due."""
    tokens = [*vocabulary.begin]
    for number, code in enumerate(codes):
        tokens.append(int(vocabulary.tokens[number % LEVELS, code]))
        if number % LEVELS == LEVELS - 1:
            tokens += [*vocabulary.end, *vocabulary.separator, *vocabulary.begin]
    return tokens


def finished(vocabulary, codes):
    """The tokens of a whole ranking."""
    tokens = written(vocabulary, codes)
    return [*tokens[: len(tokens) - len(vocabulary.separator) - len(vocabulary.begin)], vocabulary.eos]


def continuations(sequences):
    """What each row emitted, up to `eos`."""
    rows = sequences[:, max(len(prompt) for prompt in PROMPTS) :].tolist()
    return [row[: row.index(EOS) + 1] for row in rows]


def reference(model, vocabulary, prompt, codes, **options):
    def logits_of(context):
        tokens = [*prompt, *written(vocabulary, context)]
        return next_logits(model, tokens)[vocabulary.tokens[len(context) % LEVELS]].numpy()

    return reference_generate(codes, np.ones(len(codes), bool), logits_of, **options)


class TestGenerate:
    @pytest.mark.parametrize("vocabulary", [PLAIN, AROUND], ids=["plain", "around"])
    @pytest.mark.parametrize("choose", ["model", "greedy", "sample"])
    def test_tokens_are_those_of_a_loop_over_the_model(self, model, vocabulary, choose):
        codes, tries = slates()
        processor = RankingProcessor(tries, vocabulary, choose=choose, seed=11)
        sequences = generate(model, processor, vocabulary)
        rankings = processor.rankings(sequences)
        mode = "sample" if choose == "sample" else "greedy"
        for row, (prompt, each) in enumerate(zip(PROMPTS, codes, strict=True)):
            expected = reference(model, vocabulary, prompt, each, mode=mode, seed=11 + row)
            assert continuations(sequences)[row] == finished(vocabulary, expected.codes)
            assert rankings[row].tolist() == expected.order
            assert sorted(rankings[row].tolist()) == list(range(len(each)))

    def test_sampling_by_generate_is_that_of_a_loop_with_its_draws(self, model):
        """Our own loop: a full pass for each token, the mask of a second decoder, and the same draws of torch."""
        _, tries = slates()
        processor = RankingProcessor(tries, PLAIN)
        sequences = generate(model, processor, do_sample=True, temperature=0.7)
        torch.manual_seed(5)
        decoders, rows = [CandidateDecoder(trie) for trie in tries], [list(prompt) for prompt in PROMPTS]
        queues = [decoder.next()[0].tolist() for decoder in decoders]
        ended = [False] * 3
        for _ in range(max(len(row) for row in continuations(sequences))):
            scores = torch.full((3, 24), -torch.inf)
            for row, (decoder, queue) in enumerate(zip(decoders, queues, strict=True)):
                level = (len(rows[row]) - len(PROMPTS[row])) % LEVELS
                allowed = queue[:1] or decoder.next()[1].tolist()
                tokens = [EOS] if decoder.done and not queue else PLAIN.tokens[level, allowed].tolist()
                scores[row, tokens] = next_logits(model, rows[row])[tokens]
            drawn = torch.multinomial(torch.softmax(scores / 0.7, -1), 1)[:, 0].tolist()
            for row, token in enumerate(drawn):
                if not ended[row]:
                    level = (len(rows[row]) - len(PROMPTS[row])) % LEVELS
                    rows[row].append(token)
                    ended[row] = token == EOS
                    if queues[row]:
                        queues[row].pop(0)
                    elif not ended[row]:
                        decoders[row].accept(int(np.flatnonzero(PLAIN.tokens[level] == token)[0]))
                        queues[row] = decoders[row].next()[0].tolist()[1:]
        assert all(ended)
        assert continuations(sequences) == [row[len(prompt) :] for row, prompt in zip(rows, PROMPTS, strict=True)]
        for ranking, decoder in zip(processor.rankings(sequences), decoders, strict=True):
            assert ranking.tolist() == decoder.ranking().tolist()

    def test_several_sequences_for_a_request_differ_and_are_all_permutations(self, model):
        codes, tries = slates()
        processor = RankingProcessor(tries, AROUND)
        sequences = generate(model, processor, AROUND, do_sample=True, num_return_sequences=4)
        rankings = [tuple(ranking.tolist()) for ranking in processor.rankings(sequences)]
        for request, each in enumerate(codes):
            group = rankings[4 * request : 4 * request + 4]
            assert all(sorted(ranking) == list(range(len(each))) for ranking in group)
            assert len(set(group)) > 1

    def test_only_eos_follows_the_last_item(self, model):
        _, tries = slates()
        processor = RankingProcessor(tries, AROUND, top_n=2)
        sequences = generate(model, processor, AROUND)
        length = AROUND.length(2)
        assert [len(row) for row in continuations(sequences)] == [length] * 3
        assert sequences.shape[1] == 4 + length
        scores = [np.arange(trie.size, dtype=np.float32) for trie in tries]
        for row, ranking in enumerate(processor.rankings(sequences, scores)):
            assert ranking[2:].tolist() == [c for c in range(tries[row].size - 1, -1, -1) if c not in ranking[:2]]

    @pytest.mark.parametrize("known", [np.zeros(3, bool), np.zeros(0, bool)])
    def test_without_candidates_only_eos_is_emitted(self, model, known):
        tries = [CandidateTrie(np.zeros((len(known), LEVELS), np.uint16), known, SIZE)] * 3
        processor = RankingProcessor(tries, AROUND)
        sequences = generate(model, processor, AROUND)
        assert continuations(sequences) == [[EOS]] * 3
        assert [ranking.tolist() for ranking in processor.rankings(sequences)] == [list(range(len(known)))] * 3

    def test_a_ranking_cut_short_is_completed_by_scores(self, model):
        _, tries = slates()
        processor = RankingProcessor(tries, PLAIN)
        sequences = generate(model, processor, max_new_tokens=LEVELS + 1)
        with pytest.raises(ValueError, match="scores are needed"):
            processor.rankings(sequences)
        scores = [np.arange(trie.size, dtype=np.float32) for trie in tries]
        whole = RankingProcessor(tries, PLAIN)
        expected = whole.rankings(generate(model, whole))
        for ranking, full, row in zip(processor.rankings(sequences, scores), expected, processor.rows, strict=True):
            emitted = len(row.stream.decoder.order)
            assert 1 <= emitted < len(ranking)
            assert ranking[:emitted].tolist() == full[:emitted].tolist()
            assert np.all(np.diff(ranking[emitted:]) < 0)


class TestLogProbs:
    @pytest.mark.parametrize("choose", ["model", "sample"])
    def test_they_are_those_of_the_policy_that_generated(self, model, choose):
        codes, tries = slates()
        processor = RankingProcessor(tries, AROUND, choose=choose, temperature=0.8)
        sequences = generate(model, processor, AROUND, do_sample=True, temperature=0.8)
        processor.rankings(sequences)
        new = sequences[:, 4:]
        index, counts = pad_allowed(processor.allowed, new.shape[1])
        attention = torch.cat([batch()[1], torch.ones_like(new)], 1)
        with torch.no_grad():
            logits = model(sequences, attention_mask=attention).logits[:, 3:-1]
        log_probs = constrained_log_probs(logits, new, index, counts, temperature=0.8)
        for row, (prompt, each) in enumerate(zip(PROMPTS, codes, strict=True)):
            decoder, context = CandidateDecoder(tries[row], temperature=0.8), []
            wanted = [int(np.flatnonzero(AROUND.tokens[0] == t)[0]) for t in new[row].tolist() if t in AROUND.tokens[0]]
            path = [code for candidate in processor.rows[row].stream.decoder.order for code in each[candidate].tolist()]
            assert path[::LEVELS] == wanted
            while not decoder.done:
                context += decoder.next()[0].tolist()
                tokens = [*prompt, *written(AROUND, context)]
                at = AROUND.tokens[len(context) % LEVELS]
                decoder.accept(path[len(context)], next_logits(model, tokens)[at].numpy())
            assert float(log_probs[row].sum()) == pytest.approx(float(decoder.log_probs().sum()), abs=1e-3)
            ended = len(continuations(sequences)[row])
            assert [len(allowed) for allowed in processor.allowed[row]] == counts[row, :ended].tolist()
            assert counts[row, ended:].eq(0).all()
            assert log_probs[row, ended:].eq(0).all()

    def test_they_are_the_softmax_over_a_masked_vocabulary_and_have_its_gradient(self):
        generator = np.random.default_rng(0)
        allowed = [[generator.permutation(9)[: generator.integers(1, 9)] for _ in range(4)], [np.array([3])]]
        tokens = torch.zeros(2, 4, dtype=torch.int64)
        mask = torch.zeros(2, 4, 9)
        for row, sets in enumerate(allowed):
            for column, each in enumerate(sets):
                mask[row, column] = -torch.inf
                tokens[row, column] = int(each[0])
                mask[row, column, torch.from_numpy(each)] = 0.0
        logits = torch.randn(2, 4, 9, generator=torch.Generator().manual_seed(0), requires_grad=True)
        result = constrained_log_probs(logits, tokens, *pad_allowed(allowed, 4), temperature=0.5)
        (gradient,) = torch.autograd.grad(result.sum(), logits)
        rows = [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0)]
        expected = [((logits / 0.5 + mask).log_softmax(-1))[row, column, tokens[row, column]] for row, column in rows]
        (expected_gradient,) = torch.autograd.grad(sum(expected), logits)
        torch.testing.assert_close(result[[r for r, _ in rows], [c for _, c in rows]], torch.stack(expected))
        torch.testing.assert_close(gradient, expected_gradient)
        assert result[1, 1:].eq(0).all()


class TestArguments:
    def call(self, processor, ids, scores=None):
        return processor(torch.tensor(ids), torch.zeros(len(ids), 24) if scores is None else scores)

    @pytest.mark.parametrize("value", [torch.nan, torch.inf])
    @pytest.mark.parametrize("choose", ["model", "sample"])
    def test_logits_that_are_not_finite_are_named(self, value, choose):
        scores = torch.zeros(3, 24)
        scores[1, 17] = value
        with pytest.raises(ValueError, match=r"logits row 1 column 17 is (nan|inf)"):
            self.call(RankingProcessor(slates()[1], PLAIN, choose=choose), [[6]] * 3, scores)

    @pytest.mark.parametrize("choose", ["model", "sample"])
    def test_if_all_is_masked_the_row_ends(self, choose):
        processor, scores = RankingProcessor(slates()[1], PLAIN, choose=choose), torch.zeros(3, 24)
        scores[1] = -torch.inf
        result = self.call(processor, [[6]] * 3, scores)
        assert torch.isfinite(result[1]).nonzero()[:, 0].tolist() == [EOS]
        others = [int(result[row].argmax()) for row in (0, 2)]
        result = self.call(processor, [[6, others[0]], [6, EOS], [6, others[1]]])
        assert processor.allowed[1][0].tolist() == [EOS]
        assert torch.isfinite(result[1]).nonzero()[:, 0].tolist() == [EOS]

    def test_a_token_that_was_not_allowed_is_named(self):
        processor = RankingProcessor(slates()[1], PLAIN)
        self.call(processor, [[6]] * 3)
        with pytest.raises(ValueError, match="row 0: token 23 is not allowed at level 0"):
            self.call(processor, [[6, 23]] * 3)
        processor = RankingProcessor(slates()[1], AROUND)
        self.call(processor, [[6]] * 3)
        with pytest.raises(ValueError, match="row 1: token 3 is not allowed; expected 2"):
            self.call(processor, [[6, 2], [6, 3], [6, 2]])

    def test_a_second_generation_is_refused(self):
        processor = RankingProcessor(slates()[1], AROUND)
        self.call(processor, [[6]] * 3)
        for ids in ([[6]] * 3, [[7, 2]] * 3, [[6, 2, 3]] * 3):
            with pytest.raises(ValueError, match="a processor serves one call of generate"):
                self.call(processor, ids)

    def test_rows_that_do_not_fit_the_requests_are_refused(self):
        for tries in (slates()[1], []):
            with pytest.raises(ValueError, match=f"rows must be a multiple of the {len(tries)} requests, got 4"):
                self.call(RankingProcessor(tries, PLAIN), [[6]] * 4)

    def test_an_unknown_way_to_choose_is_named(self):
        with pytest.raises(ValueError, match="choose must be 'model', 'greedy' or 'sample', got 'beam'"):
            RankingProcessor(slates()[1], PLAIN, choose="beam")
