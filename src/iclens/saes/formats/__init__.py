"""Where SAEs come from: one module per layout on disk, all of them read into the same `Parts`."""
