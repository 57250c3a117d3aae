"""VAEs from other libraries as a ``ForeignVAE``. Each file needs the library that it is named after."""
