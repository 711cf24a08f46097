"""The job behind `longmem probe`."""
