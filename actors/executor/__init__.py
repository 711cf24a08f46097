"""The executor that sends tasks to Ray workers and repeats them when workers die."""
