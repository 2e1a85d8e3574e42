"""How a bundle's model is run: by the C++ core, in Python, in two steps, or in batches on a device."""
