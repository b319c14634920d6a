"""The command lines: each module reads flags, turns them into settings once, calls the packages below, and prints."""
