"""The parts of a training step and of a run that the loop in `bvae.trainer` puts together.

    step           one update of the weights: by autograd, or handwritten where that is supported
    cpu_bf16       the handwritten step for CPUs that multiply in bfloat16, and which models it supports
    cpu_layers     its layers, and what each of them accepts
    optimizer      Adam with a clipped gradient
    schedule       order of the grids and learning rate
    checkpoint     checkpoint files
    determinism    the same bits from the same seed

Importing the package imports none of them.
"""
