"""The work of each stage: `work(bench, folder)` fills an empty folder and returns what it found."""
