"""Shortened histories: made, judged, rewarded, and how well a reasoner ranks from them."""
