"""Plain torch on any device, against which tests hold the kernels of the other backends."""
