"""The packaged experiment, and what `bvae init` writes for a project of one's own."""
