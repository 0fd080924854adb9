"""Many questions from a file, answered into a file: rows, journal, executors."""
