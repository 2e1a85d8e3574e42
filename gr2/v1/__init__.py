"""Protobuf and gRPC code generated from `proto/gr2/v1/reranker.proto`; `make proto` writes it."""
