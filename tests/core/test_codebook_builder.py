import itertools
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr2.decoding import Codebook, CodebookBuilder, write_codebook

INT64 = st.integers(min_value=-(2**63), max_value=2**63 - 1)
# Small numbers and the ends of the range collide with the reserved keys most easily.
IDS = st.lists(st.one_of(INT64, st.integers(-3, 3), st.integers(-(2**63), -(2**63) + 5)), unique=True, max_size=80)
# Up to 15 bytes lie in the slot, longer strings in the pool.
STRINGS = st.lists(st.one_of(st.text(max_size=6), st.text("ab\0é", min_size=12, max_size=18)), unique=True, max_size=80)


def random_codes(rows, levels, level_size, seed=0):
    return np.random.default_rng(seed).integers(0, level_size, (rows, levels)).astype(np.uint16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("builder")


def build(path, ids, codes, *, parts=1, **options):
    strings = isinstance(ids, list)
    builder = CodebookBuilder(
        path, levels=codes.shape[1], level_size=256, id_type="string" if strings else "int64", **options
    )
    bounds = np.linspace(0, len(ids), parts + 1).astype(int)
    for start, end in itertools.pairwise(bounds):
        builder.add(ids[start:end], codes[start:end])
    assert builder.size == len(ids)
    builder.finish()
    return builder


class TestBuilder:
    @settings(max_examples=60, deadline=None)
    @given(data=st.data(), strings=st.booleans(), parts=st.integers(1, 5), memory=st.sampled_from([0, 200, 10_000]))
    def test_runs_on_disk_and_parts_make_the_same_bytes(self, folder, data, strings, parts, memory):
        ids = data.draw(STRINGS if strings else IDS)
        ids = ids if strings else np.array(ids, np.int64)
        codes = random_codes(len(ids), 4, 256)
        write_codebook(folder / "whole", ids, codes, 256)
        build(folder / "parts", ids, codes, parts=parts, memory_bytes=memory)
        assert (folder / "whole").read_bytes() == (folder / "parts").read_bytes()

    @pytest.mark.parametrize("strings", [False, True])
    def test_a_large_catalogue_takes_no_more_memory_than_allowed(self, tmp_path, strings):
        program = (
            "import resource, sys, numpy as np\n"
            "from gr2.decoding import CodebookBuilder\n"
            "strings = sys.argv[2] == 'True'\n"
            "def size(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
            "builder = CodebookBuilder(sys.argv[1], levels=4, level_size=256, "
            "id_type='string' if strings else 'int64', memory_bytes=8 << 20)\n"
            "before = size()\n"
            "for part in range(40):\n"
            "    ids = np.arange(part * 20_000, (part + 1) * 20_000)\n"
            "    names = [f'a long item name {i}' for i in ids] if strings else ids\n"
            "    builder.add(names, np.full((20_000, 4), part, np.uint16))\n"
            "grown = size() - before\n"
            "builder.finish()\n"
            "print(grown, size() - before)\n"
        )
        command = [sys.executable, "-c", program, tmp_path / "c", str(strings)]
        grown, _ = map(float, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
        assert grown < 30
        codebook = Codebook(tmp_path / "c")
        assert len(codebook) == 800_000
        queries = [f"a long item name {i}" for i in range(0, 800_000, 997)] if strings else np.arange(0, 800_000, 997)
        codes, known = codebook.lookup(queries)
        assert known.all()
        assert np.array_equal(codes[:, 0], np.arange(0, 800_000, 997) // 20_000)

    def test_a_part_that_is_refused_leaves_the_parts_before_it(self, tmp_path):
        builder = CodebookBuilder(tmp_path / "c", levels=2, level_size=4, id_type="int64")
        builder.add(np.array([1]), np.array([[0, 1]], np.uint16))
        with pytest.raises(ValueError, match="codes row 1 level 0 is 4"):
            builder.add(np.array([2, 3]), np.array([[0, 1], [4, 0]], np.uint16))
        with pytest.raises(ValueError, match="item_ids must be int64, as this codebook's"):
            builder.add(["x"], np.array([[0, 1]], np.uint16))
        builder.finish()
        assert Codebook(tmp_path / "c").lookup(np.array([1, 2]))[1].tolist() == [True, False]

    def test_a_finished_builder_takes_nothing_more(self, tmp_path):
        builder = build(tmp_path / "c", np.arange(3), random_codes(3, 4, 256))
        with pytest.raises(RuntimeError, match="finished"):
            builder.add(np.arange(3, 4), random_codes(1, 4, 256))
        with pytest.raises(RuntimeError, match="finished"):
            builder.finish()

    def test_duplicates_in_different_parts_leave_no_file(self, tmp_path):
        with pytest.raises(ValueError, match="5 comes more than once"):
            build(tmp_path / "c", np.array([5, 6, 5]), random_codes(3, 4, 256), parts=3, memory_bytes=0)
        assert not list(tmp_path.iterdir())

    def test_scratch_files_have_no_name_and_an_unfinished_builder_leaves_nothing(self, tmp_path):
        builder = CodebookBuilder(tmp_path / "c", levels=4, level_size=256, id_type="int64", memory_bytes=0)
        builder.add(np.arange(100), random_codes(100, 4, 256))
        assert not list(tmp_path.iterdir())
        del builder
        assert not list(tmp_path.iterdir())

    def test_a_scratch_folder_that_is_missing_is_an_os_error(self, tmp_path):
        options = {"memory_bytes": 0, "scratch": tmp_path / "none"}
        with pytest.raises(FileNotFoundError, match="none"):
            build(tmp_path / "c", np.arange(100), random_codes(100, 4, 256), **options)

    def test_a_part_that_could_not_be_written_ends_the_builder(self, tmp_path):
        write_codebook(tmp_path / "c", np.array([7]), np.array([[1]], np.uint16), 4)
        program = (
            "import resource, signal, sys, numpy as np\n"
            "from gr2.decoding import CodebookBuilder\n"
            "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))\n"
            "builder = CodebookBuilder(sys.argv[1], levels=1, level_size=4, id_type='int64', memory_bytes=0)\n"
            "for action in (lambda: builder.add(np.arange(9_000), np.zeros((9_000, 1), np.uint16)), builder.finish):\n"
            "    try:\n"
            "        action()\n"
            "    except Exception as error:\n"
            "        print(type(error).__name__, error)\n"
        )
        command = [sys.executable, "-c", program, tmp_path / "c"]
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
        assert lines[0].startswith("OSError [Errno 27] File too large")
        assert lines[1].startswith("RuntimeError items were lost")
        assert len(Codebook(tmp_path / "c")) == 1

    def test_wrong_settings_are_named(self, tmp_path):
        for settings_, message in [
            ({"levels": 0, "level_size": 4, "id_type": "int64"}, "1 to 8 levels, got 0"),
            ({"levels": -1, "level_size": 4, "id_type": "int64"}, "1 to 8 levels, got -1"),
            ({"levels": 2, "level_size": 65_537, "id_type": "int64"}, "1 to 65536, got 65537"),
            ({"levels": 2, "level_size": 4, "id_type": "bytes"}, "'int64' or 'string', got 'bytes'"),
        ]:
            with pytest.raises(ValueError, match=message):
                CodebookBuilder(tmp_path / "c", **settings_)
