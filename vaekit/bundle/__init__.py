"""The bundle: what `vaekit export` writes, its manifest, and the checks a bundle passes before it is used."""
