"""A local page on which a run's act options are moved and the effect is seen."""
