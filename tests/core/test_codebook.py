import copy
import itertools
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr2.decoding import Codebook, write_codebook

HEADER_BYTES = 192
INT64 = st.integers(min_value=-(2**63), max_value=2**63 - 1)
# Small numbers and the ends of the range collide with the reserved keys most easily.
IDS = st.lists(st.one_of(INT64, st.integers(-3, 3), st.integers(-(2**63), -(2**63) + 5)), unique=True, max_size=80)
# Up to 15 bytes lie in the slot, longer strings in the pool.
STRINGS = st.lists(st.one_of(st.text(max_size=6), st.text("ab\0é", min_size=12, max_size=18)), unique=True, max_size=80)


def random_codes(rows, levels, level_size, seed=0):
    return np.random.default_rng(seed).integers(0, level_size, (rows, levels)).astype(np.uint16)


def expected(ids, codes, queries):
    table = dict(zip(ids, codes.tolist(), strict=True))
    rows = [table.get(query, [0] * codes.shape[1]) for query in queries]
    return np.array(rows, dtype=np.uint16).reshape(len(queries), codes.shape[1]), [query in table for query in queries]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("codebook")


@pytest.fixture(params=["int64", "string"])
def small(request, tmp_path):
    """A codebook file of 40 items and the IDs as its lookup takes them."""
    numbers = np.arange(-20, 20, dtype=np.int64) * 977
    ids = numbers if request.param == "int64" else [f"item{'-' * (number % 20)}{number}" for number in numbers]
    path = tmp_path / "codebook.bin"
    write_codebook(path, ids, random_codes(40, 4, 256), 256)
    return path, ids


class TestLookup:
    @settings(max_examples=80, deadline=None)
    @given(ids=IDS, strangers=IDS, levels=st.integers(1, 8), level_size=st.sampled_from([1, 2, 256, 65536]))
    def test_int64_ids_are_found_as_in_a_dict(self, folder, ids, strangers, levels, level_size):
        codes = random_codes(len(ids), levels, level_size)
        write_codebook(folder / "int", np.array(ids, dtype=np.int64), codes, level_size)
        codebook = Codebook(folder / "int")
        queries = ids + strangers + ids
        found, known = codebook.lookup(np.array(queries, dtype=np.int64))
        rows, flags = expected(ids, codes, queries)
        assert found.dtype == np.uint16
        assert known.dtype == np.bool_
        assert np.array_equal(found, rows)
        assert known.tolist() == flags
        assert (codebook.size, len(codebook), codebook.levels) == (len(ids), len(ids), levels)
        assert (codebook.level_size, codebook.id_type) == (level_size, "int64")

    @settings(max_examples=80, deadline=None)
    @given(ids=STRINGS, strangers=STRINGS, levels=st.integers(1, 8))
    def test_string_ids_are_found_as_in_a_dict(self, folder, ids, strangers, levels):
        codes = random_codes(len(ids), levels, 256)
        write_codebook(folder / "string", ids, codes, 256)
        codebook = Codebook(folder / "string")
        queries = ids + strangers
        found, known = codebook.lookup(queries)
        rows, flags = expected(ids, codes, queries)
        assert np.array_equal(found, rows)
        assert known.tolist() == flags
        assert codebook.id_type == "string"

    def test_an_id_that_marks_empty_slots_is_unknown(self, tmp_path):
        lowest = -(2**63)
        taken = np.arange(lowest, lowest + 50, dtype=np.int64)
        write_codebook(tmp_path / "c", taken, random_codes(50, 4, 256) | 1, 256)
        found, known = Codebook(tmp_path / "c").lookup(np.arange(lowest, lowest + 100, dtype=np.int64))
        assert known.tolist() == [True] * 50 + [False] * 50
        assert not found[50:].any()

    def test_a_large_catalogue_is_found_whole(self, tmp_path):
        generator = np.random.default_rng(3)
        ids = np.unique(generator.integers(-(2**63), 2**63 - 1, 200_000))
        codes = random_codes(len(ids), 4, 256)
        write_codebook(tmp_path / "c", ids, codes, 256)
        found, known = Codebook(tmp_path / "c").lookup(ids)
        assert known.all()
        assert np.array_equal(found, codes)

    @pytest.mark.parametrize("empty", [np.empty(0, np.int64), [], ()])
    def test_no_ids_give_no_rows_whatever_the_id_type(self, small, empty):
        codes, known = Codebook(small[0]).lookup(empty)
        assert codes.shape == (0, 4)
        assert known.shape == (0,)

    def test_an_empty_codebook_knows_nothing(self, tmp_path):
        write_codebook(tmp_path / "c", np.empty(0, np.int64), np.empty((0, 4), np.uint16), 256)
        codebook = Codebook(tmp_path / "c")
        assert len(codebook) == 0
        codes, known = codebook.lookup(np.array([0, 1, -(2**63)]))
        assert not codes.any()
        assert not known.any()

    def test_strided_ids_are_read_in_their_order(self, small):
        ids = np.arange(-20, 20, dtype=np.int64) * 977
        codebook = Codebook(small[0])
        if codebook.id_type == "int64":
            assert np.array_equal(codebook.lookup(ids[::-3])[0], codebook.lookup(ids[::-3].copy())[0])
        else:
            names = np.array(small[1])
            assert np.array_equal(codebook.lookup(tuple(names[::-3]))[0], codebook.lookup(names[::-3].tolist())[0])

    def test_threads_look_up_at_once(self, tmp_path, in_threads):
        ids = np.random.default_rng(0).permutation(100_000).astype(np.int64)
        codes = random_codes(len(ids), 4, 256)
        write_codebook(tmp_path / "c", ids, codes, 256)
        codebook = Codebook(tmp_path / "c")
        wrong = []

        def work(seed):
            generator = np.random.default_rng(seed)
            for _ in range(50):
                rows = generator.integers(0, len(ids), 5_000)
                found, known = codebook.lookup(ids[rows])
                if not known.all() or not np.array_equal(found, codes[rows]):
                    wrong.append(seed)

        in_threads(4, work)
        assert not wrong

    def test_another_process_maps_the_same_file(self, small):
        path, ids = small
        argument = repr(list(ids)) if isinstance(ids, list) else f"numpy.array({ids.tolist()}, dtype='int64')"
        program = (
            "import sys, numpy\nfrom gr2._core import Codebook\n"
            f"codebook = Codebook(sys.argv[1])\nprint(codebook.lookup({argument})[0].tolist())\n"
            "print([line.split()[1] for line in open('/proc/self/maps') if line.rstrip().endswith('codebook.bin')])\n"
        )
        codebook = Codebook(path)
        answer = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=True)
        assert answer.stdout.splitlines() == [str(codebook.lookup(ids)[0].tolist()), "['r--s']"]

    def test_replacing_the_file_leaves_an_open_codebook_alone(self, small):
        path, ids = small
        codebook = Codebook(path)
        before = codebook.lookup(ids)[0]
        write_codebook(path, [f"other {i}" for i in range(3)], np.zeros((3, 2), np.uint16), 4)
        assert np.array_equal(codebook.lookup(ids)[0], before)
        assert len(Codebook(path)) == 3


