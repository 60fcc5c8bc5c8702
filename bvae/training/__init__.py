"""Parts of the training loop in `bvae.trainer`.

    step           one update of the weights by autograd; settings for reproducible results
    cpu_bf16       the handwritten step for CPUs that multiply in bfloat16
    cpu_layers     the layers that the handwritten step supports
    optimization   order of the grids; seed, learning rate and β of a step; Adam
    checkpoint     checkpoint files

`import bvae.training` imports none of these modules.
"""
