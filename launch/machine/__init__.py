"""The hardware and the operating system: ranks, noise by (seed, step), compiled parts, files, freed memory."""
