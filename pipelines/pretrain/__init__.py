"""The job behind `longmem pretrain`."""
