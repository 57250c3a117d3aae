"""Writing results: grids, animations, latents and plots."""
