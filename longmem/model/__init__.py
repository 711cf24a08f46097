"""The whole model: backbone, SideNet, settings, saved folders."""
