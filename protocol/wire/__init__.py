"""Declare the structures on the wire, and the cursor that reads them from bytes."""
