"""What the machine does while it serves, and those who watch: `bitnet top`, `bitnet monitor`."""
