"""What a manifest says of a bundle's graphs: which there are, how each was proved, and which is served.

A variant is an arithmetic; its graphs are `whole`, the model of one request; `encoder` and `scorer`, the same in two
steps, of which the first needs the history alone and may be kept; and `batch`, the model for batches of requests.
With the role `weights` a variant is computed by the C++ core from the file of weights, which all variants share:
encoder and scorer are then the reference that this is compared with, and what another runtime would serve.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gr2 import config as configuration
from gr2.errors import BundleError, ConfigError

__all__ = ["NATIVE", "ROLES", "VARIANTS", "WEIGHTS", "GraphVariant", "Graphs", "graph_file"]

VARIANTS = ("fp32", "int8", "int8-static", "fp16")
NATIVE = ("fp32", "int8")  # what the core computes from the weights
STEMS = {"whole": "model", "encoder": "encoder", "scorer": "scorer", "batch": "batch"}
WEIGHTS = "weights"
ROLES = (*STEMS, WEIGHTS)


def graph_file(role: str, variant: str = "fp32") -> str:
    """The name of the file that holds a graph, or the weights."""
    if role == WEIGHTS:
        return "weights.bin"
    return f"{STEMS[role]}.onnx" if variant == "fp32" else f"{STEMS[role]}.{variant}.onnx"


@dataclass(frozen=True)
class GraphVariant:
    """The graphs of one arithmetic that the bundle holds, none of one that was refused.

    `parity` are the figures of the comparison with the trained student, and `verdict` what follows from them.
    """

    roles: tuple[str, ...] = ()
    parity: dict[str, Any] = field(default_factory=dict)
    verdict: str = ""

    def __post_init__(self) -> None:
        if len(set(self.roles)) != len(self.roles) or not set(self.roles) <= set(ROLES):
            raise ValueError(f"roles must be some of {', '.join(ROLES)}, got {', '.join(self.roles)}")
        if ("encoder" in self.roles) != ("scorer" in self.roles):
            raise ValueError("an encoder and a scorer go together")
        if WEIGHTS in self.roles and not self.split:
            raise ValueError("weights go together with an encoder and a scorer")

    @property
    def split(self) -> bool:
        """Whether there are an encoder and a scorer."""
        return "encoder" in self.roles

    @property
    def native(self) -> bool:
        """Whether the core computes the variant from the weights."""
        return WEIGHTS in self.roles


@dataclass(frozen=True)
class Graphs:
    """`default` is the variant that a CPU serves, `batch` the one that a GPU does, and `why` says for what reason.

    The whole graph in fp32 is always there.
    """

    variants: dict[str, GraphVariant]
    default: str = "fp32"
    batch: str = "fp32"
    why: str = ""

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.variants) - set(VARIANTS)):
            raise ValueError(f"variants must be some of {', '.join(VARIANTS)}, got {', '.join(unknown)}")
        if wrong := [name for name, each in self.variants.items() if each.native and name not in NATIVE]:
            raise ValueError(f"weights can be served in {', '.join(NATIVE)}, not in {', '.join(wrong)}")
        if "fp32" not in self.variants or "whole" not in self.variants["fp32"].roles:
            raise ValueError("the whole graph in fp32 is missing")
        served = self.variants.get(self.default)
        if served is None or not (served.split or "whole" in served.roles):
            raise ValueError(f"default is {self.default}, of which there is no graph for one request")
        batch = self.variants.get(self.batch)
        if batch is None or ("batch" not in batch.roles and self.batch != "fp32"):
            raise ValueError(f"batch is {self.batch}, of which there is no graph for batches")

    @property
    def split(self) -> bool:
        """Whether a variant has an encoder and a scorer."""
        return any(variant.split for variant in self.variants.values())

    @property
    def files(self) -> tuple[str, ...]:
        """The names of the files of all graphs, and of the weights."""
        names = [graph_file(role, name) for name, variant in self.variants.items() for role in variant.roles]
        return tuple(dict.fromkeys(names))

    @classmethod
    def parse(cls, record: object) -> Graphs:
        """The section of a decoded manifest. Raises BundleError that names the wrong key."""
        if not isinstance(record, Mapping) or not isinstance(record.get("variants"), Mapping):
            raise BundleError("graphs must be an object with variants")
        try:
            variants = {
                name: configuration.build(GraphVariant, variant, f"graphs.variants.{name}")
                for name, variant in record["variants"].items()
            }
            return configuration.build(cls, {**record, "variants": variants}, "graphs")
        except ConfigError as error:
            raise BundleError(str(error)) from error
