"""Training, on the same networks, processes, samplers, resize and metrics that inference runs on.

`recipe` trains a small model by one command; `stages` has the stages: `first_stage` (VQ-GAN or KL), `experts` (paper's
stage 1: SS-MoE), `decoder` (paper's stage 2: FCD). All of them are tasks of one `loop`, on batches of `data.source`.
"""
