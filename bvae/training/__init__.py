"""Parts of the training loop in `bvae.trainer`.

    step           one update of the weights, by autograd or handwritten; reproducible settings
    cpu_bf16       the handwritten step for CPUs that multiply in bfloat16, and which models it supports
    cpu_layers     its layers, and what each of them accepts
    optimization   order of the grids, seed and learning rate of a step, Adam with a clipped gradient
    checkpoint     checkpoint files

Importing the package imports none of them.
"""
