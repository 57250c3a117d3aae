"""VAEs of other libraries, each as a ``ForeignVAE`` for ``export_vae``. Each file needs the library that it names."""