class TestWrite:
    @settings(max_examples=60, deadline=None)
    @given(data=st.data(), strings=st.booleans())
    def test_bytes_do_not_depend_on_the_order_of_the_items(self, folder, data, strings):
        ids = data.draw(STRINGS if strings else IDS)
        order = data.draw(st.permutations(range(len(ids))))
        codes = random_codes(len(ids), 3, 256)
        shuffled = [ids[i] for i in order]
        if strings:
            write_codebook(folder / "a", ids, codes, 256)
            write_codebook(folder / "b", shuffled, codes[np.array(order, dtype=int)], 256)
        else:
            write_codebook(folder / "a", np.array(ids, np.int64), codes, 256)
            write_codebook(folder / "b", np.array(shuffled, np.int64), codes[np.array(order, dtype=int)], 256)
        assert (folder / "a").read_bytes() == (folder / "b").read_bytes()

    def test_the_fingerprint_changes_with_any_id_code_or_size(self, tmp_path):
        ids, codes = np.arange(10, dtype=np.int64), random_codes(10, 4, 256)
        other_codes, other_ids = codes.copy(), ids.copy()
        other_codes[7, 2] ^= 1
        other_ids[3] = 99
        swapped = codes[[1, 0, *range(2, 10)]]
        variants = [(ids, codes, 256), (ids, other_codes, 256), (other_ids, codes, 256), (ids, codes, 257)]
        variants += [(ids, swapped, 256), ([str(i) for i in ids], codes, 256)]
        seen = set()
        for variant in variants:
            write_codebook(tmp_path / "c", *variant)
            seen.add(Codebook(tmp_path / "c").fingerprint)
        assert len(seen) == len(variants)
        assert all(len(text) == 32 for text in seen)

    def test_a_string_path_and_a_path_object_are_the_same(self, tmp_path):
        write_codebook(str(tmp_path / "c"), np.array([5]), np.array([[1]], np.uint16), 2)
        assert Codebook(str(tmp_path / "c")).fingerprint == Codebook(tmp_path / "c").fingerprint

    def test_no_temporary_file_is_left(self, small):
        assert [entry.name for entry in small[0].parent.iterdir()] == ["codebook.bin"]

    def test_duplicate_ids_are_refused(self, tmp_path):
        with pytest.raises(ValueError, match="item_ids must be unique, 7 comes more than once"):
            write_codebook(tmp_path / "c", np.array([7, 8, 7]), np.zeros((3, 4), np.uint16), 256)
        with pytest.raises(ValueError, match="item_ids must be unique, 'x' comes more than once"):
            write_codebook(tmp_path / "c", ["y", "x", "x"], np.zeros((3, 4), np.uint16), 256)

    @pytest.mark.parametrize(
        ("ids", "codes", "level_size", "error", "message"),
        [
            (np.arange(2), np.array([[0, 1], [2, 4]], np.uint16), 4, ValueError, "codes row 1 level 1 is 4"),
            (np.arange(2), np.zeros((3, 4), np.uint16), 256, ValueError, r"n = 2 and L = 4, got uint16 \(3, 4\)"),
            (np.arange(2), np.zeros((2, 9), np.uint16), 256, ValueError, "1 to 8 levels, got 9"),
            (np.arange(0), np.empty((0, 2**32 + 4), np.uint16), 256, ValueError, "1 to 8 levels, got 4294967300"),
            (np.arange(2), np.zeros((2, 0), np.uint16), 256, ValueError, "1 to 8 levels, got 0"),
            (np.arange(2), np.zeros((2, 4), np.uint16), 0, ValueError, "level_size must be 1 to 65536, got 0"),
            (np.arange(2), np.zeros((2, 4), np.uint16), 65537, ValueError, "got 65537"),
            (np.arange(2), np.zeros((2, 4), np.int64), 256, TypeError, r"uint16 \(n, L\), got int64 \(2, 4\)"),
            (np.arange(2), np.zeros(2, np.uint16), 256, ValueError, r"uint16 \(n, L\), got uint16 \(2,\)"),
            (np.arange(2.0), np.zeros((2, 4), np.uint16), 256, TypeError, "item_ids must be int64 .* got float64"),
            ([1, 2], np.zeros((2, 4), np.uint16), 256, TypeError, "sequence of str, got int at 0"),
            ("ab", np.zeros((2, 4), np.uint16), 256, TypeError, "sequence of str, got str"),
            ({"a", "b"}, np.zeros((2, 4), np.uint16), 256, TypeError, "sequence of str, got set"),
            (["a", "\ud800"], np.zeros((2, 4), np.uint16), 256, ValueError, "surrogates"),
        ],
    )
    def test_wrong_arguments_are_named(self, tmp_path, ids, codes, level_size, error, message):
        with pytest.raises(error, match=message):
            write_codebook(tmp_path / "c", ids, codes, level_size)
        assert not (tmp_path / "c").exists()

    def test_a_folder_that_does_not_exist_is_an_os_error(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="missing"):
            write_codebook(tmp_path / "missing" / "c", np.arange(2), np.zeros((2, 4), np.uint16), 256)


