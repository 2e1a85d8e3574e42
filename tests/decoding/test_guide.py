"""The guide's programs run as they are written there."""

import re
from pathlib import Path

import numpy as np
import pytest

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "guide.md"


def test_score_generate_and_retrieve_of_the_guide(tmp_path, monkeypatch):
    if not GUIDE.exists():
        pytest.skip("the guide is not part of the installed package")
    monkeypatch.chdir(tmp_path)
    section = GUIDE.read_text(encoding="utf-8").partition("\n## decoding\n")[2].partition("\n### ")[0]
    blocks = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)
    assert len(blocks) == 3
    names: dict[str, object] = {}
    for block in blocks:
        exec(block, names)
    assert sorted(names["order"].tolist()) == list(range(100))
    assert sorted(names["drawn"].tolist()) == list(range(100))
    assert sum(len(nodes) for nodes in names["tokens"]) == names["trie"].node_count - 1
    items = names["items"]
    assert items.shape == (2, 10)
    assert not np.isin([17, 4], items[0]).any()
    assert len(np.unique(items[1])) == 10
