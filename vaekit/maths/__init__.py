"""Arrays in, arrays out: noise, priors, the ELBO and paths through the latent space. No files and no sessions."""
