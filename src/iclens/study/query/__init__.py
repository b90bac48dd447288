"""What a run is asked from Python: `run` and its tables, what stands out, two runs, charts and exports."""
