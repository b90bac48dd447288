"""Charts as SVG: by hand for the thousands, rendered by altair for the few."""
