"""`longmem doctor`: checks of a machine and of a backbone."""
