"""How the threads of torch's operations wait for the next one, which has to be said before torch is loaded."""

import os

SPINS = "10000"
"""By trial: with as many, torch's own operations take as long as before; with a tenth, 8% longer."""


def wait_briefly() -> None:
    """Tell OpenMP, unless the user has told it something.

    By itself it spins for milliseconds after each operation, and takes a core from what comes then and is not
    torch's: the search, gathering, a put. With two threads on two cores a segment with a full window took 64 ms
    instead of 54.
    """
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = SPINS
