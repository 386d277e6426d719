"""Training, on the same networks, processes, samplers, resize and metrics that inference runs on.

Three stages: `first_stage` (VQ-GAN), `experts` (paper's stage 1: SS-MoE), `decoder` (paper's stage 2: FCD).
"""
