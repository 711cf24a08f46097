"""The job behind `longmem train`."""
