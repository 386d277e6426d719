"""Networks of the paper, by the field's key names. They know nothing of diffusion: a tensor in, a tensor out."""
