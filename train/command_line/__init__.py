"""The options of commands, from command lines and files."""
