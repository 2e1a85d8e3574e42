from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from gr2.config import INCIDENTAL, LATER, apply_overrides, build, deciding, load_toml, refuse_below, to_json
from gr2.errors import ConfigError

NOT_FINITE = ("nan", "inf", "-inf")


@dataclass(frozen=True)
class Sample:
    path: str
    epochs: int = 3
    rate: float = 0.1
    ties: Literal["shuffle", "stored"] = "shuffle"
    vectors: str | None = None
    flag: bool = False
    sizes: tuple[int, ...] = (1, 2)

    def __post_init__(self) -> None:
        refuse_below(self, 1, "epochs")
        refuse_below(self, 0, "rate")


def test_defaults_and_values_are_taken() -> None:
    sample = build(Sample, {"path": "a", "rate": 1, "sizes": [4, 5], "vectors": "v.npy"}, "sample")
    assert sample == Sample("a", rate=1.0, sizes=(4, 5), vectors="v.npy")
    assert isinstance(sample.rate, float)


def test_unknown_key_names_the_nearest_known_one() -> None:
    with pytest.raises(ConfigError, match=r"\[sample\] has no key 'epoch'; did you mean 'epochs'"):
        build(Sample, {"path": "a", "epoch": 3}, "sample")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"path": "a", "epochs": "3"}, "epochs must be int, got '3'"),
        ({"path": "a", "epochs": True}, "epochs must be int, got True"),
        ({"path": "a", "ties": "random"}, "ties must be one of 'shuffle', 'stored', got 'random'"),
        ({"path": "a", "vectors": 3}, "vectors must be"),
        ({"path": "a", "flag": 1}, "flag must be bool, got 1"),
        ({"path": "a", "sizes": 3}, "sizes must be a list, got 3"),
        ({"path": "a", "sizes": ["x"]}, "sizes must be int, got 'x'"),
        ({"path": "a", "epochs": 0}, "epochs must be at least 1, got 0"),
        ({"path": "a", "rate": -0.5}, "rate must not be negative, got -0.5"),
        *(({"path": "a", "rate": float(wrong)}, f"rate must be a finite number, got {wrong}") for wrong in NOT_FINITE),
        ({"path": "a", "epochs": 10**30}, "epochs must fit in 64 bits, got 1000"),
        ({"path": "a", "rate": 10**400}, "rate must be a finite number, got 1000"),
        ({}, "needs the key 'path'"),
    ],
)
def test_bad_value_says_what_came_and_what_was_expected(table: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(Sample, table, "sample")


def test_table_of_another_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"\[sample\] must be a table, got int"):
        build(Sample, 3, "sample")  # type: ignore[arg-type]


def test_overrides_are_read_as_toml_and_else_as_text() -> None:
    tables = {"run": {"seed": 0}}
    changed = apply_overrides(tables, ["run.seed=7", "run.out=runs/x", "prerank.sizes=[1, 2]", 'run.name="q"'])
    assert changed == {"run": {"seed": 7, "out": "runs/x", "name": "q"}, "prerank": {"sizes": [1, 2]}}
    assert tables == {"run": {"seed": 0}}


@pytest.mark.parametrize("override", ["seed=1", "run.seed", "=1", "run.=1", ".seed=1"])
def test_override_without_table_or_value_is_refused(override: str) -> None:
    with pytest.raises(ConfigError, match=r"expected table\.key=value"):
        apply_overrides({}, [override])


def test_override_of_a_table_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"\[prepare\] must be a table, got int"):
        apply_overrides({"prepare": 3}, ["prepare.items=x"])


def test_file_that_is_missing_or_not_toml_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        load_toml(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("[run\n")
    with pytest.raises(ConfigError, match=r"bad\.toml: not valid TOML.*line 1"):
        load_toml(tmp_path / "bad.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_toml(tmp_path / "binary.toml")


def test_configuration_round_trips_through_json() -> None:
    sample = Sample("a", sizes=(9,))
    assert build(Sample, to_json(sample), "sample") == sample


def test_what_decides_is_what_was_there_and_what_was_changed() -> None:
    @dataclass(frozen=True)
    class Grown:
        epochs: int = 3
        threads: int = field(default=0, metadata=INCIDENTAL)
        packing: str = field(default="auto", metadata=LATER)

    assert deciding(Grown()) == deciding(Grown(threads=2)) == {"epochs": 3}
    assert deciding(Grown(packing="on")) == {"epochs": 3, "packing": "on"}
