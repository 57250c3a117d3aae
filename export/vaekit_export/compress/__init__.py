"""Compression of bundles: lower precision and fewer latent dimensions, behind a quality gate."""
