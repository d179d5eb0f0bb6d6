"""Code that exists because of the hardware: ranks, noise by (seed, step), compiled parts, files, freed memory."""
