"""Images of remote sensing, medicine and microscopy: GeoTIFF, NIfTI and TIFF stacks, read and written in windows."""
