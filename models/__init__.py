"""Segmentation networks around the CRFs, their data sets, training and evaluation; and the metrics for them."""
