"""What each page shows, as frozen records of plain values."""
