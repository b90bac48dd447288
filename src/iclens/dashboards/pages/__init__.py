"""One module for each page: its files, what each rests on, and how it is written."""
