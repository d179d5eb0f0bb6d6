"""What the hardware asks for: ranks, noise by (seed, step), compiled parts, files, freed memory."""
