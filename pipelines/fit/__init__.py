"""The job behind `longmem fit`."""
