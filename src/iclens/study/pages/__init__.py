"""What each page shows: a run's tables as the plain records of `dashboards.records`."""
