"""Write results: grids, animations, latents and plots."""
