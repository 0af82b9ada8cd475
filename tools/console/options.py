"""Defines the options that commands of every kind share; it imports nothing slow."""

from __future__ import annotations

import click

json_option = click.option(
    "--json", "as_json", is_flag=True, help="print JSON with stable keys, for programs"
)