class TestItems:
    @settings(max_examples=80, deadline=None)
    @given(data=st.data(), strings=st.booleans(), levels=st.integers(1, 8), level_size=st.sampled_from([1, 2, 5, 256]))
    def test_items_are_found_by_their_codes_as_in_a_dict(self, folder, data, strings, levels, level_size):
        ids = data.draw(STRINGS if strings else IDS)
        codes = random_codes(len(ids), levels, level_size)
        write_codebook(folder / "items", ids if strings else np.array(ids, np.int64), codes, level_size)
        table = {}
        for item, row in zip(ids, codes.tolist(), strict=True):
            table.setdefault(tuple(row), set()).add(item)
        wanted = np.concatenate([codes, random_codes(20, levels, level_size, seed=1)])
        offsets, found = Codebook(folder / "items").items(wanted)
        assert offsets.dtype == np.int64
        assert len(offsets) == len(wanted) + 1
        for row, (start, end) in zip(wanted.tolist(), itertools.pairwise(offsets), strict=True):
            items = list(found[start:end])
            assert len(set(items)) == len(items)
            assert set(items) == table.get(tuple(row), set())

    def test_no_codes_give_no_items(self, small):
        offsets, ids = Codebook(small[0]).items(np.empty((0, 4), np.uint16))
        assert offsets.tolist() == [0]
        assert len(ids) == 0

    @pytest.mark.parametrize("codes", [np.zeros((2, 3), np.uint16), np.zeros((2, 4), np.int64), np.zeros(4, np.uint16)])
    def test_codes_of_another_shape_or_type_are_refused(self, small, codes):
        with pytest.raises((TypeError, ValueError), match="codes must be uint16"):
            Codebook(small[0]).items(codes)


