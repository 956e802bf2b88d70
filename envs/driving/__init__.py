"""Driving: plans of 4 seconds in traffic, scored as NAVSIM scores them. `tasks` holds what load_task needs."""
