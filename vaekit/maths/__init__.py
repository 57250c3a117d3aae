"""Functions of arrays: noise, priors, the ELBO and paths through the latent space."""
