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
    assert "target must be sm_80 or newer, as sm_90, got 'h100'" in done.stderr
