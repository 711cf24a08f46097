"""LongMem: a frozen backbone writes keys and values to a memory, a SideNet reads them back."""

__version__ = "0.1.0"
