"""Images as remote sensing and medicine store them: GeoTIFF, NIfTI and TIFF stacks, read and written by windows."""
