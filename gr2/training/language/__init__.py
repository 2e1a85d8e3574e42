"""Language models on rows of tokens: what they learn from, packed, and the losses."""
