"""Constrained decoding where the logits are: `make_decoder` gives the C++ core, or Triton kernels on a GPU."""

from gr2.kernels.candidates import CandidateTables
from gr2.kernels.decoder import Decoder, HostDecoder, make_decoder

__all__ = ["CandidateTables", "Decoder", "HostDecoder", "make_decoder"]
