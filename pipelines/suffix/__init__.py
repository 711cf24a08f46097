"""The job behind `longmem suffix`."""