class TestDamage:
    """Every damaged file is refused with the file's name and a reason; none crashes."""

    @pytest.mark.parametrize("bit", [0, 7])
    def test_any_flipped_byte_is_refused(self, small, bit):
        path, _ = small
        content = path.read_bytes()
        with path.open("r+b", buffering=0) as file:
            for position, byte in enumerate(content):
                os.pwrite(file.fileno(), bytes([byte ^ 1 << bit]), position)
                with pytest.raises(ValueError, match=r"codebook.bin: (damaged|not a codebook|written on|codebook ver)"):
                    Codebook(path)
                os.pwrite(file.fileno(), bytes([byte]), position)
        assert len(Codebook(path)) == 40

    def test_a_truncation_at_any_byte_is_refused(self, small):
        path, _ = small
        for length in reversed(range(path.stat().st_size)):
            os.truncate(path, length)
            with pytest.raises(ValueError, match=r"codebook.bin: (damaged|not a codebook)"):
                Codebook(path)

    def test_appended_bytes_are_refused(self, small):
        small[0].write_bytes(small[0].read_bytes() + b"\0")
        with pytest.raises(ValueError, match="size is not what its header says"):
            Codebook(small[0])

    def test_a_newer_version_says_so(self, small):
        content = bytearray(small[0].read_bytes())
        content[8:12] = (3).to_bytes(4, "little")
        small[0].write_bytes(content)
        with pytest.raises(ValueError, match="codebook version 3, and this gr2 reads version 2"):
            Codebook(small[0])

    @pytest.mark.parametrize("content", [b"PK\3\4" * 100, b"\0" * HEADER_BYTES, b""])
    def test_another_kind_of_file_is_refused(self, tmp_path, content):
        (tmp_path / "c").write_bytes(content)
        with pytest.raises(ValueError, match="not a codebook"):
            Codebook(tmp_path / "c")

    def test_a_missing_file_and_a_folder_are_os_errors(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="nothing"):
            Codebook(tmp_path / "nothing")
        with pytest.raises(IsADirectoryError):
            Codebook(tmp_path)

    def test_a_pipe_is_an_os_error_and_is_not_waited_for(self, tmp_path):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(OSError, match="pipe"):
            Codebook(tmp_path / "pipe")


class TestUnconstructed:
    """No way leads to an object without a codebook."""

    @pytest.mark.parametrize("new", [Codebook.__new__, object.__new__])
    def test_new_alone_makes_no_object(self, new):
        with pytest.raises(TypeError):
            new(Codebook)

    def test_copies_are_refused(self, small):
        with pytest.raises(TypeError):
            copy.copy(Codebook(small[0]))

    def test_a_second_init_changes_nothing(self, small, tmp_path):
        codebook = Codebook(small[0])
        assert len(codebook) == 40
        write_codebook(tmp_path / "other", np.arange(3), np.zeros((3, 4), np.uint16), 4)
        codebook.__init__(tmp_path / "other")
        assert len(codebook) == 40


class TestArguments:
    def test_ids_of_the_other_type_are_refused(self, small):
        path, ids = small
        codebook = Codebook(path)
        other = np.arange(3) if isinstance(ids, list) else ["a", "b"]
        with pytest.raises(TypeError, match="as in this codebook"):
            codebook.lookup(other)

    @pytest.mark.parametrize("ids", [np.zeros(3, np.int32), np.zeros(3), np.zeros((2, 2), np.int64), 5, None, b"ab"])
    def test_other_arguments_are_refused(self, small, ids):
        with pytest.raises((TypeError, ValueError), match="ids must be int64"):
            Codebook(small[0]).lookup(ids)

    def test_attributes_cannot_be_set(self, small):
        with pytest.raises(AttributeError):
            Codebook(small[0]).size = 3
