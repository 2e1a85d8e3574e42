"""The bundles that are served: where they lie, and how one takes another's place."""
