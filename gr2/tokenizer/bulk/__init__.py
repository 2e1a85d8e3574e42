"""Semantic IDs for catalogues that do not fit into memory, as a Ray Data job."""
