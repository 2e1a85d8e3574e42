"""What is measured of the kernels, and where: on a GPU, or a dry run of the same code in Triton's interpreter."""

from __future__ import annotations

from dataclasses import dataclass

from gr2.kernels import Decoder, make_decoder

__all__ = ["DRY", "FULL", "LEVELS", "Plan"]

LEVELS = 4
# Items, V, batch and beams of a search.
Shape = tuple[int, int, int, int]


@dataclass(frozen=True)
class Plan:
    """The shapes of all figures. Times of a dry run say nothing: it is for what could break."""

    device: str
    items: tuple[int, ...]
    level_sizes: tuple[int, ...]
    batches: tuple[int, ...]
    beams: tuple[int, ...]
    # What torch.compile is asked for, which takes seconds each, and by which backend.
    compiled: frozenset[Shape]
    backend: str
    # Logits are taken from so many bytes in turn, so that they are not in the cache before.
    rotated: int
    # Of the figures of scores and generation: requests, candidates and V.
    requests: tuple[int, ...]
    candidates: int
    copied: int  # numbers, of which a copy tells the bandwidth
    # Seconds after which torch.compile is not asked any more.
    seconds: float

    @property
    def dry(self) -> bool:
        """Whether there is no GPU."""
        return self.device == "cpu"

    def decoder(self) -> Decoder:
        """By the kernels, of a GPU or in the interpreter."""
        if not self.dry:
            return make_decoder(self.device)
        from gr2.kernels.device_decoder import DeviceDecoder

        return DeviceDecoder(self.device)


MILLION, MORE = 1_000_000, 20_000_000
FULL = Plan(
    device="cuda",
    items=(MILLION, MORE),
    level_sizes=(256, 2048),
    batches=(1, 32, 256),
    beams=(10, 70),
    compiled=frozenset(
        [(MILLION, 256, batch, beams) for batch in (1, 256) for beams in (10, 70)]
        + [(MILLION, 2048, batch, 70) for batch in (1, 256)]
        + [(MORE, size, 32, 70) for size in (256, 2048)]
    ),
    backend="inductor",
    rotated=100_000_000,
    requests=(1, 64),
    candidates=100,
    copied=2**28,
    seconds=200.0,
)
DRY = Plan(
    device="cpu",
    items=(300,),
    level_sizes=(16,),
    batches=(1, 2),
    beams=(3,),
    compiled=frozenset([(300, 16, 2, 3)]),
    backend="eager",
    rotated=1_300,
    requests=(2,),
    candidates=6,
    copied=2**10,
    seconds=600.0,
)
