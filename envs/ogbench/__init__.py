"""OGBench: its data sets, environments and experts."""
