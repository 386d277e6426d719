"""A model's networks inside the memory manager of a host program. Nothing here imports a host."""
