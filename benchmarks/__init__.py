"""One script a table: each is one command that measures, prints its table and writes JSON."""
