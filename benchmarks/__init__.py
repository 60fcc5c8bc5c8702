"""How fast bvae is, as ratios to peers measured in the same run."""
