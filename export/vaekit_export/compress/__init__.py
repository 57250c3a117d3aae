"""From a bundle to a smaller one: lower precision and fewer latent dimensions, gated on quality."""
