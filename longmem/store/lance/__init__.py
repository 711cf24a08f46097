# SPDX-License-Identifier: Apache-2.0
"""The store on LanceDB: tables, commits, recovery and maintenance."""
