# SPDX-License-Identifier: Apache-2.0
"""Start, status and stop of a service (`longmem service`)."""
