"""Other libraries: `interop.backpack` (another engine), `interop.laplace` (laplace-torch)."""
