"""ExORL: its data sets, environments and exploration policies."""
