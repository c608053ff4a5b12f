"""Where a run is shown beside its own folder."""
