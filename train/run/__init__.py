"""One run, and the folder it leaves behind."""
