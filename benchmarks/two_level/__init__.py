"""Two-level int4 beside the affine one that the project uses: speed and quality."""
