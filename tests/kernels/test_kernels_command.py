import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")


def run(*arguments):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "gr2.cli", "kernels", "compile", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_a_bundles_kernels_are_written_to_the_folder(make_bundle, tmp_path):
    bundle = make_bundle(levels=2, max_candidates=16)
    done = run("--bundle", bundle, "--target", "sm_90", "--out", tmp_path / "kernels")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "sm_90: 5 kernels for up to 16 candidates of 2 codes\n"
    names = {path.stem for path in (tmp_path / "kernels").rglob("*.cubin")}
    assert names == {"trie_score_kernel", "rank_step_kernel"}


def test_searches_of_a_bundles_catalogue_are_compiled_too(make_bundle, tmp_path):
    bundle = make_bundle(levels=2, max_candidates=16)
    done = run("--bundle", bundle, "--target", "sm_90", "--out", tmp_path / "kernels", "--beams", 3)
    assert done.returncode == 0, done.stderr
    assert "sm_90: 6 kernels for 300 items and 3 beams\n" in done.stdout
    names = {path.stem for path in (tmp_path / "kernels").rglob("*.cubin")}
    assert names == {"trie_score_kernel", "rank_step_kernel", "constrained_step_kernel", "leaf_items_kernel"}


def test_a_target_that_is_none_is_refused(make_bundle):
    done = run("--bundle", make_bundle(levels=2, max_candidates=16), "--target", "h100")
    assert (done.returncode, done.stdout) == (2, "")
    assert "target must be one of sm_80, sm_86, sm_87, sm_89, sm_90, sm_100" in done.stderr


def test_beams_that_no_search_has_are_refused(make_bundle, tmp_path):
    bundle = make_bundle(levels=1, max_candidates=16)
    done = run("--bundle", bundle, "--target", "sm_90", "--out", tmp_path / "kernels", "--beams", 1025)
    assert done.returncode == 2
    assert done.stderr == "gr2: error: no kernels for this: beams must be 1 to 1024 on a GPU, got 1025\n"


def test_what_is_interpreted_is_not_compiled(make_bundle, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    command = [sys.executable, "-m", "gr2.cli", "kernels", "compile", "--target", "sm_90", "--out", str(tmp_path)]
    done = subprocess.run([*command, "--bundle", str(make_bundle())], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "gr2: error: TRITON_INTERPRET is set: nothing is compiled; unset it\n")
