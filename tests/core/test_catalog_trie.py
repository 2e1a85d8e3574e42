import contextlib
import copy
import itertools
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr2.decoding import CatalogTrie, ItemFilter
from gr2.decoding.reference_retrieve import reference_levels

HEADER_BYTES = 128
SHAPES = [(1, 1), (1, 9), (2, 3), (3, 2), (4, 4), (4, 256), (4, 257), (5, 7), (6, 65536), (7, 3), (8, 2), (8, 65536)]


def sorted_rows(codes):
    return codes[np.lexsort(codes.T[::-1])] if len(codes) else codes


@st.composite
def catalogues(draw, shapes=SHAPES, most=60):
    """Sorted codes (N, L) and level size. Codes come from a few values, so that paths collide at every depth."""
    levels, level_size = draw(st.sampled_from(shapes))
    alphabet = draw(st.lists(st.integers(0, level_size - 1), min_size=1, max_size=4))
    row = st.lists(st.sampled_from(alphabet), min_size=levels, max_size=levels)
    codes = draw(st.lists(row, max_size=most))
    return sorted_rows(np.array(codes, np.uint16).reshape(-1, levels)), level_size


def assert_same_trie(trie, codes):
    """The edges of each level lead to the prefixes of the next depth, in order, and leaves hold their items."""
    levels = reference_levels(codes)
    for level, (above, below) in enumerate(itertools.pairwise(levels)):
        offsets, edge_codes = trie.level(level)
        assert (offsets.dtype, edge_codes.dtype) == (np.int64, np.uint16)
        children = [[prefix for prefix in below if prefix[:-1] == node] for node in above]
        assert offsets.tolist() == np.cumsum([0, *map(len, children)]).tolist()
        assert edge_codes.tolist() == [prefix[-1] for each in children for prefix in each]
    rows = [tuple(row) for row in codes.tolist()]
    assert trie.item_offsets().tolist() == np.cumsum([0, *(rows.count(leaf) for leaf in levels[-1])]).tolist()
    assert (trie.size, len(trie), trie.levels) == (len(codes), len(codes), codes.shape[1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("trie")


@pytest.fixture
def small(tmp_path):
    """A trie file of 40 items, two of which share all codes, and its codes."""
    codes = np.random.default_rng(0).integers(0, 5, (40, 3)).astype(np.uint16)
    codes[1] = codes[0]
    codes = sorted_rows(codes)
    CatalogTrie(codes, 256).save(tmp_path / "trie.bin")
    return tmp_path / "trie.bin", codes


class TestStructure:
    @settings(max_examples=max(300, settings.default.max_examples), deadline=None)
    @given(catalogue=catalogues())
    def test_nodes_and_items_are_those_of_the_reference(self, catalogue):
        codes, level_size = catalogue
        trie = CatalogTrie(codes, level_size)
        assert_same_trie(trie, codes)
        assert trie.level_size == level_size

    @pytest.mark.parametrize("levels", range(1, 9))
    @pytest.mark.parametrize("level_size", [3, 3000])
    def test_many_items_under_few_first_codes(self, levels, level_size):
        generator = np.random.default_rng(levels)
        codes = sorted_rows((level_size - 1 - generator.integers(0, 3, (200, levels))).astype(np.uint16))
        assert_same_trie(CatalogTrie(codes, level_size), codes)

    @settings(max_examples=60, deadline=None)
    @given(catalogue=catalogues())
    def test_a_file_holds_the_same_trie(self, folder, catalogue):
        codes, level_size = catalogue
        trie = CatalogTrie(codes, level_size)
        trie.save(folder / "same")
        assert (folder / "same").stat().st_size == trie.byte_size
        opened = CatalogTrie.open(folder / "same")
        assert_same_trie(opened, codes)
        assert opened.level_size == level_size
        opened.save(folder / "again")
        assert (folder / "again").read_bytes() == (folder / "same").read_bytes()

    @pytest.mark.parametrize("fan_out", [1, 50, 1_000, 60_000])
    def test_ranges_of_every_width_are_kept(self, tmp_path, fan_out):
        """Nodes with few, many and very many children, side by side."""
        generator = np.random.default_rng(fan_out)
        first = np.repeat(np.arange(200), generator.integers(1, 3, 200))
        first = np.concatenate([first, np.full(fan_out, 100)])
        second = generator.integers(0, 65536, len(first))
        codes = sorted_rows(np.stack([first, second, second % 7], axis=1).astype(np.uint16))
        CatalogTrie(codes, 65536).save(tmp_path / "t")
        trie = CatalogTrie.open(tmp_path / "t")
        keys, counts = np.unique(codes, axis=0, return_counts=True)
        assert np.array_equal(trie.item_offsets(), np.concatenate([[0], np.cumsum(counts)]))
        offsets, edge_codes = trie.level(1)
        pairs = np.unique(codes[:, :2], axis=0)
        assert np.array_equal(edge_codes, pairs[:, 1])
        assert np.array_equal(offsets, np.searchsorted(pairs[:, 0], np.append(np.unique(pairs[:, 0]), 65536)))
        assert np.array_equal(trie.level(2)[1], keys[:, 2])

    def test_a_leaf_with_very_many_items_is_one_range(self):
        codes = np.zeros((200_000, 2), np.uint16)
        codes[-1] = 1
        assert CatalogTrie(codes, 2).item_offsets().tolist() == [0, 199_999, 200_000]

    def test_codes_take_a_byte_up_to_256_and_distinct_items_no_ranges(self):
        codes = np.arange(256, dtype=np.uint16)[:, None]
        assert CatalogTrie(codes, 256).byte_size == HEADER_BYTES + 256
        assert CatalogTrie(codes, 257).byte_size == HEADER_BYTES + 512

    def test_strided_codes_are_read_in_their_order(self):
        codes = np.array([[3, 9, 1], [2, 9, 0], [1, 9, 5]], np.uint16)[::-1, ::2]
        assert_same_trie(CatalogTrie(codes, 10), codes.copy())

    @pytest.mark.parametrize("level_size", [256, 65536])
    @pytest.mark.parametrize("levels", [3, 4, 5])
    @pytest.mark.parametrize("items", [511, 512, 513, 1537])
    def test_more_items_than_are_read_at_once(self, items, levels, level_size):
        generator = np.random.default_rng(items)
        alphabet = generator.choice(level_size, 5, replace=False)
        codes = sorted_rows(generator.choice(alphabet, (items, levels)).astype(np.uint16))
        assert_same_trie(CatalogTrie(codes, level_size), codes)

    @pytest.mark.parametrize("level_size", [256, 300])
    def test_codes_that_a_thread_changes_meanwhile_make_a_trie_or_an_error(self, level_size):
        generator = np.random.default_rng(0)
        codes = sorted_rows(generator.integers(0, 256, (100_000, 4)).astype(np.uint16))
        rows = np.arange(100, len(codes), 37)
        own, other = codes[rows], 255 - codes[rows]
        over = threading.Event()

        def change():
            while not over.is_set():
                codes[rows] = other
                codes[rows] = own
                time.sleep(0.002)

        thread = threading.Thread(target=change)
        thread.start()
        tries, end = [], time.monotonic() + 1.5
        while time.monotonic() < end:
            with contextlib.suppress(ValueError):
                tries.append(CatalogTrie(codes, level_size))
        over.set()
        thread.join()
        assert tries
        for trie, level in itertools.product(tries, range(4)):
            offsets, edges = trie.level(level)
            siblings = np.ones(len(edges), np.bool_)
            siblings[offsets[:-1]] = False
            assert np.all(np.diff(edges.astype(int), prepend=-1)[siblings] > 0)

    def test_a_level_out_of_range_is_refused(self, small):
        trie = CatalogTrie.open(small[0])
        for level in (-1, 3):
            with pytest.raises(ValueError, match=f"level must be 0 to 2, got {level}"):
                trie.level(level)


class TestArguments:
    @settings(max_examples=150, deadline=None)
    @given(catalogue=catalogues([(2, 4), (3, 3), (4, 256), (8, 300)]), data=st.data())
    def test_unsorted_rows_are_refused_by_row_and_level(self, catalogue, data):
        codes, level_size = catalogue
        order = np.array(data.draw(st.permutations(range(len(codes)))), dtype=int)
        shuffled = codes[order]
        rows = [tuple(row) for row in shuffled.tolist()]
        bad = next((i for i in range(1, len(rows)) if rows[i] < rows[i - 1]), None)
        if bad is None:
            assert_same_trie(CatalogTrie(shuffled, level_size), codes)
            return
        level = int(np.flatnonzero(shuffled[bad] != shuffled[bad - 1])[0])
        with pytest.raises(ValueError, match=f"^codes row {bad} level {level} is .* lexicographic order"):
            CatalogTrie(shuffled, level_size)

    @pytest.mark.parametrize(
        ("codes", "level_size", "error", "message"),
        [
            (np.array([[0, 1], [2, 4]], np.uint16), 4, ValueError, "codes row 1 level 1 is 4, level_size is 4"),
            (np.zeros((2, 9), np.uint16), 4, ValueError, "1 to 8 levels, got 9"),
            (np.zeros((2, 0), np.uint16), 4, ValueError, "1 to 8 levels, got 0"),
            (np.zeros((2, 2), np.uint16), 0, ValueError, "level_size must be 1 to 65536, got 0"),
            (np.zeros((2, 2), np.uint16), 65537, ValueError, "level_size must be 1 to 65536, got 65537"),
            (np.zeros((2, 2), np.uint16), 2**32 + 4, ValueError, "level_size must be 1 to 65536"),
            (np.zeros((2, 2), np.int64), 4, TypeError, r"codes must be uint16 \(N, L\), got int64 \(2, 2\)"),
            (np.zeros(2, np.uint16), 4, ValueError, r"codes must be uint16 \(N, L\), got uint16 \(2,\)"),
            ([[1, 2]], 4, TypeError, "codes must be uint16"),
        ],
    )
    def test_wrong_arguments_are_named(self, codes, level_size, error, message):
        with pytest.raises(error, match=message):
            CatalogTrie(codes, level_size)

    def test_attributes_cannot_be_set_and_copies_are_refused(self, small):
        trie = CatalogTrie.open(small[0])
        with pytest.raises(AttributeError):
            trie.size = 3
        with pytest.raises(TypeError):
            copy.copy(trie)
        with pytest.raises(TypeError):
            CatalogTrie.__new__(CatalogTrie)


class TestItemFilter:
    def test_sets_may_repeat_and_be_in_any_order(self, small):
        trie = CatalogTrie.open(small[0])
        rows = np.array([7, 3, 7, 39])
        assert len(ItemFilter(trie, allow=rows)) == 3
        assert ItemFilter(trie, deny=rows).size == 37
        assert ItemFilter(trie, allow=rows, deny=np.array([3, 4])).size == 2
        assert ItemFilter(trie).size == 40
        assert ItemFilter(trie, allow=np.empty(0, np.int64)).size == 0

    @pytest.mark.parametrize("row", [-1, 40, 2**40, -(2**63)])
    def test_a_row_that_the_catalogue_does_not_have_is_named(self, small, row):
        trie = CatalogTrie.open(small[0])
        for name in ("allow", "deny"):
            with pytest.raises(ValueError, match=f"{name} row 1 is {row}, the catalogue has 40 items"):
                ItemFilter(trie, **{name: np.array([0, row])})

    @pytest.mark.parametrize("rows", [[1], np.zeros(2, np.int32), np.zeros((1, 1), np.int64), 5])
    def test_other_arguments_are_refused(self, small, rows):
        with pytest.raises((TypeError, ValueError), match=r"deny must be int64 \(n,\) of item rows"):
            ItemFilter(CatalogTrie.open(small[0]), deny=rows)

    def test_no_trie_is_refused(self):
        with pytest.raises(TypeError):
            ItemFilter(None)


class TestFile:
    def test_no_temporary_file_is_left(self, small):
        assert [entry.name for entry in small[0].parent.iterdir()] == ["trie.bin"]

    def test_replacing_the_file_leaves_an_open_trie_alone(self, small):
        path, codes = small
        trie = CatalogTrie.open(path)
        CatalogTrie(np.zeros((1, 1), np.uint16), 1).save(path)
        assert_same_trie(trie, codes)
        assert len(CatalogTrie.open(path)) == 1

    def test_another_process_maps_the_same_file(self, small):
        program = (
            "import sys\nfrom gr2.decoding import CatalogTrie\n"
            "trie = CatalogTrie.open(sys.argv[1])\nprint(trie.level(2)[1].tolist())\n"
            "print([line.split()[1] for line in open('/proc/self/maps') if line.rstrip().endswith('trie.bin')])\n"
        )
        answer = subprocess.run([sys.executable, "-c", program, small[0]], capture_output=True, text=True, check=True)
        assert answer.stdout.splitlines() == [str(CatalogTrie.open(small[0]).level(2)[1].tolist()), "['r--s']"]

    def test_a_folder_that_does_not_exist_is_an_os_error(self, small, tmp_path):
        with pytest.raises(FileNotFoundError, match="missing"):
            CatalogTrie.open(small[0]).save(tmp_path / "missing" / "t")

    def test_threads_open_and_read_at_once(self, small, in_threads):
        path, codes = small
        wrong = []

        def work(_):
            for _ in range(50):
                found = CatalogTrie.open(path).level(0)[1]
                if not np.array_equal(found, np.unique(codes[:, 0])):
                    wrong.append(found)

        in_threads(4, work)
        assert not wrong


class TestDamage:
    """Every damaged file is refused with the file's name and a reason; none crashes."""

    @pytest.mark.parametrize("bit", [0, 7])
    def test_any_flipped_byte_is_refused(self, small, bit):
        path, _ = small
        content = path.read_bytes()
        with path.open("r+b", buffering=0) as file:
            for position, byte in enumerate(content):
                os.pwrite(file.fileno(), bytes([byte ^ 1 << bit]), position)
                with pytest.raises(
                    ValueError, match=r"trie.bin: (damaged|not a catalogue trie|written on|catalogue trie v)"
                ):
                    CatalogTrie.open(path)
                os.pwrite(file.fileno(), bytes([byte]), position)
        assert len(CatalogTrie.open(path)) == 40

    def test_a_truncation_at_any_byte_is_refused(self, small):
        path, _ = small
        for length in reversed(range(path.stat().st_size)):
            os.truncate(path, length)
            with pytest.raises(ValueError, match=r"trie.bin: (damaged|not a catalogue trie)"):
                CatalogTrie.open(path)

    def test_appended_bytes_are_refused(self, small):
        small[0].write_bytes(small[0].read_bytes() + b"\0")
        with pytest.raises(ValueError, match="size is not what its header says"):
            CatalogTrie.open(small[0])

    def test_a_newer_version_says_so(self, small):
        content = bytearray(small[0].read_bytes())
        content[8:12] = (2).to_bytes(4, "little")
        small[0].write_bytes(content)
        with pytest.raises(ValueError, match="catalogue trie version 2, and this gr2 reads version 1"):
            CatalogTrie.open(small[0])

    @settings(max_examples=200, deadline=None)
    @given(body=st.binary(max_size=600), keep=st.booleans())
    def test_random_bodies_are_refused(self, folder, body, keep):
        CatalogTrie(np.zeros((3, 2), np.uint16), 4).save(folder / "random")
        header = (folder / "random").read_bytes()[:HEADER_BYTES] if keep else b""
        (folder / "random").write_bytes(header + body)
        with pytest.raises(ValueError, match=r"random: (damaged|not a catalogue trie)"):
            CatalogTrie.open(folder / "random")

    @pytest.mark.parametrize("content", [b"PK\3\4" * 100, b"\0" * HEADER_BYTES, b""])
    def test_another_kind_of_file_is_refused(self, tmp_path, content):
        (tmp_path / "t").write_bytes(content)
        with pytest.raises(ValueError, match="not a catalogue trie"):
            CatalogTrie.open(tmp_path / "t")

    def test_a_missing_file_a_folder_and_a_pipe_are_os_errors(self, tmp_path):
        os.mkfifo(tmp_path / "pipe")
        for name, error in [("nothing", FileNotFoundError), ("", IsADirectoryError), ("pipe", OSError)]:
            with pytest.raises(error):
                CatalogTrie.open(tmp_path / name)
