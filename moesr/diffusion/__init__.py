"""Diffusion: the two processes, their samplers, the time experts and tiles. Calls networks it is given, knows none."""
