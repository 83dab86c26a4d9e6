"""The command line, one file a verb; a verb imports its heavy parts when it runs."""
